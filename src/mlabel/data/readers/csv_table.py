"""CSV and TSV: an image column with one column of tags, one column a label, or columns of classes."""

from __future__ import annotations

import csv
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, suggest
from mlabel.data.readers._lines import Marks, fail, locate_images, raw_lines, refuse_repeats, shown
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

_MARKS = {"0": Marks.ABSENT, "0.0": Marks.ABSENT, "1": Marks.PRESENT, "1.0": Marks.PRESENT}
_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def read_csv(
    path: str | Path,
    *,
    image_column: str = "image",
    tags_column: str | None = None,
    separator: str = ",",
    label_columns: Sequence[str] | None = None,
    exclusive: Sequence[str] = (),
    partition_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    unknown: str | Sequence[str] = (),
    min_count: int = 1,
    root: str | Path | None = None,
    delimiter: str | None = None,
) -> ImageTable:
    """Return the table of a CSV or TSV file with a header line, in UTF-8.

    Labels come from any of three kinds of columns. `tags_column` is one column of many tags, which become the any-of
    group "tags", the most frequent first. `label_columns` hold 0 or 1 each, and become the any-of group "labels".
    Each of `exclusive` holds a class by its name, and becomes an exclusive group with the column's name and the
    classes in alphabetical order; an empty cell is unknown. Where a label of one group is also in another, the labels
    of the exclusive group are written `column:label`.

    Args:
        path: The file.
        image_column: The column of image files, relative to `root`.
        tags_column: The column of tags. None: there is none.
        separator: What stands between two tags; spaces around a tag are dropped.
        label_columns: The columns of 0 and 1. None: all columns not named otherwise, where there is no `tags_column`.
        exclusive: The columns of classes.
        partition_column: The column of parts: train, val (or valid, validation, dev) or test.
        id_column: The column of ids. None: from the file names, as `ImageTable` does.
        group_column: The column of ids of what a split must keep together. None: there is none.
        unknown: The cell texts, such as "-1" or "", that mean "not known" in label columns and class columns.
        min_count: Tags on fewer images are left out.
        root: The folder the image names start from. None: the file's own.
        delimiter: What stands between two cells. None: a tab for `.tsv` files, else a comma.

    Raises:
        FileNotFoundError: there is no such file, or images are not there.
        ValueError: a column there is not.
        DataError: a cell or a row that does not fit (with file and line), an image or id given twice, or no label
            left.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.jpg", "b.jpg"):
        ...     (folder / name).touch()
        >>> _ = (folder / "list.csv").write_text("image,tags,rating\\na.jpg,cat dog,safe\\nb.jpg,dog,other\\n")
        >>> table = read_csv(folder / "list.csv", tags_column="tags", separator=" ", exclusive=["rating"])
        >>> table.space, table.space.decode(table.targets)
        (LabelSpace(tags: 2 any-of, rating: 2 exclusive), [['dog', 'cat', 'safe'], ['dog', 'other']])
    """
    path = Path(path)
    header, rows = _open(path, delimiter)
    single = [name for name in (image_column, partition_column, id_column, group_column) if name is not None]
    if label_columns is None:
        taken = {*single, *exclusive}
        label_columns = [] if tags_column is not None else [name for name in header if name not in taken]
    words = frozenset([unknown] if isinstance(unknown, str) else unknown)
    texts = {name: _Texts(_column(path, header, name)) for name in single}
    tags = [_Tags(_column(path, header, name), separator, min_count) for name in (tags_column,) if name is not None]
    places = [_column(path, header, name) for name in label_columns]
    labels = [_LabelCells(list(label_columns), places, words)] if places else []
    classes = [_Classes(_column(path, header, name), name, words) for name in exclusive]
    labelled: list[_LabelColumn] = [*tags, *labels, *classes]
    lines = _read_into([*texts.values(), *labelled], path, rows)
    space, targets, unknowns = _join(path, [column.block(path) for column in labelled])

    def place(row: int) -> str:
        return f"{path}, line {lines[row]}"

    if id_column is not None:
        refuse_repeats(texts[id_column].values, place, "the id")
    return ImageTable(
        paths=locate_images(path.parent if root is None else root, texts[image_column].values, place),
        targets=targets,
        unknown=unknowns,
        space=space,
        ids=None if id_column is None else texts[id_column].values,
        partition=None if partition_column is None else _parts(texts[partition_column].values, place),
        groups=None if group_column is None else texts[group_column].values,
    )


@dataclass(frozen=True)
class _Block:
    """A group with its columns of the targets and of the unknowns."""

    group: Group
    targets: sp.csr_array
    unknown: sp.csr_array


class _Column(Protocol):
    """What gathers from each row the cells of its own."""

    def add(self, path: Path, line: int, cells: list[str]) -> None: ...


class _LabelColumn(_Column, Protocol):
    """One that gives a group of labels."""

    def block(self, path: Path) -> _Block: ...


class _Texts:
    """A column kept as it is."""

    def __init__(self, place: int) -> None:
        self._place = place
        self.values: list[str] = []

    def add(self, path: Path, line: int, cells: list[str]) -> None:
        self.values.append(cells[self._place])


class _Tags:
    """The tag column: each tag is a number from its first use on, so that rows are arrays and not lists of texts."""

    def __init__(self, place: int, separator: str, min_count: int) -> None:
        if not separator:
            raise ValueError("separator must not be empty")
        self._place, self._separator, self._min_count = place, separator, min_count
        self._index: dict[str, int] = {}
        self._columns = array("i")
        self._ends = array("q", [0])

    def add(self, path: Path, line: int, cells: list[str]) -> None:
        parts = cells[self._place].split(self._separator)
        found = {unicodedata.normalize("NFC", tag) for part in parts if (tag := part.strip())}
        self._columns.extend(self._index.setdefault(tag, len(self._index)) for tag in found)
        self._ends.append(len(self._columns))

    def block(self, path: Path) -> _Block:
        columns = np.array(self._columns, dtype=np.int32)
        counts = np.bincount(columns, minlength=len(self._index))
        kept = [(-int(counts[k]), tag, k) for tag, k in self._index.items() if counts[k] >= self._min_count]
        if not kept:
            most = int(counts.max(initial=0))
            raise DataError(f"{path}: no tag is on {self._min_count} images or more; the most frequent is on {most}")
        kept.sort()
        shape = (len(self._ends) - 1, len(self._index))
        matrix = sp.csr_array((np.ones(len(columns), dtype=np.uint8), columns, np.array(self._ends)), shape=shape)
        targets = sp.csr_array(matrix[:, [k for _, _, k in kept]])
        return _Block(Group("tags", [tag for _, tag, _ in kept]), targets, _none_unknown(targets.shape))


class _LabelCells:
    """The label columns: 0, 1 or a word for unknown in each cell."""

    def __init__(self, names: list[str], places: list[int], unknown: frozenset[str]) -> None:
        self._names, self._places = names, places
        self._marks = _MARKS | dict.fromkeys(unknown, Marks.UNKNOWN)
        self._rows = Marks(len(names))

    def add(self, path: Path, line: int, cells: list[str]) -> None:
        try:
            self._rows.add(bytes([self._marks[cells[place].strip()] for place in self._places]))
        except KeyError:
            bad = next(k for k, place in enumerate(self._places) if cells[place].strip() not in self._marks)
            raise fail(
                path,
                line,
                f"column {self._names[bad]!r} must hold 0 or 1; found {shown(cells[self._places[bad]])}. A cell that "
                "means 'not known' is declared by unknown=; columns that are no labels are left out by label_columns=",
            ) from None

    def block(self, path: Path) -> _Block:
        targets, unknown = self._rows.matrices()
        return _Block(Group("labels", self._names), targets, unknown)


class _Classes:
    """One class column: the name of a class in each cell, or nothing."""

    def __init__(self, place: int, name: str, unknown: frozenset[str]) -> None:
        self._place, self._name, self._unknown = place, name, unknown
        self._values: list[str] = []

    def add(self, path: Path, line: int, cells: list[str]) -> None:
        cell = cells[self._place].strip()
        self._values.append("" if cell in self._unknown else unicodedata.normalize("NFC", cell))

    def block(self, path: Path) -> _Block:
        found = sorted(set(self._values) - {""})
        if len(found) < 2:
            raise DataError(f"{path}: the class column {self._name!r} needs two classes or more; found {found}")
        columns = {value: column for column, value in enumerate(found)}
        rows = [row for row, value in enumerate(self._values) if value]
        places = (rows, [columns[self._values[row]] for row in rows])
        shape = (len(self._values), len(found))
        targets = sp.csr_array((np.ones(len(rows), dtype=np.uint8), places), shape=shape)
        return _Block(Group(self._name, found, exclusive=True), targets, _none_unknown(shape))


def _read_into(columns: Sequence[_Column], path: Path, rows: Iterable[tuple[int, list[str]]]) -> list[int]:
    """Give each row to each of `columns`; return the line numbers of the rows."""
    lines = []
    for line, cells in rows:
        lines.append(line)
        for column in columns:
            column.add(path, line, cells)
    if not lines:
        raise DataError(f"{path}: there are no rows below the header")
    return lines


def _join(path: Path, blocks: list[_Block]) -> tuple[LabelSpace, sp.csr_array, sp.csr_array]:
    """Return the space, the targets and the unknowns of all groups, names made unique by the exclusive group's name."""
    if not blocks:
        raise DataError(f"{path}: no label columns; name tags_column, label_columns or exclusive")
    uses = Counter(label for block in blocks for label in block.group.labels)
    groups = []
    for group in (block.group for block in blocks):
        clash = group.exclusive and any(uses[label] > 1 for label in group.labels)
        labels = [f"{group.name}:{label}" for label in group.labels] if clash else group.labels
        groups.append(Group(group.name, labels, exclusive=group.exclusive))
    targets = sp.hstack([block.targets for block in blocks], format="csr")
    unknown = sp.hstack([block.unknown for block in blocks], format="csr")
    return LabelSpace(groups), sp.csr_array(targets), sp.csr_array(unknown)


def _none_unknown(shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array(shape, dtype=bool)


def _open(path: Path, delimiter: str | None) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return the header, and an iterator over line number and cells of the rows."""
    rows = _rows(path, delimiter or ("\t" if path.suffix.lower() == ".tsv" else ","))
    line, header = next(rows, (1, []))
    if not header:
        raise DataError(f"{path}: the file is empty; a header line was wanted")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise fail(path, line, f"the column {repeated[0]!r} occurs twice in the header")
    return header, _of_width(path, rows, len(header))


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each record that is not blank, the header among them."""
    # The lines are read by `raw_lines`, which bounds their length; csv itself bounds the length of a cell.
    reader = csv.reader((text for _, text in raw_lines(path)), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise fail(path, reader.line_num, str(error)) from None


def _of_width(path: Path, rows: Iterable[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    for line, cells in rows:
        if len(cells) != width:
            raise fail(path, line, f"{width} cells were wanted, as in the header; found {len(cells)}")
        yield line, cells


def _column(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}; {suggest(name, header)}")
    return header.index(name)


def _parts(values: list[str], place: Callable[[int], str]) -> list[str]:
    for row, value in enumerate(values):
        if value.strip().lower() not in _PARTS:
            raise DataError(f"{place(row)}: a part ({', '.join(_PARTS)}) was wanted; found {shown(value)}")
    return [_PARTS[value.strip().lower()] for value in values]
