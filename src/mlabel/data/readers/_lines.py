"""What the readers share: finding a data set, lines with their numbers, image names that stay inside, rows of marks.

Whatever a file names is checked before it is used: a name may not lead out of its folder, and a line may not be
longer than memory should bear.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, suggest

T = TypeVar("T")

MAX_LINE_BYTES = 1 << 24
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Names that need more than joining to a folder: absolute, with a drive letter, a backslash, or a step such as "..".
_ODD = re.compile(r"^/|^[A-Za-z]:|\\|\0|//|(?:^|/)\.{1,2}(?:/|$)")


def fail(path: str | Path, line: int, problem: str) -> DataError:
    """Return the error for `line` of the file `path`, to be raised."""
    return DataError(f"{path}, line {line}: {problem}")


def shown(value: object) -> str:
    """Return `value` as it can stand in a message: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def find_data_set(root: str | Path, look: Callable[[Path], T | None], wanted: str) -> T:
    """Return what `look` finds in the folder `root`, or else in the one folder in it where it finds something.

    Args:
        root: The folder the user gave.
        look: Folder to what the reader needs of a data set there, None where the folder is not one.
        wanted: What such a folder has in it, for the message.

    Raises:
        FileNotFoundError: neither `root` nor a folder in it is one.
        DataError: several folders in it are.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; a folder with {wanted} was wanted")
    here = look(root)
    if here is not None:
        return here
    inside = [(child, look(child)) for child in sorted(root.iterdir()) if child.is_dir()]
    found = [(child, what) for child, what in inside if what is not None]
    if not found:
        raise FileNotFoundError(f"{root}: neither this folder nor one in it has {wanted}")
    if len(found) > 1:
        names = ", ".join(child.name for child, _ in found)
        raise DataError(f"{root}: several folders in it have {wanted}: {names}; give the one that is meant")
    return found[0][1]


def raw_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield number and text, with the line end, of each line of a UTF-8 file; a byte order mark is left out.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line is not UTF-8, or longer than `MAX_LINE_BYTES`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise fail(path, number, f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                raise fail(path, number, f"not UTF-8: {error}") from None


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line as `raw_lines` does, without the line ends."""
    for number, text in raw_lines(path):
        yield number, text.rstrip("\r\n")


def parse_json(path: str | Path, line: int, text: str) -> Any:
    """Return the JSON value in `line` of the file `path`.

    Raises:
        DataError: it is not standard JSON (which has no NaN), or nested too deeply; with file and line.
    """
    try:
        return decode_json(text)
    except RecursionError:
        raise fail(path, line, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise fail(path, line, f"not JSON: {error}") from None


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and Infinity, which Python's json takes and JSON has not."""
    raise ValueError(f"{name} is not JSON")


decode_json = json.JSONDecoder(parse_constant=refuse_constant).decode


def csv_rows(path: str | Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each record that is not blank, the header among them.

    Raises:
        DataError: a quote that does not end, or a cell longer than `csv` takes; with file and line.
    """
    # The lines are read by `raw_lines`, which bounds their length; csv itself bounds the length of a cell.
    reader = csv.reader((text for _, text in raw_lines(path)), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise fail(path, reader.line_num, str(error)) from None


def csv_table(path: str | Path, delimiter: str = ",") -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the header of a CSV file, and an iterator over line number and cells of the rows.

    Raises:
        DataError: there is no header, a column in it occurs twice, or a row has more or fewer cells.
    """
    rows = csv_rows(path, delimiter)
    line, header = next(rows, (1, []))
    if not header:
        raise DataError(f"{path}: the file is empty; a header line was wanted")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise fail(path, line, f"the column {repeated[0]!r} occurs twice in the header")
    return header, _of_width(path, rows, len(header))


def column_place(path: str | Path, header: list[str], name: str) -> int:
    """Return where the column `name` stands in the header of the file `path`.

    Raises:
        ValueError: there is no such column; the nearest is named.
    """
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}; {suggest(name, header)}")
    return header.index(name)


def read_rows(path: str | Path) -> list[tuple[int, str]]:
    """Return number and text of each line, as `read_lines`, without the blank lines at the end.

    Raises:
        DataError: a blank line before the end, or none but blank lines.
    """
    rows = [(number, text.strip()) for number, text in read_lines(path)]
    while rows and not rows[-1][1]:
        rows.pop()
    if not rows:
        raise DataError(f"{path}: the file is empty")
    for number, text in rows:
        if not text:
            raise fail(path, number, "a blank line between others")
    return rows


def refuse_repeats(names: Sequence[str], place: Callable[[int], str], what: str) -> None:
    """Raise DataError, naming both places, where one of `names` comes twice.

    Args:
        names: Names that must be unique.
        place: Position in `names` to the text that says where it was read, such as "list.txt, line 3".
        what: What a name is, for the message.
    """
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in first:
            raise DataError(f"{place(position)}: {what} {shown(name)} was given before, in {place(first[name])}")
        first[name] = position


def locate_images(folder: str | Path, names: Sequence[str], place: Callable[[int], str]) -> list[str]:
    """Return the paths of images named in metadata, each present and inside `folder`.

    Presence is checked by listing the folders that the names lead to, which for many images is far cheaper than
    asking for each.

    Args:
        folder: Where the names start from.
        names: Paths relative to `folder` (or absolute ones that lie in it), with forward slashes.
        place: Position in `names` to the text that says where it was read.

    Raises:
        DataError: a name that leads out of `folder`, directly or by a symbolic link, has a drive letter, a backslash
            or NUL, or names an image that another one names too.
        FileNotFoundError: images that are not there, with their number and the first of them.
    """
    base = os.path.realpath(folder)
    paths = [
        os.path.join(folder, name) if not _ODD.search(name) else _odd_path(folder, base, name, place(position))
        for position, name in enumerate(names)
    ]
    refuse_repeats(paths, place, "the image")
    listings: dict[str, tuple[set[str], set[str]]] = {}
    missing = []
    for position, path in enumerate(paths):
        parent, name = os.path.split(path)
        if parent not in listings:
            listings[parent] = _listing(parent)
            _check_inside(parent, base, place(position))
        present, links = listings[parent]
        if name not in present:
            missing.append(position)
        elif name in links:
            _check_inside(path, base, place(position))
    if missing:
        first = missing[0]
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are not there, the first {paths[first]} ({place(first)})"
        )
    return paths


def whole_rows(rows: Sequence[int] | np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    """Return a CSR bool matrix (N, L) that is True in all of each of `rows`, which are in their order."""
    lengths = np.zeros(shape[0], dtype=np.int64)
    lengths[rows] = shape[1]
    indices = np.tile(np.arange(shape[1], dtype=np.int64), len(rows))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_array((np.ones(len(indices), dtype=bool), indices, indptr), shape=shape)


class Marks:
    """Rows of marks, 0 absent, 1 present, 2 unknown, gathered into sparse matrices without a dense N x L one.

    Args:
        num_labels: L.
    """

    ABSENT, PRESENT, UNKNOWN = 0, 1, 2

    def __init__(self, num_labels: int) -> None:
        self._num_labels = num_labels
        self._waiting = bytearray()
        self._blocks: list[tuple[sp.csr_array, sp.csr_array]] = []

    def add(self, row: bytes) -> None:
        """Add the marks of one image, L bytes."""
        self._waiting += row
        if len(self._waiting) > 1 << 22:
            self._flush()

    def matrices(self) -> tuple[sp.csr_array, sp.csr_array]:
        """Return targets, CSR uint8 (N, L), and unknowns, CSR bool (N, L), True = unknown."""
        self._flush()
        targets = sp.vstack([block[0] for block in self._blocks], format="csr")
        unknown = sp.vstack([block[1] for block in self._blocks], format="csr")
        return sp.csr_array(targets), sp.csr_array(unknown)

    def _flush(self) -> None:
        marks = np.frombuffer(bytes(self._waiting), dtype=np.uint8).reshape(-1, self._num_labels)
        self._waiting.clear()
        self._blocks.append(
            (sp.csr_array((marks == self.PRESENT).astype(np.uint8)), sp.csr_array(marks == self.UNKNOWN))
        )


def _of_width(path: str | Path, rows: Iterable[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    for line, cells in rows:
        if len(cells) != width:
            raise fail(path, line, f"{width} cells were wanted, as in the header; found {len(cells)}")
        yield line, cells


def _odd_path(folder: str | Path, base: str, name: str, place: str) -> str:
    """Return the path of a name that is not plainly relative, where it still lies inside."""
    foreign = "\\" in name or re.match("[A-Za-z]:", name) is not None
    if "\0" in name or (foreign and os.name != "nt"):
        raise DataError(f"{place}: the image name {shown(name)} has a drive letter, a backslash or NUL")
    path = os.path.normpath(os.path.join(folder, name))
    _check_inside(path, base, place)
    return path


def _check_inside(path: str, base: str, place: str) -> None:
    real = os.path.realpath(path)
    if real != base and not real.startswith(base.rstrip(os.sep) + os.sep):
        raise DataError(f"{place}: the image {shown(path)} lies outside the folder {base} (it is {real})")


def _listing(folder: str) -> tuple[set[str], set[str]]:
    """Return the names in a folder, and which of them are symbolic links; nothing where there is no folder."""
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry.name, entry.is_symlink()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return set(), set()
    return {name for name, _ in found}, {name for name, link in found if link}
