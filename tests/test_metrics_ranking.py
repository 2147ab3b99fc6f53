"""Ranking metrics: properties, scikit-learn, hand-computed cases, messages."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
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


@given(problem=problems(), seed=st.integers(0, 99))
@quick
def test_order_of_samples_and_labels_does_not_matter(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(problem.targets.shape[0]), rng.permutation(problem.targets.shape[1])
    mixed = [array[rows][:, columns] for array in problem.scored]
    for name, function in FUNCTIONS.items():
        before = function(*problem.scored)
        same(function(*mixed), before[columns] if isinstance(before, np.ndarray) else before, name)


@given(problem=problems())
@quick
def test_only_the_order_of_scores_matters(problem: Problem) -> None:
    for name, function in FUNCTIONS.items():
        for moved in (np.exp(problem.scores), 1000 * problem.scores - 7, problem.scores.astype(np.float64) ** 3):
            same(function(moved, problem.targets, problem.known), function(*problem.scored), name)


@given(problem=problems())
@quick
def test_every_sample_twice_changes_nothing(problem: Problem) -> None:
    twice = [np.repeat(array, 2, axis=0) for array in problem.scored]
    for name, function in FUNCTIONS.items():
        same(function(*twice), function(*problem.scored), name)


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


@given(problem=problems())
@quick
def test_every_form_of_input_gives_the_same(problem: Problem) -> None:
    scores, targets, known = problem.scored
    tensors = torch.tensor(scores, requires_grad=True), torch.tensor(targets), torch.tensor(known)
    half = torch.tensor(scores).bfloat16(), torch.tensor(targets).bool(), known  # eighths are exact in it
    sparse = np.asfortranarray(scores), sp.csr_matrix(targets), sp.coo_array(~known)
    other = scores.astype(np.float64).tolist(), targets.astype(np.float32), known
    for name, function in FUNCTIONS.items():
        for form in (tensors, half, sparse, other):
            same(function(*form), function(*problem.scored), name)


@given(problem=problems())
@quick
def test_what_is_unknown_has_no_say(problem: Problem) -> None:
    scores, targets, known = problem.scored
    changed = np.where(known, scores, 9.0), targets.astype(bool) ^ ~known, known
    for name, function in FUNCTIONS.items():
        same(function(*changed), function(*problem.scored), name)


@given(problem=problems())
@quick
def test_small_blocks_and_threads_give_the_same(problem: Problem) -> None:
    expected = {name: function(*problem.scored) for name, function in FUNCTIONS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "SCRATCH_BYTES", 100)
        patch.setattr(_blocks.torch, "get_num_threads", lambda: 3)
        for name, function in FUNCTIONS.items():
            same(function(*problem.scored), expected[name], name)


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


@given(problem=problems())
@quick
def test_micro_is_one_label_of_all_known_entries(problem: Problem) -> None:
    scores, targets = problem.scores[problem.known], problem.targets[problem.known]
    for name, function in LABEL_METRICS.items():
        alone = function(scores[:, None], targets[:, None], average=None)[0] if len(scores) else math.nan
        same(function(*problem.scored, average="micro"), alone, name)


@given(problem=problems(all_known=True, min_labels=2))
@quick
def test_samples_are_scikit_learns(problem: Problem) -> None:
    for name, function in SAMPLE_METRICS.items():
        same(function(problem.scores, problem.targets), SKLEARN_SAMPLE[name](problem.targets, problem.scores), name)


@given(problem=problems())
@quick
def test_samples_are_as_if_their_unknown_labels_were_deleted(problem: Problem) -> None:
    rows = [problem.row(sample) for sample in np.flatnonzero(problem.known.any(axis=1))]
    for name, function in SAMPLE_METRICS.items():
        each = [function(scores[None], targets[None]) for scores, targets in rows]
        same(function(*problem.scored), np.mean(each) if each else math.nan, name)


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


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (0, 1)])
def test_nothing_to_measure_is_nan_and_no_warning(shape: tuple[int, int]) -> None:
    nothing = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=bool)
    for name, function in FUNCTIONS.items():
        assert np.isnan(function(*nothing)).all(), name


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
