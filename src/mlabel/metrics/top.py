"""Metrics of the k highest scores of a sample: one-error, precision, recall and nDCG at k, and their propensity-scored
forms.

Means over the samples of which something is known. Unknown labels are as if they were not there, and where fewer than k
are known all of them are taken. Equal scores that are cut at k each have the same share of the places left, so that no
result depends on the order of labels. A sample without labels has precision, recall and nDCG 0, and one-error 1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from mlabel._checks import check_counts, check_positive
from mlabel.metrics._ranks import row_statistics
from mlabel.metrics._top import (
    best_weighted_gain_of,
    log_discounts,
    ndcg_at_of,
    one_error_of,
    precision_at_of,
    recall_at_of,
    weighted_gain_of,
)
from mlabel.metrics.ranking import check_inputs, row_means


def one_error(scores: Any, targets: Any, mask: Any = None) -> float:
    """Return the share of samples whose highest score is that of a label they have not (Schapire and Singer, 2000).

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        ValueError: scores that are not finite, or shapes that differ.

    Example:
        >>> one_error([[0.9, 0.1], [0.2, 0.2]], [[1, 0], [0, 1]])  # the second is half right
        0.25
    """
    return row_means(check_inputs(scores, targets, mask), {"value": (one_error_of, 1.0)}, ties=True)["value"]


def precision_at_k(scores: Any, targets: Any, mask: Any = None, *, k: int) -> float:
    """Return how much of the k highest scores of a sample are those of its labels.

    Reference: Manning, Raghavan and Schütze (2008).

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        k: How many labels a sample is given, 1 or more.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or k below 1.

    Example:
        >>> precision_at_k([[0.9, 0.5, 0.1], [0.1, 0.2, 0.3]], [[1, 1, 0], [1, 0, 0]], k=2)
        0.5
    """
    statistic = partial(precision_at_of, k=_check_k(k))
    return row_means(check_inputs(scores, targets, mask), {"value": (statistic, 0.0)}, ties=True)["value"]


def recall_at_k(scores: Any, targets: Any, mask: Any = None, *, k: int) -> float:
    """Return how much of a sample's labels are among its k highest scores (Manning, Raghavan and Schütze, 2008).

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        k: How many labels a sample is given, 1 or more.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or k below 1.

    Example:
        >>> recall_at_k([[0.9, 0.5, 0.1], [0.1, 0.2, 0.3]], [[1, 1, 0], [0, 0, 1]], k=1)
        0.75
    """
    statistic = partial(recall_at_of, k=_check_k(k))
    return row_means(check_inputs(scores, targets, mask), {"value": (statistic, 0.0)}, ties=True)["value"]


def ndcg_at_k(scores: Any, targets: Any, mask: Any = None, *, k: int) -> float:
    """Return the gain of a sample's k highest scores, 1 / log2(1 + place) for each label it has, over the best one.

     Reference: Järvelin and Kekäläinen (2002); for ties McSherry and Najork (2008).

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        k: How many labels a sample is given, 1 or more.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or k below 1.

    Example:
        >>> round(ndcg_at_k([[0.9, 0.5, 0.1]], [[0, 1, 0]], k=2), 4)
        0.6309
    """
    statistic = partial(ndcg_at_of, k=_check_k(k))
    return row_means(check_inputs(scores, targets, mask), {"value": (statistic, 0.0)}, ties=True)["value"]


def propensities(counts: Any, num_samples: int, *, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """Return how likely a label that holds is to have been given, from how often it was, float64 (L,).

    1 / (1 + C exp(-a log(counts + b))) with C = (log(num_samples) - 1) (b + 1)^a (Jain, Prabhu and Varma, 2016): rare
    labels are missed more often.

    Args:
        counts: Positives of each label in the training samples, (L,).
        num_samples: How many training samples there are, 3 or more (so that C is above 0).
        a: Theirs is 0.55; 0.5 for Wikipedia, 0.6 for Amazon.
        b: Theirs is 1.5; 0.4 for Wikipedia, 2.6 for Amazon.

    Raises:
        ValueError: counts below 0 or above the samples, fewer than 3 samples, or a or b not above 0.

    Example:
        >>> propensities([1, 100, 10_000], 100_000).round(3)
        array([0.087, 0.422, 0.901])
    """
    if num_samples < 3:
        raise ValueError(f"num_samples must be 3 or more; got {num_samples}")
    check_positive(a, "a")
    check_positive(b, "b")
    counts, _ = check_counts(counts, num_samples)
    scale = (math.log(num_samples) - 1) * (b + 1) ** a
    return 1 / (1 + scale * (counts + b) ** -a)


def propensity_scored_precision_at_k(
    scores: Any, targets: Any, mask: Any = None, *, propensities: Any, k: int
) -> float:
    """Return precision at k in which a label counts 1 / propensity, over the highest that any scores could have.

    An unbiased estimate of what precision at k would be had no label been missed, brought to [0, 1]: the sum over
    samples of the weights of their labels among the k highest scores, divided by the same sum with each sample's
    heaviest labels first (Jain, Prabhu and Varma, 2016). NaN where no sample has a label.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        propensities: (L,) in (0, 1], from `propensities` of the training counts.
        k: How many labels a sample is given, 1 or more.

    Raises:
        ValueError: k below 1, or propensities of another shape or outside (0, 1], besides what `one_error` raises.

    Example:
        >>> propensity_scored_precision_at_k([[0.9, 0.5]], [[1, 1]], propensities=[1.0, 0.25], k=1)
        0.25
    """
    return _propensity_scored((scores, targets, mask), propensities, np.ones(_check_k(k)))


def propensity_scored_ndcg_at_k(scores: Any, targets: Any, mask: Any = None, *, propensities: Any, k: int) -> float:
    """Return the discounted gain at k in which a label counts 1 / propensity, over the highest that is possible.

    As `propensity_scored_precision_at_k`, with each place's share 1 / log2(1 + place) (Jain, Prabhu and Varma, 2016).
    NaN where no sample has a label.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        propensities: (L,) in (0, 1], from `propensities` of the training counts.
        k: How many labels a sample is given, 1 or more.

    Raises:
        ValueError: k below 1, or propensities of another shape or outside (0, 1], besides what `one_error` raises.

    Example:
        >>> value = propensity_scored_ndcg_at_k([[0.9, 0.5]], [[1, 1]], propensities=[1.0, 0.25], k=2)
        >>> round(value, 4)
        0.7609
    """
    return _propensity_scored((scores, targets, mask), propensities, log_discounts(_check_k(k)))


def _propensity_scored(data: tuple[Any, Any, Any], propensities: Any, discounts: np.ndarray) -> float:
    checked = check_inputs(*data)
    held = np.asarray(propensities, dtype=np.float64)
    if held.shape != checked[0].shape[1:] or not ((held > 0) & (held <= 1)).all():
        raise ValueError(
            f"propensities must be of shape {checked[0].shape[1:]} and in (0, 1]; got {held.shape}, from "
            f"{held.min(initial=np.inf)} to {held.max(initial=-np.inf)}"
        )
    found = row_statistics(
        *checked,
        statistics={
            "gain": partial(weighted_gain_of, weights=1 / held, discounts=discounts),
            "best": partial(best_weighted_gain_of, weights=1 / held, discounts=discounts),
        },
        ties=True,
    )
    best = found["best"].sum()
    return float(found["gain"].sum() / best) if best else math.nan


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a whole number, 1 or more; got {k!r}")
    return int(k)
