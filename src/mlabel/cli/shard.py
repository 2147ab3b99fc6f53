"""The command that writes shards, and verifies them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mlabel.cli._options import add_bad, add_command, add_dataset, add_dry_run, add_seed, dataset_recipe, progress
from mlabel.cli._plans import say_shards
from mlabel.data import verify_shards, write_shards
from mlabel.recipes.run import read_table


def add_shard(commands: Any) -> None:
    """Add `mlabel shard`."""
    parser = add_command(
        commands,
        "shard",
        _shard,
        example="mlabel shard --reader celeba --data celeba --to shards && mlabel shard --verify shards",
    )
    add_dataset(parser, required=False)
    parser.add_argument("--to", metavar="FOLDER", help="folder of the shards")
    parser.add_argument("--shard-mb", type=float, default=512, help="MiB of a tar at most")
    parser.add_argument("--shuffle", action="store_true", help="shuffle; only programs that read in order need it")
    add_seed(parser, "with --shuffle, of the order")
    add_bad(parser)
    add_dry_run(parser, "how many images would be packed, and how large they are")
    parser.add_argument("--verify", metavar="FOLDER", help="write nothing, but read all bytes of these shards")


def _shard(options: argparse.Namespace) -> int:
    """Pack images and labels into a few large tars, to be read by `--reader shards`; repeated, it goes on.

    With --verify, compare shards with their checksums: exit code 2 where something is not as it was written.
    """
    if options.verify is not None:
        return _verify(options.verify)
    lacking = [name for name in ("reader", "data", "to") if getattr(options, name) is None]
    if lacking:
        raise ValueError(f"--{lacking[0]} is wanted to write shards, or --verify FOLDER to look at those there")
    table = read_table(dataset_recipe(options))
    size, seed = int(options.shard_mb * 2**20), options.seed if options.shuffle else None
    if options.dry_run:
        say_shards(table, options, shard_bytes=size, seed=seed)
        return 0
    done = write_shards(
        table,
        options.to,
        shard_bytes=size,
        seed=seed,
        on_bad=options.on_bad,
        max_bad=options.max_bad,
        progress=progress,
    )
    for name, reason in done.skipped:
        print(f"left out {name}: {reason}", file=sys.stderr)
    print(
        f"{done.num_samples:,} images in {len(done.names)} tars, {done.num_bytes / 2**30:.2f} GiB; "
        f"{done.num_kept} tars were there already, {len(done.skipped)} images were left out"
    )
    print(f"next: mlabel train --reader shards --data {options.to}")
    return 0


def _verify(folder: str) -> int:
    """Print what is wrong with shards; return the exit code."""
    problems = verify_shards(folder, progress=progress)
    for problem in problems:
        print(problem)
    found = f"problems: {len(problems)}" if problems else "every byte is as it was written"
    print(f"{folder}: {found}", file=sys.stderr)
    return 2 if problems else 0
