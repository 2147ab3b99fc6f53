"""What may be wrong with shards: a tar that is cut, an index of another one, bytes that are not those written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError
from mlabel._files import digest
from mlabel.data._shard_index import MANIFEST, ShardIndex, check_space, index_path, load_space, read_manifest
from mlabel.data._tar import starts_with, walk
from mlabel.labels import LabelSpace

_CHUNK = 1 << 20


def verify_shards(
    folder: str | Path, *, progress: Callable[[Iterable[Any], int, str], Iterable[Any]] | None = None
) -> list[str]:
    """Return what is wrong with the shards in `folder`, a sentence each, having read all their bytes; [] if nothing is.

    Every image is compared with its checksum, then every tar and index as a whole; headers are looked at.

    Args:
        folder: Of the shards, or one tar.
        progress: Wraps the tars as they are verified.

    Raises:
        FileNotFoundError: there is no tar.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data import ImageTable, write_shards
        >>> from mlabel.labels import Group, LabelSpace
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("L", (30, 20), 7).save(folder + "/a.png")
        >>> table = ImageTable(paths=[folder + "/a.png"], targets=[[1]], space=LabelSpace([Group("tags", ["cat"])]))
        >>> tars = write_shards(table, folder + "/shards").names
        >>> verify_shards(folder + "/shards")
        []
    """
    tars = find_tars(folder)
    problems: list[str] = []
    space: LabelSpace | None = None
    try:
        space = load_space(tars[0].parent)
        manifest = read_manifest(tars[0].parent) if Path(folder).is_dir() else None
        if manifest is not None:
            problems += [*_manifest_mismatch(Path(folder), manifest, tars), *manifest_problems(Path(folder), manifest)]
    except DataError as error:
        problems.append(str(error))
    for tar in tars if progress is None else progress(tars, len(tars), "verifying"):
        problems += _tar_problems(tar, space)
    return problems


def find_tars(folder: str | Path) -> list[Path]:
    """Return the tars in a folder by name, or the one tar that is given in its place.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    tars = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not tars:
        what = "no tar in this folder" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}; a folder of shards was wanted, which `mlabel shard` writes")
    return tars


def check_manifest(folder: Path, tars: list[Path]) -> None:
    """Raise DataError unless the folder holds the tars that its `shards.json`, if there is one, tells of."""
    manifest = read_manifest(folder)
    for problem in () if manifest is None else _manifest_mismatch(folder, manifest, tars):
        raise DataError(problem)


def size_problem(tar: Path, index: ShardIndex) -> str | None:
    """Return what shows, at little cost, that an index is not that of its tar, or that this is cut; None: nothing."""
    held = tar.stat().st_size
    if held != index.tar_size:
        return f"{tar} has {held:,} bytes, and its index is of a tar of {index.tar_size:,}"
    for place in {0, len(index) - 1} if len(index) else ():
        offset, size = int(index.offsets[place]), int(index.sizes[place])
        if not starts_with(tar, index.members[place], offset, size):
            return f"{tar} has no member {index.members[place]!a:.120} at byte {offset}: its index is of another tar"
    return None


def content_problems(tar: Path, index: ShardIndex) -> Iterator[str]:
    """Yield each way in which the bytes of a tar are not those that its index tells of; the tar is read once."""
    whole = sha256()
    wrong = 0
    with open(tar, "rb") as file:
        for place in np.argsort(index.offsets).tolist():
            _feed(file, int(index.offsets[place]) - file.tell(), [whole])
            member = sha256()
            _feed(file, int(index.sizes[place]), [whole, member])
            if member.hexdigest() != index.hashes[place]:
                wrong += 1
                name, sample = index.members[place], index.ids[place]
                yield f"{tar}, member {name!a:.120} (id {sample!a:.120}): its bytes are not those that were written"
        _feed(file, max(0, index.tar_size - file.tell()), [whole])
    if not wrong and whole.hexdigest() != index.tar_sha256:
        yield f"{tar}: something besides its images is not what was written: headers, labels, or what fills the blocks"


def manifest_problems(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield each index that is not the one that was written."""
    for shard in manifest["shards"]:
        path = index_path(folder / shard["name"])
        if path.is_file() and digest(path)["sha256"] != shard["index_sha256"]:
            yield f"{path}: not the index that was written"


def _manifest_mismatch(folder: Path, manifest: dict[str, Any], tars: list[Path]) -> Iterator[str]:
    """Yield each way in which the tars in a folder are not those of its manifest."""
    if not manifest["complete"]:
        yield f"{folder}: not finished; write the shards again with the same settings, which goes on where it stopped"
        return
    found = {tar.name for tar in tars}
    named = {shard["name"] for shard in manifest["shards"]}
    for name in sorted(named - found):
        yield f"{folder / name}: is not there, but {MANIFEST} tells of it"
    for name in sorted(found - named):
        yield f"{folder / name}: {MANIFEST} does not tell of it; move it elsewhere"


def _tar_problems(tar: Path, space: LabelSpace | None) -> Iterator[str]:
    """Yield what is wrong with one tar: its headers, its index, its bytes."""
    try:
        for _ in walk(tar):
            pass
    except DataError as error:
        yield str(error)
    try:
        index = ShardIndex.load(index_path(tar))
        if space is not None:
            check_space(index_path(tar), index.space, space)
    except FileNotFoundError:
        yield f"{tar}: has no index ({index_path(tar).name}), and so no checksums"
    except DataError as error:
        yield str(error)
    else:
        problem = size_problem(tar, index)
        yield from content_problems(tar, index) if problem is None else [problem]


def _feed(file: Any, size: int, digests: Sequence[Any]) -> None:
    """Read `size` bytes, or as many as there are, into some digests."""
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        size -= len(piece)
        for each in digests:
            each.update(piece)
