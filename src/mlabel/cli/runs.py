"""Commands that make a run, and those that work on one."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from mlabel.cli._options import (
    add_command,
    add_device,
    add_dry_run,
    add_fields,
    add_include,
    add_intervals,
    add_labels,
    add_limit,
    add_pairs,
    add_part,
    add_reader_options,
    add_run,
    add_seed,
    add_threshold,
    label_names,
    pairs_of,
    progress,
    reader_options,
)
from mlabel.decisions import OBJECTIVES, SCOPES
from mlabel.metrics import rows_table
from mlabel.recipes import CALIBRATIONS, Recipe, Run, RunEvaluation, demo, plan_run, report_run, run, write_evaluation
from mlabel.recipes.pages.run_page import TILES
from mlabel.training import TrainConfig

# Settings of a recipe that are given as NAME=VALUE.
_PAIRED = {"reader_options", "head_options", "loss_options", "objective_options"}


def add_demo(commands: Any) -> None:
    """Add `mlabel demo`."""
    parser = add_command(commands, "demo", _demo, example="mlabel demo --run runs/demo")
    add_run(parser, default="runs/demo")
    add_seed(parser, "of scenes and training")
    add_limit(parser, "use this many scenes only")
    add_device(parser)


def _demo(options: argparse.Namespace) -> None:
    """Train, calibrate and evaluate on scenes of handwritten digits: under a minute, no download."""
    result = demo(options.run, seed=options.seed, limit=options.limit, device=options.device, progress=progress)
    _print_evaluation(result, options.verbose)
    folder = Path(options.run)
    print(f"\nlook at {folder / 'report' / 'index.html'} and {folder / 'report' / 'examples.png'}")
    print(f"next: mlabel predict --bundle {folder / 'bundle'} {folder / 'scenes' / 'images' / 'test'} --format jsonl")


def add_train(commands: Any) -> None:
    """Add `mlabel train`."""
    parser = add_command(
        commands,
        "train",
        _train,
        example="mlabel train --reader mirflickr --data mirflickr14 --backbone resnet18 --loss asymmetric --run runs/m",
    )
    add_run(parser)
    parser.add_argument("--resume", help="auto: go on with the run of the folder, or begin; or a checkpoint's folder")
    parser.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="with --resume, go on although the data is not what the checkpoint was trained on",
    )
    add_dry_run(parser, "what would be trained, with steps, memory, time and disk; a few steps are measured")
    add_part(parser)
    add_threshold(parser)
    add_device(parser)
    add_recipe(parser)


def add_recipe(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options of a recipe; see `_recipe`."""
    add_fields(parser, Recipe, skip=_PAIRED | {"labels", "train"}, required=required)
    add_fields(parser, TrainConfig, skip=set())
    add_labels(parser)
    add_reader_options(parser)
    add_pairs(parser, "head")
    add_pairs(parser, "loss")
    add_pairs(parser, "objective")


def _train(options: argparse.Namespace) -> None:
    """Train on annotated images, calibrate thresholds, evaluate, and write bundle and report."""
    if options.dry_run:
        print(plan_run(_recipe(options), options.run, resume=options.resume, device=options.device).text())
        return
    result = run(
        _recipe(options),
        options.run,
        resume=options.resume,
        allow_changed_data=options.allow_changed_data,
        part=options.part,
        threshold=options.threshold,
        device=options.device,
        progress=progress,
    )
    if result is None:
        return  # of several processes the first one speaks
    _print_evaluation(result, options.verbose)
    print(f"\nwrote {options.run}: report/index.html, history.csv, checkpoints, bundle")


def _recipe(options: argparse.Namespace) -> Recipe:
    given = vars(options)
    train = TrainConfig(**{field.name: given[field.name] for field in dataclasses.fields(TrainConfig)})
    made: dict[str, Any] = {
        "reader_options": reader_options(options),
        "labels": label_names(options.labels),
        "head_options": pairs_of(options.head_option, "--head-option"),
        "loss_options": pairs_of(options.loss_option, "--loss-option"),
        "objective_options": pairs_of(options.objective_option, "--objective-option"),
        "train": train,
    }
    plain = {field.name: given[field.name] for field in dataclasses.fields(Recipe) if field.name not in made}
    return Recipe(**plain, **made)


def add_evaluate(commands: Any) -> None:
    """Add `mlabel evaluate`."""
    parser = add_command(commands, "evaluate", _evaluate, example="mlabel evaluate --run runs/m --part test")
    add_run(parser)
    add_part(parser)
    add_device(parser)
    add_threshold(parser)
    add_limit(parser, "score this many images of the part only")
    add_include(parser)
    add_intervals(
        parser, "show the 95 %% interval of every metric, from this many resamples (1000 where no number is given)"
    )


def _evaluate(options: argparse.Namespace) -> None:
    """Measure the best weights of a run, beside the prior, at a threshold and at the calibrated ones."""
    work = Run.open(options.run, device=options.device, progress=progress)
    part, _ = work.part_to_evaluate(options.part)
    result = work.limited(options.limit, part).evaluate(
        part=options.part, threshold=options.threshold, include=options.include, intervals=options.intervals
    )
    if options.limit is None:
        write_evaluation(work, result)
    _print_evaluation(result, options.verbose)


def add_report(commands: Any) -> None:
    """Add `mlabel report`."""
    parser = add_command(commands, "report", _report, example="mlabel report runs/m --labels cat,dog")
    parser.add_argument("folder", nargs="?", metavar="RUN", help="folder of the run; or --run")
    add_run(parser, required=False)
    add_part(parser)
    add_device(parser)
    add_threshold(parser)
    add_intervals(parser, "resamples that the intervals are from", default=1000)
    add_labels(parser, "labels whose curves are drawn: names separated by commas, or a file with one name a line")
    parser.add_argument("--tiles", type=int, default=TILES, help="pictures of a gallery")


def _report(options: argparse.Namespace) -> None:
    """Write the whole page of a run: figures with intervals, curves, confusions and pictures."""
    given = [folder for folder in (options.folder, options.run) if folder is not None]
    if len(given) != 1:
        raise ValueError(f"the folder of one run is wanted: mlabel report RUN; got {', '.join(given) or 'none'}")
    work = Run.open(given[0], device=options.device, progress=progress)
    page = report_run(
        work,
        part=options.part,
        threshold=options.threshold,
        intervals=options.intervals,
        labels=label_names(options.labels),
        tiles=options.tiles,
    )
    pictures, tables = (len(list(page.parent.glob(f"*.{kind}"))) for kind in ("png", "csv"))
    print(f"wrote {page}; beside it {pictures} pictures and {tables} tables")


def add_calibrate(commands: Any) -> None:
    """Add `mlabel calibrate`."""
    parser = add_command(
        commands,
        "calibrate",
        _calibrate,
        example="mlabel calibrate --run runs/m --objective precision_floor --objective-option floor=0.9 --scope group",
    )
    add_run(parser)
    parser.add_argument("--objective", choices=list(OBJECTIVES), help="what to fit for; the run's, if not given")
    add_pairs(parser, "objective")
    parser.add_argument("--scope", choices=list(SCOPES), help="what has its own threshold; the run's, if not given")
    parser.add_argument(
        "--calibration",
        choices=list(CALIBRATIONS),
        help="what makes scores probabilities, before thresholds are fitted to them; the run's, if not given",
    )
    add_limit(parser, "fit on this many images of the validation part only")
    add_device(parser)


def _calibrate(options: argparse.Namespace) -> None:
    """Fit calibration and thresholds of a run on its validation part, and put them into its bundle."""
    work = Run.open(options.run, device=options.device, progress=progress).limited(options.limit, "val")
    given = pairs_of(options.objective_option, "--objective-option")
    thresholds = work.calibrate(
        objective=options.objective, scope=options.scope, options=given or None, calibration=options.calibration
    )
    if thresholds is None:
        raise ValueError(f"{options.run} has no labelled validation part to fit thresholds on")
    if thresholds.rule is not None:
        print(thresholds.rule)
    for name, value in zip(work.model.space.names, thresholds.values, strict=True):
        print(f"{name}\t{'' if value != value else f'{value:.4f}'}")
    print(f"wrote {Path(options.run) / 'thresholds.json'} and the bundle", file=sys.stderr)


def _print_evaluation(result: RunEvaluation, verbose: bool) -> None:
    print(f"\n{result.part} part, {result.coverage}")
    for note in result.notes:
        print(f"note: {note}")
    print(result.table())
    if verbose:
        for title, rows in result.label_parts().items():
            print(f"\n{title}\n{rows_table(rows)}")
        print(f"\nLabels\n{result.best.label_table()}")
