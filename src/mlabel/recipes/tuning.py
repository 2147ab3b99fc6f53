"""A search over the settings of a recipe: each trial is a run, judged by its validation metric."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from mlabel._checks import resolve, suggest
from mlabel.data import ImageTable
from mlabel.recipes.evaluation import RunEvaluation
from mlabel.recipes.imbalance import make_loss
from mlabel.recipes.pages.study_page import write_study
from mlabel.recipes.recipe import Recipe
from mlabel.recipes.run import Run, Say, describe_run, make_model, read_for_split, run, split_table
from mlabel.training import TrainConfig, best_checkpoint, list_checkpoints, train
from mlabel.training.loop import LOWER_IS_BETTER
from mlabel.training.scoring import Progress, no_progress
from mlabel.tuning import SearchConfig, Study, Trial, TrialRecord, parse_parameters, search
from mlabel.tuning.parameters import Parameter, Range, Value
from mlabel.tuning.records import best_of

KEEP_TRIALS = ("all", "best")
# Settings that change on what, or by what, a trial is measured, or that do not change its model.
FIXED = frozenset(
    {
        *("reader", "data", "labels", "split", "split_method", "split_seed", "hold_out", "limit", "cache"),
        *("duplicates", "calibration", "calibration_scope", "objective", "scope", "train", "monitor", "seed"),
        *("num_workers", "keep", "save_every", "log", "log_every", "on_bad", "max_bad", "shard"),
    }
)
_NESTED = ("head_options", "loss_options")
# What a loss depends on, so that the losses of two trials cannot be compared.
_OF_LOSS = frozenset({"loss", "exclusive_loss", "reduction", "weighting", "logit_adjustment", "label_smoothing"})


class RecipeObjective:
    """The best validation metric of a run in the trial's folder, by its recipe with the trial's settings.

    Args:
        recipe: What the settings are put into.
        keep: `all`: each trial keeps its best checkpoint; `best`: only the best one does.
        device: None: a GPU if there is one, the processes taking turns where there are several, else the CPU.
    """

    def __init__(self, recipe: Recipe, *, keep: str = "all", device: str | None = None) -> None:
        self.recipe, self.keep, self.device = recipe, keep, device
        self._parts: dict[str, ImageTable] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}  # other processes read the data themselves

    def parts(self, folder: Path) -> dict[str, ImageTable]:
        """Return the parts of the data, which are read once; `folder` is the study's.

        Raises:
            ValueError: there is no training part, or no labelled validation part.
        """
        if self._parts is None:
            parts = split_table(self.recipe, read_for_split(self.recipe, folder, no_progress))
            if "train" not in parts or "val" not in parts or not parts["val"].known_counts.any():
                raise ValueError(
                    f"a training part and a labelled validation part, by which trials are judged, are wanted; there is "
                    f"{sorted(parts)}; set a part aside by hold_out or split"
                )
            self._parts = parts
        return self._parts

    def __call__(self, trial: Trial) -> float:
        """Train a trial, reporting its validation metric at the end of each epoch, and return the best of them."""
        recipe = with_settings(self.recipe, trial.values)
        parts = self.parts(trial.folder.parent.parent)
        work = Run(trial.folder, recipe, parts, make_model(recipe, parts["train"]))
        describe_run(work)
        try:
            best = self._train(work, trial)
        except Exception:  # a stop from outside is none: what is there is gone on from
            keep_best_checkpoint(trial.folder)
            raise
        keep_best_checkpoint(trial.folder)
        return best

    def _train(self, work: Run, trial: Trial) -> float:
        train_part, config = work.parts["train"], work.recipe.train
        events = train(
            work.model,
            make_loss(work.recipe, train_part),
            train_part,
            work.parts["val"],
            config=config,
            run_dir=work.folder,
            resume="auto",
            device=self._device(trial.worker),
        )
        with closing(events):
            for event in events:
                if event.kind in ("checkpoint", "end"):  # what is reported is on the disk
                    _report(trial, event.state.history, f"val_{config.monitor}")
        return float("nan") if event.state.best is None else event.state.best

    def after(self, trials: tuple[TrialRecord, ...]) -> None:
        """Remove the checkpoints of all trials that are over but the best, where only its are kept."""
        if self.keep != "best":
            return
        best = best_of(trials, SearchConfig(higher_is_better=is_higher_better(self.recipe)))
        for trial in trials:
            if trial.state != "running" and (best is None or trial.number != best.number):
                shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)
                (trial.folder / "best").unlink(missing_ok=True)

    def _device(self, worker: int) -> str | None:
        if self.device is not None or torch.cuda.device_count() < 2:
            return self.device
        return f"cuda:{worker % torch.cuda.device_count()}"


def tune(
    recipe: Recipe,
    parameters: Mapping[str, Any],
    folder: str | Path,
    *,
    config: SearchConfig | None = None,
    processes: int = 1,
    keep: str = "all",
    device: str | None = None,
    say: Say = print,
) -> Study:
    """Search over settings of a recipe, judged by `recipe.train.monitor` on the validation part, and write a page.

    Each trial is a run in `folder/trials/NNNNN`. What is there already is gone on with: see `mlabel.tuning.search`. The
    test part is not looked at.

    Args:
        recipe: What the settings are put into.
        parameters: Name of a setting of `Recipe` or `TrainConfig`, or such as `loss_options.gamma_neg`, to a list of
            values or a range; see `mlabel.tuning.parse_parameters`.
        folder: Of the study.
        config: How to search; None: the defaults. What is better follows from `monitor`, the steps from `epochs`.
        processes: How many trials run at a time, each in a process of its own.
        keep: `all`: each trial keeps its best checkpoint; `best`: only the best trial does.
        device: None: a GPU if there is one, the processes taking turns where there are several, else the CPU.
        say: Takes a line on each trial, picklable where there are several processes.

    Raises:
        ValueError: a setting that there is not, that cannot be searched over, or that cannot have such a value; no
            labelled validation part; or the folder holds another search.
        RuntimeError: no trial came to its end.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> config = SearchConfig(strategy="grid")
        >>> study = tune(recipe, {"lr": [0.01, 0.001]}, folder + "/study", config=config, say=lambda line: None)
        >>> [trial.state for trial in study.trials]
        ['done', 'done']
    """
    space = parse_parameters(parameters)
    resolve(keep, dict.fromkeys(KEEP_TRIALS), "choice of trials to keep")
    recipe = dataclasses.replace(recipe, data=str(Path(recipe.data).resolve()))
    check_parameters(recipe, space)
    steps = with_settings(recipe, _last(space, "epochs")).train.epochs
    config = dataclasses.replace(config or SearchConfig(), higher_is_better=is_higher_better(recipe), steps=steps)
    objective = RecipeObjective(recipe, keep=keep, device=device)
    if recipe.duplicates is None:  # of which the study's folder, which is not there yet, keeps a list
        objective.parts(Path(folder))  # what is wrong with the data is said at once
    study = search(
        objective,
        space,
        folder,
        config=config,
        processes=processes,
        about=recipe.to_dict(),
        after=objective.after,
        say=say,
    )
    write_study(study)
    if study.best is None:
        failed = [trial for trial in study.trials if trial.error]
        why = f"the last error: {failed[-1].error}; see {failed[-1].folder / 'error.txt'}" if failed else "none failed"
        raise RuntimeError(f"of {len(study.trials)} trials none came to its end; {why}")
    return study


def retrain(
    study: Study,
    *,
    seeds: int = 1,
    part: str | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    say: Say = print,
) -> dict[str, RunEvaluation]:
    """Train the best settings anew as whole runs, once with each seed, and return folder to evaluation.

    The runs are in `best/seed-N` of the study. That value by which the best trial was chosen is the best of many, and
    thus too good; what these runs have on a part that neither training nor search has seen is not.

    Args:
        study: What `tune` returned, or `mlabel.tuning.load_study`.
        seeds: How many, from that of the recipe on.
        part: None: test where it has labels, else val, and then a note says that it is the part they were chosen on.
        device: See `run`.
        progress: See `run`.
        say: See `run`.

    Raises:
        ValueError: no trial is done, or fewer than one seed.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> config = SearchConfig(strategy="grid")
        >>> study = tune(recipe, {"lr": [0.01, 0.001]}, folder + "/study", config=config, say=lambda line: None)
        >>> [found.part for found in retrain(study, say=lambda line: None).values()]
        ['test']
    """
    if study.best is None or seeds < 1:
        raise ValueError(f"a study with a trial that is done, and a seed or more, are wanted; got {seeds} seeds")
    recipe = best_recipe(study)
    found = {}
    for seed in range(recipe.train.seed, recipe.train.seed + seeds):
        folder = study.folder / "best" / f"seed-{seed}"
        own = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
        result = run(own, folder, resume="auto", part=part, device=device, progress=progress, say=say)
        if result is not None:
            note = "the settings were chosen on this part, so that these figures are too good"
            notes = (*result.notes, note) if result.part == "val" else result.notes
            found[str(folder)] = dataclasses.replace(result, notes=notes)
    return found


def best_recipe(study: Study) -> Recipe:
    """Return the recipe of a study with the settings of its best trial.

    Args:
        study: What `tune` returned, or `mlabel.tuning.load_study`.

    Raises:
        ValueError: no trial is done.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> config = SearchConfig(strategy="grid")
        >>> study = tune(recipe, {"lr": [0.01, 0.001]}, folder + "/study", config=config, say=lambda line: None)
        >>> best_recipe(study).train.lr == study.best.values["lr"]
        True
    """
    if study.best is None:
        raise ValueError(f"{study.folder}: no trial is done")
    return with_settings(Recipe.from_dict(study.about), study.best.values)


def is_higher_better(recipe: Recipe) -> bool:
    """Return whether more of what a recipe monitors is better."""
    return recipe.train.monitor not in LOWER_IS_BETTER


def with_settings(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """Return a recipe with some of its settings, or those of its training, changed.

    Example:
        >>> with_settings(Recipe("csv", "a.csv"), {"lr": 0.1, "dropout": 0.5}).train.lr
        0.1
    """
    own: dict[str, Any] = {}
    of_training: dict[str, Any] = {}
    for name, value in values.items():
        table, dot, option = name.partition(".")
        if dot:
            own[table] = {**own.get(table, getattr(recipe, table)), option: value}
        else:
            (of_training if name in TrainConfig.__dataclass_fields__ else own)[name] = value
    return dataclasses.replace(recipe, **own, train=dataclasses.replace(recipe.train, **of_training))


def check_parameters(recipe: Recipe, parameters: Mapping[str, Parameter]) -> None:
    """Raise ValueError where a setting cannot be searched over, or not have a value that it would be given."""
    known = {*Recipe.__dataclass_fields__, *TrainConfig.__dataclass_fields__} - FIXED - {"reader_options"}
    known -= {"objective_options", *_NESTED}
    for name, parameter in parameters.items():
        table, dot, _ = name.partition(".")
        if not (dot and table in _NESTED) and name not in known:
            fixed = "it changes what trials are measured on, or not their model" if name in FIXED else "there is none"
            raise ValueError(f"{name!r} is no setting to search over: {fixed}; {suggest(name, known)}")
        if recipe.train.monitor == "loss" and (name in _OF_LOSS or table == "loss_options"):
            raise ValueError(f"{name!r} changes the loss by which trials are judged; judge them by another --monitor")
        for value in _extremes(parameter):
            _try_value(recipe, name, value)


def _try_value(recipe: Recipe, name: str, value: Value) -> None:
    try:
        with_settings(recipe, {name: value})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be {value!r}: {error}") from error


def _extremes(parameter: Parameter) -> Sequence[Value]:
    return (parameter.low, parameter.high) if isinstance(parameter, Range) else parameter.values


def _last(parameters: Mapping[str, Parameter], name: str) -> dict[str, Value]:
    """Return the largest value that a number among the parameters may have, by its name; nothing where it is none."""
    if name not in parameters:
        return {}
    return {name: max(_extremes(parameters[name]))}  # type: ignore[type-var]


def _report(trial: Trial, history: Sequence[Mapping[str, Any]], name: str) -> None:
    """Report the metric at the end of each epoch: the first evaluation that counts the epoch as over."""
    ends: dict[int, float] = {}
    for entry in history:
        ends.setdefault(int(entry["epoch"]), float(entry[name]))
    for epoch, value in ends.items():
        if epoch:
            trial.report(epoch, value)


def keep_best_checkpoint(folder: Path) -> None:
    """Remove all checkpoints of a run but the best one."""
    best = best_checkpoint(folder) if list_checkpoints(folder) else None
    for path in list_checkpoints(folder):
        if best is not None and path != best:
            shutil.rmtree(path)
