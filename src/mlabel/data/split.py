"""Stratified parts: every label gets its share in every part, sizes are exact, groups stay together.

The way, for N samples and k parts: draw parts of the exact sizes at random, then exchange samples between parts as
long as that brings the labels' counts nearer to their shares. What is solved stands in `_split_problem`, how in
`_split_search` and `_split_repair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, to_numpy
from mlabel.data._split_problem import pose
from mlabel.data._split_search import solve


def stratified_split(
    targets: Any,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    groups: Any = None,
    unknown: Any = None,
) -> np.ndarray:
    """Return the part of each sample, an int64 array (N,) with values 0 .. k-1, stratified over all labels at once.

    Part sizes are exact: N times the fraction, rounded by largest remainder. A label with k or more positives, in k or
    more groups, has one in every part, or `mlabel.data.report_split` names it and says why. Rows without labels are
    spread like a label of their own. The same arguments give the same parts on every machine.

    With `fractions=(1/k,) * k` the parts are the k folds of a cross-validation.

    Args:
        targets: Binary (N, L): SciPy sparse, NumPy or torch. Sparse ones are never made dense.
        fractions: The share of each part, k positive numbers with sum 1.
        seed: Chooses among equally good splits.
        groups: Ids (N,) of any type that sorts. Samples with equal ids stay in one part; sizes are then as near
            to the exact ones as greedy exchange finds, and most swaps are between groups of equal size. None: every
            sample is free.
        unknown: SciPy sparse bool (N, L), True = unknown; such entries count neither as present nor as absent.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, a part that would be empty, or shapes that
            do not fit.
        TypeError: a dense `unknown`, or ids that do not sort.

    Example:
        >>> targets = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
        >>> part = stratified_split(targets, (0.5, 0.5))
        >>> [targets[part == p].sum(axis=0).tolist() for p in (0, 1)]
        [[2, 1], [2, 1]]
        >>> fold = stratified_split(targets, (1 / 3,) * 3)
        >>> for f in range(3):
        ...     train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        >>> len(train), len(test)
        (4, 2)

    The goal is that of K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of multi-label data" (2011);
    the algorithm is another one.
    """
    present = known_positives(as_csr(targets), unknown)
    sizes = part_sizes(present.shape[0], fractions)
    rng = np.random.default_rng(seed)
    unit_of = _number_units(groups, present.shape[0], rng)
    problem = pose(present, sizes, unit_of)
    parts = solve(problem, rng)
    _refuse_empty(parts, len(sizes))
    return parts[unit_of]


def random_split(num_samples: int, fractions: Sequence[float], *, seed: int = 0, groups: Any = None) -> np.ndarray:
    """Return the part of each sample, an int64 array (N,) with values 0 .. k-1, drawn by chance alone.

    Args:
        num_samples: N.
        fractions: The share of each part, k positive numbers with sum 1. Without groups the sizes are exact.
        seed: Equal seeds give equal parts.
        groups: Ids (N,) of any type that sorts; samples with equal ids stay in one part. None: each is free.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, a part that would be empty, or not one id a
            sample.
        TypeError: ids that do not sort.

    Example:
        >>> np.bincount(random_split(10, (0.5, 0.3, 0.2)))
        array([5, 3, 2])
    """
    sizes = part_sizes(num_samples, fractions)
    rng = np.random.default_rng(seed)
    unit_of = _number_units(groups, num_samples, rng)
    order = rng.permutation(int(unit_of.max()) + 1)
    amounts = np.bincount(unit_of)[order]
    # A group is in the part in which its middle lies, when all stand in a row.
    middles = np.cumsum(amounts) - amounts / 2
    parts = np.empty(len(order), dtype=np.int64)
    parts[order] = np.searchsorted(np.cumsum(sizes), middles, side="left")
    _refuse_empty(parts, len(sizes))
    return parts[unit_of]


def part_sizes(num_samples: int, fractions: Sequence[float]) -> np.ndarray:
    """Return how many of `num_samples` each part gets, an int64 array (k,), rounded by largest remainder.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, or a part that would be empty.

    Example:
        >>> part_sizes(10, (0.64, 0.16, 0.20))
        array([6, 2, 2])
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ValueError(f"fractions must be positive numbers, one a part; got {fractions!r}")
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1; got {fractions!r} with sum {shares.sum():.6g}")
    exact = num_samples * shares / shares.sum()
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    # Rounded, so that remainders that are equal but for rounding are taken in the order of the parts.
    remainder = np.round(exact - sizes, 9)
    sizes[np.argsort(-remainder, kind="stable")[: num_samples - sizes.sum()]] += 1
    if not sizes.all():
        part = int(np.flatnonzero(sizes == 0)[0])
        raise ValueError(
            f"part {part} (fraction {shares[part]:g}) of {num_samples} samples would be empty; "
            "give more samples, fewer parts or a larger fraction"
        )
    return sizes


def known_positives(present: sp.csr_array, unknown: Any) -> sp.csr_array:
    """Return the positives of a CSR matrix (N, L) that are not unknown."""
    if unknown is None:
        return present
    if not sp.issparse(unknown):
        raise TypeError(
            f"unknown must be a SciPy sparse bool matrix, True = unknown; got {type(unknown).__name__}; "
            "for a dense mask with True = known give scipy.sparse.csr_array(~mask)"
        )
    hidden = as_unknown(unknown, present.shape)
    if hidden is None:
        return present
    present = sp.csr_array(present - present.multiply(hidden))
    present.eliminate_zeros()
    return present


def _number_units(groups: Any, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the unit of each sample, int64 (N,): one a group, or one a sample; by size, at random within a size.

    Neighbouring units then form random blocks of one size, and no later step has to shuffle the matrix again.
    """
    if groups is None:
        return rng.permutation(num_samples)
    group_of = group_codes(groups, num_samples)
    sizes = np.bincount(group_of)
    shuffled = rng.permutation(len(sizes))
    number = np.empty(len(sizes), dtype=np.int64)
    number[shuffled[np.argsort(sizes[shuffled], kind="stable")]] = np.arange(len(sizes))
    return number[group_of]


def group_codes(groups: Any, num_samples: int) -> np.ndarray:
    """Return for each sample the number of its group, int64 (N,), in the order of the ids.

    Raises:
        ValueError: another shape than (N,).
        TypeError: ids that do not sort.
    """
    ids = to_numpy(groups)
    if ids.shape != (num_samples,):
        raise ValueError(f"groups must hold one id a sample, of shape ({num_samples},); got {ids.shape}")
    try:
        return np.unique(ids, return_inverse=True)[1]
    except TypeError as error:
        raise TypeError(f"group ids must be of one type that sorts, such as all int or all str: {error}") from None


def _refuse_empty(parts: np.ndarray, num_parts: int) -> None:
    missing = np.flatnonzero(np.bincount(parts, minlength=num_parts) == 0)
    if len(missing):
        raise ValueError(
            f"part {missing[0]} would be empty: the groups are too few or too large for {num_parts} parts; "
            "give finer groups, fewer parts or a larger fraction"
        )
