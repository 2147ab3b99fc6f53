"""Ranking metrics: properties, scikit-learn, hand-computed cases, messages."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given
from metrics_cases import Problem, present, problems, quick

from mlabel.metrics import (
    _blocks,
    auroc,
    average_precision,
    coverage_error,
    label_ranking_average_precision,
    ranking_loss,
)

LABEL_METRICS = {"average_precision": average_precision, "auroc": auroc}
SKLEARN_LABEL = {"average_precision": sk.average_precision_score, "auroc": sk.roc_auc_score}
SAMPLE_METRICS = {
    "lrap": label_ranking_average_precision,
    "coverage_error": coverage_error,
    "ranking_loss": ranking_loss,
}
SKLEARN_SAMPLE = {
    "lrap": sk.label_ranking_average_precision_score,
    "coverage_error": sk.coverage_error,
    "ranking_loss": sk.label_ranking_loss,
}
# Every function of this room, as a function of scores, targets and mask.
FUNCTIONS = {
    **{f"{name}-{a}": partial(f, average=a) for name, f in LABEL_METRICS.items() for a in ("micro", "macro", None)},
    "average_precision-weighted": partial(average_precision, average="weighted"),
    "auroc-weighted": partial(auroc, average="weighted"),
    **SAMPLE_METRICS,
}


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-12, err_msg=name)


# --- properties ---------------------------------------------------------------------------------------------------


@given(problem=problems())
@quick
def test_negated_scores_have_the_rest_of_auroc(problem: Problem) -> None:
    for average in ("micro", "macro", "weighted", None):
        other = auroc(-problem.scores, problem.targets, problem.known, average=average)
        same(other, 1 - auroc(*problem.scored, average=average))
        same(
            auroc(problem.scores, 1 - problem.targets, problem.known, average=None),
            1 - auroc(*problem.scored, average=None),
        )


# --- scikit-learn -------------------------------------------------------------------------------------------------


@given(problem=problems())
@quick
def test_labels_are_scikit_learns_on_what_is_known(problem: Problem) -> None:
    for name, function in LABEL_METRICS.items():
        found = function(*problem.scored, average=None)
        for label in np.flatnonzero(present(problem)):
            scores, targets = problem.column(label)
            same(found[label], SKLEARN_LABEL[name](targets, scores), name)


@given(problem=problems())
@quick
@pytest.mark.fault(15)
def test_labels_that_are_absent_or_everywhere(problem: Problem) -> None:
    positives = [problem.column(label)[1].sum() for label in range(problem.targets.shape[1])]
    found = average_precision(*problem.scored, average=None)
    np.testing.assert_array_equal(np.isnan(found), np.array(positives) == 0)
    np.testing.assert_array_equal(np.isnan(auroc(*problem.scored, average=None)), ~present(problem))
    for value in (0.0, 1.0):
        filled = average_precision(*problem.scored, average=None, zero_division=value)
        same(filled, np.where(np.isnan(found), value, found))
        same(average_precision(*problem.scored, zero_division=value), filled.mean())


@given(problem=problems(all_known=True, min_labels=2))
@quick
def test_averages_over_labels_are_scikit_learns(problem: Problem) -> None:
    kept = present(problem)
    scores, targets = problem.scores[:, kept], problem.targets[:, kept]
    if kept.sum() < 2:
        return
    for name, function in LABEL_METRICS.items():
        for average in ("micro", "macro", "weighted"):
            same(
                function(scores, targets, average=average), SKLEARN_LABEL[name](targets, scores, average=average), name
            )
    same(average_precision(problem.scores, problem.targets), _mean_ap(problem))


def _mean_ap(problem: Problem) -> float:
    held = [
        sk.average_precision_score(t, s) for s, t in zip(problem.scores.T, problem.targets.T, strict=True) if t.any()
    ]
    return float(np.mean(held))


@given(problem=problems(all_known=True, min_labels=2))
@quick
def test_samples_are_scikit_learns(problem: Problem) -> None:
    for name, function in SAMPLE_METRICS.items():
        same(function(problem.scores, problem.targets), SKLEARN_SAMPLE[name](problem.targets, problem.scores), name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_of_many_blocks_is_scikit_learns(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "SCRATCH_BYTES", 2**16)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(700, 90)).round(1).astype(dtype)  # ties, negative zeros
    targets = (rng.random((700, 90)) < 0.05).astype(np.uint8)
    for name, function in LABEL_METRICS.items():
        for average in ("micro", "macro", "weighted"):
            same(function(scores, targets, average=average), SKLEARN_LABEL[name](targets, scores, average=average))
    for name, function in SAMPLE_METRICS.items():
        same(function(scores, targets), SKLEARN_SAMPLE[name](targets, scores))


# --- by hand ------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    scores = np.array([[0.9], [0.7], [0.7], [0.2]])
    targets = np.array([[1], [1], [0], [0]])
    same(average_precision(scores, targets, average=None), [1 / 2 * 1 + 1 / 2 * 2 / 3])
    same(auroc(scores, targets, average=None), [(2 + 1.5) / 4])
    row = scores.T, targets.T
    same(label_ranking_average_precision(*row), 1 / 2 * 1 + 1 / 2 * 2 / 3)
    same(coverage_error(*row), 3)
    same(ranking_loss(*row), 1 / 4)


def test_constant_scores_have_the_share_of_positives_and_one_half() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 1], [1, 0]])
    same(average_precision(np.full((4, 2), 0.3), targets, average=None), [3 / 4, 1 / 4])
    same(auroc(np.full((4, 2), 0.3), targets, average=None), [1 / 2, 1 / 2])


def test_samples_without_labels_or_with_all_of_them() -> None:
    scores, targets = np.array([[0.3, 0.1], [0.3, 0.1]]), np.array([[0, 0], [1, 1]])
    same(label_ranking_average_precision(scores[:1], targets[:1]), 1)
    same(label_ranking_average_precision(scores, targets), 1)
    same(coverage_error(scores, targets), (0 + 2) / 2)
    same(ranking_loss(scores, targets), 0)


# --- messages -----------------------------------------------------------------------------------------------------


def test_messages() -> None:
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="1 entries are not, the first at row 1, column 0: nan"):
            function([[0.1, 0.2], [math.nan, 0.3]], [[0, 1], [1, 0]])
        with pytest.raises(ValueError, match="finite"):
            function([[0.1, math.inf]], [[0, 1]])
        with pytest.raises(ValueError, match=r"scores must be of shape \(N, L\); got \(2,\)"):
            function([0.1, 0.2], [[0, 1]])
        with pytest.raises(ValueError, match=r"targets must be of shape \(1, 2\); got \(1, 1\)"):
            function([[0.1, 0.2]], [[1]])
    with pytest.raises(ValueError, match=r"unknown average 'sample'.*Known: macro, micro, weighted"):
        average_precision([[0.1]], [[1]], average="sample")
    with pytest.raises(ValueError, match="zero_division must be nan, 0 or 1"):
        auroc([[0.1]], [[1]], zero_division=2)
