"""Comparison of two models: the difference of their figures in the same resamples, on the labels that both have."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import Problem, brief, problems

from mlabel import Group, LabelSpace
from mlabel.metrics import adjust_p_values, bootstrap, compare, draw_resamples, evaluate

NAMES = [
    "macro_f1",
    "micro_f1",
    "exact_match",
    "map",
    "macro_auroc",
    "micro_ap",
    "lrap",
    "samples_f1",
    "num_labels_auroc",
]


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-11, atol=1e-11, err_msg=name)


def shuffled(problem: Problem, seed: int) -> np.ndarray:
    """The scores of another model."""
    return np.random.default_rng(seed).permuted(problem.scores, axis=0)


# --- the reference: two bootstraps of the same resamples -------------------------------------------------------------


@given(problem=problems(), seed=st.integers(0, 1000), level=st.sampled_from([0.5, 0.95]))
@brief
def test_it_is_the_difference_of_two_bootstraps(problem: Problem, seed: int, level: float) -> None:
    other = shuffled(problem, seed)
    options = {"mask": problem.known, "metrics": NAMES, "resamples": 9, "seed": seed, "level": level}
    found = compare(problem.scores, other, problem.targets, thresholds=(0.3, 0.6), **options)
    first = bootstrap(problem.scores, problem.targets, 0.3, **options)
    second = bootstrap(other, problem.targets, 0.6, **options)
    assert list(found) == NAMES
    for name, held in found.items():
        gaps = first.resampled[name] - second.resampled[name]
        same(found.resampled[name], gaps, name)
        same(held[:3], [first[name].value, second[name].value, first[name].value - second[name].value], name)
        kept = gaps[~np.isnan(gaps)]
        if not len(kept):
            assert np.isnan(held[3:]).all()
            continue
        same(held[3:5], np.quantile(kept, [(1 - level) / 2, (1 + level) / 2]), name)
        rarer = min((kept <= 0).sum(), (kept >= 0).sum())
        same(held.p_value, min(1, 2 * (rarer + 1) / (len(kept) + 1)), name)
    for name, each in found.per_label.items():
        same(each.first, first.per_label[name].value)
        same(each.second, second.per_label[name].value)
        same(each.difference, first.per_label[name].value - second.per_label[name].value)


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_of_each_label_it_is_the_difference_of_the_rows(problem: Problem, seed: int) -> None:
    other = shuffled(problem, seed)
    options = {"mask": problem.known, "metrics": ["macro_f1", "ap"], "resamples": 7, "seed": seed}
    found = compare(problem.scores, other, problem.targets, **options)
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in found.per_label}
    for counts in draw_resamples(len(other), 7, seed=seed):
        rows = np.repeat(np.arange(len(other)), counts)
        both = [
            evaluate(scores[rows], problem.targets[rows], mask=problem.known[rows]).per_label
            for scores in (problem.scores, other)
        ]
        for name, values in gaps.items():
            values.append(both[0][name] - both[1][name])
    for name, values in gaps.items():
        for label, column in enumerate(np.stack(values).T):
            kept = column[~np.isnan(column)]
            ends = np.quantile(kept, [0.025, 0.975]) if len(kept) else [math.nan] * 2
            rarer = min((kept <= 0).sum(), (kept >= 0).sum())
            p_value = min(1, 2 * (rarer + 1) / (len(kept) + 1)) if len(kept) else math.nan
            same([each[label] for each in found.per_label[name][3:]], [*ends, p_value], name)


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_swapping_the_models_turns_the_signs(problem: Problem, seed: int) -> None:
    other = shuffled(problem, seed)
    options = {"mask": problem.known, "metrics": NAMES, "resamples": 9, "seed": seed}
    found = compare(problem.scores, other, problem.targets, thresholds=(0.3, 0.6), **options)
    turned = compare(other, problem.scores, problem.targets, thresholds=(0.6, 0.3), **options)
    for these, those in ((found.metrics, turned.metrics), (found.per_label, turned.per_label)):
        for name, held in these.items():
            mirror = those[name]
            same(held.first, mirror.second, name)
            same(held.difference, -np.array(mirror.difference), name)
            same(held.low, -np.array(mirror.high), name)
            same(held.p_value, mirror.p_value, name)
    same(found.sign_test, turned.sign_test)


@given(problem=problems())
@brief
def test_a_model_is_no_better_than_itself(problem: Problem) -> None:
    found = compare(problem.scores, problem.scores, problem.targets, mask=problem.known, metrics=NAMES, resamples=5)
    for name, held in found.items():
        if not math.isnan(held.low):
            assert held[2:] == (0, 0, 0, 1), name
    assert found.sign_test is not None
    assert (found.sign_test == 1).all()
    known = ~np.isnan(found.per_label["f1"].low)
    assert (found.per_label["f1"].p_value[known] == 1).all()


# --- what it claims --------------------------------------------------------------------------------------------------


def two_models(rng: np.random.Generator, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decisions of two models on 150 images of one label: right for 0.8 of them, and for `share`, and the targets."""
    hard = rng.random(150)
    targets = rng.random(150) < 0.5
    noise = 0.2 * rng.random((2, 150))
    right = [hard * 0.8 + noise[0] < 0.72, hard * 0.8 + noise[1] < share]
    return *(np.where(each, targets, ~targets)[:, None].astype(float) for each in right), targets[:, None]


def test_the_interval_holds_no_difference_as_often_as_it_says() -> None:
    hits, early = 0, 0
    for seed in range(300):
        first, second, targets = two_models(np.random.default_rng(seed), 0.72)
        held = compare(first, second, targets, metrics=["exact_match"], resamples=200, seed=seed)
        hits += held["exact_match"].low <= 0 <= held["exact_match"].high
        early += held["exact_match"].p_value <= 0.05
        assert held.sign_test is not None
    # 285 and 15 of 300 are expected; four standard deviations of the binomial are 15.
    assert 266 <= hits <= 300
    assert early <= 34


def test_pairing_finds_what_separate_intervals_do_not() -> None:
    found = 0
    for seed in range(20):
        first, second, targets = two_models(np.random.default_rng(seed), 0.66)
        both = compare(first, second, targets, metrics=["exact_match"], resamples=200)["exact_match"]
        alone = [
            bootstrap(each, targets, metrics=["exact_match"], resamples=200)["exact_match"] for each in (first, second)
        ]
        found += both.low > 0 and alone[0].low <= alone[1].high
    assert found >= 8


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_the_sign_test_is_the_binomial_one(problem: Problem, seed: int) -> None:
    other = shuffled(problem, seed)
    found = compare(problem.scores, other, problem.targets, mask=problem.known, metrics=["macro_f1"], resamples=2)
    right = [((scores >= 0.5) == problem.targets) & problem.known for scores in (problem.scores, other)]
    assert found.sign_test is not None
    for label, p_value in enumerate(found.sign_test):
        better, worse = [int((a & ~b)[:, label].sum()) for a, b in (right, right[::-1])]
        expected = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        same(p_value, expected)


def test_there_is_no_sign_test_of_images_that_belong_together() -> None:
    found = compare([[0.9], [0.1]], [[0.8], [0.7]], [[1], [0]], groups=[0, 0], resamples=3, metrics=["macro_f1"])
    assert found.sign_test is None
    assert (found.num_groups, found.to_dict()["sign_test"]) == (1, None)
    assert found["macro_f1"].low == found["macro_f1"].high == pytest.approx(1 - 2 / 3)


# --- many labels -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=8), st.booleans())
@brief
def test_corrections_are_those_of_their_definitions(p_values: list[float], with_nan: bool) -> None:
    given_values = [math.nan, *p_values] if with_nan else p_values
    held = np.array(p_values)
    benjamini = adjust_p_values(given_values, "benjamini_hochberg")
    holm = adjust_p_values(given_values, "holm")
    same(benjamini[-len(held) :], scipy.stats.false_discovery_control(held))
    # Holm rejects, from the smallest on, while p <= level / how many are left; the adjusted p is the lowest such level.
    expected = np.empty(len(held))
    highest = 0.0
    for place, label in enumerate(np.argsort(held, kind="stable")):
        highest = max(highest, min(1.0, held[label] * (len(held) - place)))
        expected[label] = highest
    same(holm[-len(held) :], expected)
    if with_nan:
        assert np.isnan([benjamini[0], holm[0]]).all()


def test_labels_come_with_adjusted_p_values_the_smallest_first() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((80, 3)) < 0.5).astype(np.uint8)
    targets[:, 0] = 0
    first = np.where(rng.random((80, 3)) < [0.1, 0.1, 0.1], 1 - targets, targets)
    second = np.where(rng.random((80, 3)) < [0.1, 0.1, 0.5], 1 - targets, targets)
    found = compare(first, second, targets, resamples=99, metrics=["macro_f1"])
    rows = found.label_rows("f1", correction="holm")
    assert [row["name"] for row in rows] == ["2", "1", "0"]
    assert rows[0]["p_value"] == pytest.approx(0.02)
    assert rows[0]["adjusted_p"] == pytest.approx(0.04)
    assert rows[2]["adjusted_p"] is rows[2]["p_value"] is rows[2]["difference"] is None
    assert found.label_rows("f1")[1]["adjusted_p"] == pytest.approx(rows[1]["p_value"])


# --- two vocabularies ------------------------------------------------------------------------------------------------

RATING = ["safe", "risky"]
FIRST = LabelSpace([Group("tags", ["cat", "dog", "cow"]), Group("rating", RATING, exclusive=True)])
SECOND = LabelSpace(
    [
        Group("rated", RATING[::-1], exclusive=True),
        Group("seen", ["owl", "dog", "cat"]),
        Group("size", ["x", "y"], True),
    ]
)


def test_models_are_compared_on_the_names_that_both_have() -> None:
    rng = np.random.default_rng(1)
    targets = np.hstack([rng.integers(0, 2, (30, 3)), np.eye(2, dtype=int)[rng.integers(0, 2, 30)]])
    known = rng.random((30, 5)) < 0.9
    known[:, 3:] = known[:, 3:].all(axis=1, keepdims=True)
    first, second = rng.random((30, 5)), rng.random((30, 7))
    levels = rng.random(5), rng.random(7)
    options = {"metrics": NAMES, "resamples": 8, "mask": known}
    found = compare(first, second, targets, thresholds=levels, spaces=(FIRST, SECOND), **options)
    assert found.names == ("cat", "dog", "safe", "risky")
    assert found.left_out == {"first": ("cow",), "second": ("owl", "x", "y"), "targets": ("cow",)}
    mine, theirs = [0, 1, 3, 4], [4, 3, 1, 0]
    space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", RATING, exclusive=True)])
    options["mask"] = known[:, mine]
    pair = levels[0][mine], levels[1][theirs]
    plain = compare(first[:, mine], second[:, theirs], targets[:, mine], thresholds=pair, space=space, **options)
    assert {**found.to_dict(), "left_out": None} == {**plain.to_dict(), "left_out": None}
    assert plain.left_out == {"first": (), "second": (), "targets": ()}


def test_targets_may_be_of_a_third_space() -> None:
    third = LabelSpace([Group("all", ["dog", "owl", "cat"])])
    cats, dogs = LabelSpace([Group("a", ["cat", "dog"])]), LabelSpace([Group("b", ["dog", "cat", "cow"])])
    found = compare([[0.9, 0.1]], [[0.8, 0.1, 0.3]], [[0, 1, 1]], spaces=(cats, dogs), space=third, resamples=2)
    assert found.left_out == {"first": (), "second": ("cow",), "targets": ("owl",)}
    assert found.names == ("cat", "dog")
    assert (found["exact_match"].first, found["exact_match"].second) == (1, 0)


def test_an_exclusive_group_needs_the_same_labels_in_all() -> None:
    more = LabelSpace([Group("tags", ["cat"]), Group("rating", [*RATING, "other"], exclusive=True)])
    loose = LabelSpace([Group("tags", ["cat", *RATING])])
    rng = np.random.default_rng(0)
    targets = np.hstack([rng.integers(0, 2, (9, 3)), np.eye(2, dtype=int)[rng.integers(0, 2, 9)]])
    for other in (more, loose):
        scores = rng.random((9, other.num_labels))
        found = compare(rng.random((9, 5)), scores, targets, spaces=(FIRST, other), resamples=2, metrics=["map"])
        assert found.names == ("cat",)
        assert found.left_out["first"] == ("dog", "cow", "safe", "risky")


def test_equal_spaces_leave_nothing_out() -> None:
    found = compare([[0.9, 0.2, 0.1, 0.9, 0.1]], [[0.9, 0.2, 0.1, 0.1, 0.9]], [[1, 0, 0, 1, 0]], spaces=(FIRST, FIRST))
    assert found.names == FIRST.names
    assert found["rating.accuracy"].difference == 1


# --- forms of input and output ---------------------------------------------------------------------------------------


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_every_form_of_input_gives_the_same(problem: Problem, seed: int) -> None:
    other = shuffled(problem, seed)
    options = {"resamples": 3, "metrics": NAMES}
    expected = compare(problem.scores, other, problem.targets, mask=problem.known, **options).to_dict()
    tensors = [torch.tensor(array) for array in (problem.scores, other, problem.targets)]
    assert compare(*tensors, mask=torch.tensor(problem.known), **options).to_dict() == expected
    targets, unknown = sp.csr_array(problem.targets), sp.csr_array(~problem.known)
    assert compare(problem.scores, other, targets, mask=unknown, **options).to_dict() == expected


def test_folds_are_those_of_both() -> None:
    levels, folds = np.array([[0.5], [0.95]]), np.array([0, 1])
    found = compare([[0.9], [0.9]], [[0.4], [0.9]], [[1], [1]], thresholds=levels, folds=folds, resamples=2)
    assert (found["micro_recall"].first, found["micro_recall"].second) == (0.5, 0)


def test_text_and_json() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (20, 2))
    found = compare(rng.random((20, 2)), rng.random((20, 2)), targets, resamples=9, level=0.8)
    lines = found.table().splitlines()
    assert lines[0].split() == ["metric", "first", "second", "difference", "low", "high", "p_value"]
    assert lines[1].split()[1:] == [f"{number:.4f}" for number in found["micro_precision"]]
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (held["format"], held["level"], held["num_samples"], held["num_groups"]) == (
        "mlabel.comparison/1",
        0.8,
        20,
        20,
    )
    assert held["metrics"]["map"]["p_value"] == found["map"].p_value
    assert held["names"] == ["0", "1"]
    assert held["left_out"] == {"first": [], "second": [], "targets": []}
    assert held["per_label"]["f1"]["difference"] == found.per_label["f1"].difference.tolist()
    assert held["sign_test"] == found.sign_test.tolist()  # type: ignore[union-attr]
    assert len(found) == len(list(found))
    assert repr(found) == f"Comparison({len(found)} metrics, 2 labels, 20 samples, 9 resamples, level 0.8)"


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ([[0.5]], {}, "second must have a row for each of the 2 rows of targets"),
        ([[0.5, 0.5]] * 2, {}, r"second must be of shape \(2, 1\); got \(2, 2\)"),
        ([[math.nan], [0.5]], {}, "second must be finite"),
        ([[0.5], [0.5]], {"thresholds": (0.5, 0.5, 0.5)}, "a tuple of thresholds must be of the two models; got 3"),
        ([[0.5], [0.5]], {"level": 1.5}, "level must be above 0 and below 1"),
        ([[0.5], [0.5]], {"metrics": ["macro"]}, "unknown metric 'macro'"),
    ],
)
def test_messages(second: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare([[0.5], [0.2]], second, [[1], [0]], **options)


def test_what_cannot_be_compared_or_was_not_measured_is_named() -> None:
    cats, dogs = LabelSpace([Group("a", ["cat"])]), LabelSpace([Group("a", ["dog"])])
    with pytest.raises(ValueError, match="no label in common"):
        compare([[0.5]], [[0.5]], [[1]], spaces=(cats, dogs))
    found = compare([[0.5]], [[0.4]], [[1]], metrics=["macro_f1"], resamples=2)
    with pytest.raises(KeyError, match="it is one of each label: see per_label"):
        found["f1"]
    with pytest.raises(KeyError, match="did you mean 'macro_f1'"):
        found["macro_f"]
    with pytest.raises(ValueError, match="unknown correction 'bonferroni'"):
        found.label_rows(correction="bonferroni")
    with pytest.raises(ValueError, match="unknown statistic of labels 'ap'"):
        found.label_rows("ap")
    for wrong in ([0.5, 1.5], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match=r"p-values must be of shape \(L,\) and in \[0, 1\]"):
            adjust_p_values(wrong)
