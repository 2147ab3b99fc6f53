"""The `mlabel` command: each subcommand is a thin face over one public function.

Progress goes to stderr and results to stdout. Exit codes: 0 done; 1 the doctor found an error, or one came that was not
foreseen; 2 wrong use or bad input; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from mlabel.cli.data import add_cache, add_doctor
from mlabel.cli.export import add_export
from mlabel.cli.models import add_models
from mlabel.cli.predict import add_predict
from mlabel.cli.runs import add_calibrate, add_demo, add_evaluate, add_train
from mlabel.cli.search import add_index, add_search
from mlabel.cli.shard import add_shard

__all__ = ["main"]

# In the order of `mlabel --help`: that of their use.
_COMMANDS = (
    add_demo,
    add_doctor,
    add_cache,
    add_shard,
    add_models,
    add_train,
    add_evaluate,
    add_calibrate,
    add_predict,
    add_export,
    add_index,
    add_search,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    if os.environ.get("RANK", "0") != "0":
        level = logging.ERROR  # of several processes that torchrun started, the first one says what all know
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("mlabel: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"mlabel: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlabel", description="Multi-label image learning, from annotations to tags.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser
