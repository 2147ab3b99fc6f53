"""The whole way: read, split, fit, calibrate, evaluate, bundle, report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlabel._checks import DataError, suggest
from mlabel._files import read_json
from mlabel.data import READERS, BadImage, ImageTable
from mlabel.decisions import Thresholds, fit_thresholds
from mlabel.inference import save_bundle
from mlabel.labels import LabelSpace
from mlabel.metrics import COUNT_METRICS, Intervals, bootstrap, evaluate
from mlabel.metrics.evaluation import METRICS, check_include
from mlabel.models import Classifier, create_model, from_config
from mlabel.recipes.calibration import FILE as CALIBRATION_FILE
from mlabel.recipes.calibration import calibrated, make_calibration
from mlabel.recipes.copies import keep_copies_together
from mlabel.recipes.evaluation import RunEvaluation, describe_intervals
from mlabel.recipes.imbalance import describe_labels, make_loss
from mlabel.recipes.judging import fifths, judge, threshold_fit
from mlabel.recipes.pages.run_page import write_evaluation
from mlabel.recipes.recipe import Recipe
from mlabel.training import (
    BadLog,
    Ranks,
    TableScores,
    best_checkpoint,
    fit,
    join_ranks,
    leave_ranks,
    load_weights,
    refuse_used,
    score_table,
    write_run_config,
)
from mlabel.training.distributed import ALONE
from mlabel.training.scoring import Progress, no_progress

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
SHOWN_LABELS = 40  # of the table of weights, the rarest ones; the file has all


@dataclass(frozen=True)
class Run:
    """A run's folder with what belongs to it.

    Attributes:
        folder: The run's folder.
        recipe: What it was told.
        parts: Part name to table.
        model: The model; fresh where the run was begun, with its best weights where it was opened.
        progress: Wraps the batches that are scored; see `score_table`.
        ranks: The processes that train and score together; the first alone writes into the folder.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> opened = Run.open(folder + "/a", device="cpu")
        >>> {name: len(part) for name, part in opened.parts.items()}
        {'train': 42, 'val': 7, 'test': 11}
        >>> opened.evaluate(part="val").part
        'val'
    """

    folder: Path
    recipe: Recipe
    parts: dict[str, ImageTable]
    model: Classifier
    progress: Progress = no_progress
    ranks: Ranks = ALONE

    @classmethod
    def begin(
        cls,
        recipe: Recipe,
        folder: str | Path,
        *,
        progress: Progress = no_progress,
        say: Say = print,
        ranks: Ranks = ALONE,
    ) -> Run:
        """Return a new run: the data of `recipe` is read, and said what it is, and its model made.

        Args:
            recipe: What to do.
            folder: The run's; made where it is not there.
            progress: See `score_table`.
            say: Takes what a person should read.
            ranks: The processes that train together.

        Raises:
            DataError: there is no training part; also see the reader and `create_model`.
        """
        folder = Path(folder)
        recipe = dataclasses.replace(recipe, data=str(Path(recipe.data).resolve()))
        table = read_for_split(recipe, folder, progress)
        parts = split_table(recipe, table)
        if "train" not in parts:
            raise DataError(f"{recipe.data}: there is no training part, only {sorted(parts)}")
        say(table.summary())
        say("parts: " + ", ".join(f"{name} {len(part):,}" for name, part in parts.items()))
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, recipe, parts, make_model(recipe, parts["train"]), progress, ranks)

    @classmethod
    def open(cls, folder: str | Path, *, device: str | None = None, progress: Progress = no_progress) -> Run:
        """Return the run of `folder` with its best weights.

        Args:
            folder: The run's.
            device: None: a GPU if there is one, else the CPU.
            progress: See `score_table`.

        Raises:
            FileNotFoundError: it holds no run, or no sound checkpoint.
            DataError, ValueError: the data, or a file of the run, is not what it was.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not a run: there is no config.json in it")
        config = read_json(path)
        if not isinstance(config, dict) or not {"recipe", "model"} <= set(config):
            raise DataError(f"{path}: it has no recipe and model; this run was not begun by `mlabel train`")
        try:
            recipe = Recipe.from_dict(config["recipe"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: not the recipe of a run: {error}") from error
        model = from_config(config["model"], LabelSpace.load(folder / "labels.json"))
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        last = recipe.train.memory_format == "channels_last"
        model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        parts = split_table(recipe, read_for_split(recipe, folder, progress))
        run = cls(folder, recipe, parts, model, progress)
        run.load_best()
        return run

    def limited(self, limit: int | None, part: str | None = None) -> Run:
        """Return the run with at most `limit` images in a part, or in each.

        Args:
            limit: How many images; None: the run as it is.
            part: Of which part; None: of each.
        """
        if limit is None:
            return self
        parts = {name: each.limit(limit) if part in (None, name) else each for name, each in self.parts.items()}
        return dataclasses.replace(self, parts=parts)

    def load_best(self) -> None:
        """Put the best weights of the run into its model.

        Raises:
            FileNotFoundError: the run has no sound checkpoint.
        """
        checkpoint = best_checkpoint(self.folder)
        if checkpoint is None:
            raise FileNotFoundError(f"{self.folder} holds no sound checkpoint; train it first")
        load_weights(checkpoint, self.model)

    def part_to_evaluate(self, wanted: str | None = None) -> tuple[str, tuple[str, ...]]:
        """Return the name of the part to measure on, and a note where it is not the obvious one.

        Args:
            wanted: The part; None: test where it has labels, else val.

        Raises:
            ValueError: the wanted part is not there, or has no labels; or none but the training part has.
        """
        labelled = [name for name, part in self.parts.items() if part.known_counts.any()]
        if wanted is not None:
            if wanted not in labelled:
                raise ValueError(f"there is no labelled part {wanted!r}; {suggest(wanted, labelled)}")
            return wanted, ()
        if "test" in labelled:
            return "test", ()
        if "val" not in labelled:
            raise ValueError(f"neither the test nor the validation part has labels to evaluate on; {labelled} have")
        why = "has no labels" if "test" in self.parts else "is missing"
        return "val", (f"the test part {why}: these figures are of the validation part",)

    def score(self, part: str) -> TableScores:
        """Return what the model says of the part `part`.

        Images that cannot be read are an error or skipped as the recipe says, and then listed in the run's `bad.jsonl`.
        """
        config, size = self.recipe.train, len(self.parts[part])
        bad: list[BadImage] = []
        try:
            return score_table(
                self.model,
                self.parts[part],
                batch_size=config.batch_size,
                num_workers=config.num_workers,
                precision=config.precision,
                on_bad=config.on_bad,
                max_bad=config.max_bad,
                bad=bad,
                progress=self.progress,
                ranks=self.ranks,
            )
        finally:
            if bad and self.ranks.first:
                BadLog(self.folder / "bad.jsonl").add(part, bad)
                _log.warning("skipped %d of %d %s images; see %s", len(bad), size, part, self.folder / "bad.jsonl")

    def help_to_score(self, part: str | None = None) -> None:
        """Score, on a rank other than the first, its share of what `calibrate` and `evaluate` of the first ask for.

        Args:
            part: What `evaluate` is given.
        """
        if self._val() is not None:
            self.score("val")
        self.score(self.part_to_evaluate(part)[0])

    def _val(self) -> ImageTable | None:
        """Return the validation part where thresholds can be fitted on it."""
        val = self.parts.get("val")
        return val if val is not None and val.known_counts.any() else None

    def calibrate(
        self,
        *,
        objective: str | None = None,
        scope: str | None = None,
        options: Mapping[str, Any] | None = None,
        calibration: str | None = None,
    ) -> Thresholds | None:
        """Fit thresholds on the validation part, write them into the run and its bundle, and return them.

        Where a calibration is wanted, it is made first, and the thresholds are for the scores that it gives.

        Args:
            objective: None: the recipe's.
            scope: None: the recipe's.
            options: Of the objective; see `mlabel.fit_thresholds`. None: the recipe's, if the objective is.
            calibration: See `Recipe`. None: the recipe's.

        Returns:
            None where there is no labelled validation part; the bundle then has no thresholds.
        """
        same = objective in (None, self.recipe.objective)
        recipe = dataclasses.replace(
            self.recipe,
            objective=objective or self.recipe.objective,
            objective_options=(self.recipe.objective_options if same else {}) if options is None else options,
            scope=scope or self.recipe.scope,
            calibration=calibration or self.recipe.calibration,
        )
        val, thresholds, maps = self._val(), None, None
        (self.folder / CALIBRATION_FILE).unlink(missing_ok=True)
        if val is not None:
            scores, scored = self.score("val").of_scored(val)
            maps = make_calibration(recipe, self.parts["train"], scores, scored)
            if maps is not None:
                maps.save(self.folder / CALIBRATION_FILE)
                scores = calibrated(self.folder, scores, scored)
            thresholds = fit_thresholds(scores, scored.targets, **threshold_fit(recipe, scored))
            thresholds.save(self.folder / "thresholds.json")
        write_run_config(self.folder, recipe=recipe.to_dict())
        counts = self.parts["train"].counts
        save_bundle(self.folder / "bundle", self.model, thresholds, calibration=maps, counts=counts)
        return thresholds

    def evaluate(
        self,
        *,
        part: str | None = None,
        threshold: float = 0.5,
        include: Iterable[str] = (),
        intervals: int | None = None,
    ) -> RunEvaluation:
        """Measure the model on a part, beside the prior, at `threshold` and at the calibrated thresholds.

        On the validation part, where the thresholds were fitted, they are fitted anew on four fifths of it for each
        fifth, so that no image helps to choose the thresholds it is judged by; and so is the calibration. Where there
        is one, all columns but the prior's are of calibrated scores.

        Args:
            part: None: test where it has labels, else val.
            threshold: Of the middle column.
            include: Metrics to measure besides; see `mlabel.evaluate`.
            intervals: Of how many resamples to make intervals of the last two columns; see `mlabel.metrics.bootstrap`.
                Where images belong together (`table.groups`), groups of them are drawn. None: no intervals.

        Raises:
            ValueError: the part is not there, or has no labels; or an unknown metric.
        """
        part, notes = self.part_to_evaluate(part)
        include = check_include(include)
        said = self.score(part)
        scores, table = said.of_scored(self.parts[part])
        judged = judge(self.recipe, self.folder, scores, table, folds=fifths(table) if part == "val" else None)
        scores, notes = judged.scores, (*notes, *judged.notes)
        known = {"mask": table.unknown, "space": table.space, "include": include}
        prior = np.broadcast_to(prior_scores(self.parts["train"]), scores.shape)
        settings: dict[str, tuple[Any, Any]] = {f"at {threshold:g}": (threshold, None)}
        if judged.thresholds is not None:
            settings["calibrated"] = judged.thresholds, judged.folds
        columns = {"prior": evaluate(prior, table.targets, **known)}
        for title, (levels, folds) in settings.items():
            columns[title] = evaluate(scores, table.targets, levels, folds=folds, **known)
        found, fixed = None, None
        if intervals is not None:
            names = [*METRICS, *include]
            found = _bootstrap(scores, table, *settings[title], metrics=names, resamples=intervals)
            if len(settings) > 1:
                given = next(iter(settings.values()))
                fixed = _bootstrap(scores, table, *given, metrics=COUNT_METRICS, resamples=intervals)
            notes = (*notes, f"low and high: of {title}, {describe_intervals(found, intervals)}")
        oddities = tuple(f"passed over: {note} ({number:,} times)" for note, number in sorted(said.notes.items()))
        return RunEvaluation(
            part=part,
            columns=columns,
            notes=(*notes, *self._skipped(), *oddities),
            scores=_put_rows(said, scores),
            rows=said.rows,
            counts=self.parts["train"].counts,
            label_groups=tuple(group.name for group in table.space.groups for _ in group.labels),
            intervals=found,
            fixed_intervals=fixed,
            levels=settings[title][0],
            folds=settings[title][1],
        )

    def _skipped(self) -> tuple[str, ...]:
        """Return a sentence on the images that training went on without, or none."""
        number = BadLog(self.folder / "bad.jsonl").count("train")
        return (f"images that training skipped, as they cannot be read: {number:,}; see bad.jsonl",) if number else ()


def run(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    resume: str | None = None,
    allow_changed_data: bool = False,
    part: str | None = None,
    threshold: float = 0.5,
    include: Iterable[str] = (),
    device: str | None = None,
    progress: Progress = no_progress,
    say: Say = print,
) -> RunEvaluation | None:
    """Do a whole run in the folder `run_dir` and return its evaluation.

    Started by `torchrun`, the processes train and score together; the first one alone writes, speaks and returns the
    evaluation, the others return None.

    Args:
        recipe: What to do.
        run_dir: Where configuration, history, checkpoints, bundle and report go.
        resume: `auto`, a checkpoint's folder, or None; see `mlabel.fit`.
        allow_changed_data: Go on although the data is not what the checkpoint was trained on.
        part: The part to evaluate on; None: test where it has labels, else val.
        threshold: Of the middle column of the evaluation.
        include: Metrics to measure besides; see `mlabel.evaluate`.
        device: None: a GPU if there is one, else the CPU.
        progress: Wraps the batches that are scored; anything but `no_progress` also shows a bar in training.
        say: Takes what a person should read on the way.

    Raises:
        DataError, FileNotFoundError, ValueError: see the reader, `create_model` and `fit`.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> result = run(recipe, folder + "/a", say=lambda line: None)
        >>> result.part, sorted(result.columns)
        ('test', ['at 0.5', 'calibrated', 'prior'])
    """
    ranks = join_ranks(device)
    include = check_include(include)
    say, progress = (say, progress) if ranks.first else (_say_nothing, no_progress)
    # What the first looks up in every image, the others find in the folder.
    with nullcontext() if recipe.duplicates is None else ranks.first_before_others():
        if ranks.first:
            refuse_used(run_dir, resume)
        work = Run.begin(recipe, run_dir, progress=progress, say=say, ranks=ranks)
    work.part_to_evaluate(part)  # what cannot be evaluated is said before it is trained
    train = work.parts["train"]
    if ranks.first:
        describe_run(work)
    fit(
        work.model,
        make_loss(recipe, train),
        train,
        work.parts.get("val"),
        config=recipe.train,
        run_dir=run_dir,
        resume=resume,
        allow_changed_data=allow_changed_data,
        device=device,
        progress="none" if progress is no_progress else "bar",
    )
    ranks.wait()  # for the last checkpoint
    work.load_best()
    if not ranks.first:
        work.help_to_score(part)
        leave_ranks()
        return None
    work.calibrate()
    result = work.evaluate(part=part, threshold=threshold, include=include)
    leave_ranks()
    write_evaluation(work, result)
    return result


def describe_run(work: Run) -> None:
    """Write what the run is told, and what was chosen for each label."""
    write_run_config(work.folder, recipe=work.recipe.to_dict())
    labels = describe_labels(work.recipe, work.parts["train"])
    labels.to_csv(work.folder / "weights.csv")
    _log.info("what was chosen for each label:\n%s", labels.text(limit=SHOWN_LABELS))


def _say_nothing(_: str) -> None:
    """Leave it to the first of the processes to say what there is to be said."""


def read_table(recipe: Recipe) -> ImageTable:
    """Return the table that a recipe's reader gives, with the labels and as many images as it says.

    Raises:
        ValueError: a label that the reader does not give, or some but not all labels of an exclusive group; or the
            cache lacks an image.
        DataError: the cache is not finished or damaged, or an image file changed after it was decoded.
    """
    table = READERS[recipe.reader](recipe.data, **recipe.reader_options)
    if recipe.labels is not None:
        table = table.select_labels(recipe.labels)
    if recipe.limit is not None:
        table = table.limit(recipe.limit)
    return table if recipe.cache is None else table.cached(recipe.cache)


def split_table(recipe: Recipe, table: ImageTable) -> dict[str, ImageTable]:
    """Return the parts of a recipe's table by name, split as it says."""
    return table.parts(recipe.split_seed, fractions=recipe.split, method=recipe.split_method, hold_out=recipe.hold_out)


def read_for_split(recipe: Recipe, folder: Path, progress: Progress) -> ImageTable:
    """Return the table of a recipe, with copies of a picture kept together where it says so."""
    table = read_table(recipe)
    if recipe.duplicates is None:
        return table
    workers = recipe.train.num_workers
    return keep_copies_together(table, recipe.duplicates, folder, num_workers=workers, progress=progress)


def make_model(recipe: Recipe, train: ImageTable) -> Classifier:
    """Return the model of a recipe; its first weights follow from the seed, the bias from the counts if it says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = create_model(
            recipe.backbone,
            train.space,
            head=recipe.head,
            weights=recipe.weights,
            dropout=recipe.dropout,
            hidden=recipe.hidden,
            head_options=recipe.head_options,
            in_channels=recipe.in_channels,
            image_size=recipe.image_size,
            views=recipe.views,
        )
    if recipe.init_bias == "prior":
        model.init_bias(train.counts, train.known_counts, logit_adjustment=recipe.logit_adjustment)
    return model


def prior_scores(train: ImageTable) -> np.ndarray:
    """Return each label's share of the training images of which it is known (L,); 0 where it is never known."""
    return (train.counts / np.maximum(train.known_counts, 1)).astype(np.float32)


def _bootstrap(
    scores: np.ndarray, table: ImageTable, levels: Any, folds: Any, *, metrics: Sequence[str], resamples: int
) -> Intervals:
    """Return the intervals of some metrics; where images belong together, from groups of them."""
    return bootstrap(
        scores,
        table.targets,
        levels,
        folds=folds,
        mask=table.unknown,
        space=table.space,
        groups=table.groups,
        metrics=metrics,
        resamples=resamples,
    )


def _put_rows(said: TableScores, scores: np.ndarray) -> np.ndarray:
    """Return scores (M, L) of the images that were scored as (N, L), NaN in the other rows."""
    if scores is said.probabilities or len(scores) == len(said.probabilities):
        return scores
    result = np.full_like(said.probabilities, np.nan)
    result[said.rows] = scores
    return result
