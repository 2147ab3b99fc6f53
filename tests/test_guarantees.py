"""Guarantees: what brute force would choose, kept over a thousand resamplings, and said where they cannot be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import binom

from mlabel import DataError, Thresholds
from mlabel.decisions import ConformalSets, control_risk, fit_conformal_sets, hoeffding_bentkus
from mlabel.labels import Group, LabelSpace

SPACE = LabelSpace([Group("a", ["p", "q"]), Group("kind", ["x", "y", "z"], exclusive=True), Group("b", ["r", "s"])])
ANY_OF = [0, 1, 5, 6]
RESAMPLINGS = 1000


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, labels = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    probabilities = rng.random((samples, labels)) ** draw(st.sampled_from([1, 3]))
    probabilities = np.round(probabilities, draw(st.sampled_from([1, 8]))).astype(
        draw(st.sampled_from([np.float32, np.float64]))
    )
    targets = (rng.random((samples, labels)) < 0.2 + 0.8 * probabilities).astype(np.uint8)
    mask = rng.random((samples, labels)) < 0.8 if draw(st.booleans()) else None
    return probabilities, targets, mask


def false_negatives(scores: np.ndarray, targets: np.ndarray, known: np.ndarray, level: float) -> np.ndarray:
    """Return the share of labels missed by each image that has any."""
    held = (targets == 1) & known
    missed = (held & (scores < level)).sum(axis=1)
    return (missed / np.maximum(held.sum(axis=1), 1))[held.any(axis=1)]


def false_discoveries(scores: np.ndarray, targets: np.ndarray, known: np.ndarray, level: float) -> np.ndarray:
    decided = (scores >= level) & known
    return (decided & (targets == 0)).sum(axis=1) / np.maximum(decided.sum(axis=1), 1)


def known_of(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, dtype=bool) if mask is None else mask


@given(problems(), st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from(["global", "label"]))
@settings(max_examples=80)
def test_no_higher_threshold_keeps_false_negatives_in_expectation(problem: tuple, alpha: float, scope: str) -> None:
    probabilities, targets, mask = problem
    known = known_of(mask, targets.shape)
    found = control_risk(probabilities, targets, alpha, scope=scope, mask=mask)
    columns = [[column] for column in range(targets.shape[1])] if scope == "label" else [list(range(targets.shape[1]))]
    for few in columns:
        part = (probabilities[:, few].astype(float), targets[:, few], known[:, few])

        def keeps(level: float, part: tuple = part) -> bool:
            losses = false_negatives(*part, level)
            return (losses.sum() + 1) / (len(losses) + 1) <= alpha + 1e-9

        level = found.values[few[0]]
        held = part[0][(part[1] == 1) & part[2]]
        assert found.num_images[few[0]] == len(false_negatives(*part, 0.5))
        if keeps(0.0):
            assert found.reached[few[0]]
            assert keeps(level)
            assert level in held
            assert not any(keeps(float(higher)) for higher in np.unique(held) if higher > level)
            assert found.estimate[few[0]] == pytest.approx(false_negatives(*part, level).mean())
        else:
            assert not found.reached[few[0]]
            assert level == 0


@given(problems(), st.sampled_from([0.2, 0.5]), st.sampled_from(["false_negative_rate", "false_discovery_rate"]))
@settings(max_examples=80)
def test_thresholds_with_delta_are_the_last_of_the_tests_in_order(problem: tuple, alpha: float, risk: str) -> None:
    probabilities, targets, mask = problem
    known = known_of(mask, targets.shape)
    levels = [0.8, 0.2, 0.5, 0.05, 0.35]
    found = control_risk(probabilities, targets, alpha, risk=risk, delta=0.3, levels=levels, mask=mask)
    losses = false_negatives if risk == "false_negative_rate" else false_discoveries
    order = sorted(levels, reverse=risk == "false_discovery_rate")
    wanted, reached = (0.0, False) if risk == "false_negative_rate" else (np.inf, False)
    for level in order:
        held = losses(probabilities.astype(float), targets, known, level)
        if not len(held) or hoeffding_bentkus(held.mean(), len(held), alpha) > 0.3:
            break
        wanted, reached = level, True
        assert held.mean() <= alpha
    assert set(found.values) == {wanted}
    assert set(found.reached) == {reached}
    if reached:
        held = losses(probabilities.astype(float), targets, known, wanted)
        assert found.estimate[0] == pytest.approx(held.mean())
        assert found.num_images[0] == len(held)


@given(problems(), st.sampled_from([0.3, 0.5]), st.sampled_from(["false_negative_rate", "false_discovery_rate"]))
@settings(max_examples=80)
def test_labels_are_tested_by_the_exact_binomial(problem: tuple, alpha: float, risk: str) -> None:
    probabilities, targets, mask = problem
    known = known_of(mask, targets.shape)
    levels = [0.8, 0.2, 0.5, 0.05, 0.35]
    negatives = risk == "false_negative_rate"
    found = control_risk(probabilities, targets, alpha, risk=risk, delta=0.3, scope="label", levels=levels, mask=mask)
    fewest = math.ceil(math.log(0.3) / math.log(1 - alpha))
    for column in range(targets.shape[1]):
        rows = known[:, column]
        scores, held = probabilities[rows, column].astype(float), targets[rows, column] == 1
        wanted, reached = (0.0 if negatives else np.inf), False
        for level in sorted(levels, reverse=not negatives):
            decided = scores >= level
            wrong, total = (
                ((~decided & held).sum(), held.sum()) if negatives else ((decided & ~held).sum(), decided.sum())
            )
            if not negatives and total < fewest:
                continue
            if binom.cdf(wrong, total, alpha) > 0.3:
                break
            wanted, reached = level, True
        assert found.values[column] == wanted
        assert found.reached[column] == reached


@given(problems(), st.sampled_from([None, 0.2]), st.sampled_from(["global", "label"]))
@settings(max_examples=40)
def test_all_forms_of_input_agree_and_are_left_alone(problem: tuple, delta: float | None, scope: str) -> None:
    probabilities, targets, mask = problem
    before = (probabilities.copy(), targets.copy())
    options = {"delta": delta, "scope": scope}
    expected = control_risk(probabilities, targets, 0.4, mask=mask, **options)
    unknown = None if mask is None else sp.csr_array(~mask)
    again = control_risk(torch.from_numpy(probabilities), sp.csr_array(targets), 0.4, mask=unknown, **options)
    assert np.array_equal(expected.values, again.values)
    order = np.random.default_rng(0).permutation(len(targets))
    moved = None if mask is None else mask[order]
    assert np.array_equal(
        expected.values, control_risk(probabilities[order], targets[order], 0.4, mask=moved, **options).values
    )
    assert np.array_equal(before[0], probabilities)
    assert np.array_equal(before[1], targets)


def test_a_threshold_by_hand() -> None:
    """Nine images with a label each: alpha 0.2 allows (0.2 x 10 - 1) = 1 missed, so that the second lowest stays."""
    probabilities = np.arange(1, 11)[:, None] / 10
    targets = np.array([[0]] + [[1]] * 9)
    found = control_risk(probabilities, targets, 0.2)
    assert found.values.tolist() == [0.3]
    assert (found.estimate[0], found.num_images[0], found.reached[0]) == (pytest.approx(1 / 9), 9, True)
    assert control_risk(probabilities, targets, 0.1).values.tolist() == [0.2]  # 0.1 x 10 - 1: none may be missed
    short = control_risk(probabilities, targets, 0.0999)
    assert (short.values[0], short.reached[0], short.estimate[0]) == (0.0, False, 0.0)
    assert short.decide(probabilities).all()
    nothing = control_risk(probabilities, np.zeros((10, 1)), 0.2)
    assert (nothing.values[0], nothing.reached[0], nothing.num_images[0]) == (0.0, False, 0)
    assert np.isnan(nothing.estimate[0])
    wrong = control_risk(probabilities, np.zeros((10, 1)), 0.1, risk="false_discovery_rate", delta=0.1)
    assert not wrong.reached[0]
    assert not wrong.decide(np.ones((2, 1))).any()


def test_the_grid_goes_evenly_from_one_in_ten_thousand_to_all_but_that() -> None:
    certain, never = np.ones((200, 1)), np.zeros((200, 1))
    options = {"risk": "false_discovery_rate", "delta": 0.1}
    assert control_risk(certain, certain, 0.1, **options).values[0] == pytest.approx(1e-4, rel=1e-9)
    assert control_risk(certain, certain, 0.1, delta=0.1).values[0] == pytest.approx(1 - 1e-4, rel=1e-9)
    half = control_risk(
        np.where(np.arange(400) < 200, 0.5, 0.499)[:, None], np.vstack([certain, never]), 0.1, **options
    )
    assert half.values[0] == pytest.approx(0.5)


def test_many_images_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets, mask = population(90)
    for scope in ("global", "label"):
        options = {"risk": "false_discovery_rate", "delta": 0.3, "scope": scope, "space": SPACE, "mask": mask}
        expected = control_risk(expit(logits), targets, 0.5, **options)
        with monkeypatch.context() as patch:
            patch.setattr("mlabel.decisions.risk_control._ENTRIES", 2500)
            patch.setattr("mlabel.metrics._blocks.SCRATCH_BYTES", 1)
            in_parts = control_risk(expit(logits), targets, 0.5, **options)
        assert np.array_equal(in_parts.values, expected.values, equal_nan=True)
        assert np.array_equal(in_parts.estimate, expected.estimate, equal_nan=True)


def test_p_values_are_those_of_the_formula() -> None:
    def entropy(a: float, b: float) -> float:
        return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))

    found = hoeffding_bentkus([0.02, 0.05, 0.2], 200, 0.1)
    hoeffding = [math.exp(-200 * entropy(min(r, 0.1), 0.1)) for r in (0.02, 0.05, 0.2)]
    bentkus = [math.e * binom.cdf(math.ceil(round(200 * r, 6)), 200, 0.1) for r in (0.02, 0.05, 0.2)]
    np.testing.assert_allclose(found, np.minimum(1, np.minimum(hoeffding, bentkus)))
    assert hoeffding_bentkus([0.0, 1.0], 0, 0.1).tolist() == [1.0, 1.0]
    assert hoeffding_bentkus([0.0], 50, 0.1)[0] == pytest.approx(0.9**50)
    assert (np.diff(hoeffding_bentkus(np.linspace(0, 1, 101), 100, 0.3)) >= 0).all()


@pytest.mark.parametrize("mean", [0.1, 0.3])
def test_p_values_are_valid_where_the_risk_is_just_too_high(mean: float) -> None:
    rng = np.random.default_rng(0)
    for losses in (rng.random((20_000, 50)) < mean, rng.random((20_000, 50)) * 2 * mean):
        found = hoeffding_bentkus(losses.mean(axis=1), 50, mean)
        for level in (0.05, 0.2):
            assert (found <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 20_000)


def population(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits that are not calibrated, targets and mask in SPACE; some images have no label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (number, 7)) + rng.normal(0, 1, (number, 1))
    targets = (rng.random((number, 7)) < expit(0.8 * logits - [0, 1, 0, 0, 0, 0.5, 2])).astype(np.uint8)
    classes = (np.cumsum(softmax(0.7 * logits[:, 2:5], axis=1), axis=1) < rng.random((number, 1))).sum(axis=1)
    targets[:, 2:5] = np.eye(3)[np.minimum(classes, 2)]
    mask = rng.random((number, 7)) < 0.9
    mask[:, 2:5] = (rng.random(number) < 0.9)[:, None]
    return logits, targets, mask


def resamplings(number: int, size: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, number, size) for _ in range(RESAMPLINGS)]


def at_most(values: np.ndarray, alpha: float) -> bool:
    """Return whether a mean is at or under alpha within three of its standard errors."""
    return bool(values.mean() <= alpha + 3 * values.std() / math.sqrt(len(values)))


def risk_at(losses_of: Callable[[float], np.ndarray]) -> Callable[[float], float]:
    """Return the risk of a threshold over the whole population, kept once known."""
    seen: dict[float, float] = {}

    def risk(level: float) -> float:
        if level not in seen:
            losses = losses_of(level)
            seen[level] = float(losses.mean())
        return seen[level]

    return risk


@pytest.mark.parametrize("scope", ["global", "group", "label"])
def test_false_negatives_are_kept_on_average_over_a_thousand_calibration_sets(scope: str) -> None:
    logits, targets, mask = population(3000)
    probabilities, alpha, size = expit(logits), 0.15, 60
    risks: dict[tuple[int, ...], list[float]] = {}
    parts = {"global": [ANY_OF], "group": [[0, 1], [5, 6]], "label": [[column] for column in ANY_OF]}[scope]
    tables = {}
    for columns in parts:
        held = (targets[:, columns] == 1) & mask[:, columns]
        scores, shares = probabilities[:, columns][held], (held / np.maximum(held.sum(axis=1, keepdims=True), 1))[held]
        order = np.argsort(scores)
        tables[tuple(columns)] = (scores[order], np.append(0, np.cumsum(shares[order])) / held.any(axis=1).sum())
    reached = []
    for rows in resamplings(3000, size, 1):
        found = control_risk(probabilities[rows], targets[rows], alpha, scope=scope, space=SPACE, mask=mask[rows])
        for columns, (scores, missed) in tables.items():
            level = found.values[columns[0]]
            risks.setdefault(columns, []).append(float(missed[np.searchsorted(scores, level, "left")]))
            reached.append(found.reached[columns[0]])
    for held_risks in risks.values():
        mean = np.array(held_risks)
        assert at_most(mean, alpha)
        if scope == "global":
            assert mean.mean() > alpha - 0.04  # and not for nothing
            assert (mean > alpha).mean() > 0.1  # a single calibration set may do worse
    assert np.mean(reached) > 0.8


@pytest.mark.parametrize("risk", ["false_negative_rate", "false_discovery_rate"])
def test_risks_with_delta_are_kept_by_nearly_every_calibration_set(risk: str) -> None:
    logits, targets, mask = population(3000)
    probabilities, alpha, delta = expit(logits)[:, ANY_OF], 0.3, 0.1
    targets, mask = targets[:, ANY_OF], mask[:, ANY_OF]
    losses = false_negatives if risk == "false_negative_rate" else false_discoveries
    true_risk = risk_at(lambda level: losses(probabilities, targets, mask, level))
    options = {"risk": risk, "delta": delta, "levels": np.linspace(0.01, 0.99, 99)}
    found = [
        control_risk(probabilities[rows], targets[rows], alpha, mask=mask[rows], **options)
        for rows in resamplings(3000, 150, 2)
    ]
    failed = np.array([true_risk(float(each.values[0])) > alpha for each in found])
    assert at_most(failed.astype(float), delta)
    assert failed.any()  # and not for nothing
    assert np.mean([each.reached[0] for each in found]) > 0.9


@pytest.mark.parametrize("risk", ["false_negative_rate", "false_discovery_rate"])
def test_the_risks_of_labels_with_delta_are_kept_by_nearly_every_calibration_set(risk: str) -> None:
    logits, targets, mask = population(3000)
    probabilities, alpha, delta = expit(logits)[:, ANY_OF], 0.35, 0.1
    targets, mask = targets[:, ANY_OF], mask[:, ANY_OF]

    def losses(column: int, level: float) -> np.ndarray:
        held = (targets[:, column] == 1)[mask[:, column]]
        decided = (probabilities[:, column] >= level)[mask[:, column]]
        return ~decided[held] if risk == "false_negative_rate" else ~held[decided]

    options = {"risk": risk, "delta": delta, "scope": "label"}
    found = [
        control_risk(probabilities[rows], targets[rows], alpha, mask=mask[rows], **options)
        for rows in resamplings(3000, 200, 3)
    ]
    for column in range(4):
        true_risk = risk_at(lambda level, column=column: losses(column, level))
        held = [each for each in found if each.reached[column]]
        failed = np.array([true_risk(float(each.values[column])) > alpha for each in held])
        assert at_most(np.append(failed, np.zeros(len(found) - len(held))), delta)
    assert np.mean([each.reached.mean() for each in found]) > 0.5


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("scope", ["marginal", "class"])
def test_sets_hold_the_right_class_over_a_thousand_calibration_sets(method: str, scope: str) -> None:
    logits, targets, mask = population(2000)
    probabilities = softmax(logits[:, 2:5], axis=1)
    everything = np.full((2000, 7), 0.5)
    everything[:, 2:5] = probabilities
    alpha, known = 0.2, mask[:, 2]
    classes = targets[:, 2:5].argmax(axis=1)
    covered, sizes = [], []
    for rows in resamplings(2000, 60, 4):
        sets = fit_conformal_sets(
            everything[rows], targets[rows], alpha, method=method, scope=scope, space=SPACE, mask=mask[rows]
        )
        held = sets.predict(everything)[known]
        right = held[np.arange(len(held)), classes[known]]
        sizes.append(held.sum(axis=1).mean())
        if scope == "class":
            covered.append([right[classes[known] == each].mean() for each in range(3)])
        else:
            covered.append([right.mean()])
    missing = 1 - np.array(covered)
    for column in missing.T:
        assert at_most(column, alpha)
        assert column.mean() > alpha - 0.08  # and not for nothing
    assert 1 < np.mean(sizes) < 2.9


def test_sets_by_hand() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.7, 0.2, 0.1]])
    targets = np.eye(3)[[0, 1, 2, 1]]
    # Own scores 0.4, 0.5, 0.6, 0.8; ceil(5 x 0.6) = 3: the third lowest.
    lac = fit_conformal_sets(probabilities, targets, 0.4)
    np.testing.assert_allclose(lac.limits, 0.6)
    assert lac.predict([[0.35, 0.35, 0.3], [0.5, 0.41, 0.09]]).tolist() == [[False] * 3, [True, True, False]]
    # Sums down to the own class: 0.9 in the last row; in the others it is the most probable, and has 0.
    aps = fit_conformal_sets(probabilities, targets, 0.4, method="aps")
    np.testing.assert_allclose(aps.limits, 0.0)
    wider = fit_conformal_sets(probabilities, targets, 0.2, method="aps")
    np.testing.assert_allclose(wider.limits, 0.9)
    assert wider.predict([[0.9, 0.1, 0.0], [0.3, 0.2, 0.5]]).tolist() == [[True, False, False], [True, False, True]]
    assert aps.predict([[0.9, 0.1, 0.0], [0.3, 0.2, 0.5], [0.35, 0.25, 0.4]]).tolist() == [
        [True, False, False],
        [False, False, True],
        [False, False, True],
    ]
    by_class = fit_conformal_sets(probabilities, targets, 0.4, scope="class")
    assert by_class.reached.tolist() == [False, True, False]  # 1 / 0.4 - 1 = 1.5 images
    assert by_class.num_images.tolist() == [1, 2, 1]
    assert by_class.limits[1] == pytest.approx(0.8)
    assert by_class.predict([[0.0, 0.19, 0.81], [0.0, 0.21, 0.79]]).tolist() == [
        [True, False, True],
        [True, True, True],
    ]
    assert fit_conformal_sets(probabilities, targets, 0.2).limits[0] == pytest.approx(0.8)  # 5 x 0.8 is 4, not 5
    assert not fit_conformal_sets(probabilities, targets, 0.19).reached.any()
    assert "with probability 0.6 or more" in lac.promise


def test_sets_ignore_what_is_unknown_and_take_tensors() -> None:
    logits, targets, mask = population(100)
    probabilities = softmax(logits[:, 2:5], axis=1)
    expected = fit_conformal_sets(probabilities[mask[:, 2]], targets[mask[:, 2], 2:5], 0.1)
    given_mask = fit_conformal_sets(
        torch.from_numpy(probabilities), sp.csr_array(targets[:, 2:5]), 0.1, mask=sp.csr_array(~mask[:, 2:5])
    )
    assert np.array_equal(expected.limits, given_mask.limits)
    emptied = np.where(mask[:, 2:5], targets[:, 2:5], 0)
    assert np.array_equal(expected.limits, fit_conformal_sets(probabilities, emptied, 0.1).limits)


def test_groups_have_thresholds_of_their_own_and_exclusive_columns_none() -> None:
    logits, targets, mask = population(300)
    probabilities = expit(logits)
    found = control_risk(probabilities, targets, 0.2, scope="group", space=SPACE, mask=mask)
    for columns in ([0, 1], [5, 6]):
        alone = control_risk(probabilities[:, columns], targets[:, columns], 0.2, mask=mask[:, columns])
        assert set(found.values[columns]) == set(alone.values)
        assert set(found.num_images[columns]) == set(alone.num_images)
    assert np.isnan(found.values[2:5]).all()
    together = control_risk(probabilities, targets, 0.2, space=SPACE, mask=mask)
    alone = control_risk(probabilities[:, ANY_OF], targets[:, ANY_OF], 0.2, mask=mask[:, ANY_OF])
    assert set(together.values[ANY_OF]) == set(alone.values)
    decisions = found.decide(probabilities)
    assert (decisions[:, 2:5].sum(axis=1) == 1).all()
    thresholds = found.to_thresholds()
    assert isinstance(thresholds, Thresholds)
    assert np.array_equal(thresholds.decide(probabilities), decisions)
    assert thresholds.source == ("group", "group", *["exclusive"] * 3, "group", "group")
    assert thresholds.objective == "false_negative_rate <= 0.2"
    few = control_risk(probabilities[:3], targets[:3], 0.2, risk="false_discovery_rate", delta=0.1, space=SPACE)
    assert few.to_thresholds().source[0] == "default"
    assert few.to_thresholds().objective == "false_discovery_rate <= 0.2 with delta 0.1"


def test_thresholds_of_a_guarantee_are_saved_and_read_back(tmp_path: Path) -> None:
    logits, targets, _ = population(200)
    for scope in ("global", "label"):
        held = control_risk(
            expit(logits), targets, 0.05, risk="false_discovery_rate", delta=0.05, scope=scope, space=SPACE
        ).to_thresholds()
        held.save(tmp_path / "t.json")
        assert np.array_equal(Thresholds.load(tmp_path / "t.json", SPACE).values, held.values, equal_nan=True)


def test_promises_say_what_they_are_about() -> None:
    probabilities, targets = np.full((4, 1), 0.5), np.ones((4, 1))
    average = control_risk(probabilities, targets, 0.3).promise
    assert average == (
        "the mean share of an image's labels that are missed, among images with any is at most 0.3 on average over "
        "calibration sets and new images drawn alike"
    )
    options = {"risk": "false_discovery_rate", "delta": 0.1}
    sure = control_risk(probabilities, targets, 0.3, scope="group", **options).promise
    assert sure.startswith("with probability 0.9 over calibration sets, the mean share of wrong ones among an image's")
    assert "of each group" in sure
    assert "among a label's decisions" in control_risk(probabilities, targets, 0.3, scope="label", **options).promise


@pytest.mark.parametrize("group", [None, "kind"])
def test_sets_are_saved_and_read_back(group: str | None, tmp_path: Path) -> None:
    logits, targets, _ = population(50)
    probabilities = np.full((50, 7), 0.5)
    probabilities[:, 2:5] = softmax(logits[:, 2:5], axis=1)
    sets = fit_conformal_sets(probabilities, targets, 0.1, method="aps", scope="class", group=group, space=SPACE)
    sets.save(tmp_path / "s.json")
    again = ConformalSets.load(tmp_path / "s.json")
    assert np.array_equal(again.predict(probabilities), sets.predict(probabilities))
    assert (again.alpha, again.scope, again.method, again.group) == (0.1, "class", "aps", "kind")
    bare = fit_conformal_sets(probabilities[:, 2:5], targets[:, 2:5], 0.1)
    bare.save(tmp_path / "s.json")
    assert np.array_equal(ConformalSets.load(tmp_path / "s.json").limits, bare.limits)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"limits": [1.0]},
        {"limits": [1.0, 1.0, "a"]},
        {"limits": 3},
        {"method": "eval"},
        {"scope": "all"},
        {"alpha": 2.0},
        {"alpha": "a"},
        {"num_images": [1]},
        {"group": "kind"},
        {"space": {}},
    ],
)
def test_a_file_that_is_no_sets_is_refused(change: dict, tmp_path: Path) -> None:
    fit_conformal_sets(np.full((4, 3), 1 / 3), np.eye(3)[[0, 1, 2, 0]], 0.5).save(tmp_path / "s.json")
    data = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(DataError, match=r"s\.json"):
        ConformalSets.load(tmp_path / "s.json")


def test_messages() -> None:
    probabilities, targets = np.full((4, 2), 0.5), np.zeros((4, 2))
    with pytest.raises(ValueError, match="unknown risk 'fnr'"):
        control_risk(probabilities, targets, 0.1, risk="fnr")
    with pytest.raises(ValueError, match="unknown scope of a risk 'labels'; did you mean 'label'"):
        control_risk(probabilities, targets, 0.1, scope="labels")
    with pytest.raises(ValueError, match="give delta="):
        control_risk(probabilities, targets, 0.1, risk="false_discovery_rate")
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha must be above 0 and below 1"):
            control_risk(probabilities, targets, alpha)
    with pytest.raises(ValueError, match="delta must be above 0"):
        control_risk(probabilities, targets, 0.1, delta=0.0)
    with pytest.raises(ValueError, match="levels are for guarantees with delta"):
        control_risk(probabilities, targets, 0.1, levels=[0.5])
    for levels in ([], [0.0], [1.0]):
        with pytest.raises(ValueError, match="levels must be"):
            control_risk(probabilities, targets, 0.1, delta=0.1, levels=levels)
    with pytest.raises(ValueError, match="probabilities in"):
        control_risk(probabilities * 4, targets, 0.1)
    with pytest.raises(ValueError, match="the space has 7 labels"):
        control_risk(probabilities, targets, 0.1, space=SPACE)
    with pytest.raises(ValueError, match="unknown method of sets 'raps'"):
        fit_conformal_sets(probabilities, targets, 0.1, method="raps")
    with pytest.raises(ValueError, match="unknown scope of sets"):
        fit_conformal_sets(probabilities, targets, 0.1, scope="label")
    with pytest.raises(ValueError, match="sample 0 has 2 classes"):
        fit_conformal_sets(probabilities, np.ones((4, 2)), 0.1)
    with pytest.raises(ValueError, match="is of a space"):
        fit_conformal_sets(probabilities, targets, 0.1, group="kind")
    with pytest.raises(ValueError, match="the space has 7 labels"):
        fit_conformal_sets(probabilities, targets, 0.1, space=SPACE)
    wide = np.full((4, 7), 0.5)
    with pytest.raises(ValueError, match="unknown exclusive group 'a'"):
        fit_conformal_sets(wide, np.zeros((4, 7)), 0.1, group="a", space=SPACE)
    two = LabelSpace([Group("k", ["x", "y"], exclusive=True), Group("m", ["v", "w"], exclusive=True)])
    with pytest.raises(ValueError, match="must name one of the exclusive groups"):
        fit_conformal_sets(np.full((4, 4), 0.5), np.zeros((4, 4)), 0.1, space=two)
    with pytest.raises(ValueError, match="have 2 classes, but the sets have 3"):
        fit_conformal_sets(wide[:, :3], np.zeros((4, 3)), 0.1).predict(probabilities)
