"""What a split solves: units to be shared out over parts, and how far a solution is from the wanted shares.

The distance is Pearson's chi-squared,

    J = sum over labels l and parts p of (count[l, p] - wanted[l, p])^2 / wanted[l, p],

and a price for each part that lacks a label which could be in every part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

EMPTY_PRICE = 8.0  # the price of a place without a unit: one count too few or too many costs a rare label about 1


@dataclass(frozen=True)
class Problem:
    """What the search works on: U units (samples, or groups of samples), C columns (labels), k parts."""

    held: sp.csr_array  # float64 (U, C): how many positives of each column a unit holds
    wanted: np.ndarray  # float64 (C, k)
    weight: np.ndarray  # float64 (C, k)
    guarded: np.ndarray  # bool (C,): columns with enough units to be in every part
    unit_sizes: np.ndarray  # int64 (U,), ascending
    part_sizes: np.ndarray  # int64 (k,)

    @property
    def num_units(self) -> int:
        return len(self.unit_sizes)

    @property
    def num_parts(self) -> int:
        return len(self.part_sizes)

    def count(self, parts: np.ndarray) -> np.ndarray:
        """Return the positives of each column in each part, float64 (C, k)."""
        return self.held.T @ np.eye(self.num_parts)[parts]

    def distance(self, counts: np.ndarray) -> float:
        """Return J of the module's first lines, and a price for each empty place."""
        return float((self.weight * (counts - self.wanted) ** 2).sum()) + EMPTY_PRICE * int(self.missing(counts).sum())

    def change(self, counts: np.ndarray, moved: np.ndarray) -> float:
        """Return by how much `distance` grows from `counts` to `counts + moved`, where that opens no place."""
        filled = self.missing(counts) & (moved > 0.5)
        grown = (self.weight * moved * (2 * (counts - self.wanted) + moved)).sum()
        return float(grown) - EMPTY_PRICE * int(filled.sum())

    def missing(self, counts: np.ndarray) -> np.ndarray:
        """Return where a column that could be in every part is not, bool (C, k)."""
        return (counts < 0.5) & self.guarded[:, None]


def pose(present: sp.csr_array, sizes: np.ndarray, unit_of: np.ndarray) -> Problem:
    """Return the problem over units; unit_of (N,) names the unit of each sample, units ordered by size."""
    held, unit_sizes = _with_common_columns(present), np.bincount(unit_of)
    order = np.argsort(unit_of, kind="stable")
    if len(unit_sizes) == len(unit_of):
        held = held[order]
    else:
        starts = np.concatenate([[0], np.cumsum(unit_sizes)])
        gather = sp.csr_array((np.ones(len(order)), order, starts), shape=(len(unit_sizes), len(order)))
        held = sp.csr_array(gather @ held)
    total = np.bincount(held.indices, weights=held.data, minlength=held.shape[1])
    units = np.bincount(held.indices, minlength=held.shape[1])
    guarded = units >= len(sizes)
    wanted, weight = _shares(total, guarded, sizes)
    guarded[-2:] = False  # the common columns are no labels, and must not stand in the way of one
    return Problem(held, wanted, weight, guarded, unit_sizes, sizes)


def _with_common_columns(present: sp.csr_array) -> sp.csr_array:
    """Return the positives as float64 with two columns more: labels of a single sample, and rows without labels.

    A label with one positive cannot be balanced alone, and its chi-squared would always prefer the largest part.
    Together such labels can be.
    """
    num_samples, num_labels = present.shape
    shape = (num_samples, num_labels + 2)
    single = np.bincount(present.indices, minlength=num_labels) == 1
    empty = np.flatnonzero(np.diff(present.indptr) == 0)
    indices = present.indices
    if single.any():
        indices = np.where(single[indices], num_labels, indices).astype(indices.dtype)
    # The row bounds are copied because merging the pooled entries of a row moves them in place.
    held = sp.csr_array((np.ones(len(indices)), indices, present.indptr.copy()), shape=shape)
    if single.any():
        held.sum_duplicates()
    if len(empty):
        marks = (np.ones(len(empty)), (empty, np.full(len(empty), num_labels + 1)))
        held = sp.csr_array(held + sp.csr_array(marks, shape=shape))
    return held


def _shares(total: np.ndarray, guarded: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the wanted counts and the weights of the columns in the parts, float64 (C, k) each.

    Wanted is the part's share, but at least 1 where the column can be in every part: what lacks to 1 is taken from
    the other parts in proportion. The weight is 1 / share, where the share is counted over the rarer of presence
    and absence, and shares below 1 count as 1: otherwise labels with few positives would drift to the largest part.
    """
    fraction = sizes / sizes.sum()
    wanted = np.outer(total, fraction)
    low = (wanted < 1) & guarded[:, None]
    rest = np.where(low, 0, wanted).sum(axis=1)
    scale = (total - low.sum(axis=1)) / np.maximum(rest, 1e-300)
    raised = np.where(low, 1, wanted * np.where(low.any(axis=1), scale, 1)[:, None])
    rarer = np.minimum(total, sizes.sum() - total)
    return raised, 1 / np.maximum(np.outer(rarer, fraction), 1)
