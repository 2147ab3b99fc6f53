"""Evaluation: agrees with the functions it stands for, honours groups and masks, and prints what it found."""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import CURVES, PROBABILISTIC, RATIOS, ROWS, Problem, brief, problems, quick

from mlabel import Group, LabelSpace, metrics
from mlabel.metrics import Evaluation, comparison_table, confusion_counts, evaluate
from mlabel.metrics import _blocks as blocks_module
from mlabel.metrics.evaluation import EXTRA_METRICS, LABEL_METRICS

SPACE = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "risky", "other"], exclusive=True)])
SCORES = np.array(
    [
        [0.9, 0.5, 0.6, 0.3, 0.1],
        [0.2, 0.4, 0.4, 0.5, 0.1],
        [0.8, 0.1, 0.3, 0.3, 0.4],
        [0.4, 0.6, 0.5, 0.4, 0.1],
    ],
    dtype=np.float32,
)
TARGETS = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=np.uint8)


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12, err_msg=name)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[LabelSpace, Problem]:
    """A space of two any-of labels and one exclusive group of three, one class a row or wholly unknown."""
    rows = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    targets = np.hstack([rng.integers(0, 2, (rows, 2)), np.eye(3)[rng.integers(0, 3, rows)]]).astype(np.uint8)
    known = np.hstack([rng.random((rows, 2)) < 0.8, np.repeat(rng.random((rows, 1)) < 0.8, 3, axis=1)])
    targets[:, 2:] *= known[:, 2:]
    return SPACE, Problem(rng.integers(0, 9, (rows, 5)) / 8, targets, known)


# --- agreement with the functions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_division", [math.nan, 0.0, 1.0])
@given(problem=problems())
@brief
def test_every_number_is_that_of_its_function(zero_division: float, problem: Problem) -> None:
    result = evaluate(
        problem.scores,
        problem.targets,
        mask=problem.known,
        include=[*EXTRA_METRICS, *LABEL_METRICS],
        zero_division=zero_division,
    )
    fill = {"zero_division": zero_division}
    for name, function in RATIOS.items():
        for average in ("micro", "macro", "weighted", "samples") if name != "accuracy" else ():
            same(result[f"{average}_{name}"], function(*problem.decided, average=average, **fill), f"{average}_{name}")
        same(result.per_label[name], function(*problem.decided, average=None, **fill), name)
    for table, of_table in ((CURVES, fill), (PROBABILISTIC, {})):
        for name, function in table.items():
            if name in LABEL_METRICS:
                for average in ("micro", "macro", "weighted"):
                    same(result[f"{average}_{name}"], function(*problem.scored, average=average, **of_table), name)
                same(result.per_label[name], function(*problem.scored, average=None, **of_table), name)
    for name, function in ROWS.items():
        same(result[name], function(*problem.scored), name)
    same(result["hamming_loss"], metrics.hamming_loss(*problem.decided))
    same(result["exact_match"], metrics.exact_match(*problem.decided))
    same(result["label_accuracy"], metrics.label_accuracy(*problem.decided, average="macro", **fill))
    same(result["map"], metrics.average_precision(*problem.scored, **fill))
    same(result["weighted_ap"], metrics.average_precision(*problem.scored, average="weighted", **fill))
    same(result["micro_ap"], metrics.average_precision(*problem.scored, average="micro", **fill))
    same(result["macro_auroc"], metrics.auroc(*problem.scored, **fill))
    same(result["weighted_auroc"], metrics.auroc(*problem.scored, average="weighted", **fill))
    same(result["micro_auroc"], metrics.auroc(*problem.scored, average="micro", **fill))
    same(result.per_label["ap"], metrics.average_precision(*problem.scored, average=None, **fill))
    same(result.per_label["auroc"], metrics.auroc(*problem.scored, average=None, **fill))
    same(result["lrap"], metrics.label_ranking_average_precision(*problem.scored))
    same(result["coverage_error"], metrics.coverage_error(*problem.scored))
    same(result["ranking_loss"], metrics.ranking_loss(*problem.scored))


@given(problem=problems())
@quick
@pytest.mark.fault(15)
def test_it_says_how_many_labels_entered(problem: Problem) -> None:
    result = evaluate(problem.scores, problem.targets, mask=problem.known)
    counts = confusion_counts(*problem.decided)
    assert result["num_labels_averaged"] == (counts.support > 0).sum()
    assert result["num_labels_auroc"] == ((counts.support > 0) & (counts.support < counts.known)).sum()
    assert result.num_samples == len(problem.scores)
    for name in ("support", "predicted", "tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(result.per_label[name], getattr(counts, name))
    every = evaluate(problem.scores, problem.targets, mask=problem.known, zero_division=0)
    assert every["num_labels_averaged"] == problem.targets.shape[1]


@given(problem=problems())
@quick
def test_every_form_of_input_gives_the_same(problem: Problem) -> None:
    expected = evaluate(problem.scores, problem.targets, mask=problem.known)
    tensors = evaluate(torch.tensor(problem.scores), torch.tensor(problem.targets), mask=torch.tensor(problem.known))
    sparse = evaluate(problem.scores, sp.csc_array(problem.targets), mask=sp.csr_array(~problem.known))
    for other in (tensors, sparse):
        assert other.to_dict() == expected.to_dict()


@given(case=grouped(), thresholds=st.sampled_from([0.25, np.array([0.5, 0.125, np.nan, np.nan, np.nan])]))
@quick
def test_groups_decide_by_the_highest_score_and_rankings_use_the_other_labels(case, thresholds) -> None:
    space, problem = case
    result = evaluate(problem.scores, problem.targets, thresholds, mask=problem.known, space=space)
    chosen = np.eye(3, dtype=bool)[problem.scores[:, 2:].argmax(axis=1)]
    levels = thresholds if isinstance(thresholds, float) else thresholds[:2]
    decisions = np.hstack([problem.scores[:, :2] >= levels, chosen])
    any_of = problem.scores[:, :2], problem.targets[:, :2], problem.known[:, :2]
    same(result["micro_f1"], metrics.f1(decisions, problem.targets, problem.known, average="micro"))
    same(result["exact_match"], metrics.exact_match(decisions, problem.targets, problem.known))
    same(result["map"], metrics.average_precision(*problem.scored))
    same(result["lrap"], metrics.label_ranking_average_precision(*any_of))
    same(result["coverage_error"], metrics.coverage_error(*any_of))
    same(result["ranking_loss"], metrics.ranking_loss(*any_of))
    rows = problem.known[:, 2]
    right = (chosen == problem.targets[:, 2:].astype(bool)).all(axis=1)[rows]
    same(result["rating.accuracy"], right.mean() if rows.any() else math.nan)
    mean_recall = metrics.mean_class_accuracy(chosen, problem.targets[:, 2:], problem.known[:, 2:])
    same(result.groups["rating"]["mean_class_accuracy"], mean_recall)
    assert result.groups["rating"]["num_samples"] == rows.sum()
    same(result.per_label["threshold"], [*np.broadcast_to(levels, 2), np.nan, np.nan, np.nan])


# --- by hand ------------------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    result = evaluate(SCORES, TARGETS, space=SPACE)
    assert result.groups["rating"] == {"accuracy": 0.5, "mean_class_accuracy": (2 / 3 + 0) / 2, "num_samples": 4}
    assert result["rating.mean_class_accuracy"] == 1 / 3
    counted = evaluate(SCORES, TARGETS, space=SPACE, zero_division=0)
    same(counted["rating.mean_class_accuracy"], (2 / 3 + 0 + 0) / 3)
    assert result.names == SPACE.names
    assert result["exact_match"] == 1 / 4


def test_a_class_is_known_though_another_of_its_group_is_not() -> None:
    known = np.ones_like(TARGETS, dtype=bool)
    known[0, 3] = False
    assert evaluate(SCORES, TARGETS, mask=known, space=SPACE).groups["rating"]["num_samples"] == 4


def test_what_targets_say_of_an_unknown_class_does_not_matter() -> None:
    targets, known = TARGETS.copy(), np.ones_like(TARGETS, dtype=bool)
    known[1, 2:] = False
    expected = evaluate(SCORES, targets, mask=known, space=SPACE).to_dict()
    for row in ([0, 0, 0], [1, 1, 0]):
        targets[1, 2:] = row
        assert evaluate(SCORES, targets, mask=known, space=SPACE).to_dict() == expected


@given(case=grouped(), seed=st.integers(0, 99))
@quick
def test_folds_choose_the_thresholds_of_each_sample(case: tuple[LabelSpace, Problem], seed: int) -> None:
    space, problem = case
    rng = np.random.default_rng(seed)
    sets, folds = rng.integers(0, 9, (3, 5)) / 8, rng.integers(0, 3, len(problem.scores))
    result = evaluate(problem.scores, problem.targets, sets, mask=problem.known, space=space, folds=folds)
    parts = [
        evaluate(*(a[folds == k] for a in problem.scored[:2]), sets[k], mask=problem.known[folds == k], space=space)
        for k in range(3)
    ]
    for name in ("tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(result.per_label[name], sum(part.per_label[name] for part in parts))
    same(result.per_label["threshold"], [*sets.mean(axis=0)[:2], np.nan, np.nan, np.nan])
    same(result["map"], metrics.average_precision(*problem.scored))


def test_a_score_of_exactly_the_threshold_is_positive() -> None:
    assert evaluate([[0.5]], [[1]])["micro_recall"] == 1
    assert evaluate([[0.5]], [[1]], 0.5 + 1e-12)["micro_recall"] == 0
    assert evaluate(torch.tensor([[0.5]], dtype=torch.bfloat16), [[1]])["micro_recall"] == 1


def test_thresholds_may_be_an_object_with_values() -> None:
    held = SimpleNamespace(values=np.array([0.95, 0.1, np.nan, np.nan, np.nan]))
    result = evaluate(SCORES, TARGETS, held, space=SPACE)
    np.testing.assert_array_equal(result.per_label["predicted"][:2], [0, 4])


def test_a_space_of_exclusive_groups_alone_has_no_ranking_of_labels() -> None:
    space = LabelSpace([SPACE.groups[1]])
    result = evaluate(SCORES[:, 2:], TARGETS[:, 2:], space=space)
    assert math.isnan(result["lrap"])
    assert math.isnan(result["coverage_error"])
    assert not math.isnan(result["map"])


def test_an_empty_table_is_nan_and_no_warning() -> None:
    result = evaluate(np.zeros((0, 5)), np.zeros((0, 5)), space=SPACE)
    assert result.num_samples == 0
    assert math.isnan(result["macro_f1"])
    assert math.isnan(result["rating.accuracy"])
    assert math.isnan(evaluate(np.zeros((0, 5)), np.zeros((0, 5)), space=SPACE, zero_division=0)["rating.accuracy"])


def test_what_is_included_goes_where_it_belongs() -> None:
    result = evaluate(SCORES, TARGETS, include=["mcc", "macro_kappa", "one_error", "micro_ece"], space=SPACE)
    assert "mcc" in result.per_label
    assert {"macro_kappa", "one_error", "micro_ece"} <= set(result.metrics)
    assert not {"mcc", "kappa", "ece"} & set(result.metrics)
    assert not {"kappa", "ece", "one_error"} & set(result.per_label)
    assert result["one_error"] == metrics.one_error(SCORES[:, :2], TARGETS[:, :2])  # the any-of columns
    assert result.label_rows("mcc")[0]["mcc"] == np.nanmax(result.per_label["mcc"])


# --- the result as mapping, text and JSON -------------------------------------------------------------------------


def test_it_is_a_mapping() -> None:
    result = evaluate(SCORES, TARGETS, space=SPACE)
    assert isinstance(result, Evaluation)
    assert set(dict(result)) == set(result.metrics) | {"rating.accuracy", "rating.mean_class_accuracy"}
    assert len(result) == len(list(result))
    assert "macro_f1" in result
    assert "micro_auroc" not in result
    assert result.get("nothing", 1.5) == 1.5
    assert "micro_auroc" in evaluate(SCORES, TARGETS, include=["micro_auroc"])
    assert repr(result).startswith("Evaluation(4 samples, 5 labels: micro_f1=")


def test_table_has_one_metric_a_line() -> None:
    result = evaluate(SCORES, TARGETS, space=SPACE)
    lines = dict(line.split() for line in result.table().splitlines()[1:])
    assert set(lines) == set(result)
    assert lines["macro_f1"] == f"{result['macro_f1']:.4f}"
    assert lines["num_labels_averaged"] == "4"


def test_comparison_table() -> None:
    columns = {"prior baseline": {"macro_f1": 0.12, "a": 1.0}, "at 0.5": {"macro_f1": 0.9123, "b": 2}}
    text = comparison_table(columns)
    assert text.splitlines() == [
        "metric    prior baseline  at 0.5",
        "macro_f1          0.1200  0.9123",
        "a                 1.0000     nan",
        "b                    nan       2",
    ]
    assert comparison_table(columns, ["b"]).splitlines()[1].split() == ["b", "nan", "2"]
    indented = comparison_table({"": {" x": 1.0}, " ": {" x": 2.0}}).splitlines()
    assert indented == ["metric", " x      1.0000  2.0000"], "no spaces at the end, and those of names stay"
    results = {"first": evaluate(SCORES, TARGETS, space=SPACE), "second": evaluate(SCORES, TARGETS, 0.3, space=SPACE)}
    rows = {name: numbers for name, *numbers in (line.split() for line in comparison_table(results).splitlines())}
    assert rows["metric"] == ["first", "second"]
    assert rows["rating.accuracy"] == ["0.5000", "0.5000"]
    assert all(float(cell) or True for name, cells in rows.items() if name != "metric" for cell in cells)


def test_label_rows_are_sorted_and_fit_csv() -> None:
    result = evaluate(SCORES, TARGETS, space=SPACE)
    assert [row["name"] for row in result.label_rows()] == list(SPACE.names)
    assert [row["name"] for row in result.label_rows("name")] == sorted(SPACE.names)
    assert [row["support"] for row in result.label_rows("support")] == [3, 3, 1, 1, 0]
    assert [row["name"] for row in result.label_rows("support")] == ["cat", "safe", "dog", "risky", "other"]
    assert result.label_rows("ap")[-1]["name"] == "other"  # NaN is last
    assert len(result.label_rows(limit=2)) == 2
    text = io.StringIO()
    rows = result.label_rows()
    writer = csv.DictWriter(text, rows[0])
    writer.writerows(rows)
    assert text.getvalue().splitlines()[2].startswith("2,safe,3,2,2,0,1,1,,")  # an empty threshold
    assert json.loads(json.dumps(rows)) == rows


def test_label_table_has_one_label_a_line() -> None:
    lines = evaluate(SCORES, TARGETS, space=SPACE).label_table(limit=3).splitlines()
    assert lines[0].split() == ["name", "support", "threshold", "precision", "recall", "f1", "ap", "auroc"]
    assert lines[1].split()[:5] == ["cat", "3", "0.5000", "1.0000", "0.6667"]
    assert len(lines) == 4


def test_it_goes_through_json() -> None:
    result = evaluate(SCORES, TARGETS, space=SPACE)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["format"], data["num_samples"]) == ("mlabel.evaluation/1", 4)
    assert data["metrics"]["macro_f1"] == result["macro_f1"]
    assert data["per_label"]["f1"][4] is None
    assert data["per_label"]["threshold"] == [0.5, 0.5, None, None, None]
    assert data["groups"]["rating"]["num_samples"] == 4
    assert data["names"] == list(SPACE.names)


# --- memory and messages ------------------------------------------------------------------------------------------


def test_no_temporary_of_the_size_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "SCRATCH_BYTES", 2**20)
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 2500), dtype=np.float32)
    targets = sp.random_array(scores.shape, density=0.002, rng=rng, data_sampler=lambda size: np.ones(size)).tocsr()
    space = LabelSpace([Group("any", [f"a{i}" for i in range(2490)]), Group("one", [f"b{i}" for i in range(10)])])
    include = ["brier", "log_loss", "ece", "micro_mcc"]
    evaluate(scores[:10], targets[:10], space=space, include=include)
    tracemalloc.start()
    evaluate(scores, targets, space=space, include=include)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.size  # less than one byte an entry, such as the decisions of all would take


@pytest.mark.fault(18)
def test_messages() -> None:
    with pytest.raises(ValueError, match="scores must be finite; 1 entries are not"):
        evaluate([[0.1, math.nan]], [[0, 1]])
    with pytest.raises(ValueError, match="unknown metric 'micro_auc'; did you mean 'micro_auroc'"):
        evaluate(SCORES, TARGETS, include=["micro_auc"])
    with pytest.raises(ValueError, match=r"in \[0, 1\]; 1 entries are not, the first at row 0, column 1: 2.0"):
        evaluate([[0.5, 2.0]], [[0, 1]], include=["brier"])
    with pytest.raises(TypeError, match="include must be a list of metric names; got the string 'map'"):
        evaluate(SCORES, TARGETS, include="map")
    with pytest.raises(ValueError, match="scores have 4 columns, but the space has 5 labels"):
        evaluate(SCORES[:, :4], TARGETS[:, :4], space=SPACE)
    with pytest.raises(ValueError, match=r"thresholds must be a number or of shape \(5,\); got \(2,\)"):
        evaluate(SCORES, TARGETS, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"with folds, thresholds must be of shape \(K, 5\) and folds integers"):
        evaluate(SCORES, TARGETS, np.full(5, 0.5), folds=[0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"with folds, .*got \(2, 5\) and int64 \(3,\)"):
        evaluate(SCORES, TARGETS, np.full((2, 5), 0.5), folds=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="folds must lie in 0 to 1; got 0 to 2"):
        evaluate(SCORES, TARGETS, np.full((2, 5), 0.5), folds=[0, 1, 2, 0])
    with pytest.raises(ValueError, match="zero_division must be nan, 0 or 1"):
        evaluate(SCORES, TARGETS, zero_division=3)
    with pytest.raises(ValueError, match="unknown sort 'f2'"):
        evaluate(SCORES, TARGETS).label_rows("f2")
    with pytest.raises(KeyError, match=r"no metric 'micro_auroc' was measured; ask for it with include="):
        evaluate(SCORES, TARGETS)["micro_auroc"]
    with pytest.raises(KeyError, match=r"no metric 'ap' was measured; it is one of each label: see per_label"):
        evaluate(SCORES, TARGETS)["ap"]
    with pytest.raises(KeyError, match=r"no metric 'marco_f1' was measured; did you mean 'macro_f1'"):
        evaluate(SCORES, TARGETS)["marco_f1"]


@pytest.mark.parametrize("row", [[0, 0, 0], [1, 0, 1]])
def test_a_known_row_has_one_label_of_an_exclusive_group(row: list[int]) -> None:
    targets = TARGETS.copy()
    targets[2, 2:] = row
    with pytest.raises(ValueError, match=rf"group 'rating' is exclusive.*row 2 has {sum(row)} \(1 such rows\)"):
        evaluate(SCORES, targets, space=SPACE)
