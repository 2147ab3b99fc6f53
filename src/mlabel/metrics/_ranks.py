"""Where the positives stand among all scores: the one computation behind every ranking metric.

A *segment* is a label with the scores of all samples, or a sample with the scores of all labels. Average precision of
labels and of samples (LRAP), AUROC, coverage and ranking loss all follow from three counts for each positive: the
scores of its segment that are lower, those that are equal, and the positives that are lower. Sorting a segment's
scores and looking up its few positives gives them; nothing is kept for the many negatives. Equal scores are one
threshold, so the result does not depend on the order of samples or labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, num_threads, rows_of

# Columns are gathered into rows by tiles of this many samples, so that a tile's cache lines are used up before they go.
_TILE = 256


@dataclass(frozen=True)
class Ranks:
    """The ranks of the positives of S segments, P positives in all, sorted by segment and then by ascending score.

    Attributes:
        starts: (S + 1,); the positives of segment s are the entries starts[s] to starts[s + 1].
        known: (S,) scores of each segment that are known.
        below: (P,) known scores of the segment that are lower than the positive's.
        equal: (P,) known scores of the segment that equal the positive's, itself included; None where not asked for.
        positives_below: (P,) the same as `below`, of the positives only.
        positives_equal: (P,) the same as `equal`, of the positives only.
        places: (P,) where in its segment each positive stands: its sample, or its label; None for pooled ranks.
    """

    starts: np.ndarray
    known: np.ndarray
    below: np.ndarray
    equal: np.ndarray | None
    positives_below: np.ndarray
    positives_equal: np.ndarray
    places: np.ndarray | None = None

    @property
    def num_positives(self) -> np.ndarray:
        """(S,) positives of each segment."""
        return np.diff(self.starts)

    @property
    def num_negatives(self) -> np.ndarray:
        """(S,) known scores of each segment that are no positive's."""
        return self.known - self.num_positives

    @property
    def at_or_above(self) -> np.ndarray:
        """(P,) known scores of the segment that are not lower than the positive's."""
        return np.repeat(self.known, self.num_positives) - self.below

    @property
    def above(self) -> np.ndarray:
        """(P,) known scores of the segment that are higher than the positive's."""
        return self.at_or_above - self.ties

    @property
    def ties(self) -> np.ndarray:
        """(P,) `equal`, where it was asked for."""
        if self.equal is None:
            raise AssertionError("this metric needs the ties")
        return self.equal

    @property
    def positives_at_or_above(self) -> np.ndarray:
        """(P,) positives of the segment that are not lower than this one."""
        return np.repeat(self.num_positives, self.num_positives) - self.positives_below

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums (S,) float64 of `values` (P,) over each segment's positives."""
        totals = np.zeros(len(self.known))
        held = np.flatnonzero(self.num_positives)
        if len(held):
            totals[held] = np.add.reduceat(values.astype(np.float64), self.starts[held])
        return totals

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Return the highest (S,) of `values` (P,) among each segment's positives; NaN without positives."""
        found = np.full(len(self.known), np.nan)
        held = np.flatnonzero(self.num_positives)
        if len(held):
            found[held] = np.maximum.reduceat(values, self.starts[held])
        return found


Statistic = Callable[[Ranks], np.ndarray]


def average_precision_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) the mean over positives of the precision at their score; NaN without positives."""
    return divide_or_nan(ranks.sums(ranks.positives_at_or_above / ranks.at_or_above), ranks.num_positives)


def auroc_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) the share of (positive, negative) pairs in right order, ties one half; NaN without either."""
    wins = ranks.below - ranks.positives_below + (ranks.ties - ranks.positives_equal) / 2
    return divide_or_nan(ranks.sums(wins), ranks.num_positives * ranks.num_negatives)


def ranking_loss_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) the share of (positive, negative) pairs in wrong order, ties wrong; NaN without either."""
    wrong = ranks.at_or_above - ranks.positives_at_or_above
    return divide_or_nan(ranks.sums(wrong), ranks.num_positives * ranks.num_negatives)


def coverage_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) how many scores are not lower than the lowest positive's; NaN without positives."""
    coverage = np.full(len(ranks.known), np.nan)
    held = np.flatnonzero(ranks.num_positives)
    coverage[held] = ranks.at_or_above[ranks.starts[held]]
    return coverage


def column_statistics(
    scores: np.ndarray,
    targets: sp.csr_array,
    unknown: sp.csr_array | None,
    *,
    statistics: Mapping[str, Statistic],
) -> dict[str, np.ndarray]:
    """Return each of `statistics` for every label, arrays (L,), in blocks of columns."""
    positives = sp.csr_array(known_positives(targets, unknown).T)
    missing = None if unknown is None else sp.csr_array(unknown.T)

    def of_block(start: int, stop: int) -> list[np.ndarray]:
        ranks = _rank(_gather_columns(scores, start, stop), positives, missing, start=start, ties=True)
        return [statistic(ranks) for statistic in statistics.values()]

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    return _collect(of_block, statistics, blocks(scores.shape[1], size))


def row_statistics(
    scores: np.ndarray,
    targets: sp.csr_array,
    unknown: sp.csr_array | None,
    *,
    statistics: Mapping[str, Statistic],
    columns: np.ndarray | None = None,
    ties: bool = False,
) -> dict[str, np.ndarray]:
    """Return each of `statistics` for every sample, arrays (N,), in blocks of rows.

    Args:
        scores: (N, L).
        targets: (N, L).
        unknown: (N, L) or None.
        statistics: Name to what is asked of the ranks.
        columns: The columns that take part, a bool array (L,). None: all.
        ties: Whether `equal` is wanted.
    """
    positives = known_positives(targets, unknown)
    if columns is not None and not columns.all():
        positives = positives[:, columns]
        unknown = None if unknown is None else unknown[:, columns]
    else:
        columns = None

    def of_block(start: int, stop: int) -> list[np.ndarray]:
        block = scores[start:stop].copy() if columns is None else scores[start:stop, columns]
        ranks = _rank(np.ascontiguousarray(block), positives, unknown, start=start, ties=ties)
        return [statistic(ranks) for statistic in statistics.values()]

    size = block_size(scores.shape[1] * scores.itemsize, most=max(64, 2**20 // max(1, scores.shape[1])))
    return _collect(of_block, statistics, blocks(scores.shape[0], size))


def pooled_ranks(
    scores: np.ndarray, targets: sp.csr_array, unknown: sp.csr_array | None, *, ties: bool = False
) -> Ranks:
    """Return the ranks of all positives among the scores of the whole matrix, taken as one segment.

    The matrix is sorted in blocks of rows; the counts of the blocks add up, so no sorted copy of it is made.
    """
    positives = known_positives(targets, unknown)
    values = np.sort(scores[rows_of(positives)])
    below = np.zeros(len(values), dtype=np.int64)
    not_above = np.zeros(len(values), dtype=np.int64)

    def of_blocks(bounds: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = np.zeros((2, len(values)), dtype=np.int64)
        for start, stop in bounds:
            block = scores[start:stop].copy()
            _hide_unknown(block, unknown, start)
            block = block.reshape(-1)
            block.sort()
            lower += block.searchsorted(values, "left")
            if ties:
                upper += block.searchsorted(values, "right")
        return lower, upper

    size = block_size(scores.shape[1] * scores.itemsize, most=max(1, 2**22 // max(1, scores.shape[1])))
    bounds, threads = blocks(len(scores), size), num_threads()
    shares = [bounds[first::threads] for first in range(min(threads, len(bounds)))]
    for lower, upper in map_blocks(lambda first, _: of_blocks(shares[first]), blocks(len(shares), 1)):
        below += lower
        not_above += upper
    known = scores.size - (0 if unknown is None else unknown.nnz)
    starts = np.array([0, len(values)])
    return Ranks(
        starts, np.array([known]), below, not_above - below if ties else None, *_ranks_among_positives(values, starts)
    )


def _rank(block: np.ndarray, positives: sp.csr_array, unknown: sp.csr_array | None, *, start: int, ties: bool) -> Ranks:
    """Return the ranks in the segments of `block` (S, M), which is scratch: it is sorted in place.

    Args:
        block: The scores of the segments start, start + 1, ...
        positives: CSR (all segments, M).
        unknown: CSR (all segments, M), or None.
        start: The first segment.
        ties: Whether `equal` is wanted.
    """
    segment, place = rows_of(positives, start, start + len(block))
    values = block[segment, place]
    order = np.lexsort((values, segment))
    values = values[order]
    starts = (positives.indptr[start : start + len(block) + 1] - positives.indptr[start]).astype(np.int64)
    known = _hide_unknown(block, unknown, start)
    below = np.empty(len(values), dtype=np.int64)
    not_above = np.empty(len(values) if ties else 0, dtype=np.int64)
    edges = starts.tolist()
    for row, (first, last) in enumerate(pairwise(edges)):
        if first == last:
            continue
        ordered = block[row]
        ordered.sort()
        below[first:last] = ordered.searchsorted(values[first:last], "left")
        if ties:
            not_above[first:last] = ordered.searchsorted(values[first:last], "right")
    equal = not_above - below if ties else None
    return Ranks(starts, known, below, equal, *_ranks_among_positives(values, starts), places=place[order])


def _hide_unknown(block: np.ndarray, unknown: sp.csr_array | None, start: int) -> np.ndarray:
    """Put unknown scores behind all others, and return how many each segment has that are known."""
    known = np.full(len(block), block.shape[1], dtype=np.int64)
    if unknown is not None:
        # Scores are finite, so that nothing equals infinity and nothing stands behind it.
        block[rows_of(unknown, start, start + len(block))] = np.inf
        known -= np.diff(unknown.indptr[start : start + len(block) + 1])
    return known


def _ranks_among_positives(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for ascending `values` in segments, how many of their segment are lower and how many are equal."""
    if not len(values):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    lengths = np.diff(starts)
    is_new = np.empty(len(values), dtype=bool)
    is_new[1:] = values[1:] != values[:-1]
    is_new[starts[:-1][lengths > 0]] = True
    run_starts = np.flatnonzero(is_new)
    run_lengths = np.diff(np.append(run_starts, len(values)))
    below = np.repeat(run_starts, run_lengths) - np.repeat(starts[:-1], lengths)
    return below, np.repeat(run_lengths, run_lengths)


def _gather_columns(scores: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return columns start to stop as the rows of a new array."""
    block = np.empty((stop - start, len(scores)), dtype=scores.dtype)
    for first, last in blocks(len(scores), _TILE):
        block[:, first:last] = scores[first:last, start:stop].T
    return block


def _collect(
    of_block: Callable[[int, int], list[np.ndarray]],
    statistics: Mapping[str, Statistic],
    bounds: list[tuple[int, int]],
) -> dict[str, np.ndarray]:
    parts = list(map_blocks(of_block, bounds))
    if not parts:
        return {name: np.zeros(0) for name in statistics}
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(arrays) for name, arrays in zip(statistics, columns, strict=True)}


def divide_or_nan(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is 0."""
    result = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
