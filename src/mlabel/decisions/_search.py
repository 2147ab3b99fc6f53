"""The search for the threshold of the best F-beta: only a positive's score can be one, so only those are looked at.

With the known scores of a label sorted, a positive at rank r from below with T positives at or above it, among P
positives of N, has F-beta = (1 + beta^2) T / (beta^2 P + N - r). Nothing is kept for the many negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics._ranks import Ranks, _gather_columns, _rank, pooled_ranks


@dataclass(frozen=True)
class Found:
    """The best thresholds of some segments (labels, or one pool of them).

    Attributes:
        values: (S,) float64 thresholds; NaN where a segment has no positive.
        scores: (S,) their F-beta; NaN where there is none.
        positives: (S,) known positives.
    """

    values: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


def best_of_columns(scores: np.ndarray, targets: sp.csr_array, unknown: sp.csr_array | None, beta: float) -> Found:
    """Return the best threshold of each column, in blocks of columns."""
    positives = sp.csr_array(known_positives(targets, unknown).T)
    missing = None if unknown is None else sp.csr_array(unknown.T)

    def of_block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        block = _gather_columns(scores, start, stop)
        ranks = _rank(block, positives, missing, start=start, ties=False)  # sorts the rows of the block that it needs
        quality = _f_beta(ranks, beta)
        best = _last_best(quality, ranks)
        held = np.flatnonzero(best >= 0)
        place = ranks.below[best[held]]
        values, found = np.full(len(block), np.nan), np.full(len(block), np.nan)
        found[held] = quality[best[held]]
        lower = np.where(place > 0, block[held, np.maximum(place - 1, 0)], -np.inf)
        values[held] = _between(lower, block[held, place])
        return values, found, ranks.num_positives

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    parts = list(map_blocks(of_block, blocks(scores.shape[1], size)))
    if not parts:
        return Found(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    return Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def best_pooled(scores: np.ndarray, targets: sp.csr_array, unknown: sp.csr_array | None, beta: float) -> Found:
    """Return the best threshold for all entries of the matrix together, in blocks of rows."""
    positives = known_positives(targets, unknown)
    ranks = pooled_ranks(scores, targets, unknown)
    best = int(_last_best(quality := _f_beta(ranks, beta), ranks)[0])
    if best < 0:
        return Found(np.array([np.nan]), np.array([np.nan]), ranks.num_positives)
    value = np.sort(scores[rows_of(positives)])[best]
    lower = -np.inf
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, scores.shape[1]))):
        block = np.where(scores[start:stop] < value, scores[start:stop], -np.inf)
        if unknown is not None:
            block[rows_of(unknown, start, stop)] = -np.inf
        lower = max(lower, float(block.max(initial=-np.inf)))
    return Found(_between(np.array([lower]), np.array([value])), quality[[best]], ranks.num_positives)


def _f_beta(ranks: Ranks, beta: float) -> np.ndarray:
    """Return F-beta at the score of each positive (P,)."""
    positives = np.repeat(ranks.num_positives, ranks.num_positives)
    return (1 + beta**2) * ranks.positives_at_or_above / (beta**2 * positives + ranks.at_or_above)


def _last_best(quality: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Return for each segment (S,) the last, highest positive of the best quality; -1 where there is no positive."""
    best = np.full(len(ranks.known), -1, dtype=np.int64)
    held = np.flatnonzero(ranks.num_positives)
    if len(held):
        top = np.maximum.reduceat(quality, ranks.starts[held])
        places = np.where(quality == np.repeat(top, ranks.num_positives[held]), np.arange(len(quality)), -1)
        best[held] = np.maximum.reduceat(places, ranks.starts[held])
    return best


def _between(lower: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return float64 thresholds halfway from `lower` up to `value`: at or below `value`, and above `lower`."""
    lower, value = lower.astype(np.float64), value.astype(np.float64)
    with np.errstate(over="ignore"):
        middle = lower / 2 + value / 2
    return np.where((middle > lower) & (middle <= value) & np.isfinite(middle), middle, value)
