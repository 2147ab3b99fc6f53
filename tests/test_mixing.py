"""Mixing: images and labels by the papers' formulas, what is unknown stays unknown, keyed; smoothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.data import MIXES, Batch, cutmix, mix_batch, mixup, smooth_targets
from mlabel.labels import Group, LabelSpace
from mlabel.losses import Loss, PerGroup, binary_cross_entropy, create, cross_entropy

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y", "z"], exclusive=True)])
TAGS = LabelSpace([Group("tags", ["a", "b", "c"])])
TAG, KIND = SPACE.slices["tags"], SPACE.slices["kind"]


def make_batch(count: int, *, seed: int = 0, unknown: float = 0.3, number: int = 0) -> Batch:
    """Return a batch of `SPACE`, in which some entries, and some exclusive groups as a whole, are unknown."""
    rng = np.random.default_rng(seed)
    known = rng.random((count, 6)) >= unknown
    known[:, KIND] = known[:, KIND.start : KIND.start + 1]
    targets = np.zeros((count, 6), dtype=np.uint8)
    targets[:, TAG] = rng.random((count, 3)) < 0.5
    targets[np.arange(count), KIND.start + rng.integers(0, 3, count)] = 1
    targets[~known] = 0
    images = rng.integers(0, 256, (count, 3, 7, 9), dtype=np.uint8)
    mask = torch.from_numpy(known) if unknown else None
    return Batch(torch.from_numpy(images), torch.from_numpy(targets), mask, torch.arange(count), number)


def only_tags(batch: Batch) -> Batch:
    """Return the batch's columns of `TAGS`."""
    mask = None if batch.mask is None else batch.mask[:, TAG]
    return replace(batch, targets=batch.targets[:, TAG], mask=mask)


def same(one: Batch, two: Batch) -> bool:
    pairs = [(getattr(one, name), getattr(two, name)) for name in ("images", "targets", "mask", "index")]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs) and one.number == two.number


def partners(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


COUNTS, SEEDS = st.integers(1, 12), st.integers(0, 100)


# What holds for both ways of mixing.


@given(COUNTS, SEEDS, st.sampled_from(["mixup", "cutmix"]), st.sampled_from([0.0, 0.3]))
@settings(max_examples=80)
def test_labels_are_mixed_as_the_formula_says_and_only_where_both_know(count, seed, mix, unknown):
    batch = make_batch(count, seed=seed, unknown=unknown)
    before = replace(batch, images=batch.images.clone(), targets=batch.targets.clone())
    partner = partners(count, seed)
    rng = np.random.default_rng(seed)
    if mix == "mixup":
        # Shares of 0 and 1 are among them: who has no share need not be known.
        weight = torch.from_numpy(rng.choice([0.0, 1.0, 0.25, 0.7], count)).float()
        mixed = mixup(batch, partner, weight, space=SPACE)
    else:
        top, left = rng.integers(0, 8, count), rng.integers(0, 10, count)
        boxes = np.stack([top, rng.integers(top, 8), left, rng.integers(left, 10)], axis=1)
        boxes[:1] = [0, 7, 0, 9]
        weight = torch.from_numpy(1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 63).float()
        mixed = cutmix(batch, partner, torch.from_numpy(boxes), space=SPACE)
    assert same(batch, before)
    assert mixed.images.dtype == torch.uint8
    assert mixed.targets.dtype == torch.float32
    for row in range(count):
        other, w = int(partner[row]), float(weight[row])
        for label in range(6):
            known = [True if batch.mask is None else bool(batch.mask[each, label]) for each in (row, other)]
            is_known = (known[0] or w == 0) and (known[1] or w == 1)
            assert mixed.mask is None or bool(mixed.mask[row, label]) == is_known
            expected = w * float(batch.targets[row, label]) + (1 - w) * float(batch.targets[other, label])
            assert float(mixed.targets[row, label]) == pytest.approx(expected if is_known else 0.0, abs=1e-6)
    assert 0 <= float(mixed.targets.min()) <= float(mixed.targets.max()) <= 1
    sums = mixed.targets[:, KIND].sum(dim=1)
    rows_known = torch.ones(count, dtype=torch.bool) if mixed.mask is None else mixed.mask[:, KIND].all(dim=1)
    torch.testing.assert_close(sums, rows_known.float())


@given(COUNTS, SEEDS, st.sampled_from(["mixup", "cutmix"]), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=50)
def test_mixing_follows_from_seed_epoch_and_number(count, seed, mix, epoch, number):
    batch = make_batch(count, seed=seed, number=number)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  it is the old global state that is looked at
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    mixed = mix_batch(batch, SPACE, mix=mix, seed=seed, epoch=epoch)
    assert same(mixed, mix_batch(batch, SPACE, mix=mix, seed=seed, epoch=epoch))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert torch.equal(mixed.index, batch.index)
    assert mixed.number == number


def test_other_seeds_epochs_and_numbers_mix_otherwise():
    results = set()
    for seed in range(2):
        for epoch in range(2):
            for number in range(2):
                batch = make_batch(6, number=number)
                mixed = mix_batch(batch, SPACE, mix="mixup", alpha=1.0, seed=seed, epoch=epoch)
                results.add(mixed.images.numpy().tobytes())
    assert len(results) == 8


def test_over_many_batches_the_shares_are_those_of_the_beta_distribution():
    # Sample k of a batch alone has label k, so that targets show partners and shares.
    space = LabelSpace([Group("tags", [str(number) for number in range(20)])])
    images = torch.zeros(20, 1, 32, 32, dtype=torch.uint8)
    batch = Batch(images, torch.eye(20, dtype=torch.uint8), None, torch.arange(20))
    for mix, alpha, deviation in [("mixup", 0.2, 0.42), ("mixup", 1.0, 0.29), ("cutmix", 1.0, None)]:
        shares = []
        for number in range(200):
            mixed = mix_batch(replace(batch, number=number), space, mix=mix, alpha=alpha)
            # Each sample has one part of its own and one in another.
            torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(20))
            assert ((mixed.targets > 0).sum(dim=1) <= 2).all()
            shares += mixed.targets.diag()[(mixed.targets.diag() < 1)].tolist()
        # Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2 a + 1)); boxes at the edge are cut off.
        assert np.mean(shares) == pytest.approx(0.5 if mix == "mixup" else 0.66, abs=0.04)
        assert deviation is None or np.std(shares) == pytest.approx(deviation, abs=0.02)


def test_by_default_alpha_is_that_of_the_papers():
    batch = make_batch(8)
    for mix, alpha in [("mixup", 0.2), ("cutmix", 1.0)]:
        assert same(mix_batch(batch, SPACE, mix=mix), mix_batch(batch, SPACE, mix=mix, alpha=alpha))
    assert mix_batch(batch, SPACE, mix="none") is batch
    assert MIXES == ("none", "mixup", "cutmix")


# Each by hand.


def test_mixup_by_hand():
    batch = only_tags(make_batch(3, unknown=0.0))
    mixed = mixup(batch, torch.tensor([1, 2, 2]), torch.tensor([0.25, 1.0, 0.5]), space=TAGS)
    blend = 0.25 * batch.images[0].double() + 0.75 * batch.images[1].double()
    assert (mixed.images[0].double() - blend).abs().max() <= 0.5
    assert torch.equal(mixed.images[1:], batch.images[1:])
    torch.testing.assert_close(mixed.targets[0], 0.25 * batch.targets[0] + 0.75 * batch.targets[1])
    assert mixed.mask is None
    floats = mixup(replace(batch, images=batch.images / 255), torch.tensor([1, 2, 2]), torch.ones(3) / 4, space=TAGS)
    torch.testing.assert_close(floats.images[0] * 255, blend.float())


def test_cutmix_by_hand():
    batch = only_tags(make_batch(2, unknown=0.0))
    boxes = torch.tensor([[1, 4, 2, 9], [3, 3, 0, 9]])  # 3 x 7 of 7 x 9 pixels, and nothing
    mixed = cutmix(batch, torch.tensor([1, 0]), boxes, space=TAGS)
    expected = batch.images[0].clone()
    expected[:, 1:4, 2:9] = batch.images[1][:, 1:4, 2:9]
    assert torch.equal(mixed.images[0], expected)
    assert torch.equal(mixed.images[1], batch.images[1])
    torch.testing.assert_close(mixed.targets[0], batch.targets[0] * 2 / 3 + batch.targets[1] / 3)
    assert torch.equal(mixed.targets[1], batch.targets[1].float())


def test_an_exclusive_group_without_a_class_makes_the_mixture_unknown():
    # No mask says so here: a batch of the caller's own.
    batch = make_batch(2, unknown=0.0)
    batch.targets[1, KIND] = 0
    mixed = mixup(batch, torch.tensor([1, 0]), torch.tensor([0.5, 0.0]), space=SPACE)
    assert mixed.mask[:, KIND].any(dim=1).tolist() == [False, True]
    assert mixed.mask[:, TAG].all()
    assert torch.equal(mixed.targets[1, KIND], batch.targets[0, KIND].float())


# Into the losses.


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    batch = make_batch(9, unknown=0.25)
    logits = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    weight, partner = torch.rand(9, generator=torch.Generator().manual_seed(1)), partners(9, 5)
    mixed = mixup(batch, partner, weight, space=SPACE)
    loss = PerGroup(SPACE, {"tags": Loss(binary_cross_entropy), "kind": Loss(cross_entropy)})
    parts = loss.parts(logits, mixed.targets, mixed.mask)
    entries = [binary_cross_entropy(logits[:, TAG], batch.targets[rows, TAG]) for rows in (torch.arange(9), partner)]
    classes = [cross_entropy(logits[:, KIND], batch.targets[rows, KIND].float()) for rows in (torch.arange(9), partner)]
    known = mixed.mask[:, TAG]
    expected = (weight[:, None] * entries[0] + (1 - weight[:, None]) * entries[1])[known].sum()
    torch.testing.assert_close(parts["tags"][0], expected)
    assert int(parts["tags"][1]) == int(known.sum())
    rows = mixed.mask[:, KIND].all(dim=1)
    torch.testing.assert_close(parts["kind"][0], (weight * classes[0] + (1 - weight) * classes[1])[rows].sum())
    assert int(parts["kind"][1]) == int(rows.sum())
    assert {name: int(value) for name, value in loss.denominators(mixed.targets, mixed.mask).items()} == {
        name: int(value[1]) for name, value in parts.items()
    }


@pytest.mark.parametrize("name", ["asymmetric", "focal", "binary_cross_entropy"])
def test_soft_targets_give_the_same_through_the_fused_loss_and_the_formula(name):
    batch = make_batch(9, unknown=0.25)
    mixed = mix_batch(batch, SPACE, mix="mixup", alpha=1.0)
    smoothed = smooth_targets(mixed.targets, SPACE, 0.1)
    logits = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = create(name, space=SPACE)
    fused = loss(logits, smoothed, mixed.mask)
    plain = Loss(loss.losses[0].fn, reduction="none")(logits[:, TAG], smoothed[:, TAG], mixed.mask[:, TAG])
    rows = Loss(cross_entropy, reduction="none")(logits[:, KIND], smoothed[:, KIND], mixed.mask[:, KIND])
    expected = plain.sum() / mixed.mask[:, TAG].sum() + rows.sum() / mixed.mask[:, KIND].all(dim=1).sum()
    torch.testing.assert_close(fused, expected)


# Smoothing.


@given(COUNTS, SEEDS, st.floats(0.0, 1.0))
@settings(max_examples=50)
def test_smoothing_moves_towards_undecided(count, seed, amount):
    batch = make_batch(count, seed=seed)
    smoothed = smooth_targets(batch.targets, SPACE, amount)
    torch.testing.assert_close(smoothed[:, TAG], batch.targets[:, TAG] * (1 - amount) + amount / 2)
    given_class = (batch.targets[:, KIND] != 0).any(dim=1)
    torch.testing.assert_close(smoothed[:, KIND].sum(dim=1), given_class.float())
    expected = torch.nn.functional.one_hot(batch.targets[given_class, KIND].argmax(dim=1), 3) * (1 - amount)
    torch.testing.assert_close(smoothed[given_class, KIND], expected + amount / 3)
    # A row without a class is not known, and must not come to look as if it were.
    assert not smoothed[~given_class, KIND].any()
    assert smoothed.dtype == torch.float32
    assert 0 <= float(smoothed.min()) <= float(smoothed.max()) <= 1


def test_smoothing_is_that_of_torch():
    batch = make_batch(9, unknown=0.0)
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    smoothed = smooth_targets(batch.targets, SPACE, 0.15)[:, KIND]
    reference = torch.nn.CrossEntropyLoss(label_smoothing=0.15)(logits, batch.targets[:, KIND].argmax(dim=1))
    torch.testing.assert_close(cross_entropy(logits, smoothed).mean(), reference)
    assert smooth_targets(batch.targets.numpy(), SPACE, 0.0).equal(batch.targets.float())


def test_wrong_options_are_refused():
    batch = make_batch(3)
    with pytest.raises(ValueError, match="unknown mix 'mixed'; did you mean 'mixup'"):
        mix_batch(batch, SPACE, mix="mixed")
    for alpha in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="alpha must be a finite number above 0"):
            mix_batch(batch, SPACE, mix="mixup", alpha=alpha)
    with pytest.raises(ValueError, match=r"amount must be between 0.0 and 1.0; got 1.5"):
        smooth_targets(batch.targets, SPACE, 1.5)
    with pytest.raises(ValueError, match=r"targets must be of shape \(N, 6\); got \(3, 5\)"):
        smooth_targets(batch.targets[:, :5], SPACE, 0.1)
