"""The list of what was skipped: `bad.jsonl`, one JSON object a line, on the disk before training goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from mlabel._checks import DataError
from mlabel._files import write_atomically
from mlabel.data import BadImage

NAME = "bad.jsonl"
_KEYS = ("id", "path", "reason", "where")


class BadLog:
    """The samples that were skipped, each once for each place, kept in a file where one is given.

    A line is `{"id": ..., "path": ..., "reason": ..., "where": ...}`, and `where` is the part that was read, such as
    `train`. Of the reason, which as an error names id and path too, what comes after them is kept. Lines are added as
    samples are skipped and are on the disk when `add` returns, so that whoever is killed has lost none; a line that
    was cut short by a kill is taken away when the file is opened.

    Args:
        path: The file, which need not be there and is not made before a sample is skipped; None: nothing is written.

    Raises:
        DataError: the file is not such a list; the message names the line.

    Example:
        >>> log = BadLog()
        >>> log.add("train", [BadImage("a", "a.jpg", "truncated")] * 2)
        >>> log.count("train"), log.count("val")
        (1, 0)
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._held: dict[tuple[str, str], BadImage] = {}  # by place and id
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def count(self, where: str) -> int:
        """Return how many samples were skipped in the place `where`."""
        return len(self.of(where))

    def of(self, where: str) -> list[BadImage]:
        """Return the samples that were skipped in the place `where`, in the order in which they were."""
        return [image for (place, _), image in self._held.items() if place == where]

    def add(self, where: str, bad: Iterable[BadImage]) -> None:
        """Add the skipped samples `bad`, leaving out those that are already in the list for the place `where`.

        Raises:
            OSError: the disk is full or refuses.
        """
        new = {key: image for key, image in _keyed(where, bad).items() if key not in self._held}
        if not new:
            return
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(map(_line, new, new.values())))
                file.flush()
                os.fsync(file.fileno())
        self._held |= new

    def replace(self, where: str, bad: Iterable[BadImage]) -> None:
        """Put `bad` in the place of all that the list has for `where`; a list that is then empty has no file.

        Raises:
            OSError: the disk is full or refuses; the file is then as it was.
        """
        self._held = {key: image for key, image in self._held.items() if key[0] != where}
        self._held |= _keyed(where, bad)
        if self.path is None:
            return
        if self._held:
            write_atomically(self.path, "".join(map(_line, self._held, self._held.values())))
        else:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                values = json.loads(line)
                name, place, reason, where = (str(values[key]) for key in _KEYS)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: an object with {', '.join(_KEYS)} was wanted") from error
            self._held[where, name] = BadImage(name, place, reason)


def bare_reason(image: BadImage) -> str:
    """Return the reason without the id and path that an error begins with.

    Example:
        >>> bare_reason(BadImage("a", "a.jpg", "sample 'a': a.jpg: empty"))
        'empty'
    """
    return image.reason.removeprefix(f"sample {image.id!r}: ").removeprefix(f"{image.path}: ")


def _keyed(where: str, bad: Iterable[BadImage]) -> dict[tuple[str, str], BadImage]:
    return {(where, image.id): image._replace(reason=bare_reason(image)) for image in bad}


def _line(key: tuple[str, str], image: BadImage) -> str:
    values = {"id": image.id, "path": image.path, "reason": image.reason, "where": key[0]}
    return json.dumps(values, ensure_ascii=False) + "\n"
