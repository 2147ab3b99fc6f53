"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlabel.cli._config import PAIRS, Listing, add_config
from mlabel.data import MIXES, READERS, SAMPLERS, SPLIT_METHODS
from mlabel.decisions import CALIBRATION_SCOPES, OBJECTIVES, SCOPES
from mlabel.losses import EXCLUSIVE_NAMES
from mlabel.losses import NAMES as LOSSES
from mlabel.models import HEADS, VIEWS
from mlabel.recipes import CALIBRATIONS, INIT_BIASES, Recipe
from mlabel.training import (
    BATCH_NORM,
    COMPILE,
    LOGS,
    MEMORY_FORMATS,
    ON_BAD,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    SHARD,
    SHARPNESS,
    TF32,
    UNFREEZE,
    WEIGHT_DECAY_ON,
    TrainConfig,
)
from mlabel.weights import SCHEMES

# Settings whose value is one of a fixed table.
_CHOICES: dict[str, Iterable[str]] = {
    "reader": READERS,
    "split_method": SPLIT_METHODS,
    "head": HEADS,
    "views": VIEWS,
    "loss": sorted({*LOSSES, *EXCLUSIVE_NAMES}),
    "exclusive_loss": EXCLUSIVE_NAMES,
    "reduction": ("mean", "batchmean", "sum"),
    "weighting": SCHEMES,
    "init_bias": INIT_BIASES,
    "calibration": CALIBRATIONS,
    "calibration_scope": CALIBRATION_SCOPES,
    "objective": OBJECTIVES,
    "scope": SCOPES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "sampler": SAMPLERS,
    "mix": MIXES,
    "on_bad": ON_BAD,
    "unfreeze": UNFREEZE,
    "weight_decay_on": WEIGHT_DECAY_ON,
    "batch_norm": BATCH_NORM,
    "sharpness": SHARPNESS,
    "shard": SHARD,
    "compile": COMPILE,
    "memory_format": MEMORY_FORMATS,
    "tf32": TF32,
    "log": LOGS,
}
# Reader options common enough to have a name of their own on the command line.
_READER_OPTIONS = {
    "min_count": "leave out labels with fewer images",
    "max_labels": "keep this many labels, the most frequent",
    "sample_every": "keep one record in this many",
}


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for those that only say that nothing was chosen."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default in ((), [])
        return action.help if empty else super()._get_help_string(action)


def add_command(
    commands: Any, name: str, command: Callable[[Any], int | None], *, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand, whose help is the first line of its function and an example."""
    text = inspect.getdoc(command) or ""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.splitlines()[0],
        description=text,
        epilog=f"example: {example}",
        formatter_class=_Help,
    )
    parser.add_argument("--verbose", action="store_true", help="say more on stderr, and show a table of every label")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_config(parser)
    parser.set_defaults(command=command)
    return parser


def add_run(parser: argparse.ArgumentParser, *, default: str | None = None, required: bool = True) -> None:
    """Add `--run`, by its long name too: torchrun takes --run for an abbreviation of options of its own."""
    parser.add_argument(
        "--run",
        "--run-dir",
        dest="run",
        required=required and default is None,
        default=default,
        metavar="FOLDER",
        help="folder of the run",
    )


def add_bundle(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """Add `--bundle`; `text` says what it is for."""
    parser.add_argument("--bundle", required=required, metavar="FOLDER", help=f"folder of a bundle{text}")


def add_limit(parser: argparse.ArgumentParser, what: str = "look at this many images only") -> None:
    """Add `--limit`."""
    parser.add_argument("--limit", type=int, help=what)


def add_seed(parser: argparse._ActionsContainer, of: str) -> None:
    """Add `--seed`."""
    parser.add_argument("--seed", type=int, default=TrainConfig.seed, help=of)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add `--format` of what is printed."""
    parser.add_argument("--format", choices=["text", "json"], default="text", help="of what is printed")


def add_min_score(parser: argparse.ArgumentParser, default: float | None, done: str) -> None:
    """Add `--min-score`; `done` says what happens to the scores."""
    parser.add_argument("--min-score", type=float, default=default, help=f"the lowest score that is {done}")


def add_dry_run(parser: argparse.ArgumentParser, says: str) -> None:
    """Add `--dry-run`; `says` is what it tells."""
    parser.add_argument("--dry-run", action="store_true", help=f"write nothing, but say {says}")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--num-workers`."""
    parser.add_argument("--num-workers", type=int, default=TrainConfig.num_workers, help="processes that decode images")


def add_images(parser: argparse._ActionsContainer) -> None:
    """Add the options of images as training sees them."""
    parser.add_argument("--image-size", type=int, default=Recipe.image_size, help="as in `mlabel train`")
    parser.add_argument("--in-channels", type=int, default=Recipe.in_channels, help="as in `mlabel train`")
    parser.add_argument("--augment", default=TrainConfig.augment, help="as in `mlabel train`")


def add_dataset(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that say which annotated images a command works on; see `dataset_recipe`."""
    parser.add_argument("--reader", required=required, choices=list(READERS), help="reader of the annotations")
    parser.add_argument("--data", required=required, help="the folder or file that it reads")
    add_limit(parser)
    add_labels(parser)
    add_reader_options(parser)


def dataset_recipe(options: argparse.Namespace) -> Recipe:
    """Return a recipe that reads what the options of `add_dataset` say."""
    return Recipe(
        options.reader,
        options.data,
        reader_options=reader_options(options),
        labels=label_names(options.labels),
        limit=options.limit,
    )


def add_reader_options(parser: argparse.ArgumentParser) -> None:
    """Add the reader options that have a name of their own, and `--reader-option NAME=VALUE`."""
    for name, text in _READER_OPTIONS.items():
        parser.add_argument(flag_of(name), type=int, default=argparse.SUPPRESS, help=f"{text} (readers that know it)")
    add_pairs(parser, "reader")


def reader_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_reader_options` say."""
    given = vars(options)
    short = {name: given[name] for name in _READER_OPTIONS if name in given}
    return {**short, **pairs_of(options.reader_option, "--reader-option")}


def add_pairs(parser: argparse.ArgumentParser, of: str) -> None:
    """Add an option that may be given many times as NAME=VALUE."""
    parser.add_argument(f"--{of}-option", action="append", default=[], metavar=PAIRS, help=f"a further one of the {of}")


def pairs_of(given: Sequence[str | Mapping[str, Any]], flag: str) -> dict[str, Any]:
    """Return NAME=VALUE texts as a dictionary; a value that is JSON is what it says, any other is text.

    Those of a file come first, as a dictionary.
    """
    pairs: dict[str, Any] = {}
    for text in given:
        if isinstance(text, Mapping):
            pairs.update(text)
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{flag} wants NAME=VALUE; got {text!r}")
        try:
            pairs[name] = json.loads(value)
        except (ValueError, RecursionError):
            pairs[name] = value
    return pairs


_LABELS = "labels to use: names separated by commas, or a file with one name a line; all, if not given"


def add_labels(parser: argparse.ArgumentParser, text: str = _LABELS) -> None:
    """Add `--labels`, with `text` on what they are for; see `label_names`."""
    parser.add_argument(
        "--labels",
        type=Listing(str, keep_text=True),
        metavar="FILE_OR_LIST",
        help=text,
    )


def label_names(text: str | Sequence[str] | None) -> list[str] | None:
    """Return the names in a file or a list; None where neither is given."""
    if text is None or not isinstance(text, str):
        return None if text is None else list(text)
    if os.path.isfile(text):
        names = Path(text).read_text(encoding="utf-8-sig").split("\n")
    elif text.endswith(".txt"):
        raise FileNotFoundError(f"--labels: no such file {text}")
    else:
        names = text.split(",")
    return [name.strip() for name in names if name.strip()]


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add `--part`."""
    parser.add_argument(
        "--part", help="part to evaluate on: train, val or test; test where it has labels, if not given"
    )


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold`."""
    parser.add_argument("--threshold", type=float, default=0.5, help="of the middle column of the table")


def add_include(parser: argparse.ArgumentParser) -> None:
    """Add `--include`."""
    parser.add_argument(
        "--include",
        type=Listing(str),
        default=(),
        metavar="NAME[,NAME]",
        help="metrics to measure besides, such as macro_mcc,micro_ece,ndcg_at_5",
    )


def add_intervals(parser: argparse.ArgumentParser, text: str, *, default: int | None = None) -> None:
    """Add `--intervals`; `text` says what its number is of."""
    parser.add_argument("--intervals", type=int, nargs="?", const=1000, default=default, metavar="RESAMPLES", help=text)


def add_page(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--page`."""
    parser.add_argument("--page", metavar="FOLDER", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="such as cpu or cuda:0; a GPU where there is one, if not given")


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the options of a pass over images with a trained model."""
    parser.add_argument("--batch-size", type=int, default=32, help="images of one forward pass")
    add_workers(parser)


def add_bad(parser: argparse.ArgumentParser, *, listed: str = "on stderr") -> None:
    """Add `--on-bad` and `--max-bad`; `listed` says where what was skipped is named."""
    parser.add_argument(
        "--on-bad",
        choices=list(ON_BAD),
        default="error",
        help=f"what an image that cannot be read does: error stops; skip lists it {listed}",
    )
    parser.add_argument("--max-bad", type=float, default=0.001, help="with skip, the share that may be bad")


def add_fields(parser: argparse.ArgumentParser, kind: type, *, skip: set[str], required: bool = True) -> None:
    """Add an option for each field of a dataclass; its help is the field's line of the docstring.

    Args:
        parser: What it is added to.
        kind: The dataclass.
        skip: Fields that get none.
        required: Whether options of fields without a default must be given.
    """
    texts = _argument_texts(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        without_default = field.default is dataclasses.MISSING
        parser.add_argument(
            flag_of(field.name),
            type=_type_of(str(field.type)),
            required=required and without_default,
            default=None if without_default else field.default,
            choices=list(_CHOICES[field.name]) if field.name in _CHOICES else None,
            help=texts[field.name].replace("%", "%%"),
        )


def _argument_texts(kind: type) -> dict[str, str]:
    """Return the text of each entry of the Args section of a class's docstring."""
    section = (inspect.getdoc(kind) or "").split("Args:\n", 1)[1].split("\n\n", 1)[0]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.startswith(" " * 8):
            name, text = line.strip().split(": ", 1)
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    return texts


def _type_of(annotation: str) -> Callable[[str], Any]:
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    kinds |= {"tuple[int, ...]": Listing(int), "tuple[float, ...]": Listing(float)}
    return kinds[annotation.removesuffix(" | None")]


def flag_of(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def progress(batches: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """Show a progress bar on stderr while batches are taken."""
    return tqdm(batches, total=total, desc=title, leave=False)
