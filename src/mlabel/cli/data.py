"""Commands on annotated images, before any training."""

from __future__ import annotations

import argparse
import bisect
import difflib
import math
import re
import sys
from pathlib import Path
from typing import Any

from mlabel._files import to_json
from mlabel.cli._options import (
    add_bad,
    add_command,
    add_dataset,
    add_dry_run,
    add_format,
    add_images,
    add_page,
    add_seed,
    add_workers,
    dataset_recipe,
    progress,
)
from mlabel.cli._plans import say_cache
from mlabel.data import ImageDataset, ImageTable, SplitReport, build_cache, examine, read_taxonomy, survey_images
from mlabel.recipes.run import read_table
from mlabel.report import plot_augmented, write_diagnosis
from mlabel.taxonomy import Taxonomy

_NEIGHBOURS = 5000  # ids in whose midst the nearest to a wrong one is looked for


def add_cache(commands: Any) -> None:
    """Add `mlabel cache`."""
    parser = add_command(
        commands,
        "cache",
        _cache,
        example="mlabel cache --reader celeba --data celeba --image-size 128 --augment standard --to cache/celeba128",
    )
    add_dataset(parser)
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder of the cache")
    add_images(parser)
    add_workers(parser)
    add_bad(parser, listed="in the cache")
    add_dry_run(parser, "how many images would be decoded, and how large they are")


def _cache(options: argparse.Namespace) -> None:
    """Decode images once, for trainings with `--cache FOLDER`; repeated, it goes on where it was stopped."""
    table = read_table(dataset_recipe(options))
    if options.dry_run:
        say_cache(table, options)
        return
    cache = build_cache(
        table,
        options.to,
        image_size=options.image_size,
        channels=options.in_channels,
        augment=options.augment,
        num_workers=options.num_workers,
        on_bad=options.on_bad,
        max_bad=options.max_bad,
        progress=progress,
    )
    size = math.prod(cache.shape) / 2**30
    print(
        f"{len(cache):,} images of {cache.size[0]} x {cache.size[1]}, {size:.2f} GiB, {len(cache.faults)} of them bad"
    )
    print(f"next: mlabel train --cache {options.to} with the same reader, data, image size and augmentation")


def add_doctor(commands: Any) -> None:
    """Add `mlabel doctor`."""
    parser = add_command(
        commands, "doctor", _doctor, example="mlabel doctor --reader celeba --data celeba --page doctor"
    )
    add_dataset(parser)
    parser.add_argument("--expected-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images")
    parser.add_argument("--min-positives", type=int, default=5, help="fewer in a part are a warning")
    parser.add_argument("--duplicates", type=int, default=4, help="bits of 64 in which near-duplicates may differ")
    add_workers(parser)
    add_format(parser)
    add_page(parser, "write a page with plots into this folder")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--no-images", action="store_true", help="look at labels and parts only")
    images.add_argument(
        "--isolate",
        action="store_true",
        help="decode images in processes that are thrown away: one that crashes its decoder is named",
    )
    parser.add_argument(
        "--taxonomy",
        metavar="FILE",
        help="what labels imply, as Taxonomy.save writes it; Danbooru's own files are read where they are there",
    )
    _add_augmented(parser)


def _add_augmented(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one sample as training sees it, in the place of a diagnosis")
    group.add_argument("--show-augmented", metavar="ID", help="the sample, by its id")
    add_images(group)
    add_seed(group, "as in `mlabel train`")
    group.add_argument("--show-epochs", default="0-7", metavar="FIRST-LAST", help="which ones; they count from 0")
    group.add_argument("--to", metavar="FILE.png", default="augmented.png", help="the picture to write")


def _doctor(options: argparse.Namespace) -> int:
    """Say what is wrong or odd with images, labels and parts; exit code 1 where there is an error."""
    if options.isolate and options.show_augmented is not None:
        raise ValueError("--show-augmented decodes its image in this process; --isolate has nothing to say there")
    table = read_table(dataset_recipe(options))
    if options.show_augmented is not None:
        _show_augmented(table, options)
        return 0
    parts = table.parts()
    surveys = None
    if not options.no_images:
        surveys = {
            name: survey_images(table, num_workers=options.num_workers, isolate=options.isolate, progress=progress)
            for name, table in parts.items()
        }
    diagnosis = examine(
        parts,
        surveys,
        expected_size=None if options.expected_size is None else tuple(options.expected_size),
        min_positives=options.min_positives,
        distance=options.duplicates,
        taxonomy=_taxonomy(options, table),
    )
    split = SplitReport.of_parts(parts)
    if options.format == "json":
        print(to_json(diagnosis.to_dict() | {"split": split.to_dict()}))
    else:
        print(diagnosis.text(), *(["", split.table("deviation")] if options.verbose else []), sep="\n")
    if options.page is not None:
        page = write_diagnosis(options.page, diagnosis, title=f"The doctor on {Path(options.data).name}")
        print(f"wrote {page}", file=sys.stderr)
    return int(diagnosis.worst() == "error")


def _taxonomy(options: argparse.Namespace, table: ImageTable) -> Taxonomy | None:
    """Return what is known of the labels' relations: a file that was given, or what lies beside Danbooru's posts."""
    if options.taxonomy is not None:
        return Taxonomy.load(options.taxonomy, table.space)
    if options.reader != "danbooru":
        return None
    try:
        return read_taxonomy(options.data, table.space)
    except FileNotFoundError:
        return None


def _show_augmented(table: ImageTable, options: argparse.Namespace) -> None:
    """Draw a sample in some epochs, and print its labels."""
    given = re.fullmatch(r"(\d+)(?:-(\d+))?", options.show_epochs)
    first, last = (int(given[1]), int(given[2] or given[1])) if given else (0, -1)
    if first > last:
        raise ValueError(f"--show-epochs wants a number or FIRST-LAST, such as 0-7; got {options.show_epochs!r}")
    row = _row_of(table, options.show_augmented)
    dataset = ImageDataset(
        table,
        image_size=options.image_size,
        channels=options.in_channels,
        augment=options.augment,
        seed=options.seed,
    )
    path = plot_augmented(dataset, row, epochs=range(first, last + 1), path=options.to)
    print(f"{table.ids[row]}: {', '.join(table.space.decode(table.targets[[row]])[0]) or 'no labels'}")
    print(f"wrote {path}", file=sys.stderr)


def _row_of(table: ImageTable, name: str) -> int:
    """Return the row of an id.

    Raises:
        ValueError: there is no such id; the nearest are named.
    """
    ids = table.ids.tolist()
    if name in ids:
        return ids.index(name)
    ids.sort()
    place = bisect.bisect(ids, name)
    around = ids[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
    near = difflib.get_close_matches(name, around, n=3, cutoff=0.0)
    raise ValueError(f"none of the {len(ids):,} images has the id {name!r}; the nearest are {', '.join(near)}")
