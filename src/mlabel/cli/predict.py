"""The command that labels images with a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlabel.cli._options import add_bad, add_command, add_device, add_scoring, progress
from mlabel.data import BadImage
from mlabel.inference import FORMATS, Tagger, find_images, write_predictions
from mlabel.training import BadLog


def add_predict(commands: Any) -> None:
    """Add `mlabel predict`."""
    parser = add_command(
        commands, "predict", _predict, example="mlabel predict --bundle runs/m/bundle photos --format tsv"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders of images")
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--format", choices=list(FORMATS), default="tsv", help="of the predictions")
    parser.add_argument("--to", help="file to write; stdout, if not given")
    parser.add_argument("--threshold", type=float, help="in the place of the bundle's thresholds")
    parser.add_argument("--limit", type=int, help="label this many images only")
    add_scoring(parser)
    add_bad(parser, listed="in bad.jsonl beside the file --to")
    parser.add_argument(
        "--for-spreadsheet",
        action="store_true",
        help="in tsv and csv, put an apostrophe before names and paths that a spreadsheet takes for formulas",
    )
    add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    """Label images with a trained bundle."""
    tagger = Tagger.load(options.bundle, device=options.device)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be 1 or more; got {options.limit}")
    images = find_images(options.images)[: options.limit]
    bad: list[tuple[str, str]] = []
    log = None
    if options.to is not None and options.on_bad == "skip":
        log = BadLog(Path(options.to).with_name("bad.jsonl"))
    stream = tagger.stream(
        images,
        threshold=options.threshold,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad=options.on_bad,
        max_bad=options.max_bad,
        bad=bad,
    )
    shown = progress(stream, len(images), "predicting")
    try:
        number = _write(
            options.to,
            lambda file: write_predictions(
                file, shown, space=tagger.space, format=options.format, for_spreadsheet=options.for_spreadsheet
            ),
        )
    finally:
        _list_skipped(bad, log, options.to)
    print(f"{len(images):,} images expected, {number:,} labelled, {len(bad):,} skipped", file=sys.stderr)


def _list_skipped(bad: Sequence[tuple[str, str]], log: BadLog | None, to: str | None) -> None:
    """Write what was skipped into the log, under the name of the file of predictions, or else to stderr."""
    if log is None or to is None:
        for path, reason in bad:
            print(f"skipped {path}: {reason}", file=sys.stderr)
        return
    log.replace(Path(to).name, [BadImage(path, path, reason) for path, reason in bad])
    if bad:
        print(f"skipped images are listed in {log.path}", file=sys.stderr)


def _write(path: str | None, write: Callable[[Any], int]) -> int:
    """Call `write` with stdout, or with a file that gets its name when it is whole."""
    if path is None:
        return write(sys.stdout)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            number = write(file)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return number
