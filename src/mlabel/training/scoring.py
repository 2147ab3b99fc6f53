"""Scores of a whole table, with the loss and the metrics they give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mlabel._checks import DataError
from mlabel.data import BadImage, Batch, ImageTable, Loader
from mlabel.data.images import too_many_bad
from mlabel.losses import BatchLoss
from mlabel.models import Classifier
from mlabel.training.distributed import ALONE, Ranks
from mlabel.training.precision import resolve_precision
from mlabel.training.step import forward

Progress = Callable[[Iterable[Batch], int, str], Iterable[Batch]]


def no_progress(batches: Iterable[Batch], total: int, title: str) -> Iterable[Batch]:
    """Return `batches` as they are; what is used where no progress bar is wanted."""
    return batches


@dataclass(frozen=True)
class TableScores:
    """What a model says of a table.

    Attributes:
        probabilities: (N, L) float32, in the table's order; NaN in the rows of images that were skipped.
        loss: The loss over the images that were scored; NaN where no loss was given.
        rows: The rows that were scored, int64 (M,), in order.
        bad: The images that were skipped, with the reason.
        notes: Oddity that was passed over, such as damaged EXIF data, to how often it was.
    """

    probabilities: np.ndarray
    loss: float
    rows: np.ndarray
    bad: tuple[BadImage, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    def of_scored(self, table: ImageTable) -> tuple[np.ndarray, ImageTable]:
        """Return the probabilities (M, L) of the images that were scored, and of `table` those images."""
        if len(self.rows) == len(table):
            return self.probabilities, table
        return self.probabilities[self.rows], table[self.rows]


def score_table(
    model: Classifier,
    table: ImageTable,
    loss: BatchLoss | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "auto",
    on_bad: str = "error",
    max_bad: float = 0.001,
    bad: list[BadImage] | None = None,
    progress: Progress = no_progress,
    ranks: Ranks = ALONE,
) -> TableScores:
    """Return the model's probabilities for every image of `table`, and their loss.

    Each image is scored exactly once, or, with `on_bad="skip"`, not at all where it cannot be read. The model is left
    in the mode it was in.

    Args:
        model: On the device that is to compute.
        table: Of the model's label space.
        loss: Any loss that merges batches exactly (see `mlabel.losses.as_loss`), or None.
        batch_size: Images of one forward pass.
        num_workers: Processes that decode images.
        precision: fp32, bf16, fp16 or auto.
        on_bad: `error`: an image that cannot be read is an error; `skip`: its row is NaN, and not in `rows`.
        max_bad: With `skip`, the share of the table that may be bad; beyond it is an error all the same.
        bad: A list that gets the images left out, also where there are too many of them and this is an error.
        progress: Wraps the batches; gets them, their number and a title.
        ranks: Those that score it together, each calling this. They share out whole batches, so that every number is
            the one that a single process gets. The first returns all; to the others the probabilities are NaN.

    Raises:
        ValueError: the table has another label space than the model.
        DataError: an image cannot be read, or with `skip` too many cannot, or none can.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data import ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> path, space = tempfile.mkdtemp() + "/a.png", LabelSpace([Group("tags", ["cat"])])
        >>> Image.new("RGB", (32, 32)).save(path)
        >>> table = ImageTable(paths=[path, path], ids=["a", "b"], targets=[[1], [0]], space=space)
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> found = score_table(model, table)
        >>> found.probabilities.shape, found.rows.tolist()
        ((2, 1), [0, 1])
    """
    model.space.check_same(table.space, "the table")
    share = _Share(len(table), batch_size, ranks)
    probabilities = np.full((len(share), model.space.num_labels), np.nan, dtype=np.float32)
    found = _Found(probabilities)
    try:
        if len(share):
            device = next(model.parameters()).device
            loader = Loader(
                table,
                batch_size=batch_size,
                image_size=model.image_size,
                channels=model.in_channels,
                sampler=share,
                num_workers=num_workers,
                pin_memory=device.type == "cuda",
                on_bad=on_bad,
                max_bad=max_bad if ranks.size == 1 else 1.0,  # of all ranks together it is looked at below
            )
            found.bad, found.notes = loader.bad, loader.notes
            with closing(loader), eval_mode(model):
                batches = progress(loader.epoch(), len(loader), "scoring")
                _score(model, loss, batches, found, share=share, precision=resolve_precision(precision, device))
        merged = _merge(found, share, table, ranks)
        found.bad = merged.bad
    finally:
        if bad is not None:
            bad.extend(found.bad)
    _refuse_bad(merged, len(table), max_bad)
    return merged


class _Share:
    """The rows of a table that one of several ranks scores, every w-th batch: a sampler for a loader."""

    def __init__(self, num_rows: int, batch_size: int, ranks: Ranks) -> None:
        self.batch_size = batch_size
        self._numbers = np.arange(num_rows) // batch_size
        self._size = ranks.size
        self.rows = self.of(ranks.rank)

    def __len__(self) -> int:
        return len(self.rows)

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows in their order, int64."""
        return self.rows

    def of(self, rank: int) -> np.ndarray:
        """Return the rows of any of the ranks."""
        return np.flatnonzero(self._numbers % self._size == rank)


@dataclass
class _Found:
    """What one rank found."""

    probabilities: np.ndarray  # (n, L) float32 of its share, NaN in the rows that were skipped
    rows: list[int] = field(default_factory=list)  # that were scored
    sums: list[tuple[int, dict[str, tuple[float, float]]]] = field(default_factory=list)  # of each batch, its number
    bad: Sequence[BadImage] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


def _score(
    model: Classifier,
    loss: BatchLoss | None,
    batches: Iterable[Batch],
    found: _Found,
    *,
    share: _Share,
    precision: str,
) -> None:
    device = next(model.parameters()).device
    for batch in batches:
        moved = batch.to(device)
        logits = forward(model, moved, precision).float()
        rows = batch.index.numpy()
        found.probabilities[np.searchsorted(share.rows, rows)] = model.space.probabilities(logits).cpu().numpy()
        found.rows += rows.tolist()
        parts = {} if loss is None else loss.parts(logits, moved.targets, moved.mask)
        sums = {group: (float(total), float(denominator)) for group, (total, denominator) in parts.items()}
        found.sums.append((int(rows[0]) // share.batch_size, sums))


def _merge(found: _Found, share: _Share, table: ImageTable, ranks: Ranks) -> TableScores:
    """Return what all ranks found; the probabilities, and which rows have them, on the first rank only."""
    said = ranks.gather({"rows": found.rows, "sums": found.sums, "bad": found.bad, "notes": found.notes})
    pieces = ranks.collect(found.probabilities)
    probabilities = (
        pieces[0] if pieces else np.broadcast_to(np.float32(np.nan), (len(table), found.probabilities.shape[1]))
    )
    if len(pieces) > 1:
        probabilities = np.empty((len(table), found.probabilities.shape[1]), dtype=np.float32)
        for rank, piece in enumerate(pieces):
            probabilities[share.of(rank)] = piece
    bad = [BadImage(*each) for held in said for each in held["bad"]]
    if len(bad) > 1:
        place = {str(name): row for row, name in enumerate(table.ids)}
        bad.sort(key=lambda image: place[image.id])  # as one process comes to them
    notes: Counter[str] = Counter()
    for held in said:
        notes.update(held["notes"])
    rows = sorted(row for held in said for row in held["rows"])
    return TableScores(
        probabilities,
        _loss([sums for held in said for sums in held["sums"]]),
        rows=np.array(rows, dtype=np.int64),
        bad=tuple(bad),
        notes=dict(notes),
    )


def _collect(probabilities: np.ndarray, share: _Share, size: int, ranks: Ranks) -> np.ndarray:
    """Return all ranks' probabilities (N, L) on the first rank; NaN, which take no memory, on the others."""
    if ranks.size == 1:
        return probabilities
    pieces, shape = ranks.collect(probabilities), (size, probabilities.shape[1])
    if not pieces:
        return np.broadcast_to(np.float32(np.nan), shape)
    whole = np.empty(shape, dtype=np.float32)
    for rank, piece in enumerate(pieces):
        whole[share.of(rank)] = piece
    return whole


def _loss(batches: Sequence[Sequence[Any]]) -> float:
    """Return the loss of batches from their numbers and sums, added in the order of one process; NaN without sums."""
    merged: dict[str, list[float]] = {}
    for _, sums in sorted(batches, key=lambda each: each[0]):
        for group, (total, denominator) in sums.items():
            held = merged.setdefault(group, [0.0, 0.0])
            held[0] += total
            held[1] += denominator
    value = sum(total / max(denominator, 1.0) for total, denominator in merged.values())
    return float(value) if merged else math.nan


def _refuse_bad(scores: TableScores, size: int, max_bad: float) -> None:
    last = scores.bad[-1].reason if scores.bad else ""
    if not len(scores.rows):
        raise DataError(f"none of the {size} images can be read; the last is {last}")
    too_many = too_many_bad(len(scores.bad), size, max_bad=max_bad, last=last)
    if too_many is not None:
        raise too_many


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode without gradients, and back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
