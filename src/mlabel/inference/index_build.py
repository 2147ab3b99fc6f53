"""Writing a search index: scores come by image, and are sorted by label on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_scores, check_between, check_positive, to_numpy
from mlabel._files import new_folder, to_json, write_synced
from mlabel.inference.index import FORMAT, MAX_NAME, SURE, SearchIndex, map_array, unit_rows
from mlabel.labels import LabelSpace

TOP, FLOOR = 64, 0.001

_ROWS = {"labels": "<u4", "images": "<u4", "scores": "<f4"}
_CHUNK = 2**22  # entries that are sorted together


def build_index(
    folder: str | Path,
    space: LabelSpace,
    scored: Iterable[tuple[Sequence[str], Any, Any]],
    *,
    top: int = TOP,
    floor: float = FLOOR,
) -> SearchIndex:
    """Write a search index to `folder`, in the place of one that is there, and return it.

    Memory is that of one batch and of a sort of 4 M entries, however many images there are.

    Args:
        folder: Where to; its parent is made.
        space: The labels.
        scored: Batches of image names (n), their probabilities (n, L) as NumPy, torch or SciPy sparse (what is not
            stored is 0), and their features (n, D) or None.
        top: Scores kept of an image, the highest.
        floor: The lowest score kept.

    Raises:
        FileExistsError: `folder` exists and is not an index.
        ValueError: scores outside [0, 1] or of another number of labels; features for some images only; no images.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = build_index(f"{folder}/index", space, [(["a.jpg", "b.jpg"], [[0.9, 0.8], [0.7, 0.1]], None)])
        ...     [hit.image for hit in index.search("cat NOT dog")]
        ['b.jpg', 'a.jpg']
    """
    check_positive(top, "top")
    check_between(floor, SURE, 1.0, "floor")
    with new_folder(folder, "index.json", "an index") as temporary:
        writer = _Writer(temporary, space, top, floor)
        with writer:
            for names, scores, features in scored:
                writer.add(names, scores, features)
        writer.finish()
    return SearchIndex(folder)


class _Writer:
    """Writes scores by image as they come, then sorts them by label."""

    def __init__(self, folder: Path, space: LabelSpace, top: int, floor: float) -> None:
        self.folder, self.space = folder, space
        self.top, self.floor = min(top, space.num_labels), floor
        self.num_images = self.num_names_bytes = 0
        self.counts = np.zeros(space.num_labels, dtype=np.int64)
        self.dim: int | None = None
        self.files: dict[str, Any] = {}

    def __enter__(self) -> _Writer:
        names = ("row_labels", "row_images", "row_scores", "names", "name_offsets", "features")
        self.files = {name: open(self.folder / f"{name}.bin", "wb") for name in names}  # noqa: SIM115
        self.files["name_offsets"].write(np.zeros(1, "<i8").tobytes())
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, names: Sequence[str], scores: Any, features: Any) -> None:
        """Take a batch."""
        held = sp.csr_array(scores) if sp.issparse(scores) else as_scores(scores)
        if held.shape != (len(names), self.space.num_labels):
            raise ValueError(f"scores must be ({len(names)}, {self.space.num_labels}); got {held.shape}")
        values = np.asarray(held.data if sp.issparse(held) else held)
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"scores must be probabilities; got {values.min():.6g} to {values.max():.6g}")
        self._add_scores(*(_highest_stored(held, self.top) if sp.issparse(held) else _highest(held, self.top)))
        self._add_names(names)
        self._add_features(len(names), features)
        self.num_images += len(names)

    def _add_scores(self, rows: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
        scores = scores.astype("<f4")
        kept = scores >= self.floor
        self.counts += np.bincount(labels[kept], minlength=len(self.counts))
        self.files["row_labels"].write(labels[kept].astype("<u4").tobytes())
        self.files["row_images"].write((rows[kept] + self.num_images).astype("<u4").tobytes())
        self.files["row_scores"].write(scores[kept].tobytes())

    def _add_names(self, names: Sequence[str]) -> None:
        encoded = [str(name).encode() for name in names]
        longest = max(map(len, encoded), default=0)
        if longest > MAX_NAME:
            raise ValueError(f"the name of an image may have {MAX_NAME:,} bytes; got one of {longest:,}")
        ends = self.num_names_bytes + np.cumsum([len(each) for each in encoded], dtype="<i8")
        self.files["names"].write(b"".join(encoded))
        self.files["name_offsets"].write(ends.astype("<i8").tobytes())
        if len(ends):
            self.num_names_bytes = int(ends[-1])

    def _add_features(self, count: int, features: Any) -> None:
        dim = 0 if features is None else np.shape(features)[1]
        if self.dim not in (None, dim):
            raise ValueError(f"features of {dim} numbers came after features of {self.dim}; 0 means none")
        self.dim = dim
        if dim:
            held = to_numpy(features).astype(np.float64)
            if held.shape != (count, dim) or not np.isfinite(held).all():
                raise ValueError(f"features must be finite and ({count}, {dim}); got {held.shape}")
            self.files["features"].write(unit_rows(held).astype("<f4").tobytes())

    def finish(self) -> None:
        """Sort the entries by label, and describe the arrays."""
        if not self.num_images:
            raise ValueError("there are no images to make an index of")
        offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype("<i8")
        write_synced(self.folder / "offsets.bin", offsets.tobytes())
        self._sort(offsets)
        for name in ("row_labels", "row_images", "row_scores", *(() if self.dim else ("features",))):
            (self.folder / f"{name}.bin").unlink()
        about = {
            "format": FORMAT,
            "num_images": self.num_images,
            "num_entries": int(offsets[-1]),
            "num_features": self.dim or 0,
            "top": self.top,
            "floor": self.floor,
            "space": self.space.to_dict(),
        }
        write_synced(self.folder / "index.json", to_json(about).encode())

    def _sort(self, offsets: np.ndarray) -> None:
        total = int(offsets[-1])
        labels, images, scores = (
            map_array(self.folder / f"row_{name}.bin", kind, (total,)) for name, kind in _ROWS.items()
        )
        if not total:
            (self.folder / "images.bin").touch()
            (self.folder / "scores.bin").touch()
            return
        to_images = np.memmap(self.folder / "images.bin", "<u4", "w+", shape=(total,))
        to_scores = np.memmap(self.folder / "scores.bin", "<f4", "w+", shape=(total,))
        free = offsets[:-1].copy()
        for start in range(0, total, _CHUNK):
            chunk = np.asarray(labels[start : start + _CHUNK])
            order = np.argsort(chunk, kind="stable")  # so images stay ascending within a label
            counts = np.bincount(chunk, minlength=len(free))
            firsts = np.cumsum(counts) - counts
            places = np.arange(len(chunk)) + (free - firsts)[chunk[order]]
            to_images[places] = images[start : start + _CHUNK][order]
            to_scores[places] = scores[start : start + _CHUNK][order]
            free += counts
        to_images.flush()
        to_scores.flush()


Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


def _highest(scores: np.ndarray, top: int) -> Entries:
    """Return rows, labels and values of the `top` highest scores of each row (n, L)."""
    if top < scores.shape[1]:
        columns = np.argpartition(-scores, top - 1, axis=1)[:, :top]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    rows = np.repeat(np.arange(len(scores)), columns.shape[1])
    return rows, columns.ravel(), np.take_along_axis(scores, columns, axis=1).ravel()


def _highest_stored(scores: sp.csr_array, top: int) -> Entries:
    """Return rows, labels and values of the `top` highest stored scores of each row (n, L)."""
    scores.sum_duplicates()
    counts = np.diff(scores.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((-scores.data, rows))
    rank = np.arange(len(order)) - np.repeat(scores.indptr[:-1], counts)
    chosen = np.sort(order[rank < top])
    return rows[chosen], scores.indices[chosen], scores.data[chosen]
