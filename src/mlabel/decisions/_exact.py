"""The search for thresholds under which most rows are wholly right, one threshold at a time.

Under one threshold, for a label or for several, a row is right just if it lies above the highest score of what does
not hold and at or below the lowest score of what does: an interval. Where most intervals overlap, most rows are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mlabel.decisions._curves import between
from mlabel.labels import LabelSpace, decide
from mlabel.metrics._blocks import block_size, blocks, known_positives, rows_of
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.counts import count_rows
from mlabel.metrics.ranking import Checked

# Each sweep makes at least one more row right, so that they end; so many are enough in practice.
_SWEEPS = 100


@dataclass(frozen=True)
class Intervals:
    """The intervals (low, high] of a threshold in which each row is right, for labels and for pools of labels.

    Attributes:
        checked: Scores, targets and unknown of all columns.
        singles: The columns that have a threshold of their own, ascending.
        pools: (low, high), two arrays (N,), of each threshold that several columns share.
    """

    checked: Checked
    singles: np.ndarray
    pools: list[tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.singles) + len(self.pools)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from self._of_singles()
        yield from self.pools

    def _of_singles(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        scores, targets, unknown = self.checked
        positives = sp.csr_array(known_positives(targets, unknown).T)
        missing = None if unknown is None else sp.csr_array(unknown.T)
        size = block_size(scores.shape[0] * scores.itemsize, most=64)
        for start, stop in blocks(scores.shape[1], size):
            columns = self.singles[(self.singles >= start) & (self.singles < stop)]
            block = _gather_columns(scores, start, stop) if len(columns) else scores[:0]
            for column in columns.tolist():
                hidden = None if missing is None else _row_of(missing, column)
                yield _interval_of(block[column - start], _row_of(positives, column), hidden)


def interval_of_pool(checked: Checked) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of each row, float64 (N,), of one threshold for all columns of `checked`."""
    scores, targets, unknown = checked
    positives = known_positives(targets, unknown)
    low, high = np.full(len(scores), -np.inf), np.full(len(scores), np.inf)
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, scores.shape[1]))):
        block = scores[start:stop].copy()
        rows, columns = rows_of(positives, start, stop)
        np.minimum.at(high, start + rows, block[rows, columns])
        block[rows, columns] = -np.inf
        if unknown is not None:
            block[rows_of(unknown, start, stop)] = -np.inf
        low[start:stop] = block.max(axis=1, initial=-np.inf)
    return low, high


def wrong_groups(checked: Checked, space: LabelSpace | None) -> np.ndarray:
    """Return for each row (N,) bool whether a known exclusive group is decided wrongly by its highest score."""
    scores, targets, unknown = checked
    if space is None or not space.exclusive_groups:
        return np.zeros(len(scores), dtype=bool)
    columns = np.flatnonzero(~space.any_of)
    inner = LabelSpace(space.exclusive_groups)
    _, rows = count_rows(
        lambda start, stop: decide(scores[start:stop, columns], 0.5, inner),
        sp.csr_array(targets[:, columns]),
        None if unknown is None else sp.csr_array(unknown[:, columns]),
    )
    found: np.ndarray = rows.fp + rows.fn > 0
    return found


def best_overlap(low: np.ndarray, high: np.ndarray) -> tuple[float, int]:
    """Return the highest threshold that lies in most intervals, halfway down to the next end, and in how many it is."""
    possible = low < high
    low, high = np.sort(low[possible]), np.sort(high[possible])
    if not len(high):
        return np.inf, 0
    counts = low.searchsorted(high) - high.searchsorted(high)
    place = len(counts) - 1 - int(counts[::-1].argmax())
    value = high[place]
    ends = [float(array[array.searchsorted(value) - 1]) for array in (low, high) if array.searchsorted(value)]
    return float(between(max(ends, default=-np.inf), value)), int(counts[place])


def climb(intervals: Intervals, wrong: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return thresholds (C,) of which no single one could make more rows right.

    Args:
        intervals: Of C thresholds.
        wrong: (N,) bool, the rows that no threshold makes right.
        starts: (K, C) thresholds to begin at; the best of them is taken, the first of equally good ones.
    """
    errors = np.repeat(wrong[None].astype(np.int32), len(starts), axis=0)
    for place, (low, high) in enumerate(intervals):
        for start, held in zip(starts, errors, strict=True):
            held += ~_inside(low, high, start[place])
    first = int((errors == 0).sum(axis=1).argmax())
    values, held = starts[first].copy(), errors[first]
    for _ in range(_SWEEPS):
        if not _sweep(intervals, values, held):
            break
    return values


def _sweep(intervals: Intervals, values: np.ndarray, errors: np.ndarray) -> bool:
    """Better each threshold once, in place, and return whether one moved; `errors` (N,) counts a row's wrong ones."""
    moved = False
    for place, (low, high) in enumerate(intervals):
        wrong = ~_inside(low, high, values[place])
        free = errors == wrong  # rows of which all else is right
        lost = int(wrong[free].sum())
        if not lost:
            continue
        value, count = best_overlap(low[free], high[free])
        if count > int(free.sum()) - lost:
            values[place], moved = value, True
            errors += ~_inside(low, high, value)
            errors -= wrong
    return moved


def _inside(low: np.ndarray, high: np.ndarray, value: float) -> np.ndarray:
    inside: np.ndarray = (low < value) & (value <= high)
    return inside


def _row_of(matrix: sp.csr_array, row: int) -> np.ndarray:
    return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]


def _interval_of(scores: np.ndarray, positives: np.ndarray, hidden: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) of each row for one label."""
    low = scores.astype(np.float64)
    high = np.full(len(low), np.inf)
    high[positives] = low[positives]
    low[positives] = -np.inf
    if hidden is not None:
        low[hidden] = -np.inf
    return low, high
