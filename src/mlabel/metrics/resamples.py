"""Resamples: how often each sample is drawn, the sums that this weighs, and what the spread of the results says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import to_numpy
from mlabel.metrics._blocks import blocks

# Resamples that are worked on at once: a sample's weights fill a few cache lines.
_TOGETHER = 128


def draw_resamples(num_samples: int, resamples: int = 1000, *, groups: Any = None, seed: int = 0) -> np.ndarray:
    """Return how often each sample is in each resample, uint8 (resamples, N).

    A resample has as many draws as there are samples, with replacement (Efron, 1979). Where samples belong together,
    such as images of one person, groups are drawn instead, each with all its samples (the cluster bootstrap; Davison
    and Hinkley, 1997); where each sample is a group of its own, that is the same resamples.

    Args:
        num_samples: N.
        resamples: How many; a smaller number gives the first ones of a larger.
        groups: What each sample belongs to, (N,): integers or texts. None: each stands alone.
        seed: Of the draws.

    Raises:
        ValueError: no samples, no resamples, or groups of another shape.

    Example:
        >>> draw_resamples(4, 3, groups=["a", "a", "b", "b"])
        array([[0, 0, 2, 2],
               [1, 1, 1, 1],
               [2, 2, 0, 0]], dtype=uint8)
    """
    if num_samples < 1 or resamples < 1:
        raise ValueError(f"at least one sample and one resample are needed; got {num_samples} and {resamples}")
    member = _first_seen(groups, num_samples)
    num_groups = num_samples if member is None else int(member.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, num_samples), dtype=np.uint8)
    for row in range(resamples):
        # A byte is room enough: that one group is drawn 256 times has a chance below 1e-500.
        counts = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups).astype(np.uint8)
        drawn[row] = counts if member is None else counts[member]
    return drawn


def _first_seen(groups: Any, num_samples: int) -> np.ndarray | None:
    """Return the group of each sample as a number (N,), in the order in which groups are first seen."""
    if groups is None:
        return None
    held = to_numpy(groups)
    if held.shape != (num_samples,):
        raise ValueError(f"groups must be of shape ({num_samples},); got {held.shape}")
    _, first, member = np.unique(held, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[member]


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of N samples in 1 + R resamples, of which number 0 is all samples once.

    Attributes:
        parts: Arrays (N, b) of unsigned integers, b of the resamples each.
    """

    parts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, drawn: np.ndarray) -> Weights:
        """Return the weights of what `draw_resamples` gave, (R, N)."""
        parts = []
        for start, stop in blocks(1 + len(drawn), _TOGETHER):
            part = np.ones((drawn.shape[1], stop - start), dtype=drawn.dtype)
            first = max(start, 1)  # before it stands the one of all samples
            part[:, first - start :] = drawn[first - 1 : stop - 1].T
            parts.append(part)
        return cls(tuple(parts))

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self.parts)

    @cached_property
    def totals(self) -> np.ndarray:
        """(1 + R,) the samples of each resample."""
        return np.concatenate([part.sum(axis=0, dtype=np.int64) for part in self.parts])

    @cached_property
    def kind(self) -> np.dtype:
        """The smallest type that holds any sum of weights: less memory to go through is less time."""
        return np.dtype(
            np.uint16 if self.totals.max() < 2**16 else np.uint32 if self.totals.max() < 2**32 else np.uint64
        )

    def counts_of(self, matrix: sp.csr_array) -> np.ndarray:
        """Return (S, 1 + R) int64: for rows of places (S, N), the weights of their samples together."""
        ones = matrix.astype(self.kind)
        return np.concatenate([(ones @ part.astype(self.kind)).astype(np.int64) for part in self.parts], axis=1)

    def sums_of(self, values: np.ndarray) -> np.ndarray:
        """Return (S, 1 + R) float64: of `values` (S, N), the sums over samples times their weights."""
        held = values.astype(np.float64, copy=False)
        return np.concatenate([held @ part.astype(np.float64) for part in self.parts], axis=1)

    def means_of(self, values: np.ndarray) -> np.ndarray:
        """Return (1 + R,): the weighted means of `values` (N,) over what is not NaN; NaN of nothing."""
        held = ~np.isnan(values)
        sums = self.sums_of(np.stack([np.where(held, values, 0.0), held]))
        return sums[0] / np.where(sums[1] > 0, sums[1], np.nan)


def spread(values: np.ndarray, level: float) -> np.ndarray:
    """Return (3, ...) the value, and the ends of its percentile interval (Efron, 1979).

    Args:
        values: (..., 1 + R); number 0 of all samples, the others of resamples. Those that are NaN are left out.
        level: Share of the resamples between the ends, half of the others on each side.
    """
    low, high = _quantiles(np.sort(values[..., 1:], axis=-1), ((1 - level) / 2, (1 + level) / 2))
    return np.stack([values[..., 0], low, high])


def _quantiles(ordered: np.ndarray, shares: tuple[float, ...]) -> list[np.ndarray]:
    """Return quantiles of ascending values (..., R), between neighbours by a straight line; NaN stand at their end."""
    last = np.maximum(np.count_nonzero(~np.isnan(ordered), axis=-1) - 1, 0)
    found = []
    for share in shares:
        place = last * share
        below = np.floor(place).astype(np.int64)
        low = np.take_along_axis(ordered, below[..., None], axis=-1)[..., 0]
        high = np.take_along_axis(ordered, np.minimum(below + 1, last)[..., None], axis=-1)[..., 0]
        found.append(low + (high - low) * (place - below))
    return found


def two_sided(differences: np.ndarray) -> np.ndarray:
    """Return (...) the p-value of a difference of 0: twice the share of resamples on the rarer side of it.

    The difference of all samples itself is counted among them, so that it is never 0 (Davison and Hinkley, 1997);
    at least 2 / (1 + R), at most 1, and NaN where no resample has a value.

    Args:
        differences: (..., 1 + R), as in `spread`.
    """
    held = differences[..., 1:]
    known = np.count_nonzero(~np.isnan(held), axis=-1)
    rarer = np.minimum(np.count_nonzero(held <= 0, axis=-1), np.count_nonzero(held >= 0, axis=-1))
    return np.where(known > 0, np.minimum(2 * (rarer + 1) / (known + 1), 1.0), np.nan)
