"""Commands on annotated images, before any training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mlabel._files import to_json
from mlabel.cli._options import add_command, add_dataset, dataset_recipe, progress
from mlabel.data import examine, survey_images
from mlabel.recipes.run import read_table
from mlabel.report import write_diagnosis


def add_doctor(commands: Any) -> None:
    """Add `mlabel doctor`."""
    parser = add_command(
        commands, "doctor", _doctor, example="mlabel doctor --reader celeba --data celeba --page doctor"
    )
    add_dataset(parser)
    parser.add_argument("--expected-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images")
    parser.add_argument("--min-positives", type=int, default=5, help="fewer in a part are a warning")
    parser.add_argument("--distance", type=int, default=4, help="bits of 64 in which near-duplicates may differ")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="of what is printed")
    parser.add_argument("--page", metavar="FOLDER", help="write a page with plots into this folder")
    parser.add_argument("--no-images", action="store_true", help="look at labels and parts only")


def _doctor(options: argparse.Namespace) -> int:
    """Say what is wrong or odd with images, labels and parts; exit code 1 where there is an error."""
    parts = read_table(dataset_recipe(options)).parts()
    surveys = None
    if not options.no_images:
        surveys = {
            name: survey_images(table, num_workers=options.num_workers, progress=progress)
            for name, table in parts.items()
        }
    diagnosis = examine(
        parts,
        surveys,
        expected_size=None if options.expected_size is None else tuple(options.expected_size),
        min_positives=options.min_positives,
        distance=options.distance,
    )
    print(to_json(diagnosis.to_dict()) if options.format == "json" else diagnosis.text())
    if options.page is not None:
        page = write_diagnosis(options.page, diagnosis, title=f"The doctor on {Path(options.data).name}")
        print(f"wrote {page}", file=sys.stderr)
    return int(diagnosis.worst() == "error")
