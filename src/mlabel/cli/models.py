"""The command that lists backbones and heads with what they cost."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlabel._checks import DataError, suggest
from mlabel._files import read_json, to_json, write_atomically
from mlabel.cli._options import add_command, add_format
from mlabel.models import ModelSize, list_models, list_timm_models, measure_backbone, measure_heads

_LINE = "{:<46} {:>8} {:>14} {:>14}"


def add_models(commands: Any) -> None:
    """Add `mlabel models`."""
    parser = add_command(commands, "models", _models, example="mlabel models 'resnet*' && mlabel models timm/convnext")
    parser.add_argument(
        "pattern", nargs="?", help="a part of the names, or a pattern with * and ?; begins with timm for those of timm"
    )
    parser.add_argument("--image-size", type=int, default=224, help="side for which multiply-adds are counted")
    add_format(parser)
    parser.add_argument("--heads", action="store_true", help="list the heads instead, with their memory")
    parser.add_argument("--num-labels", type=int, default=1000, help="with --heads: labels")
    parser.add_argument("--num-features", type=int, default=2048, help="with --heads: features of the backbone")
    parser.add_argument("--hidden", type=int, default=512, help="with --heads: units, width or rank of the head")


def _models(options: argparse.Namespace) -> None:
    """List the backbones with parameters and multiply-adds, without their heads.

    The first count of a network takes a moment; it is kept in the user's cache folder.
    """
    if options.heads:
        _print_heads(options)
        return
    names = _find(options.pattern)
    sizes = _measure(names, options.image_size)
    if options.format == "json":
        print(json.dumps([dataclasses.asdict(size) for size in sizes], indent=1))
        return
    print(_LINE.format("backbone", "features", "parameters", "multiply-adds"))
    for size in sizes:
        counts = (f"{size.parameters / 1e6:,.2f} M", f"{size.multiply_adds / 1e9:,.3f} G")
        print(_LINE.format(size.name, f"{size.num_features:,}", *counts), flush=True)
    print(f"\nmultiply-adds of one image of {options.image_size} x {options.image_size} pixels; heads are not counted")
    if options.pattern is None:
        print("networks of timm: mlabel models 'timm/*'")


def _print_heads(options: argparse.Namespace) -> None:
    sizes = measure_heads(options.num_labels, options.num_features, hidden=options.hidden)
    if options.format == "json":
        print(json.dumps([dataclasses.asdict(size) for size in sizes], indent=1))
        return
    print(_LINE.format("head", "", "parameters", "in training"))
    for size in sizes:
        counts = (f"{size.parameters / 1e6:,.2f} M", f"{size.training_bytes / 2**20:,.0f} MiB")
        print(_LINE.format(size.name, "", *counts))
    shape = f"{options.num_labels:,} labels in one group, {options.num_features:,} features, hidden {options.hidden}"
    print(f"\n{shape}; in training: weights, gradient and Adam's moments, float32")


def _find(pattern: str | None) -> list[str]:
    wanted = pattern or "*"
    if not set(wanted) & set("*?["):
        wanted = f"{wanted}*" if wanted.startswith("timm") else f"*{wanted}*"
    known = list_timm_models() if wanted.startswith("timm") else list_models()
    names = [name for name in known if fnmatchcase(name, wanted)]
    if not names:
        raise ValueError(f"no backbone fits {pattern!r}; {suggest(str(pattern), known)}")
    return names


def _measure(names: list[str], side: int) -> Iterator[ModelSize]:
    """Yield the size of each network that takes images of that side, from the cache where it is there."""
    source = "timm" if names[0].startswith("timm") else "torchvision"
    path, versions = _cache_file(source), _versions(source)
    kept = _read_cache(path, versions)
    before = len(kept)
    try:
        for name in names:
            key = f"{name} {side}"
            if key not in kept:
                try:
                    size = measure_backbone(name, image_size=side)
                except ValueError as error:
                    print(f"left out: {str(error).splitlines()[0][:150]}", file=sys.stderr)
                    continue
                kept[key] = [size.num_features, size.parameters, size.multiply_adds]
            yield ModelSize(name, (side, side), *kept[key])
    finally:
        if len(kept) > before:
            _write_cache(path, versions, kept)


def _cache_file(source: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "mlabel" / f"sizes-{source}.json"


def _versions(source: str) -> dict[str, str]:
    """Return the versions of what makes and counts the networks: others may count otherwise."""
    return {package: importlib.metadata.version(package) for package in ("mlabel", "torch", source)}


def _read_cache(path: Path, versions: dict[str, str]) -> dict[str, list[int]]:
    """Return the counts in the cache of those versions; none where it is of others, missing or damaged."""
    try:
        found = read_json(path)
        entries = found["sizes"] if found["versions"] == versions else {}
        return {str(key): [int(a), int(b), int(c)] for key, (a, b, c) in entries.items()}
    except (OSError, DataError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write_cache(path: Path, versions: dict[str, str], sizes: dict[str, list[int]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json({"versions": versions, "sizes": sizes}))
    except OSError:
        return  # a cache that cannot be written only costs time
