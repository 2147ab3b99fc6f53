"""Label spaces learned from data, as scikit-learn transformers: from tag lists, or from columns of categories."""

from __future__ import annotations

import itertools
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from mlabel._checks import resolve, suggest, to_numpy
from mlabel.labels import Group, LabelSpace

UNKNOWN = {"error": "stop at a name never seen at fit", "ignore": "leave it out, and count it"}
# In place of a column: a tag that is not in the space.
LEFT_OUT = -1


class Encoded(NamedTuple):
    """What `encode` returns.

    Attributes:
        targets: CSR uint8 (N, L).
        unknown: CSR bool (N, L), True = unknown; None where all is known.
        ignored: How many samples had each name that is not in the space.

    Example:
        >>> MultiHotEncoder(min_count=2).fit([["cat"], ["cat", "dog"]]).encode([["dog"], ["cat"]]).ignored
        {'dog': 1}
    """

    targets: sp.csr_array
    unknown: sp.csr_array | None
    ignored: dict[str, int]


class _Encoder(TransformerMixin, BaseEstimator, ABC):
    """What both encoders share: the space, the way back, and scikit-learn's manners."""

    space_: LabelSpace
    unknown: str

    @abstractmethod
    def encode(self, X: Iterable[Any]) -> Encoded:  # noqa: N803
        """Return the targets of `X`, what of them is unknown, and what was ignored."""

    def transform(self, X: Iterable[Any]) -> sp.csr_array:  # noqa: N803
        """Return the targets of `X`, CSR uint8 (N, L); `encode` returns what is unknown, too."""
        return self.encode(X).targets

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the label names, an object array (L,)."""
        check_is_fitted(self, "space_")
        return np.array(self.space_.names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


class MultiHotEncoder(_Encoder):
    """Tag lists to targets of one any-of group.

    The labels are the tags that occur in at least `min_count` samples, the `max_labels` most frequent of them (of
    equally frequent ones the first by name), in the order of their names. Tags seen at fit and left out are ignored by
    `encode`, and counted.

    Args:
        min_count: The fewest samples a label occurs in.
        max_labels: The largest number of labels. None: no limit.
        unknown: What a tag never seen at fit is: "error", or "ignore" (left out and counted).
        group: The group's name.

    Attributes:
        space_: The `LabelSpace`.
        counts_: How many samples had each label, int64 (L,).
        cut_: How many samples had each tag that was left out, by name.

    Example:
        >>> encoder = MultiHotEncoder(min_count=2).fit([["cat", "dog"], ["dog"], ["bird", "cat"]])
        >>> encoder.space_.names, encoder.cut_
        (('cat', 'dog'), {'bird': 1})
        >>> encoder.transform([["dog", "cat"], ["bird"]]).toarray()
        array([[1, 1],
               [0, 0]], dtype=uint8)
    """

    def __init__(
        self, min_count: int = 1, max_labels: int | None = None, unknown: str = "error", group: str = "tags"
    ) -> None:
        self.min_count = min_count
        self.max_labels = max_labels
        self.unknown = unknown
        self.group = group

    def fit(self, X: Iterable[Iterable[str]], y: Any = None) -> MultiHotEncoder:  # noqa: N803
        """Learn the labels.

        Args:
            X: For each sample its tags; a tag given twice counts once.
            y: Not used.

        Raises:
            ValueError: an option out of range, no tag that is frequent enough, a name that a label cannot have, or
                two spellings that Unicode's form NFC makes one.
            TypeError: a sample that is a string instead of a list, or a tag that is not a string.
        """
        self._check_options()
        counts: Counter[str] = Counter()
        for row, sample in enumerate(X):
            counts.update(_tags_of(sample, row))
        _refuse_merging(counts)
        frequent = sorted((-count, _nfc(tag), tag) for tag, count in counts.items() if count >= self.min_count)
        kept = {tag: name for _, name, tag in frequent[: self.max_labels]}
        if not kept:
            most = max(counts.values(), default=0)
            raise ValueError(
                f"no tag occurs in min_count={self.min_count} samples; the most frequent one occurs in {most}"
            )
        self.space_ = LabelSpace([Group(self.group, sorted(kept.values()))])
        by_name = {name: counts[tag] for tag, name in kept.items()}
        self.counts_ = np.array([by_name[name] for name in self.space_.names], dtype=np.int64)
        self.cut_ = {_nfc(tag): count for tag, count in sorted(counts.items()) if tag not in kept}
        return self

    def fit_transform(self, X: Iterable[Iterable[str]], y: Any = None, **fit_params: Any) -> sp.csr_array:  # noqa: N803
        """Learn the labels of `X`, gone through once, and return its targets, CSR uint8 (N, L); `y` is not used."""
        samples = [sample if isinstance(sample, str) else list(sample) for sample in X]
        return self.fit(samples, y, **fit_params).transform(samples)

    def encode(self, X: Iterable[Iterable[str]]) -> Encoded:  # noqa: N803
        """Return targets, unknowns (None: tag lists leave nothing unknown) and how often each ignored tag occurred.

        Raises:
            ValueError: a tag never seen at fit, unless unknown="ignore"; with the sample's position.
            TypeError: a sample that is a string instead of a list.
        """
        check_is_fitted(self, "space_")
        resolve(self.unknown, UNKNOWN, "value of unknown=")
        lookup = {name: column for column, name in enumerate(self.space_.names)} | dict.fromkeys(self.cut_, LEFT_OUT)
        ignored: Counter[str] = Counter()
        rows: list[list[int]] = []
        for row, sample in enumerate(X):
            held = set()
            for tag in _tags_of(sample, row):
                column = lookup.get(tag)
                if column is None:
                    column = lookup[tag] = self._column_of_rare(tag, lookup, row)
                if column == LEFT_OUT:
                    ignored[_nfc(tag)] += 1
                else:
                    held.add(column)
            rows.append(sorted(held))
        return Encoded(_csr_of_ones(rows, self.space_.num_labels), None, dict(sorted(ignored.items())))

    def inverse_transform(self, X: Any) -> list[list[str]]:  # noqa: N803
        """Return the tags of each row of `X`, targets or decisions (N, L), in column order.

        Raises:
            ValueError: another number of columns.
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "space_")
        return self.space_.decode(X)

    def _check_options(self) -> None:
        resolve(self.unknown, UNKNOWN, "value of unknown=")
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1; got {self.min_count!r}")
        if self.max_labels is not None and self.max_labels < 1:
            raise ValueError(f"max_labels must be at least 1, or None; got {self.max_labels!r}")

    def _column_of_rare(self, tag: str, lookup: Mapping[str, int], row: int) -> int:
        """Return the column of a tag that is not in `lookup` as it is written."""
        column = lookup.get(_nfc(tag))
        if column is not None:
            return column
        if self.unknown == "ignore":
            return LEFT_OUT
        known = [*self.space_.names, *self.cut_]
        raise ValueError(
            f"sample {row}: tag {tag!r} was not seen at fit (unknown='ignore' leaves it out); {suggest(tag, known)}"
        )


class MultiHeadEncoder(_Encoder):
    """A table of categories to targets of exclusive groups, one group a column.

    A group has its column's name (`x0`, `x1`, ... where the table has none), and as labels the column's values in
    their order. A value that occurs in several columns is named `column:value` in each, as label names are unique.
    None and NaN are unknown: `encode` says where, while in `transform` their rows are empty in that group.

    A table is a list of rows, a NumPy array (N, H), a mapping of column names to columns, or a data frame. Values are
    strings or integers.

    Args:
        unknown: What a value never seen at fit is: "error", or "ignore" (taken as unknown, and counted).

    Attributes:
        space_: The `LabelSpace`.
        categories_: For each column the values of its labels, as they were in the table.
        n_features_in_: The number of columns, H.

    Example:
        >>> encoder = MultiHeadEncoder().fit({"sleeve": ["long", "short"], "fit": ["tight", "loose"]})
        >>> encoder.space_
        LabelSpace(sleeve: 2 exclusive, fit: 2 exclusive)
        >>> targets, unknown, ignored = encoder.encode({"sleeve": ["short", None], "fit": ["loose", "tight"]})
        >>> targets.toarray()
        array([[0, 1, 1, 0],
               [0, 0, 0, 1]], dtype=uint8)
        >>> unknown.toarray()[1]
        array([ True,  True, False, False])
        >>> encoder.inverse_transform(targets).tolist()
        [['short', 'loose'], [None, 'tight']]
    """

    def __init__(self, unknown: str = "error") -> None:
        self.unknown = unknown

    def fit(self, X: Any, y: Any = None) -> MultiHeadEncoder:  # noqa: N803
        """Learn the columns and their values.

        Args:
            X: The table.
            y: Not used.

        Raises:
            ValueError: no columns, columns of different lengths, a column with fewer than two values, a value that a
                label cannot be named, or two values of one column with one name.
            TypeError: a value that is neither a string, an integer nor missing.
        """
        resolve(self.unknown, UNKNOWN, "value of unknown=")
        table = _as_columns(X)
        self.categories_ = [_distinct(values, column) for column, values in table.items()]
        names = [[_nfc(str(value)) for value in values] for values in self.categories_]
        shared = Counter(name for column in names for name in set(column))
        self.space_ = LabelSpace(
            Group(column, [f"{column}:{name}" if shared[name] > 1 else name for name in labels], exclusive=True)
            for column, labels in zip(table, names, strict=True)
        )
        self.n_features_in_ = len(table)
        return self

    def encode(self, X: Any) -> Encoded:  # noqa: N803
        """Return targets, what is unknown, and how often each ignored value occurred, as `column:value`.

        Raises:
            ValueError: other columns than at fit, or a value never seen there, unless unknown="ignore".
            TypeError: a value that is neither a string, an integer nor missing.
        """
        check_is_fitted(self, "space_")
        resolve(self.unknown, UNKNOWN, "value of unknown=")
        table = _as_columns(X)
        groups = self.space_.groups
        if set(table) != {group.name for group in groups}:
            raise ValueError(f"the table must have the columns {[g.name for g in groups]}; got {list(table)}")
        ignored: Counter[str] = Counter()
        codes = [
            self._codes(table[group.name], group.name, values, ignored)
            for group, values in zip(groups, self.categories_, strict=True)
        ]
        targets = sp.hstack([_one_hot(code, len(g)) for code, g in zip(codes, groups, strict=True)], format="csr")
        unknown = sp.hstack([_missing(code, len(g)) for code, g in zip(codes, groups, strict=True)], format="csr")
        found = sp.csr_array(unknown) if unknown.nnz else None
        return Encoded(sp.csr_array(targets), found, dict(sorted(ignored.items())))

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the table (N, H) of `X`, targets or decisions (N, L): an object array, None where a group has no
        label.

        Raises:
            ValueError: another number of columns, or a row with two labels of one group.
        """
        check_is_fitted(self, "space_")
        dense = sp.csr_array(X if sp.issparse(X) else sp.csr_array(to_numpy(X))).astype(bool)
        if dense.shape[1] != self.space_.num_labels:
            raise ValueError(f"targets must have {self.space_.num_labels} columns; got {dense.shape[1]}")
        table = np.full((dense.shape[0], len(self.categories_)), None, dtype=object)
        for place, (group, values) in enumerate(zip(self.space_.groups, self.categories_, strict=True)):
            held = sp.coo_array(dense[:, self.space_.slices[group.name]])
            rows, columns = held.coords[0][held.data], held.coords[1][held.data]
            if len(np.unique(rows)) != len(rows):
                raise ValueError(f"a row has more than one label of the exclusive group {group.name!r}")
            table[rows, place] = np.array(values, dtype=object)[columns]
        return table

    def _codes(self, column: list[Any], name: str, values: tuple[Any, ...], ignored: Counter[str]) -> np.ndarray:
        """Return the place of each value among the column's labels, int64 (N,); -1 where it is unknown."""
        lookup = {_nfc(str(value)): place for place, value in enumerate(values)}
        codes = np.full(len(column), -1, dtype=np.int64)
        for row, value in enumerate(column):
            if _is_missing(value):
                continue
            label = _nfc(str(_checked_value(value, name, row)))
            if label in lookup:
                codes[row] = lookup[label]
            elif self.unknown == "error":
                raise ValueError(
                    f"row {row}: column {name!r} has {value!r}, which was not seen at fit (unknown='ignore' takes it "
                    f"as unknown); {suggest(label, lookup)}"
                )
            else:
                ignored[f"{name}:{label}"] += 1
        return codes


def _nfc(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a tag must be a string; got {name!r}")
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _tags_of(sample: Iterable[str], row: int) -> set[str]:
    if isinstance(sample, str):
        raise TypeError(f"sample {row} must be a list of tags; got the string {sample!r}")
    try:
        return set(sample)
    except TypeError as error:
        raise TypeError(f"sample {row} must be a list of tags; got {sample!r}") from error


def _refuse_merging(tags: Iterable[str]) -> None:
    """Raise ValueError where two different spellings become one name in Unicode's form NFC."""
    seen: dict[str, str] = {}
    for tag in tags:
        first = seen.setdefault(_nfc(tag), tag)
        if first != tag:
            raise ValueError(f"tags {first!a} and {tag!a} are one name in Unicode's form NFC; write them alike")


def _csr_of_ones(rows: list[list[int]], num_columns: int) -> sp.csr_array:
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    indices = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=int(indptr[-1]))
    return sp.csr_array((np.ones(len(indices), dtype=np.uint8), indices, indptr), shape=(len(rows), num_columns))


def _as_columns(table: Any) -> dict[str, list[Any]]:
    """Return a table as a dictionary of column names and columns."""
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        names = list(table) if isinstance(table, Mapping) else list(table.columns)
        columns = {str(name): list(table[name]) for name in names}
    else:
        rows = [_row(row, place) for place, row in enumerate(table)]
        uneven = next((place for place, row in enumerate(rows) if len(row) != len(rows[0])), None)
        if uneven is not None:
            raise ValueError(f"row {uneven} has {len(rows[uneven])} values, and row 0 has {len(rows[0])}")
        columns = {f"x{place}": list(column) for place, column in enumerate(zip(*rows, strict=True))}
    if not columns:
        raise ValueError("the table has no columns")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length; got {lengths}")
    return columns


def _row(row: Any, place: int) -> list[Any]:
    if isinstance(row, str) or not isinstance(row, Iterable):
        raise TypeError(f"row {place} must be a list of values, one a column; got {row!r}")
    return list(row)


def _distinct(values: Iterable[Any], column: str) -> tuple[Any, ...]:
    """Return the distinct values of a column in order, strings and integers each among themselves."""
    found = {_checked_value(value, column, row) for row, value in enumerate(values) if not _is_missing(value)}
    if len({_nfc(str(value)) for value in found}) < len(found):
        raise ValueError(f"column {column!r} has different values of one name, among {sorted(map(repr, found))}")
    if len(found) < 2:
        raise ValueError(f"column {column!r} needs at least two values to tell apart; got {sorted(map(repr, found))}")
    return tuple(sorted(found, key=lambda value: (isinstance(value, str), value)))


def _checked_value(value: Any, column: str, row: int) -> Any:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"row {row}: column {column!r} must hold strings or integers, None where unknown; got {value!r}")


def _is_missing(value: Any) -> bool:
    """True for None, NaN and the missing values of data frames."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _one_hot(codes: np.ndarray, num_labels: int) -> sp.csr_array:
    rows = np.flatnonzero(codes >= 0)
    ones = np.ones(len(rows), dtype=np.uint8)
    return sp.csr_array((ones, (rows, codes[rows])), shape=(len(codes), num_labels))


def _missing(codes: np.ndarray, num_labels: int) -> sp.csr_array:
    rows = np.repeat(np.flatnonzero(codes < 0), num_labels)
    columns = np.tile(np.arange(num_labels), len(rows) // num_labels)
    return sp.csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(codes), num_labels))
