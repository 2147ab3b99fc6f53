"""The tag list of a wd-tagger, `selected_tags.csv`: which tags a tagger knows, in the order of its columns."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mlabel._checks import DataError
from mlabel.data.readers._lines import column_place, csv_table, fail, refuse_repeats, shown
from mlabel.decisions import Thresholds, best_thresholds
from mlabel.labels import Group, LabelSpace

T = TypeVar("T")

# The number that tagger files give each category of tags; of ratings an image has exactly one.
CATEGORIES = {"general": 0, "artist": 1, "copyright": 3, "character": 4, "meta": 5, "rating": 9}
EXCLUSIVE = frozenset({"rating"})
_GROUPS = {str(number): name for name, number in CATEGORIES.items()}


@dataclass(frozen=True, eq=False)
class SelectedTags:
    """The vocabulary of a tagger.

    Attributes:
        space: Its labels in the order of its columns, a group for each category.
        counts: How many images had each label (L,) int64; None where the file does not say.
        best_thresholds: The threshold of each label (L,) float64, NaN where its cell is empty; None where the file
            does not say.
    """

    space: LabelSpace
    counts: np.ndarray | None
    best_thresholds: np.ndarray | None

    @property
    def thresholds(self) -> Thresholds | None:
        """`best_thresholds` in the form in which they decide, 0.5 where a cell is empty; None where there are none."""
        return None if self.best_thresholds is None else best_thresholds(self.best_thresholds, self.space)


class TagLines(NamedTuple):
    """The rows of a tag list, without a look at how categories follow each other.

    Attributes:
        names: The tag of each row.
        groups: The name of its category.
        lines: The line it is on.
        counts: As in `SelectedTags`.
        best_thresholds: As in `SelectedTags`.
    """

    names: list[str]
    groups: list[str]
    lines: list[int]
    counts: np.ndarray | None
    best_thresholds: np.ndarray | None


def read_selected_tags(path: str | Path) -> SelectedTags:
    """Return the vocabulary of a tagger from its `selected_tags.csv`, with counts and thresholds where it has them.

    The file has a header with `name` and `category`, and may have `count` and `best_threshold`; each row below is one
    column of the tagger. The categories 0 general, 1 artist, 3 copyright, 4 character and 5 meta become any-of groups,
    9 rating an exclusive one. Names are taken as they are: `nan` and `null` are tags.

    Args:
        path: The file, in UTF-8.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a row that is not of that form, a name given twice, or the rows of one category not all together,
            so that the columns of a group would not be; with file and line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "selected_tags.csv"
        >>> _ = path.write_text("tag_id,name,category,count\\n7,safe,9,70\\n8,other,9,30\\n5,nan,0,12\\n")
        >>> read_selected_tags(path).space
        LabelSpace(rating: 2 exclusive, general: 1 any-of)
    """
    rows = read_tag_lines(path)
    refuse_repeats(
        [unicodedata.normalize("NFC", name) for name in rows.names],
        lambda row: f"{path}, line {rows.lines[row]}",
        "the tag",
    )
    runs = [(name, [row for row, _ in run]) for name, run in groupby(enumerate(rows.groups), key=lambda pair: pair[1])]
    first: dict[str, int] = {}
    for name, run in runs:
        if first.setdefault(name, run[0]) != run[0]:
            raise fail(
                path,
                rows.lines[run[0]],
                f"category {CATEGORIES[name]} ({name}) comes again after another one (it began in line "
                f"{rows.lines[first[name]]}); the rows of a category must stand together, as the columns of a group do",
            )
    try:
        space = LabelSpace([Group(name, [rows.names[k] for k in run], name in EXCLUSIVE) for name, run in runs])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return SelectedTags(space, rows.counts, rows.best_thresholds)


def read_tag_lines(path: str | Path) -> TagLines:
    """Return the rows of a tag list as they are.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a row that is not of that form; with file and line.
    """
    header, rows = csv_table(path)
    try:
        name, category = (column_place(path, header, column) for column in ("name", "category"))
    except ValueError as error:
        raise DataError(str(error)) from None
    kept = [(line, cells) for line, cells in rows]
    if not kept:
        raise DataError(f"{path}: there are no tags below the header")

    def read(place: int, convert: Callable[[str], T], wanted: str) -> list[T]:
        return [_cell(path, line, cells[place], convert, wanted) for line, cells in kept]

    categories = ", ".join(f"{number} {group}" for group, number in CATEGORIES.items())
    counts = best = None
    if "count" in header:
        counts = np.array(read(header.index("count"), _count, "a count"), dtype=np.int64)
    if "best_threshold" in header:
        best = np.array(read(header.index("best_threshold"), _threshold, "a number or nothing"))
    return TagLines(
        names=read(name, _name, "the name of a tag"),
        groups=read(category, _GROUPS.__getitem__, f"a category ({categories})"),
        lines=[line for line, _ in kept],
        counts=counts,
        best_thresholds=best,
    )


def _cell(path: str | Path, line: int, text: str, convert: Callable[[str], T], wanted: str) -> T:
    try:
        return convert(text)
    except (ValueError, KeyError):
        raise fail(path, line, f"{wanted} was wanted; found {shown(text)}") from None


def _name(text: str) -> str:
    if not text or set(text) & set("\r\n\0"):
        raise ValueError
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError
    return int(text)


def _threshold(text: str) -> float:
    return float(text) if text else math.nan
