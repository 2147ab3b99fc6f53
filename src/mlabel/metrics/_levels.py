"""Statistics of ranks in resamples: the same formulas as `_ranks` and `_curves`, with weights in the place of ones.

Only the scores that are not lower than the lowest positive of a label matter, and between the scores of two positives
only how many negatives there are. Which samples these are is the same in every resample, so that one product of a
sparse matrix with the weights has the counts of all of them, exactly: there is nothing to sort again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mlabel.metrics._blocks import block_size, blocks, known_positives, rows_of
from mlabel.metrics._curves import CURVE_STATISTICS, FPR_RANGE, LEVELS
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.ranking import Checked, pooled_metric
from mlabel.metrics.resamples import Weights

# Levels of labels that are worked on at once, and those that all entries together are given.
_TOGETHER, _POOLED = 4096, 1024


@dataclass(frozen=True, eq=False)
class Levels:
    """The different scores of positives of S labels, highest first, in R resamples: E levels in all.

    Attributes:
        starts: (S,) the first level of each label; each has one at least.
        tp: (E, R) positives at the level or above.
        fp: (E, R) negatives at the level or above.
        positives: (E, R) positives at the level.
        negatives: (E, R) negatives at the level.
        num_positives: (S, R).
        num_negatives: (S, R).
    """

    starts: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray

    @classmethod
    def of(
        cls, starts: np.ndarray, between: np.ndarray, positives: np.ndarray, ties: np.ndarray, known: np.ndarray
    ) -> Levels:
        """Return the levels from what is new at each of them.

        Args:
            starts: (S,).
            between: (E, R) negatives at the level or above, and below the level before.
            positives: (E, R) positives at the level.
            ties: (E, R) negatives at the level.
            known: (S, R) known samples of each label.
        """
        tp, fp = _running(positives, starts), _running(between, starts)
        totals = tp[np.append(starts[1:], len(tp)) - 1]
        return cls(starts, tp, fp, positives, ties, totals, known - totals)

    @property
    def precision(self) -> np.ndarray:
        """(E, R) precision at each level, 0 where nothing reaches it."""
        return _divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """(E, R) recall at each level."""
        return _divide(self.tp, self.of_levels(self.num_positives))

    def of_levels(self, values: np.ndarray) -> np.ndarray:
        """Return (E, R) the values (S, R) of each level's label."""
        return np.repeat(values, np.diff(np.append(self.starts, len(self.tp))), axis=0)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return (S, R) the mean over each label's positives of `values` (E, R); NaN without positives."""
        sums = np.add.reduceat(values * self.positives, self.starts, axis=0)
        return sums / np.where(self.num_positives > 0, self.num_positives, np.nan)

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Return (S, R) the highest of `values` (E, R) of each label; NaN without positives."""
        return np.where(self.num_positives > 0, np.maximum.reduceat(values, self.starts, axis=0), np.nan)


LevelStatistic = Callable[[Levels], np.ndarray]


def _average_precision(levels: Levels) -> np.ndarray:
    return levels.mean(levels.precision)


def _auroc(levels: Levels) -> np.ndarray:
    lost = levels.mean(levels.fp - levels.negatives / 2)
    return 1 - lost / np.where(levels.num_negatives > 0, levels.num_negatives, np.nan)


def _break_even(levels: Levels) -> np.ndarray:
    inside = levels.positives + levels.negatives
    room = levels.of_levels(levels.num_positives) - (levels.tp + levels.fp - inside)
    return levels.mean(np.clip(_divide(room, inside), 0, 1))


def _precision_at_recall(levels: Levels, level: float) -> np.ndarray:
    return levels.highest(np.where(levels.recall >= level, levels.precision, 0.0))


def _recall_at_precision(levels: Levels, level: float) -> np.ndarray:
    return levels.highest(np.where(levels.precision >= level, levels.recall, 0.0))


def _log_auc(levels: Levels) -> np.ndarray:
    low, high = FPR_RANGE
    negatives = levels.of_levels(np.where(levels.num_negatives > 0, levels.num_negatives, np.nan))
    end, start = levels.fp / negatives, (levels.fp - levels.negatives) / negatives
    first, last = np.clip(start, low, high), np.clip(end, low, high)
    rising = (last - first - start * np.log(last / first)) / np.where(end > start, end - start, 1.0)
    return levels.mean(rising + np.log(high / last)) / np.log(high / low)


# The statistics of `CURVE_STATISTICS`, by the same names.
LEVEL_STATISTICS: dict[str, LevelStatistic] = {
    "ap": _average_precision,
    "auroc": _auroc,
    "log_auc": _log_auc,
    "break_even": _break_even,
    **{f"precision_at_recall_{level}": partial(_precision_at_recall, level=level) for level in LEVELS},
    **{f"recall_at_precision_{level}": partial(_recall_at_precision, level=level) for level in LEVELS},
}


class _Places(NamedTuple):
    """Which samples are new at each of E levels of some labels, CSR (E, N), and where each label's levels start."""

    labels: np.ndarray
    starts: np.ndarray
    between: sp.csr_array
    positives: sp.csr_array
    ties: sp.csr_array


class LabelCurves:
    """What the curves of labels need of scores, targets and what is unknown.

    Args:
        checked: From `check_inputs`.
        names: Which of `LEVEL_STATISTICS`.
    """

    def __init__(self, checked: Checked, names: Iterable[str]) -> None:
        self._scores, targets, unknown = checked
        self._positives = sp.csr_array(known_positives(targets, unknown).T)
        self._unknown = None if unknown is None else sp.csr_array(unknown.T)
        self._names = list(names)

    def measure(self, start: int, stop: int, known: np.ndarray, weights: Weights) -> dict[str, np.ndarray]:
        """Return name to (S, 1 + R) of the labels start to stop, of which `known` samples (S, 1 + R) are known."""
        found = {name: np.full(known.shape, np.nan) for name in self._names}
        for first, last in self._chunks(start, stop) if self._names else ():
            places = self._places(first, last)
            if len(places.labels):
                held = places.labels - start
                self._fill(found, held, places, known[held], weights)
        return found

    def _fill(
        self, found: dict[str, np.ndarray], held: np.ndarray, places: _Places, known: np.ndarray, weights: Weights
    ) -> None:
        done = 0
        matrices = [matrix.astype(weights.kind) for matrix in (places.between, places.positives, places.ties)]
        for part in weights.parts:
            columns = slice(done, done + part.shape[1])
            counts = [(matrix @ part.astype(weights.kind)).astype(np.float64) for matrix in matrices]
            levels = Levels.of(places.starts, counts[0], counts[1], counts[2], known[:, columns])
            for name in self._names:
                found[name][held, columns] = LEVEL_STATISTICS[name](levels)
            done = columns.stop

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield runs of labels with few positives together, and few enough scores."""
        most = block_size(8 * self._scores.shape[0], most=64)
        ends = self._positives.indptr
        while start < stop:
            last = start + 1
            while last < min(stop, start + most) and ends[last + 1] - ends[start] <= _TOGETHER:
                last += 1
            yield start, last
            start = last

    def _places(self, start: int, stop: int) -> _Places:
        block = _gather_columns(self._scores, start, stop)
        if self._unknown is not None:
            block[rows_of(self._unknown, start, stop)] = -np.inf  # scores are finite: none is lower
        labels, starts, cells, done = [], [], [], 0
        for row, column in enumerate(block):
            ends = self._positives.indptr[start + row : start + row + 2]
            samples = self._positives.indices[ends[0] : ends[1]]
            if not len(samples):
                continue
            values = np.unique(column[samples])
            reach = np.flatnonzero(column >= values[0])
            place = np.searchsorted(values, column[reach], side="right")
            is_positive = np.zeros(len(column), dtype=bool)
            is_positive[samples] = True
            kind = np.where(is_positive[reach], 0, np.where(values[place - 1] == column[reach], 2, 1))
            labels.append(start + row)
            starts.append(done)
            cells.append((done + len(values) - place, reach, kind))
            done += len(values)
        if not labels:
            empty = sp.csr_array((0, len(self._scores)), dtype=np.uint8)
            return _Places(np.zeros(0, np.int64), np.zeros(0, np.int64), empty, empty, empty)
        level, sample, kind = (np.concatenate(parts) for parts in zip(*cells, strict=True))
        shape = (done, len(self._scores))
        return _Places(
            np.array(labels),
            np.array(starts),
            _ones(level, sample, kind > 0, shape),
            _ones(level, sample, kind == 0, shape),
            _ones(level, sample, kind == 2, shape),
        )


def pooled_curves(checked: Checked, names: Iterable[str], known: np.ndarray, weights: Weights) -> dict[str, np.ndarray]:
    """Return name to (1 + R,) statistics of all entries taken as those of one label.

    Where positives have more than 1,024 different scores, those of resamples are taken at so many of them, which cut
    the positives into equal parts; by how much that moves the value of all samples, it is put right.

    Args:
        checked: From `check_inputs`.
        names: Which of `LEVEL_STATISTICS`.
        known: (1, 1 + R) known entries.
        weights: Of the samples.
    """
    names = list(names)
    if not names:
        return {}
    scores, targets, unknown = checked
    positives = known_positives(targets, unknown)
    values = np.unique(scores[rows_of(positives)])
    if not len(values):
        return {name: np.full(known.shape[1], np.nan) for name in names}
    cut = len(values) > _POOLED
    if cut:
        values = values[np.linspace(0, len(values) - 1, _POOLED).astype(np.int64)]
    sums = np.zeros((3, len(values), len(weights)))
    size = block_size(scores.shape[1] * 8 + len(values) * 64, most=4096)
    for start, stop in blocks(len(scores), size):
        rows = _row_levels(checked, positives, values, start, stop)
        part = Weights(tuple(part[start:stop] for part in weights.parts))
        for total, counts in zip(sums, rows, strict=True):
            total += part.sums_of(counts.T)
    reached, held, equal = sums[:, ::-1]
    between = np.diff(reached, axis=0, prepend=0) - held
    levels = Levels.of(np.zeros(1, np.int64), between, held, equal, known)
    found = {name: LEVEL_STATISTICS[name](levels)[0] for name in names}
    if not cut:
        return found
    return {name: each - each[0] + pooled_metric(CURVE_STATISTICS[name], checked) for name, each in found.items()}


def _row_levels(
    checked: Checked, positives: sp.csr_array, values: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row start to stop how many entries stand where, arrays (rows, E), `values` (E,) ascending.

    These are the entries that are not lower than each value; the positives that are not, but lower than the next one;
    and the negatives that equal it.
    """
    scores, _, unknown = checked
    block = scores[start:stop].copy()
    if unknown is not None:
        block[rows_of(unknown, start, stop)] = -np.inf  # scores are finite: none is lower
    samples, columns = rows_of(positives, start, stop)
    theirs = block[samples, columns]
    place = np.searchsorted(values, theirs, side="right") - 1
    shape = (stop - start, len(values))
    cells = samples * len(values) + place
    held = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    at_value = np.bincount(cells[values[place] == theirs], minlength=shape[0] * shape[1]).reshape(shape)
    reached, above = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    block.sort(axis=1)
    for row, ordered in enumerate(block):
        reached[row] = len(ordered) - ordered.searchsorted(values, "left")
        above[row] = len(ordered) - ordered.searchsorted(values, "right")
    return reached, held, reached - above - at_value


def _ones(rows: np.ndarray, columns: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    """Return ones at those of the places that are chosen."""
    rows, columns = rows[chosen], columns[chosen]
    return sp.csr_array((np.ones(len(rows), dtype=np.uint8), (rows, columns)), shape=shape)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)


def _running(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the running sums down the rows of `values` (E, R), begun anew at each of `starts`."""
    sums = np.cumsum(values, axis=0)
    before = sums[starts] - values[starts]
    return sums - np.repeat(before, np.diff(np.append(starts, len(values))), axis=0)
