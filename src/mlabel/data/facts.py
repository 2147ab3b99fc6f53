"""What reading one image tells: its size, its fault, and fingerprints by which copies of it are found."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from mlabel.data.images import ImageError, read_image

_SIDE = 32  # pixels of the grey picture that the perceptual hash looks at
_FLAT = 2.0  # grey levels: a picture that varies by less looks like every other flat one


class Facts(NamedTuple):
    """What reading one image told.

    Attributes:
        row: Of the table.
        size: Height and width; (0, 0) where it could not be read.
        pixels: 128-bit hash of the picture as it is shown, as two integers.
        look: 64-bit perceptual hash; 0 where the picture is flat.
        fault: (reason, message) where it could not be read, else None.
        notes: Oddities that were passed over.
    """

    row: int
    size: tuple[int, int] = (0, 0)
    pixels: tuple[int, int] = (0, 0)
    look: int = 0
    fault: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def read_facts(row: int, path: str, max_pixels: int) -> Facts:
    """Return what the image at `path` is; one that cannot be read is a fault, not an error."""
    notes: list[str] = []
    try:
        picture = read_image(path, max_pixels=max_pixels, notes=notes)
    except ImageError as error:
        return Facts(row, fault=(error.reason, str(error)))
    height, width = picture.shape[:2]
    return Facts(row, (height, width), _hash_pixels(picture), hash_look(picture), None, tuple(notes))


def _hash_pixels(picture: np.ndarray) -> tuple[int, int]:
    digest = hashlib.blake2b(np.array(picture.shape, dtype="<i8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(picture).data)
    high, low = np.frombuffer(digest.digest(), dtype="<u8").tolist()
    return high, low


def hash_look(picture: np.ndarray) -> int:
    """Return a 64-bit perceptual hash of a uint8 picture (H, W, C): the signs of its lowest frequencies.

    The picture is shrunk to 32 x 32 grey pixels, and each of the 8 x 8 lowest coefficients of its cosine transform
    gives a bit: whether it is above their median (Zauner, 2010, "Implementation and benchmarking of perceptual image
    hash functions"). 0 where the picture is flat and has no look of its own.
    """
    grey = Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0]).convert("L")
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    if small.std() < _FLAT:
        return 0
    low = dctn(small, type=2, norm="ortho")[:8, :8].reshape(-1)
    low[0] = 0.0  # the mean brightness, which an edit changes first
    bits = low > np.median(low)
    return int(np.packbits(bits).view(">u8")[0])
