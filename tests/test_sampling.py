"""Samplers: factors as the papers' formulas have them, orders that follow from the key, shares without padding."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mlabel.data import (
    SAMPLERS,
    ImageDataset,
    ImageTable,
    Loader,
    RepeatSampler,
    SequentialSampler,
    count_repeats,
    make_sampler,
    rank_share,
    repeat_factors,
)
from mlabel.data.sampling import checked_order
from mlabel.labels import Group, LabelSpace

MATRICES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 6)), elements=st.integers(0, 1))
FACTORS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0.0, 5.0))
SCHEMES = ["repeat_factor", "instance_aware"]


# Factors.


def slow_factors(targets: np.ndarray, known: np.ndarray, threshold: float, scheme: str) -> list[float]:
    """Return the factors as the papers write them, one row and label at a time."""
    num_labels = targets.shape[1]
    present = [[int(t and k) for t, k in zip(*rows, strict=True)] for rows in zip(targets, known, strict=True)]
    positives = [sum(row[label] for row in present) for label in range(num_labels)]
    image = [positives[label] / max(int(known[:, label].sum()), 1) for label in range(num_labels)]
    factors = []
    for row in present:
        factor = 1.0
        for label in range(num_labels):
            if row[label]:
                frequency = image[label]
                if scheme == "instance_aware":
                    frequency = (image[label] * image[label] / sum(image)) ** 0.5
                factor = max(factor, (threshold / frequency) ** 0.5)
        factors.append(factor)
    return factors


@given(MATRICES, st.data(), st.floats(0.01, 1.0), st.sampled_from(SCHEMES))
@settings(max_examples=80)
def test_factors_are_those_of_the_papers(targets, data, threshold, scheme):
    known = data.draw(hnp.arrays(bool, targets.shape))
    options = {"threshold": threshold, "scheme": scheme}
    expected = slow_factors(targets, known, threshold, scheme)
    # What is unknown is said in either form, and may be marked present too.
    for unknown in (known, sp.csr_array(~known)):
        for form in (targets, sp.csr_array(targets), torch.from_numpy(targets)):
            np.testing.assert_allclose(repeat_factors(form, unknown=unknown, **options), expected, rtol=1e-12)
    everything = np.ones_like(known)
    expected = slow_factors(targets, everything, threshold, scheme)
    np.testing.assert_allclose(repeat_factors(targets, **options), expected, rtol=1e-12)


@given(MATRICES, st.floats(0.01, 0.3), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_factors_follow_their_rows_and_columns(targets, threshold, random):
    rows, columns = list(range(targets.shape[0])), list(range(targets.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    for scheme in SCHEMES:
        factors = repeat_factors(targets, threshold=threshold, scheme=scheme)
        moved = repeat_factors(targets[np.ix_(rows, columns)], threshold=threshold, scheme=scheme)
        np.testing.assert_allclose(moved, factors[rows])
        assert (factors >= 1).all()
        assert (factors[targets.sum(axis=1) == 0] == 1).all()


@given(MATRICES.filter(lambda targets: targets.any()), st.floats(0.01, 0.3))
@settings(max_examples=60)
def test_without_boxes_instance_aware_is_a_higher_threshold(targets, threshold):
    higher = threshold * np.sqrt(targets.sum() / len(targets))
    if higher <= 1:
        aware = repeat_factors(targets, threshold=threshold, scheme="instance_aware")
        np.testing.assert_allclose(aware, repeat_factors(targets, threshold=higher), rtol=1e-12)


def test_factors_by_hand():
    # Of 100 images 50 have the first label, 4 the second, 1 the third, which is with the first; threshold 1/5.
    targets = np.zeros((100, 3), dtype=np.uint8)
    targets[:50, 0] = targets[50:54, 1] = targets[0, 2] = 1
    factors = repeat_factors(targets, threshold=0.2)
    assert factors[0] == pytest.approx(np.sqrt(0.2 / 0.01))
    assert factors[1:50].tolist() == [1.0] * 49
    assert factors[50:54] == pytest.approx(np.sqrt(0.2 / 0.04))
    assert factors[54:].tolist() == [1.0] * 46
    # Ten boxes of the second label in its four images, of 50 + 10 + 1.
    boxes = repeat_factors(targets, threshold=0.2, scheme="instance_aware", instances=[50, 10, 1])
    assert boxes[50] == pytest.approx(np.sqrt(0.2 / np.sqrt(0.04 * 10 / 61)))
    # Where the second label is known of eight images only, it is not rare.
    known = np.ones((100, 3), dtype=bool)
    known[58:, 1] = known[:50, 1] = False
    assert repeat_factors(targets, threshold=0.2, unknown=known)[50] == 1.0


def test_wrong_factors_are_refused():
    targets = np.eye(3)
    for threshold in (0.0, -1.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
            repeat_factors(targets, threshold=threshold)
    with pytest.raises(ValueError, match="unknown scheme 'repeat'; did you mean 'repeat_factor'"):
        repeat_factors(targets, scheme="repeat")
    with pytest.raises(ValueError, match="label 1 has 0 instances in 1 images"):
        repeat_factors(targets, scheme="instance_aware", instances=[1, 0, 1])
    with pytest.raises(ValueError, match=r"instances must be of shape \(3,\)"):
        repeat_factors(targets, scheme="instance_aware", instances=[1, 1])
    with pytest.raises(ValueError, match="scheme 'instance_aware' only"):
        repeat_factors(targets, instances=[1, 1, 1])
    for factors in ([1.0, -1.0], [np.inf], [[1.0]]):
        with pytest.raises(ValueError, match="factors must be finite numbers"):
            RepeatSampler(factors)


# Orders.


@given(FACTORS, st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=100)
def test_an_order_has_each_row_about_as_often_as_its_factor(factors, seed, epoch):
    sampler = RepeatSampler(factors, seed=seed)
    order = sampler.order(epoch)
    assert len(order) == len(sampler) == int(np.floor(factors.sum() + 1e-6))
    assert np.array_equal(order, RepeatSampler(factors, seed=seed).order(epoch))
    counts = np.bincount(order, minlength=len(factors))
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()


def test_over_epochs_each_row_comes_as_often_as_its_factor():
    factors = np.array([1.0, 1.2, 3.5, 2.05, 1.25, 0.5, 4.0, 1.5])  # the fractions add up to 2
    sampler = RepeatSampler(factors, seed=3)
    counts = np.stack([np.bincount(sampler.order(epoch), minlength=8) for epoch in range(4000)])
    fractions = factors - np.floor(factors)
    error = 5 * np.sqrt(fractions * (1 - fractions) / len(counts)) + 1e-9
    assert (np.abs(counts.mean(axis=0) - factors) <= error).all()
    # Of the fifteen pairs of rows that come once more, more than a few are drawn.
    assert len(np.unique(counts, axis=0)) > 10


def test_a_remainder_is_taken_from_all_fractions_in_proportion():
    sampler = RepeatSampler([1.95, 1.1])  # of 1.05 rows more there can be one
    counts = np.mean([np.bincount(sampler.order(epoch)) for epoch in range(4000)], axis=0)
    np.testing.assert_allclose(counts, [1 + 0.95 / 1.05, 1 + 0.1 / 1.05], atol=0.012)


def test_orders_differ_between_epochs_and_seeds():
    orders = [RepeatSampler(np.full(50, 1.3), seed=seed).order(epoch) for seed in range(3) for epoch in range(3)]
    assert len({order.tobytes() for order in orders}) == 9


def test_factors_of_one_are_the_shuffle_that_there_always_was():
    rows = RepeatSampler(np.ones(5), seed=0).order(3)
    assert rows.tolist() == [2, 4, 0, 1, 3]
    assert SequentialSampler(4).order(7).tolist() == [0, 1, 2, 3]


@given(FACTORS.filter(lambda factors: factors.sum() >= 1), st.integers(1, 7))
@settings(max_examples=60)
def test_the_ranks_share_the_order_and_nothing_is_padded(factors, world_size):
    order = RepeatSampler(factors).order(0)
    shares = [rank_share(order, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = np.full(len(order), -1)
    for rank, share in enumerate(shares):
        together[rank::world_size] = share
    assert np.array_equal(together, order)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, size in [(world_size, world_size), (-1, world_size), (0, 0)]:
        with pytest.raises(ValueError, match="must be"):
            rank_share(order, rank=rank, world_size=size)


@given(hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 6)))
@settings(max_examples=60)
def test_repeats_are_counted_in_the_order(order):
    expected = [order[:place].tolist().count(row) for place, row in enumerate(order.tolist())]
    assert count_repeats(order).tolist() == expected


# In the loader.


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    """Forty images; the second label is in two of them, and unknown in most; the third is in half."""
    folder: Path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:02d}.png" for number in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
    targets = np.zeros((40, 3), dtype=np.uint8)
    targets[:4, 0] = targets[4:6, 1] = targets[::2, 2] = 1
    space = LabelSpace([Group("tags", ["a", "b", "c"])])
    return ImageTable(paths=paths, targets=targets, space=space)


OPTIONS = {"image_size": 8, "sampler": "repeat_factor", "repeat_threshold": 0.4, "seed": 5, "min_last": 2}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_gives_orders_of_one_length(table, name):
    loader = Loader(table, batch_size=7, **OPTIONS | {"sampler": name})
    factors = np.ones(40)
    if name in SCHEMES:
        factors = repeat_factors(table.targets, threshold=0.4, scheme=name)
        assert factors[0] == pytest.approx(2.0 if name == "repeat_factor" else np.sqrt(0.4 * np.sqrt(26 / 40) / 0.1))
    for epoch in range(5):
        counts = np.bincount(loader.order(epoch), minlength=40)
        assert counts.sum() == int(factors.sum())
        assert (counts >= np.floor(factors)).all()
    assert len(loader) == len(list(loader.epoch(1)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_repeated_row_is_augmented_anew_and_can_be_shown_again(table, num_workers):
    options = {"image_size": 8, "augment": "standard", "seed": 5}
    with Loader(table, batch_size=8, num_workers=num_workers, **OPTIONS | options) as loader:
        batches = list(loader.epoch(2))
    rows = torch.cat([batch.index for batch in batches]).numpy()
    images = torch.cat([batch.images for batch in batches])
    assert np.array_equal(rows, loader.order(2))
    np.testing.assert_array_equal(torch.cat([batch.targets for batch in batches]), table.targets.toarray()[rows])
    dataset = ImageDataset(table, **options)
    for row, repeat, image in zip(rows.tolist(), count_repeats(rows).tolist(), images, strict=True):
        assert torch.equal(dataset.read(2, row, repeat=repeat), image)
        assert torch.equal(dataset[2, row, repeat][1], image)
    first, second = images[rows == 4][:2]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_share_the_batches_of_one_process(table, batch_size, world_size):
    options = OPTIONS | {"min_last": min(2, batch_size), "batch_size": batch_size}
    alone = Loader(table, **options)
    ranks = [Loader(table, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(loader) for loader in ranks} == {len(alone)}
    start = len(alone) // 2
    for whole, *parts in zip(alone.epoch(1, start), *(each.epoch(1, start) for each in ranks), strict=True):
        sharing = [part for part in parts if len(part)]
        assert sum(map(len, parts)) == len(whole)
        assert parts[: len(sharing)] == sharing  # the last ranks are those without a row
        assert {part.number for part in parts} == {whole.number}
        for rank, part in enumerate(sharing):
            assert torch.equal(part.index, whole.index[rank :: len(sharing)])
            assert torch.equal(part.images, whole.images[rank :: len(sharing)])
            assert torch.equal(part.targets, whole.targets[rank :: len(sharing)])
            assert len(part) >= options["min_last"]


@pytest.mark.parametrize("num_rows", [*range(1, 18), 97, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_row_is_in_one_share_of_one_batch(num_rows, world_size):
    order = RepeatSampler(np.ones(num_rows), seed=num_rows).order(2)
    for batch_size in (1, 2, 3, 4, 7, 64):
        batches = np.split(order, range(batch_size, num_rows, batch_size))
        for at_least in (1, 2):
            seen = []
            for batch in batches:
                options = {"world_size": world_size, "at_least": at_least}
                shares = [rank_share(batch, rank=rank, **options) for rank in range(world_size)]
                sizes = [len(share) for share in shares if len(share)]
                assert min(sizes) >= min(at_least, len(batch))
                assert max(sizes) - min(sizes) <= 1
                seen += np.concatenate(shares).tolist()
            assert sorted(seen) == list(range(num_rows))


def test_a_sampler_of_ones_own_is_checked(table):
    class Mine:
        def __init__(self, rows: list, length: int) -> None:
            self.rows, self.length = rows, length

        def __len__(self) -> int:
            return self.length

        def order(self, epoch: int) -> np.ndarray:
            return np.array(self.rows)

    loader = Loader(table, batch_size=2, image_size=8, sampler=Mine([3, 1, 3], 3))
    assert [batch.index.tolist() for batch in loader] == [[3, 1], [3]]
    for rows, message in [
        ([3, 1], r"must give 3 rows, .*gave int64 \(2,\)"),
        ([0.5] * 3, "float64"),
        ([0, 40, 1], "40"),
    ]:
        with pytest.raises(ValueError, match=message):
            next(iter(Loader(table, batch_size=2, image_size=8, sampler=Mine(rows, 3))))
    with pytest.raises(TypeError, match="sampler must be a name or an object"):
        Loader(table, batch_size=2, image_size=8, sampler=True)
    with pytest.raises(ValueError, match="unknown sampler 'shufle'; did you mean 'shuffle'"):
        Loader(table, batch_size=2, image_size=8, sampler="shufle")
    with pytest.raises(ValueError, match=r"3 image\(s\), fewer than a batch must have at least \(4\)"):
        Loader(table, batch_size=4, image_size=8, sampler=Mine([3, 1, 3], 3), min_last=4)


def test_a_sampler_that_repeats_nothing_says_so(table, caplog):
    with caplog.at_level(logging.WARNING):
        sampler = make_sampler("repeat_factor", table, threshold=0.01)
    assert "no label is rarer than the threshold 0.01" in caplog.text
    assert np.array_equal(sampler.order(2), make_sampler("shuffle", table).order(2))


@pytest.mark.parametrize("name", ["shuffle", *SCHEMES])
def test_samplers_by_name_know_seed_threshold_and_what_is_unknown(name):
    space = LabelSpace([Group("tags", ["a", "b"])])
    targets = np.array([[1, 0]] * 30 + [[1, 1]] * 2)
    unknown = np.zeros(targets.shape, dtype=bool)
    unknown[:28, 1] = True  # of four rows b is known, and half of them have it
    paths = [f"{number}.jpg" for number in range(32)]
    plain = ImageTable(paths=paths, targets=targets, space=space)
    table = ImageTable(paths=paths, targets=targets, unknown=sp.csr_array(unknown), space=space)
    assert not np.array_equal(make_sampler(name, plain, seed=1).order(0), make_sampler(name, plain, seed=2).order(0))
    np.testing.assert_array_equal(make_sampler(name, plain).order(0), make_sampler(name, plain, seed=0).order(0))
    np.testing.assert_array_equal(RepeatSampler(np.ones(9)).order(0), RepeatSampler(np.ones(9), seed=0).order(0))
    if name in SCHEMES:
        assert len(make_sampler(name, plain, threshold=1.0)) > len(make_sampler(name, plain, threshold=0.2)) > 32
        expected = repeat_factors(targets, threshold=0.6, unknown=sp.csr_array(unknown), scheme=name)
        found = make_sampler(name, table, threshold=0.6)
        np.testing.assert_array_equal(found.order(3), RepeatSampler(expected, seed=0).order(3))
        assert len(found) != len(make_sampler(name, plain, threshold=0.6))


def test_messages_name_the_numbers_that_are_allowed():
    with pytest.raises(ValueError, match=r"rank must be in 0\.\.2 \(world_size 3\); got 3"):
        rank_share(np.arange(4), rank=3, world_size=3)
    with pytest.raises(ValueError, match="world_size must be"):
        rank_share(np.arange(4), rank=0, world_size=0)

    class Beyond(SequentialSampler):
        def order(self, epoch):
            return np.arange(1, len(self) + 1)

    with pytest.raises(ValueError, match=r"must give rows in 0\.\.3; in epoch 2 they are in 1\.\.4"):
        checked_order(Beyond(4), 2, num_rows=4)
    np.testing.assert_array_equal(checked_order(SequentialSampler(1), 0, num_rows=1), [0])
