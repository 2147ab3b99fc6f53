"""Calibration: order kept, each label by itself, what other programs find, losses undone, saved exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from mlabel import DataError, losses
from mlabel.decisions import (
    CALIBRATION_METHODS,
    Calibration,
    cross_fit_calibration,
    estimate_priors,
    fit_calibration,
    logits_of,
    undo_loss,
)
from mlabel.decisions._loss_links import LINKS
from mlabel.decisions._slopes import AnyOfData
from mlabel.labels import Group, LabelSpace
from mlabel.metrics import brier_score, expected_calibration_error

SPACE = LabelSpace([Group("a", ["p", "q"]), Group("kind", ["x", "y", "z"], exclusive=True), Group("b", ["r", "s"])])
ANY_OF = [0, 1, 5, 6]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, labels = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    logits = rng.normal(draw(st.sampled_from([-3, 0])), 2, (samples, labels))
    logits = np.round(logits, draw(st.sampled_from([0, 6])))  # with and without ties
    logits = logits.astype(draw(st.sampled_from([np.float32, np.float64])))
    targets = rng.random((samples, labels)) < expit(draw(st.sampled_from([0.5, -0.5, 3.0])) * logits)
    mask = rng.random((samples, labels)) < 0.7 if draw(st.booleans()) else None
    return logits, targets.astype(np.uint8), mask


def mixed(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, targets and mask in SPACE."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 2, (samples, 7))
    targets = (rng.random((samples, 7)) < expit(0.6 * logits + 0.4)).astype(np.uint8)
    shares = np.cumsum(softmax(0.5 * logits[:, 2:5] + [0, 0.5, -0.5], axis=1), axis=1)
    targets[:, 2:5] = np.eye(3)[np.minimum((shares < rng.random((samples, 1))).sum(axis=1), 2)]
    mask = rng.random((samples, 7)) < 0.8
    mask[:, 2:5] = (rng.random(samples) < 0.8)[:, None]
    return logits, targets, mask


@given(
    problems(),
    st.sampled_from(sorted(CALIBRATION_METHODS)),
    st.sampled_from(["label", "global"]),
    st.sampled_from([0.0, 5.0]),
)
@settings(max_examples=80)
def test_probabilities_rise_with_the_logit(problem: tuple, method: str, scope: str, shrinkage: float) -> None:
    logits, targets, mask = problem
    calibration = fit_calibration(logits, targets, method, scope=scope, shrinkage=shrinkage, mask=mask)
    grid = np.repeat(np.linspace(-12, 12, 101)[:, None], logits.shape[1], axis=1)
    for held in (logits, grid):
        probabilities = calibration.apply(held)
        assert probabilities.shape == held.shape
        assert probabilities.dtype == held.dtype
        assert probabilities.min() >= 0
        assert probabilities.max() <= 1
        for column in range(held.shape[1]):
            ordered = probabilities[np.argsort(held[:, column], kind="stable"), column]
            assert (np.diff(ordered) >= -1e-12).all()


@given(problems(), st.sampled_from(sorted(CALIBRATION_METHODS)))
@settings(max_examples=60)
def test_what_must_not_matter_does_not(problem: tuple, method: str) -> None:
    logits, targets, mask = problem
    options = {"method": method, "shrinkage": 0.0}
    before = (logits.copy(), targets.copy())
    expected = fit_calibration(logits, targets, mask=mask, **options).apply(logits)
    masks = None if mask is None else np.vstack([mask, mask])
    twice = fit_calibration(np.vstack([logits, logits]), np.vstack([targets, targets]), mask=masks, **options)
    np.testing.assert_allclose(twice.apply(logits), expected, atol=1e-4)
    order = np.random.default_rng(0).permutation(len(logits))
    shuffled = fit_calibration(logits[order], targets[order], mask=None if mask is None else mask[order], **options)
    np.testing.assert_allclose(shuffled.apply(logits), expected, atol=1e-5)
    unknown = None if mask is None else sp.csr_array(~mask)
    tensors = fit_calibration(torch.from_numpy(logits), sp.csr_array(targets), mask=unknown, **options)
    assert np.array_equal(tensors.apply(torch.from_numpy(logits)), expected)
    assert np.array_equal(before[0], logits)
    assert np.array_equal(before[1], targets)


@given(problems(), st.sampled_from(sorted(CALIBRATION_METHODS)))
@settings(max_examples=60)
def test_a_label_with_evidence_is_fitted_alone_and_the_unknown_is_not_there(problem: tuple, method: str) -> None:
    logits, targets, mask = problem
    together = fit_calibration(logits, targets, method, shrinkage=0, mask=mask).apply(logits)
    for column in range(logits.shape[1]):
        known = np.ones(len(logits), dtype=bool) if mask is None else mask[:, column]
        held = targets[known][:, [column]]
        if held.any() and not held.all():
            alone = fit_calibration(logits[known][:, [column]], held, method, shrinkage=0)
            np.testing.assert_allclose(alone.apply(logits[:, [column]])[:, 0], together[:, column], atol=1e-5)


def test_platt_is_logistic_regression() -> None:
    logits, targets, _ = mixed(300)
    found = fit_calibration(logits, targets, "platt", shrinkage=0, space=SPACE).apply(logits)
    for column in ANY_OF:
        x = logits[:, [column]]
        wanted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, targets[:, column])
        np.testing.assert_allclose(found[:, column], wanted.predict_proba(x)[:, 1], atol=1e-6)


def test_platt_is_what_scikit_learn_has_but_for_its_softened_targets() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-0.5, 2, (20_000, 1))
    targets = (rng.random((20_000, 1)) < expit(0.6 * logits + 0.4)).astype(np.uint8)
    model = LogisticRegression(C=np.inf).fit(logits, targets[:, 0])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid", cv=2, ensemble=False)
    theirs.fit(logits, targets[:, 0])
    found = fit_calibration(logits, targets, "platt", shrinkage=0).apply(logits)
    np.testing.assert_allclose(found[:, 0], theirs.predict_proba(logits)[:, 1], atol=1e-3)


@pytest.mark.parametrize("digits", [1, 9])
def test_isotonic_is_scikit_learns(digits: int) -> None:
    logits, targets, _ = mixed(300)
    logits = np.round(logits, digits)
    grid = np.repeat(np.linspace(-9, 9, 200)[:, None], 7, axis=1)
    found = fit_calibration(logits, targets, "isotonic", shrinkage=0, space=SPACE)
    pooled = fit_calibration(logits, targets, "isotonic", scope="group", space=SPACE).apply(grid)
    for column in ANY_OF:
        wanted = IsotonicRegression(out_of_bounds="clip").fit(logits[:, column], targets[:, column])
        np.testing.assert_allclose(found.apply(grid)[:, column], wanted.predict(grid[:, column]), atol=1e-12)
        np.testing.assert_allclose(found.apply(logits)[:, column], wanted.predict(logits[:, column]), atol=1e-12)
    for span in (slice(0, 2), slice(5, 7)):
        wanted = IsotonicRegression(out_of_bounds="clip").fit(logits[:, span].ravel(), targets[:, span].ravel())
        np.testing.assert_allclose(pooled[:, span.start], wanted.predict(grid[:, 0]), atol=1e-12)


def test_pooled_curves_leave_out_what_is_unknown() -> None:
    logits, targets, mask = mixed(60)
    grid = np.repeat(np.linspace(-9, 9, 200)[:, None], 7, axis=1)
    found = fit_calibration(logits, targets, "isotonic", scope="global", space=SPACE, mask=mask).apply(grid)
    x, y = (each[:, ANY_OF][mask[:, ANY_OF]] for each in (logits, targets))
    wanted = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    for column in ANY_OF:
        np.testing.assert_allclose(found[:, column], wanted.predict(grid[:, column]), atol=1e-12)


@pytest.mark.parametrize("method", sorted(CALIBRATION_METHODS))
@pytest.mark.parametrize("scope", ["global", "label"])
def test_many_samples_are_done_in_parts(method: str, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets, mask = mixed(90)
    options = {"method": method, "scope": scope, "space": SPACE, "mask": mask}
    expected = fit_calibration(logits, targets, **options).apply(logits)
    firsts = []
    part = AnyOfData.part
    monkeypatch.setattr(AnyOfData, "part", lambda data, every: firsts.append(every) or part(data, every))
    monkeypatch.setattr("mlabel.decisions._slopes._FIRST_ENTRIES", 300)  # of 630
    monkeypatch.setattr("mlabel.decisions._isotonic._ENTRIES", 20)
    monkeypatch.setattr("mlabel.metrics._blocks.SCRATCH_BYTES", 1)
    in_parts = fit_calibration(logits, targets, **options).apply(logits)
    np.testing.assert_allclose(in_parts, expected, atol=1e-7)
    assert firsts == ([] if method == "isotonic" else [3])


def beta_loss(parameters: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    eta = -parameters[0] * np.logaddexp(0, -x) + parameters[1] * np.logaddexp(0, x) + parameters[2]
    return float((np.logaddexp(0, eta) - y * eta).sum())


@pytest.mark.parametrize("slope", [0.6, -0.3])
def test_slopes_are_where_an_optimiser_puts_them(slope: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(-0.5, 2, (400, 3))
    y = rng.random((400, 3)) < expit(slope * x + 0.4)
    beta = fit_calibration(x, y, "beta", shrinkage=0).steps[0]
    platt = fit_calibration(x, y, "platt", shrinkage=0).steps[0]
    common = fit_calibration(x, y, "temperature", scope="global").steps[0]
    for column in range(3):
        data = (x[:, column], y[:, column])
        bounds = [(0, None), (0, None), (None, None)]
        best = minimize(beta_loss, [1, 1, 0], args=data, bounds=bounds, tol=1e-14)
        mine = [beta.low[column], beta.high[column], beta.offset[column]]
        assert beta_loss(np.array(mine), *data) == pytest.approx(best.fun, abs=1e-5)
        straight = minimize(
            lambda t, *d: beta_loss(np.array([t[0], t[0], t[1]]), *d), [1, 0], args=data, bounds=bounds[1:]
        )
        assert platt.low[column] == pytest.approx(straight.x[0], abs=1e-3)
        assert platt.offset[column] == pytest.approx(straight.x[1], abs=1e-3)
        assert platt.low[column] == platt.high[column]
    one = minimize_scalar(lambda t: beta_loss(np.array([t, t, 0]), x, y), bounds=(0, 5), options={"xatol": 1e-10})
    np.testing.assert_allclose(common.low, max(one.x, 0), atol=1e-5)


def test_exclusive_groups_are_where_an_optimiser_puts_them() -> None:
    logits, targets, mask = mixed(500)
    rows = mask[:, 2]
    x, classes = logits[rows, 2:5], targets[rows, 2:5].argmax(axis=1)

    def loss(parameters: np.ndarray) -> float:
        z = x * parameters[:-3] + parameters[-3:]
        return float(-log_softmax(z, axis=1)[np.arange(len(x)), classes].sum())

    one = minimize_scalar(lambda t: loss(np.array([t, 0, 0, 0])), bounds=(0, 5), options={"xatol": 1e-10})
    fitted = fit_calibration(logits, targets, space=SPACE, mask=mask)
    np.testing.assert_allclose(fitted.steps[0].low[2:5], one.x, atol=1e-6)
    np.testing.assert_allclose(fitted.apply(logits)[:, 2:5], softmax(one.x * logits[:, 2:5], axis=1), atol=1e-6)
    best = minimize(loss, [1.0, 1, 1, 0, 0, 0], tol=1e-12)
    for method in CALIBRATION_METHODS:
        vector = fit_calibration(logits, targets, method, exclusive="vector", shrinkage=0, space=SPACE, mask=mask)
        wanted = softmax(logits[:, 2:5] * best.x[:3] + best.x[3:], axis=1)
        np.testing.assert_allclose(vector.apply(logits)[:, 2:5], wanted, atol=1e-4)
    strong = fit_calibration(logits, targets, exclusive="vector", shrinkage=1e9, space=SPACE, mask=mask)
    np.testing.assert_allclose(strong.apply(logits)[:, 2:5], fitted.apply(logits)[:, 2:5], atol=1e-4)
    half = fit_calibration(logits, targets, exclusive="vector", shrinkage=100.0, space=SPACE, mask=mask).steps[0]
    assert loss(best.x) < loss(np.concatenate([half.low[2:5], half.offset[2:5]])) < one.fun


def test_the_prior_of_a_rare_label_is_worth_so_many_positives() -> None:
    """The precision is the curvature of the group's loss for one unit of evidence, times the shrinkage."""
    rng = np.random.default_rng(3)
    logits = rng.normal(-1, 2, (200, 4))
    targets = rng.random((200, 4)) < expit(0.7 * logits + np.array([0.5, 0.0, 0.0, -2.5]))
    pool = fit_calibration(logits, targets, "platt", scope="global").steps[0]
    centre = np.array([pool.low[0], pool.offset[0]])
    evidence = np.minimum(targets.sum(axis=0), 200 - targets.sum(axis=0)).sum()
    share = expit(centre[0] * logits + centre[1])
    bend, ones = share * (1 - share), np.ones_like(logits)
    features = np.stack([logits, ones])
    unit = np.einsum("anl,bnl,nl->ab", features, features, bend) / evidence
    found = fit_calibration(logits, targets, "platt", shrinkage=7.0).steps[0]
    for column in range(4):
        x, y = logits[:, column], targets[:, column]

        def loss(parameters: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            away = parameters - centre
            return beta_loss(parameters[[0, 0, 1]], x, y) + 7.0 * away @ unit @ away / 2

        best = minimize(loss, centre, tol=1e-12).x
        np.testing.assert_allclose([found.low[column], found.offset[column]], best, atol=1e-4)


@pytest.mark.parametrize("method", sorted(CALIBRATION_METHODS))
def test_rare_labels_lean_on_their_group(method: str) -> None:
    logits, targets, _ = mixed(300)
    mask = np.ones(logits.shape, dtype=bool)
    mask[16:, 1] = False
    options = {"method": method, "space": SPACE, "mask": mask}
    group = fit_calibration(logits, targets, scope="group", **options).apply(logits)
    alone = fit_calibration(logits, targets, shrinkage=0, **options).apply(logits)
    last = 0.0
    for shrinkage in (0.5, 5.0, 50.0, 5e6):
        between = fit_calibration(logits, targets, shrinkage=shrinkage, **options).apply(logits)
        away = np.abs(between - alone)[:, 1].mean()
        assert away > last
        last = away
    np.testing.assert_allclose(between[:, ANY_OF], group[:, ANY_OF], atol=1e-3)
    between = fit_calibration(logits, targets, shrinkage=5.0, **options).apply(logits)
    moved = (np.abs(between - alone).mean(axis=0) / (np.abs(group - alone).mean(axis=0) + 1e-12))[:2]
    assert moved[1] > 0.3 > 0.15 > moved[0]  # the label that is well known hardly moves


def test_isotonic_curves_are_mixed_by_evidence() -> None:
    logits, targets, _ = mixed(100)
    column, few = 0, targets[:, [0, 1]]
    logits = logits[:, [0, 1]]
    amount = min(few[:, column].sum(), 100 - few[:, column].sum())
    alone = fit_calibration(logits, few, "isotonic", shrinkage=0).apply(logits)[:, column]
    pool = fit_calibration(logits, few, "isotonic", scope="global").apply(logits)[:, column]
    mix = fit_calibration(logits, few, "isotonic", shrinkage=20.0).apply(logits)[:, column]
    np.testing.assert_allclose(mix, (amount * alone + 20 * pool) / (amount + 20), atol=1e-12)


@pytest.mark.parametrize("method", sorted(CALIBRATION_METHODS))
def test_labels_without_evidence(method: str) -> None:
    logits, targets, _ = mixed(100)
    targets[:, 0], targets[:, 1] = 0, 1  # never, always: the group still has both
    targets[:, 5:] = 0  # nothing in the group: as it is
    for shrinkage in (0.0, 10.0):
        fitted = fit_calibration(logits, targets, method, shrinkage=shrinkage, space=SPACE)
        probabilities = fitted.apply(logits)
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities[:, 5:], expit(logits[:, 5:]), atol=1e-12)
    group = fit_calibration(logits, targets, method, scope="group", space=SPACE).apply(logits)
    alone = fit_calibration(logits, targets, method, shrinkage=0, space=SPACE).apply(logits)
    np.testing.assert_allclose(alone[:, :2], group[:, :2], atol=1e-12)


@pytest.mark.parametrize("method", sorted(CALIBRATION_METHODS))
def test_nothing_known_leaves_everything_as_it_is(method: str) -> None:
    logits, targets, _ = mixed(20)
    mask = np.zeros(logits.shape, dtype=bool)
    fitted = fit_calibration(logits, targets, method, exclusive="vector", space=SPACE, mask=mask)
    np.testing.assert_allclose(fitted.apply(logits), space_probabilities(logits), atol=1e-12)


def space_probabilities(logits: np.ndarray) -> np.ndarray:
    result = expit(logits)
    result[:, 2:5] = softmax(logits[:, 2:5], axis=1)
    return result


def test_labels_that_scores_separate_have_finite_maps() -> None:
    logits = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    for method in ("temperature", "platt", "beta"):
        step = fit_calibration(logits, logits > 0, method, shrinkage=0).steps[0]
        assert 3 < step.low[0] < 100
        assert (fit_calibration(logits, logits > 0, method, shrinkage=0).apply(logits) > 0.99).sum() == 2


def test_an_identity_is_the_space_s_own_probabilities() -> None:
    logits = mixed(10)[0].astype(np.float32)
    wanted = SPACE.probabilities(torch.from_numpy(logits)).numpy()
    found = Calibration(7, space=SPACE).apply(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(Calibration(7, space=SPACE).apply(logits_of(wanted, SPACE)), wanted, atol=1e-6)
    np.testing.assert_allclose(logits_of(expit(logits.astype(float))), logits, atol=1e-6)
    edges = logits_of([[0.0, 1.0]])
    assert np.isfinite(edges).all()
    assert Calibration(2).apply(edges).round(9).tolist() == [[0.0, 1.0]]


def test_cross_fitted_probabilities_come_from_the_other_folds() -> None:
    logits, targets, mask = mixed(90)
    folds = np.arange(90) % 3
    found, given = cross_fit_calibration(logits, targets, "beta", folds=folds, space=SPACE, mask=mask, shrinkage=3.0)
    assert np.array_equal(given, folds)
    for fold in range(3):
        mine = folds == fold
        fitted = fit_calibration(logits[~mine], targets[~mine], "beta", space=SPACE, mask=mask[~mine], shrinkage=3.0)
        assert np.array_equal(found[mine], fitted.apply(logits[mine]))
    drawn = cross_fit_calibration(logits, targets, folds=4, seed=1)[1]
    assert sorted(np.bincount(drawn)) == [22, 22, 23, 23]
    assert not np.array_equal(drawn, cross_fit_calibration(logits, targets, folds=4, seed=2)[1])


def test_calibrating_makes_held_out_probabilities_better() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(-2, 1.5, (4000, 6))
    targets = rng.random((4000, 6)) < expit(2 * logits + rng.normal(0, 0.5, 6))
    before = expit(logits)
    for method in CALIBRATION_METHODS:
        after, _ = cross_fit_calibration(logits, targets, method, folds=2)
        assert brier_score(after, targets) < brier_score(before, targets) - 0.005
        assert expected_calibration_error(after, targets) < 0.5 * expected_calibration_error(before, targets)


# Each loss at the options it is tried with.
LOSS_OPTIONS: list[tuple[str, dict[str, float]]] = [
    ("binary_cross_entropy", {}),
    ("squared_error", {}),
    ("focal", {}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 5.0, "alpha": 0.25}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0}),
    ("asymmetric", {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.2}),
    ("asymmetric", {"gamma_neg": 1.0, "gamma_pos": 2.0, "clip": 0.1}),
    ("poly1", {}),
    ("poly1", {"epsilon": -0.9}),
]


@pytest.mark.parametrize(("name", "options"), LOSS_OPTIONS)
@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_a_loss_is_undone_from_where_it_is_lowest(name: str, options: dict[str, float], weight: float) -> None:
    function: Callable[..., torch.Tensor] = getattr(losses, name)
    for wanted in (0.03, 0.2, 0.5, 0.7, 0.97):

        def expected(x: float, q: float = wanted) -> float:
            both = torch.full((1, 2), x, dtype=torch.float64)
            terms = function(both, torch.tensor([[1.0, 0.0]]), **options)
            return float(weight * q * terms[0, 0] + (1 - q) * terms[0, 1])

        grid = np.linspace(-14, 14, 561)
        start = grid[int(np.argmin([expected(x) for x in grid]))]
        lowest = minimize_scalar(expected, bounds=(start - 0.1, start + 0.1), options={"xatol": 1e-9}).x
        found = undo_loss(name, 1, options=options, pos_weight=weight).apply(np.array([[lowest]]))[0, 0]
        if start == grid[-1]:  # it falls for ever: above the most that such a loss can say
            assert options["gamma_pos"] == 0 < options["clip"]
            assert found < wanted
        else:
            assert found == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_a_loss_of_classes_is_undone_from_where_it_is_lowest(gamma: float) -> None:
    space = LabelSpace([Group("kind", ["x", "y", "z"], exclusive=True)])
    wanted, weight = np.array([[0.6, 0.3, 0.1]]), np.array([1.0, 2.0, 5.0])

    def expected(free: np.ndarray) -> float:
        x = torch.tensor([[*free, 0.0]], dtype=torch.float64)
        factor = torch.from_numpy(weight)
        return float(losses.focal_cross_entropy(x, torch.from_numpy(wanted), weight=factor, gamma=gamma))

    lowest = minimize(expected, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15}).x
    undo = undo_loss("focal", space, exclusive_loss="focal_cross_entropy", options={"gamma": gamma}, pos_weight=weight)
    np.testing.assert_allclose(undo.apply(np.array([[*lowest, 0.0]])), wanted, atol=1e-5)
    far = undo.apply(np.array([[800.0, 0.0, -800.0], [-800.0, 0.0, 0.0]]))
    assert np.isfinite(far).all()
    np.testing.assert_allclose(far.sum(axis=1), 1)


@given(st.floats(0, 8), st.floats(0, 8), st.floats(0, 0.9), st.sampled_from(["focal", "asymmetric", "poly1"]))
@settings(max_examples=100)
def test_undoing_keeps_the_order(gamma: float, other: float, clip: float, name: str) -> None:
    held = {"gamma": gamma, "gamma_neg": gamma, "gamma_pos": other, "clip": clip, "epsilon": gamma - 1}
    options = {option: held[option] for option in LINKS[name].options}
    undo = undo_loss(name, 1, options=options)
    found = undo.apply(np.linspace(-700, 700, 4001)[:, None])[:, 0]
    assert np.isfinite(found).all()
    assert (np.diff(found) >= -1e-9).all()
    if name == "asymmetric" and clip > 0.01:
        assert found[0] == 0.0
        assert undo.apply(logits_of([[clip * 0.99]]))[0, 0] == 0.0


def test_the_link_of_the_focal_loss_by_hand() -> None:
    """With gamma 1 and p = 0.5 both slopes are 0.25 + 0.25 log 2; at p = 0.75 they are in the ratio below."""
    down = 0.25 * (0.25 - 0.75 * np.log(0.75))
    up = 0.75 * (0.75 - 0.25 * np.log(0.25))
    found = undo_loss("focal", 1, options={"gamma": 1.0}).apply([[0.0], [np.log(3)]])
    np.testing.assert_allclose(found.ravel(), [0.5, up / (up + down)])


def test_a_shift_of_priors_is_bayes_rule() -> None:
    rng = np.random.default_rng(0)
    probabilities, old, new = rng.random((9, 7)), rng.uniform(0.1, 0.9, 7), rng.uniform(0.1, 0.9, 7)
    for span in (slice(2, 5),):
        for each in (probabilities.T, old, new):
            each[span] /= each[span].sum(axis=0)
    found = Calibration(7, space=SPACE).shifted(old, new).apply(logits_of(probabilities, SPACE))
    odds = probabilities / (1 - probabilities) * (new / (1 - new)) / (old / (1 - old))
    wanted = odds / (1 + odds)
    joint = (probabilities * new / old)[:, 2:5]
    wanted[:, 2:5] = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    edges = Calibration(2).shifted([0.5, 0.5], [0.0, 1.0]).apply([[3.0, -3.0]])
    assert edges.round(9).tolist() == [[0.0, 1.0]]


def expectation_maximisation(probabilities: np.ndarray, prior: np.ndarray) -> np.ndarray:
    belief = prior
    for _ in range(5_000):
        joint = probabilities * belief / prior
        belief = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    return belief


def test_unknown_priors_are_where_expectation_maximisation_leads() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.random((150, 7)) ** 2
    probabilities[:, 2:5] = softmax(rng.normal(0, 2, (150, 3)), axis=1)
    prior = np.array([0.2, 0.5, 0.3, 0.3, 0.4, 0.05, 0.6])
    mask = rng.random((150, 7)) < 0.8
    found = estimate_priors(probabilities, prior, space=SPACE, mask=mask)
    for column in ANY_OF:
        p = probabilities[mask[:, column], column]
        both = np.array([prior[column], 1 - prior[column]])
        wanted = expectation_maximisation(np.stack([p, 1 - p], axis=1), both)[0]
        assert found[column] == pytest.approx(wanted, abs=1e-6)
    rows = mask[:, 2:5].all(axis=1)
    np.testing.assert_allclose(found[2:5], expectation_maximisation(probabilities[rows, 2:5], prior[2:5]), atol=1e-6)
    assert found[2:5].sum() == pytest.approx(1)
    nothing = estimate_priors(probabilities, prior, space=SPACE, mask=np.zeros((150, 7), dtype=bool))
    assert np.array_equal(nothing, prior)


def test_a_shift_is_found_and_undone() -> None:
    rng = np.random.default_rng(1)

    def draw(share: float, number: int) -> tuple[np.ndarray, np.ndarray]:
        held = rng.random(number) < share
        return np.where(held, rng.normal(1, 1, number), rng.normal(-1, 1, number))[:, None] * 2, held[:, None]

    logits, targets = draw(0.1, 20_000)
    fitted = fit_calibration(logits, targets, "platt")
    moved, truth = draw(0.4, 20_000)
    estimate = estimate_priors(fitted.apply(moved), [targets.mean()])
    assert estimate[0] == pytest.approx(0.4, abs=0.02)
    after = fitted.shifted([targets.mean()], estimate).apply(moved)
    assert (
        expected_calibration_error(after, truth) < 0.02 < 0.1 < expected_calibration_error(fitted.apply(moved), truth)
    )


@pytest.mark.parametrize("method", sorted(CALIBRATION_METHODS))
def test_saved_and_read_back(method: str, tmp_path: Path) -> None:
    logits, targets, mask = mixed(60)
    fitted = fit_calibration(logits, targets, method, exclusive="vector", space=SPACE, mask=mask)
    fitted = fitted.shifted(np.full(7, 0.3), np.full(7, 0.2))
    fitted.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json", SPACE)
    assert np.array_equal(again.apply(logits), fitted.apply(logits))
    assert (again.method, again.space, again.num_labels) == (method, SPACE, 7)
    other = LabelSpace([Group("a", ["q", "p"]), *SPACE.groups[1:]])
    with pytest.raises(ValueError, match="column 0 is 'q' here and 'p' there"):
        Calibration.load(tmp_path / "c.json", other)
    undo = undo_loss("asymmetric", 7, options={"clip": 0.1}, pos_weight=2.0)
    undo.save(tmp_path / "u.json")
    assert np.array_equal(Calibration.load(tmp_path / "u.json").apply(logits), undo.apply(logits))
    with pytest.raises(ValueError, match="without a label space"):
        Calibration.load(tmp_path / "u.json", SPACE)


def saved(change: Callable[[dict[str, Any]], Any], method: str = "isotonic") -> str:
    logits, targets, _ = mixed(30)
    data = fit_calibration(logits[:, :2], targets[:, :2], method).to_dict()
    change(data)
    return json.dumps(data)


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


HOSTILE: list[str] = [
    "{}",
    "[]",
    "{",
    '{"format": "mlabel.calibration/1"}',
    saved(put("two", "num_labels")),
    saved(put(True, "num_labels")),
    saved(put(0, "num_labels")),
    saved(put(10**9, "num_labels")),
    saved(put("__import__", "steps", 0, "kind")),
    saved(put([], "steps", 0, "starts")),
    saved(put([0, 1, 2], "steps", 0, "starts")),
    saved(put(["0"], "steps", 0, "x")),
    saved(put([1e400], "steps", 0, "y")),
    saved(put([0.5, 2.0], "steps", 0, "own")),
    saved(put([7, 7], "steps", 0, "pool")),
    saved(put([-2, -2], "steps", 0, "pool")),
    saved(put(None, "steps", 0)),
    saved(put({"a": 1}, "steps")),
    saved(put([-1.0, 1.0], "steps", 0, "low"), "platt"),
    saved(put([1.0], "steps", 0, "offset"), "platt"),
    saved(put([None, 1.0], "steps", 0, "offset"), "platt"),
    saved(put([True, 1.0], "steps", 0, "offset"), "platt"),
    saved(put([{"kind": "loss", "loss": "eval", "exclusive_loss": "cross_entropy", "options": {}}], "steps")),
    saved(put([{"kind": "loss", "loss": "focal", "exclusive_loss": "cross_entropy", "options": {"a": 1}}], "steps")),
    saved(
        put([{"kind": "loss", "loss": "focal", "exclusive_loss": "cross_entropy", "options": {"gamma": -9}}], "steps")
    ),
    saved(put([{"kind": "loss", "loss": [], "exclusive_loss": "cross_entropy", "options": {}}], "steps")),
]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_file_that_is_no_calibration_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(DataError, match=r"c\.json"):
        Calibration.load(tmp_path / "c.json")


def test_curves_that_fall_are_refused() -> None:
    logits, targets, _ = mixed(30)
    data = fit_calibration(logits[:, :2], targets[:, :2], "isotonic").to_dict()
    for name in ("x", "y"):
        damaged = json.loads(json.dumps(data))
        damaged["steps"][0][name][:2] = damaged["steps"][0][name][1::-1]
        with pytest.raises(DataError, match="ascending"):
            Calibration.from_dict(
                damaged
                if name == "x"
                else put([1.0] + [0.0] * (len(data["steps"][0]["y"]) - 1), "steps", 0, "y")(damaged) or damaged
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put([0, 1, 2], "steps", 0, "starts"), "not as many as their starts say"),
        (put([0.5], "steps", 0, "own"), "calibration: isotonic curves must be of 2 labels; got 1"),
        (put([7, 7], "steps", 0, "pool"), "the shares of labels and pools do not fit the curves"),
        (put([1], "steps", 0, "starts"), "not as many"),
        (put("x", "steps", 0, "x"), "x must be a list of numbers"),
        (put([0.5], "steps", 0, "starts"), "starts must be a list of whole numbers"),
        (put("two", "num_labels"), "num_labels must be a whole number; got 'two'"),
        (put("a", "format"), "a calibration of format 'mlabel.calibration/1' was wanted"),
    ],
)
def test_a_damaged_file_is_told_what_is_wrong(change: Callable, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Calibration.from_dict(json.loads(saved(change)))


def test_slopes_are_checked_and_cannot_be_changed() -> None:
    step = fit_calibration(*mixed(30)[:2]).steps[0]
    for name in ("low", "high", "offset"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(step, name)[0] = 1.0
    data = Calibration(2).offset_by([1.0, 2.0]).to_dict()
    data["steps"][0]["high"] = [1.0, -0.5]
    with pytest.raises(DataError, match=r"slopes of a calibration must be 0 or more; got -0\.5"):
        Calibration.from_dict(data)


def test_curves_of_many_knots_are_read_back() -> None:
    logits, targets, _ = mixed(3000)
    fitted = fit_calibration(logits, targets, "isotonic", space=SPACE)
    assert fitted.steps[0].starts[-1] > 300
    again = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert np.array_equal(again.apply(logits), fitted.apply(logits))


def test_probabilities_that_say_nothing_leave_a_prior_as_it_is() -> None:
    probabilities = np.stack([np.full(20, 0.3), np.linspace(0.1, 0.9, 20)], axis=1)
    found = estimate_priors(probabilities, [0.3, 0.3])
    assert found[0] == 0.3
    assert found[1] > 0.4


def test_raw_thresholds_decide_alike() -> None:
    logits, targets, _ = mixed(200)
    for method in CALIBRATION_METHODS:
        fitted = fit_calibration(logits, targets, method, space=SPACE)
        levels = np.array([0.3, 0.4, np.nan, np.nan, np.nan, 0.0, np.inf])
        raw = fitted.raw_thresholds(levels)
        assert np.isnan(raw[2:5]).all()
        assert raw[5] == 0
        assert raw[6] > 1
        for column in ANY_OF:
            wanted = fitted.apply(logits)[:, column] >= levels[column]
            assert np.array_equal(expit(logits[:, column]) >= raw[column], wanted)


def test_messages() -> None:
    logits, targets = np.zeros((4, 2)), np.zeros((4, 2))
    with pytest.raises(ValueError, match="unknown calibration method 'plat'; did you mean 'platt'"):
        fit_calibration(logits, targets, "plat")
    with pytest.raises(ValueError, match="unknown calibration scope 'all'"):
        fit_calibration(logits, targets, scope="all")
    with pytest.raises(ValueError, match="method of exclusive groups 'matrix'"):
        fit_calibration(logits, targets, exclusive="matrix")
    with pytest.raises(ValueError, match="shrinkage must be between"):
        fit_calibration(logits, targets, shrinkage=-1)
    with pytest.raises(ValueError, match="the space has 7 labels"):
        fit_calibration(logits, targets, space=SPACE)
    with pytest.raises(ValueError, match="logits must be finite"):
        Calibration(2).apply(np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="logits have 3 columns, but the calibration has 2 labels"):
        Calibration(2).apply(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="num_labels must be 1 or more"):
        Calibration(0)
    with pytest.raises(ValueError, match="but the space has 7"):
        Calibration(2, space=SPACE)
    with pytest.raises(ValueError, match="offset must be of shape"):
        Calibration(2).offset_by([1.0])
    with pytest.raises(ValueError, match="old must be shares"):
        Calibration(2).shifted([0.5], [0.5, 0.5])
    with pytest.raises(ValueError, match="new must be shares"):
        Calibration(2).shifted([0.5, 0.5], [0.5, 1.5])
    with pytest.raises(ValueError, match="label 1 has 1"):
        Calibration(2).shifted([0.5, 1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="probabilities must be in"):
        logits_of([[2.0]])
    with pytest.raises(ValueError, match="but the space has 7"):
        logits_of([[0.5]], SPACE)
    with pytest.raises(ValueError, match="priors must be above 0"):
        estimate_priors([[0.5]], [1.0])
    with pytest.raises(ValueError, match="but the space has 7"):
        estimate_priors([[0.5]], [0.5], space=SPACE)
    with pytest.raises(ValueError, match="sample 1 has 2 classes"):
        fit_calibration(np.zeros((2, 7)), [[0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0]], space=SPACE)
    with pytest.raises(ValueError, match="unknown loss that can be undone 'hill'"):
        undo_loss("hill", 2)
    with pytest.raises(ValueError, match="exclusive loss that can be undone 'seesaw'"):
        undo_loss("focal", SPACE, exclusive_loss="seesaw")
    with pytest.raises(ValueError, match="unknown option 'gama'; did you mean 'gamma'"):
        undo_loss("focal", 2, options={"gama": 1})
    with pytest.raises(ValueError, match="gamma of a loss must be finite, 0 or more"):
        undo_loss("focal", 2, options={"gamma": -1.0})
    with pytest.raises(ValueError, match="clip of a loss"):
        undo_loss("asymmetric", 2, options={"clip": 1.0})
    with pytest.raises(ValueError, match="no option 'alpha'"):
        undo_loss("asymmetric", 2, options={"alpha": 0.5})
    with pytest.raises(ValueError, match="alpha must be above 0"):
        undo_loss("focal", 2, options={"alpha": 1.0})
    with pytest.raises(ValueError, match="pos_weight must be finite"):
        undo_loss("focal", 2, pos_weight=[1.0, 0.0])


def test_a_focal_alpha_for_each_label_and_a_space() -> None:
    found = undo_loss("focal", SPACE, options={"gamma": 0.0, "alpha": [0.2, 0.5, 0.3, 0.3, 0.3, 0.5, 0.5]})
    held = found.apply(np.zeros((1, 7)))[0]
    np.testing.assert_allclose(held, [0.8, 0.5, *[1 / 3] * 3, 0.5, 0.5])
    assert logit(0.8) == pytest.approx(-found.steps[1].offset[0] * -1)
