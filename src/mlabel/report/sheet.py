"""Contact sheets: images side by side, pixel by pixel as they are, with a line under each."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlabel._checks import to_numpy
from mlabel._files import write_atomically

if TYPE_CHECKING:
    from mlabel.data import ImageDataset

_GAP, _LINE = 8, 18  # pixels between images, and of the line under each
_LEAST = 96  # smaller images are enlarged by a whole number
_WIDTH = 1600  # of a sheet; with wider images there is one in a row


def plot_augmented(dataset: ImageDataset, row: int, *, epochs: Sequence[int], path: str | Path) -> Path:
    """Draw a sample as training sees it in some epochs into the PNG file `path`, and return the path.

    Args:
        dataset: With the table, image size, channels, augmentation and seed of the training.
        row: Of the table.
        epochs: Which ones; they count from 0.
        path: The file to write.

    Raises:
        ImageError: the image cannot be read.
        ValueError: no epochs.
    """
    images = [dataset.read(epoch, row) for epoch in epochs]
    return plot_sheet(images, path, captions=[f"epoch {epoch}" for epoch in epochs])


def plot_sheet(images: Sequence[Any], path: str | Path, *, captions: Sequence[str]) -> Path:
    """Draw images of one size in rows into the PNG file `path`, and return the path.

    No pixel is changed: images are neither smoothed nor scaled, but for small ones, of which each pixel becomes a
    square of 2 x 2, 3 x 3 and so on.

    Args:
        images: uint8 (C, H, W) with 1 or 3 channels, all of one shape; NumPy or torch.
        path: The file to write.
        captions: A line under each image.

    Raises:
        ValueError: no images, shapes that differ, or not one caption an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = plot_sheet([np.zeros((3, 100, 120), np.uint8)] * 2, f"{folder}/sheet.png", captions=["a", "b"])
        ...     with Image.open(path) as sheet:
        ...         sheet.size
        (264, 134)
    """
    pictures = [_pixels(image) for image in images]
    if not pictures or len({picture.shape for picture in pictures}) > 1:
        raise ValueError(f"images of one shape were wanted; got {[picture.shape for picture in pictures]}")
    if len(captions) != len(pictures):
        raise ValueError(f"captions must be one an image ({len(pictures)}); got {len(captions)}")
    scale = max(1, math.ceil(_LEAST / min(pictures[0].shape[:2])))
    height, width = (side * scale for side in pictures[0].shape[:2])
    rows = math.ceil(len(pictures) / max(1, (_WIDTH - _GAP) // (width + _GAP)))
    columns = math.ceil(len(pictures) / rows)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _LINE + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = _GAP + (place % columns) * (width + _GAP)
        top = _GAP + (place // columns) * (height + _LINE + _GAP)
        sheet.paste(Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1)), (left, top))
        draw.text((left, top + height + 2), caption, fill="black", font=font)
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_atomically(path, content.getvalue())
    return Path(path)


def _pixels(image: Any) -> np.ndarray:
    """Return a uint8 image (C, H, W) as (H, W, 3)."""
    array = to_numpy(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype != np.uint8:
        raise ValueError(f"an image must be uint8 (C, H, W) with 1 or 3 channels; got {array.dtype} {array.shape}")
    return np.ascontiguousarray(np.broadcast_to(np.moveaxis(array, 0, 2), (*array.shape[1:], 3)))
