"""The images of a table one at a time: read or taken from a cache, and augmented."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from mlabel._checks import check_positive
from mlabel.data.cache import ImageCache
from mlabel.data.images import MAX_PIXELS, WHITE, ImageError, check_options, read_image, resize
from mlabel.data.table import ImageTable
from mlabel.data.transforms import Transform, augmentation, sample_key

Key = tuple[int, int, int]
"""An epoch, a row of the table, and how often the row came before in the epoch: all that a worker is told."""


class ImageDataset(Dataset[tuple[int, torch.Tensor]]):
    """The images of a table, read and augmented one at a time, for a loader of ours or of anyone's.

    `dataset[row]` and `dataset[epoch, row]` give the row and the image, uint8 (C, H, W); epoch 0 unless given. A third
    number, `dataset[epoch, row, repeat]`, is for rows that come more than once in an epoch; see `read`.

    Args:
        table: Which images; from its cache where it has one.
        image_size: Side, or height and width, of the images.
        channels: 3 for RGB, 1 for grey.
        augment: See `mlabel.data.augmentation`.
        seed: Of the augmentation.
        background: The colour under transparent pixels.
        max_pixels: Larger images are refused.

    Raises:
        ValueError: the table's cache has images that are too small, or of other channels or background.
        ImageError: (on access) the image cannot be read; the message names id and path.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> path = tempfile.mkdtemp() + "/a.png"
        >>> Image.new("L", (30, 20), 7).save(path)
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> dataset = ImageDataset(ImageTable(paths=[path], targets=[[1, 0]], space=space), image_size=8, channels=1)
        >>> row, image = dataset[0]
        >>> row, image.shape, int(image.max())
        (0, torch.Size([1, 8, 8]), 7)
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        image_size: int | tuple[int, int],
        channels: int = 3,
        augment: str | Transform = "none",
        seed: int = 0,
        background: tuple[int, int, int] = WHITE,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_positive(min(height, width), "image_size")
        check_options(channels, background, max_pixels, (height, width))
        # Only what reading needs: where workers are not forked, this is sent to each of them.
        self.paths, self.ids = table.paths, table.ids
        self.size = (height, width)
        self.channels = channels
        self.augmentation = augmentation(augment, self.size, channels=channels, background=background)
        self.seed = seed
        self.background = background
        self.max_pixels = max_pixels
        self.cache = table.cache
        if self.cache is not None:
            _check_cache(self.cache, self.augmentation.read_size, channels, background)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int] | Key) -> tuple[int, torch.Tensor]:
        epoch, row, *repeat = key if isinstance(key, tuple) else (0, key)
        return row, self.read(epoch, row, repeat=repeat[0] if repeat else 0)

    def read(self, epoch: int, row: int, *, repeat: int = 0, notes: list[str] | None = None) -> torch.Tensor:
        """Return the image of a row exactly as it is, or was, in an epoch, uint8 (C, H, W).

        Args:
            epoch: Which one.
            row: Of the table.
            repeat: How often the row came before in that epoch, where a sampler repeats it.
            notes: As in `read_image`.
        """
        name = str(self.ids[row])
        try:
            image = self._picture(row, notes)
        except ImageError as error:
            raise type(error)(f"sample {name!r}: {error}", error.reason) from error
        return self.augmentation(image, sample_key(self.seed, epoch, name, repeat=repeat))

    def take(self, rows: Sequence[int]) -> torch.Tensor | None:
        """Return the images at `rows` at once, (n, C, H, W), where that is the same and faster, else None."""
        if self.cache is None or self.augmentation.steps or self.cache.size != self.size:
            return None
        return None if self.cache.has_fault(rows) else self.cache.take(rows)

    def _picture(self, row: int, notes: list[str] | None) -> torch.Tensor:
        """Return the image of a row as it is before augmentation, uint8 (C, *read_size)."""
        size = self.augmentation.read_size
        if self.cache is None:
            pixels = read_image(
                str(self.paths[row]),
                channels=self.channels,
                background=self.background,
                max_pixels=self.max_pixels,
                size=size,
                notes=notes,
            )
            return torch.from_numpy(pixels).permute(2, 0, 1)
        image = self.cache.read(row)
        if self.cache.size == size:
            return image
        return torch.from_numpy(resize(image.permute(1, 2, 0).numpy(), size)).permute(2, 0, 1)


def _check_cache(cache: ImageCache, size: tuple[int, int], channels: int, background: tuple[int, int, int]) -> None:
    height, width = size
    if cache.channels != channels or cache.background != tuple(background):
        raise ValueError(
            f"{cache.folder} holds images of {cache.channels} channels on background {cache.background}; wanted are "
            f"{channels} on {tuple(background)}"
        )
    if cache.size[0] < height or cache.size[1] < width:
        raise ValueError(
            f"{cache.folder} holds images of {cache.size[0]} x {cache.size[1]}; this model and augmentation need at "
            f"least {height} x {width}: make the cache with the same image_size and augment"
        )
