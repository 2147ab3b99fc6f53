"""stratified_split: exact sizes, a partition, the seed, groups, rare labels, and balance beside a peer's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlabel.data.split import part_sizes, stratified_split

FRACTIONS = [(1.0,), (0.8, 0.2), (0.64, 0.16, 0.2), (0.25,) * 4, (0.1,) * 10]


def zipf_targets(num_samples: int, num_labels: int, *, seed: int = 0, top: float = 0.4, power: float = 1.0):
    """Correlated targets with Zipf-like counts: labels of one topic occur together."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((num_samples, 4)) @ rng.standard_normal((4, num_labels)) * 0.4
    share = top * np.arange(1, num_labels + 1) ** -power
    return sp.csr_array((rng.random((num_samples, num_labels)) < share * np.exp(topics)).astype(np.uint8))


def counts_in(targets, parts, num_parts: int) -> np.ndarray:
    dense = targets.toarray() if sp.issparse(targets) else np.asarray(targets)
    return np.stack([dense[parts == part].sum(axis=0, dtype=np.int64) for part in range(num_parts)], axis=1)


def deviation(targets, parts, part: int, fraction: float) -> np.ndarray:
    counts = counts_in(targets, parts, part + 1)[:, part]
    total = np.asarray(targets.sum(axis=0), dtype=np.float64)
    return abs(counts[total > 0] / (fraction * total[total > 0]) - 1)


@st.composite
def cases(draw):
    fractions = draw(st.sampled_from(FRACTIONS))
    num_samples = draw(st.integers(10 * len(fractions), 110))
    num_labels = draw(st.integers(1, 12))
    density = draw(st.sampled_from([0.02, 0.2, 0.7]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return (rng.random((num_samples, num_labels)) < density).astype(np.uint8), fractions


@given(cases(), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_sizes_are_exact_and_the_seed_decides(case, seed):
    targets, fractions = case
    kept = targets.copy()
    parts = stratified_split(targets, fractions, seed=seed)
    assert parts.shape == (len(targets),)
    assert parts.dtype == np.int64
    sizes = np.bincount(parts, minlength=len(fractions))
    assert sizes.tolist() == part_sizes(len(targets), fractions).tolist()
    assert abs(sizes - len(targets) * np.array(fractions)).max() < 1
    assert (parts == stratified_split(targets, fractions, seed=seed)).all()
    assert (targets == kept).all()


@given(cases(), st.integers(1, 6), st.sampled_from([int, str]))
@settings(max_examples=25, deadline=None)
def test_groups_stay_together(case, largest, kind):
    targets, fractions = case
    rng = np.random.default_rng(largest)
    ids = rng.integers(len(targets) // largest + 1, size=len(targets))
    assume(len(np.unique(ids)) >= 3 * len(fractions))
    parts = stratified_split(targets, fractions, groups=[kind(i) for i in ids])
    for one in np.unique(ids):
        assert len(np.unique(parts[ids == one])) == 1
    singles = (np.bincount(np.bincount(ids))[1:2].sum() if len(ids) else 0) >= len(targets) / 2
    if singles:  # enough free samples to fill every gap
        assert np.bincount(parts).tolist() == part_sizes(len(targets), fractions).tolist()


def test_groups_of_a_hundred_identities_are_stratified_and_sized():
    targets = zipf_targets(6000, 20)
    rng = np.random.default_rng(0)
    ids = rng.choice(1500, size=6000, p=rng.dirichlet(np.full(1500, 2.0)))
    fractions = (0.7, 0.1, 0.2)
    parts = stratified_split(targets, fractions, groups=torch.from_numpy(ids))
    assert np.bincount(parts).tolist() == [4200, 600, 1200]
    shuffled = np.random.default_rng(1).permutation(np.unique(ids))
    random_groups = set(shuffled[: len(shuffled) // 5].tolist())
    by_chance = np.where([i in random_groups for i in ids], 2, 0)
    assert deviation(targets, parts, 2, 0.2).mean() < 0.3 * deviation(targets, by_chance, 2, 0.2).mean()


def test_group_sizes_that_fit_in_one_way_only_are_fitted():
    """8 + 7 = 6 + 5 + 4; dealing out the largest first gives 17 and 13, and one exchange mends that."""
    ids = np.repeat(np.arange(5), [8, 7, 6, 5, 4])
    parts = stratified_split(np.ones((30, 1)), (0.5, 0.5), groups=ids)
    assert np.bincount(parts).tolist() == [15, 15]


@pytest.mark.parametrize("fractions", FRACTIONS[1:])
def test_every_label_with_enough_positives_is_in_every_part(fractions):
    targets = zipf_targets(3000, 150, power=1.2)
    total = np.asarray(targets.sum(axis=0))
    k = len(fractions)
    assert ((total >= k) & (total < 2 * k)).any()
    counts = counts_in(targets, stratified_split(targets, fractions), k)
    assert (counts[total >= k] > 0).all()


def test_rare_labels_are_covered_whenever_any_split_covers_them():
    """Every split of tiny data is tried, as an independent answer to whether it can be done."""
    feasible = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        num_samples, num_labels = rng.integers(3, 9), rng.integers(1, 6)
        k = int(rng.integers(2, min(num_samples, 4)))
        targets = (rng.random((num_samples, num_labels)) < rng.random()).astype(np.uint8)
        enough = targets.sum(axis=0) >= k
        sizes = part_sizes(num_samples, (1 / k,) * k)

        def covers(parts, targets=targets, enough=enough, sizes=sizes):
            parts = np.asarray(parts)
            if np.bincount(parts, minlength=len(sizes)).tolist() != sizes.tolist():
                return False
            return bool((counts_in(targets, parts, len(sizes))[enough] > 0).all())

        if any(covers(parts) for parts in itertools.product(range(k), repeat=int(num_samples))):
            feasible += 1
            assert covers(stratified_split(targets, (1 / k,) * k)), seed
    assert feasible > 40


@pytest.mark.parametrize(("num_samples", "num_labels"), [(3000, 14), (2000, 60), (1500, 300)])
def test_deviation_is_not_worse_than_that_of_iterative_stratification(num_samples, num_labels):
    """Of labels with 2 to 4 positives one in each part is wanted, not the nearest share, so they are left out."""
    peer = pytest.importorskip("iterstrat.ml_stratifiers")
    targets = zipf_targets(num_samples, num_labels)
    targets = targets[:, np.asarray(targets.sum(axis=0)) >= 5]
    dense = targets.toarray().astype(np.int64)
    _, test = next(peer.MultilabelStratifiedShuffleSplit(1, test_size=0.2, random_state=0).split(dense, dense))
    theirs = deviation(targets, np.isin(np.arange(num_samples), test).astype(int), 1, 0.2)
    ours = deviation(targets, stratified_split(targets, (0.8, 0.2)), 1, 0.2)
    assert ours.mean() <= theirs.mean() + 1e-12
    assert ours.max() <= theirs.max() + 1e-12


def test_order_of_labels_does_not_harm_the_balance():
    targets = zipf_targets(2000, 50)
    shuffled = targets[:, np.random.default_rng(5).permutation(50)]
    one = deviation(targets, stratified_split(targets, (0.8, 0.2)), 1, 0.2)
    other = deviation(shuffled, stratified_split(shuffled, (0.8, 0.2)), 1, 0.2)
    assert other.mean() == pytest.approx(one.mean(), rel=0.05)


def test_rows_without_labels_are_spread_too():
    targets = zipf_targets(5000, 6)
    empty = np.asarray(targets.sum(axis=1)) == 0
    parts = stratified_split(targets, (0.8, 0.2))
    assert empty[parts == 1].sum() == pytest.approx(0.2 * empty.sum(), abs=1)


def test_labels_of_a_single_sample_are_spread_together():
    targets = sp.csr_array((np.ones(400), (np.arange(400), np.arange(400))), shape=(1000, 400))
    parts = stratified_split(targets, (0.8, 0.2))
    assert (parts[:400] == 1).sum() == 80


def test_a_matrix_with_single_positives_is_not_modified():
    dense = np.eye(30, 40, dtype=np.uint8)
    dense[:, 35:] = 0
    dense[4, 35:] = 1
    targets = sp.csr_array(dense)
    kept = targets.copy()
    stratified_split(targets, (0.5, 0.5))
    for name in ("data", "indices", "indptr"):
        assert (getattr(targets, name) == getattr(kept, name)).all()


def test_unknown_entries_count_neither_as_present_nor_as_absent():
    targets = zipf_targets(500, 10)
    unknown = sp.csr_array(np.random.default_rng(3).random((500, 10)) < 0.3)
    cleared = sp.csr_array(targets.toarray() * ~unknown.toarray())
    parts = stratified_split(targets, (0.8, 0.2), unknown=unknown)
    assert (parts == stratified_split(cleared, (0.8, 0.2))).all()
    assert (parts != stratified_split(targets, (0.8, 0.2))).any()


def test_any_form_of_targets_gives_the_same_parts():
    targets = zipf_targets(300, 8)
    parts = stratified_split(targets, (0.5, 0.5), seed=4)
    for form in (targets.toarray(), targets.toarray() > 0, torch.from_numpy(targets.toarray()), targets.tocsc()):
        assert (stratified_split(form, (0.5, 0.5), seed=4) == parts).all()
    assert (stratified_split(targets, (0.5, 0.5), seed=5) != parts).any()


def test_identical_rows_split_to_the_very_share():
    targets = np.repeat([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 0]], 25, axis=0)
    counts = counts_in(targets, stratified_split(targets, (0.6, 0.2, 0.2)), 3)
    assert counts.tolist() == [[30, 10, 10]] * 3


@pytest.mark.parametrize(
    ("num_samples", "fractions", "sizes"),
    [(10, (0.64, 0.16, 0.2), [6, 2, 2]), (11, (1 / 3,) * 3, [4, 4, 3]), (7, (1.0,), [7]), (5, (0.5, 0.5), [3, 2])],
)
def test_sizes_by_hand(num_samples, fractions, sizes):
    assert part_sizes(num_samples, fractions).tolist() == sizes
    assert np.bincount(stratified_split(np.ones((num_samples, 1)), fractions)).tolist() == sizes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fractions": (0.5, 0.4)}, ValueError, "sum to 1"),
        ({"fractions": (1.5, -0.5)}, ValueError, "positive"),
        ({"fractions": (0.99, 0.01)}, ValueError, "part 1 .* would be empty"),
        ({"fractions": (0.5, 0.5), "groups": [1, 2]}, ValueError, r"shape \(10,\)"),
        ({"fractions": (0.5, 0.5), "groups": [0] * 10}, ValueError, "part 1 would be empty: the groups"),
        ({"fractions": (0.5, 0.5), "groups": np.array([1, "a"] * 5, dtype=object)}, TypeError, "one type"),
        ({"fractions": (0.5, 0.5), "unknown": np.zeros((10, 2), bool)}, TypeError, "sparse"),
        ({"fractions": (0.5, 0.5), "unknown": sp.csr_array((9, 2), dtype=bool)}, ValueError, "shape"),
    ],
)
def test_messages(arguments, error, message):
    with pytest.raises(error, match=message):
        stratified_split(np.ones((10, 2)), **arguments)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="would be empty"):
        stratified_split(np.zeros((0, 3)), (0.5, 0.5))


def test_groups_of_several_sizes_are_exchanged_where_equal_ones_do_not_do():
    """One label is in the groups of 4 and 2 images, the other in one of 1 and one of 3: there is a single way."""
    ids = np.repeat(np.arange(6), [1, 4, 1, 3, 3, 2])
    targets = np.stack([np.isin(ids, [1, 5]), np.isin(ids, [0, 3])], axis=1)
    for seed in range(5):
        parts = stratified_split(targets, (0.5, 0.5), seed=seed, groups=ids)
        assert np.bincount(parts).tolist() == [7, 7]
        assert (counts_in(targets, parts, 2) > 0).all()
