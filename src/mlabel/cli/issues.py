"""The command that looks for errors in the labels of a run's images."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mlabel.cli._options import add_command, add_device, add_limit, add_part, add_run, progress
from mlabel.recipes import Run, find_run_issues, write_issues
from mlabel.recipes.label_issues import FOLDS
from mlabel.report.issues import METHODS, RANKS


def add_label_issues(commands: Any) -> None:
    """Add `mlabel label-issues`."""
    parser = add_command(
        commands, "label-issues", _label_issues, example="mlabel label-issues --run runs/m --part val --top 48"
    )
    add_run(parser)
    add_part(parser)
    parser.add_argument(
        "--method", choices=list(METHODS), default="noise_rate", help="how many are named; see the docs"
    )
    parser.add_argument(
        "--rank", choices=list(RANKS), default="self_confidence", help="by what they are sorted; see the docs"
    )
    parser.add_argument("--folds", type=int, default=FOLDS, help="of the training part, whose heads are cross-fitted")
    parser.add_argument("--top", type=int, default=20, help="how many images of each kind the page shows")
    parser.add_argument(
        "--for-spreadsheet",
        action="store_true",
        help="in the CSV file, put an apostrophe before names and ids that a spreadsheet takes for formulas",
    )
    add_limit(parser, "look at this many images of the part only")
    add_device(parser)


def _label_issues(options: argparse.Namespace) -> None:
    """Name labels that are probably missing or wrong, as CSV and as a page with the images."""
    run = Run.open(options.run, device=options.device, progress=progress)
    part, _ = run.part_to_evaluate(options.part)
    run = run.limited(options.limit, part)
    found = find_run_issues(run, options.part, method=options.method, rank=options.rank, folds=options.folds)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{found.part} part, {len(found.issues):,} labels to look at")
    for row in found.issues.label_table():
        print(f"{row['label']}\t{row['missing']} missing\t{row['wrong']} wrong")
    for path in write_issues(run, found, limit=options.top, for_spreadsheet=options.for_spreadsheet):
        print(f"wrote {path}")
