"""FashionDataset: six exclusive groups of clothing attributes, with official parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, as_scores
from mlabel._files import write_atomically
from mlabel.data.readers._lines import fail, find_data_set, locate_images, read_rows, refuse_repeats
from mlabel.data.table import PARTS, ImageTable
from mlabel.labels import Group, LabelSpace

GROUPS = {
    "pattern": ("floral", "graphic", "striped", "embroidered", "pleated", "solid", "lattice"),
    "sleeve": ("long_sleeve", "short_sleeve", "sleeveless"),
    "length": ("maxi_length", "mini_length", "no_dress"),
    "neckline": ("crew_neckline", "v_neckline", "square_neckline", "no_neckline"),
    "fabric": ("denim", "chiffon", "cotton", "leather", "faux", "knit"),
    "fit": ("tight", "loose", "conventional"),
}


def read_fashion(root: str | Path) -> ImageTable:
    """Return the table of a FashionDataset folder: six exclusive groups, with the official parts.

    The folder has `split/train.txt`, `val.txt` and `test.txt` with one image (`img/00000.jpg`) a line, beside them
    `train_attr.txt` and so on with six class numbers a line, counted from 0; each with or without a header line. A
    part without an attribute file has no labels: all of it is unknown. Names and order of the classes are those of
    `GROUPS`; where `split/list_attr_cloth.txt` is there, it must agree.

    Args:
        root: That folder, or the one it lies in.

    Raises:
        FileNotFoundError: there is no such folder, or images are not there.
        DataError: a line that is not of that form, two files that do not belong together, or an image listed twice;
            with file and line.

    Reference:
        Z. Liu, P. Luo, S. Qiu, X. Wang, X. Tang. DeepFashion: Powering Robust Clothes Recognition and Retrieval with
        Rich Annotations (2016), of which the images are.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder in ("img", "split"):
        ...     (root / folder).mkdir()
        >>> (root / "img" / "00000.jpg").touch()
        >>> _ = (root / "split" / "train.txt").write_text("img/00000.jpg\\n")
        >>> _ = (root / "split" / "train_attr.txt").write_text("5 0 2 0 3 2\\n")
        >>> table = read_fashion(root)
        >>> table.space.decode(table.targets)[0][:2]
        ['solid', 'long_sleeve']
    """
    root = find_data_set(root, _look, "split/train.txt")
    _check_class_names(root / "split" / "list_attr_cloth.txt")
    names, places, classes, partition = [], [], [], []
    for part in PARTS:
        listed = root / "split" / f"{part}.txt"
        if part != "train" and not listed.is_file():
            continue
        images = list(_read_names(listed))
        classes.append(_read_part_classes(root / "split" / f"{part}_attr.txt", listed, len(images), part))
        names += [name for _, name in images]
        places += [f"{listed}, line {line}" for line, _ in images]
        partition += [part] * len(images)
    refuse_repeats(names, places.__getitem__, "the image")
    return ImageTable(
        paths=locate_images(root / "img", [name.removeprefix("img/") for name in names], places.__getitem__),
        targets=_one_hot(np.concatenate(classes)),
        space=LabelSpace([Group(name, labels, exclusive=True) for name, labels in GROUPS.items()]),
        partition=partition,
    )


def write_submission(path: str | Path, scores: Any, *, space: LabelSpace) -> None:
    """Write the class numbers of each image, six integers a line, as the data set's challenge wants them.

    Args:
        path: The file to write.
        scores: Scores or decisions (N, L) of the images in the order of `test.txt`; the highest of a group is its
            class, the first of equal ones.
        space: The columns' meaning; its groups are all exclusive.

    Raises:
        ValueError: `scores` do not fit `space`, or a group is not exclusive.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> sleeve, hem = Group("sleeve", ["none", "short", "long"], exclusive=True), Group("hem", ["up", "down"], True)
        >>> space = LabelSpace([sleeve, hem])
        >>> write_submission(root / "prediction.txt", [[0.1, 0.2, 0.7, 0.9, 0.1]], space=space)
        >>> (root / "prediction.txt").read_text()
        '2 0\\n'
    """
    scores = as_scores(scores)
    if scores.shape[1] != space.num_labels:
        raise ValueError(f"scores must have {space.num_labels} columns; got {scores.shape[1]}")
    if len(space.exclusive_groups) != len(space.groups):
        raise ValueError(f"a submission has one class a group, so all groups must be exclusive; got {space!r}")
    classes = np.stack([scores[:, space.slices[group.name]].argmax(axis=1) for group in space.groups], axis=1)
    write_atomically(path, "".join(" ".join(map(str, row)) + "\n" for row in classes.tolist()))


def _look(root: Path) -> Path | None:
    return root if (root / "split" / "train.txt").is_file() else None


def _read_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of the images of a list."""
    rows = read_rows(path)
    has_header = not {"/", "."} & set(rows[0][1])
    for line, text in rows[1 if has_header else 0 :]:
        if not text.startswith("img/"):
            raise fail(path, line, f"an image such as img/00000.jpg was wanted; found {text[:80]!r}")
        yield line, text


def _read_part_classes(path: Path, listed: Path, wanted: int, part: str) -> np.ndarray:
    """Return class numbers (n, 6) of one part, -1 where they are not given."""
    if part != "train" and not path.is_file():
        return np.full((wanted, len(GROUPS)), -1)
    classes = _read_classes(path)
    if len(classes) != wanted:
        raise DataError(f"{path} has {len(classes)} rows of classes, but {listed} has {wanted} images")
    return classes


def _read_classes(path: Path) -> np.ndarray:
    sizes = [len(labels) for labels in GROUPS.values()]
    rows = read_rows(path)
    has_header = not any(word.isdigit() for word in rows[0][1].split())
    classes = []
    for line, text in rows[1 if has_header else 0 :]:
        words = text.split()
        if len(words) != len(sizes) or not all(word.isascii() and word.isdigit() for word in words):
            raise fail(path, line, f"{len(sizes)} class numbers were wanted; found {text[:80]!r}")
        numbers = [int(word[:9]) for word in words]
        for number, size, name in zip(numbers, sizes, GROUPS, strict=True):
            if number >= size:
                raise fail(path, line, f"{name!r} has classes 0 to {size - 1}; found {number}")
        classes.append(numbers)
    return np.array(classes, dtype=np.int64).reshape(-1, len(sizes))


def _check_class_names(path: Path) -> None:
    """Refuse a list of classes, where there is one, that names others than `GROUPS`."""
    if not path.is_file():
        return
    wanted = [(label, str(k)) for k, labels in enumerate(GROUPS.values(), start=1) for label in labels]
    found = [(line, tuple(text.split())) for line, text in read_rows(path)]
    found = [(line, words) for line, words in found if len(words) == 2 and words[1].isdigit()]
    for (line, words), expected in zip(found, wanted, strict=False):
        if words != expected:
            raise fail(path, line, f"class {' '.join(expected)!r} was wanted; found {' '.join(words)!r}")
    if len(found) != len(wanted):
        raise DataError(f"{path}: {len(wanted)} classes were wanted; found {len(found)}")


def _one_hot(classes: np.ndarray) -> sp.csr_array:
    """Return targets (N, L) from class numbers (N, 6), of which -1 gives none."""
    sizes = [len(labels) for labels in GROUPS.values()]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rows, groups = np.nonzero(classes >= 0)
    columns = starts[groups] + classes[rows, groups]
    return sp.csr_array((np.ones(len(rows), dtype=np.uint8), (rows, columns)), shape=(len(classes), sum(sizes)))
