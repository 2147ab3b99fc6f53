"""What a label's curve says besides its areas: points of it, and the area where false positives are few.

Each is a statistic of `Ranks`, as those of that module are; equal scores are one threshold.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from mlabel.metrics._ranks import Ranks, Statistic, auroc_of, average_precision_of, divide_or_nan

# Shares of false positives between which log-AUC is taken.
FPR_RANGE = (0.001, 0.1)
# Levels at which `evaluate` knows precision at recall and recall at precision by name.
LEVELS = (0.5, 0.8, 0.9, 0.95)


def precision_at_recall_of(ranks: Ranks, level: float) -> np.ndarray:
    """Return (S,) the highest precision of any threshold whose recall is at least `level`; NaN without positives."""
    precision = ranks.positives_at_or_above / ranks.at_or_above
    return ranks.highest(np.where(_recall(ranks) >= level, precision, 0.0))


def recall_at_precision_of(ranks: Ranks, level: float) -> np.ndarray:
    """Return (S,) the highest recall of any threshold whose precision is at least `level`, 0 where none has it."""
    precision = ranks.positives_at_or_above / ranks.at_or_above
    return ranks.highest(np.where(precision >= level, _recall(ranks), 0.0))


def break_even_of(ranks: Ranks) -> np.ndarray:
    """Return (S,) the precision of as many decisions as there are positives, where it is the recall; NaN without.

    Of equal scores that are cut there, each has the same share.
    """
    room = np.repeat(ranks.num_positives, ranks.num_positives) - ranks.above
    return divide_or_nan(ranks.sums(np.clip(room / ranks.ties, 0, 1)), ranks.num_positives)


def log_auc_of(ranks: Ranks, fpr_range: tuple[float, float] = FPR_RANGE) -> np.ndarray:
    """Return (S,) the mean recall over the logarithm of the share of false positives in a range; NaN without either.

    A positive adds its part to the curve from its place on; those that equal negatives do so bit by bit while the
    share f goes from f0 to f1, of which the integral of (f - f0) / (f1 - f0) over log f has a closed form.
    """
    low, high = fpr_range
    negatives = np.repeat(ranks.num_negatives, ranks.num_positives).astype(np.float64)
    negatives[negatives == 0] = np.nan
    fp = ranks.at_or_above - ranks.positives_at_or_above
    end = fp / negatives
    start = (fp - (ranks.ties - ranks.positives_equal)) / negatives
    first, last = np.clip(start, low, high), np.clip(end, low, high)
    span = np.where(end > start, end - start, 1.0)
    rising = (last - first - start * np.log(last / first)) / span
    area = ranks.sums(rising + np.log(high / last)) / np.log(high / low)
    return divide_or_nan(area, ranks.num_positives)


def _recall(ranks: Ranks) -> np.ndarray:
    return ranks.positives_at_or_above / np.repeat(ranks.num_positives, ranks.num_positives)


# What `evaluate` knows of the ranks of a label, by name.
CURVE_STATISTICS: dict[str, Statistic] = {
    "ap": average_precision_of,
    "auroc": auroc_of,
    "log_auc": log_auc_of,
    "break_even": break_even_of,
    **{f"precision_at_recall_{level}": partial(precision_at_recall_of, level=level) for level in LEVELS},
    **{f"recall_at_precision_{level}": partial(recall_at_precision_of, level=level) for level in LEVELS},
}
