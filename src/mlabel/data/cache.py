"""Images decoded once into a memory-mapped file, from which a loader copies them instead of decoding them again.

A cache is a folder: `pixels.u8`, the images one after the other, uint8 (N, H, W, C); `records.bin`, for each of them
whether it is done and what its file was like (size, time, BLAKE2b hash); `ids.json`, their ids in the order of the
table, so that the number of an image is its row; `bad.jsonl`, what could not be read; `cache.json`, the settings.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlabel._checks import DataError, resolve
from mlabel._files import read_json
from mlabel.data.images import ImageError, open_image, stat_image

FORMAT = "mlabel.cache/1"
PIXELS, RECORDS, IDS, BAD, HEADER = "pixels.u8", "records.bin", "ids.json", "bad.jsonl", "cache.json"
RECORD = np.dtype([("state", "u1"), ("size", "<i8"), ("time", "<i8"), ("digest", "<u8", 2)])
EMPTY, DONE, FAULTY = 0, 1, 2
_CHECKS = {"source": True, "none": False}


@dataclass(frozen=True, eq=False)
class ImageCache:
    """Decoded images of some rows of a table; `ImageTable.cached` opens one, loaders of that table then use it.

    Attributes:
        folder: Where it lies.
        shape: Of the whole file, (N, H, W, C).
        background: The colour that lies under what was transparent.
        rows: (M,) int64: which images of the file these are.
        faults: Number of an image in the file to (reason, message) of why it could not be read.
    """

    folder: Path
    shape: tuple[int, int, int, int]
    background: tuple[int, int, int]
    rows: np.ndarray
    faults: dict[int, tuple[str, str]]

    @classmethod
    def open(cls, folder: str | Path) -> ImageCache:
        """Return the cache in `folder`, with all its images.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is not finished, damaged, or of another format.
        """
        folder = Path(folder)
        header = read_header(folder)
        shape = shape_of(header)
        _check_file(folder / PIXELS, int(np.prod(shape, dtype=np.int64)))
        _check_file(folder / RECORDS, shape[0] * RECORD.itemsize)
        states = open_records(folder)["state"]
        missing = int((states == EMPTY).sum())
        if missing:
            raise DataError(f"{folder}: not finished, {missing:,} of {shape[0]:,} images are missing; build it again")
        faults = _read_faults(folder, np.flatnonzero(states == FAULTY))
        return cls(folder, shape, tuple(header["background"]), np.arange(shape[0]), faults)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> ImageCache:
        return replace(self, rows=self.rows[rows])

    def __getstate__(self) -> dict[str, Any]:
        # A process that is sent the cache maps the file itself.
        return {name: value for name, value in vars(self).items() if name != "_pixels"}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.shape[1:3]

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return self.shape[3]

    @cached_property
    def _pixels(self) -> torch.Tensor:
        pixels = np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r", shape=self.shape)
        with warnings.catch_warnings():
            # It cannot be written to, as torch says; only copies of it leave this class.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.asarray(pixels))

    def read(self, row: int) -> torch.Tensor:
        """Return a copy of the image at `row`, uint8 (C, H, W), whose channels lie together in memory.

        Raises:
            ImageError: it could not be read when the cache was built.
        """
        number = int(self.rows[row])
        if number in self.faults:
            reason, message = self.faults[number]
            raise ImageError(message, reason)
        return self._pixels[number].clone().permute(2, 0, 1)

    def has_fault(self, rows: Sequence[int] | np.ndarray) -> bool:
        """Return whether one of the images at `rows` could not be read."""
        return bool(self.faults) and any(number in self.faults for number in self.rows[rows].tolist())

    def take(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return copies of the images at `rows`, uint8 (n, C, H, W); those that could not be read are black."""
        # NumPy's take copies whole images; torch's index goes through them element by element.
        return torch.from_numpy(np.take(self._pixels.numpy(), self.rows[rows], axis=0)).permute(0, 3, 1, 2)


def open_cache(folder: str | Path, ids: np.ndarray, paths: np.ndarray, *, check: str = "source") -> ImageCache:
    """Return the cached images with these ids (N,), in their order; what `ImageTable.cached` puts into a table.

    Args:
        folder: Of the cache.
        ids: Of the images.
        paths: Of their files (N,).
        check: See `ImageTable.cached`.

    Raises:
        FileNotFoundError, DataError: see `ImageCache.open`.
        ValueError: the cache lacks one of the images.
        DataError: an image file changed since it was decoded, or is gone.
    """
    checked = resolve(check, _CHECKS, "check")
    cache = ImageCache.open(folder)
    cache = cache[_find_rows(cache.folder, ids)]
    if checked:
        changed = find_changed(open_records(cache.folder)[cache.rows], paths)
        if len(changed):
            raise DataError(
                f"{folder}: {len(changed):,} image files changed since they were decoded, or are gone, the first of "
                f"them {paths[changed[0]]}; build the cache again, which decodes just these anew"
            )
    return cache


def read_header(folder: Path) -> dict[str, Any]:
    """Return the settings of a cache, checked.

    Raises:
        FileNotFoundError: the folder holds no cache.
        DataError: the settings are damaged, or of another format.
    """
    path = folder / HEADER
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no cache ({HEADER} is missing); make one with `mlabel cache`")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise DataError(f"{path}: wanted format {FORMAT!r}; found {found!r}")
    for name in ("images", "height", "width", "channels", "max_pixels"):
        if type(header.get(name)) is not int or header[name] < 1:
            raise DataError(f"{path}: {name} must be a positive integer; got {header.get(name)!r}")
    if not isinstance(header.get("background"), list):
        raise DataError(f"{path}: background must be a list of red, green and blue; got {header.get('background')!r}")
    return header


def shape_of(header: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return the shape (N, H, W, C) of all images of a cache."""
    return header["images"], header["height"], header["width"], header["channels"]


def _check_file(path: Path, size: int) -> None:
    held = path.stat().st_size if path.is_file() else None
    if held != size:
        found = "it is not there" if held is None else f"it has {held:,}"
        raise DataError(f"{path}: wanted a file of {size:,} bytes; {found}. Remove the cache and build it again")


def open_records(folder: Path, *, writable: bool = False) -> np.memmap:
    """Return what is known of each image of a cache: an array of `RECORD` that lies in the file."""
    return np.memmap(folder / RECORDS, dtype=RECORD, mode="r+" if writable else "r")


def find_changed(records: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Return which of some images' files are gone or other than when they were decoded (P,).

    Images that were not decoded are not among them.
    """
    now = np.array([_size_and_time(path) for path in paths.tolist()], dtype=np.int64).reshape(-1, 2)
    other_size = now[:, 0] != records["size"]
    suspect = np.flatnonzero((records["state"] == DONE) & (other_size | (now[:, 1] != records["time"])))
    # A copied data set has other times and the same content.
    same = [not other_size[k] and source_digest(paths[k]) == tuple(records["digest"][k].tolist()) for k in suspect]
    return suspect[~np.array(same, dtype=bool)]


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        return stat_image(path)
    except OSError:
        return -1, -1


def source_digest(path: str) -> tuple[int, int]:
    """Return the 128-bit BLAKE2b hash of an image file, or of a tar's member, as two integers.

    Raises:
        ImageError: it cannot be opened.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open_image(path, path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    low, high = np.frombuffer(digest.digest(), dtype="<u8").tolist()
    return low, high


def _read_faults(folder: Path, numbers: np.ndarray) -> dict[int, tuple[str, str]]:
    """Return (reason, message) of the images that could not be read; of several lines about one the last holds."""
    faults = dict.fromkeys(numbers.tolist(), ("unreadable", "it could not be read when the cache was built"))
    if not len(numbers):
        return faults
    with open(folder / BAD, encoding="utf-8") as file:
        for place, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                number, reason, message = line["row"], str(line["reason"]), str(line["error"])
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{folder / BAD}, line {place}: not the record of a bad image: {error}") from error
            if number in faults:
                faults[number] = (reason, message)
    return faults


def _find_rows(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Return the numbers in the cache of the images with these ids."""
    held = read_json(folder / IDS)
    wanted = ids.tolist()
    if held == wanted:
        return np.arange(len(wanted))
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise DataError(f"{folder / IDS}: a list of ids was wanted; remove the cache and build it again")
    number = {name: place for place, name in enumerate(held)}
    try:
        return np.array([number[name] for name in wanted], dtype=np.int64)
    except KeyError as error:
        lacking = sum(name not in number for name in wanted)
        raise ValueError(f"{folder} lacks {lacking:,} images of the table, the first of them {error}") from None
