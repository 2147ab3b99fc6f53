"""Counts and their ratios: properties, scikit-learn, hand-computed cases, messages."""

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
from metrics_cases import Problem, problems, quick

from mlabel import metrics
from mlabel.metrics import (
    Counts,
    confusion_counts,
    exact_match,
    f1,
    f_beta,
    hamming_loss,
    jaccard,
    label_accuracy,
    mean_class_accuracy,
    precision,
    ratio,
    recall,
    sample_counts,
    specificity,
)

RATIOS = {
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "f2": partial(f_beta, beta=2.0),
    "jaccard": jaccard,
    "specificity": specificity,
    "accuracy": label_accuracy,
}
SKLEARN = {
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
    "f2": partial(sk.fbeta_score, beta=2.0),
    "jaccard": sk.jaccard_score,
}
AVERAGES = ["micro", "macro", "weighted", "samples", None]
# Every function of this file's room, as a function of decisions, targets and mask.
FUNCTIONS = {
    **{f"{name}-{average}": partial(f, average=average) for name, f in RATIOS.items() for average in AVERAGES},
    "hamming_loss": hamming_loss,
    "exact_match": exact_match,
    "mean_class_accuracy": mean_class_accuracy,
}


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12, err_msg=name)


# --- properties ---------------------------------------------------------------------------------------------------


@given(problem=problems(), cut=st.integers(0, 12))
@quick
def test_counts_of_shards_add_up(problem: Problem, cut: int) -> None:
    shards = [
        confusion_counts(problem.decisions[part], problem.targets[part], problem.known[part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    whole = confusion_counts(*problem.decided)
    assert shards[0] + shards[1] == sum(shards) == whole
    for average in ("micro", "macro", "weighted", None):
        expected = f1(problem.decisions, problem.targets, problem.known, average=average)
        same(ratio(sum(shards), "f1", average=average), expected)


@given(problem=problems())
@quick
def test_swapping_the_sides_swaps_precision_and_recall(problem: Problem) -> None:
    for average in ("micro", "samples", None):
        same(
            precision(problem.decisions, problem.targets, problem.known, average=average, zero_division=0),
            recall(problem.targets, problem.decisions, problem.known, average=average, zero_division=0),
        )


@given(problem=problems())
@quick
def test_the_complement_swaps_recall_and_specificity(problem: Problem) -> None:
    for average in ("micro", "macro", "samples", None):
        same(
            specificity(problem.decisions, problem.targets, problem.known, average=average),
            recall(~problem.decisions, 1 - problem.targets, problem.known, average=average),
        )


@given(problem=problems())
@quick
def test_both_kinds_of_counts_agree_and_cover_all_that_is_known(problem: Problem) -> None:
    labels = confusion_counts(*problem.decided)
    samples = sample_counts(*problem.decided)
    for name in ("tp", "fp", "fn", "tn"):
        assert getattr(labels, name).sum() == getattr(samples, name).sum()
        assert getattr(labels, name).dtype == np.int64
    np.testing.assert_array_equal(labels.known, problem.known.sum(axis=0))
    np.testing.assert_array_equal(samples.known, problem.known.sum(axis=1))
    np.testing.assert_array_equal(samples.support, (problem.known & (problem.targets == 1)).sum(axis=1))


# --- scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("zero_division", [0.0, 1.0])
@given(problem=problems(min_labels=2, all_known=True))
@quick
def test_ratios_are_those_of_scikit_learn(zero_division: float, average: str, problem: Problem) -> None:
    for name, reference in SKLEARN.items():
        expected = reference(problem.targets, problem.decisions, average=average, zero_division=zero_division)
        found = RATIOS[name](problem.decisions, problem.targets, average=average, zero_division=zero_division)
        same(found, expected)


@given(problem=problems(min_labels=2, all_known=True))
@quick
def test_by_default_macro_is_scikit_learns_over_the_labels_that_occur(problem: Problem) -> None:
    for name, reference in SKLEARN.items():
        occurs = problem.targets.any(axis=0)
        labels = RATIOS[name](problem.decisions, problem.targets, average=None)
        np.testing.assert_array_equal(np.isnan(labels), ~occurs)
        macro = RATIOS[name](problem.decisions, problem.targets)
        expected = reference(problem.targets, problem.decisions, average=None, zero_division=0)[occurs]
        same(macro, expected.mean() if occurs.any() else math.nan)


@given(problem=problems(min_labels=2, all_known=True))
@quick
def test_by_default_samples_is_scikit_learns(problem: Problem) -> None:
    for name, reference in SKLEARN.items():
        expected = reference(problem.targets, problem.decisions, average="samples", zero_division=0)
        same(RATIOS[name](problem.decisions, problem.targets, average="samples"), expected)


@given(problem=problems(min_labels=2, all_known=True))
@quick
def test_counts_hamming_and_exact_match_are_those_of_scikit_learn(problem: Problem) -> None:
    matrices = sk.multilabel_confusion_matrix(problem.targets, problem.decisions)
    counts = confusion_counts(problem.decisions, problem.targets)
    np.testing.assert_array_equal(np.stack([counts.tn, counts.fp, counts.fn, counts.tp]).T, matrices.reshape(-1, 4))
    same(hamming_loss(problem.decisions, problem.targets), sk.hamming_loss(problem.targets, problem.decisions))
    same(exact_match(problem.decisions, problem.targets), sk.accuracy_score(problem.targets, problem.decisions))


@given(problem=problems(all_known=True))
@quick
def test_one_label_is_the_binary_case(problem: Problem) -> None:
    target, decision = problem.targets[:, 0], problem.decisions[:, 0]
    for name, reference in SKLEARN.items():
        expected = reference(target, decision, zero_division=0)
        for average in ("micro", "macro"):
            found = RATIOS[name](decision[:, None], target[:, None], average=average, zero_division=0)
            same(found, expected)
    same(label_accuracy(decision[:, None], target[:, None])[0], sk.accuracy_score(target, decision))


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), samples=st.integers(1, 20))
@quick
def test_mean_class_accuracy_is_scikit_learns_balanced_accuracy(seed: int, classes: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    truth, chosen = rng.integers(classes, size=(2, samples))
    one_hot = np.eye(classes, dtype=bool)
    per_class = sk.recall_score(truth, chosen, labels=range(classes), average=None, zero_division=np.nan)
    same(mean_class_accuracy(one_hot[chosen], one_hot[truth]), np.nanmean(per_class))
    counted = mean_class_accuracy(one_hot[chosen], one_hot[truth], zero_division=0)
    same(counted, np.nan_to_num(per_class).mean())


def test_a_matrix_of_many_blocks_is_counted_right() -> None:
    rng = np.random.default_rng(0)
    decisions, targets, known = (rng.random((600, 5000)) < share for share in (0.5, 0.01, 0.99))
    counts, by_sample = confusion_counts(decisions, targets, known), sample_counts(decisions, targets, known)
    for axis, held in ((0, counts), (1, by_sample)):
        np.testing.assert_array_equal(held.tp, (decisions & targets & known).sum(axis=axis))
        np.testing.assert_array_equal(held.fp, (decisions & ~targets & known).sum(axis=axis))
        np.testing.assert_array_equal(held.fn, (~decisions & targets & known).sum(axis=axis))
        np.testing.assert_array_equal(held.tn, (~decisions & ~targets & known).sum(axis=axis))


@pytest.mark.parametrize("shape", [(3, 300), (300, 3), (600, 400)])
def test_few_dense_entries_are_counted_as_sparse_ones(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    decisions, targets, known = (rng.random(shape) < share for share in (0.95, 0.9, 0.95))
    for unknown, mask in ((None, None), (sp.csr_array(~known), known)):
        for count in (confusion_counts, sample_counts):
            expected = count(decisions, sp.csr_array(targets), unknown)
            for held in (targets, targets.astype(np.int64), torch.tensor(targets), targets.astype(np.float32)):
                assert count(decisions, held, mask) == expected
                assert count(decisions, held, unknown) == expected


def test_columns_in_another_memory_order_are_counted_right() -> None:
    rng = np.random.default_rng(0)
    decisions, targets = rng.random((300, 20)) < 0.5, rng.random((300, 20)) < 0.2
    assert confusion_counts(np.asfortranarray(decisions), targets) == confusion_counts(decisions, targets)
    assert confusion_counts(decisions[::2], targets[::2]) == confusion_counts(decisions[::2].copy(), targets[::2])


# --- by hand ------------------------------------------------------------------------------------------------------

# Labels: one usual, one never decided, one absent but decided, one absent and never decided.
DECISIONS = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
TARGETS = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=np.uint8)


@pytest.mark.fault(15)
def test_absent_labels_are_nan_and_left_out_by_hand() -> None:
    nan = math.nan
    same(precision(DECISIONS, TARGETS, average=None), [2 / 3, 0, nan, nan])
    same(recall(DECISIONS, TARGETS, average=None), [2 / 3, 0, nan, nan])
    same(jaccard(DECISIONS, TARGETS, average=None), [1 / 2, 0, nan, nan])
    same(specificity(DECISIONS, TARGETS, average=None), [0, 1, 3 / 4, 1])
    same(precision(DECISIONS, TARGETS), 1 / 3)
    same(precision(DECISIONS, TARGETS, average="weighted"), 2 / 3 * 3 / 4)
    same(precision(DECISIONS, TARGETS, average="micro"), 2 / 4)
    same(precision(DECISIONS, TARGETS, average="samples"), (1 / 2 + 0 + 0 + 1) / 4)
    same(precision(DECISIONS, TARGETS, zero_division=0), 1 / 6)
    same(precision(DECISIONS, TARGETS, average=None, zero_division=1), [2 / 3, 1, 0, 1])
    same(hamming_loss(DECISIONS, TARGETS), 4 / 16)
    same(exact_match(DECISIONS, TARGETS), 1 / 4)


def test_micro_precision_without_decisions_is_zero_where_positives_exist() -> None:
    assert precision([[0, 0]], [[1, 0]], average="micro") == 0
    assert math.isnan(precision([[0, 0]], [[0, 0]], average="micro"))
    assert precision([[0, 0]], [[0, 0]], average="micro", zero_division=1) == 1


def test_mean_class_accuracy_by_hand() -> None:
    one_hot = np.eye(3, dtype=bool)
    truth, chosen = one_hot[[0, 0, 0, 1]], one_hot[[0, 0, 1, 1]]
    same(mean_class_accuracy(chosen, truth), (2 / 3 + 1) / 2)
    same(mean_class_accuracy(chosen, truth, zero_division=0), (2 / 3 + 1 + 0) / 3)
    known = np.array([[True] * 3, [True] * 3, [False] * 3, [True] * 3])
    same(mean_class_accuracy(chosen, truth, known), 1.0)


# --- messages -----------------------------------------------------------------------------------------------------


def test_messages() -> None:
    with pytest.raises(TypeError, match=r"decisions must be bool or 0/1; got dtype float64.*decide"):
        f1([[0.2]], [[1]])
    with pytest.raises(ValueError, match="decisions must be 0 or 1; got 2 at row 1, column 0"):
        f1([[1, 0], [2, 1]], [[1, 0], [1, 0]])
    with pytest.raises(ValueError, match=r"decisions must be of shape \(N, L\); got \(2,\)"):
        f1([1, 0], [[1, 0]])
    with pytest.raises(ValueError, match=r"targets must be of shape \(1, 2\); got \(1, 3\)"):
        f1([[1, 0]], [[1, 0, 0]])
    with pytest.raises(ValueError, match=r"targets must be 0 or 1.*got 2 at row 0, column 1"):
        f1([[1, 0]], [[1, 2]])
    with pytest.raises(ValueError, match="unknown average 'marco'; did you mean 'macro'"):
        f1([[1, 0]], [[1, 0]], average="marco")
    with pytest.raises(ValueError, match=r"zero_division must be nan, 0 or 1; got 0.5"):
        f1([[1, 0]], [[1, 0]], zero_division=0.5)
    with pytest.raises(ValueError, match="beta must be a finite number above 0; got 0"):
        f_beta([[1]], [[1]], beta=0)
    with pytest.raises(ValueError, match="unknown ratio 'f2'"):
        ratio(confusion_counts([[1]], [[1]]), "f2")
    with pytest.raises(ValueError, match=r"average='samples' needs the counts of sample_counts"):
        ratio(confusion_counts([[1]], [[1]]), "f1", average="samples")
    with pytest.raises(ValueError, match=r"average='macro' needs the counts of confusion_counts"):
        ratio(sample_counts([[1]], [[1]]), "f1")


def test_dense_targets_and_masks_that_are_none_are_refused() -> None:
    for wrong, text in (([[1, 2]], "got 2 at row 0, column 1"), ([[-1, 0]], "got -1 at row 0, column 0")):
        with pytest.raises(ValueError, match=f"targets must be 0 or 1.*{text}"):
            confusion_counts([[1, 0]], np.array(wrong))
    with pytest.raises(TypeError, match=r"a dense mask must be bool \(True = known\); got dtype int64"):
        confusion_counts([[1, 0]], [[1, 0]], np.array([[1, 0]]))
    with pytest.raises(ValueError, match=r"mask must be of shape \(1, 2\); got \(2, 1\)"):
        confusion_counts([[1, 0]], [[1, 0]], np.array([[True], [False]]))


def test_counts_refuse_what_does_not_fit() -> None:
    one, two = confusion_counts([[1]], [[1]]), confusion_counts([[1, 0]], [[1, 0]])
    with pytest.raises(ValueError, match="counts of 1 and of 2 labels cannot be merged"):
        one + two
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(ValueError, match="one length"):
        Counts(one.tp, one.fp, one.fn, two.tn)
    with pytest.raises(ValueError, match="tp must be a one-dimensional array of integers"):
        Counts(np.array([0.5]), one.fp, one.fn, one.tn)
    assert one != two
    assert one != sample_counts([[1]], [[1]])


def test_every_public_name_is_there() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)
