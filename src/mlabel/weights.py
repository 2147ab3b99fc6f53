"""Weights of labels from how often they occur, for losses that would otherwise forget the rare ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from mlabel._checks import as_csr, as_unknown, check_positive, resolve, to_numpy
from mlabel.labels import LabelSpace


def count_labels(targets: Any, unknown: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each label is present, and for how many samples it is known.

    Nothing dense of shape (N, L) is made from sparse input.

    Args:
        targets: (N, L), SciPy sparse, NumPy or torch: 0 or 1, or, of a floating dtype, in [0, 1].
        unknown: What is not known: SciPy sparse bool (True = unknown), dense bool (True = known), or None. What is
            both present and unknown counts as unknown.

    Returns:
        Positives (L,), int64, or float64 for targets of a floating dtype (their sums); and known samples (L,), int64.

    Raises:
        ValueError: targets outside [0, 1], or an `unknown` of another shape.

    Example:
        >>> count_labels(np.array([[1, 0], [1, 1], [0, 0]]))
        (array([2, 1]), array([3, 3]))
    """
    soft = _is_floating(targets)
    matrix = as_csr(targets, soft=soft)
    missing = as_unknown(unknown, matrix.shape)
    known = np.full(matrix.shape[1], matrix.shape[0], dtype=np.int64)
    if missing is not None:
        known -= np.bincount(missing.indices, minlength=matrix.shape[1])
        matrix = sp.csr_array(matrix - matrix.multiply(missing))
    counts = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])
    return (counts if soft else counts.astype(np.int64)), known


def prior(counts: Any, known: Any) -> np.ndarray:
    """Return the share of positives among the known samples of each label, float64 (L,); NaN where none is known.

    Args:
        counts: Positives (L,), as `count_labels` gives them.
        known: Known samples: (L,), or one number.

    Raises:
        ValueError: negative counts, or more positives than known samples.

    Example:
        >>> prior([2, 1], 4)
        array([0.5 , 0.25])
    """
    counts, known = _check_counts(counts, known)
    return np.divide(counts, known, out=np.full(len(counts), np.nan), where=known > 0)


def class_weights(
    counts: Any,
    num_samples: Any,
    *,
    scheme: str = "effective_number",
    cap: float = 100.0,
    space: LabelSpace | None = None,
    beta: float = 0.999,
) -> np.ndarray:
    """Return a weight for each label: the rarer it is, the more it counts.

    With c positives among n known samples the weight is

    - `inverse_frequency`: n / c;
    - `effective_number`: 1 / (1 - beta^c), the inverse of the effective number of samples;
    - `neg_pos`: (n - c) / c, which lets positives and negatives weigh the same; it is a `pos_weight`.

    The first two are 1 for a label that holds always, so `cap` bounds how much more a rare label counts than that one.
    Weights are capped, and then, except for `neg_pos`, divided by the mean of their group, so that the loss keeps its
    size. A label without positives gets the weight of one with a single positive and does not enter the mean; a label
    of which nothing is known gets 1.

    Args:
        counts: Positives (L,), as `count_labels` gives them.
        num_samples: Known samples: one number, or (L,).
        scheme: "inverse_frequency", "effective_number" or "neg_pos".
        cap: The largest weight before the division by the mean.
        space: The groups whose weights get mean 1 each. None: all labels are one group.
        beta: The effective number's parameter, in [0, 1): 0 weighs all labels the same.

    Returns:
        Weights (L,), float64.

    Raises:
        ValueError: an unknown scheme, counts that are negative or above the known samples, another number of labels
            than the space has, or cap or beta out of range.

    Example:
        >>> class_weights([50, 25, 1], 100, scheme="inverse_frequency", cap=10.0)
        array([0.375, 0.75 , 1.875])

    Reference: Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    formula = resolve(scheme, _FORMULAS, "scheme")
    check_positive(cap, "cap")
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must be at least 0 and below 1; got {beta!r}")
    counts, known = _check_counts(counts, num_samples)
    if space is not None and len(counts) != space.num_labels:
        raise ValueError(f"counts are of {len(counts)} labels, but the space has {space.num_labels}")
    raw = formula(np.where(counts > 0, counts, 1.0), known, beta)
    weights = np.where(known > 0, np.minimum(raw, cap), 1.0)
    if scheme != "neg_pos":
        for span in [slice(None)] if space is None else space.slices.values():
            weights[span] = _mean_one(weights[span], counts[span] > 0)
    return weights


def _inverse_frequency(counts: np.ndarray, known: np.ndarray, beta: float) -> np.ndarray:
    return known / counts


def _neg_pos(counts: np.ndarray, known: np.ndarray, beta: float) -> np.ndarray:
    return (known - counts) / counts


def _effective_number(counts: np.ndarray, known: np.ndarray, beta: float) -> np.ndarray:
    # expm1 keeps the digits that 1 - beta^c loses where beta^c is near 1.
    return np.ones_like(counts) if beta == 0.0 else -1.0 / np.expm1(counts * np.log(beta))


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "effective_number": _effective_number,
    "inverse_frequency": _inverse_frequency,
    "neg_pos": _neg_pos,
}
SCHEMES: tuple[str, ...] = tuple(_FORMULAS)


def _mean_one(weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return `weights` divided by the mean over labels that occur; all 1 where none does."""
    return weights / weights[present].mean() if present.any() else np.ones_like(weights)


def _check_counts(counts: Any, known: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and known samples as float64 arrays (L,)."""
    counts = np.array(to_numpy(counts), dtype=np.float64)
    known = np.array(to_numpy(known), dtype=np.float64)
    if counts.ndim != 1 or known.shape not in ((), counts.shape):
        raise ValueError(
            f"counts must be of shape (L,), and samples a number or (L,); got {counts.shape} and {known.shape}"
        )
    known = np.broadcast_to(known, counts.shape)
    wrong = np.flatnonzero(~((counts >= 0) & (counts <= known) & np.isfinite(known)))
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"counts must be between 0 and the number of known samples; label {place} has {counts[place]:g} "
            f"of {known[place]:g}"
        )
    return counts, known


def _is_floating(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return values.is_floating_point()
    dtype = values.dtype if sp.issparse(values) else np.asarray(values).dtype
    return bool(dtype.kind == "f")
