"""Images decoded once into a memory-mapped file, from which a loader copies them instead of decoding them again.

A cache is a folder: `pixels.u8`, the images one after the other, uint8 (N, H, W, C); `records.bin`, for each of them
whether it is done and what its file was like (size, time, BLAKE2b hash); `ids.json`, their ids in the order of the
table, so that the number of an image is its row; `bad.jsonl`, what could not be read; `cache.json`, the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mlabel._checks import DataError, check_between, check_positive, resolve
from mlabel._files import read_json, to_json, write_atomically
from mlabel.data.images import MAX_PIXELS, WHITE, ImageError, check_options, open_image, read_image
from mlabel.data.table import ImageTable
from mlabel.data.transforms import Transform, augmentation

Progress = Callable[[Iterable["Decoded"], int, str], Iterable["Decoded"]]

_FORMAT = "mlabel.cache/1"
_PIXELS, _RECORDS, _IDS, _BAD, _HEADER = "pixels.u8", "records.bin", "ids.json", "bad.jsonl", "cache.json"
_RECORD = np.dtype([("state", "u1"), ("size", "<i8"), ("time", "<i8"), ("digest", "<u8", 2)])
_EMPTY, _DONE, _FAULTY = 0, 1, 2
_FLUSH = 1024  # images decoded between two times that they are made safe on the disk
_CHECKS = {"source": True, "none": False}


class Decoded(NamedTuple):
    """What decoding one image into the cache told.

    Attributes:
        row: Of the table.
        source: What its file is like: size in bytes, time of its last change in ns, and hash as two integers.
        fault: (reason, message) where it could not be read, else None.
    """

    row: int
    source: tuple[int, int, tuple[int, int]] = (0, 0, (0, 0))
    fault: tuple[str, str] | None = None


@dataclass(frozen=True)
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
        header = _read_header(folder)
        shape = _shape(header)
        _check_file(folder / _PIXELS, int(np.prod(shape, dtype=np.int64)))
        _check_file(folder / _RECORDS, shape[0] * _RECORD.itemsize)
        states = _open_records(folder)["state"]
        missing = int((states == _EMPTY).sum())
        if missing:
            raise DataError(f"{folder}: not finished, {missing:,} of {shape[0]:,} images are missing; build it again")
        faults = _read_faults(folder, np.flatnonzero(states == _FAULTY))
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
        pixels = np.memmap(self.folder / _PIXELS, dtype=np.uint8, mode="r", shape=self.shape)
        with warnings.catch_warnings():
            # It cannot be written to, as torch says; only copies of it leave this class.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.asarray(pixels))

    def read(self, row: int) -> torch.Tensor:
        """Return a copy of an image, uint8 (C, H, W), whose channels lie together in memory.

        Raises:
            ImageError: it could not be read when the cache was built.
        """
        number = int(self.rows[row])
        if number in self.faults:
            reason, message = self.faults[number]
            raise ImageError(message, reason)
        return self._pixels[number].clone().permute(2, 0, 1)

    def has_fault(self, rows: Sequence[int] | np.ndarray) -> bool:
        """Return whether one of these images could not be read."""
        return bool(self.faults) and any(number in self.faults for number in self.rows[rows].tolist())

    def take(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return copies of several images at once, uint8 (n, C, H, W); those that could not be read are black."""
        # NumPy's take copies whole images; torch's index goes through them element by element.
        return torch.from_numpy(np.take(self._pixels.numpy(), self.rows[rows], axis=0)).permute(0, 3, 1, 2)


def build_cache(
    table: ImageTable,
    folder: str | Path,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    augment: str | Transform = "none",
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
    num_workers: int = 0,
    on_bad: str = "error",
    max_bad: float = 0.001,
    progress: Progress | None = None,
) -> ImageCache:
    """Decode the images of `table` into a cache in `folder`, or finish one that was begun, and return it.

    What is there already is kept, unless its file has changed since; so an interrupted call is repeated to go on.

    Args:
        table: Whose images. Labels do not matter: they are taken from the table that the cache is used with.
        folder: Made if it is not there.
        image_size: Side, or height and width, that the model wants.
        channels: 3 for RGB, 1 for grey.
        augment: The augmentation of the training: those that cut need images an eighth larger than the model does.
        background: The colour under transparent pixels.
        max_pixels: Larger images are refused.
        num_workers: Processes that decode; 0: this one does.
        on_bad: "error" stops at an image that cannot be read; "skip" writes its id and the reason to `bad.jsonl`.
        max_bad: With "skip", the share of the table that may be bad; beyond it the call stops.
        progress: Wraps what is decoded as it comes; gets it, how many are to be decoded, and a title.

    Raises:
        ImageError: an image cannot be read, or with "skip" too many cannot.
        ValueError: the table is empty, or the folder holds a cache of other images or settings.
        FileExistsError: the folder holds something else.
        OSError: the disk is full.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("L", (30, 20), 7).save(folder + "/a.png")
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=[folder + "/a.png"], targets=[[1, 0]], space=space)
        >>> cache = build_cache(table, folder + "/cache", image_size=8)
        >>> cache.shape, int(cache.read(0).max())
        ((1, 8, 8, 3), 7)
        >>> table.cached(folder + "/cache").cache.size
        (8, 8)
    """
    folder = Path(folder)
    skip = resolve(on_bad, {"error": False, "skip": True}, "on_bad")
    check_between(max_bad, 0.0, 1.0, "max_bad")
    check_positive(len(table), "the number of images")
    header = _make_header(table, image_size, channels, augment, background, max_pixels)
    _prepare(folder, header, table.ids)
    records = _open_records(folder, writable=True)
    todo = _rows_to_do(records, table.paths)
    job = _Job(table.paths[todo], todo, folder, header)
    decoded: Iterable[Decoded] = _decode_all(job, num_workers)
    if progress is not None:
        decoded = progress(decoded, len(todo), "decoding")
    _gather(decoded, folder, records, table, max_bad if skip else None)
    return ImageCache.open(folder)


def open_cache(folder: str | Path, table: ImageTable, *, check: str = "source") -> ImageCache:
    """Return the cached images of `table`, in its order; what `ImageTable.cached` puts into it.

    Raises:
        FileNotFoundError, DataError: see `ImageCache.open`.
        ValueError: the cache lacks an image of the table.
        DataError: an image file changed since it was decoded, or is gone.
    """
    checked = resolve(check, _CHECKS, "check")
    cache = ImageCache.open(folder)
    cache = cache[_find_rows(cache.folder, table.ids)]
    if checked:
        records = _open_records(cache.folder)[cache.rows]
        changed = _changed(records, table.paths)
        if len(changed):
            raise DataError(
                f"{folder}: {len(changed):,} image files changed since they were decoded, or are gone, the first of "
                f"them {table.paths[changed[0]]}; build the cache again, which decodes just these anew"
            )
    return cache


def _make_header(
    table: ImageTable,
    image_size: int | tuple[int, int],
    channels: int,
    augment: str | Transform,
    background: tuple[int, int, int],
    max_pixels: int,
) -> dict[str, Any]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_positive(min(height, width), "image_size")
    check_options(channels, background, max_pixels, (height, width))
    height, width = augmentation(augment, (height, width), channels=channels, background=background).read_size
    ids = hashlib.sha256("\n".join(table.ids.tolist()).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "format": _FORMAT,
        "images": len(table),
        "height": height,
        "width": width,
        "channels": channels,
        "background": list(background),
        "max_pixels": max_pixels,
        "ids_sha256": ids,
    }


def _shape(header: dict[str, Any]) -> tuple[int, int, int, int]:
    return header["images"], header["height"], header["width"], header["channels"]


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / _HEADER
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no cache ({_HEADER} is missing); make one with `mlabel cache`")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise DataError(f"{path}: wanted format {_FORMAT!r}; found {found!r}")
    for name in ("images", "height", "width", "channels", "max_pixels"):
        if type(header.get(name)) is not int or header[name] < 1:
            raise DataError(f"{path}: {name} must be a positive integer; got {header.get(name)!r}")
    if not isinstance(header.get("background"), list):
        raise DataError(f"{path}: background must be a list of red, green and blue; got {header.get('background')!r}")
    return header


def _check_file(path: Path, size: int) -> None:
    held = path.stat().st_size if path.is_file() else None
    if held != size:
        found = "it is not there" if held is None else f"it has {held:,}"
        raise DataError(f"{path}: wanted a file of {size:,} bytes; {found}. Remove the cache and build it again")


def _prepare(folder: Path, header: dict[str, Any], ids: np.ndarray) -> None:
    """Make an empty cache in `folder`, or check that the one there is of these images and settings."""
    if (folder / _HEADER).exists():
        held = _read_header(folder)
        other = [
            f"{name} {held.get(name)!r} (now {value!r})" for name, value in header.items() if held.get(name) != value
        ]
        if other:
            raise ValueError(f"{folder} holds a cache of {', '.join(other)}; choose another folder, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    strangers = names - {_PIXELS, _RECORDS, _IDS, _BAD}
    if strangers:
        raise FileExistsError(f"{folder} is no cache and not empty (it holds {min(strangers)}); choose another folder")
    _allocate(folder / _PIXELS, int(np.prod(_shape(header), dtype=np.int64)))
    _allocate(folder / _RECORDS, len(ids) * _RECORD.itemsize)
    write_atomically(folder / _IDS, json.dumps(ids.tolist(), ensure_ascii=True))
    write_atomically(folder / _BAD, "")
    write_atomically(folder / _HEADER, to_json(header))  # the last: with it the folder is a cache


def _allocate(path: Path, size: int) -> None:
    """Make a file of zeros whose place on the disk is reserved: writing to it through memory can then not fail."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            file.truncate(0)
            raise OSError(error.errno, f"no room for {size / 2**30:.2f} GiB: {error.strerror}", str(path)) from error


def _open_records(folder: Path, *, writable: bool = False) -> np.memmap:
    return np.memmap(folder / _RECORDS, dtype=_RECORD, mode="r+" if writable else "r")


def _rows_to_do(records: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Return the rows that are not done, or whose file is another than it was."""
    done = np.flatnonzero(records["state"] == _DONE)
    again = done[_changed(records[done], paths[done])]
    return np.sort(np.concatenate([np.flatnonzero(records["state"] != _DONE), again]))


def _changed(records: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Return which of some images' files are gone or other than when they were decoded; those without one are not."""
    changed = []
    for place, (record, path) in enumerate(zip(records, paths.tolist(), strict=True)):
        if record["state"] == _DONE and not _is_as_recorded(record, path):
            changed.append(place)
    return np.array(changed, dtype=np.int64)


def _is_as_recorded(record: np.void, path: str) -> bool:
    try:
        size, time = _stat(path)
        if size != record["size"]:
            return False
        # A copied data set has other times and the same content.
        return time == record["time"] or _digest(path) == tuple(record["digest"].tolist())
    except (OSError, ImageError):
        return False


def _stat(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _digest(path: str) -> tuple[int, int]:
    digest = hashlib.blake2b(digest_size=16)
    with open_image(path, path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    low, high = np.frombuffer(digest.digest(), dtype="<u8").tolist()
    return low, high


class _Job(Dataset[Decoded]):
    """The images that are to be decoded, each put into its place of the file by whoever decodes it."""

    def __init__(self, paths: np.ndarray, rows: np.ndarray, folder: Path, header: dict[str, Any]) -> None:
        self.paths, self.rows = paths, rows
        self.file, self.shape = folder / _PIXELS, _shape(header)
        self.options = {"channels": header["channels"], "background": tuple(header["background"])}
        self.max_pixels = header["max_pixels"]
        self._pixels: np.memmap | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Decoded:
        if self._pixels is None:
            self._pixels = np.memmap(self.file, dtype=np.uint8, mode="r+", shape=self.shape)
        row, path = int(self.rows[place]), str(self.paths[place])
        try:
            # The hash comes first: were the file changed in between, the cache would be refused, not wrong.
            with open_image(path, path) as file:
                source = (*_stat(path), _digest(path))
                pixels = read_image(file, size=self.shape[1:3], max_pixels=self.max_pixels, **self.options)
        except ImageError as error:
            return Decoded(row, fault=(error.reason, str(error)))
        self._pixels[row] = pixels
        return Decoded(row, source)

    def flush(self) -> None:
        """Wait until what was decoded is on the disk."""
        if self._pixels is not None:
            self._pixels.flush()


def _decode_all(job: _Job, num_workers: int) -> Iterator[Decoded]:
    for batch in DataLoader(job, batch_size=16, num_workers=num_workers, collate_fn=list):
        yield from batch


def _gather(
    decoded: Iterable[Decoded], folder: Path, records: np.memmap, table: ImageTable, max_bad: float | None
) -> None:
    """Note what was decoded, `_FLUSH` at a time; stop where an image is bad, or too many are."""
    pending: list[Decoded] = []
    bad = 0
    try:
        for each in decoded:
            pending.append(each)
            if each.fault is not None:
                bad += 1
                _refuse_bad(each, bad, table, max_bad)
            if len(pending) >= _FLUSH:
                _note(pending, folder, records, table)
                pending = []
    finally:
        _note(pending, folder, records, table)


def _refuse_bad(each: Decoded, bad: int, table: ImageTable, max_bad: float | None) -> None:
    assert each.fault is not None
    reason, message = each.fault
    if max_bad is None:
        raise ImageError(f"sample {str(table.ids[each.row])!r}: {message}", reason)
    if bad > max_bad * len(table):
        raise ImageError(
            f"{bad} of {len(table)} images cannot be read, more than max_bad ({max_bad:.2%}); the last: {message}",
            "too_many",
        )


def _note(decoded: Sequence[Decoded], folder: Path, records: np.memmap, table: ImageTable) -> None:
    """Write the records of what was decoded: pixels first, so that what is recorded is there whatever happens."""
    if not decoded:
        return
    np.memmap(folder / _PIXELS, dtype=np.uint8, mode="r+").flush()
    with open(folder / _BAD, "a", encoding="utf-8") as file:
        for row, _, fault in decoded:
            if fault is not None:
                line = {"id": str(table.ids[row]), "row": row, "reason": fault[0], "error": fault[1]}
                file.write(json.dumps(line) + "\n")
    for each in decoded:
        state = _DONE if each.fault is None else _FAULTY
        records[each.row] = (state, *each.source)
    records.flush()


def _read_faults(folder: Path, numbers: np.ndarray) -> dict[int, tuple[str, str]]:
    """Return (reason, message) of the images that could not be read; of several lines about one the last holds."""
    faults = dict.fromkeys(numbers.tolist(), ("unreadable", "it could not be read when the cache was built"))
    if not len(numbers):
        return faults
    with open(folder / _BAD, encoding="utf-8") as file:
        for place, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                number, reason, message = line["row"], str(line["reason"]), str(line["error"])
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{folder / _BAD}, line {place}: not the record of a bad image: {error}") from error
            if number in faults:
                faults[number] = (reason, message)
    return faults


def _find_rows(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Return the numbers in the cache of the images with these ids."""
    held = read_json(folder / _IDS)
    wanted = ids.tolist()
    if held == wanted:
        return np.arange(len(wanted))
    number = {name: place for place, name in enumerate(held)}
    try:
        return np.array([number[name] for name in wanted], dtype=np.int64)
    except KeyError as error:
        lacking = sum(name not in number for name in wanted)
        raise ValueError(f"{folder} lacks {lacking:,} images of the table, the first of them {error}") from None
