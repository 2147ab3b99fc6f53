"""The `mlabel` command: each subcommand is a thin face over one public function.

Progress goes to stderr and results to stdout. Exit codes: 0 done; 1 the doctor found an error, or one came that was not
foreseen; 2 wrong use or bad input; 130 and 143 stopped by SIGINT and SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlabel._files import to_json
from mlabel.data import MIXES, READERS, SAMPLERS, examine, survey_images
from mlabel.decisions import OBJECTIVES, SCOPES
from mlabel.inference import FORMATS, Tagger, find_images, write_predictions
from mlabel.losses import NAMES as LOSSES
from mlabel.models import HEADS
from mlabel.recipes import Recipe, Run, RunEvaluation, demo, run, write_evaluation
from mlabel.recipes.run import read_table
from mlabel.report import write_diagnosis
from mlabel.training import OPTIMIZERS, PRECISIONS, SCHEDULES, TrainConfig
from mlabel.weights import SCHEMES

# Settings whose value is one of a fixed table.
_CHOICES: dict[str, Iterable[str]] = {
    "reader": READERS,
    "head": HEADS,
    "loss": LOSSES,
    "reduction": ("mean", "batchmean", "sum"),
    "weighting": SCHEMES,
    "objective": OBJECTIVES,
    "scope": SCOPES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "sampler": SAMPLERS,
    "mix": MIXES,
}
# Reader options common enough to have a name of their own on the command line.
_READER_OPTIONS = {
    "min_count": "leave out labels with fewer images",
    "max_labels": "keep this many labels, the most frequent",
    "sample_every": "keep one record in this many",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("mlabel: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"mlabel: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mlabel", description="Multi-label image learning, from annotations to tags.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_doctor, _add_train, _add_evaluate, _add_calibrate, _add_predict):
        add(commands)
    return parser


def _add(commands: Any, name: str, command: Callable[[Any], int | None], *, example: str) -> argparse.ArgumentParser:
    """Add a subcommand, whose help is the first line of its function and an example."""
    text = inspect.getdoc(command) or ""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.splitlines()[0],
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="say more on stderr, and show a table of every label")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", _demo, example="mlabel demo --run runs/demo")
    parser.add_argument("--run", default="runs/demo", help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and training")


def _demo(options: argparse.Namespace) -> None:
    """Train, calibrate and evaluate on scenes of handwritten digits: under a minute, no download."""
    result = demo(options.run, seed=options.seed, progress=_progress)
    _print_evaluation(result, options.verbose)
    folder = Path(options.run)
    print(f"\nlook at {folder / 'report' / 'index.html'} and {folder / 'report' / 'examples.png'}")
    print(f"next: mlabel predict --bundle {folder / 'bundle'} {folder / 'scenes' / 'images' / 'test'} --format jsonl")


def _add_train(commands: Any) -> None:
    parser = _add(
        commands,
        "train",
        _train,
        example="mlabel train --reader mirflickr --data mirflickr14 --backbone resnet18 --loss asymmetric --run runs/m",
    )
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--resume", help="auto: go on with the run of the folder, or begin; or a checkpoint's folder")
    _add_part(parser)
    _add_threshold(parser)
    _add_device(parser)
    _add_fields(parser, Recipe, skip={"reader_options", "labels", "loss_options", "train"})
    _add_fields(parser, TrainConfig, skip=set())
    _add_labels(parser)
    _add_reader_options(parser)
    _add_pairs(parser, "loss")


def _train(options: argparse.Namespace) -> None:
    """Train on annotated images, calibrate thresholds, evaluate, and write bundle and report."""
    result = run(
        _recipe(options),
        options.run,
        resume=options.resume,
        part=options.part,
        threshold=options.threshold,
        device=options.device,
        progress=_progress,
    )
    _print_evaluation(result, options.verbose)
    print(f"\nwrote {options.run}: report/index.html, history.csv, checkpoints, bundle")


def _recipe(options: argparse.Namespace) -> Recipe:
    given = vars(options)
    train = TrainConfig(**{field.name: given[field.name] for field in dataclasses.fields(TrainConfig)})
    made: dict[str, Any] = {
        "reader_options": _reader_options(options),
        "labels": _label_names(options.labels),
        "loss_options": _pairs(options.loss_option, "--loss-option"),
        "train": train,
    }
    plain = {field.name: given[field.name] for field in dataclasses.fields(Recipe) if field.name not in made}
    return Recipe(**plain, **made)


def _add_doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", _doctor, example="mlabel doctor --reader celeba --data celeba --page doctor")
    parser.add_argument("--reader", required=True, choices=list(READERS), help="reader of the annotations")
    parser.add_argument("--data", required=True, help="the folder or file that it reads")
    parser.add_argument("--limit", type=int, help="look at this many images only")
    _add_labels(parser)
    parser.add_argument("--expected-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images")
    parser.add_argument("--min-positives", type=int, default=5, help="fewer in a part are a warning")
    parser.add_argument("--distance", type=int, default=4, help="bits of 64 in which near-duplicates may differ")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--format", choices=["text", "json"], default="text", help="of what is printed")
    parser.add_argument("--page", metavar="FOLDER", help="write a page with plots into this folder")
    parser.add_argument("--no-images", action="store_true", help="look at labels and parts only")
    _add_reader_options(parser)


def _doctor(options: argparse.Namespace) -> int:
    """Say what is wrong or odd with images, labels and parts; exit code 1 where there is an error."""
    recipe = Recipe(
        options.reader,
        options.data,
        reader_options=_reader_options(options),
        labels=_label_names(options.labels),
        limit=options.limit,
    )
    parts = read_table(recipe).parts()
    surveys = None
    if not options.no_images:
        surveys = {
            name: survey_images(table, num_workers=options.num_workers, progress=_progress)
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


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, example="mlabel evaluate --run runs/m --part test")
    parser.add_argument("--run", required=True, help="folder of the run")
    _add_part(parser)
    _add_device(parser)
    _add_threshold(parser)
    parser.add_argument("--limit", type=int, help="score this many images of the part only")


def _evaluate(options: argparse.Namespace) -> None:
    """Measure the best weights of a run, beside the prior, at a threshold and at the calibrated ones."""
    work = Run.open(options.run, device=options.device, progress=_progress).limited(options.limit)
    result = work.evaluate(part=options.part, threshold=options.threshold)
    if options.limit is None:
        write_evaluation(work, result)
    _print_evaluation(result, options.verbose)


def _add_calibrate(commands: Any) -> None:
    parser = _add(
        commands, "calibrate", _calibrate, example="mlabel calibrate --run runs/m --objective f1 --scope label"
    )
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--objective", choices=list(OBJECTIVES), help="what to fit for; the run's, if not given")
    parser.add_argument("--scope", choices=list(SCOPES), help="what has its own threshold; the run's, if not given")
    _add_device(parser)


def _calibrate(options: argparse.Namespace) -> None:
    """Fit the thresholds of a run on its validation part, and put them into its bundle."""
    work = Run.open(options.run, device=options.device, progress=_progress)
    thresholds = work.calibrate(objective=options.objective, scope=options.scope)
    if thresholds is None:
        raise ValueError(f"{options.run} has no labelled validation part to fit thresholds on")
    for name, value in zip(work.model.space.names, thresholds.values, strict=True):
        print(f"{name}\t{'' if value != value else f'{value:.4f}'}")
    print(f"wrote {Path(options.run) / 'thresholds.json'} and the bundle", file=sys.stderr)


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", _predict, example="mlabel predict --bundle runs/m/bundle photos --format tsv")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER", help="images, or folders of images")
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--format", choices=list(FORMATS), default="tsv", help="of the predictions")
    parser.add_argument("--to", help="file to write; stdout, if not given")
    parser.add_argument("--threshold", type=float, help="in the place of the bundle's thresholds")
    parser.add_argument("--limit", type=int, help="label this many images only")
    parser.add_argument("--batch-size", type=int, default=32, help="images of one forward pass")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--on-bad", choices=["error", "skip"], default="error", help="what an unreadable image does")
    _add_device(parser)


def _predict(options: argparse.Namespace) -> None:
    """Label images with a trained bundle."""
    tagger = Tagger.load(options.bundle, device=options.device)
    images = find_images(options.images)[: options.limit]
    bad: list[tuple[str, str]] = []
    stream = tagger.stream(
        images,
        threshold=options.threshold,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad=options.on_bad,
        bad=bad,
    )
    shown = _progress(stream, len(images), "predicting")
    number = _write(options.to, lambda file: write_predictions(file, shown, space=tagger.space, format=options.format))
    for path, reason in bad:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(f"{len(images)} images expected, {number} labelled, {len(bad)} skipped", file=sys.stderr)


def _add_reader_options(parser: argparse.ArgumentParser) -> None:
    for name, text in _READER_OPTIONS.items():
        parser.add_argument(_flag(name), type=int, default=argparse.SUPPRESS, help=f"{text} (readers that know it)")
    _add_pairs(parser, "reader")


def _add_pairs(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        f"--{of}-option", action="append", default=[], metavar="NAME=VALUE", help=f"a further one of the {of}"
    )


def _reader_options(options: argparse.Namespace) -> dict[str, Any]:
    given = vars(options)
    short = {name: given[name] for name in _READER_OPTIONS if name in given}
    return {**short, **_pairs(options.reader_option, "--reader-option")}


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        metavar="FILE_OR_LIST",
        help="labels to use: names separated by commas, or a file with one name a line; all, if not given",
    )


def _label_names(text: str | None) -> list[str] | None:
    """Return the names in a file or a list; None where neither is given."""
    if text is None:
        return None
    if os.path.isfile(text):
        names = Path(text).read_text(encoding="utf-8-sig").split("\n")
    elif text.endswith(".txt"):
        raise FileNotFoundError(f"--labels: no such file {text}")
    else:
        names = text.split(",")
    return [name.strip() for name in names if name.strip()]


def _add_part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part", help="part to evaluate on: train, val or test; test where it has labels, if not given"
    )


def _add_threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, default=0.5, help="of the middle column of the table")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="such as cpu or cuda:0; a GPU where there is one, if not given")


def _add_fields(parser: argparse.ArgumentParser, kind: type, *, skip: set[str]) -> None:
    """Add an option for each field of a dataclass; its help is the field's line of the docstring."""
    texts = _argument_texts(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        required = field.default is dataclasses.MISSING
        parser.add_argument(
            _flag(field.name),
            type=_type_of(str(field.type)),
            required=required,
            default=None if required else field.default,
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
    return kinds[annotation.removesuffix(" | None")]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pairs(given: Sequence[str], flag: str) -> dict[str, Any]:
    """Return NAME=VALUE texts as a dictionary; a value that is JSON is what it says, any other is text."""
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{flag} wants NAME=VALUE; got {text!r}")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs


def _progress(batches: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    return tqdm(batches, total=total, desc=title, leave=False)


def _print_evaluation(result: RunEvaluation, verbose: bool) -> None:
    print(f"\n{result.part} part, {next(iter(result.columns.values())).num_samples:,} images")
    for note in result.notes:
        print(f"note: {note}")
    print(result.table())
    if verbose:
        print(result.best.label_table())


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
