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
_DARK = 0.15  # of the light that is left where no label looked
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

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data import ImageDataset, ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (32, 32)).save(folder + "/a.png")
        >>> table = ImageTable(paths=[folder + "/a.png"], targets=[[1]], space=LabelSpace([Group("tags", ["cat"])]))
        >>> dataset = ImageDataset(table, image_size=32, augment="flip")
        >>> plot_augmented(dataset, 0, epochs=[0, 1], path=folder + "/augmented.png").name
        'augmented.png'
    """
    images = [dataset.read(epoch, row) for epoch in epochs]
    return plot_sheet(images, path, captions=[f"epoch {epoch}" for epoch in epochs])


def plot_explanations(images: Any, maps: Any, path: str | Path, *, captions: Sequence[Sequence[str]]) -> Path:
    """Draw each image beside what each of some labels looked at in it into the PNG file `path`, and return the path.

    A map works as a light: where it is 1 the image is as it is, and where it is 0 it is nearly dark.

    Args:
        images: uint8 (N, C, H, W) with 1 or 3 channels.
        maps: In [0, 1], (N, K, H, W), as `explain` gives them.
        path: The file to write.
        captions: For each image a line under itself and one under each of its K maps.

    Raises:
        ValueError: no images, or shapes that do not fit each other.

    Example:
        >>> import tempfile
        >>> images, maps = np.zeros((2, 3, 96, 96), np.uint8), np.ones((2, 1, 96, 96))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     captions = [["a.jpg", "cat 0.93"], ["b.jpg", "dog 0.51"]]
        ...     plot_explanations(images, maps, f"{folder}/seen.png", captions=captions).name
        'seen.png'
    """
    pixels, light = to_numpy(images), to_numpy(maps)
    if light.ndim != 4 or pixels.ndim != 4 or (len(light), *light.shape[2:]) != (len(pixels), *pixels.shape[2:]):
        raise ValueError(f"maps (N, K, H, W) of images (N, C, H, W) were wanted; got {light.shape} of {pixels.shape}")
    if [len(each) for each in captions] != [1 + light.shape[1]] * len(pixels):
        raise ValueError(f"captions must be {1 + light.shape[1]} an image, for {len(pixels)} images")
    drawn = []
    for image, own in zip(pixels, light, strict=True):
        lit = (_DARK + (1 - _DARK) * own)[:, None] * image
        drawn += [image, *np.round(lit).astype(np.uint8)]
    texts = [text for each in captions for text in each]
    return plot_sheet(drawn, path, captions=texts, in_a_row=1 + light.shape[1])


def plot_sheet(images: Sequence[Any], path: str | Path, *, captions: Sequence[str], in_a_row: int = 1) -> Path:
    """Draw images of one size in rows into the PNG file `path`, and return the path.

    No pixel is changed: images are neither smoothed nor scaled, but for small ones, of which each pixel becomes a
    square of 2 x 2, 3 x 3 and so on.

    Args:
        images: uint8 (C, H, W) with 1 or 3 channels, all of one shape; NumPy or torch.
        path: The file to write.
        captions: A line under each image.
        in_a_row: So many images, from the first on, always stand side by side.

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
    if len(pictures) % in_a_row:
        raise ValueError(f"images in rows of {in_a_row} were wanted; got {len(pictures)}")
    if len(captions) != len(pictures):
        raise ValueError(f"captions must be one an image ({len(pictures)}); got {len(captions)}")
    scale = max(1, math.ceil(_LEAST / min(pictures[0].shape[:2])))
    height, width = (side * scale for side in pictures[0].shape[:2])
    units = len(pictures) // in_a_row
    rows = math.ceil(units / max(1, (_WIDTH - _GAP) // (in_a_row * (width + _GAP))))
    columns = math.ceil(units / rows) * in_a_row
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
