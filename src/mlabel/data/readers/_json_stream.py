"""A large JSON object read piece by piece: the members of its lists one at a time, so that memory stays bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlabel._checks import DataError
from mlabel.data.readers._lines import MAX_LINE_BYTES, refuse_constant

_CHUNK = 1 << 20
_SPACE = " \t\n\r"


def read_object(path: str | Path) -> Iterator[tuple[str, int | None, Any]]:
    """Yield what a JSON object in a file holds: key, place and value of each member of a list, else key, None, value.

    An empty list yields nothing but its key: key, -1 and None.

    Args:
        path: A file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not standard JSON (which has no NaN), not an object, has a key twice, or a member of it is
            nested too deeply or longer than `MAX_LINE_BYTES`; with the file and the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, encoding="utf-8-sig") as file:
        stream = _Stream(path, file)
        stream.expect("{")
        seen: set[str] = set()
        while not stream.take("}"):
            if seen:
                stream.expect(",")
            stream.where = "a key"
            key = stream.value()
            if not isinstance(key, str) or key in seen:
                raise stream.fail(f"a new key was wanted; found {key!r:.80}")
            seen.add(key)
            stream.where = key
            stream.expect(":")
            yield from _members(stream, key)
        stream.expect_end()


def _members(stream: _Stream, key: str) -> Iterator[tuple[str, int | None, Any]]:
    if not stream.take("["):
        yield key, None, stream.value()
        return
    place = 0
    while not stream.take("]"):
        if place:
            stream.expect(",")
        stream.where = f"{key}[{place}]"
        yield key, place, stream.value()
        place += 1
    if not place:
        yield key, -1, None


class _Stream:
    """A window on the text of a file that moves on as values are read.

    Attributes:
        where: What is being read, for messages.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.where = "the beginning"
        self._path, self._file = path, file
        self._text, self._at, self._before = "", 0, 0
        self._decode = json.JSONDecoder(parse_constant=refuse_constant).raw_decode

    def fail(self, problem: str) -> DataError:
        """Return the error for the present place, to be raised."""
        return DataError(f"{self._path}, {self.where} (character {self._before + self._at + 1}): {problem}")

    def take(self, sign: str) -> bool:
        """Return whether `sign` comes next, and go past it where it does."""
        found = self._next() == sign
        self._at += found
        return found

    def expect(self, sign: str) -> None:
        """Go past `sign`, or raise DataError."""
        if not self.take(sign):
            found = self._next()
            raise self.fail(f"not JSON: {sign!r} was wanted; found {repr(found) if found else 'the end of the file'}")

    def expect_end(self) -> None:
        """Raise DataError where anything but space follows."""
        self.where = "the end"
        if self._next():
            raise self.fail(f"not JSON: the end of the file was wanted; found {self._next()!r}")

    def value(self) -> Any:
        """Return the next value."""
        self._next()
        while True:
            value, end, problem = self._try()
            # A value may be cut by the window, and a number that ends with it may go on behind it.
            whole = not problem and end < len(self._text)
            if whole or not self._more():
                self._at = end
                if problem:
                    raise self.fail(f"not JSON: {problem}")
                return value

    def _try(self) -> tuple[Any, int, str]:
        """Return the next value, where it ends and "", or None, where it goes wrong and why."""
        try:
            return *self._decode(self._text, self._at), ""
        except json.JSONDecodeError as error:
            return None, error.pos, error.msg
        except RecursionError:
            raise self.fail("the JSON is nested too deeply") from None
        except ValueError as error:
            raise self.fail(f"not JSON: {error}") from None

    def _next(self) -> str:
        """Return the next character that is not space, without going past it; an empty text at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        """Read on, drop what lies behind, and return whether there was more."""
        kept = len(self._text) - self._at
        if kept > MAX_LINE_BYTES:
            raise self.fail(f"the value is longer than {MAX_LINE_BYTES:,} characters, or not JSON")
        try:
            # Twice as much each time: a value is then decoded again a few times only, however long it is.
            text = self._file.read(max(_CHUNK, kept))
        except UnicodeDecodeError as error:
            raise self.fail(f"not UTF-8: {error}") from None
        if not text:
            return False
        self._before += self._at
        self._text, self._at = self._text[self._at :] + text, 0
        return True
