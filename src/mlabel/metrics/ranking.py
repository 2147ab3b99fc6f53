"""Metrics of scores, without thresholds: of labels, average precision, AUROC and points of their curves; of samples,
LRAP, coverage error, ranking loss.

Scores are any finite numbers whose order means something: logits or probabilities. Equal scores are one threshold.
Unknown entries count as if they were not there: for a label its unknown samples, for a sample its unknown labels.
A label without known positives has neither average precision nor AUROC, one without known negatives no AUROC: NaN, and
averages leave it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_scores, as_unknown, check_between, resolve
from mlabel.metrics._blocks import known_positives
from mlabel.metrics._curves import (
    FPR_RANGE,
    break_even_of,
    log_auc_of,
    precision_at_recall_of,
    recall_at_precision_of,
)
from mlabel.metrics._ranks import (
    Statistic,
    auroc_of,
    average_precision_of,
    column_statistics,
    coverage_of,
    pooled_ranks,
    ranking_loss_of,
    row_statistics,
)
from mlabel.metrics.ratios import check_zero_division, nan_mean

_AVERAGES = {"micro": None, "macro": None, "weighted": None}

Checked = tuple[np.ndarray, sp.csr_array, sp.csr_array | None]


def check_inputs(scores: Any, targets: Any, mask: Any) -> Checked:
    """Return scores (N, L), targets and unknown in the one form that the computations take."""
    scores = as_scores(scores)
    return scores, as_csr(targets, shape=scores.shape), as_unknown(mask, scores.shape)


def check_probabilities(scores: Any, targets: Any, mask: Any) -> Checked:
    """Return what `check_inputs` does, having seen that the scores are in [0, 1]."""
    checked = check_inputs(scores, targets, mask)
    refuse_outside(checked[0])
    return checked


def refuse_outside(held: np.ndarray) -> None:
    """Raise ValueError, with the count and the first place, unless all scores are in [0, 1]."""
    if held.size and not (held.min() >= 0 and held.max() <= 1):
        bad = (held < 0) | (held > 1)
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"scores must be probabilities in [0, 1]; {int(bad.sum())} entries are not, the first at row {row}, column "
            f"{column}: {held[row, column]}; make them of logits with space.probabilities"
        )


def average_precision(
    scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the average precision: the sum over thresholds of the gain in recall times the precision there.

    No interpolation (Manning, Raghavan and Schütze, 2008). With `average="macro"` it is mAP.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or an unknown average.

    Example:
        >>> average_precision([[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]], [[1, 0], [0, 0], [1, 0]], average=None).round(4)
        array([0.8333,    nan])
    """
    return _label_metric(average_precision_of, check_inputs(scores, targets, mask), average, zero_division)


def auroc(
    scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in right order, ties one half.

     The formula is that of Mann and Whitney (1947).

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives or without negatives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or an unknown average.

    Example:
        >>> auroc([[0.9], [0.8], [0.1], [0.1]], [[1], [0], [1], [0]])
        0.625
    """
    return _label_metric(auroc_of, check_inputs(scores, targets, mask), average, zero_division)


def log_auc(
    scores: Any,
    targets: Any,
    mask: Any = None,
    *,
    fpr_range: tuple[float, float] = FPR_RANGE,
    average: str | None = "macro",
    zero_division: float = math.nan,
) -> float | np.ndarray:
    """Return the mean recall over the logarithm of the false positive rate, in a range where it is small.

    The area under the ROC curve with that logarithm as its axis, divided by the width of the range; the curve is a
    straight line in the rate itself between its points (Mysinger and Shoichet, 2010). 1 at best; chance is far below
    one half.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        fpr_range: The lowest and the highest rate, above 0 and at most 1.
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives or without negatives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, an unknown average, or a range out of (0, 1].

    Example:
        >>> log_auc([[0.9], [0.8], [0.1]], [[0], [1], [0]], fpr_range=(0.25, 1.0))
        0.5
    """
    low, high = fpr_range
    if not 0 < low < high <= 1:
        raise ValueError(f"fpr_range must be two rates, 0 < low < high <= 1; got {fpr_range}")
    statistic = partial(log_auc_of, fpr_range=(low, high))
    return _label_metric(statistic, check_inputs(scores, targets, mask), average, zero_division)


def break_even(
    scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return precision at the threshold where it equals recall, the P = R point (R-precision).

    There, as many are decided positive as there are positives (Manning, Raghavan and Schütze, 2008). Of equal scores
    that are cut at that number, each has the same share.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or an unknown average.

    Example:
        >>> break_even([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]])
        0.5
    """
    return _label_metric(break_even_of, check_inputs(scores, targets, mask), average, zero_division)


def precision_at_recall(
    scores: Any,
    targets: Any,
    mask: Any = None,
    *,
    recall: float,
    average: str | None = "macro",
    zero_division: float = math.nan,
) -> float | np.ndarray:
    """Return the highest precision of any threshold whose recall is at least `recall`.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        recall: The lowest recall that will do, in [0, 1].
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, an unknown average, or a recall out of [0, 1].

    Example:
        >>> precision_at_recall([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]], recall=0.5)
        1.0
    """
    check_between(recall, 0, 1, "recall")
    statistic = partial(precision_at_recall_of, level=recall)
    return _label_metric(statistic, check_inputs(scores, targets, mask), average, zero_division)


def recall_at_precision(
    scores: Any,
    targets: Any,
    mask: Any = None,
    *,
    precision: float,
    average: str | None = "macro",
    zero_division: float = math.nan,
) -> float | np.ndarray:
    """Return the highest recall of any threshold whose precision is at least `precision`; 0 where none has.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        precision: The lowest precision that will do, in [0, 1].
        average: micro (all entries as one label), macro, weighted (by positives), or None for an array (L,).
        zero_division: What a label without positives has: nan (and is left out), 0 or 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, an unknown average, or a precision out of [0, 1].

    Example:
        >>> recall_at_precision([[0.9], [0.8], [0.7], [0.1]], [[1], [0], [1], [0]], precision=0.9)
        0.5
    """
    check_between(precision, 0, 1, "precision")
    statistic = partial(recall_at_precision_of, level=precision)
    return _label_metric(statistic, check_inputs(scores, targets, mask), average, zero_division)


def label_ranking_average_precision(scores: Any, targets: Any, mask: Any = None) -> float:
    """Return the mean over samples of the average precision of their labels (LRAP; Schapire and Singer, 2000).

    A sample without labels, or with every label, has 1. Samples of which nothing is known are left out.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        ValueError: scores that are not finite, or shapes that differ.

    Example:
        >>> label_ranking_average_precision([[0.75, 0.5, 1.0]], [[1, 0, 0]])
        0.5
    """
    return row_metrics(check_inputs(scores, targets, mask), ("lrap",))["lrap"]


def coverage_error(scores: Any, targets: Any, mask: Any = None) -> float:
    """Return how many labels, best scores first, a sample must be given until all its labels are among them.

    The mean over samples (Tsoumakas, Katakis and Vlahavas, 2010); a sample without labels has 0, and ties count against
    it.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        ValueError: scores that are not finite, or shapes that differ.

    Example:
        >>> coverage_error([[0.75, 0.5, 1.0]], [[1, 0, 0]])
        2.0
    """
    return row_metrics(check_inputs(scores, targets, mask), ("coverage_error",))["coverage_error"]


def ranking_loss(scores: Any, targets: Any, mask: Any = None) -> float:
    """Return the share of a sample's (label it has, label it has not) pairs in wrong order; a tie is wrong.

    The mean over samples (Tsoumakas, Katakis and Vlahavas, 2010); a sample without such pairs has 0.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        ValueError: scores that are not finite, or shapes that differ.

    Example:
        >>> ranking_loss([[0.75, 0.5, 1.0]], [[1, 0, 0]])
        0.5
    """
    return row_metrics(check_inputs(scores, targets, mask), ("ranking_loss",))["ranking_loss"]


# What a sample has of which the statistic is not defined, because it lacks positives (or negatives).
ROW_METRICS: dict[str, tuple[Statistic, float]] = {
    "lrap": (average_precision_of, 1.0),
    "coverage_error": (coverage_of, 0.0),
    "ranking_loss": (ranking_loss_of, 0.0),
}


def row_metrics(
    checked: Checked, names: tuple[str, ...] = tuple(ROW_METRICS), columns: np.ndarray | None = None
) -> dict[str, float]:
    """Return LRAP, coverage error and ranking loss in one pass over the rows.

    Args:
        checked: From `check_inputs`.
        names: Which of lrap, coverage_error, ranking_loss.
        columns: The columns that take part, a bool array (L,). None: all.
    """
    return row_means(checked, {name: ROW_METRICS[name] for name in names}, columns)


def row_means(
    checked: Checked,
    statistics: Mapping[str, tuple[Statistic, float]],
    columns: np.ndarray | None = None,
    *,
    ties: bool = False,
) -> dict[str, float]:
    """Return the means of `row_values` over the samples of which something is known; arguments are the same."""
    return {name: nan_mean(values) for name, values in row_values(checked, statistics, columns, ties=ties).items()}


def row_values(
    checked: Checked,
    statistics: Mapping[str, tuple[Statistic, float]],
    columns: np.ndarray | None = None,
    *,
    ties: bool = False,
) -> dict[str, np.ndarray]:
    """Return the value of each sample, arrays (N,); NaN where nothing is known of it.

    Args:
        checked: From `check_inputs`.
        statistics: Name to what is asked of the ranks, and what counts where that is not defined.
        columns: The columns that take part, a bool array (L,). None: all.
        ties: Whether a statistic needs the ties.
    """
    asked = {name: statistic for name, (statistic, _) in statistics.items()}
    found = row_statistics(*checked, statistics={**asked, "known": _known}, columns=columns, ties=ties)
    has_known = found["known"] > 0
    filled = {name: np.nan_to_num(found[name], nan=fill) for name, (_, fill) in statistics.items()}
    return {name: np.where(has_known, values, np.nan) for name, values in filled.items()}


def pooled_metric(statistic: Statistic, checked: Checked) -> float:
    """Return a statistic of all entries, taken as those of one label."""
    return float(statistic(pooled_ranks(*checked, ties=statistic is not average_precision_of))[0])


def fill_undefined(values: np.ndarray, zero_division: float) -> np.ndarray:
    """Return `values` with NaN replaced by `zero_division`."""
    return np.where(np.isnan(values), zero_division, values)


def _known(ranks: Any) -> np.ndarray:
    return ranks.known


def _label_metric(
    statistic: Statistic, checked: Checked, average: str | None, zero_division: float
) -> float | np.ndarray:
    zero_division = check_zero_division(zero_division)
    if average is not None:
        resolve(average, _AVERAGES, "average")
    if average == "micro":
        return float(fill_undefined(np.array(pooled_metric(statistic, checked)), zero_division))
    found = column_statistics(*checked, statistics={"value": statistic})["value"]
    values = fill_undefined(found, zero_division)
    if average is None:
        return values
    if average == "macro":
        return nan_mean(values)
    _, targets, unknown = checked
    support = np.bincount(known_positives(targets, unknown).indices, minlength=len(values))
    return nan_mean(values, support)
