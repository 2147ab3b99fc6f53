"""CelebA: forty attributes of faces, with an official partition and identities, as text files or as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlabel._checks import DataError
from mlabel.data.readers._lines import (
    IMAGE_SUFFIXES,
    Marks,
    fail,
    find_data_set,
    locate_images,
    read_lines,
    refuse_repeats,
)
from mlabel.data.table import PARTS, ImageTable
from mlabel.labels import Group, LabelSpace

_ATTRIBUTES = "list_attr_celeba"
_PARTITION = "list_eval_partition"
_IDENTITY = "identity_CelebA"
_FOLDERS = (".", "Anno", "Eval")
_MARKS = {"-1": Marks.ABSENT, "1": Marks.PRESENT}


def read_celeba(root: str | Path, *, labels: Sequence[str] | None = None) -> ImageTable:
    """Return the table of a CelebA folder: an any-of group "attributes", official parts, identities kept together.

    The folder has the images in `img_align_celeba` and the attributes in `list_attr_celeba.txt` (with or without the
    line that counts them) or `.csv`; the text file is preferred where both are there. `list_eval_partition` gives the
    parts (0 train, 1 val, 2 test) and `identity_CelebA` the person shown; either may be lacking. Each file may also lie
    in `Anno` or `Eval`, and the images one folder further in, as other copies have them.

    Where the images have been sorted into folders `train`, `val` and `test` instead, there or in `img_align_celeba`,
    the folders are the parts. Images that are in none of them are left out. The notes count these, and those that
    `list_eval_partition` puts into another part.

    Args:
        root: That folder, or the one it lies in.
        labels: The attributes to keep, in the file's order whatever the order here. None: all.

    Raises:
        FileNotFoundError: there is no such folder, or images are not there.
        ValueError: a label there is not.
        DataError: a line that is not of that form, an image given twice, a count that is wrong, or an image without
            a part, a person or attributes where these are given; with file and line.

    Reference:
        Z. Liu, P. Luo, X. Wang, X. Tang. Deep Learning Face Attributes in the Wild (2015).

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "img_align_celeba").mkdir()
        >>> (root / "img_align_celeba" / "000001.jpg").touch()
        >>> _ = (root / "list_attr_celeba.txt").write_text("Male Smiling\\n000001.jpg -1 1\\n")
        >>> table = read_celeba(root)
        >>> table.space.names, table.space.decode(table.targets)
        (('Male', 'Smiling'), [['Smiling']])
    """
    root, source = find_data_set(root, _look, f"{_ATTRIBUTES}.txt or .csv")
    attributes, names, lines, marks = _read_attributes(source)
    folder, sorted_into = _image_folder(root)
    parts = _read_values(root, _PARTITION, names)
    rows, images, parts, notes = _placed(folder, sorted_into, names, parts)
    people = _read_values(root, _IDENTITY, names)
    table = ImageTable(
        paths=locate_images(folder, images, lambda position: f"{source}, line {lines[rows[position]]}"),
        targets=marks.matrices()[0][rows],
        space=LabelSpace([Group("attributes", attributes)]),
        partition=None if parts is None else [PARTS[value] for value in parts],
        groups=None if people is None else [people[row] for row in rows],
        notes=notes,
    )
    return table if labels is None else table.select_labels(labels)


def _look(root: Path) -> tuple[Path, Path] | None:
    """Return `root` and its file of attributes, where it has one."""
    source = _find(root, _ATTRIBUTES)
    return None if source is None else (root, source)


def _find(root: Path, name: str) -> Path | None:
    candidates = (root / folder / f"{name}{suffix}" for suffix in (".txt", ".csv") for folder in _FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def _image_folder(root: Path) -> tuple[Path, list[str]]:
    """Return the folder of the images, and the folders in it, if any, that they have been sorted into."""
    candidates = [
        root / "img_align_celeba" / "img_align_celeba",
        root / "img_align_celeba",
        root / "Img" / "img_align_celeba" / "img_align_celeba",
        root / "Img" / "img_align_celeba",
    ]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), root)
    sorted_into = [part for part in PARTS if (folder / part).is_dir()]
    if folder == root and not sorted_into:
        raise FileNotFoundError(f"{root}: no folder img_align_celeba with the images, nor train, val and test")
    return folder, sorted_into


def _placed(
    folder: Path, sorted_into: list[str], names: list[str], parts: list[int] | None
) -> tuple[list[int], list[str], list[int] | None, tuple[str, ...]]:
    """Return the rows that have an image, where it lies in `folder`, its part, and notes."""
    if not sorted_into:
        return list(range(len(names))), names, parts, ()
    part_of = _sorted_images(folder, sorted_into)
    known = set(names)
    strange = [name for name in part_of if name not in known]
    if strange:
        raise DataError(
            f"{folder / PARTS[part_of[strange[0]]] / strange[0]}: the attribute file does not have this image (there "
            f"are {len(strange)} such)"
        )
    rows = [row for row, name in enumerate(names) if name in part_of]
    if not rows:
        raise FileNotFoundError(f"{folder}: no images in the folders {', '.join(sorted_into)}")
    found = [part_of[names[row]] for row in rows]
    notes = []
    if len(rows) < len(names):
        left = len(names) - len(rows)
        notes.append(f"{left:,} images of the attribute file are in none of the folders {', '.join(sorted_into)}")
    moved = 0 if parts is None else sum(parts[row] != part for row, part in zip(rows, found, strict=True))
    if moved:
        notes.append(f"{moved:,} images are in the folder of another part than {_PARTITION} says; the folder counts")
    return rows, [f"{PARTS[part]}/{names[row]}" for row, part in zip(rows, found, strict=True)], found, tuple(notes)


def _sorted_images(folder: Path, sorted_into: list[str]) -> dict[str, int]:
    """Return the number of the part of each image in the folders of parts."""
    part_of: dict[str, int] = {}
    for part in sorted_into:
        for name in sorted(os.listdir(folder / part)):
            if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                continue
            if name in part_of:
                raise DataError(f"{folder}: the image {name} is in {PARTS[part_of[name]]} and in {part}")
            part_of[name] = PARTS.index(part)
    return part_of


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of either form; blank lines are skipped."""
    for line, text in read_lines(path):
        cells = next(csv.reader([text])) if path.suffix == ".csv" and text else text.split()
        if cells:
            yield line, cells


def _read_attributes(path: Path) -> tuple[list[str], list[str], list[int], Marks]:
    """Return the attributes, and of each image its name, line and marks."""
    rows = _cells(path)
    line, header = next(rows, (1, []))
    promised = None
    if len(header) == 1 and header[0].isdigit():
        promised = int(header[0][:12])
        line, header = next(rows, (2, []))
    attributes = header[1:] if path.suffix == ".csv" else header
    if not attributes or _MARKS.keys() & set(attributes):
        raise fail(path, line, f"the names of the attributes were wanted; found {' '.join(header)[:80]!r}")
    names, lines, marks = [], [], Marks(len(attributes))
    for line, cells in rows:
        if len(cells) != len(attributes) + 1:
            raise fail(path, line, f"an image and {len(attributes)} values were wanted; found {len(cells) - 1} values")
        try:
            marks.add(bytes([_MARKS[cell] for cell in cells[1:]]))
        except KeyError as error:
            raise fail(path, line, f"each value must be 1 or -1; found {error}") from None
        names.append(cells[0])
        lines.append(line)
    if promised not in (None, len(names)):
        raise DataError(f"{path}: line 1 promises {promised} images; found {len(names)}")
    if not names:
        raise DataError(f"{path}: there are no images in it")
    refuse_repeats(names, lambda position: f"{path}, line {lines[position]}", "the image")
    return attributes, names, lines, marks


def _read_values(root: Path, kind: str, names: list[str]) -> list[int] | None:
    """Return the integer that a file of pairs gives each image, or None where there is no such file."""
    path = _find(root, kind)
    if path is None:
        return None
    limit = len(PARTS) if kind == _PARTITION else 10**12
    wanted = "0 (train), 1 (val) or 2 (test)" if kind == _PARTITION else "a number"
    values: dict[str, tuple[int, int]] = {}
    for line, cells in _cells(path):
        if line == 1 and path.suffix == ".csv":
            continue
        if len(cells) != 2 or not (cells[1].isascii() and cells[1].isdigit() and int(cells[1][:13]) < limit):
            raise fail(path, line, f"an image and {wanted} were wanted; found {' '.join(cells)[:80]!r}")
        if cells[0] in values:
            raise fail(path, line, f"the image {cells[0]!r} was given before, in line {values[cells[0]][1]}")
        values[cells[0]] = int(cells[1]), line
    missing = [name for name in names if name not in values]
    if missing:
        raise DataError(f"{path}: {len(missing)} images of the attribute file are not in it, the first {missing[0]!r}")
    return [values[name][0] for name in names]
