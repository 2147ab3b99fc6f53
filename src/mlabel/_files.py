"""Files that are whole or not there: atomic writing, JSON with the place of an error, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlabel._checks import DataError

MAX_JSON = 2**26  # bytes of a JSON file: a larger one is a slip, or an attempt to use up the memory of who reads it


def write_synced(path: Path, content: bytes) -> None:
    """Write `content` to the file `path` and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write the file `path` so that it never holds half of `content`: under a temporary name, then renamed.

    Raises:
        OSError: the disk is full or refuses; what `path` held before is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | Path, holds: str, what: str) -> Iterator[Path]:
    """Give a temporary folder to write in, which then takes the place of `folder`, whole or not at all.

    Args:
        folder: Where to; its parent is made.
        holds: The file by which one that is there already is known to be `what`, and may be replaced.
        what: Such as "a bundle".

    Raises:
        FileExistsError: `folder` is there, is not empty, and does not hold that file.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / holds).is_file() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not {what}, and is left as it is; choose another folder")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_json(value: Any) -> str:
    """Return `value` as readable standard JSON (NaN is refused: JSON has none)."""
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def own_file(folder: Path, name: str, *, most: int | None = None) -> Path:
    """Return the file `name` of a folder that may come from a stranger.

    Where the folder is a snapshot in the Hugging Face Hub's cache, a link to the blobs of its repository is one of its
    own files.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it leads out of the folder, is no file (but a pipe or a device, say), or has more than `most` bytes.
    """
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append((folder.parent.parent / "blobs").resolve())
    if not any(path.resolve().is_relative_to(root) for root in roots):
        raise DataError(f"{path}: a link that leads out of its folder is not followed")
    _check_file(path, most)
    return path


def _check_file(path: Path, most: int | None) -> None:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DataError(f"{path}: a file was wanted; this is a folder, a pipe or a device")
    if most is not None and about.st_size > most:
        raise DataError(f"{path}: at most {most:,} bytes were wanted; got {about.st_size:,}")


def read_json(path: str | Path, *, most: int = MAX_JSON) -> Any:
    """Return what the JSON file `path` holds.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not JSON in UTF-8, no file, or has more than `most` bytes; the message names file and place.
    """
    _check_file(Path(path), most)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def digest(path: Path) -> dict[str, Any]:
    """Return the size of a file in bytes and its SHA-256."""
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
