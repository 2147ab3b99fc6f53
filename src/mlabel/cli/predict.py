"""The command that labels images with a bundle."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlabel.cli._options import (
    add_bad,
    add_bundle,
    add_command,
    add_dataset,
    add_device,
    add_dry_run,
    add_min_score,
    add_scoring,
    dataset_recipe,
    progress,
)
from mlabel.cli._plans import say_predictions
from mlabel.data import BadImage, ImageTable
from mlabel.inference import (
    FORMATS,
    Tagger,
    find_images,
    open_for_predictions,
    predict_all,
    read_list,
    write_predictions,
)
from mlabel.recipes.run import read_table
from mlabel.taxonomy import Taxonomy
from mlabel.training import BadLog

_MAX_STDIN = 2**28  # bytes of an image


def add_predict(commands: Any) -> None:
    """Add `mlabel predict`."""
    parser = add_command(
        commands, "predict", _predict, example="mlabel predict --bundle runs/m/bundle photos --format tsv"
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="images or folders of them; - is stdin")
    parser.add_argument("--list", metavar="FILE", help="a file with the path of an image on each line; - is stdin")
    add_dataset(parser, required=False)
    parser.add_argument("--cache", metavar="FOLDER", help="with --reader, take the images from this cache")
    add_bundle(parser, ", which labels them", required=True)
    parser.add_argument("--format", choices=list(FORMATS), default="tsv", help="of the predictions")
    parser.add_argument("--to", metavar="FILE_OR_FOLDER", help="file to write; stdout, if not given")
    parser.add_argument("--top", type=int, help="write so many scores of an image, the highest")
    add_min_score(parser, None, "written; without it and --top, decisions are")
    parser.add_argument("--threshold", type=float, help="in the place of the bundle's thresholds")
    parser.add_argument("--taxonomy", metavar="FILE", help="what labels imply, as Taxonomy.save writes it")
    add_scoring(parser)
    add_bad(parser, listed="in bad.jsonl beside the file --to")
    parser.add_argument(
        "--for-spreadsheet",
        action="store_true",
        help="in tsv and csv, put an apostrophe before names and paths that a spreadsheet takes for formulas",
    )
    add_dry_run(parser, "how many images would be labelled, and how large the predictions are")
    _add_parts(parser)
    add_device(parser)


def _add_parts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many images, by any number of processes; the same command goes on")
    group.add_argument("--part-size", type=int, help="write files of so many images into the folder --to")
    group.add_argument(
        "--worker",
        type=_worker,
        metavar="I/N",
        help="which of how many processes this is, from 0/N to N-1/N; what torchrun says, if not given",
    )


def _worker(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number), int(count)


def _predict(options: argparse.Namespace) -> None:
    """Label images with a trained bundle."""
    tagger = Tagger.load(options.bundle, device=options.device or _own_gpu())
    if options.taxonomy is not None:
        tagger.taxonomy = Taxonomy.load(options.taxonomy, tagger.space)
    with _sources(options) as images:
        if options.dry_run:
            say_predictions(tagger, images, options)
        elif options.part_size is None:
            _predict_into_one(tagger, images, options)
        else:
            _predict_into_parts(tagger, images, options)


def _own_gpu() -> str | None:
    """Return the GPU of this process among those of its machine, where torchrun started several."""
    number = os.environ.get("LOCAL_RANK")
    return None if number is None or not torch.cuda.is_available() else f"cuda:{number}"


@contextmanager
def _sources(options: argparse.Namespace) -> Iterator[list[str] | ImageTable]:
    """Give the images that the options name; one that comes on stdin lies in a file meanwhile."""
    ways = [bool(options.images), options.list is not None, options.reader is not None]
    if sum(ways) != 1:
        raise ValueError("images, --list or --reader with --data are wanted, one of the three")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be 1 or more; got {options.limit}")
    if options.reader is not None:
        if options.data is None:
            raise ValueError("--reader wants --data")
        yield read_table(replace(dataset_recipe(options), cache=options.cache))
    elif options.list is not None:
        yield read_list(options.list)[: options.limit]
    elif options.images == ["-"]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stdin"
            content = sys.stdin.buffer.read(_MAX_STDIN + 1)
            if len(content) > _MAX_STDIN:
                raise ValueError(f"stdin: an image may have {_MAX_STDIN:,} bytes")
            path.write_bytes(content)
            yield [str(path)]
    else:
        yield find_images(options.images)[: options.limit]


def _predict_into_one(tagger: Tagger, images: list[str] | ImageTable, options: argparse.Namespace) -> None:
    if options.worker is not None:
        raise ValueError("--worker wants --part-size: processes share the work by parts")
    if options.to is None and options.format == "parquet":
        raise ValueError("--format parquet wants --to")
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
    if options.images == ["-"]:
        stream = (replace(each, path="-") for each in stream)
    shown = progress(stream, len(images), "predicting")
    kept = {"top": options.top, "above": options.min_score, "for_spreadsheet": options.for_spreadsheet}
    try:
        with _target(options) as file:
            number = write_predictions(file, shown, space=tagger.space, format=options.format, **kept)
    finally:
        _list_skipped(bad, log, options.to)
    print(f"{len(images):,} images expected, {number:,} labelled, {len(bad):,} skipped", file=sys.stderr)


def _predict_into_parts(tagger: Tagger, images: list[str] | ImageTable, options: argparse.Namespace) -> None:
    if options.to is None:
        raise ValueError("--part-size wants --to, the folder of the parts")
    result = predict_all(
        tagger,
        images,
        options.to,
        format=options.format,
        top=options.top,
        above=options.min_score,
        threshold=options.threshold,
        for_spreadsheet=options.for_spreadsheet,
        part_size=options.part_size,
        worker=options.worker or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad=options.on_bad,
        max_bad=options.max_bad,
        progress=progress,
    )
    print(
        f"{result.images:,} images, {result.parts - len(result.missing):,} of {result.parts:,} parts written, "
        f"{result.skipped:,} images skipped",
        file=sys.stderr,
    )


def _list_skipped(bad: Sequence[tuple[str, str]], log: BadLog | None, to: str | None) -> None:
    """Write what was skipped into the log, under the name of the file of predictions, or else to stderr."""
    if log is None or to is None:
        for path, reason in bad:
            print(f"skipped {path}: {reason}", file=sys.stderr)
        return
    log.replace(Path(to).name, [BadImage(path, path, reason) for path, reason in bad])
    if bad:
        print(f"skipped images are listed in {log.path}", file=sys.stderr)


@contextmanager
def _target(options: argparse.Namespace) -> Iterator[Any]:
    """Give stdout, or a file that gets its name when it is whole."""
    if options.to is None:
        yield sys.stdout
        return
    target = Path(options.to)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open_for_predictions(temporary, options.format) as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
