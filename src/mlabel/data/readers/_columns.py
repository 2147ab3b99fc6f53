"""Tables of text cells, whatever they are from: a column of images, and others of tags, labels, classes, parts, ids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError
from mlabel.data.readers._lines import Marks, column_place, locate_images, refuse_repeats, shown
from mlabel.data.readers._tags import TagRows, Vocabulary, as_vocabulary, outside_note
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_MARKS = {"0": Marks.ABSENT, "0.0": Marks.ABSENT, "1": Marks.PRESENT, "1.0": Marks.PRESENT}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what; the fields are the arguments of `read_csv`."""

    image: str
    tags: str | None = None
    separator: str = ","
    labels: Sequence[str] | None = None
    exclusive: Sequence[str] = ()
    partition: str | None = None
    ids: str | None = None
    groups: str | None = None
    unknown: frozenset[str] = frozenset()
    min_count: int = 1
    vocabulary: Vocabulary | None = None


def table_of_cells(
    source: str | Path,
    header: list[str],
    rows: Iterable[tuple[str, list[str]]],
    *,
    columns: Columns,
    root: str | Path,
) -> ImageTable:
    """Return the table of rows of cells.

    Args:
        source: What the cells are from, for messages.
        header: The name of each column.
        rows: For each row the text that says where it is, such as "line 3", and its cells.
        columns: Which column is what.
        root: The folder the image names start from.
    """
    single = [name for name in (columns.image, columns.partition, columns.ids, columns.groups) if name is not None]
    texts = {name: _Texts(column_place(source, header, name)) for name in single}
    space, labelled, notes = _label_columns(source, header, columns, {*single, *columns.exclusive})
    places = _read_into([*texts.values(), *labelled], source, rows)
    made = _join(source, labelled) if space is None else _place(source, labelled, space)

    def place(row: int) -> str:
        return f"{source}, {places[row]}"

    def values(name: str | None) -> list[str] | None:
        return None if name is None else texts[name].values

    ids, partition = values(columns.ids), values(columns.partition)
    if ids is not None:
        refuse_repeats(ids, place, "the id")
    return ImageTable(
        paths=locate_images(root, texts[columns.image].values, place),
        targets=made.targets,
        unknown=made.unknown,
        space=made.space,
        ids=ids,
        partition=None if partition is None else _parts(partition, place),
        groups=values(columns.groups),
        notes=(*notes, *made.notes),
    )


@dataclass(frozen=True)
class _Block:
    """A group with its columns of the targets and of the unknowns."""

    group: Group
    targets: sp.csr_array
    unknown: sp.csr_array
    notes: list[str]


@dataclass(frozen=True)
class _Labels:
    """All labels of the table, or what one column says of them; `told` is True at labels that are spoken of (L,)."""

    space: LabelSpace
    targets: sp.csr_array
    unknown: sp.csr_array
    told: np.ndarray
    notes: list[str]


class _Column(Protocol):
    """What gathers from each row the cells of its own."""

    def add(self, cells: list[str]) -> None: ...


class _LabelColumn(_Column, Protocol):
    """One that says which labels hold: as a group of its own, or in a given space."""

    def block(self, source: str | Path) -> _Block: ...

    def placed(self, source: str | Path, space: LabelSpace) -> _Labels: ...


class _Texts:
    """A column kept as it is."""

    def __init__(self, place: int) -> None:
        self._place = place
        self.values: list[str] = []

    def add(self, cells: list[str]) -> None:
        self.values.append(cells[self._place])


class _Tags:
    """The column of tags."""

    def __init__(self, place: int, separator: str, min_count: int, names: Sequence[str] | None) -> None:
        if not separator:
            raise ValueError("separator must not be empty")
        self._place, self._separator, self._min_count, self._names = place, separator, min_count, names
        self._rows = TagRows()

    def add(self, cells: list[str]) -> None:
        self._rows.add(cells[self._place].split(self._separator))

    def block(self, source: str | Path) -> _Block:
        names = self._rows.frequent(self._min_count, source) if self._names is None else self._names
        notes = [] if self._names is None else self._rows.outside(names, source)
        targets = self._rows.targets(names)
        return _Block(Group("tags", names), targets, _none_unknown(targets.shape), notes)

    def placed(self, source: str | Path, space: LabelSpace) -> _Labels:
        targets = self._rows.targets(space.names)
        return _Labels(
            space, targets, _none_unknown(targets.shape), space.any_of, self._rows.outside(space.names, source)
        )


class _LabelCells:
    """The label columns: 0, 1 or a word for unknown in each cell."""

    def __init__(self, names: list[str], places: list[int], unknown: frozenset[str]) -> None:
        self._names, self._places = names, places
        self._marks = _MARKS | dict.fromkeys(unknown, Marks.UNKNOWN)
        self._rows = Marks(len(names))

    def add(self, cells: list[str]) -> None:
        try:
            self._rows.add(bytes([self._marks[cells[place].strip()] for place in self._places]))
        except KeyError:
            bad = next(k for k, place in enumerate(self._places) if cells[place].strip() not in self._marks)
            raise ValueError(
                f"column {self._names[bad]!r} must hold 0 or 1; found {shown(cells[self._places[bad]])}. A cell that "
                "means 'not known' is declared by unknown=; columns that are no labels are left out by label_columns=",
            ) from None

    def block(self, source: str | Path) -> _Block:
        targets, unknown = self._rows.matrices()
        return _Block(Group("labels", self._names), targets, unknown, [])

    def placed(self, source: str | Path, space: LabelSpace) -> _Labels:
        columns = np.array([space.index(name) for name in self._names])
        targets, unknown = (_spread(matrix, columns, space.num_labels) for matrix in self._rows.matrices())
        return _Labels(space, targets, unknown, np.isin(np.arange(space.num_labels), columns), [])


class _Classes:
    """One class column: the name of a class in each cell, or nothing."""

    def __init__(self, place: int, name: str, unknown: frozenset[str]) -> None:
        self._place, self._name, self._unknown = place, name, unknown
        self._values: list[str] = []

    def add(self, cells: list[str]) -> None:
        cell = cells[self._place].strip()
        self._values.append("" if cell in self._unknown else unicodedata.normalize("NFC", cell))

    def block(self, source: str | Path) -> _Block:
        found = sorted(set(self._values) - {""})
        if len(found) < 2:
            raise DataError(f"{source}: the class column {self._name!r} needs two classes or more; found {found}")
        targets = self._one_hot({value: column for column, value in enumerate(found)}, len(found))
        return _Block(Group(self._name, found, exclusive=True), targets, _none_unknown(targets.shape), [])

    def placed(self, source: str | Path, space: LabelSpace) -> _Labels:
        groups = [group for group in space.exclusive_groups if group.name == self._name]
        if not groups:
            raise ValueError(f"the vocabulary has no exclusive group {self._name!r} for the class column of {source}")
        columns = {label.removeprefix(f"{self._name}:"): space.index(label) for label in groups[0].labels}
        columns |= {label: space.index(label) for label in groups[0].labels}
        outside = [value for value in self._values if value and value not in columns]
        notes = [outside_note(len(set(outside)), len(outside), f"classes of {self._name!r}")] if outside else []
        targets = self._one_hot(columns, space.num_labels)
        return _Labels(space, targets, _none_unknown(targets.shape), np.zeros(space.num_labels, dtype=bool), notes)

    def _one_hot(self, columns: Mapping[str, int], num_labels: int) -> sp.csr_array:
        rows = [row for row, value in enumerate(self._values) if value in columns]
        places = (rows, [columns[self._values[row]] for row in rows])
        shape = (len(self._values), num_labels)
        return sp.csr_array((np.ones(len(rows), dtype=np.uint8), places), shape=shape)


def _vocabulary(columns: Columns) -> tuple[LabelSpace | None, tuple[str, ...] | None]:
    """Return the space of the whole table, or the list of the tag column alone, or neither."""
    vocabulary = columns.vocabulary
    if vocabulary is None or isinstance(vocabulary, LabelSpace | str | Path):
        return None if vocabulary is None else as_vocabulary(vocabulary), None
    if columns.tags is None:
        raise ValueError("a list as vocabulary is one of tags, and needs tags_column=; columns: label_columns=")
    return None, as_vocabulary(vocabulary).names


def _known_columns(
    source: str | Path, header: list[str], names: Sequence[str], space: LabelSpace | None
) -> tuple[dict[str, int], list[str]]:
    """Return where each label column stands, and a note on those that `space` does not know."""
    places = {name: column_place(source, header, name) for name in names}
    if space is None:
        return places, []
    known = {name: place for name, place in places.items() if name in space}
    left = len(places) - len(known)
    return known, [f"{left:,} columns are not in the vocabulary and were left out"] if left else []


def _label_columns(
    source: str | Path, header: list[str], columns: Columns, taken: set[str]
) -> tuple[LabelSpace | None, list[_LabelColumn], list[str]]:
    """Return the space, where it is given, what gathers each kind of labels, and notes."""
    names = columns.labels
    if names is None:
        names = [] if columns.tags is not None else [name for name in header if name not in taken]
    space, tag_list = _vocabulary(columns)
    known, notes = _known_columns(source, header, names, space)
    gathered: list[_LabelColumn] = []
    if columns.tags is not None:
        place = column_place(source, header, columns.tags)
        gathered.append(_Tags(place, columns.separator, columns.min_count, tag_list))
    if known:
        gathered.append(_LabelCells(list(known), list(known.values()), columns.unknown))
    for name in columns.exclusive:
        gathered.append(_Classes(column_place(source, header, name), name, columns.unknown))
    return space, gathered, notes


def _read_into(columns: Sequence[_Column], source: str | Path, rows: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Give each row to each of `columns`; return where the rows are."""
    places = []
    for place, cells in rows:
        places.append(place)
        try:
            for column in columns:
                column.add(cells)
        except ValueError as error:
            raise DataError(f"{source}, {place}: {error}") from None
    if not places:
        raise DataError(f"{source}: there are no rows below the header")
    return places


def _join(source: str | Path, columns: Sequence[_LabelColumn]) -> _Labels:
    """Return the labels of all columns side by side, names made unique by the exclusive group's name."""
    if not columns:
        raise DataError(f"{source}: no label columns; name tags_column, label_columns or exclusive")
    blocks = [column.block(source) for column in columns]
    uses = Counter(label for block in blocks for label in block.group.labels)
    groups = []
    for group in (block.group for block in blocks):
        clash = group.exclusive and any(uses[label] > 1 for label in group.labels)
        labels = [f"{group.name}:{label}" for label in group.labels] if clash else group.labels
        groups.append(Group(group.name, labels, exclusive=group.exclusive))
    space = LabelSpace(groups)
    targets = sp.csr_array(sp.hstack([block.targets for block in blocks], format="csr"))
    unknown = sp.csr_array(sp.hstack([block.unknown for block in blocks], format="csr"))
    notes = [note for block in blocks for note in block.notes]
    return _Labels(space, targets, unknown, np.ones(space.num_labels, dtype=bool), notes)


def _place(source: str | Path, columns: Sequence[_LabelColumn], space: LabelSpace) -> _Labels:
    """Return what all columns say of the labels of `space`; what none of them speaks of is unknown."""
    if not columns:
        raise DataError(
            f"{source}: no column is a label of the vocabulary; tags and classes want tags_column and exclusive"
        )
    said = [column.placed(source, space) for column in columns]
    targets = sp.csr_array(sum(each.targets for each in said)).astype(bool).astype(np.uint8)
    told = np.logical_or.reduce([each.told for each in said])
    silent = np.flatnonzero(~told & space.any_of)
    rows = np.arange(targets.shape[0])
    places = (np.repeat(rows, len(silent)), np.tile(silent, len(rows)))
    unknown = sp.csr_array((np.ones(len(places[0]), dtype=bool), places), shape=targets.shape)
    for each in said:
        unknown = sp.csr_array(unknown + each.unknown)
    # A label that one column gives is present, though another column does not know.
    unknown = sp.csr_array(unknown > targets.astype(bool))
    notes = [note for each in said for note in each.notes]
    if len(silent):
        notes.append(f"no column tells of {len(silent):,} labels of the vocabulary, which are unknown")
    return _Labels(space, targets, unknown, told, notes)


def _spread(matrix: sp.csr_array, columns: np.ndarray, num_labels: int) -> sp.csr_array:
    """Return `matrix` (N, K) as (N, L), its column k at `columns[k]`."""
    shape = (matrix.shape[0], num_labels)
    return sp.csr_array((matrix.data, columns[matrix.indices], matrix.indptr), shape=shape)


def _none_unknown(shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array(shape, dtype=bool)


def _parts(values: list[str], place: Callable[[int], str]) -> list[str]:
    for row, value in enumerate(values):
        if value.strip().lower() not in PART_NAMES:
            raise DataError(f"{place(row)}: a part ({', '.join(PART_NAMES)}) was wanted; found {shown(value)}")
    return [PART_NAMES[value.strip().lower()] for value in values]
