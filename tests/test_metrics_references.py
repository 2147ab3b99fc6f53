"""The rarer metrics beside scikit-learn, torchmetrics, or their definitions written down plainly; and by hand."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as sk
import torch
import torchmetrics.functional.classification as tm
from hypothesis import assume, given
from hypothesis import strategies as st
from metrics_cases import Problem, present, problems, quick

from mlabel import metrics
from mlabel.labels import Group, LabelSpace
from mlabel.metrics import category_rows, evaluate, frequency_rows, hierarchical_scores, propensities, rows_table
from mlabel.taxonomy import Taxonomy


def same(first: object, second: object, name: str = "", rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(first, second, rtol=rtol, atol=1e-12, err_msg=name)


# --- decisions ----------------------------------------------------------------------------------------------------


@given(problem=problems())
@quick
def test_agreement_of_labels_is_scikit_learns(problem: Problem) -> None:
    references = {
        "mcc": sk.matthews_corrcoef,
        "kappa": sk.cohen_kappa_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "npv": lambda t, d: sk.precision_score(t, d, pos_label=0, zero_division=0),
        "g_mean": lambda t, d: math.sqrt(sk.recall_score(t, d) * sk.recall_score(t, d, pos_label=0)),
    }
    for name, reference in references.items():
        found = getattr(metrics, name)(*problem.decided, average=None)
        for label in np.flatnonzero(present(problem)):
            scores, targets = problem.column(label)
            same(found[label], reference(targets, scores >= 0.5), name)


@given(problem=problems())
@quick
def test_example_accuracy_is_that_of_sets(problem: Problem) -> None:
    for empty in (0.0, 1.0):
        each = []
        for sample in np.flatnonzero(problem.known.any(axis=1)):
            scores, targets = problem.row(sample)
            given_, has = set(np.flatnonzero(scores >= 0.5)), set(np.flatnonzero(targets))
            each.append(len(given_ & has) / len(given_ | has) if given_ | has else empty)
        found = metrics.example_accuracy(*problem.decided, zero_division=empty)
        same(found, np.mean(each) if each else math.nan)


def test_counts_too_large_for_products_of_integers() -> None:
    counts = metrics.Counts(*(np.array([n]) for n in (6 * 10**9, 10**9, 2 * 10**9, 3 * 10**9)))
    same(metrics.ratio(counts, "mcc"), (18 - 2) / math.sqrt(7 * 8 * 4 * 5))
    same(metrics.ratio(counts, "kappa"), 2 * (18 - 2) / (7 * 4 + 8 * 5))
    same(metrics.ratio(counts, "balanced_accuracy"), (6 / 8 + 3 / 4) / 2)
    same(metrics.ratio(counts, "g_mean"), math.sqrt(6 / 8 * 3 / 4))


# --- labels' curves -----------------------------------------------------------------------------------------------


@given(problem=problems(), level=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
@quick
def test_points_of_curves_are_those_of_scikit_learns_curve(problem: Problem, level: float) -> None:
    high_precision = metrics.precision_at_recall(*problem.scored, recall=level, average=None)
    high_recall = metrics.recall_at_precision(*problem.scored, precision=level, average=None)
    for label in np.flatnonzero(present(problem)):
        scores, targets = problem.column(label)
        precision, recall = (array[:-1] for array in sk.precision_recall_curve(targets, scores)[:2])
        same(high_precision[label], precision[recall >= level].max())
        same(high_recall[label], recall[precision >= level].max(initial=0))


@given(problem=problems(min_labels=2, all_known=True), level=st.sampled_from([0.3, 0.8, 1.0]))
@quick
def test_recall_at_precision_is_torchmetrics(problem: Problem, level: float) -> None:
    held = np.flatnonzero(present(problem))
    scores, targets = torch.tensor(problem.scores[:, held]), torch.tensor(problem.targets[:, held]).long()
    for label in range(len(held)):
        expected, _ = tm.binary_recall_at_fixed_precision(scores[:, label], targets[:, label], level)
        column = scores[:, [label]], targets[:, [label]]
        same(metrics.recall_at_precision(*column, precision=np.float32(level)), expected, rtol=1e-6)


def plain_break_even(scores: np.ndarray, targets: np.ndarray) -> float:
    """Decisions and hits at each threshold, joined by lines, read where decisions are as many as positives."""
    levels = [np.inf, *np.unique(scores)[::-1]]
    decided = [(scores >= level).sum() for level in levels]
    hits = [targets[scores >= level].sum() for level in levels]
    return float(np.interp(targets.sum(), decided, hits) / targets.sum())


def plain_log_auc(scores: np.ndarray, targets: np.ndarray, low: float, high: float) -> float:
    """The mean over the logarithm of false positive rates of the recall that straight lines between points have."""
    fpr, tpr, _ = sk.roc_curve(targets, scores, drop_intermediate=False)
    edges = np.unique(np.clip(np.concatenate([fpr, [low, high]]), low, high))
    total = 0.0
    for a, b in pairwise(edges):
        inside = np.exp(np.log(a) + (np.arange(2000) + 0.5) / 2000 * np.log(b / a))
        total += np.interp(inside, fpr, tpr).mean() * np.log(b / a)
    return total / np.log(high / low)


@given(problem=problems(), low=st.sampled_from([0.001, 0.05, 0.25]), high=st.sampled_from([0.3, 0.5, 1.0]))
@quick
def test_break_even_and_log_auc_are_their_definitions(problem: Problem, low: float, high: float) -> None:
    break_even = metrics.break_even(*problem.scored, average=None)
    log_auc = metrics.log_auc(*problem.scored, fpr_range=(low, high), average=None)
    for label in range(problem.targets.shape[1]):
        scores, targets = problem.column(label)
        if targets.any():
            same(break_even[label], plain_break_even(scores, targets))
        if targets.any() and not targets.all():
            same(log_auc[label], plain_log_auc(scores, targets, low, high), rtol=1e-5)


@given(seed=st.integers(0, 10**6))
@quick
def test_log_auc_of_different_scores_is_torchmetrics(seed: int) -> None:
    # Without ties, where its definition is the same; at a limit before a step it takes a part of the step, in float32.
    rng = np.random.default_rng(seed)
    scores, targets = rng.permutation(200) / 200, rng.random(200) < 0.3
    for limits in ((0.00123, 0.1017), (0.0123, 0.7013)):
        expected = tm.binary_logauc(torch.tensor(scores), torch.tensor(targets).long(), fpr_range=limits)
        found = metrics.log_auc(scores[:, None], targets[:, None], fpr_range=limits)
        assert abs(found - expected) < 1e-3


# --- samples' highest scores --------------------------------------------------------------------------------------


def mean_over_orders(scores: np.ndarray, targets: np.ndarray, measure) -> float:
    """The mean of `measure` (of targets in order) over all orders in which the scores do not ascend."""
    found = [
        measure(targets[list(o)]) for o in permutations(range(len(scores))) if (np.diff(scores[list(o)]) <= 0).all()
    ]
    return float(np.mean(found))


@given(problem=problems(), k=st.integers(1, 4))
@quick
def test_the_highest_scores_are_the_mean_over_orders_of_ties(problem: Problem, k: int) -> None:
    problem = Problem(*(array[:, :4] for array in problem.scored))
    rows = [problem.row(sample) for sample in np.flatnonzero(problem.known.any(axis=1))]
    plain = {
        metrics.precision_at_k: lambda t: t[:k].mean(),
        metrics.recall_at_k: lambda t: t[:k].sum() / max(1, t.sum()),
        metrics.one_error: lambda t: 1 - t[0],
    }
    for function, measure in plain.items():
        each = [mean_over_orders(*row, measure) for row in rows]
        found = function(*problem.scored, **({} if function is metrics.one_error else {"k": k}))
        same(found, np.mean(each) if each else math.nan, function.__name__)


@given(problem=problems(min_labels=2, all_known=True), k=st.integers(1, 7))
@quick
def test_ndcg_is_scikit_learns(problem: Problem, k: int) -> None:
    same(metrics.ndcg_at_k(problem.scores, problem.targets, k=k), sk.ndcg_score(problem.targets, problem.scores, k=k))


@given(seed=st.integers(0, 10**6), k=st.integers(1, 6))
@quick
def test_propensity_scored_metrics_are_their_definitions(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9), rng.integers(1, 7)
    scores, targets = rng.permutation(shape[0] * shape[1]).reshape(shape) / 100, rng.random(shape) < 0.4
    known, held = rng.random(shape) < 0.8, rng.uniform(0.05, 1, shape[1])
    assume((targets & known).any())
    for function, discount in (
        (metrics.propensity_scored_precision_at_k, lambda place: 1.0),
        (metrics.propensity_scored_ndcg_at_k, lambda place: 1 / math.log2(place + 2)),
    ):
        gain = best = 0.0
        for s, t, m in zip(scores, targets, known, strict=True):
            order = [label for label in np.argsort(-s) if m[label]][:k]
            gain += sum(discount(place) / held[label] for place, label in enumerate(order) if t[label])
            heaviest = sorted((1 / held[label] for label in np.flatnonzero(t & m)), reverse=True)[:k]
            best += sum(discount(place) * weight for place, weight in enumerate(heaviest))
        same(function(scores, targets, known, propensities=held, k=k), gain / best)
        shuffled = rng.permutation(shape[1])
        mixed = (array[:, shuffled] for array in (scores, targets, known))
        same(function(*mixed, propensities=held[shuffled], k=k), gain / best)


def test_propensities_by_hand() -> None:
    scale = (math.log(1000) - 1) * 2.5**0.55
    same(
        propensities([0, 10, 1000], 1000),
        [1 / (1 + scale * math.exp(-0.55 * math.log(n + 1.5))) for n in (0, 10, 1000)],
    )
    assert (np.diff(propensities(np.arange(50), 50)) > 0).all()
    assert propensities([1], 3)[0] < 1
    same(propensities([3], 100, a=0.5, b=0.4), 1 / (1 + (math.log(100) - 1) * 1.4**0.5 / 3.4**0.5))


# --- probabilities ------------------------------------------------------------------------------------------------


@given(problem=problems())
@quick
def test_brier_score_and_log_loss_are_scikit_learns(problem: Problem) -> None:
    brier, loss = metrics.brier_score(*problem.scored, average=None), metrics.log_loss(*problem.scored, average=None)
    for label in np.flatnonzero(problem.known.any(axis=0)):
        scores, targets = problem.column(label)
        same(brier[label], ((scores.astype(np.float64) - targets) ** 2).mean())
        same(loss[label], sk.log_loss(targets, scores, labels=[0, 1]), rtol=1e-5)
        if 0 < targets.sum() < len(targets):
            same(brier[label], sk.brier_score_loss(targets, scores), rtol=1e-6)


@given(problem=problems(all_known=True), bins=st.sampled_from([1, 5, 10, 16]))
@quick
def test_calibration_error_is_torchmetrics(problem: Problem, bins: int) -> None:
    scores = problem.scores.astype(np.float64) * 0.875  # it gives a score of 1 a bin of its own
    found = metrics.expected_calibration_error(scores, problem.targets, bins=bins, average=None)
    for label, value in enumerate(found):
        column = torch.tensor(scores[:, label]), torch.tensor(problem.targets[:, label]).long()
        same(value, tm.binary_calibration_error(*column, n_bins=bins), rtol=1e-5)
    pooled = torch.tensor(scores).reshape(-1), torch.tensor(problem.targets).long().reshape(-1)
    expected = tm.binary_calibration_error(*pooled, n_bins=bins)
    same(metrics.expected_calibration_error(scores, problem.targets, bins=bins, average="micro"), expected, rtol=1e-5)


def test_a_matrix_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._blocks, "SCRATCH_BYTES", 2**14)
    rng = np.random.default_rng(0)
    scores, targets, known = rng.random((500, 300)), rng.random((500, 300)) < 0.2, rng.random((500, 300)) < 0.9
    square = np.where(known, (scores - targets) ** 2, 0)
    same(metrics.brier_score(scores, targets, known, average=None), square.sum(axis=0) / known.sum(axis=0))
    same(metrics.brier_score(scores, targets, known, average="micro"), square.sum() / known.sum())
    place = np.floor(scores * 16)
    gaps = [np.where(known & (place == b), scores - targets, 0) for b in range(16)]
    expected = sum(abs(gap.sum(axis=0)) for gap in gaps) / known.sum(axis=0)
    same(metrics.expected_calibration_error(scores, targets, known, average=None), expected)
    same(
        metrics.expected_calibration_error(scores, targets, known, average="micro"),
        sum(abs(gap.sum()) for gap in gaps) / known.sum(),
    )


def test_a_wrong_certainty_costs_what_the_type_can_tell() -> None:
    same(metrics.log_loss(np.array([[1.0]]), [[0]]), -math.log(np.finfo(np.float64).eps), rtol=1e-3)
    same(metrics.log_loss(np.array([[0.0]], np.float32), [[1]]), -math.log(np.finfo(np.float32).eps))
    assert metrics.brier_score([[1.0]], [[0]]) == 1


# --- a taxonomy ---------------------------------------------------------------------------------------------------

ANIMALS = LabelSpace([Group("tags", ["kitten", "cat", "puppy", "dog", "animal", "tree"])])
IMPLIED = {0: {1, 4}, 1: {4}, 2: {3, 4}, 3: {4}}
TAXONOMY = Taxonomy(ANIMALS, implications=[("kitten", "cat"), ("puppy", "dog"), ("cat", "animal"), ("dog", "animal")])


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.6, 1.0]))
@quick
def test_hierarchical_scores_are_those_of_sets(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    decisions, targets, known = (rng.random((4, 6)) < p for p in (0.3, 0.3, share))
    both = given_ = has = 0
    for d, t, m in zip(decisions, targets, known, strict=True):
        held = set(np.flatnonzero(t & m))
        true = held.union(*(IMPLIED.get(label, set()) for label in held))
        counted = true | set(np.flatnonzero(m))
        chosen = set(np.flatnonzero(d))
        said = chosen.union(*(IMPLIED.get(label, set()) for label in chosen)) & counted
        both, given_, has = both + len(said & true), given_ + len(said), has + len(true)
    found = hierarchical_scores(decisions, targets, known, taxonomy=TAXONOMY, zero_division=0)
    same(found.precision, both / given_ if given_ else 0)
    same(found.recall, both / has if has else 0)
    same(found.f1, 2 * both / (given_ + has) if given_ + has else 0)
    tensors = torch.tensor(decisions), sp.csr_array(targets), torch.tensor(known)
    assert hierarchical_scores(*tensors, taxonomy=TAXONOMY, zero_division=0) == found


def test_hierarchical_scores_without_implications_are_the_plain_ones() -> None:
    rng = np.random.default_rng(0)
    decisions, targets, known = (rng.random((30, 6)) < p for p in (0.4, 0.3, 0.8))
    found = hierarchical_scores(decisions, targets, known, taxonomy=Taxonomy(ANIMALS))
    for name in ("precision", "recall", "f1"):
        same(getattr(found, name), getattr(metrics, name)(decisions, targets, known, average="micro"))


# --- tables -------------------------------------------------------------------------------------------------------


@given(problem=problems(), seed=st.integers(0, 99))
@quick
def test_categories_are_averaged_alone(problem: Problem, seed: int) -> None:
    result = evaluate(problem.scores, problem.targets, mask=problem.known)
    categories = np.random.default_rng(seed).choice(["a", "b"], problem.targets.shape[1])
    rows = {row["category"]: row for row in category_rows(result, categories, keys=["ap", "f1"])}
    assert sum(row["num_labels"] for row in rows.values()) == len(categories)
    for name, row in rows.items():
        mine = categories == name
        part = evaluate(problem.scores[:, mine], problem.targets[:, mine], mask=problem.known[:, mine])
        assert (row["support"], row["num_averaged"]) == (part.per_label["support"].sum(), part["num_labels_averaged"])
        for key, metric in (("ap", "map"), ("f1", "macro_f1")):
            same(math.nan if row[key] is None else row[key], part[metric])


@given(counts=st.lists(st.integers(0, 8), min_size=1, max_size=40), seed=st.integers(0, 99))
@quick
def test_frequency_parts_hold_every_label_once_in_whatever_order(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random((30, len(counts))) < 0.4
    scores, order = rng.random(targets.shape), rng.permutation(len(counts))
    rows = frequency_rows(evaluate(scores, targets), counts)
    mixed = frequency_rows(evaluate(scores[:, order], targets[:, order]), np.array(counts)[order])
    for row, other in zip(rows, mixed, strict=True):
        assert row.keys() == other.keys()
        same(
            [np.nan if v is None or isinstance(v, str) else v for v in row.values()],
            [np.nan if v is None or isinstance(v, str) else v for v in other.values()],
        )
    held = [row for row in rows if row["num_labels"]]
    assert [row["decile"] for row in rows] == list(range(1, 11))
    assert sum(row["num_labels"] for row in held) == len(counts)
    assert all(first["least"] > second["most"] for first, second in pairwise(held))
    tiers = frequency_rows(evaluate(scores, targets), counts, by="tier")
    for tier in tiers:
        assert tier["num_labels"] == sum(row["num_labels"] for row in rows if row["tier"] == tier["tier"])


def test_frequency_by_hand() -> None:
    targets = np.tri(20, dtype=int)  # supports 20 to 1
    scores = targets * 0.75
    scores[:, 18:] = 0.75  # the two rarest are decided everywhere
    rows = frequency_rows(evaluate(scores, targets), keys=["precision"])
    assert [(row["least"], row["most"], row["tier"]) for row in rows[:3]] == [
        (19, 20, "head"),
        (17, 18, "head"),
        (15, 16, "head"),
    ]
    assert [row["precision"] for row in rows] == [1.0] * 9 + [pytest.approx((2 + 1) / 20 / 2)]
    text = rows_table(rows).splitlines()
    assert text[0].split() == ["decile", "tier", "least", "most", "num_labels", "num_averaged", "support", "precision"]
    assert text[10].split() == ["10", "tail", "1", "2", "2", "2", "3", "0.0750"]
    assert rows_table([]) == ""
    same(frequency_rows(evaluate(scores, targets), np.arange(20) + 0.5)[9]["least"], 0.5)


# --- messages -----------------------------------------------------------------------------------------------------


def test_messages() -> None:
    result = evaluate([[0.5, 0.2]], [[1, 0]])
    cases = [
        (lambda: metrics.log_auc([[0.1]], [[1]], fpr_range=(0.0, 0.1)), "fpr_range must be two rates, 0 < low < high"),
        (lambda: metrics.log_auc([[0.1]], [[1]], fpr_range=(0.2, 0.1)), "fpr_range must be two rates, 0 < low < high"),
        (lambda: metrics.precision_at_recall([[0.1]], [[1]], recall=2), "recall must be between 0 and 1; got 2"),
        (
            lambda: metrics.recall_at_precision([[0.1]], [[1]], precision=-1),
            "precision must be between 0 and 1; got -1",
        ),
        (lambda: metrics.precision_at_k([[0.1]], [[1]], k=0), "k must be a whole number, 1 or more; got 0"),
        (lambda: metrics.ndcg_at_k([[0.1]], [[1]], k=2.0), "k must be a whole number, 1 or more; got 2.0"),
        (lambda: metrics.recall_at_k([[0.1]], [[1]], k=True), "k must be a whole number, 1 or more; got True"),
        (lambda: propensities([1, 2], 2), "num_samples must be 3 or more; got 2"),
        (lambda: propensities([5], 4), "label 0 has 5 of 4"),
        (lambda: propensities([1], 4, a=0), "a must be a finite number above 0; got 0"),
        (lambda: propensities([1], 4, b=-1), "b must be a finite number above 0; got -1"),
        (lambda: metrics.expected_calibration_error([[0.1]], [[1]], bins=0), "bins must be 1 or more; got 0"),
        (lambda: category_rows(result, ["a"]), r"one category for each of the 2 labels was wanted; got \(1,\)"),
        (lambda: category_rows(result, ["a", "b"], keys=["app"]), "unknown key 'app'; did you mean 'ap'"),
        (lambda: frequency_rows(result, [1]), r"one count for each of the 2 labels was wanted; got \(1,\)"),
        (lambda: frequency_rows(result, by="tiers"), "unknown part 'tiers'; did you mean 'tier'"),
        (lambda: hierarchical_scores([[1, 0]], [[1, 0]], taxonomy=TAXONOMY), r"shape \(N, 6\) was wanted"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text):
            call()
    for held in ([0.5], [0.5, 0.0], [0.5, 1.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"propensities must be of shape \(2,\) and in \(0, 1\]"):
            metrics.propensity_scored_precision_at_k([[0.1, 0.2]], [[1, 0]], propensities=held, k=1)
    with pytest.raises(TypeError, match="decisions must be bool or 0/1; got dtype float64"):
        hierarchical_scores(np.full((1, 6), 0.5), np.ones((1, 6)), taxonomy=TAXONOMY)
    assert math.isnan(metrics.propensity_scored_precision_at_k([[0.1]], [[0]], propensities=[1.0], k=1))
