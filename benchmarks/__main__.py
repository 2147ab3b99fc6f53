"""Runs the benchmarks one after the other and writes what they print into `RESULTS.md`, and the ratios into the README.

    python -m benchmarks                     # all of them, about an hour on two cores
    python -m benchmarks split losses        # these; what RESULTS.md has of the others stays
    python -m benchmarks --quick             # small sizes, a few minutes; only printed

Each runs in a process of its own, with the peer beside mlabel in it. Figures are ratios of one run; set
OMP_NUM_THREADS, and let the machine do nothing else. A peer that is not installed is said to be missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from benchmarks import HEADLINE, MISSING

NAMES = ("split", "metrics", "losses", "thresholds", "pipeline", "models", "training", "metadata", "search")
ROOT = Path(__file__).parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PACKAGES = ("mlabel", "torch", "torchvision", "numpy", "scipy", "scikit-learn")
PEERS = ("iterative-stratification", "torchmetrics", "timm")


def run(name: str, *, quick: bool) -> tuple[str, bool]:
    """Return what a benchmark printed, which is shown as it comes, and whether it came to its end."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        lines.append(f"it failed with exit status {process.returncode}")
    return "\n".join(lines).strip(), process.returncode == 0


def version(package: str) -> str:
    """Return the version of a package, or that it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def describe_device() -> str:
    """Return words on the machine and the versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    instructions = torch.backends.cpu.get_cpu_capability()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    versions = ", ".join(f"{package} {version(package)}" for package in (*PACKAGES, *PEERS))
    return (
        f"{os.cpu_count()} {platform.machine()} cores ({instructions}), {gpu}; OMP_NUM_THREADS {threads}; Python "
        f"{platform.python_version()}; {versions}; {date.today()}"
    )


def read_blocks(region: str) -> dict[str, str]:
    """Return the block of each benchmark that a region of RESULTS.md has."""
    parts = re.split(r"^### (\w+)\n", region, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (each.strip() for each in parts[2::2]), strict=True))


def table_of(blocks: dict[str, str]) -> str:
    """Return the headlines of the blocks as a table."""
    lines = [line for block in blocks.values() for line in block.splitlines() if line.startswith(HEADLINE)]
    rows = [f"| {line.removeprefix(HEADLINE)} |" for line in lines]
    return "\n".join(["| measured | times as fast (or as small) | beside |", "|---|---|---|", *rows])


def replace_region(path: Path, content: str) -> None:
    """Write `content` between the marks of a file."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def record(found: dict[str, str], results: Path, readme: Path) -> None:
    """Put what benchmarks printed into RESULTS.md, in the place of what is there of them, and the table into both."""
    region = results.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    blocks = read_blocks(region)
    for name, text in found.items():
        blocks[name] = f"`python -m benchmarks.{name}`: {describe_device()}\n\n```text\n{text}\n```"
    blocks = {name: blocks[name] for name in NAMES if name in blocks}
    table = table_of(blocks)
    replace_region(results, "\n\n".join([table, *(f"### {name}\n\n{text}" for name, text in blocks.items())]))
    replace_region(readme, table)


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            parser.error(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    failed = []
    for name in options.names or NAMES:
        print(f"\n== {name}", flush=True)
        text, good = run(name, quick=options.quick)
        if not good:
            failed.append(name)
        elif not options.quick:
            record({name: text}, ROOT / "RESULTS.md", ROOT.parent / "README.md")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
