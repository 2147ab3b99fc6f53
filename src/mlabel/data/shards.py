"""Shards: the images of a table, with their labels, in a few large tar files instead of many small files.

A folder of shards holds `shard-000000.tar` and so on, uncompressed, each with pairs of members `key.jpg` (the bytes of
the image file as they were) and `key.json` (its labels), which is the layout of WebDataset; beside each tar its index,
by which `read_shards` finds any image without the others; `labels.json`, the label space; and `shards.json`, which says
of which table and settings all this was made, and whether it is finished.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, check_between, check_positive, resolve
from mlabel._files import digest, sync_folder, to_json, write_atomically
from mlabel.data._shard_index import LABELS, MANIFEST, MANIFEST_FORMAT, ShardIndex, index_path, read_manifest
from mlabel.data._tar import BLOCK, END, MAX_NAME, header, padded
from mlabel.data.images import MAX_MEMBER_BYTES, ImageError, image_format, open_image, stat_image, too_many_bad
from mlabel.data.shard_checks import size_problem
from mlabel.data.table import ImageTable

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
# An id of this form is its own key, unless it looks like the key of another id.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_DERIVED = re.compile(r".*-[0-9a-f]{20}", re.DOTALL)
_MAX_KEY = MAX_NAME - len(".json")
_ON_BAD = {"error": False, "skip": True}


@dataclass(frozen=True)
class WrittenShards:
    """What `write_shards` has made.

    Attributes:
        folder: Where.
        names: Of the tars.
        num_samples: In them.
        num_bytes: Bytes of the tars, without their indices.
        num_kept: How many of the tars were there already.
        skipped: Ids and reasons of the images that could not be read.
    """

    folder: Path
    names: tuple[str, ...]
    num_samples: int
    num_bytes: int
    num_kept: int
    skipped: tuple[tuple[str, str], ...]


def write_shards(
    table: ImageTable,
    folder: str | Path,
    *,
    shard_bytes: int = 512 << 20,
    seed: int | None = None,
    on_bad: str = "error",
    max_bad: float = 0.001,
    progress: Progress | None = None,
) -> WrittenShards:
    """Write the images of `table`, with labels, parts and groups, to tars in `folder`, or finish what was begun.

    The bytes of the image files are copied as they are; nothing is decoded, but what does not begin like an image is
    refused. Tars that are there already, of the same table and settings, are kept; so an interrupted call is repeated
    to go on. Equal tables give equal bytes. `read_shards` reads the table back.

    Args:
        table: Whose images. They may lie in other shards.
        folder: Made if it is not there.
        shard_bytes: Size of a tar at most, in bytes; one that holds a single image may be larger.
        seed: Shuffles the samples over all tars, for programs that read tars from start to end. None: table order.
            `read_shards` needs no shuffling here: its table is shuffled by the loader.
        on_bad: "error" stops at a file that cannot be read; "skip" leaves it out and notes it.
        max_bad: With "skip", the share of the table that may be left out; beyond it the call stops.
        progress: Wraps the rows as they are written; gets them, their number and a title.

    Raises:
        ImageError: a file cannot be read or is no image, or with "skip" too many cannot.
        ValueError: the table is empty, or the folder holds shards of another table or settings.
        FileExistsError: the folder holds something else.
        OSError: the disk is full; what is finished stays.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data.readers.shards import read_shards
        >>> from mlabel.labels import Group, LabelSpace
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("L", (30, 20), 7).save(folder + "/a.png")
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=[folder + "/a.png"], targets=[[1, 0]], space=space)
        >>> write_shards(table, folder + "/shards").names
        ('shard-000000.tar',)
        >>> again = read_shards(folder + "/shards")
        >>> again.ids.tolist(), again.space.decode(again.targets), again.fingerprint == table.fingerprint
        (['a'], [['cat']], True)
    """
    folder = Path(folder)
    skip = resolve(on_bad, _ON_BAD, "on_bad")
    check_between(max_bad, 0.0, 1.0, "max_bad")
    check_positive(shard_bytes, "shard_bytes")
    check_positive(len(table), "the number of images")
    manifest = _manifest_of(table, shard_bytes, seed)
    _claim(folder, manifest)
    table.space.save(folder / LABELS)
    indices = _finished(folder)
    order = np.arange(len(table)) if seed is None else np.random.default_rng(seed).permutation(len(table))
    budget = _Budget(len(table), max_bad if skip else None, [bad for index in indices for bad in index.skipped])
    num_kept = len(indices)
    start = indices[-1].rows[1] if indices else 0
    rows: Iterable[int] = order[start:].tolist()
    if progress is not None:
        rows = progress(rows, len(order) - start, "writing shards")
    indices += _write_all(_Samples(table), rows, folder, start, num_kept, shard_bytes, budget)
    return _conclude(folder, manifest, indices, num_kept, budget.skipped)


def member_key(name: str) -> str:
    """Return the key of the sample with the id `name`: its file name in a tar, without dot, slash or other oddity."""
    if _PLAIN.fullmatch(name) and len(name) <= _MAX_KEY and not _DERIVED.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
    return f"{readable}-{sha256(name.encode()).hexdigest()[:20]}"


class _Budget:
    """How many images may be left out, and which were."""

    def __init__(self, num_images: int, max_bad: float | None, skipped: list[tuple[str, str]]) -> None:
        self.num_images, self.max_bad = num_images, max_bad
        self.skipped: list[tuple[str, str]] = []
        for name, reason in skipped:
            self.skip(name, ImageError(reason))

    def skip(self, name: str, error: ImageError) -> None:
        """Note an image that cannot be read; raise ImageError where that is one too many."""
        if self.max_bad is None:
            raise ImageError(f"sample {name!r}: {error}", error.reason) from error
        self.skipped.append((name, str(error)))
        stop = too_many_bad(len(self.skipped), self.num_images, max_bad=self.max_bad, last=str(error))
        if stop is not None:
            raise stop


class _Samples:
    """The samples of a table as they are written."""

    def __init__(self, table: ImageTable) -> None:
        self.table = table
        self.names = table.space.names
        self.group_names = [group.name for group in table.space.groups]
        self._whole, self._loose = _split_unknown(table)

    def content(self, row: int) -> tuple[bytes, str]:
        """Return the bytes of an image file and the suffix for what they are."""
        path = str(self.table.paths[row])
        with open_image(path, path) as file:
            try:
                size = stat_image(path)[0]
                content = file.read() if size <= MAX_MEMBER_BYTES else b""
            except OSError as error:
                raise ImageError(f"{path}: reading failed: {error.strerror}") from error
        if size > MAX_MEMBER_BYTES:
            raise ImageError(f"{path}: {size:,} bytes, of which {MAX_MEMBER_BYTES:,} are allowed", "too_large")
        return content, _SUFFIXES[image_format(content[:64], path)]

    def known(self, row: int) -> dict[str, Any]:
        """Return what is known about a sample, its labels as columns."""
        table = self.table
        group = None if table.groups is None else table.groups[row]
        return {
            "id": str(table.ids[row]),
            "labels": _columns(table.targets, row),
            "unknown": [] if self._loose is None else _columns(self._loose, row),
            "unknown_groups": [] if self._whole is None else np.flatnonzero(self._whole[row]).tolist(),
            "part": None if table.partition is None else str(table.partition[row]),
            "group": int(group) if isinstance(group, np.integer) else group,
        }

    def to_json(self, known: dict[str, Any]) -> bytes:
        """Return the member `key.json`: what `known` holds, with names."""
        named = {
            **known,
            "labels": [self.names[column] for column in known["labels"]],
            "unknown": [self.names[column] for column in known["unknown"]],
            "unknown_groups": [self.group_names[number] for number in known["unknown_groups"]],
        }
        return json.dumps(named, ensure_ascii=False).encode()


class _Shard:
    """A tar being written under a temporary name."""

    def __init__(self, path: Path, samples: _Samples, first: int) -> None:
        self.path, self.samples, self.rows = path, samples, [first, first]
        self.temporary = _temporary(path)
        self.size = 0
        self.skipped: list[tuple[str, str]] = []
        self._known: list[dict[str, Any]] = []
        self._members: list[tuple[str, int, int, str]] = []
        self._file = open(self.temporary, "wb")  # noqa: SIM115  closed by `close`
        self._whole = sha256()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, row: int, content: bytes, suffix: str, shard_bytes: int) -> bool:
        """Add a sample, unless the tar would become larger than `shard_bytes`; return whether it was added."""
        known = self.samples.known(row)
        text = self.samples.to_json(known)
        size = self.size + 2 * BLOCK + padded(len(content)) + padded(len(text)) + len(END)
        if len(self) and size > shard_bytes:
            return False
        key = member_key(known["id"])
        offset = self._append(key + suffix, content)
        self._append(key + ".json", text)
        self._members.append((key + suffix, offset, len(content), sha256(content).hexdigest()))
        self._known.append(known)
        return True

    def finish(self) -> ShardIndex:
        """Give the tar and then its index their names, all of it on the disk; return the index."""
        self._write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = self._index()
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)
        write_atomically(index_path(self.path), index.to_json())
        return index

    def close(self) -> None:
        """Remove what did not get its name."""
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def _append(self, name: str, content: bytes) -> int:
        self._write(header(name, len(content)))
        offset = self.size
        self._write(content)
        self._write(bytes(padded(len(content)) - len(content)))
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._whole.update(content)
        self.size += len(content)

    def _index(self) -> ShardIndex:
        members, offsets, sizes, hashes = map(list, zip(*self._members, strict=True))
        columns = {name: [known[name] for known in self._known] for name in self._known[0]}
        return ShardIndex(
            space=self.samples.table.space,
            tar_size=self.size,
            tar_sha256=self._whole.hexdigest(),
            rows=(self.rows[0], self.rows[1]),
            skipped=self.skipped,
            members=members,
            ids=columns["id"],
            offsets=np.array(offsets, dtype=np.int64),
            sizes=np.array(sizes, dtype=np.int64),
            hashes=hashes,
            labels=columns["labels"],
            unknown=columns["unknown"],
            unknown_groups=columns["unknown_groups"],
            parts=columns["part"] if self.samples.table.partition is not None else None,
            groups=columns["group"] if self.samples.table.groups is not None else None,
        )


def _write_all(
    samples: _Samples, rows: Iterable[int], folder: Path, start: int, number: int, shard_bytes: int, budget: _Budget
) -> list[ShardIndex]:
    """Write the samples of `rows`, the first of them number `start` of all, to tars numbered from `number` on."""
    indices: list[ShardIndex] = []
    with _closing(_Shard(_tar_path(folder, number), samples, start)) as opened:
        for row in rows:
            shard = opened[0]
            try:
                content, suffix = samples.content(row)
            except ImageError as error:
                budget.skip(str(samples.table.ids[row]), error)
                shard.skipped.append(budget.skipped[-1])
            else:
                if not shard.add(row, content, suffix, shard_bytes):
                    indices.append(shard.finish())
                    path = _tar_path(folder, number + len(indices))
                    shard = opened[0] = _Shard(path, samples, shard.rows[1])
                    shard.add(row, content, suffix, shard_bytes)
            shard.rows[1] += 1
        if len(opened[0]):
            indices.append(opened[0].finish())
    return indices


@contextmanager
def _closing(shard: _Shard) -> Iterator[list[_Shard]]:
    """Yield a list whose one entry, the shard being written, is closed at the end whatever happens."""
    opened = [shard]
    try:
        yield opened
    finally:
        opened[0].close()


def _split_unknown(table: ImageTable) -> tuple[np.ndarray | None, sp.csr_array | None]:
    """Return of which groups nothing is known, bool (N, G), and what else is not known, CSR bool (N, L).

    An image about which nothing is known is so told by the names of some groups and not by those of all labels.
    """
    if table.unknown is None:
        return None, None
    spans = [table.space.slices[group.name] for group in table.space.groups]
    counts = [np.diff(table.unknown[:, span].indptr) == span.stop - span.start for span in spans]
    whole = np.stack(counts, axis=1)
    group_of = np.repeat(np.arange(len(spans)), [span.stop - span.start for span in spans])
    rows = np.repeat(np.arange(len(table)), np.diff(table.unknown.indptr))
    keep = ~whole[rows, group_of[table.unknown.indices]]
    places = (rows[keep], table.unknown.indices[keep])
    return whole, sp.csr_array((np.ones(int(keep.sum()), dtype=bool), places), shape=table.unknown.shape)


def _columns(matrix: sp.csr_array, row: int) -> list[int]:
    columns: list[int] = np.sort(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]).tolist()
    return columns


def _fingerprint(table: ImageTable) -> str:
    """Return a SHA-256 over all that shards hold of a table besides the images."""
    more = [None if values is None else values.tolist() for values in (table.partition, table.groups)]
    return sha256(json.dumps([table.fingerprint, *more]).encode()).hexdigest()


def _tar_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _manifest_of(table: ImageTable, shard_bytes: int, seed: int | None) -> dict[str, Any]:
    settings = {"shard_bytes": int(shard_bytes), "seed": seed}
    return {"format": MANIFEST_FORMAT, "table": _fingerprint(table), "samples": len(table), "settings": settings}


def plan_shards(
    table: ImageTable, folder: str | Path, *, shard_bytes: int = 512 << 20, seed: int | None = None
) -> tuple[int, int]:
    """Return how many tars of `write_shards` are in `folder` already, and how many images are in them.

    Nothing is written.

    Args:
        table: As in `write_shards`, like the arguments not named here.
        folder: The same.
        shard_bytes: Size of a tar at most, in bytes.
        seed: Of the shuffling; None: table order.

    Raises:
        ValueError, FileExistsError: as `write_shards` would.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("L", (30, 20), 7).save(folder + "/a.png")
        >>> table = ImageTable(paths=[folder + "/a.png"], targets=[[1]], space=LabelSpace([Group("tags", ["cat"])]))
        >>> plan_shards(table, folder + "/shards")
        (0, 0)
    """
    check_positive(shard_bytes, "shard_bytes")
    check_positive(len(table), "the number of images")
    if _held(Path(folder), _manifest_of(table, shard_bytes, seed)) is None:
        return 0, 0
    indices = _finished(Path(folder))
    return len(indices), indices[-1].rows[1] if indices else 0


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Make the folder one of these shards, or check that it is; remove what an interrupted call left."""
    held = _held(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if held is not None:
        for leftover in folder.glob(".shard-*.tmp"):
            leftover.unlink(missing_ok=True)
    if held is None or not held["complete"]:
        write_atomically(folder / MANIFEST, to_json({**manifest, "complete": False, "shards": []}))


def _held(folder: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a folder of these shards says about itself; None where there are none.

    Raises:
        FileExistsError: it holds something else.
        ValueError: it holds shards of another table or other settings.
    """
    held = read_manifest(folder)
    if held is None:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
        strangers = names - {LABELS}
        if strangers:
            raise FileExistsError(
                f"{folder} is no folder of shards and not empty (it holds {min(strangers)}); choose another folder"
            )
    elif held["table"] != manifest["table"]:
        raise ValueError(f"{folder} holds shards of another table; choose another folder, or remove it")
    elif held["settings"] != manifest["settings"]:
        raise ValueError(
            f"{folder} holds shards of settings {held['settings']} (now {manifest['settings']}); choose another "
            "folder, or remove it"
        )
    return held


def _finished(folder: Path) -> list[ShardIndex]:
    """Return the indices of the tars that are whole, up to the first that is not."""
    indices: list[ShardIndex] = []
    start = 0
    while True:
        tar = _tar_path(folder, len(indices))
        try:
            index = ShardIndex.load(index_path(tar))
            whole = tar.is_file() and size_problem(tar, index) is None and index.rows[0] == start
        except (FileNotFoundError, DataError):
            whole = False
        if not whole:
            return indices
        indices.append(index)
        start = index.rows[1]


def _conclude(
    folder: Path, manifest: dict[str, Any], indices: list[ShardIndex], num_kept: int, skipped: list[tuple[str, str]]
) -> WrittenShards:
    """Say in the manifest that all is done, and return what."""
    tars = [_tar_path(folder, number) for number in range(len(indices))]
    shards = [
        {
            "name": tar.name,
            "samples": len(index),
            "size": index.tar_size,
            "index_sha256": digest(index_path(tar))["sha256"],
        }
        for tar, index in zip(tars, indices, strict=True)
    ]
    write_atomically(folder / MANIFEST, to_json({**manifest, "complete": True, "shards": shards}))
    return WrittenShards(
        folder,
        tuple(tar.name for tar in tars),
        sum(len(index) for index in indices),
        sum(index.tar_size for index in indices),
        num_kept,
        tuple(skipped),
    )
