"""The command that searches over the settings of a training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import statistics
import sys
from collections.abc import Mapping
from typing import Any

from mlabel.cli._config import PAIRS
from mlabel.cli._options import add_command, add_device, add_format, add_part, pairs_of, progress
from mlabel.cli.runs import _recipe, add_recipe
from mlabel.metrics import comparison_table
from mlabel.recipes import KEEP_TRIALS, Recipe, RunEvaluation, retrain, tune
from mlabel.training import TrainConfig
from mlabel.tuning import PRUNERS, STRATEGIES, SearchConfig, Study


def add_tune(commands: Any) -> None:
    """Add `mlabel tune`."""
    parser = add_command(
        commands, "tune", _tune, example="mlabel tune --config search.toml --study studies/a --parallel 2 --retrain 3"
    )
    parser.add_argument(
        "program",
        nargs="?",
        metavar="PROGRAM.py",
        help="your own program, which is run, and whose `recipe` and `vary` are taken; without it, options say them",
    )
    parser.add_argument("--study", required=True, metavar="FOLDER", help="folder of the study; what is there goes on")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar=PAIRS,
        help='a setting and what it may be, such as lr=[0.001,0.01] or lr={"low":1e-4,"high":1e-2,"log":true}',
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="tpe", help="what is tried next; grid: all there is")
    parser.add_argument("--pruning", choices=PRUNERS, default="none", help="which trials are given up early")
    parser.add_argument("--trials", type=int, help="how many; the whole grid, or 20, if not given")
    parser.add_argument("--minutes", type=float, help="no trial begins after so many")
    parser.add_argument("--parallel", type=int, default=1, help="trials at a time, each in a process of its own")
    parser.add_argument(
        "--keep-trials", choices=KEEP_TRIALS, default="all", help="trials that keep their best checkpoint"
    )
    parser.add_argument(
        "--retrain",
        type=int,
        nargs="?",
        const=1,
        metavar="SEEDS",
        help="train the best settings anew as whole runs, with so many seeds (1 where no number is given)",
    )
    add_format(parser)
    add_part(parser)
    add_device(parser)
    add_recipe(parser, required=False)


def _tune(options: argparse.Namespace) -> None:
    """Search over settings, judged on the validation part; repeated, it goes on where it was stopped."""
    recipe, vary = _told(options)
    config = SearchConfig(
        strategy=options.strategy,
        pruning=options.pruning,
        trials=options.trials,
        minutes=options.minutes,
        seed=recipe.train.seed,
    )
    study = tune(
        recipe,
        vary,
        options.study,
        config=config,
        processes=options.parallel,
        keep=options.keep_trials,
        device=options.device,
        say=_say,
    )
    found: dict[str, RunEvaluation] = {}
    if options.retrain is not None:
        found = retrain(
            study, seeds=options.retrain, part=options.part, device=options.device, progress=progress, say=_say
        )
    if options.format == "json":
        retrained = {folder: result.to_dict() for folder, result in found.items()}
        print(json.dumps({**study.to_dict(), "retrained": retrained}, ensure_ascii=False, indent=1))
        return
    _print_study(study)
    if found:
        _print_retrained(found)


def _told(options: argparse.Namespace) -> tuple[Recipe, Mapping[str, Any]]:
    """Return the recipe and what varies, by the options or by a program."""
    vary = pairs_of(options.vary, "--vary")
    if options.program is None:
        for name in ("reader", "data"):
            if getattr(options, name) is None:
                raise ValueError(f"--{name} is wanted, here or in a file of options; see mlabel tune --help")
        return _recipe(options), vary
    _refuse_recipe_options(options)
    made = runpy.run_path(options.program)
    recipe, held = made.get("recipe"), made.get("vary")
    if not isinstance(recipe, Recipe) or not isinstance(held, Mapping):
        raise ValueError(
            f"{options.program}: `recipe`, an mlabel.recipes.Recipe, and `vary`, a dictionary, were wanted; got "
            f"{type(recipe).__name__} and {type(held).__name__}"
        )
    return recipe, {**held, **vary}


def _refuse_recipe_options(options: argparse.Namespace) -> None:
    """Raise ValueError where an option says what the program's recipe says."""
    given = vars(options)
    fields = [field for kind in (Recipe, TrainConfig) for field in dataclasses.fields(kind)]
    for field in fields:
        default = None if field.default is dataclasses.MISSING else field.default
        if field.name in given and given[field.name] != default:
            raise ValueError(f"--{field.name.replace('_', '-')} is said by the recipe of {options.program}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_study(study: Study) -> None:
    print(study.table())
    if study.importances:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in study.importances.items())
        print(f"\nimportance: {shares}")
    best = study.best
    assert best is not None
    print(f"\nbest: trial {best.number}, {best.value:.4f} on the validation part, in {best.folder}")
    print(f"wrote {study.folder / 'report' / 'index.html'}")


def _print_retrained(found: Mapping[str, RunEvaluation]) -> None:
    """Print the figures of the retrained runs, and of several their mean."""
    first = next(iter(found.values()))
    columns = {folder.rpartition("/")[2]: dict(result.best) for folder, result in found.items()}
    if len(columns) > 1:
        columns["mean"] = {key: statistics.mean(each[key] for each in columns.values()) for key in first.best}
    print(f"\nThe best settings, trained anew: {first.part} part, {first.coverage}")
    for note in first.notes:
        print(f"note: {note}")
    print(comparison_table(columns))
