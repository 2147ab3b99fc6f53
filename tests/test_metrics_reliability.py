"""Reliability: bins that hold what a loop finds in them, and the calibration error that follows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.calibration import calibration_curve

from mlabel.metrics import expected_calibration_error, reliability


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, labels = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    scores = np.round(rng.random((samples, labels)) ** 2, draw(st.sampled_from([1, 6])))
    scores = scores.astype(draw(st.sampled_from([np.float32, np.float64])))
    targets = (rng.random((samples, labels)) < scores).astype(np.uint8)
    return scores, targets, rng.random((samples, labels)) < 0.7 if draw(st.booleans()) else None


@given(problems(), st.sampled_from(["equal_width", "adaptive"]), st.sampled_from(["micro", None]), st.integers(1, 9))
@settings(max_examples=100)
def test_bins_hold_what_a_loop_finds(problem: tuple, binning: str, average: str | None, bins: int) -> None:
    scores, targets, mask = problem
    options = {"bins": bins, "binning": binning, "average": average}
    found = reliability(scores, targets, mask, **options)
    known = np.ones(scores.shape, dtype=bool) if mask is None else mask
    columns = [slice(None)] if average == "micro" else [slice(each, each + 1) for each in range(scores.shape[1])]
    assert found.counts.shape == (len(columns), bins)
    for row, column in enumerate(columns):
        x = scores[:, column][known[:, column]].astype(float)
        y = targets[:, column][known[:, column]]
        edges = found.edges[row]
        assert edges[0] == 0
        assert edges[-1] == 1
        assert (np.diff(edges) >= 0).all()
        assert found.counts[row].sum() == len(x)
        for number in range(bins):
            inside = (x >= edges[number]) & ((x < edges[number + 1]) | (number == bins - 1))
            assert found.counts[row, number] == inside.sum()
            if inside.any():
                assert found.mean_score[row, number] == pytest.approx(x[inside].mean())
                assert found.share[row, number] == pytest.approx(y[inside].mean())
                assert found.low[row, number] <= found.share[row, number] <= found.high[row, number]
            else:
                assert np.isnan([found.mean_score[row, number], found.share[row, number], found.low[row, number]]).all()
                assert np.isnan(found.high[row, number])
    unknown = None if mask is None else sp.csr_array(~mask)
    again = reliability(torch.from_numpy(scores), sp.csr_array(targets), unknown, **options)
    assert np.array_equal(again.share, found.share, equal_nan=True)


@given(problems(), st.integers(1, 20))
@settings(max_examples=50)
def test_its_error_is_the_expected_calibration_error(problem: tuple, bins: int) -> None:
    scores, targets, mask = problem
    for average in ("micro", None):
        wanted = expected_calibration_error(scores, targets, mask, bins=bins, average=average)
        found = reliability(scores, targets, mask, bins=bins, average=average).calibration_error
        np.testing.assert_allclose(found, np.atleast_1d(wanted), atol=1e-9)


def test_adaptive_bins_hold_equally_many() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((103, 2)) ** 3
    targets = rng.random((103, 2)) < scores
    assert reliability(scores, targets, bins=10, binning="adaptive").counts.tolist() == [
        [21, 21, 20, 21, 20, 21, 21, 20, 21, 20]
    ]
    each = reliability(scores, targets, bins=10, binning="adaptive", average=None)
    assert set(each.counts.ravel()) == {10, 11}
    share, mean = calibration_curve(targets[:, 0], scores[:, 0], n_bins=5)
    found = reliability(scores[:, :1], targets[:, :1], bins=5)
    np.testing.assert_allclose(found.share[0], share)
    np.testing.assert_allclose(found.mean_score[0], mean)


def test_more_scores_than_edges_are_chosen_of() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3000, 700), dtype=np.float32)
    found = reliability(scores, sp.csr_array((3000, 700), dtype=np.uint8), bins=4, binning="adaptive")
    assert found.counts.sum() == 2_100_000
    assert np.abs(found.counts / 525_000 - 1).max() < 0.02


def test_intervals_are_clopper_and_pearsons() -> None:
    scores, targets = np.full((20, 1), 0.3), (np.arange(20) < 5)[:, None]
    found = reliability(scores, targets, bins=1, level=0.9)
    assert found.low[0, 0] == pytest.approx(beta.ppf(0.05, 5, 16))
    assert found.high[0, 0] == pytest.approx(beta.ppf(0.95, 6, 15))
    nothing = reliability(scores, targets * 0, bins=1)
    assert (nothing.low[0, 0], nothing.high[0, 0]) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert reliability(scores, targets * 0 + 1, bins=1).high[0, 0] == 1.0


def test_messages() -> None:
    with pytest.raises(ValueError, match="unknown binning 'adaptiv'; did you mean 'adaptive'"):
        reliability([[0.5]], [[1]], binning="adaptiv")
    with pytest.raises(ValueError, match="unknown average 'macro'"):
        reliability([[0.5]], [[1]], average="macro")
    with pytest.raises(ValueError, match="bins must be between"):
        reliability([[0.5]], [[1]], bins=0)
    with pytest.raises(ValueError, match="level must be between"):
        reliability([[0.5]], [[1]], level=1.0)
    with pytest.raises(ValueError, match="probabilities in"):
        reliability([[1.5]], [[1]])
