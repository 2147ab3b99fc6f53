"""What thresholds are chosen from: how many are decided, and how many of them rightly, at the score of each positive.

A threshold that gives a label T true positives costs least where it is highest, which is at a positive's score. So for
every objective that wants more true and fewer false positives only those are looked at, besides deciding nothing, and
nothing is kept for the many negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics._ranks import _gather_columns, _rank, pooled_ranks
from mlabel.metrics.ranking import Checked


@dataclass(frozen=True)
class Curves:
    """The thresholds to choose from of S segments (labels, or pools of them), C in all.

    Attributes:
        starts: (S + 1,); the candidates of segment s are the entries starts[s] to starts[s + 1].
        scores: (C,) the candidates, ascending in each segment.
        lower: (C,) the next known score of the segment below each one; -inf where there is none.
        right: (C,) positives of the segment that are at or above the candidate.
        decided: (C,) known scores of the segment that are.
        positives: (S,) known positives.
    """

    starts: np.ndarray
    scores: np.ndarray
    lower: np.ndarray
    right: np.ndarray
    decided: np.ndarray
    positives: np.ndarray

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Return values (S,) repeated for each candidate (C,)."""
        return np.repeat(values, np.diff(self.starts))

    def take(self, segments: np.ndarray) -> Curves:
        """Return the curves of some segments, a bool array (S,)."""
        kept = self.spread(segments)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[segments])])
        return Curves(
            starts,
            self.scores[kept],
            self.lower[kept],
            self.right[kept],
            self.decided[kept],
            self.positives[segments],
        )

    def thresholds_at(self, places: np.ndarray) -> np.ndarray:
        """Return thresholds (S,): inf where the place is -1, and NaN where the segment has no candidate."""
        values = np.full(len(self.positives), np.inf)
        values[self.starts[1:] == self.starts[:-1]] = np.nan
        held = np.flatnonzero(places >= 0)
        values[held] = between(self.lower[places[held]], self.scores[places[held]])
        return values


def join_curves(parts: Sequence[Curves]) -> Curves:
    """Return the segments of all parts, one part after the other."""
    lengths = [np.diff(part.starts) for part in parts]
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]) if parts else np.zeros(1, dtype=np.int64)
    names = ("scores", "lower", "right", "decided", "positives")
    joined = (np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0) for name in names)
    return Curves(starts, *joined)


def curves_of_columns(checked: Checked) -> Curves:
    """Return the curve of each column, in one pass over blocks of columns."""
    scores, targets, unknown = checked
    positives = sp.csr_array(known_positives(targets, unknown).T)
    missing = None if unknown is None else sp.csr_array(unknown.T)

    def of_block(start: int, stop: int) -> Curves:
        block = _gather_columns(scores, start, stop)
        ranks = _rank(block, positives, missing, start=start, ties=False)  # sorts the rows of the block that it needs
        row = np.repeat(np.arange(len(block)), ranks.num_positives)
        lower = np.where(ranks.below > 0, block[row, np.maximum(ranks.below - 1, 0)], -np.inf).astype(block.dtype)
        right, decided = ranks.positives_at_or_above, ranks.at_or_above
        return Curves(ranks.starts, block[row, ranks.below], lower, right, decided, ranks.num_positives)

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    return join_curves(list(map_blocks(of_block, blocks(scores.shape[1], size))))


def count_at_levels(checked: Checked, levels: np.ndarray) -> np.ndarray:
    """Return how many known scores of each column are at or above each of ascending levels, int64 (L, G)."""
    scores, _, unknown = checked
    missing = None if unknown is None else sp.csr_array(unknown.T)

    def of_block(start: int, stop: int) -> np.ndarray:
        block = _gather_columns(scores, start, stop)
        if missing is not None:
            block[rows_of(missing, start, stop)] = -np.inf  # below every level
        block.sort(axis=1)
        return np.stack([block.shape[1] - row.searchsorted(levels) for row in block])

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    parts = list(map_blocks(of_block, blocks(scores.shape[1], size)))
    return np.concatenate(parts) if parts else np.zeros((0, len(levels)), dtype=np.int64)


def pooled_curve(checked: Checked) -> Curves:
    """Return the curve of all entries of the matrix together; `lower` is not known yet, and NaN."""
    scores, targets, unknown = checked
    ranks = pooled_ranks(scores, targets, unknown)
    values = np.sort(scores[rows_of(known_positives(targets, unknown))])
    lower = np.full(len(values), np.nan)
    return Curves(ranks.starts, values, lower, ranks.positives_at_or_above, ranks.at_or_above, ranks.num_positives)


def with_lower(curve: Curves, place: int, checked: Checked) -> Curves:
    """Return a pooled curve that knows the next known score below one of its candidates."""
    if place < 0:
        return curve
    lower = curve.lower.copy()
    lower[place] = highest_below(checked, curve.scores[place])
    return Curves(curve.starts, curve.scores, lower, curve.right, curve.decided, curve.positives)


def highest_below(checked: Checked, value: float) -> float:
    """Return the highest known score of the matrix that is lower than `value`; -inf where there is none."""
    scores, _, unknown = checked
    lower = -np.inf
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, scores.shape[1]))):
        block = np.where(scores[start:stop] < value, scores[start:stop], -np.inf)
        if unknown is not None:
            block[rows_of(unknown, start, stop)] = -np.inf
        lower = max(lower, float(block.max(initial=-np.inf)))
    return lower


def between(lower: np.ndarray | float, value: np.ndarray | float) -> np.ndarray:
    """Return float64 thresholds halfway from `lower` up to `value`: at or below `value`, and above `lower`."""
    lower, value = np.asarray(lower, dtype=np.float64), np.asarray(value, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        middle = lower / 2 + value / 2
    return np.where((middle > lower) & (middle <= value) & np.isfinite(middle), middle, value)
