"""The histogram of scores: exact at edges, within its bounds elsewhere, the same in whatever parts it is counted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as sk
import torch
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import Problem, problems, quick
from safetensors.numpy import load, save

from mlabel import DataError, Group, LabelSpace, metrics
from mlabel.metrics import ScoreHistogram, confusion_counts, evaluate

RANKED = ("ap", "auroc", "break_even", "best_f1", "ece")
# The scores of problems are eighths: edges of 8 bins and more, and two or more to a bin of 4 and fewer.
COARSE = st.sampled_from([1, 2, 4])


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-12, err_msg=name)


def counted(problem: Problem, bins: int, cuts: tuple[int, ...] = ()) -> ScoreHistogram:
    histogram = ScoreHistogram(problem.targets.shape[1], bins)
    for rows in np.split(np.arange(len(problem.scores)), cuts):
        histogram.update(*(array[rows] for array in problem.scored))
    return histogram


def columns(problem: Problem) -> list[tuple[np.ndarray, np.ndarray]]:
    return [problem.column(label) for label in range(problem.targets.shape[1])]


def best_f1(scores: np.ndarray, targets: np.ndarray) -> float:
    """The highest F1 of any threshold among the scores."""
    return max(sk.f1_score(targets, scores >= level, zero_division=0) for level in scores)


def calibration_error(scores: np.ndarray, targets: np.ndarray, bins: int) -> float:
    """The expected calibration error of one label, bin by bin."""
    place = np.minimum((scores.astype(np.float64) * bins).astype(int), bins - 1)
    held = [place == b for b in range(bins) if (place == b).any()]
    return sum(abs(scores[h].mean(dtype=np.float64) - targets[h].mean()) * h.mean() for h in held)


def break_evens(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Precision after as many samples as there are positives, in the worst and in the best order of equal scores."""
    wanted = int(targets.sum())
    best, worst = np.lexsort((-targets.astype(int), -scores)), np.lexsort((targets, -scores))
    return targets[worst[:wanted]].mean(), targets[best[:wanted]].mean()


# --- properties ---------------------------------------------------------------------------------------------------


@given(problem=problems(), bins=st.sampled_from([1, 2, 8, 64]), cuts=st.lists(st.integers(0, 12), max_size=3))
@quick
def test_parts_and_merged_shards_are_the_whole(problem: Problem, bins: int, cuts: list[int]) -> None:
    whole, cuts = counted(problem, bins), tuple(sorted(cuts))
    merged = ScoreHistogram(problem.targets.shape[1], bins)
    for rows in np.split(np.arange(len(problem.scores)), cuts):
        shard = ScoreHistogram(problem.targets.shape[1], bins)
        shard.update(*(array[rows] for array in problem.scored))
        merged.merge(shard)
    for other in (counted(problem, bins, cuts), merged):
        np.testing.assert_array_equal(other.positives, whole.positives)
        np.testing.assert_array_equal(other.known, whole.known)
        assert other.num_samples == whole.num_samples == len(problem.scores)
        assert other.evaluate().to_dict() == whole.evaluate().to_dict()


@given(problem=problems(), bins=st.sampled_from([1, 4, 16]))
@quick
def test_every_form_of_input_is_counted_the_same(problem: Problem, bins: int) -> None:
    scores, targets, known = problem.scored
    forms = [
        (torch.tensor(scores, requires_grad=True), torch.tensor(targets), torch.tensor(known)),
        (torch.tensor(scores).bfloat16(), torch.tensor(targets).bool(), known),  # eighths are exact in it
        (np.asfortranarray(scores), sp.csc_array(targets), sp.coo_array(~known)),
        (np.where(known, scores, 0.9), targets ^ ~known, known),  # what is unknown has no say
    ]
    expected = counted(problem, bins)
    for form in forms:
        histogram = ScoreHistogram(targets.shape[1], bins)
        histogram.update(*form)
        np.testing.assert_array_equal(histogram.positives, expected.positives)
        np.testing.assert_array_equal(histogram.known, expected.known)


@given(problem=problems(), bins=st.sampled_from([1, 8, 64]))
@quick
def test_it_goes_through_arrays_lists_and_safetensors(problem: Problem, bins: int) -> None:
    histogram = counted(problem, bins)
    state = histogram.to_dict()
    arrays = {name: state[name] for name in ("positives", "known")}
    lists = json.loads(json.dumps({**state, **{name: array.tolist() for name, array in arrays.items()}}))
    for other in (state, {**state, **load(save(arrays))}, lists):
        again = ScoreHistogram.from_dict(other)
        assert again.evaluate().to_dict() == histogram.evaluate().to_dict()
        assert (again.num_samples, again.bins, again.known.dtype) == (histogram.num_samples, bins, np.int32)
        again.update(*problem.scored)
    np.testing.assert_array_equal(histogram.known, arrays["known"])  # nothing is shared with what was read


def test_it_goes_through_a_file(tmp_path: Path) -> None:
    histogram = ScoreHistogram(3, bins=8)
    histogram.update([[0.1, 0.5, 1.0], [0.9, 0.5, 0.0]], [[1, 0, 1], [0, 1, 0]], [[True, True, False]] * 2)
    histogram.save(tmp_path / "a.safetensors")
    again = ScoreHistogram.load(tmp_path / "a.safetensors")
    assert again.num_samples == 2
    np.testing.assert_array_equal(again.positives, histogram.positives)
    np.testing.assert_array_equal(again.known, histogram.known)
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        ScoreHistogram.load(tmp_path / "b.safetensors")
    for content, text in ((b"none", "a.safetensors: not a safetensors file"), (save({}), "a.safetensors: a histogram")):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=text):
            ScoreHistogram.load(tmp_path / "a.safetensors")


PROCESS = """
import sys, torch, torch.distributed as dist
from mlabel.metrics import ScoreHistogram
rank, folder = int(sys.argv[1]), sys.argv[2]
histogram = ScoreHistogram(2, bins=8)
histogram.all_reduce()  # alone, nothing is added
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
histogram.update([[0.25 * rank, 0.5]] * (rank + 1), [[rank, 1]] * (rank + 1))
histogram.all_reduce()
histogram.save(f"{folder}/{rank}.safetensors")
dist.destroy_process_group()
"""


def test_processes_add_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    whole = ScoreHistogram(2, bins=8)
    whole.update([[0.0, 0.5], [0.25, 0.5], [0.25, 0.5]], [[0, 1], [1, 1], [1, 1]])
    for rank in range(2):
        found = ScoreHistogram.load(tmp_path / f"{rank}.safetensors")
        assert found.num_samples == 3
        np.testing.assert_array_equal(found.positives, whole.positives)
        np.testing.assert_array_equal(found.known, whole.known)


def test_every_count_is_summed_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if another process had counted the same.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    histogram, whole = ScoreHistogram(2, bins=8), ScoreHistogram(2, bins=8)
    histogram.update([[0.1, 0.9]], [[1, 0]])
    histogram.all_reduce()
    whole.update([[0.1, 0.9]] * 2, [[1, 0]] * 2)
    assert histogram.evaluate().to_dict() == whole.evaluate().to_dict()
    histogram.num_samples = 2**30 + 1
    histogram.all_reduce()
    assert histogram.known.dtype == np.int64
    assert histogram.num_samples == 2**31 + 2


@given(problem=problems())
@quick
def test_any_ratio_of_decisions_may_be_asked_for(problem: Problem) -> None:
    names = ["mcc", "macro_mcc", "weighted_specificity", "micro_f_beta_2"]
    found = counted(problem, 8).evaluate(0.5, include=names)
    exact = evaluate(*problem.scored[:2], 0.5, mask=problem.known, include=names)
    for name in names[1:]:
        same(found[name], exact[name], name)
    same(found.per_label["mcc"], exact.per_label["mcc"])
    assert "mcc" not in counted(problem, 8).evaluate(0.5).per_label


# --- exact at edges -----------------------------------------------------------------------------------------------


@given(problem=problems(), bins=st.sampled_from([8, 1024]), level=st.integers(0, 7), seed=st.integers(0, 99))
@quick
def test_counts_at_edges_are_exact(problem: Problem, bins: int, level: int, seed: int) -> None:
    histogram = counted(problem, bins)
    assert histogram.counts(level / 8) == confusion_counts(problem.scores >= level / 8, *problem.scored[1:])
    levels = np.random.default_rng(seed).integers(0, 8, problem.targets.shape[1]) / 8
    assert histogram.counts(levels) == confusion_counts(problem.scores >= levels, *problem.scored[1:])
    assert histogram.counts(1.5) == confusion_counts(problem.scores >= 2, *problem.scored[1:])
    assert histogram.counts(1.0) == histogram.counts(1 - 1 / bins)  # the last bin holds a score of 1, too
    assert histogram.counts(-3) == confusion_counts(problem.scores >= 0, *problem.scored[1:])


@pytest.mark.parametrize("zero_division", [math.nan, 0.0, 1.0])
@given(problem=problems(), bins=st.sampled_from([16, 1024]))
@quick
def test_where_bins_tell_all_scores_apart_it_is_the_exact_evaluation(
    zero_division: float, problem: Problem, bins: int
) -> None:
    found = counted(problem, bins).evaluate(0.375, zero_division=zero_division)
    exact = evaluate(
        problem.scores,
        problem.targets,
        0.375,
        mask=problem.known,
        include=["micro_auroc"],
        zero_division=zero_division,
    )
    for name in set(found) & set(exact):
        same(found[name], exact[name], name)
    assert {"macro_f1", "weighted_jaccard", "map", "micro_ap", "macro_auroc", "micro_auroc"} <= set(found) & set(exact)
    for name in set(found.per_label) & set(exact.per_label):
        same(found.per_label[name], exact.per_label[name], name)
    assert (found.num_samples, found.names) == (exact.num_samples, exact.names)


@pytest.mark.parametrize("bins", [2, 64, 1024, 2**20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_score_below_an_edge_by_the_least_is_below_it(dtype: type, bins: int) -> None:
    edges = np.arange(1, min(bins, 1024), dtype=dtype) / dtype(bins)
    scores = np.concatenate([edges, np.nextafter(edges, dtype(0)), [dtype(1), dtype(0), dtype(-0.0)]]).astype(dtype)
    histogram = ScoreHistogram(1, bins)
    histogram.update(scores[:, None], np.ones((len(scores), 1)))
    for level in (edges[0], edges[len(edges) // 2], edges[-1]):
        assert histogram.counts(level).tp[0] == (scores >= level).sum()
    assert histogram.positives[0, 0] == 3
    assert histogram.positives[0, -1] == (scores >= dtype(1 - 1 / bins)).sum()


# --- bounds -------------------------------------------------------------------------------------------------------


@given(problem=problems(), bins=COARSE)
@quick
def test_what_is_not_exact_is_within_its_bound(problem: Problem, bins: int) -> None:
    found = counted(problem, bins).evaluate().per_label
    for label, (scores, targets) in enumerate(columns(problem)):
        near = {name: (found[name][label], found[f"{name}_bound"][label] + 1e-12) for name in RANKED}
        if len(scores):
            value, bound = near["ece"]
            assert abs(value - calibration_error(scores, targets, min(16, bins))) <= bound
        if targets.any():
            for name, exact in (
                ("ap", sk.average_precision_score(targets, scores)),
                ("best_f1", best_f1(scores, targets)),
                *(("break_even", end) for end in break_evens(scores, targets)),
            ):
                value, bound = near[name]
                assert abs(value - exact) <= bound, name
        if targets.any() and not targets.all():
            value, bound = near["auroc"]
            assert abs(value - sk.roc_auc_score(targets, scores)) <= bound
        for name in ("ap", "best_f1", "break_even"):
            assert np.isnan(near[name]).all() == (not targets.any()), name


@given(problem=problems(), bins=COARSE)
@quick
def test_averages_and_pooled_values_are_within_theirs(problem: Problem, bins: int) -> None:
    found = counted(problem, bins).evaluate()
    exact = evaluate(problem.scores, problem.targets, mask=problem.known, include=["micro_auroc"])
    for name in ("map", "micro_ap", "macro_auroc", "micro_auroc"):
        if not math.isnan(exact[name]):
            assert abs(found[name] - exact[name]) <= found[f"{name}_bound"] + 1e-12, name
        assert math.isnan(found[name]) == math.isnan(exact[name]), name


@given(problem=problems(all_known=True), bins=COARSE, level=st.floats(0, 1))
@quick
def test_counts_between_edges_are_off_by_no_more_than_the_bin_holds(problem: Problem, bins: int, level: float) -> None:
    histogram = counted(problem, bins)
    inside = histogram.known[:, min(int(level * bins), bins - 1)]
    found, exact = histogram.counts(level), confusion_counts(problem.scores >= level, problem.targets)
    assert (np.abs(found.predicted - exact.predicted) <= inside).all()
    shown = histogram.evaluate(level).per_label["threshold"]
    assert (np.abs(shown - level) <= 1 / bins).all()
    assert found == histogram.counts(shown)


@given(seed=st.integers(0, 10**6), positives=st.integers(1, 4), negatives=st.integers(1, 4))
@quick
def test_some_order_within_bins_reaches_the_bounds(seed: int, positives: int, negatives: int) -> None:
    # One bin: all negatives first, or all positives first and equal.
    rng = np.random.default_rng(seed)
    targets = np.repeat([1, 0], [positives, negatives])
    low = np.concatenate([rng.random(positives) / 4, 0.25 + rng.random(negatives) / 4])[:, None]
    high = np.concatenate([np.full(positives, 0.4), np.full(negatives, 0.1)])[:, None]
    histogram = ScoreHistogram(1, 2)
    histogram.update(low, targets[:, None])
    found = histogram.evaluate().per_label
    ends = [metrics.auroc(scores, targets[:, None]) for scores in (low, high)]
    same([found["auroc"][0] - found["auroc_bound"][0], found["auroc"][0] + found["auroc_bound"][0]], ends)
    least, most = (metrics.average_precision(scores, targets[:, None]) for scores in (low, high))
    reached = max(most - found["ap"][0], found["ap"][0] - least)
    assert reached <= found["ap_bound"][0] + 1e-12
    if most - found["ap"][0] >= found["ap"][0] - least or positives <= 2:
        same(found["ap_bound"][0], reached)
    same(found["best_f1"][0] + found["best_f1_bound"][0], 1)


@given(above=st.integers(20, 60), positives=st.integers(2, 12), negatives=st.integers(1, 3))
@quick
def test_below_many_negatives_the_worst_order_sets_the_bound(above: int, positives: int, negatives: int) -> None:
    # The upper bin has negatives only; in the lower one its negatives come first.
    scores = np.concatenate([np.full(above, 0.75), np.full(negatives, 0.4), np.linspace(0.1, 0.3, positives)])[:, None]
    targets = np.repeat([0, 1], [above + negatives, positives])[:, None]
    histogram = ScoreHistogram(1, 2)
    histogram.update(scores, targets)
    found = histogram.evaluate().per_label
    short = found["ap"][0] - metrics.average_precision(scores, targets)
    assert short <= found["ap_bound"][0] <= 1.25 * short
    if positives == 2:
        same(found["ap_bound"][0], short)


def test_the_break_even_points_bound_has_two_sides() -> None:
    # Two negatives above; then one place is left for three positives and a negative, which may take it.
    histogram = ScoreHistogram(1, 2)
    histogram.update([[0.9], [0.9], [0.1], [0.1], [0.1], [0.2]], [[0], [0], [1], [1], [1], [0]])
    found = histogram.evaluate().per_label
    same([found["break_even"][0], found["break_even_bound"][0]], [1 / 4, 1 / 4])


def test_the_bound_shrinks_with_the_bins() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((2000, 3), dtype=np.float32), rng.random((2000, 3)) < [[0.5, 0.1, 0.01]]
    exact = metrics.average_precision(scores, targets)
    bounds = []
    for bins in (16, 256, 1024):
        histogram = ScoreHistogram(3, bins)
        histogram.update(scores, targets)
        result = histogram.evaluate()
        assert abs(result["map"] - exact) <= result["map_bound"]
        bounds.append(result["map_bound"])
    assert bounds[0] > 4 * bounds[1] > 4 * bounds[2]
    assert bounds[2] < 0.01


# --- by hand ------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # Bins of a quarter; from above: (1 positive), (1 positive, 2 negatives), nothing, (1 negative). Then an absent one.
    scores = [[0.9, 0.1], [0.6, 0.1], [0.7, 0.1], [0.5, 0.9], [0.2, 0.1]]
    targets = [[1, 0], [1, 0], [0, 0], [0, 0], [0, 0]]
    histogram = ScoreHistogram(2, bins=4)
    histogram.update(scores, targets)
    np.testing.assert_array_equal(histogram.positives, [[0, 0, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(histogram.known, [[1, 0, 3, 1], [4, 0, 0, 1]])
    result = histogram.evaluate([0.6, 0.75])  # 0.6 is nearest to 0.5
    found = result.per_label
    same(found["ap"], [1 / 2 * 1 + 1 / 2 * 2 / 4, np.nan])
    same(found["ap_bound"], [1 / 2 * (1 - 2 / 4), np.nan])
    same(found["auroc"], [(3 + 1 + 1) / 6, np.nan])
    same(found["auroc_bound"], [1 / 6, np.nan])
    same(found["break_even"], [(1 + 1 / 3) / 2, np.nan])
    same(found["break_even_bound"], [1 / 3, np.nan])
    same(found["break_even_threshold"], [0.5, np.nan])
    same(found["best_f1"], [2 / 3, np.nan])
    same(found["best_f1_bound"], [1 / 3, np.nan])
    same(found["best_f1_threshold"], [0.75, np.nan])
    same(found["ece"], [(1 / 8 + abs(3 * 5 / 8 - 1) + abs(7 / 8 - 1)) / 5, (4 / 8 + 7 / 8) / 5])
    same(found["ece_bound"], 1 / 8)
    same(found["threshold"], [0.5, 0.75])
    same(found["precision"], [2 / 4, np.nan])
    assert (result["num_labels_averaged"], result["num_labels_auroc"]) == (1, 1)
    same(result["hamming_loss"], 3 / 10)
    same(result["micro_precision"], 2 / 5)
    assert "macro_break_even" in result.table()


@pytest.mark.fault(15)
def test_nothing_counted_is_nan_and_no_warning() -> None:
    histogram = ScoreHistogram(2, 8)
    for rows in (0, 3):
        histogram.update(np.zeros((rows, 2)), np.zeros((rows, 2)), np.zeros((rows, 2), bool))
        result = histogram.evaluate()
        assert all(math.isnan(value) for name, value in result.items() if not name.startswith("num_")), result
        assert histogram.num_samples == rows


def test_labels_of_an_exclusive_group_have_no_decisions() -> None:
    space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
    rng = np.random.default_rng(0)
    scores = rng.random((40, 4))
    targets = np.hstack([rng.random((40, 2)) < 0.5, np.eye(2)[rng.integers(0, 2, 40)]]).astype(np.uint8)
    histogram, alone = ScoreHistogram(4), ScoreHistogram(2)
    histogram.update(scores, targets)
    alone.update(scores[:, :2], targets[:, :2])
    result, of_tags = histogram.evaluate(0.5, space=space, zero_division=0), alone.evaluate(0.5, zero_division=0)
    for name in ("macro_f1", "micro_f1", "weighted_recall", "hamming_loss", "label_accuracy", "num_labels_averaged"):
        assert result[name] == of_tags[name], name
    for name in ("precision", "f1", "accuracy", "threshold"):
        np.testing.assert_array_equal(np.isnan(result.per_label[name]), [False, False, True, True])
    assert not np.isnan(result.per_label["ap"]).any()
    assert result.names == space.names
    np.testing.assert_array_equal(result.per_label["support"], targets.sum(axis=0))


def test_labels_of_many_blocks_and_more_samples_than_32_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((30, 700), dtype=np.float32), rng.random((30, 700)) < 0.2
    histogram, wide = ScoreHistogram(700, 16), ScoreHistogram(700, 16)
    histogram.update(scores, targets)
    wide.num_samples = 2**31 - 31
    wide.update(scores, targets)
    assert wide.known.dtype == np.int32
    wide.update(scores, targets)
    assert wide.known.dtype == wide.positives.dtype == np.int64
    halves = [ScoreHistogram(1, 2), ScoreHistogram(1, 2)]
    for half in halves:
        half.num_samples = 2**30 + 1
    halves[0].merge(halves[1])
    assert halves[0].known.dtype == np.int64
    wide.known[0, 0] = 2**40
    wide.merge(histogram)
    assert wide.known[0, 0] == 2**40 + int(histogram.known[0, 0])
    same(histogram.evaluate().per_label["ap"], metrics.average_precision(np.floor(scores * 16), targets, average=None))
    again = ScoreHistogram.from_dict({**wide.to_dict(), "num_samples": 2**41})
    assert again.known.dtype == np.int64
    monkeypatch.setattr(metrics._blocks, "SCRATCH_BYTES", 2**14)
    monkeypatch.setattr(metrics._blocks.torch, "get_num_threads", lambda: 3)
    threads = ScoreHistogram(700, 16)
    threads.update(scores, targets)
    assert threads.evaluate().to_dict() == histogram.evaluate().to_dict()


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.fault(18)
def test_messages() -> None:
    histogram = ScoreHistogram(2, 8)
    for bad, text in (
        (
            [[0.1, 1.5], [-2, 0]],
            r"in \[0, 1\]; 2 entries are not, the first at row 0, column 1: 1.5; make them of logits",
        ),
        ([[0.1, math.nan]], "scores must be finite; 1 entries are not, the first at row 0, column 1: nan"),
        ([[0.1]], r"scores must be of shape \(N, 2\); got \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=text):
            histogram.update(bad, np.zeros(np.shape(bad)))
    with pytest.raises(ValueError, match=r"targets must be of shape \(1, 2\); got \(2, 2\)"):
        histogram.update([[0.1, 0.2]], [[0, 1], [0, 1]])
    assert histogram.num_samples == histogram.known.sum() == 0
    with pytest.raises(ValueError, match=r"bins must be a power of two, such as 1024.*got 100"):
        ScoreHistogram(2, 100)
    with pytest.raises(ValueError, match="num_labels must be 1 or more; got 0"):
        ScoreHistogram(0)
    with pytest.raises(
        ValueError, match=r"same labels and bins were wanted; got ScoreHistogram\(0 samples, 2 labels, 8"
    ):
        histogram.merge(ScoreHistogram(2, 16))
    with pytest.raises(TypeError, match="a ScoreHistogram was wanted; got int"):
        histogram.merge(3)
    with pytest.raises(ValueError, match=r"thresholds must be a number or of shape \(2,\)"):
        histogram.counts([0.5] * 3)
    with pytest.raises(ValueError, match="zero_division must be nan, 0 or 1"):
        histogram.evaluate(zero_division=2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x"}, "a histogram of format 'mlabel.score_histogram/1' was wanted; got 'x'"),
        ({"known": [[1, 1]], "positives": [[0, 2]]}, "more positives than scores"),
        ({"positives": [[0, -1]]}, "more positives than scores, or fewer than none"),
        ({"positives": [[0, 0, 0]]}, r"of one shape \(L, bins\); got int64 \(1, 3\) and int64 \(1, 2\)"),
        ({"positives": [[0.5, 0.5]]}, "must be integers of one shape"),
        ({"positives": [[0, 0, 0]], "known": [[0, 0, 0]]}, "bins must be a power of two"),
        ({"num_samples": 1}, "more scores than its 1 samples"),
        ({"num_samples": "many"}, "not a histogram of scores: ValueError"),
        ({"positives": [[1], [1, 2]]}, "not a histogram of scores: ValueError"),
    ],
)
def test_states_that_are_none(change: dict[str, object], text: str) -> None:
    state = {"format": "mlabel.score_histogram/1", "num_samples": 2, "positives": [[0, 1]], "known": [[1, 1]]}
    assert ScoreHistogram.from_dict(state).num_samples == 2
    with pytest.raises(DataError, match=text):
        ScoreHistogram.from_dict({**state, **change})
    with pytest.raises(DataError, match="KeyError"):
        ScoreHistogram.from_dict({"format": state["format"]})
