"""Counts, priors and class weights."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.utils.class_weight import compute_class_weight

from mlabel.labels import Group, LabelSpace
from mlabel.weights import SCHEMES, class_weights, count_labels, prior

every = pytest.mark.parametrize("scheme", SCHEMES)
NORMALISED = [scheme for scheme in SCHEMES if scheme != "neg_pos"]
matrices = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 5)))
counts_of_100 = arrays(np.int64, st.integers(1, 8), elements=st.integers(0, 100))


@given(present=matrices, data=st.data())
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_the_dense_matrix(present, data):
    unknown = data.draw(arrays(bool, present.shape))
    wanted = ((present & ~unknown).sum(axis=0), (~unknown).sum(axis=0))
    for targets in (present, sp.csr_array(present), sp.csc_array(present), torch.from_numpy(present), present * 1.0):
        for mask in (sp.csr_array(unknown), ~unknown, torch.from_numpy(~unknown)):
            for found, expected in zip(count_labels(targets, mask), wanted, strict=True):
                np.testing.assert_array_equal(found, expected)
    counts, known = count_labels(present)
    np.testing.assert_array_equal(counts, present.sum(axis=0))
    assert (known == len(present)).all()


def test_soft_targets_are_added_up():
    counts, known = count_labels(np.array([[0.5, 0.0], [1.0, 0.25]]))
    np.testing.assert_array_equal(counts, [1.5, 0.25])
    assert counts.dtype == np.float64
    assert count_labels(np.eye(2, dtype=np.uint8))[0].dtype == known.dtype == np.int64


def test_a_large_sparse_matrix_stays_sparse():
    """200,000 x 100,000 would be 20 GB dense."""
    targets = sp.random_array((200_000, 100_000), density=1e-6, format="csr", rng=np.random.default_rng(0)) != 0
    counts, known = count_labels(targets, targets[::-1])
    both = targets.multiply(targets[::-1])
    assert counts.sum() == targets.nnz - both.nnz
    assert (200_000 - known).sum() == targets.nnz


@given(counts=counts_of_100)
@settings(max_examples=30, deadline=None)
def test_prior_is_the_share_of_positives(counts):
    np.testing.assert_allclose(prior(counts, 100), counts / 100)
    np.testing.assert_allclose(prior(counts, np.full(len(counts), 200)), counts / 200)


def test_prior_of_a_label_never_known_is_nan():
    np.testing.assert_array_equal(prior([0, 1], [0, 4]), [np.nan, 0.25])


@every
@given(counts=counts_of_100, cap=st.floats(1.0, 200.0))
@settings(max_examples=30, deadline=None)
def test_rarer_labels_weigh_at_least_as_much(scheme, counts, cap):
    weights = class_weights(counts, 100, scheme=scheme, cap=cap)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    order = np.argsort(np.maximum(counts, 1), kind="stable")
    assert (np.diff(weights[order]) <= 1e-12 * weights.max()).all()
    positive = weights[weights > 0]
    assert scheme == "neg_pos" or positive.max() / positive.min() <= cap * (1 + 1e-9)
    permuted = class_weights(counts[::-1], 100, scheme=scheme, cap=cap)
    np.testing.assert_allclose(permuted, weights[::-1])


@pytest.mark.parametrize("scheme", NORMALISED)
@given(counts=arrays(np.int64, 7, elements=st.integers(0, 100)))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_each_group_is_1(scheme, counts):
    space = LabelSpace([Group("a", list("abc")), Group("b", list("defg"), exclusive=True)])
    weights = class_weights(counts, 100, scheme=scheme, space=space)
    for span in space.slices.values():
        present = counts[span] > 0
        assert weights[span][present].mean() == pytest.approx(1.0) if present.any() else (weights[span] == 1).all()
        np.testing.assert_allclose(weights[span], class_weights(counts[span], 100, scheme=scheme))


def test_inverse_frequency_is_scikit_learns_balanced():
    classes = np.repeat(np.arange(4), [50, 30, 15, 5])
    balanced = compute_class_weight("balanced", classes=np.arange(4), y=classes)
    ours = class_weights(np.bincount(classes), 100, scheme="inverse_frequency")
    np.testing.assert_allclose(ours, balanced / balanced.mean())


def test_by_hand():
    # n / c = 2, 4, 100; capped 2, 4, 10; mean 16 / 3
    weights = class_weights([50, 25, 1], 100, scheme="inverse_frequency", cap=10.0)
    np.testing.assert_allclose(weights, [0.375, 0.75, 1.875])
    # (n - c) / c = 1, 3, 99; capped at 10
    np.testing.assert_allclose(class_weights([50, 25, 1], 100, scheme="neg_pos", cap=10.0), [1, 3, 10])
    # effective numbers 1, 1.5 and 1.75 with beta 0.5
    weights = class_weights([1, 2, 3], 100, beta=0.5)
    np.testing.assert_allclose(weights, np.array([1, 1 / 1.5, 1 / 1.75]) * 3 / (1 + 1 / 1.5 + 1 / 1.75))
    np.testing.assert_allclose(class_weights([1, 2, 3], 100, beta=0.0), 1)


def test_effective_number_is_the_papers():
    counts = np.array([1.0, 10, 100, 1000, 10_000])
    paper = (1 - 0.999) / (1 - 0.999**counts)
    ours = class_weights(counts, 20_000, cap=1e9)
    np.testing.assert_allclose(ours, paper / paper.mean(), rtol=1e-9)


@every
def test_labels_that_never_occur_or_are_never_known(scheme):
    weights = class_weights([0, 1, 50, 0], [100, 100, 100, 0], scheme=scheme)
    assert weights[0] == weights[1]  # as one with a single positive
    if scheme != "neg_pos":
        assert weights[1:3].mean() == pytest.approx(1.0)
    np.testing.assert_array_equal(class_weights([0, 0], [0, 0], scheme=scheme), [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: class_weights([1], 2, scheme="inverse_freq"),
            "unknown scheme 'inverse_freq'; did you mean 'inverse_frequency'",
        ),
        (lambda: class_weights([1], 2, cap=0.0), "cap must be a finite number above 0"),
        (lambda: class_weights([1], 2, beta=1.0), "beta must be at least 0 and below 1; got 1.0"),
        (lambda: class_weights([1, 3], 2), "label 1 has 3 of 2"),
        (lambda: class_weights([1, -3], 2), "label 1 has -3 of 2"),
        (lambda: class_weights([[1]], 2), r"counts must be of shape \(L,\)"),
        (lambda: class_weights([1, 2], [5, 5, 5]), r"got \(2,\) and \(3,\)"),
        (lambda: class_weights([1], 2, space=LabelSpace([Group("a", ["x", "y"])])), "of 1 labels, but the space has 2"),
        (lambda: prior([3], 2), "between 0 and the number of known samples"),
        (lambda: count_labels(np.array([[2]])), "targets must be"),
        (lambda: count_labels(np.eye(2), np.ones((3, 2), dtype=bool)), "mask must be of shape"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
