"""The command that gives a trained model to other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mlabel.cli._options import add_bundle, add_command, add_run
from mlabel.inference import EXPORT_FORMATS, TOLERANCE, Tagger, export_tagger, find_images, push_to_hub
from mlabel.recipes import Run, copy_with_card

_CHECKED = 16  # images of a run


def add_export(commands: Any) -> None:
    """Add `mlabel export`."""
    parser = add_command(
        commands, "export", _export, example="mlabel export --run runs/m --format onnx --to exported/m"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="with --bundle, images to check it on")
    add_run(parser, required=False)
    add_bundle(parser, ", in the place of a run")
    parser.add_argument(
        "--format",
        choices=[*EXPORT_FORMATS, "hub"],
        default="onnx",
        help="onnx; wd: onnx for programs that want wd-taggers; torch: torch.export; hub: the bundle with a model card",
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="a larger difference of a score is an error")
    parser.add_argument("--limit", type=int, default=_CHECKED, help="check it on this many images only")
    parser.add_argument("--push", metavar="NAME", help="with hub, upload it to this repository of the Hugging Face Hub")


def _export(options: argparse.Namespace) -> None:
    """Write a trained model for other programs, and check that it says the same there."""
    if (options.run is None) == (options.bundle is None):
        raise ValueError("--run or --bundle is wanted, one of the two")
    if options.push is not None and options.format != "hub":
        raise ValueError("--push wants --format hub")
    if options.format == "hub":
        _to_hub(options)
        return
    bundle, images = _source(options)
    tagger = Tagger.load(bundle, device="cpu")
    found = export_tagger(tagger, options.to, images, format=options.format, tolerance=options.tolerance)
    size = found.path.stat().st_size / 2**20
    print(f"wrote {found.path}, {size:,.1f} MB")
    print(f"largest difference of a score on {found.images:,} images: {found.difference:.2g}")


def _source(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """Return the bundle's folder, and images to check the export on."""
    if options.bundle is not None:
        if not options.images:
            raise ValueError("--bundle wants images, on which the export is checked")
        return Path(options.bundle), find_images(options.images)[: options.limit]
    work = Run.open(options.run, device="cpu")
    part, _ = work.part_to_evaluate()
    return work.folder / "bundle", [str(path) for path in work.parts[part].paths[: options.limit]]


def _to_hub(options: argparse.Namespace) -> None:
    if options.run is None:
        raise ValueError("--format hub wants --run: its card is written from the run")
    card = copy_with_card(Run.open(options.run, device="cpu"), options.to)
    print(f"wrote {card}")
    if options.push is not None:
        print(f"pushed to {push_to_hub(options.to, options.push)}", file=sys.stderr)
