"""Confusion counts: what every metric of decisions is made of. Count first, merge, divide last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, to_numpy
from mlabel.metrics._blocks import blocks, known_positives, map_blocks, rows_of

C = TypeVar("C", bound="_Confusion")

DecisionRows = Callable[[int, int], np.ndarray]

_FOUR = ("tp", "fp", "fn", "tn")
# Entries of a block; up to one block, dense targets are counted as they are.
_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class _Confusion:
    """True positives, false positives, false negatives and true negatives, int64 arrays of one length."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def __post_init__(self) -> None:
        lengths = []
        for name in _FOUR:
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(f"{name} must be a one-dimensional array of integers; got {array!r:.80}")
            object.__setattr__(self, name, array.astype(np.int64, copy=False))
            lengths.append(len(array))
        if len(set(lengths)) > 1:
            raise ValueError(f"tp, fp, fn and tn must be of one length; got {lengths}")

    def __len__(self) -> int:
        return len(self.tp)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _FOUR)

    __hash__ = None  # type: ignore[assignment]

    @property
    def support(self) -> np.ndarray:
        """Positives among the known targets."""
        return self.tp + self.fn

    @property
    def predicted(self) -> np.ndarray:
        """Positives among the decisions on known targets."""
        return self.tp + self.fp

    @property
    def known(self) -> np.ndarray:
        """Known targets."""
        return self.tp + self.fp + self.fn + self.tn


class Counts(_Confusion):
    """Confusion counts of L labels over some samples, int64 arrays (L,).

    Counts of disjoint samples add up: `a + b`, or `sum(parts)`.

    Raises:
        ValueError: arrays that are not one-dimensional, of integers and of one length; or, added, counts of another
            number of labels.

    Attributes:
        tp: Positives decided positive.
        fp: Negatives decided positive.
        fn: Positives decided negative.
        tn: Negatives decided negative.
        support: tp + fn.
        predicted: tp + fp.
        known: All four.

    Example:
        >>> counts = confusion_counts([[True, False], [True, True]], [[1, 0], [0, 1]])
        >>> counts.tp, counts.fp
        (array([1, 1]), array([1, 0]))
        >>> (counts + counts).tn
        array([0, 2])
    """

    def __add__(self, other: object) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        if len(self) != len(other):
            raise ValueError(f"counts of {len(self)} and of {len(other)} labels cannot be merged")
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def __radd__(self, other: object) -> Counts:
        # sum() begins with the integer 0.
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def pooled(self) -> Counts:
        """Return the counts of all labels together, arrays (1,)."""
        return Counts(*(np.array([array.sum()]) for array in (self.tp, self.fp, self.fn, self.tn)))

    def take(self, columns: slice | np.ndarray) -> Counts:
        """Return the counts of the labels at `columns`, a slice or an integer or bool array."""
        return Counts(self.tp[columns], self.fp[columns], self.fn[columns], self.tn[columns])


class SampleCounts(_Confusion):
    """Confusion counts of N samples over all labels, int64 arrays (N,).

    They do not add up as `Counts` do: other samples are other rows.

    Raises:
        ValueError: arrays that are not one-dimensional, of integers and of one length.

    Attributes:
        tp: Its labels decided so.
        fp: Labels that it has not, decided positive.
        fn: Its labels decided negative.
        tn: Labels that it has not, decided so.
        support: tp + fn.
        predicted: tp + fp.
        known: All four.
    """


def confusion_counts(decisions: Any, targets: Any, mask: Any = None) -> Counts:
    """Return the confusion counts of every label.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What is unknown is not counted.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> confusion_counts([[1, 0], [1, 1]], [[1, 0], [0, 1]], mask=[[True, True], [False, True]]).fp
        array([0, 0])
    """
    return _counts_of(decisions, targets, mask)[0]


def sample_counts(decisions: Any, targets: Any, mask: Any = None) -> SampleCounts:
    """Return the confusion counts of every sample.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> counts = sample_counts([[1, 0], [1, 1]], [[1, 0], [0, 1]])
        >>> counts.tp, counts.fp
        (array([1, 1]), array([0, 1]))
    """
    return _counts_of(decisions, targets, mask)[1]


def count_rows(
    decision_rows: DecisionRows, targets: sp.csr_array, unknown: sp.csr_array | None
) -> tuple[Counts, SampleCounts]:
    """Return both kinds of counts in one pass over blocks of rows.

    Args:
        decision_rows: Gives the decisions, bool, of the rows start to stop.
        targets: (N, L).
        unknown: (N, L) or None.
    """
    num_samples, num_labels = targets.shape
    positives = known_positives(targets, unknown)

    def of_block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        block = decision_rows(start, stop)
        by_label, by_sample = np.zeros((2, num_labels), np.int64), np.zeros((2, stop - start), np.int64)
        by_label[1], by_sample[1] = _column_sums(block), _row_sums(block)
        _add_at(by_label[0], by_sample[0], block, rows_of(positives, start, stop), sign=1)
        if unknown is not None:
            _add_at(by_label[1], by_sample[1], block, rows_of(unknown, start, stop), sign=-1)
        return by_label, by_sample

    by_label, by_sample = np.zeros((2, num_labels), np.int64), np.zeros((2, num_samples), np.int64)
    bounds = blocks(num_samples, max(255, _BLOCK // max(1, num_labels)))
    for (start, stop), (label_part, sample_part) in zip(bounds, map_blocks(of_block, bounds), strict=True):
        by_label += label_part
        by_sample[:, start:stop] = sample_part
    support = np.bincount(positives.indices, minlength=num_labels), np.diff(positives.indptr)
    known = _known_entries(targets.shape, unknown)
    of_labels = _four(by_label[0], by_label[1], support[0], known[0])
    return Counts(*of_labels), SampleCounts(*_four(by_sample[0], by_sample[1], support[1], known[1]))


def _counts_of(decisions: Any, targets: Any, mask: Any) -> tuple[Counts, SampleCounts]:
    rows, shape = _decision_rows(decisions)
    if shape[0] * shape[1] <= _BLOCK:
        present, known = _as_bits(targets, shape, "biu"), None if mask is None else _as_bits(mask, shape, "b")
        if present is not None and (mask is None or known is not None):
            return _count_bits(rows(0, shape[0]), present, known)
    targets = as_csr(targets, shape=shape)
    return count_rows(rows, targets, as_unknown(mask, shape))


def _decision_rows(decisions: Any) -> tuple[DecisionRows, tuple[int, int]]:
    """Return what gives blocks of rows of `decisions` as bool, and their shape."""
    if sp.issparse(decisions):
        matrix = as_csr(decisions)
        return lambda start, stop: matrix[start:stop].toarray().astype(bool), matrix.shape
    array = to_numpy(decisions)
    if array.ndim != 2:
        raise ValueError(f"decisions must be of shape (N, L); got {array.shape}")
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"decisions must be bool or 0/1; got dtype {array.dtype}; make them of scores with labels.decide"
        )
    if array.dtype != bool and array.size and not (array.min() >= 0 and array.max() <= 1):
        row, column = np.argwhere((array != 0) & (array != 1))[0]
        raise ValueError(f"decisions must be 0 or 1; got {array[row, column]} at row {row}, column {column}")
    return lambda start, stop: array[start:stop].astype(bool, copy=False), array.shape


def _as_bits(values: Any, shape: tuple[int, int], kinds: str) -> np.ndarray | None:
    """Return dense 0/1 of this shape and kind as bool; None for all else, which is taken as sparse, or refused."""
    if sp.issparse(values):
        return None
    array = to_numpy(values)
    if array.shape != shape or array.dtype.kind not in kinds:
        return None
    if array.dtype != bool and array.size and not (array.min() >= 0 and array.max() <= 1):
        return None
    return array.astype(bool, copy=False)


def _count_bits(decisions: np.ndarray, targets: np.ndarray, known: np.ndarray | None) -> tuple[Counts, SampleCounts]:
    """Return what `count_rows` does of few dense entries: sums of bytes, without the places of positives."""
    if known is not None:
        decisions, targets = decisions & known, targets & known
    parts = (decisions & targets, decisions, targets)
    of_labels, of_samples = [_column_sums(part) for part in parts], [_row_sums(part) for part in parts]
    if known is None:
        num_samples, num_labels = targets.shape
        of_labels.append(np.full(num_labels, num_samples))
        of_samples.append(np.full(num_samples, num_labels))
    else:
        of_labels.append(_column_sums(known))
        of_samples.append(_row_sums(known))
    return Counts(*_four(*of_labels)), SampleCounts(*_four(*of_samples))


def _four(
    tp: np.ndarray, predicted: np.ndarray, support: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return tp, predicted - tp, support - tp, known - predicted - support + tp


def _column_sums(block: np.ndarray) -> np.ndarray:
    # 255 rows fit bytes, whose sums over rows are many times as fast as those of integers.
    bits = np.ascontiguousarray(block).view(np.uint8)
    sums = np.zeros(block.shape[1], dtype=np.int64)
    for start in range(0, len(bits), 255):
        sums += np.add.reduce(bits[start : start + 255], axis=0, dtype=np.uint8)
    return sums


def _row_sums(block: np.ndarray) -> np.ndarray:
    if block.shape[1] <= 255:
        return np.add.reduce(np.ascontiguousarray(block).view(np.uint8), axis=1, dtype=np.uint8).astype(np.int64)
    # count_nonzero has a fast path for a whole bool array, and none for an axis.
    return np.array([np.count_nonzero(row) for row in block], dtype=np.int64)


def _add_at(
    by_label: np.ndarray, by_sample: np.ndarray, block: np.ndarray, places: tuple[np.ndarray, np.ndarray], *, sign: int
) -> None:
    """Add `sign` to label and sample of each of `places` where the decision is positive."""
    rows, columns = places
    hit = block[rows, columns]
    by_label += sign * np.bincount(columns[hit], minlength=len(by_label))
    by_sample += sign * np.bincount(rows[hit], minlength=len(by_sample))


def _known_entries(shape: tuple[int, int], unknown: sp.csr_array | None) -> tuple[np.ndarray, np.ndarray]:
    """Return how many known entries each label and each sample has."""
    of_labels = np.full(shape[1], shape[0], dtype=np.int64)
    of_samples = np.full(shape[0], shape[1], dtype=np.int64)
    if unknown is not None:
        of_labels -= np.bincount(unknown.indices, minlength=shape[1])
        of_samples -= np.diff(unknown.indptr)
    return of_labels, of_samples
