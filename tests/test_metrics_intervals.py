"""Intervals: each resample says what `evaluate` says of its rows, and intervals hold the truth as often as they say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import Problem, brief, problems

from mlabel import Group, LabelSpace
from mlabel.metrics import COUNT_METRICS, bootstrap, draw_resamples, evaluate
from mlabel.metrics import _blocks as blocks_module
from mlabel.metrics import _levels as levels_module
from mlabel.metrics import resamples as resamples_module
from mlabel.metrics._measures import EXTRA_METRICS, LABEL_METRICS, METRICS
from mlabel.metrics.resamples import Weights, spread, two_sided

SPACE = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "risky", "other"], exclusive=True)])
EVERY = [*METRICS, *EXTRA_METRICS, *LABEL_METRICS, "ap", "auroc"]
NAN = math.nan


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-11, atol=1e-11, err_msg=name)


@st.composite
def grouped(draw: st.DrawFn) -> Problem:
    """Two any-of labels and one exclusive group of three, one class a row or wholly unknown."""
    rows = draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    targets = np.hstack([rng.integers(0, 2, (rows, 2)), np.eye(3)[rng.integers(0, 3, rows)]]).astype(np.uint8)
    known = np.hstack([rng.random((rows, 2)) < 0.8, np.repeat(rng.random((rows, 1)) < 0.8, 3, axis=1)])
    targets[:, 2:] *= known[:, 2:]
    return Problem(rng.integers(0, 9, (rows, 5)) / 8, targets, known)


def make_problem(rows: int, labels: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, labels))
    targets = (rng.random((rows, labels)) < 1 / (1 + np.exp(2 - 2 * logits))).astype(np.uint8)
    return Problem((1 / (1 + np.exp(-logits))).astype(np.float32), targets, rng.random((rows, labels)) < 0.9)


def rows_in(drawn: np.ndarray) -> list[np.ndarray]:
    """The rows of all samples, and those of each resample, by number."""
    places = np.arange(drawn.shape[1])
    return [places, *(np.repeat(places, counts) for counts in drawn)]


# --- the reference: evaluate, on the rows of each resample -----------------------------------------------------------


@pytest.mark.parametrize("zero_division", [NAN, 0.0, 1.0])
@given(problem=grouped(), seed=st.integers(0, 1000), in_groups=st.booleans())
@brief
def test_every_number_is_that_of_the_rows(zero_division: float, problem: Problem, seed: int, in_groups: bool) -> None:
    groups = np.arange(len(problem.scores)) // 2 if in_groups else None
    options = {"mask": problem.known, "space": SPACE, "zero_division": zero_division}
    found = bootstrap(
        problem.scores, problem.targets, 0.4, metrics=EVERY, resamples=4, seed=seed, groups=groups, **options
    )
    drawn = draw_resamples(len(problem.scores), 4, seed=seed, groups=groups)
    labels: dict[str, list[np.ndarray]] = {name: [] for name in found.per_label}
    for number, rows in enumerate(rows_in(drawn)):
        options["mask"] = problem.known[rows]
        include = [*EXTRA_METRICS, *LABEL_METRICS]
        wanted = evaluate(problem.scores[rows], problem.targets[rows], 0.4, include=include, **options)
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            same(found[name].value if number == 0 else found.resampled[name][number - 1], value, name)
        for name, values in labels.items():
            values.append(wanted.per_label[name])
    for name, values in labels.items():
        ends = quantiles_of(np.stack(values[1:]), 0.95)
        for one, other in zip(found.per_label[name], [values[0], *ends], strict=True):
            same(one, other, name)
    for name, values in found.resampled.items():
        for one, other in zip(found[name][1:], quantiles_of(values, 0.95), strict=True):
            same(one, other, name)


def quantiles_of(values: np.ndarray, level: float) -> list[np.ndarray]:
    """NumPy's quantiles of what is not NaN, of each column."""
    columns = values.reshape(len(values), -1)
    shares = [(1 - level) / 2, (1 + level) / 2]
    held = [column[~np.isnan(column)] for column in columns.T]
    ends = np.array([np.quantile(each, shares) if len(each) else [NAN, NAN] for each in held]).T
    return list(ends) if values.ndim > 1 else list(ends[:, 0])


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_folds_decide_as_they_do_in_evaluate(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels, folds = rng.random((3, problem.scores.shape[1])), rng.integers(0, 3, len(problem.scores))
    found = bootstrap(problem.scores, problem.targets, levels, folds=folds, resamples=3, metrics=COUNT_METRICS)
    for number, rows in enumerate(rows_in(draw_resamples(len(folds), 3))[1:]):
        wanted = evaluate(problem.scores[rows], problem.targets[rows], levels, folds=folds[rows])
        for name in COUNT_METRICS:
            same(found.resampled[name][number], wanted[name], name)


def test_scikit_learn_says_the_same_of_the_rows() -> None:
    problem = make_problem(60, 5)
    found = bootstrap(problem.scores, problem.targets, resamples=5, zero_division=0)
    for number, rows in enumerate(rows_in(draw_resamples(60, 5))[1:]):
        targets, scores = problem.targets[rows], problem.scores[rows]
        decisions = scores >= 0.5
        for average in ("micro", "macro", "weighted", "samples"):
            theirs = sk.precision_recall_fscore_support(targets, decisions, average=average, zero_division=0)
            for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
                same(found.resampled[f"{average}_{name}"][number], value)
        same(found.resampled["exact_match"][number], sk.accuracy_score(targets, decisions))
        same(found.resampled["hamming_loss"][number], sk.hamming_loss(targets, decisions))
        same(found.resampled["map"][number], sk.average_precision_score(targets, scores))
        same(found.resampled["micro_ap"][number], sk.average_precision_score(targets, scores, average="micro"))
        same(found.resampled["macro_auroc"][number], sk.roc_auc_score(targets, scores))
        same(found.resampled["lrap"][number], sk.label_ranking_average_precision_score(targets, scores))
        same(found.resampled["coverage_error"][number], sk.coverage_error(targets, scores))
        same(found.resampled["ranking_loss"][number], sk.label_ranking_loss(targets, scores))


def test_many_different_scores_are_pooled_to_within_a_thousandth() -> None:
    problem = make_problem(400, 20)
    names = [f"micro_{name}" for name in ("ap", "auroc", "break_even", "log_auc", "precision_at_recall_0.5")]
    found = bootstrap(problem.scores, problem.targets, mask=problem.known, metrics=names, resamples=4)
    for number, rows in enumerate(rows_in(draw_resamples(400, 4))):
        options = {"mask": problem.known[rows], "include": [name for name in names if name in EXTRA_METRICS]}
        wanted = evaluate(problem.scores[rows], problem.targets[rows], **options)
        for name in names:
            value = found[name].value if number == 0 else found.resampled[name][number - 1]
            assert abs(value - wanted[name]) < (1e-12 if number == 0 else 1e-3), name


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(50, 13)
    options = {"mask": problem.known, "metrics": EVERY, "resamples": 30}
    expected = bootstrap(problem.scores, problem.targets, **options)
    monkeypatch.setattr(blocks_module, "num_threads", lambda: threads)
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", 2**14)
    monkeypatch.setattr(levels_module, "_TOGETHER", 20)
    monkeypatch.setattr(resamples_module, "_TOGETHER", 7)
    found = bootstrap(problem.scores, problem.targets, **options)
    for name in expected:
        same(found.resampled[name], expected.resampled[name], name)
    for name, held in expected.per_label.items():
        for one, other in zip(found.per_label[name], held, strict=True):
            same(one, other, name)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_each_resample_has_as_many_draws_as_there_are_samples() -> None:
    drawn = draw_resamples(50, 400, seed=3)
    assert drawn.shape == (400, 50)
    assert drawn.dtype == np.uint8
    assert (drawn.sum(axis=1) == 50).all()
    # Of 20,000 counts with mean 1 and variance 0.98, the shares of none and of two or more are those of the binomial.
    assert abs((drawn == 0).mean() - (1 - 1 / 50) ** 50) < 0.015
    assert abs(drawn.var() - 0.98) < 0.05
    np.testing.assert_array_equal(draw_resamples(50, 10, seed=3), drawn[:10])
    assert (draw_resamples(50, 10, seed=4) != drawn[:10]).any()
    assert draw_resamples(1, 1).tolist() == [[1]]


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), st.integers(0, 100))
@brief
def test_a_group_is_drawn_as_one(groups: list[str], seed: int) -> None:
    drawn = draw_resamples(len(groups), 20, groups=groups, seed=seed)
    names = list(dict.fromkeys(groups))
    alone = draw_resamples(len(names), 20, seed=seed)
    np.testing.assert_array_equal(drawn, alone[:, [names.index(name) for name in groups]])


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_groups_of_one_image_are_no_groups(problem: Problem, seed: int) -> None:
    names = np.random.default_rng(seed).permutation(len(problem.scores)).astype(str)
    options = {"mask": problem.known, "resamples": 6, "seed": seed, "metrics": COUNT_METRICS}
    alone = bootstrap(problem.scores, problem.targets, **options)
    found = bootstrap(problem.scores, problem.targets, groups=names, **options)
    assert found.to_dict() == alone.to_dict()


@given(problem=problems(), seed=st.integers(0, 1000))
@brief
def test_twice_every_image_is_the_same_where_both_are_one_group(problem: Problem, seed: int) -> None:
    twice = [np.concatenate([array, array]) for array in (problem.scores, problem.targets, problem.known)]
    groups = np.tile(np.arange(len(problem.scores)), 2)
    names = ["map", "macro_auroc", "micro_ap", "macro_f1", "micro_f1", "exact_match", "lrap", "macro_brier"]
    alone = bootstrap(*problem.scored[:2], mask=problem.known, resamples=5, seed=seed, metrics=names)
    found = bootstrap(*twice[:2], mask=twice[2], groups=groups, resamples=5, seed=seed, metrics=names)
    assert (found.num_groups, found.num_samples) == (alone.num_samples, 2 * alone.num_samples)
    for name in names:
        same(found.resampled[name], alone.resampled[name], name)


def test_sums_beyond_sixteen_bits_do_not_wrap() -> None:
    rows = 70_000
    targets = np.ones((rows, 1), np.uint8)
    found = bootstrap(np.full((rows, 1), 0.9, np.float32), targets, resamples=2, metrics=["micro_recall", "map"])
    assert found["micro_recall"] == (1, 1, 1)
    assert Weights.of(draw_resamples(rows, 2)).kind == np.uint32
    assert Weights.of(draw_resamples(65_535, 2)).kind == np.uint16


# --- intervals -------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # Of two images one is decided right: a resample has neither, one or both, with shares 1/4, 1/2, 1/4.
    found = bootstrap([[0.9], [0.1]], [[1], [1]], metrics=["exact_match"], resamples=2000, level=0.4)
    assert found["exact_match"] == (0.5, 0.5, 0.5)
    values, counts = np.unique(found.resampled["exact_match"], return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert np.abs(counts / 2000 - [0.25, 0.5, 0.25]).max() < 0.04
    wide = bootstrap([[0.9], [0.1]], [[1], [1]], metrics=["exact_match"], resamples=2000, level=0.9)
    assert wide["exact_match"] == (0.5, 0, 1)


def test_the_ends_leave_half_of_the_others_on_each_side() -> None:
    values = np.append(0.3, np.random.default_rng(0).permutation(101) / 100)
    same(spread(values, 0.9), [0.3, 0.05, 0.95])
    same(spread(np.array([0.5, 1.0, NAN, 0.0]), 0.5), [0.5, 0.25, 0.75])
    assert np.isnan(spread(np.array([0.5, NAN, NAN]), 0.5)[1:]).all()


def test_the_p_value_is_twice_the_rarer_side() -> None:
    gaps = np.array([9.0, *[1.0] * 16, *[-1.0] * 3])
    assert two_sided(gaps) == pytest.approx(2 * 4 / 20)
    assert two_sided(-gaps) == pytest.approx(2 * 4 / 20)
    same(two_sided(np.stack([gaps, np.zeros(20)])), [2 * 4 / 20, 1])
    assert two_sided(np.ones(20)) == pytest.approx(2 / 20)
    assert two_sided(np.append(gaps, NAN)) == pytest.approx(2 * 4 / 20)
    assert math.isnan(two_sided(np.array([1.0, NAN])))


@given(problem=problems())
@brief
def test_a_higher_level_is_a_wider_interval(problem: Problem) -> None:
    options = {"mask": problem.known, "resamples": 20, "metrics": COUNT_METRICS}
    narrow = bootstrap(problem.scores, problem.targets, level=0.5, **options)
    wide = bootstrap(problem.scores, problem.targets, level=0.9, **options)
    for name, held in narrow.items():
        if not math.isnan(held.low):
            assert wide[name].low <= held.low <= held.high <= wide[name].high, name


def covered(problem_of: object, truth: float, name: str, **options: object) -> int:
    """Of 300 data sets, how many have an interval that holds the truth."""
    hits = 0
    for seed in range(300):
        decided, targets = problem_of(np.random.default_rng(seed))  # type: ignore[operator]
        found = bootstrap(decided, targets, metrics=[name], resamples=200, seed=seed, **options)[name]
        hits += found.low <= truth <= found.high
    return hits


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        targets = rng.random((120, 2)) < 0.5
        return np.where(rng.random((120, 2)) < 0.8, targets, ~targets).astype(float), targets

    # 285 of 300 are expected; four standard deviations of the binomial are 15, and percentiles fall a little short.
    assert 266 <= covered(draw, 0.8, "micro_recall") <= 299
    assert 266 <= covered(draw, 0.64, "exact_match") <= 299


def test_images_that_belong_together_need_groups() -> None:
    member = np.repeat(np.arange(60), 5)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        right = (rng.random(60) < 0.7)[member]
        return right[:, None].astype(float), np.ones((300, 1), bool)

    assert covered(draw, 0.7, "micro_recall", groups=member) >= 262
    assert covered(draw, 0.7, "micro_recall") < 220


# --- what is absent --------------------------------------------------------------------------------------------------


def test_a_label_without_positives_has_no_interval() -> None:
    found = bootstrap([[0.9, 0.2], [0.3, 0.4]], [[1, 0], [1, 0]], resamples=50)
    for name in ("recall", "f1", "ap", "auroc"):
        assert np.isnan([held[1] for held in found.per_label[name]]).all()
    assert found["num_labels_averaged"] == (1, 1, 1)
    assert math.isnan(found["macro_auroc"].low)
    assert found.label_rows("ap")[1] == {"name": "1", "value": None, "low": None, "high": None}


def test_resamples_without_its_positives_are_left_out_of_a_label() -> None:
    scores, targets = np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [0]])
    found = bootstrap(scores, targets, metrics=["macro_recall", "recall"], resamples=50)
    assert np.isnan(found.resampled["macro_recall"]).any()
    assert [float(held[0]) for held in found.per_label["recall"]] == [1, 1, 1]
    assert found["macro_recall"] == (1, 1, 1)


# --- forms of input and output ---------------------------------------------------------------------------------------


@given(problem=problems())
@brief
def test_every_form_of_input_gives_the_same(problem: Problem) -> None:
    options = {"resamples": 4, "metrics": ["macro_f1", "map", "lrap", "micro_ece"]}
    expected = bootstrap(*problem.scored[:2], mask=problem.known, **options).to_dict()
    tensors = [torch.tensor(array) for array in problem.scored]
    assert bootstrap(*tensors[:2], mask=tensors[2], **options).to_dict() == expected
    sparse = sp.csc_array(problem.targets), sp.csr_array(~problem.known)
    assert bootstrap(problem.scores, sparse[0], mask=sparse[1], **options).to_dict() == expected


def test_only_what_is_wanted_is_measured() -> None:
    problem = make_problem(20, 3)
    found = bootstrap(*problem.scored[:2], metrics=["macro_f1", "mcc"], resamples=3)
    assert list(found) == ["macro_f1"]
    assert list(found.per_label) == ["precision", "recall", "f1", "jaccard", "accuracy", "mcc"]
    assert set(COUNT_METRICS) < set(METRICS)
    assert {"macro_f1", "samples_recall", "exact_match", "hamming_loss", "label_accuracy"} < set(COUNT_METRICS)
    assert not {"map", "lrap", "micro_ap", "num_labels_auroc"} & set(COUNT_METRICS)


def test_text_and_json() -> None:
    problem = make_problem(20, 5)
    targets = problem.targets.copy()
    targets[:, 2:] = np.eye(3, dtype=np.uint8)[np.arange(20) % 3]
    found = bootstrap(problem.scores, targets, space=SPACE, resamples=9, level=0.8, groups=np.arange(20) // 2)
    lines = found.table().splitlines()
    assert lines[0].split() == ["metric", "value", "low", "high"]
    assert [line.split()[0] for line in lines[1:]] == list(found)
    assert lines[1].split()[1:] == [f"{number:.4f}" for number in found["micro_precision"]]
    assert "rating.mean_class_accuracy" in found
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (held["format"], held["level"], held["num_samples"], held["num_groups"]) == (
        "mlabel.intervals/1",
        0.8,
        20,
        10,
    )
    assert held["metrics"]["map"] == {"value": found["map"].value, "low": found["map"].low, "high": found["map"].high}
    assert held["names"] == list(SPACE.names)
    assert held["per_label"]["f1"]["high"] == found.per_label["f1"].high.tolist()
    assert [row["name"] for row in found.label_rows()] == list(SPACE.names)
    assert found.label_rows("ap")[1]["low"] == found.per_label["ap"].low[1]
    assert len(found) == len(list(found))
    assert repr(found) == f"Intervals({len(found)} metrics, 20 samples, 9 resamples, level 0.8)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["macro_f2"]}, "unknown metric 'macro_f2'; did you mean 'macro_f1'"),
        ({"level": 1.0}, "level must be above 0 and below 1"),
        ({"level": 0.0}, "level must be above 0 and below 1"),
        ({"resamples": 0}, "at least one sample and one resample are needed; got 4 and 0"),
        ({"groups": [1, 2]}, r"groups must be of shape \(4,\); got \(2,\)"),
        ({"zero_division": 0.5}, "zero_division must be nan, 0 or 1"),
        ({"metrics": ["macro_brier"]}, r"scores must be probabilities in \[0, 1\]"),
    ],
)
def test_messages(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap([[1.5], [0.2], [0.3], [0.4]], [[1], [0], [1], [0]], **options)


def test_a_metric_that_was_not_measured_is_named() -> None:
    found = bootstrap([[0.5], [0.2]], [[1], [0]], metrics=["macro_f1"], resamples=2)
    with pytest.raises(KeyError, match="no metric 'recall' was measured; it is one of each label: see per_label"):
        found["recall"]
    with pytest.raises(KeyError, match="no metric 'macro_f' was measured; did you mean 'macro_f1'"):
        found["macro_f"]
    with pytest.raises(ValueError, match="unknown statistic of labels 'ap'"):
        found.label_rows("ap")
    with pytest.raises(TypeError, match="a list of metric names"):
        bootstrap([[0.5], [0.2]], [[1], [0]], metrics="macro_f1")
