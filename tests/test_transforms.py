"""Augmentation: keyed, of the right size, and each step does what its name says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.data.transforms import AUGMENTATIONS, apply_keyed, augmentation, sample_key

KEYS = [sample_key(0, 0, str(number)) for number in range(40)]
STEPS = [name for name in AUGMENTATIONS if name != "none"]


def picture(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    """Return a random image (C, H, W) of no symmetry."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 200, (channels, *size), dtype=np.uint8))


# Keys.


@given(st.integers(-5, 2**70), st.integers(0, 10**6), st.text(max_size=20))
@settings(max_examples=50, deadline=None)
def test_keys_follow_from_their_parts_and_fit_a_generator(seed, epoch, sample_id):
    key = sample_key(seed, epoch, sample_id)
    assert key == sample_key(seed, epoch, sample_id)
    assert 0 <= key < 2**63
    others = {sample_key(seed + 1, epoch, sample_id), sample_key(seed, epoch + 1, sample_id)}
    others |= {sample_key(seed, epoch, sample_id + "x"), sample_key(epoch, seed, sample_id + "0")}
    assert key not in others


def test_keys_do_not_run_into_each_other():
    keys = {sample_key(seed, epoch, str(name)) for seed in range(12) for epoch in range(12) for name in range(120)}
    assert len(keys) == 12 * 12 * 120


def test_the_key_is_the_same_in_every_release():
    assert sample_key(7, 2, "im1") == 4761512171958671050


def test_applying_leaves_every_random_state_as_it_was():
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = apply_keyed(lambda image: image + torch.rand(()), torch.zeros(1), 1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.manual_seed(4)
    assert torch.equal(apply_keyed(lambda image: image + torch.rand(()), torch.zeros(1), 1), first)
    with pytest.raises(ZeroDivisionError):
        apply_keyed(lambda image: image / (1 // 0), torch.zeros(1), 1)


# Every entry of the table.


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_has_size_and_type_and_the_input_stays(name, channels):
    transform = augmentation(name, (20, 28), channels=channels)
    image = picture(transform.read_size, channels)
    before = image.clone()
    for key in KEYS[:12]:
        result = transform(image, key)
        assert result.shape == (channels, 20, 28)
        assert result.dtype == torch.uint8
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_result_follows_from_the_key_alone(name):
    one, two = augmentation(name, (20, 28)), augmentation(name, (20, 28))
    image = picture(one.read_size)
    forth = [one(image, key) for key in KEYS]
    torch.manual_seed(99)
    back = [two(image, key) for key in reversed(KEYS)]
    assert all(torch.equal(a, b) for a, b in zip(forth, reversed(back), strict=True))
    different = {result.numpy().tobytes() for result in forth}
    assert len(different) > 1 or name == "none"


@pytest.mark.parametrize("name", STEPS)
def test_strength_zero_does_nothing(name):
    transform = augmentation(f"{name}:0", (20, 28))
    assert transform.read_size == (20, 28)
    image = picture((20, 28))
    assert all(torch.equal(transform(image, key), image) for key in KEYS)


@pytest.mark.parametrize(
    "name", ["flip", "vertical_flip", "rotation", "crop", "colour", "erasing", "rand_augment", "trivial_augment"]
)
def test_more_strength_changes_more(name):
    def change(strength: float) -> float:
        transform = augmentation(f"{name}:{strength}", (56, 56))
        height, width = transform.read_size
        ramp = torch.arange(height * width, dtype=torch.float32).reshape(1, height, width)
        image = (ramp * 255 / ramp.max()).to(torch.uint8).repeat(3, 1, 1)
        plain = torch.nn.functional.interpolate(image[None].float(), size=(56, 56), mode="bilinear", antialias=True)[0]
        return float(sum((transform(image, key).float() - plain).abs().mean() for key in KEYS))

    assert change(0.2) < change(1.0)


# Each alone, by hand.


def test_flips_mirror_about_half_of_the_images():
    image = picture((6, 8))
    for name, axis in [("flip", 2), ("vertical_flip", 1)]:
        results = [augmentation(name, (6, 8))(image, key) for key in KEYS]
        mirrored = sum(torch.equal(result, image.flip(axis)) for result in results)
        assert mirrored + sum(torch.equal(result, image) for result in results) == len(KEYS)
        assert 8 <= mirrored <= 32


def test_rotation_brings_in_the_background():
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    results = [augmentation("rotation", (40, 40), background=(10, 20, 30))(image, key) for key in KEYS]
    corners = torch.stack([result[:, 0, 0] for result in results]).unique(dim=0).tolist()
    assert [10, 20, 30] in corners
    assert all(int(result[:, 20, 20].max()) == 0 for result in results)
    grey = [augmentation("rotation", (40, 40), channels=1, background=(10, 20, 30))(image[:1], key) for key in KEYS]
    assert max(int(result[0, 0, 0]) for result in grey) == 18  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30


def test_crop_takes_a_part_of_an_image_read_an_eighth_larger():
    transform = augmentation("crop", (70, 35))
    assert transform.read_size == (80, 40)
    rows = torch.arange(80, dtype=torch.uint8).reshape(1, 80, 1).repeat(3, 1, 40)
    for key in KEYS:
        result = transform(rows, key)[0, :, 0]
        assert (result.diff().to(torch.int8) >= 0).all()  # the order of the rows stays
        span = int(result[-1]) - int(result[0])
        assert 35 < span < 80  # at least sqrt(0.35 * 0.75) of the height


def test_rand_augment_does_two_changes_of_its_magnitude():
    transforms = [augmentation(f"rand_augment:{strength}", (40, 40)).steps[0] for strength in (1, 0.5, 0.01)]
    assert [(each.num_ops, each.magnitude) for each in transforms] == [(2, 9), (2, 4), (2, 1)]


def test_trivial_augment_changes_a_share_of_the_images():
    image = picture((40, 40))
    for strength, least, most in [(1.0, 30, 40), (0.5, 8, 28)]:  # one of its changes is none
        results = [augmentation(f"trivial_augment:{strength}", (40, 40))(image, key) for key in KEYS]
        assert least <= sum(not torch.equal(result, image) for result in results) <= most


@pytest.mark.parametrize("name", ["rand_augment", "trivial_augment"])
def test_automatic_augmentation_brings_in_the_background(name):
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    results = [
        augmentation(name, (40, 40), background=(10, 20, 30))(image, sample_key(0, 1, str(k))) for k in range(99)
    ]
    corners = torch.cat([result[:, [0, 0, -1, -1], [0, -1, 0, -1]].T for result in results]).unique(dim=0).tolist()
    assert [10, 20, 30] in corners


def test_the_crop_is_found_by_its_common_name():
    one, other = augmentation("crop:0.5", (20, 28)), augmentation("random_resized_crop:0.5", (20, 28))
    image = picture(one.read_size)
    assert one.read_size == other.read_size
    assert all(torch.equal(one(image, key), other(image, key)) for key in KEYS)


def test_a_random_crop_is_a_window_of_the_picture():
    transform = augmentation("random_crop", (14, 7))
    assert transform.read_size == (16, 8)
    image = picture((16, 8))
    windows = {image[:, top : top + 14, left : left + 7].numpy().tobytes() for top in range(3) for left in range(2)}
    assert {transform(image, key).numpy().tobytes() for key in range(200)} == windows
    middle = augmentation("random_crop:0.01", (14, 6))
    assert all(torch.equal(middle(picture((16, 8)), key), picture((16, 8))[:, 1:15, 1:7]) for key in KEYS)


@pytest.mark.parametrize("background", [(9, 9, 9), (10, 20, 30)])
def test_a_shift_moves_the_picture_and_brings_in_the_background(background):
    image = picture((16, 24)).clamp_min(40)
    fill = torch.tensor(background, dtype=torch.uint8)[:, None, None]
    canvas = fill.repeat(1, 16 + 2 * 2, 24 + 2 * 3)
    canvas[:, 2:-2, 3:-3] = image
    moved = {canvas[:, y : y + 16, x : x + 24].contiguous().numpy().tobytes() for y in range(5) for x in range(7)}
    transform = augmentation("shift", (16, 24), background=background)
    assert {transform(image, key).contiguous().numpy().tobytes() for key in range(1500)} == moved
    assert augmentation("shift", (4, 4), channels=1)(torch.zeros(1, 4, 4, dtype=torch.uint8), 3).shape == (1, 4, 4)


def test_a_repeat_has_a_key_of_its_own():
    keys = {sample_key(1, epoch, str(name), repeat=k) for epoch in range(20) for name in range(20) for k in range(20)}
    assert len(keys) == 8000
    assert sample_key(1, 2, "a", repeat=0) == sample_key(1, 2, "a")


def test_steps_are_done_from_left_to_right_with_their_strengths():
    image = picture((8, 8))
    both = augmentation("flip + vertical_flip:0.5", (8, 8))
    assert len(both.steps) == 2
    results = {both(image, key).numpy().tobytes() for key in KEYS}
    expected = {image.flip(axes).numpy().tobytes() for axes in [(), (1,), (2,), (1, 2)]}
    assert results == expected
    assert [step.chance for step in both.steps] == [0.5, 0.25]
    assert augmentation("light:0.5", (8, 8)).steps[1].degrees == [-5.0, 5.0]


def test_a_function_of_the_callers_own_is_keyed_and_checked():
    def shifted(image: torch.Tensor) -> torch.Tensor:
        return image + torch.randint(0, 50, (), dtype=torch.uint8)

    transform = augmentation(shifted, (4, 5))
    assert (transform.name, transform.read_size) == ("shifted", (4, 5))
    image = picture((4, 5))
    assert torch.equal(transform(image, 1), transform(image, 1))
    assert not torch.equal(transform(image, 1), transform(image, 2))
    for wrong, got in [(torch.Tensor.float, "float32"), (lambda image: image[:, :2], r"\(3, 2, 5\)"), (str, "str")]:
        with pytest.raises(ValueError, match=f"must give a uint8 tensor of shape .*; it gave .*{got}"):
            augmentation(wrong, (4, 5))(image, 1)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("flipp", "unknown augmentation 'flipp'; did you mean 'flip'"),
        ("", "unknown augmentation ''"),
        ("flip+", "unknown augmentation ''"),
        ("flip:much", "the strength in 'flip:much' must be a number"),
        ("flip:2", "the strength in 'flip:2' must be between 0.0 and 1.0"),
        ("flip:nan", "must be between"),
    ],
)
def test_wrong_names_are_refused(augment, message):
    with pytest.raises(ValueError, match=message):
        augmentation(augment, (4, 4))


def test_what_is_neither_name_nor_function_is_refused():
    with pytest.raises(TypeError, match="augment must be a name or a function; got int"):
        augmentation(3, (4, 4))
