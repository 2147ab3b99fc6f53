"""What `--dry-run` says of the commands that go over images once: how many, how large, and what is there already."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlabel.data import ImageTable, plan_cache, plan_shards
from mlabel.data.images import stat_image
from mlabel.inference import Prediction, Tagger, write_predictions

_SAMPLE = 1000  # images whose files are looked at
_ROWS = 64  # made-up predictions that are written, to see how long a line is


def say_cache(table: ImageTable, options: argparse.Namespace) -> None:
    """Print what `mlabel cache` would do."""
    shape, todo = plan_cache(
        table,
        options.to,
        image_size=options.image_size,
        channels=options.in_channels,
        augment=options.augment,
    )
    _say(
        images=f"{len(table):,}, of which {len(table) - todo:,} are in the cache and {todo:,} would be decoded",
        output=f"{_size(math.prod(shape))}: {shape[1]} x {shape[2]} pixels of {shape[3]} bytes for each image",
        written=_where(options.to),
    )


def say_shards(table: ImageTable, options: argparse.Namespace, *, shard_bytes: int, seed: int | None) -> None:
    """Print what `mlabel shard` would do."""
    tars, done = plan_shards(table, options.to, shard_bytes=shard_bytes, seed=seed)
    names = _some(table.paths)
    sizes = list(_sizes(names))
    each = float(np.mean(sizes)) if sizes else 0.0
    missing = len(names) - len(sizes)
    number = max(1, math.ceil(each * len(table) / shard_bytes))
    found = f"by the files of {len(names):,} images" + (f", of which {missing:,} cannot be found" if missing else "")
    _say(
        images=f"{len(table):,}, of which {done:,} are in {tars:,} tars that are there, {len(table) - done:,} to do",
        output=f"about {_size(each * len(table))} in {number:,} tars, {found}",
        written=_where(options.to),
    )


def say_predictions(tagger: Tagger, images: Sequence[str] | ImageTable, options: argparse.Namespace) -> None:
    """Print what `mlabel predict` would do."""
    names = [str(name) for name in (images.ids if isinstance(images, ImageTable) else images)]
    each, note = _line_bytes(tagger, _some(names, _ROWS), options), "scores made up"
    if options.min_score is not None:
        note += "; at most, as if every score were written"
    _say(
        images=f"{len(names):,}",
        labels=f"{tagger.space.num_labels:,}",
        output=f"about {_size(each * len(names))} of {options.format}, {each:,.0f} bytes an image ({note})",
        written="to stdout" if options.to is None else _where_predictions(len(names), options),
    )


def say_index(images: int, labels: int, features: int, options: argparse.Namespace, names: Sequence[str] = ()) -> None:
    """Print what `mlabel index` would do; `features` is D where they are kept, else 0."""
    scores = min(options.top, labels)
    longest = float(np.mean([len(name.encode()) for name in _some(names)])) if len(names) else 0.0
    rest = 8 + longest + 4 * features
    held = f"{scores:,} scores" + (f" and {features:,} features" if features else "")
    whole, most = _size((8 * scores + rest) * images), _size((20 * scores + rest) * images)
    replaced = "; the index there is replaced" if (Path(options.to) / "index.json").exists() else ""
    _say(
        images=f"{images:,}",
        labels=f"{labels:,}",
        output=f"at most {whole}, {held} for each image; while it is made, {most}",
        written=_where(options.to) + replaced,
    )


def _line_bytes(tagger: Tagger, names: Sequence[str], options: argparse.Namespace) -> float:
    """Return how many bytes predictions of these images take each, of scores that are made up."""
    count = tagger.space.num_labels
    low = options.min_score or 0.0
    scores = np.random.default_rng(0).uniform(low, 1.0, (len(names), count)).astype(np.float32)
    rows = [Prediction(name, {}, row, np.zeros(count, dtype=bool)) for name, row in zip(names, scores, strict=True)]
    text = options.format != "parquet"
    file = io.StringIO(newline="") if text else io.BytesIO()
    kept = {"top": options.top, "above": options.min_score, "for_spreadsheet": options.for_spreadsheet}
    write_predictions(file, rows, space=tagger.space, format=options.format, **kept)
    held = file.getvalue()
    return len(held.encode() if isinstance(held, str) else held) / max(1, len(names))


def _where_predictions(images: int, options: argparse.Namespace) -> str:
    if options.part_size is None:
        return _where(options.to) + (", which is replaced" if Path(options.to).exists() else "")
    size = -(-options.part_size // options.batch_size) * options.batch_size
    parts = -(-images // size)
    done = sum((Path(options.to) / f"part-{part:05d}.{options.format}").exists() for part in range(parts))
    return f"{_where(options.to)}: {parts:,} parts of {size:,} images, of which {done:,} are done"


def _where(to: str) -> str:
    path = Path(to)
    return f"into {path}, which is {'there' if path.exists() else 'not there yet'}"


def _some(names: Sequence[str] | np.ndarray, count: int = _SAMPLE) -> list[str]:
    """Return some of the names, spread evenly."""
    step = max(1, len(names) // count)
    return [str(name) for name in names[::step]]


def _sizes(paths: Iterable[str]) -> Iterator[int]:
    """Yield what each file that is there takes in a tar: itself and its labels, both in blocks of 512 with a header."""
    for path in paths:
        try:
            size, _ = stat_image(path)
        except OSError:
            continue
        yield -(-size // 512) * 512 + 3 * 512


def _say(**rows: str) -> None:
    for topic, text in rows.items():
        print(f"{topic:<10}{text}")


def _size(number: float) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"
