"""The command that sets runs side by side."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mlabel.cli._options import (
    add_command,
    add_device,
    add_format,
    add_include,
    add_intervals,
    add_limit,
    add_page,
    add_part,
    progress,
)
from mlabel.metrics import CORRECTIONS
from mlabel.recipes import LABEL_STATISTICS, compare_runs, write_run_comparison

_SHOWN = 20  # labels


def add_compare(commands: Any) -> None:
    """Add `mlabel compare`."""
    parser = add_command(commands, "compare", _compare, example="mlabel compare runs/resnet runs/densenet --page side")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of two runs or more, of the same images")
    add_part(parser)
    parser.add_argument("--threshold", type=float, help="decide all by this one, not each by its calibrated thresholds")
    add_include(parser)
    parser.add_argument(
        "--by", choices=LABEL_STATISTICS, default="ap", help="statistic of labels by which the better run is told"
    )
    parser.add_argument(
        "--correction",
        choices=list(CORRECTIONS),
        default="benjamini_hochberg",
        help="of the p-values of labels, for there being so many",
    )
    add_intervals(
        parser, "resamples of the images that intervals and p-values are from; 1000 to 4000 by the number of labels"
    )
    add_limit(parser, "score this many images of the part only")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each model's speed is measured; 0: not")
    add_device(parser)
    add_page(parser, "write a page, pictures and CSV files into this folder")
    add_format(parser)


def _compare(options: argparse.Namespace) -> None:
    """Compare runs on the same images: metrics with paired intervals, labels won, cost."""
    found = compare_runs(
        options.runs,
        part=options.part,
        threshold=options.threshold,
        include=options.include,
        by=options.by,
        correction=options.correction,
        resamples=options.intervals,
        limit=options.limit,
        seconds=options.seconds,
        device=options.device,
        progress=progress,
    )
    if options.format == "json":
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=1))
    else:
        print(found.text(labels=None if options.verbose else _SHOWN))
    if options.page is not None:
        print(f"wrote {write_run_comparison(found, options.page)}", file=sys.stderr)
