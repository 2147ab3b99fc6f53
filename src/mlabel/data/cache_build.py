"""Building a cache: images decoded by several processes, each into its place of one file, and what was done noted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mlabel._checks import check_between, check_positive, resolve
from mlabel._files import to_json, write_atomically
from mlabel.data.cache import (
    BAD,
    DONE,
    FAULTY,
    FORMAT,
    HEADER,
    IDS,
    PIXELS,
    RECORD,
    RECORDS,
    ImageCache,
    find_changed,
    open_records,
    read_header,
    shape_of,
    source_digest,
)
from mlabel.data.images import (
    MAX_PIXELS,
    WHITE,
    ImageError,
    check_options,
    open_image,
    read_image,
    stat_image,
    too_many_bad,
)
from mlabel.data.table import ImageTable
from mlabel.data.transforms import Transform, augmentation

Progress = Callable[[Iterable["Decoded"], int, str], Iterable["Decoded"]]

_FLUSH = 1024  # images decoded between two times that they are made safe on the disk


class Decoded(NamedTuple):
    """What decoding one image into the cache told.

    Attributes:
        row: Of the table.
        source: What its file is like: size in bytes, time of its last change in ns, and hash as two integers.
        fault: (reason, message) where it could not be read, else None.

    Example:
        >>> Decoded(3, fault=("missing", "gone.png: no such file")).fault[0]
        'missing'
    """

    row: int
    source: tuple[int, int, tuple[int, int]] = (0, 0, (0, 0))
    fault: tuple[str, str] | None = None


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
    records = open_records(folder, writable=True)
    todo = _rows_to_do(records, table.paths)
    job = _Job(table.paths[todo], todo, folder, header)
    decoded: Iterable[Decoded] = _decode_all(job, num_workers)
    if progress is not None:
        decoded = progress(decoded, len(todo), "decoding")
    _gather(decoded, folder, records, table, max_bad if skip else None)
    return ImageCache.open(folder)


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
        "format": FORMAT,
        "images": len(table),
        "height": height,
        "width": width,
        "channels": channels,
        "background": list(background),
        "max_pixels": max_pixels,
        "ids_sha256": ids,
    }


def plan_cache(
    table: ImageTable,
    folder: str | Path,
    *,
    image_size: int | tuple[int, int],
    channels: int = 3,
    augment: str | Transform = "none",
) -> tuple[tuple[int, int, int, int], int]:
    """Return the shape (N, H, W, C) of the cache that `build_cache` would make, and how many images it would decode.

    Nothing is written.

    Args:
        table: As in `build_cache`, like the arguments not named here.
        folder: The same.
        image_size: The same, in pixels.
        channels: The same.
        augment: The same.

    Raises:
        ValueError, FileExistsError: as `build_cache` would.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> table = ImageTable(paths=["a.png", "b.png"], targets=[[1], [0]], space=LabelSpace([Group("tags", ["cat"])]))
        >>> plan_cache(table, tempfile.mkdtemp(), image_size=8)
        ((2, 8, 8, 3), 2)
    """
    folder = Path(folder)
    check_positive(len(table), "the number of images")
    header = _make_header(table, image_size, channels, augment, WHITE, MAX_PIXELS)
    begun = _is_begun(folder, header)
    return shape_of(header), len(_rows_to_do(open_records(folder), table.paths)) if begun else len(table)


def _is_begun(folder: Path, header: dict[str, Any]) -> bool:
    """Return whether `folder` holds a cache of these images and settings.

    Raises:
        ValueError: it holds another one.
        FileExistsError: it holds something else.
    """
    if (folder / HEADER).exists():
        held = read_header(folder)
        other = [
            f"{name} {held.get(name)!r} (now {value!r})" for name, value in header.items() if held.get(name) != value
        ]
        if other:
            raise ValueError(f"{folder} holds a cache of {', '.join(other)}; choose another folder, or remove it")
        return True
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    strangers = names - {PIXELS, RECORDS, IDS, BAD}
    if strangers:
        raise FileExistsError(f"{folder} is no cache and not empty (it holds {min(strangers)}); choose another folder")
    return False


def _prepare(folder: Path, header: dict[str, Any], ids: np.ndarray) -> None:
    """Make an empty cache in `folder`, or check that the one there is of these images and settings."""
    if _is_begun(folder, header):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _allocate(folder / PIXELS, int(np.prod(shape_of(header), dtype=np.int64)))
    _allocate(folder / RECORDS, len(ids) * RECORD.itemsize)
    write_atomically(folder / IDS, json.dumps(ids.tolist(), ensure_ascii=True))
    write_atomically(folder / BAD, "")
    write_atomically(folder / HEADER, to_json(header))  # the last: with it the folder is a cache


def _allocate(path: Path, size: int) -> None:
    """Make a file of zeros whose place on the disk is reserved: writing to it through memory can then not fail."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            file.truncate(0)
            raise OSError(error.errno, f"no room for {size / 2**30:.2f} GiB: {error.strerror}", str(path)) from error


def _rows_to_do(records: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """Return the rows that are not done, or whose file is another than it was."""
    done = np.flatnonzero(records["state"] == DONE)
    again = done[find_changed(records[done], paths[done])]
    return np.sort(np.concatenate([np.flatnonzero(records["state"] != DONE), again]))


class _Job(Dataset[Decoded]):
    """The images that are to be decoded, each put into its place of the file by whoever decodes it."""

    def __init__(self, paths: np.ndarray, rows: np.ndarray, folder: Path, header: dict[str, Any]) -> None:
        self.paths, self.rows = paths, rows
        self.file, self.shape = folder / PIXELS, shape_of(header)
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
                source = (*stat_image(path), source_digest(path))
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
    error = too_many_bad(bad, len(table), max_bad=max_bad, last=message)
    if error is not None:
        raise error


def _note(decoded: Sequence[Decoded], folder: Path, records: np.memmap, table: ImageTable) -> None:
    """Write the records of what was decoded: pixels first, so that what is recorded is there whatever happens."""
    if not decoded:
        return
    np.memmap(folder / PIXELS, dtype=np.uint8, mode="r+").flush()
    with open(folder / BAD, "a", encoding="utf-8") as file:
        for row, _, fault in decoded:
            if fault is not None:
                line = {"id": str(table.ids[row]), "row": row, "reason": fault[0], "error": fault[1]}
                file.write(json.dumps(line) + "\n")
    for each in decoded:
        state = DONE if each.fault is None else FAULTY
        records[each.row] = (state, *each.source)
    records.flush()
