"""Say how many small faults, put into a part of the package one at a time, its tests notice.

    python tools/mutation.py metrics --count 300 --seed 0
    python tools/mutation.py data/sampling.py --tests "tests/test_sampling.py"
    python tools/mutation.py training/step.py --tests "tests/test_training*.py" --skip "process or distributed"

mutmut makes the faults (mutants), in the bodies of functions that carry no decorator, and runs for each the tests that
come by it. Of all mutants of the part a sample is drawn by the seed; a greater count begins with the same ones. The
work is done on a copy of `src` and `tests`, so that the tree stays as it is. Printed are how many were killed, and what
the survivors change; the exit code is 1 where fewer than `--least` were killed.

A function that only runs while its module is imported, such as one that builds a table, has run before its mutants are
put in: they survive whatever the tests do. So does what only processes run that a test starts, and so do mutants that
are no fault, such as a dtype that NumPy would choose.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What shows that the tests noticed: they failed, ran on without end, or brought the interpreter down.
KILLED = frozenset({"killed", "timeout", "segfault", "suspicious", "caught by type check"})
# A test that fails is enough: hypothesis need not look for the smallest example.
SETTINGS = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = [{part!r}]
pytest_add_cli_args = {options!r}
pytest_add_cli_args_test_selection = {tests!r}
on_dependency_change = "ignore"
# A mutant that runs on without end is given up after some times what its tests take.
timeout_multiplier = 4.0
timeout_constant = 10.0
"""


def list_tests(part: str, patterns: Sequence[str]) -> list[str]:
    """Return the files of tests of a part: those of the patterns, or `tests/test_NAME*.py`.

    Raises:
        ValueError: there are none.
    """
    chosen = list(patterns) or [f"tests/test_{Path(part).stem.strip('_')}*.py"]
    found = sorted({str(path.relative_to(ROOT)) for pattern in chosen for path in ROOT.glob(pattern)})
    if not found:
        raise ValueError(f"no tests match {chosen}; name them with --tests")
    return found


def list_sources(part: str) -> list[Path]:
    """Return the modules of a part, relative to the root.

    Raises:
        FileNotFoundError: there is no such part.
    """
    path = ROOT / "src" / "mlabel" / part
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{path} is neither a package nor a module; name one below src/mlabel")
    return [each.relative_to(ROOT) for each in found]


def list_mutants(sources: Sequence[Path]) -> list[str]:
    """Return the names of all mutants of the modules, in their order."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    return [
        get_mutant_name(source, name)
        for source in sources
        for name in mutate_file_contents(str(source), (ROOT / source).read_text(encoding="utf-8")).mutant_names
    ]


def prepare(folder: Path, part: str, tests: list[str], *, skip: str | None = None) -> None:
    """Copy what mutmut needs into the folder, with its settings; `skip` is an expression of pytest's `-k`."""
    options = ["--hypothesis-profile=mutation", "-p", "no:cacheprovider"]
    options += [] if skip is None else ["-k", f"not ({skip})"]
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    pattern = f"src/mlabel/{part}" if part.endswith(".py") else f"src/mlabel/{part}/*"
    settings = SETTINGS.format(part=pattern, tests=tests, options=options)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8") + settings)


def run_mutants(folder: Path, names: Sequence[str], minutes: float | None) -> None:
    """Run the mutants with one process, until all are done or the minutes are over."""
    command = [_program(), "run", "--max-children", "1", *names]
    work = subprocess.Popen(command, cwd=folder, env=_environment())
    try:
        work.wait(None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        work.send_signal(signal.SIGINT)
        work.wait()


def read_results(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the names that were run, in their order, with what became of each."""
    lines = _ask(folder, "results", "--all", "true").splitlines()
    found = dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)
    return {name: found[name] for name in names if found.get(name, "not checked") != "not checked"}


def report(folder: Path, results: dict[str, str], total: int) -> float:
    """Print what became of the mutants, the survivors with what they change, and return the share that was killed."""
    counts = Counter(results.values())
    killed = sum(number for status, number in counts.items() if status in KILLED)
    share = killed / len(results) if results else 0.0
    for name, status in results.items():
        if status not in KILLED:
            print("\n" + _ask(folder, "show", name).strip())
    print(f"\n{len(results)} of {total} mutants: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    print(f"killed: {killed} of {len(results)}, {share:.1%}")
    return share


def _program() -> str:
    beside = Path(sys.executable).with_name("mutmut")
    found = str(beside) if beside.exists() else shutil.which("mutmut")
    if found is None:
        raise FileNotFoundError("mutmut is not installed; pip install mutmut")
    return found


def _environment() -> dict[str, str]:
    # One thread a process. mutmut finds the copy by itself, and no fault at all where PYTHONPATH names a tree.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def _ask(folder: Path, *words: str) -> str:
    return subprocess.run(
        [_program(), *words], cwd=folder, env=_environment(), capture_output=True, text=True, check=True
    ).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", help="a package or module below src/mlabel, such as metrics or data/sampling.py")
    parser.add_argument("--tests", action="append", default=[], help="pattern of files; default: tests/test_PART*.py")
    parser.add_argument("--skip", help="leave out tests that this expression of pytest's -k matches, such as slow ones")
    parser.add_argument("--count", type=int, default=300, help="how many mutants; default: 300")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default: 0")
    parser.add_argument("--minutes", type=float, help="stop after this long, and report what was done")
    parser.add_argument("--least", type=float, default=0.9, help="the share to be killed; default: 0.9")
    parser.add_argument(
        "--only", action="append", default=[], help="run the mutants whose names end so, or of a function, not a sample"
    )
    options = parser.parse_args(arguments)
    mutants = list_mutants(list_sources(options.part))
    names = mutants[:]
    random.Random(options.seed).shuffle(names)
    names = names[: options.count]
    if options.only:
        names = [name for name in mutants if any(name.endswith(each) or each + "__" in name for each in options.only)]
    with tempfile.TemporaryDirectory(prefix="mutation-") as place:
        folder = Path(place)
        prepare(folder, options.part, list_tests(options.part, options.tests), skip=options.skip)
        run_mutants(folder, names, options.minutes)
        share = report(folder, read_results(folder, names), len(mutants))
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
