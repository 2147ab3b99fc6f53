"""What `evaluate` measures: a table from metric name to how it is made of counts, ranks and sums.

A new metric of decisions goes into `ratios.RATIOS`, one of a label's ranks into `_curves.CURVE_STATISTICS`, one of a
sample's highest scores into `_top.TOP_STATISTICS`, one of probabilities into `PROBABILISTIC`: the names follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from mlabel.metrics._curves import CURVE_STATISTICS
from mlabel.metrics._ranks import column_statistics
from mlabel.metrics._top import TOP_STATISTICS
from mlabel.metrics.counts import Counts, SampleCounts
from mlabel.metrics.probabilistic import brier_of, calibration_error_of, log_loss_of
from mlabel.metrics.ranking import Checked, fill_undefined, pooled_metric, refuse_outside, row_means, row_metrics
from mlabel.metrics.ratios import (
    LABEL_AVERAGES,
    RATIOS,
    divide,
    exact_match_of,
    hamming_of,
    nan_mean,
    samples_average,
)

PROBABILISTIC: dict[str, Callable[[Checked], tuple[np.ndarray, float]]] = {
    "brier": brier_of,
    "log_loss": log_loss_of,
    "ece": calibration_error_of,
}
# Statistics of ranks that are always measured; the others where a wanted name ends in theirs.
_USUAL_CURVES = ("ap", "auroc")


@dataclass(frozen=True)
class Parts:
    """What metrics are made of; the costly parts are made when first asked for, once.

    Attributes:
        checked: Scores, targets, unknown.
        labels: Confusion counts of labels.
        samples: Confusion counts of samples.
        any_of: The columns of any-of labels, bool (L,); None: all.
        zero_division: What is undefined has.
        wanted: The names that will be asked for, so that one pass over the scores measures them all.
    """

    checked: Checked
    labels: Counts
    samples: SampleCounts
    any_of: np.ndarray | None
    zero_division: float
    wanted: frozenset[str]

    @cached_property
    def curves(self) -> dict[str, np.ndarray]:
        """Statistics of each label's ranks, arrays (L,)."""
        asked = {name.removeprefix("macro_").removeprefix("weighted_") for name in self.wanted}
        names = [name for name in CURVE_STATISTICS if name in asked or name in _USUAL_CURVES]
        found = column_statistics(*self.checked, statistics={name: CURVE_STATISTICS[name] for name in names})
        return {name: fill_undefined(values, self.zero_division) for name, values in found.items()}

    @cached_property
    def rows(self) -> dict[str, float]:
        """LRAP, coverage error and ranking loss."""
        return row_metrics(self.checked, columns=self.any_of)

    @cached_property
    def top(self) -> dict[str, float]:
        """What was asked of each sample's highest scores."""
        asked = {name: held for name, held in TOP_STATISTICS.items() if name in self.wanted}
        return row_means(self.checked, asked, self.any_of, ties=True)

    @cached_property
    def _probabilistic(self) -> dict[str, tuple[np.ndarray, float]]:
        return {}

    def probabilistic(self, name: str) -> tuple[np.ndarray, float]:
        """Return a metric of probabilities of each label, and of all entries together."""
        if name not in self._probabilistic:
            refuse_outside(self.checked[0])
            self._probabilistic[name] = PROBABILISTIC[name](self.checked)
        return self._probabilistic[name]

    def ratio(self, name: str) -> np.ndarray:
        """Return a ratio of each label's counts."""
        return divide(RATIOS[name], self.labels, self.zero_division)

    def pooled(self, name: str) -> float:
        """Return a statistic of the ranks of all entries together."""
        value = pooled_metric(CURVE_STATISTICS[name], self.checked)
        return self.zero_division if math.isnan(value) else value


Measure = Callable[[Parts], float]
LabelMeasure = Callable[[Parts], np.ndarray]


def _of_labels(average: str, name: str, parts: Parts) -> float:
    return LABEL_AVERAGES[average](RATIOS[name], parts.labels, parts.zero_division)


def _of_samples(name: str, parts: Parts) -> float:
    return samples_average(RATIOS[name], parts.samples, parts.zero_division)


def _ratios(name: str) -> dict[str, Measure]:
    found: dict[str, Measure] = {f"{average}_{name}": partial(_of_labels, average, name) for average in LABEL_AVERAGES}
    found[f"samples_{name}"] = partial(_of_samples, name)
    return found


def _curves(name: str) -> dict[str, Measure]:
    return {
        f"macro_{name}": lambda parts: nan_mean(parts.curves[name]),
        f"weighted_{name}": lambda parts: nan_mean(parts.curves[name], parts.labels.support),
        f"micro_{name}": lambda parts: parts.pooled(name),
    }


def _probabilistic(name: str) -> dict[str, Measure]:
    return {
        f"macro_{name}": lambda parts: nan_mean(parts.probabilistic(name)[0]),
        f"weighted_{name}": lambda parts: nan_mean(parts.probabilistic(name)[0], parts.labels.support),
        f"micro_{name}": lambda parts: parts.probabilistic(name)[1],
    }


def _top(name: str) -> Measure:
    return lambda parts: parts.top[name]


def _num_defined(values: np.ndarray) -> int:
    return int(np.count_nonzero(~np.isnan(values)))


# What `evaluate` measures always, in the order of its tables.
METRICS: dict[str, Measure] = {
    **_ratios("precision"),
    **_ratios("recall"),
    **_ratios("f1"),
    **_ratios("jaccard"),
    "map": lambda parts: nan_mean(parts.curves["ap"]),
    "micro_ap": lambda parts: parts.pooled("ap"),
    "macro_auroc": lambda parts: nan_mean(parts.curves["auroc"]),
    "lrap": lambda parts: parts.rows["lrap"],
    "coverage_error": lambda parts: parts.rows["coverage_error"],
    "ranking_loss": lambda parts: parts.rows["ranking_loss"],
    "exact_match": lambda parts: exact_match_of(parts.samples),
    "hamming_loss": lambda parts: hamming_of(parts.labels),
    "label_accuracy": lambda parts: _of_labels("macro", "accuracy", parts),
    "num_labels_averaged": lambda parts: _num_defined(parts.ratio("f1")),
    "num_labels_auroc": lambda parts: _num_defined(parts.curves["auroc"]),
}

_EXTRA_RATIOS = ("specificity", "npv", "f_beta_2", "f_beta_0.5", "balanced_accuracy", "g_mean", "mcc", "kappa")
_EXTRA_CURVES = tuple(name for name in CURVE_STATISTICS if name not in _USUAL_CURVES)

# What it measures besides where `include=` names it.
EXTRA_METRICS: dict[str, Measure] = {
    **{key: measure for name in _EXTRA_RATIOS for key, measure in _ratios(name).items()},
    "weighted_ap": _curves("ap")["weighted_ap"],
    "weighted_auroc": _curves("auroc")["weighted_auroc"],
    "micro_auroc": _curves("auroc")["micro_auroc"],
    **{key: measure for name in _EXTRA_CURVES for key, measure in _curves(name).items()},
    **{key: measure for name in PROBABILISTIC for key, measure in _probabilistic(name).items()},
    **{name: _top(name) for name in TOP_STATISTICS},
}

# What `include=` may name besides: arrays (L,), which go to `per_label`.
LABEL_METRICS: dict[str, LabelMeasure] = {
    **{name: partial(Parts.ratio, name=name) for name in _EXTRA_RATIOS},
    **{name: partial(lambda parts, name: parts.curves[name], name=name) for name in _EXTRA_CURVES},
    **{name: partial(lambda parts, name: parts.probabilistic(name)[0], name=name) for name in PROBABILISTIC},
}
