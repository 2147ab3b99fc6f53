"""Images read in processes that are thrown away, so that a decoder's crash costs one image and not the survey.

A server, a fresh interpreter, forks a child for every few images. The child has limits of memory and time and writes
no byte to a file. What it says comes back as JSON that is checked; nothing that a decoder may have had a hand in is
unpickled.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mlabel.data.facts import Facts, read_facts

_SECONDS = 60.0  # an image may take
_ROOM = 1 << 29  # bytes beside those of the pixels
_BYTES_A_PIXEL = 16
_ANSWER = 1 << 16  # bytes that an image's facts may have
_TOGETHER = 32  # images that one process reads before it is thrown away
_PIPE = 3  # what a child writes to
_FILES = 256  # more than a fresh interpreter has open
_CODE = "from mlabel.data.isolation import serve; serve()"


def read_isolated(
    paths: np.ndarray, num_workers: int, max_pixels: int, *, seconds: float = _SECONDS
) -> Iterator[Facts]:
    """Yield the facts of each image, in order, having read it in a process that is thrown away.

    Args:
        paths: Of the images (N,).
        num_workers: Servers, and so images that are read at once; 0: one.
        max_pixels: Larger images count as unreadable.
        seconds: After which an image counts as unreadable.

    Raises:
        RuntimeError: a server ended before its images did; the image it was at is named.
    """
    count = min(max(1, num_workers), max(1, len(paths)))
    servers = [_start([str(path) for path in paths[k::count]], max_pixels, seconds) for k in range(count)]
    try:
        for row, path in enumerate(paths):
            server = servers[row % count]
            line = server.stdout.readline() if server.stdout else b""
            if not line.endswith(b"\n"):
                raise RuntimeError(f"the process that reads images ended by itself ({server.wait()}) at {path!s}")
            yield _checked(row, line)
    finally:
        for server in servers:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # and the child that it may be waiting for
            with server:  # closes its pipes and waits
                pass


def _start(paths: list[str], max_pixels: int, seconds: float) -> subprocess.Popen[bytes]:
    """Return a server that was told what to read. It forks, and so has no thread beside its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # -P: modules are not looked for in the working folder, which may be that of the images.
    command = [sys.executable, "-P", "-c", _CODE]
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **threads},
        start_new_session=True,
    )
    assert server.stdin is not None
    with suppress(BrokenPipeError), server.stdin as told:  # one that ended already is noticed by its missing answer
        told.write(json.dumps({"paths": paths, "max_pixels": max_pixels, "seconds": seconds}).encode())
    return server


def serve() -> None:
    """Read what to do from standard input, and answer with a line of JSON for each image."""
    told = json.loads(sys.stdin.buffer.read())
    paths, row = told["paths"], 0
    while row < len(paths):
        for facts in _read_in_child(row, paths[row : row + _TOGETHER], told["max_pixels"], told["seconds"]):
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()
            row += 1


def _read_in_child(first: int, paths: list[str], max_pixels: int, seconds: float) -> Iterator[Facts]:
    """Yield the facts of images, read by one child of this process, up to the first that was the child's end."""
    child = _Child(first, paths, max_pixels)
    for row, path in enumerate(paths, start=first):
        line = child.answer(seconds)
        try:
            facts = _checked(row, line or b"")
        except ValueError:
            how = child.end()
            if line is None:
                yield _fault(row, "slow", path, f"reading it took more than {seconds:g} seconds")
            elif line:
                yield _fault(row, "crashed", path, "the process that decoded it gave no sensible answer")
            else:
                yield _fault(row, "crashed", path, f"it ended the process that decoded it, by {how}")
            return
        yield facts
    child.end()


class _Child:
    """A process that reads some images and is thrown away."""

    def __init__(self, first: int, paths: list[str], max_pixels: int) -> None:
        self._pipe, sending = os.pipe()
        self._unread = b""
        self._pid = os.fork()
        if self._pid == 0:
            _answer_all(sending, first, paths, max_pixels)
        os.close(sending)

    def answer(self, seconds: float) -> bytes | None:
        """Return its next line; what there is without an end of line where it ended; None where time is over."""
        end = time.monotonic() + seconds
        while b"\n" not in self._unread and len(self._unread) < _ANSWER:
            if not select.select([self._pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            more = os.read(self._pipe, _ANSWER)
            if not more:
                break
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def end(self) -> str:
        """End it, and return how it ended."""
        os.kill(self._pid, signal.SIGKILL)  # which does nothing to one that has ended
        os.close(self._pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _answer_all(pipe: int, first: int, paths: list[str], max_pixels: int) -> NoReturn:
    """Read images and write the facts of each to `pipe`, as the child: with nothing else open, and with limits."""
    status = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for kept, target in ((nowhere, 0), (nowhere, 1), (pipe, _PIPE)):
            os.dup2(kept, target)
        os.closerange(_PIPE + 1, _FILES)
        _limit(_ROOM + _BYTES_A_PIXEL * max_pixels)
        for row, path in enumerate(paths, start=first):
            _write_whole(_PIPE, json.dumps(_read_one(row, path, max_pixels)).encode() + b"\n")
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def _read_one(row: int, path: str, max_pixels: int) -> Facts:
    try:
        return read_facts(row, path, max_pixels)
    except MemoryError:
        return _fault(row, "memory", path, "reading it takes more memory than an image may")


def _write_whole(pipe: int, text: bytes) -> None:
    while text:
        text = text[os.write(pipe, text) :]


def _limit(room: int) -> None:
    """Let this process take `room` bytes more than it has, write no byte to a file and leave no core behind."""
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(what, (0, 0))
    pages = Path("/proc/self/statm")
    if pages.exists():  # Linux; elsewhere address space is not limited reliably
        held = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))


def _fault(row: int, reason: str, path: str, message: str) -> Facts:
    return Facts(row, fault=(reason, f"{path}: {message}"))


def _checked(row: int, line: bytes) -> Facts:
    """Return facts from JSON that may be anything.

    Raises:
        ValueError: it is not the facts of an image.
    """
    try:
        held = json.loads(line)
    except RecursionError:
        raise ValueError("facts lie in one list") from None
    if not isinstance(held, list) or len(held) != len(Facts._fields):
        raise ValueError("a list of facts was wanted")
    _, size, pixels, look, fault, notes = held
    numbers = [*_wanted(size, 2, int), *_wanted(pixels, 2, int), look]
    if not all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
        raise ValueError("numbers of 64 bits were wanted")
    if max(size) >= 1 << 31:
        raise ValueError("a side of 31 bits was wanted")
    if fault is not None and not re.fullmatch("[a-z_]{1,20}", _wanted(fault, 2, str)[0]):
        raise ValueError("a reason in one word was wanted")
    if not all(note.isprintable() for note in _wanted(notes, None, str)):
        raise ValueError("notes that can be printed were wanted")
    return Facts(row, tuple(size), tuple(pixels), look, None if fault is None else tuple(fault), tuple(notes))


def _wanted(value: Any, length: int | None, kind: type) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)) or any(type(each) is not kind for each in value):
        raise ValueError(f"a list of {kind.__name__} was wanted")
    return value
