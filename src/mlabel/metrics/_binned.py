"""What can be said of scores that are known by their bin only: the metrics of each label, and how far off they may be.

Row by row, `positives` and `known` (S, B) count the scores in B bins of equal width. Counts at an edge between bins are
exact. A metric of ranks takes the scores of a bin as equal, so its value is the exact one of the scores rounded down to
their bin's edge; what the scores would say lies between the best and the worst order within each bin, and the bounds
are the distance to the farther of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Bins of the calibration error; as a power of two they are unions of the bins of a histogram.
ECE_BINS = 16


def at_or_above(counts: np.ndarray) -> np.ndarray:
    """Return (S, B) int64: of `counts` (S, B), how many lie in each bin or in a higher one."""
    return np.cumsum(counts[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]


@dataclass(frozen=True)
class Binned:
    """The bins of S segments that hold positives: E entries, sorted by segment and then by bin, ascending.

    Attributes:
        num_positives: (S,).
        num_known: (S,).
        segment: (E,) the segment of each entry.
        bin: (E,) its bin.
        tp: (E,) positives in this bin or above.
        fp: (E,) negatives in this bin or above.
        positives: (E,) positives in this bin.
        negatives: (E,) negatives in this bin.
    """

    num_positives: np.ndarray
    num_known: np.ndarray
    segment: np.ndarray
    bin: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @classmethod
    def of(cls, positives: np.ndarray, known: np.ndarray) -> Binned:
        """Return the entries of `positives` (S, B) and `known` (S, B)."""
        tp, predicted = at_or_above(positives), at_or_above(known)
        place = segment, column = np.nonzero(positives)
        in_bin = positives[place].astype(np.int64)
        return cls(
            num_positives=tp[:, 0].copy(),
            num_known=predicted[:, 0].copy(),
            segment=segment,
            bin=column,
            tp=tp[place],
            fp=predicted[place] - tp[place],
            positives=in_bin,
            negatives=known[place] - in_bin,
        )

    def average_precision(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the average precision (S,) and its bound (S,); NaN without positives.

        The precision at a positive is highest where the positives of its bin are all equal and above its negatives.
        It is lowest where the negatives come first and the positives follow one by one; the precisions
        (T + j) / (M + j) for j = 1 to p are concave in j, so that their sum is at least p times the mean of the first
        and the last.
        """
        p, before = self.positives, self.tp - self.positives + self.fp
        value = self._mean(p * (self.tp / (self.tp + self.fp)))
        high = self._mean(p * (self.tp / (self.tp + self.fp - self.negatives)))
        first, last = (self.tp - p + 1) / (before + 1), self.tp / (self.tp + self.fp)
        low = self._mean(p * (first + last) / 2)
        return value, np.maximum(high - value, value - low)

    def auroc(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the AUROC (S,) and its bound (S,), half the share of pairs in one bin; NaN without either side."""
        negatives = self.num_known - self.num_positives
        below = negatives[self.segment] - self.fp
        pairs = np.where(negatives > 0, negatives, np.nan)
        value = self._mean(self.positives * (below + self.negatives / 2)) / pairs
        return value, self._mean(self.positives * self.negatives / 2) / pairs

    def break_even(self) -> tuple[np.ndarray, np.ndarray]:
        """Return precision where it equals recall (S,) and its bound (S,); NaN without positives.

        As many are decided positive as there are positives; of the bin that is cut there, each has an equal share.
        """
        room = self.num_positives[self.segment] - (self.tp - self.positives + self.fp - self.negatives)
        inside = self.positives + self.negatives
        value = self._mean(self.positives * np.clip(room / inside, 0, 1))
        high = self._mean(np.clip(room, 0, self.positives))
        low = self._mean(np.clip(room - self.negatives, 0, self.positives))
        return value, np.maximum(high - value, value - low)

    def best_f1(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the highest F1 at an edge, how much higher it may be elsewhere, and the bin above the edge, each (S,).

        Of equal ones the highest edge; the lower edge of a bin without positives is never better than the next one.
        """
        support = self.num_positives[self.segment]
        found = 2 * self.tp / (self.tp + self.fp + support)
        possible = 2 * self.tp / (self.tp + self.fp - self.negatives + support)
        value, most = self._highest(found), self._highest(possible)
        best = np.full(len(value), -1)
        hit = found == value[self.segment]
        best[self.segment[hit]] = self.bin[hit]  # entries ascend, so that the last, highest one stays
        return value, np.maximum(most - value, 0), best

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.segment, np.arange(len(self.num_known)))

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Return (S,) the sum of `values` (E,) over each segment's entries, divided by its positives."""
        sums = np.bincount(self.segment, weights=values, minlength=len(self.num_known))
        return sums / np.where(self.num_positives > 0, self.num_positives, np.nan)

    def _highest(self, values: np.ndarray) -> np.ndarray:
        highest = np.full(len(self.num_known), np.nan)
        held = self.num_positives > 0
        if held.any():
            highest[held] = np.maximum.reduceat(values, self._starts[held])
        return highest


def break_even_bin(positives: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (S,) the highest bin at or above which there are as many scores as positives; -1 without positives."""
    predicted = at_or_above(known)
    wanted = positives.sum(axis=1, dtype=np.int64)
    bins = (predicted >= wanted[:, None]).sum(axis=1) - 1
    return np.where(wanted > 0, bins, -1)


def calibration_error(positives: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (S,) the expected calibration error with every score taken as the middle of its bin; NaN of nothing.

    A score is at most half a bin from that middle, and so is the result from that of the scores: 1 / (2 B).
    """
    segments, bins = known.shape
    wide = (segments, min(ECE_BINS, bins), -1)
    middles = (np.arange(bins) + 0.5) / bins
    # Reduced with a matrix product, which needs no (S, B) array of floats beyond the one it is given.
    confidence = np.einsum("swb,wb->sw", known.reshape(wide), middles.reshape(wide[1:]))
    gaps = np.abs(confidence - positives.reshape(wide).sum(axis=2, dtype=np.int64)).sum(axis=1)
    total = known.sum(axis=1, dtype=np.int64)
    return gaps / np.where(total > 0, total, np.nan)
