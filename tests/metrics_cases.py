"""Problems for the tests of metrics, small, with many ties, absent labels and unknown entries; and a table of metrics.

A metric that is put into the table has every property that the tests ask of its like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlabel import metrics

quick = settings(deadline=None, max_examples=25)
# For tests that ask all metrics of the table in each example.
brief = settings(deadline=None, max_examples=12)


@dataclass(frozen=True)
class Problem:
    """Scores (N, L), targets uint8 and what is known, none of which may be written to."""

    scores: np.ndarray
    targets: np.ndarray
    known: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.scores, self.targets, self.known):
            array.setflags(write=False)

    @property
    def decisions(self) -> np.ndarray:
        return self.scores >= 0.5

    @property
    def decided(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decisions at 0.5, targets and what is known: the arguments of the metrics of decisions."""
        return self.decisions, self.targets, self.known

    @property
    def scored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, targets and what is known: the arguments of the metrics of scores."""
        return self.scores, self.targets, self.known

    def column(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the known samples of one label."""
        rows = self.known[:, label]
        return self.scores[rows, label], self.targets[rows, label]

    def row(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the known labels of one sample."""
        columns = self.known[sample]
        return self.scores[sample, columns], self.targets[sample, columns]


@st.composite
def problems(draw: st.DrawFn, min_labels: int = 1, all_known: bool = False) -> Problem:
    """Scores on a grid of ninths, so that ties are common, in float32 or float64."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(min_labels, 6)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    grid = draw(arrays(np.int64, shape, elements=st.integers(0, 8)))
    targets = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    known = np.ones(shape, bool) if all_known else draw(arrays(np.bool_, shape))
    return Problem((grid / 8).astype(dtype), targets, known)


def present(problem: Problem) -> np.ndarray:
    """Labels that have both a known positive and a known negative."""
    positive = (problem.targets.astype(bool) & problem.known).any(axis=0)
    negative = (~problem.targets.astype(bool) & problem.known).any(axis=0)
    return positive & negative


@dataclass(frozen=True)
class Metric:
    """A metric as a function of values (N, L), targets and mask.

    Attributes:
        function: The metric.
        takes: decisions, scores (only their order matters) or probabilities.
        gives: labels (an array (L,)), macro (a mean of it), pool (all entries as one label), samples (a mean over
            samples), or whole (none of these).
    """

    function: Callable[..., Any]
    takes: str
    gives: str

    def of(self, problem: Problem) -> Any:
        return self.function(*self.arguments(problem))

    def arguments(self, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return problem.decided if self.takes == "decisions" else problem.scored

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


RATIOS: dict[str, Callable[..., Any]] = {
    "precision": metrics.precision,
    "recall": metrics.recall,
    "f1": metrics.f1,
    "f_beta_2": partial(metrics.f_beta, beta=2.0),
    "f_beta_0.5": partial(metrics.f_beta, beta=0.5),
    "jaccard": metrics.jaccard,
    "specificity": metrics.specificity,
    "npv": metrics.npv,
    "balanced_accuracy": metrics.balanced_accuracy,
    "g_mean": metrics.g_mean,
    "mcc": metrics.mcc,
    "kappa": metrics.kappa,
    "accuracy": metrics.label_accuracy,
}
CURVES: dict[str, Callable[..., Any]] = {
    "ap": metrics.average_precision,
    "auroc": metrics.auroc,
    "log_auc": metrics.log_auc,
    "log_auc_wide": partial(metrics.log_auc, fpr_range=(0.1, 1.0)),
    "break_even": metrics.break_even,
    "precision_at_recall_0.8": partial(metrics.precision_at_recall, recall=0.8),
    "recall_at_precision_0.8": partial(metrics.recall_at_precision, precision=0.8),
}
ROWS: dict[str, Callable[..., Any]] = {
    "lrap": metrics.label_ranking_average_precision,
    "coverage_error": metrics.coverage_error,
    "ranking_loss": metrics.ranking_loss,
    "one_error": metrics.one_error,
    **{f"precision_at_{k}": partial(metrics.precision_at_k, k=k) for k in (1, 3)},
    **{f"recall_at_{k}": partial(metrics.recall_at_k, k=k) for k in (1, 3)},
    **{f"ndcg_at_{k}": partial(metrics.ndcg_at_k, k=k) for k in (1, 3)},
}
PROBABILISTIC: dict[str, Callable[..., Any]] = {
    "brier": metrics.brier_score,
    "log_loss": metrics.log_loss,
    "ece": metrics.expected_calibration_error,
    "ece_of_10": partial(metrics.expected_calibration_error, bins=10),
}


def _even_propensities(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda scores, *rest: function(scores, *rest, propensities=np.full(np.shape(scores)[1], 0.5), k=2)


def _averages(names: dict[str, Callable[..., Any]], takes: str) -> dict[str, Metric]:
    gives = {None: "labels", "macro": "macro", "weighted": "macro", "micro": "pool"}
    return {f"{n}-{a}": Metric(partial(f, average=a), takes, g) for n, f in names.items() for a, g in gives.items()}


# Name to metric: what has an average by its name and average, such as `f1-macro`.
TABLE: dict[str, Metric] = {
    **_averages(RATIOS, "decisions"),
    **{f"{n}-samples": Metric(partial(f, average="samples"), "decisions", "samples") for n, f in RATIOS.items()},
    "example_accuracy": Metric(metrics.example_accuracy, "decisions", "samples"),
    "exact_match": Metric(metrics.exact_match, "decisions", "samples"),
    "hamming_loss": Metric(metrics.hamming_loss, "decisions", "pool"),
    "mean_class_accuracy": Metric(metrics.mean_class_accuracy, "decisions", "whole"),
    **_averages(CURVES, "scores"),
    **{name: Metric(function, "scores", "samples") for name, function in ROWS.items()},
    "psp": Metric(_even_propensities(metrics.propensity_scored_precision_at_k), "scores", "whole"),
    "psndcg": Metric(_even_propensities(metrics.propensity_scored_ndcg_at_k), "scores", "whole"),
    **_averages(PROBABILISTIC, "probabilities"),
}
