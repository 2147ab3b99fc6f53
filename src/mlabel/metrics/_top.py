"""What stands among the k highest scores of a sample: statistics of `Ranks` whose segments are samples.

Where equal scores are cut at k, each has the same share, the mean over all orders of them (McSherry and Najork, 2008).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from mlabel.metrics._ranks import Ranks, Statistic, divide_or_nan

# Numbers of labels for which `evaluate` knows the metrics by name.
SIZES = (1, 3, 5, 10)


def precision_at_of(ranks: Ranks, k: int) -> np.ndarray:
    """Return (S,) how much of the k highest scores (of all, where fewer are known) are positives'."""
    return divide_or_nan(ranks.sums(_shares(ranks, k, np.ones(k))), np.minimum(ranks.known, k))


def recall_at_of(ranks: Ranks, k: int) -> np.ndarray:
    """Return (S,) how much of the positives are among the k highest scores; NaN without positives."""
    return divide_or_nan(ranks.sums(_shares(ranks, k, np.ones(k))), ranks.num_positives)


def ndcg_at_of(ranks: Ranks, k: int) -> np.ndarray:
    """Return (S,) the discounted gain of the k highest scores divided by the highest possible; NaN without."""
    discounts = log_discounts(k)
    best = np.append(0.0, np.cumsum(discounts))[np.minimum(ranks.num_positives, k)]
    return divide_or_nan(ranks.sums(_shares(ranks, k, discounts)), best)


def one_error_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) whether the highest score is no positive's."""
    return 1 - precision_at_of(ranks, 1)


def weighted_gain_of(ranks: Ranks, weights: np.ndarray, discounts: np.ndarray) -> np.ndarray:
    """Return (S,) the sum of the positives' `weights` (L,), each times the discount (k,) of its place, 0 beyond."""
    if ranks.places is None:
        raise AssertionError("weights need to know which label each positive is")
    return ranks.sums(_shares(ranks, len(discounts), discounts) * weights[ranks.places])


def best_weighted_gain_of(ranks: Ranks, weights: np.ndarray, discounts: np.ndarray) -> np.ndarray:
    """Return (S,) what `weighted_gain_of` is with the highest weights first."""
    if ranks.places is None:
        raise AssertionError("weights need to know which label each positive is")
    segment = np.repeat(np.arange(len(ranks.known)), ranks.num_positives)
    held = weights[ranks.places]
    order = np.lexsort((-held, segment))
    place = np.arange(len(held)) - ranks.starts[segment]
    padded = np.append(discounts, 0.0)
    return ranks.sums(held[order] * padded[np.minimum(place, len(discounts))])


def log_discounts(k: int) -> np.ndarray:
    """Return 1 / log2(1 + place) for the places 1 to k (Järvelin and Kekäläinen, 2002)."""
    return 1 / np.log2(np.arange(2, k + 2))


def _shares(ranks: Ranks, k: int, discounts: np.ndarray) -> np.ndarray:
    """Return (P,) the mean of `discounts` (k,) over the places that a positive shares with its equals, 0 beyond k."""
    until = np.append(0.0, np.cumsum(discounts))
    above, ties = ranks.above, ranks.ties
    return (until[np.minimum(above + ties, k)] - until[np.minimum(above, k)]) / ties


# What `evaluate` knows of the highest scores of a sample by name, and what a sample without positives has.
TOP_STATISTICS: dict[str, tuple[Statistic, float]] = {
    "one_error": (one_error_of, 1.0),
    **{f"precision_at_{k}": (partial(precision_at_of, k=k), 0.0) for k in SIZES},
    **{f"recall_at_{k}": (partial(recall_at_of, k=k), 0.0) for k in SIZES},
    **{f"ndcg_at_{k}": (partial(ndcg_at_of, k=k), 0.0) for k in SIZES},
}
