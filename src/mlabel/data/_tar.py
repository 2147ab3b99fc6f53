"""Uncompressed tar files as what they are: named ranges of bytes. Nothing is ever extracted.

Headers are written so that equal members give equal bytes, and read from any of the tar formats in use: POSIX 1988
(ustar), POSIX 2001 (pax) and GNU long names (POSIX.1-2017, section "pax", extended description).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlabel._checks import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_NAME = 100  # bytes of a name that every format of tar holds

_MAX_EXTENSION = 1 << 20  # bytes of an extended header: names and times, not data
_ZERO = bytes(BLOCK)
_NUMBER = re.compile(rb"[0-7]+")
_REGULAR, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_EXTENSIONS = (b"x", b"g", b"L", b"K")
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class Member(NamedTuple):
    """A regular file in a tar: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """Return the header of a regular file: the same for every user, time and machine.

    Raises:
        ValueError: a name of more than 100 bytes, or a size of 8 GiB or more.
    """
    if len(name.encode()) > MAX_NAME or not 0 <= size < 1 << 33:
        raise ValueError(f"a member of a tar cannot be called {name!a:.120} and have {size} bytes")
    mode_and_owner = b"0000644\0" + 2 * b"0000000\0"
    before = name.encode().ljust(100, b"\0") + mode_and_owner + b"%011o\0%011o\0" % (size, 0)
    behind = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - len(before) - 8, b"\0")
    checksum = sum(before) + sum(behind) + 8 * ord(" ")
    return before + b"%06o\0 " % checksum + behind


def padded(size: int) -> int:
    """Return how many bytes `size` bytes take in a tar, which consists of blocks of 512."""
    return -(-size // BLOCK) * BLOCK


def walk(path: str | Path) -> Iterator[Member]:
    """Yield the regular files of a tar in their order, having read headers alone. Folders are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a member given twice, a name that leads out of a folder, a link, device or pipe, a damaged header,
            or an end that comes too soon; with the tar and the member.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    seen: set[str] = set()
    with open(path, "rb", buffering=0) as file:
        for kind, name, offset, size in _headers(file.fileno(), str(path)):
            name = _checked(name, f"{path}, byte {offset - BLOCK}")
            where = f"{path}, member {name!a:.80}"
            if kind in _REFUSED:
                raise DataError(f"{where}: {_REFUSED[kind]}; only regular files are read")
            if kind == _DIRECTORY:
                continue
            if kind not in _REGULAR:
                raise DataError(f"{where}: of unknown kind {kind!r}; only regular files are read")
            if name in seen or not name:
                raise DataError(f"{where}: {'given twice' if name else 'a file without a name'}")
            seen.add(name)
            yield Member(name, offset, size)


def starts_with(path: str | Path, name: str, offset: int, size: int) -> bool:
    """Return whether the header before `offset` is that of a regular file of this name and size."""
    try:
        wanted = header(name, size)
    except ValueError:  # no header says this
        return False
    with open(path, "rb", buffering=0) as file:
        file.seek(offset - BLOCK)
        return file.read(BLOCK) == wanted


def _headers(file: int, path: str) -> Iterator[tuple[bytes, str, int, int]]:
    """Yield kind, name, offset and size of each member, extended headers already applied."""
    end = os.fstat(file).st_size
    position = 0
    given: dict[str, str] = {}  # what an extended header says of the member that follows
    while (block := os.pread(file, BLOCK, position)) != _ZERO:
        where = f"{path}, byte {position}"
        if len(block) < BLOCK:
            raise DataError(f"{where}: the tar ends here, without the mark of its end; it was cut, or is still written")
        kind, name, size = _parse(block, where)
        if "size" in given and kind not in _EXTENSIONS:
            size = _decimal(given["size"], where)
        offset = position + BLOCK
        if offset + size > end:
            raise DataError(
                f"{where}: member {name!a:.80} has {size:,} bytes, of which the tar holds {end - offset:,}; it was cut"
            )
        position = offset + padded(size)
        if kind in _EXTENSIONS:
            given |= _extension(file, kind, offset, size, where)
        else:
            yield kind, given.get("path", name), offset, size
            given = {}


def _parse(block: bytes, where: str) -> tuple[bytes, str, int]:
    """Return kind, name and size that a header gives."""
    checksum = _number(block[148:156], where)
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise DataError(f"{where}: not the header of a tar member: its checksum does not fit")
    name = block[:100].split(b"\0")[0]
    if block[257:265] == b"ustar\x0000":
        prefix = block[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return block[156:157], _text(name, where), _number(block[124:136], where)


def _number(field: bytes, where: str) -> int:
    """Return a number of a header: octal digits, or, for large ones, binary after a first byte of 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if _NUMBER.fullmatch(digits) is None:
        raise DataError(f"{where}: not the header of a tar member: {field!r} is not a number")
    return int(digits, 8)


def _decimal(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DataError(f"{where}: an extended header gives the size {text!a:.80}")
    return int(text)


def _text(name: bytes, where: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where}: the member's name {name!r:.80} is not UTF-8") from None


def _extension(file: int, kind: bytes, offset: int, size: int, where: str) -> dict[str, str]:
    """Return what an extended header says of the next member: its path and size, where given."""
    if size > _MAX_EXTENSION:
        raise DataError(f"{where}: an extended header of {size:,} bytes; {_MAX_EXTENSION:,} are allowed")
    content = os.pread(file, size, offset)
    if kind == b"L":
        return {"path": _text(content.rstrip(b"\0"), where)}
    if kind == b"K":
        return {}  # the target of a link, which is refused anyway
    records = _pax_records(content, where)
    if any(name.startswith("GNU.sparse") for name in records):
        raise DataError(f"{where}: a sparse file; only regular files are read")
    held = {name: value for name, value in records.items() if name in ("path", "size")}
    if kind == b"g" and held:
        raise DataError(f"{where}: a header for all members gives their {min(held)}")
    return held


def _pax_records(content: bytes, where: str) -> dict[str, str]:
    """Return the records `length name=value` of an extended header."""
    records: dict[str, str] = {}
    place = 0
    while place < len(content):
        length = content[place : place + 9].split(b" ")[0]
        end = place + (int(length) if length.isdigit() else 0)
        name, equals, value = content[place + len(length) + 1 : end - 1].partition(b"=")
        if end <= place or end > len(content) or content[end - 1 : end] != b"\n" or not equals:
            raise DataError(f"{where}: damaged extended header")
        if name.startswith((b"path", b"size", b"GNU.sparse")):
            records[_text(name, where)] = _text(value, where)
        place = end
    return records


def _checked(name: str, where: str) -> str:
    """Return a member's name without `./`, refused if it leads out of a folder."""
    if name.startswith("/") or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        raise DataError(f"{where}: the member's name {name!a:.80} is absolute, or has a backslash, NUL or drive letter")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{where}: the member's name {name!a:.80} leads out of its folder")
    return "/".join(parts)
