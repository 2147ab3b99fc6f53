"""Metrics of scores, without thresholds: average precision, AUROC, LRAP, coverage error, ranking loss.

Scores are any finite numbers whose order means something: logits or probabilities. Equal scores are one threshold.
Unknown entries count as if they were not there: for a label its unknown samples, for a sample its unknown labels.
A label without known positives has neither average precision nor AUROC, one without known negatives no AUROC: NaN, and
averages leave it out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_scores, as_unknown, resolve
from mlabel.metrics._blocks import known_positives
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
    held = checked[0]
    if held.size and not (held.min() >= 0 and held.max() <= 1):
        bad = (held < 0) | (held > 1)
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"scores must be probabilities in [0, 1]; {int(bad.sum())} entries are not, the first at row {row}, column "
            f"{column}: {held[row, column]}; make them of logits with space.probabilities"
        )
    return checked


def average_precision(
    scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the average precision: the sum over thresholds of the gain in recall times the precision there.

    No interpolation. With `average="macro"` it is mAP.

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

    Arguments and errors are those of `average_precision`; `zero_division` is what a label without positives or
    without negatives has. The formula is that of Mann and Whitney (1947).

    Example:
        >>> auroc([[0.9], [0.8], [0.1], [0.1]], [[1], [0], [1], [0]])
        0.625
    """
    return _label_metric(auroc_of, check_inputs(scores, targets, mask), average, zero_division)


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

    The mean over samples (Tsoumakas, Katakis and Vlahavas, 2010); a sample without labels has 0, and ties count
    against it. Arguments and errors are those of `label_ranking_average_precision`.

    Example:
        >>> coverage_error([[0.75, 0.5, 1.0]], [[1, 0, 0]])
        2.0
    """
    return row_metrics(check_inputs(scores, targets, mask), ("coverage_error",))["coverage_error"]


def ranking_loss(scores: Any, targets: Any, mask: Any = None) -> float:
    """Return the share of a sample's (label it has, label it has not) pairs in wrong order; a tie is wrong.

    The mean over samples (Tsoumakas, Katakis and Vlahavas, 2010); a sample without such pairs has 0. Arguments and
    errors are those of `label_ranking_average_precision`.

    Example:
        >>> ranking_loss([[0.75, 0.5, 1.0]], [[1, 0, 0]])
        0.5
    """
    return row_metrics(check_inputs(scores, targets, mask), ("ranking_loss",))["ranking_loss"]


# What a sample has of which the statistic is not defined, because it lacks positives (or negatives).
_ROW_METRICS: dict[str, tuple[Statistic, float]] = {
    "lrap": (average_precision_of, 1.0),
    "coverage_error": (coverage_of, 0.0),
    "ranking_loss": (ranking_loss_of, 0.0),
}


def row_metrics(
    checked: Checked, names: tuple[str, ...] = tuple(_ROW_METRICS), columns: np.ndarray | None = None
) -> dict[str, float]:
    """Return LRAP, coverage error and ranking loss in one pass over the rows.

    Args:
        checked: From `check_inputs`.
        names: Which of lrap, coverage_error, ranking_loss.
        columns: The columns that take part, a bool array (L,). None: all.
    """
    scores, targets, unknown = checked
    statistics = {name: _ROW_METRICS[name][0] for name in names}
    found = row_statistics(scores, targets, unknown, statistics={**statistics, "known": _known}, columns=columns)
    has_known = found["known"] > 0
    return {name: nan_mean(np.nan_to_num(found[name][has_known], nan=_ROW_METRICS[name][1])) for name in names}


def pooled_metric(statistic: Statistic, checked: Checked) -> float:
    """Return a statistic of all entries, taken as those of one label."""
    return float(statistic(pooled_ranks(*checked, ties=statistic is auroc_of))[0])


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
