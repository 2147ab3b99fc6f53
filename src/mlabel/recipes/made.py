"""Folders of data that the library makes itself: written whole or not at all, and made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlabel._checks import DataError
from mlabel._files import digest, read_json, to_json

IMAGE_ENDINGS = frozenset({".png", ".jpg"})


def make_once(
    folder: str | Path, write: Callable[[Path], None], *, wanted: Mapping[str, Any], record: str, what: str
) -> Path:
    """Return `folder` as an absolute path, with in it what `write` writes.

    A folder that already holds this is used as it is. Anything else of the same kind is made anew, in a folder
    beside it that is renamed last, so that an interrupted writing leaves nothing that looks finished.

    Args:
        folder: A new or empty folder, or one that this function made.
        write: Writes into the folder that it is given.
        wanted: What it was made from; `format`, the kind, ends in a slash and a version.
        record: The name of the file that keeps that, with sizes and hashes of all files but the images, which are
            counted.
        what: What to call it in the error.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = Path(folder).resolve()
    found = _record_of(folder / record, wanted["format"])
    if found is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else than {what}; name a new or an empty folder")
    if found is None or found != {**wanted, **_contents(folder, record)}:
        _replace(folder, write, dict(wanted), record)
    return folder


def _record_of(path: Path, kind: str) -> dict[str, Any] | None:
    """Return what a folder's record says, or None where it is none of this kind."""
    try:
        record = read_json(path)
    except (FileNotFoundError, DataError):
        return None
    begin = f"{kind.partition('/')[0]}/"
    return record if isinstance(record, dict) and str(record.get("format")).startswith(begin) else None


def _contents(folder: Path, record: str) -> dict[str, Any]:
    """Return how many images lie in a folder, and size and hash of each other file but the record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / record)
    others = [path for path in files if path.suffix not in IMAGE_ENDINGS]
    texts = {path.relative_to(folder).as_posix(): digest(path) for path in others}
    return {"images": len(files) - len(others), "files": texts}


def _replace(folder: Path, write: Callable[[Path], None], wanted: dict[str, Any], record: str) -> None:
    """Write beside the folder, and let what was written take its place."""
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    (fresh / record).write_text(to_json({**wanted, **_contents(fresh, record)}), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
