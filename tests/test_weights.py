"""Counts, priors and class weights, and the table that shows them."""

import csv

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.utils.class_weight import compute_class_weight

from mlabel.labels import Group, LabelSpace
from mlabel.weights import SCHEMES, class_weights, count_labels, describe, prior

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


@given(counts=counts_of_100, cap=st.floats(1.0, 200.0))
@settings(max_examples=30, deadline=None)
def test_the_power_goes_from_no_weights_to_the_inverse_frequency(counts, cap):
    power = {e: class_weights(counts, 100, scheme="power", exponent=e, cap=cap) for e in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(power[0.0], 1.0)
    np.testing.assert_allclose(power[1.0], class_weights(counts, 100, scheme="inverse_frequency", cap=cap))
    np.testing.assert_array_equal(power[0.5], class_weights(counts, 100, scheme="power", cap=cap))
    # n / c = 4, 25, 100: roots 2, 5, 10; capped 2, 5, 8
    np.testing.assert_allclose(class_weights([25, 4, 1], 100, scheme="power", cap=8.0), np.array([2, 5, 8]) / 5)


@every
@given(counts=counts_of_100, factor=st.sampled_from([2.0, 10.0]))
@settings(max_examples=20, deadline=None)
def test_weights_do_not_exceed_the_cap_and_a_cap_that_none_reaches_changes_nothing(scheme, counts, factor):
    free = class_weights(counts, 100, scheme=scheme, cap=1e9)
    np.testing.assert_allclose(class_weights(counts, 100, scheme=scheme, cap=1e6), free)
    if scheme == "neg_pos":
        np.testing.assert_allclose(class_weights(counts, 100, scheme=scheme, cap=factor), np.minimum(free, factor))


def test_classes_of_exclusive_groups_have_no_pos_weight():
    space = LabelSpace([Group("a", ["x"]), Group("b", ["y", "z"], exclusive=True)])
    np.testing.assert_array_equal(class_weights([10, 20, 80], 100, scheme="neg_pos", space=space), [9, 1, 1])


@given(present=matrices, data=st.data())
@settings(max_examples=20, deadline=None)
def test_unknown_entries_are_as_if_they_were_not_there(present, data):
    unknown = data.draw(arrays(bool, present.shape))
    together = class_weights(*count_labels(present, ~unknown), scheme="neg_pos")
    for label in range(present.shape[1]):
        rows = ~unknown[:, label]
        alone = class_weights(*count_labels(present[rows][:, [label]]), scheme="neg_pos")
        assert together[label] == alone[0]


@every
def test_labels_that_never_occur_or_are_never_known(scheme):
    weights = class_weights([0, 1, 50, 0], [100, 100, 100, 0], scheme=scheme)
    assert weights[0] == weights[1]  # as one with a single positive
    if scheme != "neg_pos":
        assert weights[1:3].mean() == pytest.approx(1.0)
    np.testing.assert_array_equal(class_weights([0, 0], [0, 0], scheme=scheme), [1, 1])


SPACE = LabelSpace([Group("tags", ["cat", "dog", "emu"]), Group("rating", ["safe", "other"], exclusive=True)])
COUNTS, KNOWN = np.array([50, 10, 0, 90, 10]), np.array([100, 100, 0, 100, 100])


def test_the_table_says_what_was_chosen():
    weight = class_weights(COUNTS, KNOWN, space=SPACE)
    table = describe(COUNTS, KNOWN, space=SPACE, weight=weight, further={"offset": SPACE.prior_logits(COUNTS, KNOWN)})
    rows = table.rows()
    assert [row["name"] for row in rows] == list(SPACE.names)
    assert [row["group"] for row in rows] == ["tags"] * 3 + ["rating"] * 2
    assert [row["positives"] for row in rows] == COUNTS.tolist()
    assert [row["known"] for row in rows] == KNOWN.tolist()
    assert [row["prior"] for row in rows] == [0.5, 0.1, None, 0.9, 0.1]
    assert [row["weight"] for row in rows] == weight.tolist()
    assert list(rows[0]) == ["name", "group", "positives", "known", "prior", "weight", "offset"]
    assert [row["name"] for row in table.rows("prior")] == ["dog", "other", "cat", "safe", "emu"]
    assert [row["name"] for row in table.rows("weight", 1)] == [SPACE.names[int(weight.argmin())]]


def test_the_table_as_text_has_a_line_a_label():
    table = describe(COUNTS, KNOWN, space=SPACE)
    lines = str(table).split("\n")
    assert [line.split() for line in lines] == [
        ["name", "group", "positives", "known", "prior", "weight"],
        ["dog", "tags", "10", "100", "0.1", "1"],
        ["other", "rating", "10", "100", "0.1", "1"],
        ["cat", "tags", "50", "100", "0.5", "1"],
        ["safe", "rating", "90", "100", "0.9", "1"],
        ["emu", "tags", "0", "0", "-", "1"],
    ]
    assert len({len(line) for line in lines}) == 1
    first, rest = table.text(limit=1).split("\n")[1:]
    assert first.split() == lines[1].split()
    assert rest == "... and 4 labels more"


def test_the_table_as_csv_is_the_rows(tmp_path):
    table = describe(COUNTS * 0.5, KNOWN, space=SPACE)
    table.to_csv(tmp_path / "weights.csv")
    with open(tmp_path / "weights.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{key: "" if value is None else str(value) for key, value in row.items()} for row in table.rows()]
    assert read[1]["positives"] == "5"
    assert describe([0.5], 1, space=LabelSpace([Group("a", ["x"])])).rows()[0]["positives"] == 0.5


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
        (lambda: class_weights([1], 2, scheme="power", exponent=1.5), "exponent must be between 0.0 and 1.0; got 1.5"),
        (lambda: describe([1], 2, space=SPACE), "of 1 labels, but the space has 5"),
        (lambda: describe(COUNTS, KNOWN, space=SPACE, weight=[1.0]), r"weight must be of shape \(5,\); got \(1,\)"),
        (lambda: describe(COUNTS, KNOWN, space=SPACE).rows("wieght"), "unknown column 'wieght'; did you mean 'weight'"),
        (lambda: prior([3], 2), "between 0 and the number of known samples"),
        (lambda: count_labels(np.array([[2]])), "targets must be"),
        (lambda: count_labels(np.eye(2), np.ones((3, 2), dtype=bool)), "mask must be of shape"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
