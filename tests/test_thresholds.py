"""Thresholds: as good as brute force finds, moved by what should move them, and saved exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score, precision_recall_curve

from mlabel import DataError
from mlabel.data.split import stratified_split
from mlabel.decisions import Thresholds, cross_fit_thresholds, fit_thresholds
from mlabel.labels import Group, LabelSpace
from mlabel.metrics import evaluate

SPACE = LabelSpace([Group("a", ["p", "q"]), Group("kind", ["x", "y"], exclusive=True), Group("b", ["r", "s"])])


@st.composite
def problems(draw: st.DrawFn, with_mask: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, labels = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    levels = draw(st.sampled_from([3, 8, 10_000]))  # few levels make ties
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = (rng.integers(0, levels, (samples, labels)) / levels).astype(dtype)
    targets = (rng.random((samples, labels)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(np.uint8)
    mask = rng.random((samples, labels)) < 0.7 if with_mask and draw(st.booleans()) else None
    return scores, targets, mask


def f_beta(decisions: np.ndarray, targets: np.ndarray, beta: float) -> float:
    if not targets.any():
        return 0.0
    return float(fbeta_score(targets.ravel(), decisions.ravel(), beta=beta, zero_division=0))


def brute_force(scores: np.ndarray, targets: np.ndarray, beta: float) -> float:
    candidates = [*np.unique(scores), np.inf]
    return max(f_beta(scores >= level, targets, beta) for level in candidates)


@given(problems(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=40)
def test_no_threshold_of_a_label_is_better(problem: tuple, beta: float) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, "f_beta", mask=mask, beta=beta)
    decisions = fitted.decide(scores)
    for column in range(scores.shape[1]):
        known = slice(None) if mask is None else mask[:, column]
        held = targets[known, column]
        if held.any():
            assert fitted.source[column] == "label"
            best = brute_force(scores[known, column], held, beta)
            assert f_beta(decisions[known, column], held, beta) == pytest.approx(best)
        else:
            assert fitted.source[column] in ("group", "default")


@given(problems(), st.sampled_from(["group", "global"]))
@settings(max_examples=25)
def test_no_common_threshold_is_better(problem: tuple, scope: str) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, scope=scope, mask=mask)
    known = np.ones(scores.shape, dtype=bool) if mask is None else mask
    if targets[known].any():
        found = f_beta(fitted.decide(scores)[known], targets[known], 1.0)
        assert found == pytest.approx(brute_force(scores[known], targets[known], 1.0))
        assert set(fitted.source) == {scope}
        assert len(set(fitted.values)) == 1
    else:
        assert fitted.values.tolist() == [0.5] * scores.shape[1]
        assert set(fitted.source) == {"default"}


@given(problems())
@settings(max_examples=60)
def test_all_forms_of_input_agree_and_are_left_alone(problem: tuple) -> None:
    scores, targets, mask = problem
    before = (scores.copy(), targets.copy())
    expected = fit_thresholds(scores, targets, mask=mask).values
    unknown = None if mask is None else sp.csr_array(~mask)
    again = fit_thresholds(torch.from_numpy(scores), sp.csr_array(targets), mask=unknown).values
    assert np.array_equal(expected, again)
    assert np.array_equal(before[0], scores)
    assert np.array_equal(before[1], targets)


@given(problems())
@settings(max_examples=60)
def test_what_must_not_matter_does_not(problem: tuple) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, mask=mask)
    twice = fit_thresholds(
        np.vstack([scores, scores]),
        np.vstack([targets, targets]),
        mask=None if mask is None else np.vstack([mask, mask]),
    )
    assert np.array_equal(fitted.values, twice.values)
    order = np.random.default_rng(0).permutation(len(scores))
    shuffled = fit_thresholds(scores[order], targets[order], mask=None if mask is None else mask[order])
    assert np.array_equal(fitted.values, shuffled.values)
    for column in range(scores.shape[1]):
        if fitted.source[column] == "label":
            alone = fit_thresholds(
                scores[:, [column]], targets[:, [column]], mask=None if mask is None else mask[:, [column]]
            )
            assert alone.values[0] == fitted.values[column]
            if mask is not None:
                rows = mask[:, column]
                kept = fit_thresholds(scores[rows][:, [column]], targets[rows][:, [column]])
                assert kept.values[0] == fitted.values[column]


@given(problems())
@settings(max_examples=60)
def test_a_monotone_transform_leaves_the_decisions(problem: tuple) -> None:
    scores, targets, mask = problem
    scores = scores.astype(np.float64)
    moved = np.exp(3 * scores) - 7
    fitted = fit_thresholds(scores, targets, mask=mask)
    labels = np.array([source == "label" for source in fitted.source])
    decisions = fit_thresholds(moved, targets, mask=mask).decide(moved)
    known = np.ones(scores.shape, dtype=bool) if mask is None else mask
    assert np.array_equal((fitted.decide(scores) & known)[:, labels], (decisions & known)[:, labels])


def test_the_curve_of_scikit_learn_has_no_better_point() -> None:
    rng = np.random.default_rng(1)
    targets = rng.random((400, 5)) < [0.5, 0.2, 0.05, 0.01, 0.9]
    scores = (rng.normal(size=(400, 5)) + targets).astype(np.float32)
    result = evaluate(scores, targets, fit_thresholds(scores, targets))
    for column in range(5):
        precision, recall, _ = precision_recall_curve(targets[:, column], scores[:, column])
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
        assert result.per_label["f1"][column] == pytest.approx(best)


def test_by_hand_halfway_highest_and_exclusive() -> None:
    scores = np.array([[0.9, 0.1, 0.3, 0.7, 0.2, 0.5], [0.4, 0.2, 0.6, 0.4, 0.4, 0.5], [0.1, 0.3, 0.5, 0.5, 0.6, 0.5]])
    targets = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0]])
    fitted = fit_thresholds(scores, targets, space=SPACE)
    # p: between 0.9 and 0.4. q: no positive, so group a pooled: 0.9 above 0.4. r: between 0.6 and 0.4. s: group b.
    np.testing.assert_allclose(fitted.values, [0.65, 0.65, np.nan, np.nan, 0.5, 0.55])
    assert fitted.source == ("label", "group", "exclusive", "exclusive", "label", "group")
    assert fitted.decide(scores)[:, 2:4].sum(axis=1).tolist() == [1, 1, 1]
    assert fit_thresholds(scores, targets, scope="global", space=SPACE).source[0] == "global"
    # Both 0.5 and 0.8 give F1 = 2/3: the higher one is taken.
    tie = fit_thresholds(np.array([[0.8], [0.5], [0.5], [0.5]]), np.array([[1], [1], [0], [0]]))
    assert tie.values[0] == pytest.approx(0.65)


def test_rare_labels_take_their_groups_threshold() -> None:
    rng = np.random.default_rng(2)
    targets = rng.random((50, 6)) < [0.5, 0.02, 0, 0, 0.5, 0.5]
    targets[:, 2] = ~targets[:, 0]
    targets[:, 3] = targets[:, 0]
    targets[0, 1] = True
    scores = rng.random((50, 6))
    fitted = fit_thresholds(scores, targets, space=SPACE, min_positives=5)
    assert fitted.source == ("label", "group", "exclusive", "exclusive", "label", "label")
    pooled = fit_thresholds(scores, targets, scope="group", space=SPACE)
    assert fitted.values[1] == pooled.values[1] == pooled.values[0]


def test_neighbouring_floats_are_told_apart() -> None:
    for dtype in (np.float32, np.float64):
        high = dtype(0.7)
        low = np.nextafter(high, dtype(0))
        scores = np.array([[high], [low]], dtype=dtype)
        assert fit_thresholds(scores, [[1], [0]]).decide(scores).tolist() == [[True], [False]]
    huge = np.array([[np.finfo(np.float64).max], [-np.finfo(np.float64).max]])
    assert fit_thresholds(huge, [[1], [0]]).decide(huge).tolist() == [[True], [False]]


def test_cross_fitting_judges_no_sample_by_itself() -> None:
    rng = np.random.default_rng(3)
    targets = rng.random((60, 3)) < 0.3
    scores = rng.random((60, 3))
    folds = stratified_split(targets, (0.25,) * 4)
    crossed = cross_fit_thresholds(scores, targets, folds=folds)
    levels = crossed.values
    assert np.array_equal(crossed.folds, folds)
    for fold in range(4):
        others = folds != fold
        assert np.array_equal(levels[fold], fit_thresholds(scores[others], targets[others]).values)
    honest = evaluate(scores, targets, levels, folds=folds)["macro_f1"]
    assert honest < evaluate(scores, targets, fit_thresholds(scores, targets))["macro_f1"]
    by_hand = [evaluate(scores[folds == k], targets[folds == k], levels[k]).per_label["tp"] for k in range(4)]
    assert np.array_equal(evaluate(scores, targets, levels, folds=folds).per_label["tp"], np.sum(by_hand, axis=0))
    drawn = cross_fit_thresholds(scores, targets, folds=7, seed=1).folds
    assert sorted(np.bincount(drawn)) == [8, 8, 8, 9, 9, 9, 9]


@pytest.mark.fault(19)
def test_saved_and_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    targets = np.hstack([rng.random((9, 2)) < 0.5, np.eye(2)[rng.integers(0, 2, 9)], rng.random((9, 2)) < 0.5])
    fitted = fit_thresholds(rng.random((9, 6)), targets, "f_beta", space=SPACE, beta=2.0)
    fitted.save(tmp_path / "t.json")
    again = Thresholds.load(tmp_path / "t.json", SPACE)
    assert np.array_equal(fitted.values, again.values, equal_nan=True)
    assert (again.source, again.space, again.objective, again.scope) == (fitted.source, SPACE, "f_beta", "label")
    fitted.to_csv(tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "column,name,group,threshold,source"
    assert lines[3] == "2,x,kind,,exclusive"
    assert lines[1] == f"0,p,a,{float(fitted.values[0])!r},label"
    with pytest.raises(ValueError, match="read-only"):
        again.values[0] = 1.0
    other = LabelSpace([Group("a", ["q", "p"]), *SPACE.groups[1:]])
    with pytest.raises(ValueError, match="column 0 is 'q' here and 'p' there"):
        Thresholds.load(tmp_path / "t.json", other)
    fit_thresholds(np.zeros((2, 6)), np.zeros((2, 6))).save(tmp_path / "bare.json")
    assert Thresholds.load(tmp_path / "bare.json").space is None
    with pytest.raises(ValueError, match="without a label space"):
        Thresholds.load(tmp_path / "bare.json", SPACE)


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": "mlabel.thresholds/1"}', "{"])
def test_a_file_that_is_no_thresholds_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError):
        Thresholds.load(tmp_path / "t.json")


def test_messages() -> None:
    scores, targets = np.zeros((4, 2)), np.zeros((4, 2))
    with pytest.raises(ValueError, match="unknown objective 'f2'"):
        fit_thresholds(scores, targets, "f2")
    with pytest.raises(ValueError, match="unknown scope 'labels'; did you mean 'label'"):
        fit_thresholds(scores, targets, scope="labels")
    with pytest.raises(ValueError, match="objective 'f_beta'"):
        fit_thresholds(scores, targets, beta=2.0)
    with pytest.raises(ValueError, match="the space has 6 labels"):
        fit_thresholds(scores, targets, space=SPACE)
    with pytest.raises(ValueError, match="must be finite"):
        fit_thresholds(np.full((4, 2), np.nan), targets)
    with pytest.raises(ValueError, match="2 to the number of samples"):
        cross_fit_thresholds(scores, targets, folds=5)
    with pytest.raises(ValueError, match="needs a sample"):
        cross_fit_thresholds(scores, targets, folds=[0, 2, 0, 2])
    with pytest.raises(ValueError, match="unknown source"):
        Thresholds(np.array([0.5]), ("nowhere",))
    for folds, message in (([0, 0, 0, 2], "lie in 0 to 1"), ([0, 1], "integers of shape")):
        with pytest.raises(ValueError, match=message):
            evaluate(scores, targets, np.full((2, 2), 0.5), folds=np.array(folds))
