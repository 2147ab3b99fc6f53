"""Prediction of many images by any number of processes: parts that are whole or not there.

The images are cut into parts of a fixed size. Each process takes the parts whose number leaves its own number when
divided by the number of processes, skips those whose file is there, and gives a file its name when it is whole. So a
stopped process is started again with the same command, whatever stopped it, and every image is predicted once. What a
part holds does not depend on who writes it: two processes that write the same part write the same bytes.

    plan.json             what was asked for; another question is refused
    part-00000.jsonl      the predictions of the first part
    part-00000.bad.jsonl  its images that could not be read, where there are any
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError, check_positive, resolve
from mlabel._files import read_json, sync_folder, to_json, write_atomically
from mlabel.data import ImageTable
from mlabel.inference.predictions import FORMATS, open_for_predictions, write_predictions
from mlabel.inference.tagger import Prediction, Tagger, unlabelled

FORMAT = "mlabel.predictions/1"
PART_SIZE = 8192

Progress = Callable[[Iterable[Prediction], int, str], Iterable[Prediction]]


@dataclass(frozen=True)
class BulkPrediction:
    """What a folder of predictions holds after a process did its share.

    Attributes:
        images: How many images there are in all.
        parts: How many parts there are in all.
        missing: The numbers of the parts that other processes are still to write.
        skipped: Images that could not be read, in the parts that are there.
    """

    images: int
    parts: int
    missing: tuple[int, ...]
    skipped: int


def predict_all(
    tagger: Tagger,
    images: Sequence[str | Path] | ImageTable,
    folder: str | Path,
    *,
    format: str = "jsonl",
    top: int | None = None,
    above: float | None = None,
    threshold: float | None = None,
    for_spreadsheet: bool = False,
    part_size: int = PART_SIZE,
    worker: tuple[int, int] = (0, 1),
    batch_size: int = 32,
    num_workers: int = 0,
    precision: str = "auto",
    on_bad: str = "error",
    max_bad: float = 0.001,
    progress: Progress | None = None,
) -> BulkPrediction:
    """Predict the share of this process of many images into part files in `folder`; repeat it to go on.

    Args:
        tagger: The tagger.
        images: Paths, or a table; see `Tagger.score`. No name may come twice.
        folder: Where to; made where it is not there.
        format, top, above, for_spreadsheet: See `write_predictions`.
        threshold, batch_size, num_workers, precision, on_bad: See `Tagger.stream`.
        part_size: Images of a part; made a multiple of `batch_size`, so that batches, and with them the last digits
            of scores, do not depend on the number of processes.
        worker: The number of this process, from 0, and how many there are.
        max_bad: With `skip`, the share of bad images in what this process still has to do above which it is an error.
        progress: Wraps the predictions; gets them, their number and a title.

    Raises:
        ValueError: a worker that is not one of the processes, a name that comes twice, or no images.
        DataError: the folder holds predictions of something else; the first difference is named.
        FileNotFoundError, DataError: an image is not there, or cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.inference import Tagger
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (32, 32)).save(folder + "/a.png")
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> predict_all(Tagger(model), [folder + "/a.png"], folder + "/predictions", top=1)
        BulkPrediction(images=1, parts=1, missing=(), skipped=0)
    """
    number, workers = worker
    check_positive(part_size, "part_size")
    if not 0 <= number < workers:
        raise ValueError(f"worker must be from (0, {workers}) to ({workers - 1}, {workers}); got {worker}")
    if not len(images):
        raise ValueError("there are no images to predict")
    paths = [] if isinstance(images, ImageTable) else [str(path) for path in images]
    table = images if isinstance(images, ImageTable) else unlabelled(paths, tagger.space, ids=paths)
    names = np.asarray(table.ids)
    size = -(-part_size // batch_size) * batch_size
    parts = _Parts(Path(folder), format, size, len(table))
    parts.agree(
        {
            "names": _digest(names),
            "model": tagger.fingerprint(),
            "options": {"format": format, "top": top, "above": above, "threshold": threshold}
            | {"for_spreadsheet": for_spreadsheet, "part_size": size, "batch_size": batch_size, "precision": precision},
        }
    )
    mine = [part for part in range(number, parts.count, workers) if not parts.path(part).exists()]
    if mine:
        rows = np.concatenate([parts.rows(part) for part in mine])
        bad: list[tuple[str, str]] = []
        predictions = tagger.stream(
            table[rows],
            threshold=threshold,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            on_bad=on_bad,
            max_bad=max_bad,
            bad=bad,
        )
        shown = predictions if progress is None else progress(predictions, len(rows), "predicting")
        ahead = _Ahead(shown)
        for part in mine:
            own = names[parts.rows(part)].tolist()
            write = partial(
                write_predictions,
                predictions=ahead.of(own),
                space=tagger.space,
                format=format,
                top=top,
                above=above,
                for_spreadsheet=for_spreadsheet,
            )
            parts.write(part, write, own, bad)
    return parts.result()


class _Ahead:
    """Predictions in order, part by part; one is read ahead only where the last images of a part may be skipped."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self._source = iter(predictions)
        self._read: Prediction | None = None  # of a later part

    def of(self, names: Sequence[str]) -> Iterator[Prediction]:
        """Yield the predictions of these images, which come next."""
        own, last = frozenset(names), names[-1]
        prediction, self._read = self._read or next(self._source, None), None
        while prediction is not None and prediction.path in own:
            yield prediction
            if prediction.path == last:
                return
            prediction = next(self._source, None)
        self._read = prediction


class _Parts:
    """The part files of a folder."""

    def __init__(self, folder: Path, format: str, size: int, num_images: int) -> None:
        resolve(format, FORMATS, "format")
        self.folder, self.format, self.size, self.num_images = folder, format, size, num_images
        self.count = -(-num_images // size)

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:05d}.{self.format}"

    def rows(self, part: int) -> np.ndarray:
        """Return the rows of a part."""
        return np.arange(part * self.size, min((part + 1) * self.size, self.num_images))

    def agree(self, plan: dict[str, Any]) -> None:
        """Write down what was asked for, or check that it is what was asked for before."""
        wanted = {"format": FORMAT, "images": self.num_images, **plan}
        self.folder.mkdir(parents=True, exist_ok=True)
        path, temporary = self.folder / "plan.json", self.folder / f".plan.{_process()}.tmp"
        write_atomically(temporary, to_json(wanted))
        try:
            os.link(temporary, path)  # of several processes that begin together, one writes it
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        held = read_json(path)
        if held != wanted:
            raise DataError(f"{path}: the folder holds predictions of something else: {_difference(held, wanted)}")

    def write(self, part: int, write: Callable[..., int], names: Sequence[str], bad: Sequence[tuple[str, str]]) -> None:
        """Write a part and the list of those of its images that could not be read; the part gets its name last."""
        path = self.path(part)
        temporary = path.with_name(f".{path.name}.{_process()}.tmp")
        try:
            with open_for_predictions(temporary, self.format) as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            own = frozenset(names)
            faults = [{"image": name, "reason": reason} for name, reason in bad if name in own]
            lines = [json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults]
            if lines:
                write_atomically(self._ledger(part), "".join(lines))
            temporary.replace(path)
            sync_folder(self.folder)
        finally:
            temporary.unlink(missing_ok=True)

    def result(self) -> BulkPrediction:
        """Return what is there, and take away what stopped processes left if nothing is missing."""
        missing = tuple(part for part in range(self.count) if not self.path(part).exists())
        if not missing:
            for left in self.folder.glob(".part-*.tmp"):
                left.unlink(missing_ok=True)
        ledgers = (self._ledger(part) for part in range(self.count) if self._ledger(part).exists())
        skipped = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in ledgers)
        return BulkPrediction(self.num_images, self.count, missing, skipped)

    def _ledger(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.bad.jsonl"


def _process() -> str:
    return f"{platform.node()}-{os.getpid()}"


def _difference(held: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(held, dict):
        return "its plan is not an object"
    flat = [{**each, **each.get("options", {})} for each in (held, wanted)]
    for name in wanted["options"] | wanted:
        first, second = (each.get(name) for each in flat)
        if first != second and name != "options":
            return f"{name} was {first}, now {second}"
    return "its plan has entries that are not known"


def _digest(names: np.ndarray) -> str:
    return hashlib.sha256("\n".join(names.tolist()).encode()).hexdigest()
