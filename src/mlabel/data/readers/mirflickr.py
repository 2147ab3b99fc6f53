"""MIRFLICKR-25k: one text file a label, with the numbers of the images that have it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, resolve
from mlabel.data.readers._lines import fail, find_data_set, read_lines
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

_IMAGE = re.compile(r"im([1-9][0-9]{0,8})\.(?:jpe?g|png)")
_RELEVANT = "_r1"


def read_mirflickr(root: str | Path, *, labels: Sequence[str] | None = None, relevant: bool = False) -> ImageTable:
    """Return the table of a MIRFLICKR folder: an any-of group "labels" over all images on disk, in numeric order.

    The folder has the images `im1.jpg`, ... in `images`, `mirflickr` or itself, and the annotations, `baby.txt` and so
    on with one image number a line, in `annotations` or another folder with that word in its name. An image in no
    file has no labels. Annotations of images that are not on disk are left out and counted in the notes.

    Args:
        root: That folder, or the one it lies in.
        labels: The labels to read, in the order wanted. None: all there are files for, by name.
        relevant: True reads `baby_r1.txt` and so on, the images for which the label is not only visible but relevant.

    Raises:
        FileNotFoundError: there are no such folders.
        ValueError: a label there is no file for.
        DataError: a line that is not an image number, or a number given twice; with file and line.

    Reference:
        M. J. Huiskes, M. S. Lew. The MIR Flickr Retrieval Evaluation (2008).

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("im1.jpg", "im2.jpg"):
        ...     (root / name).touch()
        >>> (root / "annotations").mkdir()
        >>> _ = (root / "annotations" / "baby.txt").write_text("2\\n")
        >>> table = read_mirflickr(root)
        >>> table.ids.tolist(), table.space.decode(table.targets)
        (['im1', 'im2'], [[], ['baby']])
    """
    folder, annotations = find_data_set(root, _look, "images im1.jpg, ... and a folder of annotations")
    images = _numbered_images(folder)
    files = _label_files(annotations, relevant)
    names = list(files) if labels is None else list(labels)
    numbers = np.array(sorted(images), dtype=np.int64)
    columns, absent = [], 0
    for name in names:
        listed = _read_numbers(resolve(name, files, "label"))
        rows = np.searchsorted(numbers, listed)
        present = numbers[np.minimum(rows, len(numbers) - 1)] == listed
        columns.append(rows[present])
        absent += int((~present).sum())
    note = f"{absent} annotations name an image that is not on disk and were left out"
    return ImageTable(
        paths=[os.path.join(folder, images[number]) for number in numbers.tolist()],
        targets=_from_columns(columns, len(numbers)),
        space=LabelSpace([Group("labels", names)]),
        ids=[f"im{number}" for number in numbers.tolist()],
        notes=(note,) if absent else (),
    )


def _look(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of annotations, where `root` has both."""
    named = [folder for folder in sorted(root.glob("*annotations*")) if folder.is_dir() and any(folder.glob("*.txt"))]
    candidates = (root / "images", root / "mirflickr", root)
    images = next((folder for folder in candidates if named and any(folder.glob("im[1-9]*.*"))), None)
    return None if images is None else (images, named[0])


def _numbered_images(folder: Path) -> dict[int, str]:
    """Return the image files by number."""
    images: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        match = _IMAGE.fullmatch(name)
        if match and images.setdefault(int(match[1]), name) != name:
            raise DataError(f"{folder}: {images[int(match[1])]} and {name} are both image {match[1]}")
    if not images:
        raise FileNotFoundError(f"{folder}: no images im1.jpg, im2.jpg, ... here")
    return images


def _label_files(folder: Path, relevant: bool) -> dict[str, Path]:
    files = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.stem.lower() != "readme"}
    marked = {name.removesuffix(_RELEVANT): path for name, path in files.items() if name.endswith(_RELEVANT)}
    plain = {name: path for name, path in files.items() if not name.endswith(_RELEVANT)}
    chosen, other = (marked, plain) if relevant else (plain, marked)
    if not chosen:
        hint = f"; the {len(other)} there are want relevant={not relevant}" if other else ""
        wanted = f"NAME{_RELEVANT}.txt" if relevant else "NAME.txt"
        raise FileNotFoundError(f"{folder}: no annotation files {wanted} here{hint}")
    return chosen


def _read_numbers(path: Path) -> np.ndarray:
    """Return the image numbers of one label."""
    lines: dict[int, int] = {}
    for line, text in read_lines(path):
        text = text.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
            raise fail(path, line, f"an image number (1, 2, ...) was wanted; found {text[:80]!r}")
        if lines.setdefault(int(text), line) != line:
            raise fail(path, line, f"image {text} was given before, in line {lines[int(text)]}")
    return np.array(list(lines), dtype=np.int64)


def _from_columns(columns: list[np.ndarray], num_rows: int) -> sp.csr_array:
    """Return targets (N, L) from the rows that each label has."""
    ends = np.concatenate([[0], np.cumsum([len(column) for column in columns])]).astype(np.int64)
    rows = np.concatenate(columns).astype(np.int64)
    data = np.ones(len(rows), dtype=np.uint8)
    return sp.csr_array(sp.csc_array((data, rows, ends), shape=(num_rows, len(columns))))
