"""Augmentation by name and strength, keyed by (seed, epoch, sample id).

A sample's transform draws its random numbers from a key of its own. So what a sample looks like in an epoch does not
depend on which worker met it, in which batch or in what order, and it can be shown again exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch

from mlabel._checks import check_between, resolve

Transform: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def sample_key(seed: int, epoch: int, sample_id: str, *, repeat: int = 0) -> int:
    """Return a number in [0, 2**63) that follows from seed, epoch and sample id, and from nothing else.

    It is BLAKE2b over the three, so that it is the same in every process, on every machine and in every release.

    Args:
        seed: Of the augmentation.
        epoch: Which one.
        sample_id: Of the sample.
        repeat: How often the sample came before in this epoch, so that one that is repeated looks different each time.

    Example:
        >>> sample_key(0, 3, "im17")
        5337282596836036878
        >>> sample_key(0, 3, "im17") == sample_key(0, 4, "im17")
        False
    """
    # Integers and a bar each cannot be mistaken for part of the id.
    place = f"{int(epoch)}.{int(repeat)}" if repeat else f"{int(epoch)}"
    text = f"{int(seed)}|{place}|{sample_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def apply_keyed(transform: Transform, image: torch.Tensor, key: int) -> torch.Tensor:
    """Return `transform(image)`, with torch's CPU random numbers following from `key` while it runs.

    The caller's random state is left as it was. NumPy's and Python's own random numbers are not keyed: a transform must
    draw from torch. The state belongs to the process, so threads must not do this at the same time.

    Args:
        transform: A function of a tensor that gives one.
        image: What it is given, uint8 (C, H, W).
        key: An integer in [0, 2**63); see `sample_key`.

    Example:
        >>> shift = lambda image: image + torch.randint(100, ())
        >>> image = torch.zeros(1, dtype=torch.int64)
        >>> bool(apply_keyed(shift, image, 5) == apply_keyed(shift, image, 5))
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        return transform(image)


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image of a sample between reading it and putting it into a batch.

    Attributes:
        name: What it was made from, such as "crop+flip:0.5".
        size: Height and width of the result.
        read_size: Height and width at which the image is to be read; larger than `size` where a crop follows.
        steps: Functions of a uint8 tensor (C, H, W), in their order.
    """

    name: str
    size: tuple[int, int]
    read_size: tuple[int, int]
    steps: tuple[Transform, ...]

    def __call__(self, image: torch.Tensor, key: int) -> torch.Tensor:
        """Return the augmented image, uint8 (C, *size), that follows from `key` (see `sample_key`).

        Args:
            image: uint8 (C, *read_size). It is not changed.
            key: Any number in [0, 2**63).

        Raises:
            ValueError: a transform of the caller's own gave something of another shape or type.
        """
        if not self.steps:
            return image
        result = apply_keyed(self._run, image, key)
        wanted = (image.shape[0], *self.size)
        if not isinstance(result, torch.Tensor) or result.dtype != torch.uint8 or tuple(result.shape) != wanted:
            got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            raise ValueError(f"augmentation {self.name!r} must give a uint8 tensor of shape {wanted}; it gave {got}")
        return result

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            image = step(image)
        return image


def augmentation(
    augment: str | Transform,
    size: tuple[int, int],
    *,
    channels: int = 3,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Augmentation:
    """Return the augmentation of a name, or of a function of the caller's own.

    Args:
        augment: One of `AUGMENTATIONS`, or several joined by "+", done from left to right. Each may carry a strength
            in [0, 1], 1 where none is given: "crop:0.5+flip". Or a function of a uint8 tensor (C, H, W) of the size
            below that gives one such; it must draw its random numbers from torch.
        size: Height and width of the result.
        channels: C, 1 or 3.
        background: The colour of what a rotation brings into the picture, and of what is erased.

    Raises:
        ValueError: an unknown name, or a strength that is not a number in [0, 1].
        TypeError: neither a name nor a function.

    Example:
        >>> augmentation("standard", (224, 224)).read_size
        (256, 256)
        >>> image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
        >>> augmentation("flip", (3, 4), channels=1)(image, key=4)
        tensor([[[ 0,  1,  2,  3],
                 [ 4,  5,  6,  7],
                 [ 8,  9, 10, 11]]], dtype=torch.uint8)
    """
    if not isinstance(augment, str):
        if not callable(augment):
            raise TypeError(f"augment must be a name or a function; got {type(augment).__name__}")
        return Augmentation(getattr(augment, "__name__", type(augment).__name__), size, size, (augment,))
    setting = _Setting(size, _fill(background, channels))
    parts = [part for name in augment.split("+") for part in _expand(name.strip())]
    steps = tuple(_STEPS[name](strength, setting) for name, strength in parts if strength > 0)
    cropped = any(name in _CROPS and strength > 0 for name, strength in parts)
    read_size = tuple(-(-side * 8 // 7) for side in size) if cropped else size
    return Augmentation(augment, size, read_size, steps)  # type: ignore[arg-type]


class _Setting(NamedTuple):
    """What steps need to know beside their strength."""

    size: tuple[int, int]
    fill: list[float]


def _fill(background: tuple[int, int, int], channels: int) -> list[float]:
    if channels == 3:
        return [float(value) for value in background]
    red, green, blue = background
    return [float(round(0.299 * red + 0.587 * green + 0.114 * blue))]


def _expand(part: str) -> list[tuple[str, float]]:
    """Return the steps, with their strengths, of one part of a name such as "standard" or "crop:0.5"."""
    name, _, text = part.partition(":")
    known = {name: [(name, 1.0)] for name in _STEPS} | _PRESETS
    try:
        strength = float(text) if text else 1.0
    except ValueError:
        raise ValueError(f"the strength in {part!r} must be a number between 0 and 1; got {text!r}") from None
    check_between(strength, 0.0, 1.0, f"the strength in {part!r}")
    return [(step, own * strength) for step, own in resolve(name, known, "augmentation")]


def _v2() -> Any:
    """Return torchvision's transforms; they take two seconds to import, so it is done when a step is first made."""
    from torchvision.transforms import v2

    return v2


@dataclass(frozen=True)
class _Mirror:
    chance: float
    axis: int

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(self.axis) if float(torch.rand(())) < self.chance else image


@dataclass(frozen=True)
class _Cut:
    size: tuple[int, int]
    strength: float

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        spans = []
        for whole, side, draw in zip(image.shape[1:], self.size, torch.rand(2).tolist(), strict=True):
            start = round((0.5 + (draw - 0.5) * self.strength) * (whole - side))
            spans.append(slice(start, start + side))
        return image[:, spans[0], spans[1]]


@dataclass(frozen=True)
class _Move:
    share: float
    fill: list[float]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        result = torch.full_like(image, self.fill[0])
        if len(set(self.fill)) > 1:  # to write each channel apart takes three times as long
            result[:] = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None]
        sources, places = [], []
        for side, draw in zip(image.shape[1:], torch.rand(2).tolist(), strict=True):
            by = round((2 * draw - 1) * self.share * side)
            sources.append(slice(max(0, -by), side - max(0, by)))
            places.append(slice(max(0, by), side - max(0, -by)))
        result[:, places[0], places[1]] = image[:, sources[0], sources[1]]
        return result


def _flip(strength: float, setting: _Setting) -> Transform:
    """Mirror left and right; at strength 1 every second image."""
    return _Mirror(0.5 * strength, axis=2)


def _vertical_flip(strength: float, setting: _Setting) -> Transform:
    """Mirror top and bottom; at strength 1 every second image."""
    return _Mirror(0.5 * strength, axis=1)


def _random_crop(strength: float, setting: _Setting) -> Transform:
    """Cut out seven eighths of the sides without resizing; at strength 1 anywhere, at 0.5 nearer the middle."""
    return _Cut(setting.size, strength)


def _shift(strength: float, setting: _Setting) -> Transform:
    """Move the picture, at strength 1 by up to an eighth of its sides; what comes in is background."""
    return _Move(0.125 * strength, setting.fill)


def _rotation(strength: float, setting: _Setting) -> Transform:
    """Turn about the centre; at strength 1 by up to 30 degrees either way."""
    v2 = _v2()
    return v2.RandomRotation(30.0 * strength, interpolation=v2.InterpolationMode.BILINEAR, fill=setting.fill)


def _crop(strength: float, setting: _Setting) -> Transform:
    """Cut out a part and resize it; at strength 1 of 35 % to 100 % of the area, its aspect changed by up to a third."""
    height, width = setting.size
    ratio = (0.75 * width / height, width / height / 0.75)
    return _v2().RandomResizedCrop(setting.size, scale=(1.0 - 0.65 * strength, 1.0), ratio=ratio, antialias=True)


def _colour(strength: float, setting: _Setting) -> Transform:
    """Change brightness, contrast and saturation by up to 40 % at strength 1."""
    level = 0.4 * strength
    # Not the hue: changing it takes several times as long as all the rest.
    return _v2().ColorJitter(brightness=level, contrast=level, saturation=level)


def _greyscale(strength: float, setting: _Setting) -> Transform:
    """Take the colours away; at strength 1 of every fifth image."""
    return _v2().RandomGrayscale(p=0.2 * strength)


def _erasing(strength: float, setting: _Setting) -> Transform:
    """Paint over a rectangle of 2 % to 20 % of the area; at strength 1 in every second image."""
    return _v2().RandomErasing(p=0.5 * strength, scale=(0.02, 0.2), value=setting.fill)


def _rand_augment(strength: float, setting: _Setting) -> Transform:
    """Do two random changes of colour or shape (Cubuk et al. 2020); at strength 1 of magnitude 9 of 30."""
    return _v2().RandAugment(num_ops=2, magnitude=max(1, round(9 * strength)), fill=setting.fill)


def _trivial_augment(strength: float, setting: _Setting) -> Transform:
    """Do one random change of any magnitude (Müller and Hutter 2021); at strength 1 to every image."""
    v2 = _v2()
    return v2.RandomApply([v2.TrivialAugmentWide(fill=setting.fill)], p=strength)


_STEPS: dict[str, Callable[[float, _Setting], Any]] = {
    "crop": _crop,
    "random_crop": _random_crop,
    "shift": _shift,
    "flip": _flip,
    "vertical_flip": _vertical_flip,
    "rotation": _rotation,
    "colour": _colour,
    "greyscale": _greyscale,
    "erasing": _erasing,
    "rand_augment": _rand_augment,
    "trivial_augment": _trivial_augment,
}
# The steps that cut: images are read an eighth larger for them, so that a cut-out is not blown up much.
_CROPS = frozenset({"crop", "random_crop"})
# "none" resizes only, which reading does. Steps that have another name elsewhere are found by that one too.
_PRESETS: dict[str, list[tuple[str, float]]] = {
    "none": [],
    "random_resized_crop": [("crop", 1.0)],
    "light": [("flip", 1.0), ("rotation", 1 / 3)],
    "standard": [("crop", 1.0), ("flip", 1.0)],
    "strong": [("crop", 1.0), ("flip", 1.0), ("rotation", 0.5), ("colour", 1.0), ("erasing", 0.5)],
}

AUGMENTATIONS = (*_PRESETS, *_STEPS)
