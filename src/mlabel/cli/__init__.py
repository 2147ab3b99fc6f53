"""The `mlabel` command: each subcommand is a thin face over one public function.

Progress goes to stderr and results to stdout. `EXIT_CODES` says how a command ends. A command's module, and with it
torch, is imported when that command is used, so that `mlabel --help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import mlabel
from mlabel.cli._commands import COMMANDS

__all__ = ["EXIT_CODES", "build_parser", "main"]

EXIT_CODES = {
    0: "done",
    1: "the doctor found an error",
    2: "wrong use, bad input or damaged shards; one line on stderr says what",
    70: "an error that was not foreseen, and is a defect of mlabel",
    130: "stopped by Ctrl-C (SIGINT)",
    141: "what read the results went away, as `head` does",
    143: "stopped by the system (SIGTERM)",
}
_FORESEEN = (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, one of `EXIT_CODES`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("mlabel: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        return _say(error)


def _run(given: list[str]) -> int:
    if not given or given[0] not in COMMANDS:
        return _without_command(given)
    from mlabel.cli._config import read_options

    options = read_options(given, build_parser)
    level = logging.INFO if options.verbose else logging.WARNING
    if os.environ.get("RANK", "0") != "0":
        level = logging.ERROR  # of several processes that torchrun started, the first one says what all know
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    return options.command(options) or 0


def _say(error: Exception) -> int:
    """Print an error in one line; return the exit code."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if isinstance(error, _FORESEEN):
        print(f"mlabel: error: {text or type(error).__name__}", file=sys.stderr)
        return 2
    what = f"{type(error).__name__}: {text}"
    print(f"mlabel: unforeseen error: {what}; a defect of mlabel: --debug shows where", file=sys.stderr)
    return 70


def build_parser(names: Iterable[str] = tuple(COMMANDS)) -> Parser:
    """Return the parser of the commands `names`, with all their options; their modules are imported."""
    parser, commands = _bare_parser()
    for name in names:
        module = importlib.import_module(f"mlabel.cli.{COMMANDS[name][0]}")
        getattr(module, f"add_{name.replace('-', '_')}")(commands)
    return parser


class Parser(argparse.ArgumentParser):
    """A parser that raises where `argparse` would print its usage and exit, and takes no half-written options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.replace('argument --', '--')}; see {self.prog} --help")


def _bare_parser() -> tuple[Parser, Any]:
    """Return the parser without any command, and what commands are added to."""
    parser = Parser(
        prog="mlabel",
        description="Multi-label image learning, from annotations to tags.",
        epilog="example: mlabel demo --run runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"mlabel {mlabel.__version__}")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--print-completion", metavar="SHELL", help="print what lets bash, zsh, fish or tcsh complete options"
    )
    return parser, parser.add_subparsers(metavar="COMMAND", dest="name")


def _without_command(given: list[str]) -> int:
    """Do what `mlabel` does by itself: help, version, completion."""
    words = [word for word in given if not word.startswith("-")]
    parser, commands = _bare_parser()
    for name, (_, line) in COMMANDS.items():
        commands.add_parser(name, help=line)
    if given and words == given[:1]:
        from mlabel._checks import resolve

        resolve(given[0], COMMANDS, "command")
    for name in COMMANDS:
        if name in given:
            parser.error(f"options come after the command: mlabel {name} ...")
    options = parser.parse_args(given)
    if options.print_completion is not None:
        from mlabel.cli._completion import completion

        print(completion(build_parser(), options.print_completion))
        return 0
    parser.error("a command is wanted")
