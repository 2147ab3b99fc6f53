"""Progressive resizing: an epoch's images are smaller at the beginning of a training, and whole at its end."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import interpolate

from mlabel.data import Batch
from mlabel.models import Classifier
from mlabel.models.backbones import has_fixed_size
from mlabel.training.config import TrainConfig

Size = tuple[int, int]


def training_size(config: TrainConfig, epoch: int, size: Size) -> Size:
    """Return the height and width of the training images of an epoch, counted from 0; a function of it alone.

    The epochs are shared evenly by the sizes of `config.progressive_resize` and, as the last one, the model's own.

    Args:
        config: `progressive_resize`, sizes of the longer side, and `epochs` are used.
        epoch: Which one.
        size: The model's height and width.

    Example:
        >>> config = TrainConfig(epochs=6, progressive_resize=(64, 96))
        >>> [training_size(config, epoch, (128, 128))[0] for epoch in range(6)]
        [64, 64, 96, 96, 128, 128]
    """
    longest = max(size)
    sides = [side for side in config.progressive_resize or () if side != longest] + [longest]
    side = sides[min(epoch * len(sides) // config.epochs, len(sides) - 1)]
    height, width = (max(1, round(each * side / longest)) for each in size)
    return height, width


def check_sizes(config: TrainConfig, model: Classifier) -> None:
    """Raise ValueError where `model` cannot have the sizes of `config.progressive_resize`."""
    if not config.progressive_resize:
        return
    largest = max(model.image_size)
    if max(config.progressive_resize) > largest:
        raise ValueError(
            f"progressive_resize goes up to the model's own size, {largest} pixels, and not beyond; got "
            f"{config.progressive_resize}"
        )
    name = model.config["backbone"]
    if has_fixed_size(name):
        raise ValueError(f"{name} takes images of {model.image_size} only, so that progressive_resize must be None")


def resize_batch(batch: Batch, size: Size) -> Batch:
    """Return the batch with its images at `size`, bilinear with antialiasing; uint8 images stay uint8.

    Args:
        batch: Its images (N, C, H, W), uint8 or floating; it is not changed.
        size: Height and width in pixels.

    Example:
        >>> import torch
        >>> batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 1), None, torch.arange(2))
        >>> resize_batch(batch, (24, 16)).images.shape
        torch.Size([2, 3, 24, 16])
    """
    images = batch.images
    if tuple(images.shape[2:]) == size:
        return batch
    whole_numbers = images.dtype == torch.uint8
    if whole_numbers and images.device.type != "cpu":
        images = images.float()  # there is no kernel for bytes
    resized = interpolate(images, size=size, mode="bilinear", antialias=True)
    if whole_numbers and resized.dtype != torch.uint8:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return replace(batch, images=resized)
