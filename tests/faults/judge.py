"""Opens a stranger's files in processes of their own, under an audit hook that writes down what they make Python do.

Run as a program with the paths of two JSON files. The first holds lists of cases, `healthy` and `cases`, with `name`,
`kind` and `path`, and the folder `scratch`, into which may be written. The second is written: of each case `name`,
`outcome` (refused, opened or crashed), `error`, and `violations`, what was done that no file may make a reader do.

The hook hears of what Python does. What native readers of safetensors and Parquet open themselves it does not hear;
that they stay in their folder is checked by what they find there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlabel import Tagger
from mlabel._checks import DataError
from mlabel.cli import main as command
from mlabel.decisions import Calibration, Thresholds
from mlabel.inference import SearchIndex, build_index, read_predictions
from mlabel.labels import LabelSpace
from mlabel.recipes import Run
from mlabel.taxonomy import Taxonomy

MEMORY = 1_500 * 2**20  # bytes beyond what the process has when it begins
SECONDS = 60
# What no file may make its reader do, by the first part of the event's name.
FORBIDDEN = (
    "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.", "socket.", "urllib.",
    "ftplib.", "http.", "smtplib.", "webbrowser.", "ctypes.", "pickle.find_class", "sqlite3.",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate",
    "os.utime", "shutil.",
)  # fmt: skip
_BESIDE_FOLDER = ("os.remove", "os.rmdir", "os.mkdir", "os.rename")  # these take the folder of a path as a number
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROGRAM = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")] + [
    sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc", "/sys", "/usr", "/dev/null", "/dev/urandom",
]  # fmt: skip


class Judge:
    """Writes down what breaks the rules."""

    def __init__(self, own: Path, scratch: Path) -> None:
        self.readable = [str(own.resolve()), str(scratch.resolve()), *map(os.path.realpath, PROGRAM)]
        self.writable = [str(scratch.resolve()), "/dev/null"]
        self.violations: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            self._opened(os.fsdecode(args[0]), args[2] or 0)
        elif event.startswith(FORBIDDEN):
            self.violations.append(f"{event} {args!r:.200}")
        elif event.startswith(CHANGES):
            paths = [os.fsdecode(each) for each in args if isinstance(each, str | bytes | os.PathLike)]
            if event in _BESIDE_FOLDER and args[-1] >= 0:
                paths = [os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), path) for path in paths]
            if not all(_is_below(path, self.writable) for path in paths):
                self.violations.append(f"{event} {args!r:.200}")
        elif event in ("exec", "compile"):
            name = getattr(args[0], "co_filename", None) or str(args[1] if len(args) > 1 else "")
            if not name.startswith("<") and not _is_below(name, self.readable[2:]):
                self.violations.append(f"{event} {name:.200}")

    def _opened(self, path: str, flags: int) -> None:
        allowed = self.writable if flags & WRITES else self.readable
        if not _is_below(path, allowed):
            self.violations.append(f"open {path} {'to write' if flags & WRITES else 'to read'}")


def _is_below(path: str, folders: list[str]) -> bool:
    whole = os.path.realpath(path)
    return any(whole == folder or whole.startswith(folder + os.sep) for folder in folders)


def open_bundle(path: Path, scratch: Path) -> None:
    """Load a bundle and label an image with it."""
    Tagger.load(path, device="cpu").predict(scratch / "image.png")


def open_index(path: Path, scratch: Path) -> None:
    """Search in an index in all ways, and draw what is found."""
    index = SearchIndex(path)
    for query in ("cat AND NOT dog", "cat>0.5 OR dog", "NOT cat"):
        index.search(query)
    if index.num_features:
        index.like([1.0] * index.num_features)
    arguments = [
        "search",
        "--index",
        str(path),
        "cat",
        "--page",
        str(scratch / "page"),
        "--images-in",
        str(path),
    ]
    if command(arguments) != 0:
        raise DataError("the command refused it")


def open_predictions(path: Path, scratch: Path) -> None:
    """Read predictions and make an index of them."""
    space, batches = read_predictions(path)
    build_index(scratch / "index", space, batches)


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "bundle": open_bundle,
    "index": open_index,
    "predictions": open_predictions,
    "run": lambda path, scratch: Run.open(path, device="cpu"),
    "thresholds": lambda path, scratch: Thresholds.load(path),
    "calibration": lambda path, scratch: Calibration.load(path),
    "labels": lambda path, scratch: LabelSpace.load(path),
    "taxonomy": lambda path, scratch: Taxonomy.load(path),
}


def judge(case: dict[str, str], scratch: Path) -> dict[str, Any]:
    """Open a case in a process of its own, and return what became of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        verdict = _open(case, scratch)
        os.write(write, json.dumps(verdict).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    status = os.waitpid(child, 0)[1]
    if not content:
        return {"name": case["name"], "outcome": "crashed", "error": f"status {status}", "violations": []}
    return json.loads(content)


def _open(case: dict[str, str], scratch: Path) -> dict[str, Any]:
    path = Path(case["path"])
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))  # files mapped to be read do not count
    signal.alarm(SECONDS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    hook = Judge(path if path.is_dir() else path.parent, scratch)
    sys.addaudithook(hook)
    outcome, error = "opened", ""
    try:
        KINDS[case["kind"]](path, scratch)
    except (ValueError, FileNotFoundError) as refusal:  # DataError is a ValueError
        outcome, error = "refused", f"{type(refusal).__name__}: {refusal}"
    except BaseException as problem:
        outcome, error = "crashed", f"{type(problem).__name__}: {problem}"
    return {"name": case["name"], "outcome": outcome, "error": error[:2_000], "violations": hook.violations[:5]}


def main() -> None:
    """Judge all cases of the file on the command line, the healthy ones first, unwatched, so that all is imported."""
    torch.set_num_threads(1)
    task = json.loads(Path(sys.argv[1]).read_text())
    scratch = Path(task["scratch"])
    verdicts: list[dict[str, Any]] = []
    for case in task["healthy"]:
        KINDS[case["kind"]](Path(case["path"]), scratch)
    for case in [*task["healthy"], *task["cases"]]:
        verdicts.append(judge(case, scratch))
    Path(sys.argv[2]).write_text(json.dumps(verdicts))


if __name__ == "__main__":
    main()
