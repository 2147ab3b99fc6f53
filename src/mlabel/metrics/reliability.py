"""Reliability: in bins of the score, how often labels hold, for plots beside what the scores say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv

from mlabel._checks import check_between, resolve
from mlabel.metrics._binned import ECE_BINS
from mlabel.metrics._blocks import block_size, blocks, known_positives, rows_of
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.ranking import Checked, check_probabilities

BINNINGS = {"equal_width": "edges at multiples of 1 / bins", "adaptive": "edges so that bins hold equally many scores"}
# Of so many entries the edges of pooled adaptive bins are chosen; what is in the bins is counted of all.
_MOST_FOR_EDGES = 2**20


@dataclass(frozen=True, eq=False)
class Reliability:
    """What scores say and what holds, in B bins of S segments (labels, or all entries together).

    Attributes:
        edges: (S, B + 1) ascending from 0 to 1; a score equal to an inner edge is in the bin above it.
        counts: (S, B) int64 known scores in each bin.
        mean_score: (S, B) their mean; NaN in empty bins.
        share: (S, B) the share of them that hold; NaN in empty bins.
        low: (S, B) the lower end of the interval of the share; NaN in empty bins.
        high: (S, B) its upper end.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean_score: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def calibration_error(self) -> np.ndarray:
        """(S,) the mean distance of share and mean score, weighed by counts; NaN where nothing is known."""
        total = self.counts.sum(axis=1)
        gaps = np.where(self.counts > 0, np.abs(self.share - self.mean_score) * self.counts, 0.0).sum(axis=1)
        return gaps / np.where(total > 0, total, np.nan)


def reliability(
    scores: Any,
    targets: Any,
    mask: Any = None,
    *,
    bins: int = ECE_BINS,
    binning: str = "equal_width",
    average: str | None = "micro",
    level: float = 0.95,
) -> Reliability:
    """Return reliability data: of all entries together (S = 1), or of each label (S = L).

    With `equal_width` its calibration error is `expected_calibration_error` of as many bins. Intervals are those of
    Clopper and Pearson (1934), which hold for any number of independent entries; entries of one image are not
    independent, so that those of `micro` are too narrow.

    Args:
        scores: (N, L) in [0, 1]: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        bins: How many, 1 or more.
        binning: `equal_width`; or `adaptive`: bins of as nearly equal counts as ties allow, pooled ones of more than
            a million scores after evenly spaced ones of them; bins that ties leave empty have no width.
        average: `micro`: all entries together; None: each label.
        level: Of the interval, above 0 and below 1.

    Raises:
        ValueError: scores out of range, shapes that differ, or an unknown binning or average.

    References:
        DeGroot and Fienberg (1983), "The comparison and evaluation of forecasters". Nguyen and O'Connor (2015),
        "Posterior calibration and exploratory analysis for natural language processing models" (adaptive bins).

    Example:
        >>> found = reliability([[0.1], [0.2], [0.8], [0.9]], [[0], [1], [1], [1]], bins=2)
        >>> found.counts, found.mean_score.round(2), found.share
        (array([[2, 2]]), array([[0.15, 0.85]]), array([[0.5, 1. ]]))
    """
    resolve(binning, BINNINGS, "binning")
    if average is not None:
        resolve(average, {"micro": None}, "average")
    check_between(bins, 1, 2**20, "bins")
    check_between(level, 1e-9, 1 - 1e-9, "level")
    checked = check_probabilities(scores, targets, mask)
    counted = _pooled if average == "micro" else _of_labels
    edges, counts, sums, positives = counted(checked, bins, binning)
    with np.errstate(invalid="ignore"):
        mean, share = sums / np.where(counts, counts, np.nan), positives / np.where(counts, counts, np.nan)
    tail = (1 - level) / 2
    negatives = counts - positives
    low = np.where(positives > 0, betaincinv(np.maximum(positives, 1), negatives + 1, tail), 0.0)
    high = np.where(negatives > 0, betaincinv(positives + 1, np.maximum(negatives, 1), 1 - tail), 1.0)
    empty = counts == 0
    return Reliability(edges, counts, mean, share, np.where(empty, np.nan, low), np.where(empty, np.nan, high))


# Edges (S, B + 1), and in each bin (S, B) the known scores, their sum, and the positives.
Binned = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _pooled(checked: Checked, bins: int, binning: str) -> Binned:
    scores, targets, unknown = checked
    edges = _equal_edges(bins)
    if binning == "adaptive":
        rows = np.arange(0, len(scores), max(1, -(-scores.size // _MOST_FOR_EDGES)))
        known = np.ones((len(rows), scores.shape[1]), dtype=bool)
        if unknown is not None:
            known[rows_of(unknown[rows])] = False
        edges = _adaptive_edges(np.sort(scores[rows][known]), bins)
    cells = _cells_of(edges, binning)
    counts, sums = np.zeros(bins, dtype=np.int64), np.zeros(bins)
    for start, stop in blocks(len(scores), block_size(scores.shape[1] * 32, most=2**16)):
        block = scores[start:stop].astype(np.float64)
        places, held = cells(block), block
        if unknown is not None:
            known = np.ones(block.shape, dtype=bool)
            known[rows_of(unknown, start, stop)] = False
            places, held = places[known], block[known]
        counts += np.bincount(places.ravel(), minlength=bins)
        sums += np.bincount(places.ravel(), weights=held.ravel(), minlength=bins)
    present = scores[rows_of(known_positives(targets, unknown))].astype(np.float64)
    positives = np.bincount(cells(present), minlength=bins)
    return edges[None], counts[None], sums[None], positives[None]


def _of_labels(checked: Checked, bins: int, binning: str) -> Binned:
    scores, targets, unknown = checked
    num_labels = scores.shape[1]
    edges = np.tile(_equal_edges(bins), (num_labels, 1))
    counts, positives = np.zeros((2, num_labels, bins), dtype=np.int64)
    sums = np.zeros((num_labels, bins))
    present = known_positives(targets, unknown).T.tocsr()
    missing = None if unknown is None else unknown.T.tocsr()
    for start, stop in blocks(num_labels, block_size(len(scores) * 16, most=64)):
        for label, row in enumerate(_gather_columns(scores, start, stop), start=start):
            held = row.astype(np.float64)
            truth = np.zeros(len(held), dtype=bool)
            truth[present.indices[present.indptr[label] : present.indptr[label + 1]]] = True
            if missing is not None:
                known = np.ones(len(held), dtype=bool)
                known[missing.indices[missing.indptr[label] : missing.indptr[label + 1]]] = False
                held, truth = held[known], truth[known]
            if binning == "adaptive":
                edges[label] = _adaptive_edges(np.sort(held), bins)
            places = _cells_of(edges[label], binning)(held)
            counts[label] = np.bincount(places, minlength=bins)
            sums[label] = np.bincount(places, weights=held, minlength=bins)
            positives[label] = np.bincount(places[truth], minlength=bins)
    return edges, counts, sums, positives


def _equal_edges(bins: int) -> np.ndarray:
    return np.arange(bins + 1) / bins


def _adaptive_edges(ordered: np.ndarray, bins: int) -> np.ndarray:
    """Return edges (B + 1,) at the scores that begin each B-th of `ordered`."""
    if not len(ordered):
        return _equal_edges(bins)
    begins = np.minimum(-(-np.arange(1, bins) * len(ordered) // bins), len(ordered) - 1)
    return np.concatenate([[0.0], ordered[begins].astype(np.float64), [1.0]])


def _cells_of(edges: np.ndarray, binning: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the bin of scores, as the calibration error has it where widths are equal."""
    bins = len(edges) - 1
    if binning == "equal_width":
        return lambda held: np.minimum((held * bins).astype(np.intp), bins - 1)
    return lambda held: np.searchsorted(edges[1:-1], held, "right")
