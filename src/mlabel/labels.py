"""The label space: which labels there are, in which order, and which of them exclude each other.

Everything else in mlabel indexes the columns that a `LabelSpace` defines.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch

from mlabel._checks import DataError, as_scores, check_counts, suggest, to_numpy
from mlabel._files import read_json, to_json, write_atomically


@dataclass(frozen=True)
class Group:
    """Labels that belong together: any of them may hold, or, where `exclusive`, exactly one.

    Names are put into Unicode form NFC, so that two spellings of one name are one name.

    Args:
        name: The group's name.
        labels: Its label names, in column order.
        exclusive: True where exactly one label holds (softmax, argmax); False where each stands alone (sigmoid).

    Raises:
        ValueError: no labels, an empty name, a name with a newline or NUL, or a name given twice.
        TypeError: one string in place of a list of labels.

    Example:
        >>> Group("rating", ["safe", "other"], exclusive=True).labels
        ('safe', 'other')
    """

    name: str
    labels: tuple[str, ...]
    exclusive: bool = False

    def __init__(self, name: str, labels: Iterable[str], exclusive: bool = False) -> None:
        if isinstance(labels, str):
            raise TypeError(f"labels of group {name!r} must be a list of names; got the string {labels!r}")
        object.__setattr__(self, "name", _clean(name, "group"))
        object.__setattr__(self, "labels", tuple(_clean(label, "label") for label in labels))
        object.__setattr__(self, "exclusive", bool(exclusive))
        if not self.labels:
            raise ValueError(f"group {self.name!r} needs at least one label")
        if self.exclusive and len(self.labels) < 2:
            raise ValueError(f"exclusive group {self.name!r} needs at least two labels; got {list(self.labels)}")
        _refuse_repeats(self.labels, f"label of group {self.name!r}")

    def __len__(self) -> int:
        return len(self.labels)


class LabelSpace:
    """An ordered list of groups, and with it the meaning of every column of an (N, L) matrix.

    Two spaces are equal when their groups, names, order and kinds are equal; `fingerprint` is then equal too.

    Args:
        groups: The groups, in column order. Group names are unique, and so are label names over all groups.

    Raises:
        ValueError: no groups, or a name used twice.

    Attributes:
        groups: The groups, a tuple.
        names: All label names in column order, a tuple of L strings.
        num_labels: L.
        slices: Group name to the slice of its columns.
        fingerprint: SHA-256 over groups, names and order, as hexadecimal text.

    Example:
        >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
        >>> space.names, space.num_labels, space.slices["rating"], space.index("dog")
        (('cat', 'dog', 'safe', 'other'), 4, slice(2, 4, None), 1)
        >>> targets, unknown = space.encode([["cat", "safe"], ["other"]])
        >>> targets.toarray()
        array([[1, 0, 1, 0],
               [0, 0, 0, 1]], dtype=uint8)
        >>> space.decode(targets.toarray())
        [['cat', 'safe'], ['other']]
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups: tuple[Group, ...] = tuple(groups)
        if not self.groups:
            raise ValueError("a label space needs at least one group")
        self.names: tuple[str, ...] = tuple(name for group in self.groups for name in group.labels)
        self.num_labels: int = len(self.names)
        _refuse_repeats([group.name for group in self.groups], "group name")
        _refuse_repeats(self.names, "label name")
        ends = np.cumsum([len(group) for group in self.groups]).tolist()
        starts = [0, *ends[:-1]]
        self.slices: dict[str, slice] = {
            group.name: slice(start, end) for group, start, end in zip(self.groups, starts, ends, strict=True)
        }
        self._index = {name: column for column, name in enumerate(self.names)}
        text = json.dumps(self.to_dict(), ensure_ascii=True, separators=(",", ":"))
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSpace) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        return self.num_labels

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and unicodedata.normalize("NFC", name) in self._index

    def __repr__(self) -> str:
        parts = (f"{g.name}: {len(g)} {'exclusive' if g.exclusive else 'any-of'}" for g in self.groups)
        return f"LabelSpace({', '.join(parts)})"

    @property
    def exclusive_groups(self) -> tuple[Group, ...]:
        """The groups of which exactly one label holds."""
        return tuple(group for group in self.groups if group.exclusive)

    @property
    def any_of(self) -> np.ndarray:
        """A bool array (L,): True at the columns of any-of groups."""
        return np.repeat([not group.exclusive for group in self.groups], [len(group) for group in self.groups])

    def index(self, name: str) -> int:
        """Return the column of label `name`.

        Raises:
            ValueError: there is no such label; the nearest is named.
        """
        column = self._index.get(unicodedata.normalize("NFC", name))
        if column is None:
            raise ValueError(f"unknown label {name!r}; {suggest(name, self.names)}")
        return column

    def encode(
        self, samples: Iterable[Iterable[str]], uncertain: Iterable[Iterable[str]] | None = None
    ) -> tuple[sp.csr_array, sp.csr_array | None]:
        """Return the targets of samples given by label names, and which of them are unknown.

        An exclusive group of which a sample names no label is unknown for it; an any-of group without names is all
        absent.

        Args:
            samples: For each sample the names that hold. A name given twice counts once.
            uncertain: For each sample the any-of names about which nothing is known. None: none.

        Returns:
            Targets, CSR uint8 (N, L), and unknowns, CSR bool (N, L), True = unknown; None where all is known.

        Raises:
            ValueError: a name that is not in the space, two labels of one exclusive group, or a name that is both
                present and uncertain; with the sample's position.
        """
        rows = [self._columns(sample, row) for row, sample in enumerate(samples)]
        targets = _csr_from_rows(rows, self.num_labels, np.uint8)
        unknown = self._missing_exclusive(targets)
        if uncertain is not None:
            extra = [self._columns(sample, row, single=False) for row, sample in enumerate(uncertain)]
            if len(extra) != len(rows):
                raise ValueError(f"uncertain must have one entry a sample ({len(rows)}); got {len(extra)}")
            doubtful = _csr_from_rows(extra, self.num_labels, np.bool_)
            _refuse_overlap(targets, doubtful, self.names)
            unknown = doubtful if unknown is None else (unknown + doubtful).astype(bool)
        return targets, unknown if unknown is not None and unknown.nnz else None

    def decode(self, decisions: Any) -> list[list[str]]:
        """Return, for each row of `decisions` (N, L; NumPy, torch or CSR; truth = present), the names that hold.

        Raises:
            ValueError: another number of columns.
        """
        rows = sp.csr_array(decisions if sp.issparse(decisions) else to_numpy(decisions).astype(bool))
        if rows.shape[1] != self.num_labels:
            raise ValueError(f"decisions must have {self.num_labels} columns; got {rows.shape[1]}")
        rows.eliminate_zeros()
        rows.sort_indices()
        bounds = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
        return [[self.names[column] for column in rows.indices[start:end]] for start, end in bounds]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities (N, L) float32 of `logits` (N, L): a sigmoid for any-of columns, a softmax over each
        exclusive group.

        This is the one place where logits become probabilities.

        Raises:
            ValueError: another shape.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_labels:
            raise ValueError(f"logits must be of shape (N, {self.num_labels}); got {tuple(logits.shape)}")
        logits = logits.float()
        parts = []
        for group in self.groups:
            columns = logits[:, self.slices[group.name]]
            parts.append(columns.softmax(dim=1) if group.exclusive else columns.sigmoid())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def prior_logits(self, counts: Any, known: Any) -> np.ndarray:
        """Return the logits (L,), float64, whose probabilities are the labels' shares of what is known.

        With c positives among n known samples that is log(c / (n - c)) for any-of columns, and log(c / sum of all c) in
        an exclusive group. No share is taken to be 0 or 1: a label that never holds counts as half a sample, and an
        any-of label that always holds lacks half a sample. Where nothing is known an any-of label gets 0, and the
        classes of an exclusive group get the same number.

        Args:
            counts: Positives (L,), as `mlabel.weights.count_labels` gives them.
            known: Known samples: (L,), or one number.

        Raises:
            ValueError: counts of another number of labels, negative, or above the known samples.

        Example:
            >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
            >>> space.prior_logits([50, 0, 75, 25], 100).round(3)
            array([ 0.   , -5.293, -0.288, -1.386])
        """
        counts, known = check_counts(counts, known)
        if len(counts) != self.num_labels:
            raise ValueError(f"counts are of {len(counts)} labels, but the space has {self.num_labels}")
        held = np.clip(counts, 0.5, np.maximum(known - 0.5, 0.5))
        logits = np.log(held) - np.log(np.maximum(known - held, 0.5))
        for group in self.exclusive_groups:
            span = self.slices[group.name]
            floored = np.maximum(counts[span], 0.5)
            logits[span] = np.log(floored / floored.sum())
        return logits

    def to_dict(self) -> dict[str, Any]:
        """Return the space as plain lists and texts, for JSON; `from_dict` reads it."""
        return {
            "format": "mlabel.labels/1",
            "groups": [{"name": g.name, "exclusive": g.exclusive, "labels": list(g.labels)} for g in self.groups],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpace:
        """Return the space that `to_dict` described as `data`.

        Raises:
            DataError: not of that form.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"a label space of format 'mlabel.labels/1' was wanted; got {str(data)[:80]!r}")
        found = data.get("format")
        if found != "mlabel.labels/1":
            raise DataError(f"a label space of format 'mlabel.labels/1' was wanted; got {str(found)[:80]!r}")
        try:
            return cls([Group(g["name"], g["labels"], exclusive=g["exclusive"]) for g in data["groups"]])
        except (KeyError, TypeError) as error:
            wanted = "its groups must be a list, each with a name, labels and whether it is exclusive"
            raise DataError(f"not a label space: {wanted} ({error!r})") from error

    def save(self, path: str | Path) -> None:
        """Write the space as JSON to the file `path`."""
        write_atomically(path, to_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> LabelSpace:
        """Return the space saved in the file `path`.

        Raises:
            DataError: the file is not JSON, or not a label space.
        """
        data = read_json(path)
        if not isinstance(data, dict):
            raise DataError(f"{path}: not a label space: an object was wanted; got {type(data).__name__}")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error

    def check_same(self, other: LabelSpace, what: str) -> None:
        """Refuse another space than this one, showing the first difference.

        Args:
            what: What `other` belongs to, for the message, such as "the checkpoint".
            other: The space that must be this one.

        Raises:
            ValueError: it is not.
        """
        if self == other:
            return
        columns = zip(self.names, other.names, strict=False)
        place = next((i for i, (mine, theirs) in enumerate(columns) if mine != theirs), None)
        if place is not None:
            detail = f"column {place} is {self.names[place]!r} here and {other.names[place]!r} there"
        elif self.num_labels != other.num_labels:
            detail = f"{self.num_labels} labels here and {other.num_labels} there"
        else:
            detail = f"groups are {self!r} here and {other!r} there"
        raise ValueError(
            f"the label space of {what} is another one (fingerprints {self.fingerprint[:12]} and "
            f"{other.fingerprint[:12]}): {detail}"
        )

    def _columns(self, sample: Iterable[str], row: int, single: bool = True) -> np.ndarray:
        if isinstance(sample, str):
            raise TypeError(f"sample {row} must be a list of names; got the string {sample!r}")
        try:
            columns = np.unique(np.fromiter((self.index(name) for name in sample), dtype=np.int64))
        except ValueError as error:
            raise ValueError(f"sample {row}: {error}") from None
        for group in self.exclusive_groups if single else ():
            span = self.slices[group.name]
            held = columns[(columns >= span.start) & (columns < span.stop)]
            if len(held) > 1:
                names = [self.names[column] for column in held]
                raise ValueError(f"sample {row}: group {group.name!r} is exclusive, but {names} are given")
        return columns

    def _missing_exclusive(self, targets: sp.csr_array) -> sp.csr_array | None:
        """Return the columns of exclusive groups without a label, True = unknown, or None."""
        blocks = []
        for group in self.groups:
            span = self.slices[group.name]
            shape = (targets.shape[0], len(group))
            if group.exclusive:
                empty = np.flatnonzero(np.asarray(targets[:, span].sum(axis=1)) == 0)
                columns = np.tile(np.arange(len(group)), len(empty))
                values = np.ones(len(columns), dtype=bool)
                blocks.append(sp.csr_array((values, (np.repeat(empty, len(group)), columns)), shape=shape))
            else:
                blocks.append(sp.csr_array(shape, dtype=bool))
        unknown = sp.csr_array(sp.hstack(blocks, format="csr"), dtype=bool)
        return unknown if unknown.nnz else None


def decide(scores: Any, thresholds: Any = 0.5, space: LabelSpace | None = None) -> np.ndarray:
    """Return decisions (N, L) bool: `score >= threshold`; in an exclusive group the label of the highest score.

    This is the one place where scores become decisions. Of equal highest scores the first column wins.

    Args:
        scores: Real numbers (N, L), NumPy or torch; probabilities for thresholds in [0, 1].
        thresholds: A number, an array (L,) or (N, L), or an object with an array (L,) in `.values`. Its entries at
            exclusive columns are not used, and may be NaN. Or a rule of `mlabel.decisions` that decides by row.
        space: The columns' meaning. None: every column is an any-of label.

    Raises:
        ValueError: scores not finite, a shape that does not fit, or a threshold of an any-of column that is NaN.

    Example:
        >>> decide([[0.2, 0.5], [0.9, 0.1]], thresholds=0.5)
        array([[False,  True],
               [ True, False]])
    """
    scores = as_scores(scores)
    rule = row_rule(thresholds)
    held = getattr(thresholds, "values", thresholds)
    if rule is not None:
        decisions = rule.decide_any_of(scores, space)
    elif np.ndim(held) == 2:
        if np.shape(held) != scores.shape:
            raise ValueError(f"thresholds of each sample must be of shape {scores.shape}; got {np.shape(held)}")
        decisions = scores >= to_numpy(held)
    else:
        decisions = scores >= threshold_values(held, scores.shape[1], space)
    for group in space.exclusive_groups if space is not None else ():
        span = space.slices[group.name] if space is not None else slice(0)
        decisions[:, span] = False
        decisions[np.arange(len(scores)), span.start + scores[:, span].argmax(axis=1)] = True
    return decisions


class RowRule(Protocol):
    """Decides the any-of labels of a row by comparing them with each other, without thresholds.

    Example:
        >>> class Best:
        ...     def decide_any_of(self, scores, space=None):
        ...         return scores == scores.max(axis=1, keepdims=True)
        >>> decide([[0.2, 0.4, 0.1]], Best())
        array([[False,  True, False]])
    """

    def decide_any_of(self, scores: Any, space: LabelSpace | None = None) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L); False at the columns of exclusive groups of `space`."""


def row_rule(thresholds: Any) -> RowRule | None:
    """Return the rule by which `thresholds` decide by row: they themselves, or their `.rule`; None: by values.

    Args:
        thresholds: What `decide` takes.

    Example:
        >>> row_rule(0.5) is None
        True
    """
    held = getattr(thresholds, "rule", thresholds)
    return held if hasattr(held, "decide_any_of") else None


def threshold_values(thresholds: Any, num_labels: int, space: LabelSpace | None = None) -> np.ndarray:
    """Return thresholds as a float64 array (L,), NaN at exclusive columns.

    Args:
        thresholds: A number, an array (L,), or an object with such an array in `.values`.
        num_labels: L.
        space: The columns' meaning. None: every column is an any-of label.

    Raises:
        ValueError: another shape, NaN at an any-of column, or a rule that decides by row.

    Example:
        >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
        >>> threshold_values(0.5, 4, space)
        array([0.5, 0.5, nan, nan])
    """
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"scores have {num_labels} columns, but the space has {space.num_labels} labels")
    if row_rule(thresholds) is not None:
        raise ValueError(
            f"thresholds were wanted here, one a label; {row_rule(thresholds)} decides by row, without any"
        )
    held = getattr(thresholds, "values", thresholds)
    values = np.array(to_numpy(held), dtype=np.float64)
    if values.shape not in ((), (num_labels,)):
        raise ValueError(f"thresholds must be a number or of shape ({num_labels},); got {values.shape}")
    values = np.broadcast_to(values, (num_labels,)).copy()
    any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
    values[~any_of] = np.nan
    if np.isnan(values[any_of]).any():
        column = int(np.flatnonzero(np.isnan(values) & any_of)[0])
        raise ValueError(f"the threshold of column {column} is NaN, and its label is not exclusive")
    return values


def _clean(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a {what} name must be a string; got {name!r}")
    if not name or "\n" in name or "\r" in name or "\0" in name:
        raise ValueError(f"a {what} name must not be empty nor hold a newline or NUL; got {name[:80]!r}")
    return unicodedata.normalize("NFC", name)


def _refuse_repeats(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} occurs twice")
        seen.add(name)


def _csr_from_rows(rows: Sequence[np.ndarray], num_columns: int, dtype: Any) -> sp.csr_array:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    return sp.csr_array((np.ones(len(indices), dtype=dtype), indices, indptr), shape=(len(rows), num_columns))


def _refuse_overlap(targets: sp.csr_array, unknown: sp.csr_array, names: Sequence[str]) -> None:
    both = sp.coo_array(targets.multiply(unknown))
    if both.nnz:
        row, column = both.coords[0][0], both.coords[1][0]
        raise ValueError(f"sample {row}: label {names[column]!r} is both present and uncertain")
