"""The commands that index what a model says of many images, and find images by it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlabel._checks import DataError
from mlabel._files import to_json
from mlabel.cli._options import (
    add_bad,
    add_bundle,
    add_command,
    add_device,
    add_dry_run,
    add_format,
    add_limit,
    add_min_score,
    add_page,
    add_scoring,
    progress,
)
from mlabel.cli._plans import say_index
from mlabel.inference import Hit, SearchIndex, Tagger, build_index, find_images, read_predictions
from mlabel.inference.index_build import FLOOR, TOP
from mlabel.report import Tile, write_gallery


def add_index(commands: Any) -> None:
    """Add `mlabel index`."""
    parser = add_command(
        commands,
        "index",
        _index,
        example="mlabel index --bundle runs/c/bundle celeba/images --with-features --to faces",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE_OR_FOLDER", help="images, or folders of images")
    add_bundle(parser, ", which scores them")
    parser.add_argument(
        "--predictions", metavar="FILE.jsonl", help="scores that `mlabel predict` wrote, in their place"
    )
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder of the index")
    parser.add_argument("--top", type=int, default=TOP, help="scores kept of an image, the highest")
    add_min_score(parser, FLOOR, "kept")
    parser.add_argument("--with-features", action="store_true", help="keep features too, for `mlabel search --like`")
    add_limit(parser, "index this many images only")
    add_dry_run(parser, "how many images would be indexed, and how large the index is")
    add_scoring(parser)
    add_bad(parser)
    add_device(parser)


def _index(options: argparse.Namespace) -> None:
    """Index the scores of many images, for `mlabel search`."""
    if options.predictions is not None:
        if options.images or options.bundle is not None or options.with_features:
            raise ValueError("--predictions stands for scores that are there: no images, --bundle or --with-features")
        index = _index_predictions(options)
    else:
        index = _index_images(options)
    if index is None:
        return
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    print(f"{len(index):,} images, {index.space.num_labels:,} labels, {size / 2**20:,.1f} MB")
    print(f'next: mlabel search --index {options.to} "{index.space.names[0]}"')


def _index_predictions(options: argparse.Namespace) -> SearchIndex | None:
    """Index scores that are there; None where that is only looked into."""
    space, batches = read_predictions(options.predictions)
    if options.dry_run:
        say_index(sum(len(names) for names, *_ in batches), space.num_labels, 0, options)
        return None
    return build_index(options.to, space, batches, top=options.top, floor=options.min_score)


def _index_images(options: argparse.Namespace) -> SearchIndex | None:
    """Index images; None where that is only looked into."""
    if options.bundle is None or not options.images:
        raise ValueError("images and --bundle are wanted, or --predictions")
    tagger = Tagger.load(options.bundle, device=options.device)
    images = find_images(options.images)[: options.limit]
    if options.dry_run:
        features = tagger.model.num_features if options.with_features else 0
        say_index(len(images), tagger.space.num_labels, features, options, images)
        return None
    bad: list[tuple[str, str]] = []
    scored = tagger.score(
        images,
        with_features=options.with_features,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad=options.on_bad,
        max_bad=options.max_bad,
        bad=bad,
    )
    shown = progress(scored, -(-len(images) // options.batch_size), "indexing")
    batches = ((each.paths, each.scores, each.features) for each in shown)
    index = build_index(options.to, tagger.space, batches, top=options.top, floor=options.min_score)
    for path, reason in bad:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    return index


def add_search(commands: Any) -> None:
    """Add `mlabel search`."""
    parser = add_command(
        commands, "search", _search, example='mlabel search --index faces "Big_Lips AND NOT Eyeglasses" --page found'
    )
    parser.add_argument("query", nargs="?", help='such as: cat AND (indoors OR "long hair")^2 NOT dog>0.3')
    parser.add_argument("--index", required=True, metavar="FOLDER", help="folder of the index")
    parser.add_argument("--top", type=int, default=20, help="how many images at most")
    add_min_score(parser, 0.0, "shown")
    parser.add_argument("--like", metavar="IMAGE", help="images like this one, in the place of a query; wants --bundle")
    add_bundle(parser, ", with --like: that which the index was made with")
    add_format(parser)
    add_page(parser, "write a page with the images into this folder")
    parser.add_argument(
        "--images-in", metavar="FOLDER", default=".", help="the page shows images in this folder, and no others"
    )
    add_device(parser)


def _search(options: argparse.Namespace) -> None:
    """Find images by what they show, or like another."""
    index = SearchIndex(options.index)
    hits = list(_find(index, options))
    title = options.query if options.like is None else f"like {Path(options.like).name}"
    if options.format == "json":
        found = [{"image": hit.image, "score": hit.score, "scores": hit.scores} for hit in hits]
        print(to_json({"query": title, "images": len(index), "found": found}), end="")
    else:
        for hit in hits:
            print("\t".join([hit.image, f"{hit.score:.4f}", *_scores(hit)]))
    if options.page is not None:
        tiles = [Tile(_inside(options.images_in, hit.image), [hit.image, *_lines(hit)]) for hit in hits]
        page = write_gallery(options.page, {f"{len(hits)} of {len(index):,} images": tiles}, title=title)
        print(f"wrote {page}", file=sys.stderr)


def _find(index: SearchIndex, options: argparse.Namespace) -> Iterator[Hit]:
    if (options.query is None) == (options.like is None):
        raise ValueError("a query or --like IMAGE is wanted, one of the two")
    if options.like is None:
        yield from index.search(options.query, top=options.top, min_score=options.min_score)
        return
    if options.bundle is None:
        raise ValueError("--like wants --bundle, the one that the index was made with")
    tagger = Tagger.load(options.bundle, device=options.device)
    features = tagger.features(options.like)[0]
    yield from (hit for hit in index.like(features, top=options.top) if hit.score >= options.min_score)


def _scores(hit: Hit) -> Sequence[str]:
    return [f"{name} {score:.2f}" for name, score in hit.scores.items()]


def _lines(hit: Hit) -> Sequence[str]:
    return [f"score {hit.score:.3f}", ", ".join(_scores(hit))]


def _inside(folder: str, image: str) -> str:
    """Return where an image lies, which the index says by a name that may be anything.

    Raises:
        DataError: it would lie outside of `folder`.
    """
    path = os.path.join(folder, image)
    if not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        raise DataError(f"{image} does not lie in {folder}; give the folder of the images as --images-in")
    return path
