"""Which of several runs is better, on the same images: metrics, labels, and what each costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import as_unknown, resolve
from mlabel.data import ImageTable
from mlabel.labels import LabelSpace
from mlabel.metrics import CORRECTIONS, Comparison
from mlabel.metrics import compare as compare_scores
from mlabel.metrics.comparison import common_group
from mlabel.metrics.evaluation import METRICS, check_include
from mlabel.recipes.comparison import SURE, RunComparison
from mlabel.recipes.cost import SECONDS, ModelCost, measure_costs
from mlabel.recipes.judging import Judged, fifths, judge
from mlabel.recipes.run import Run
from mlabel.training.scoring import Progress, no_progress

# By what of each label the better run of it may be told.
LABEL_STATISTICS = ("ap", "f1", "precision", "recall", "jaccard", "accuracy", "auroc")
LEAST_RESAMPLES, MOST_RESAMPLES = 1000, 4000  # where it is not said how many


def compare_runs(
    folders: Sequence[str | Path],
    *,
    part: str | None = None,
    threshold: float | None = None,
    include: Iterable[str] = (),
    by: str = "ap",
    correction: str = "benjamini_hochberg",
    resamples: int | None = None,
    limit: int | None = None,
    seconds: float = SECONDS,
    device: str | None = None,
    progress: Progress = no_progress,
) -> RunComparison:
    """Return how the best models of runs differ on the same images, with paired intervals, and what each costs.

    Each is decided by its own calibrated thresholds; on the validation part these are cross-fitted, as by
    `Run.evaluate`. Where vocabularies differ, the labels that all runs have are compared.

    Args:
        folders: Of two runs or more.
        part: None: test where it has labels, else val; the same of all runs.
        threshold: Decide all by this one instead.
        include: Metrics to measure besides; see `mlabel.evaluate`.
        by: The statistic of labels, of `LABEL_STATISTICS`, by which the better run of each is told.
        correction: Of the p-values of labels; see `mlabel.metrics.adjust_p_values`.
        resamples: See `mlabel.metrics.compare`. Where images belong together, groups of them are drawn. None: 1,000, or
            as many more, up to 4,000, as a single label needs to be told apart among so many.
        limit: Use this many images of the part only.
        seconds: For how many seconds the speed of each model is measured; 0: it is not.
        device: None: a GPU if there is one, else the CPU.
        progress: Wraps the batches that are scored; see `score_table`.

    Raises:
        ValueError: fewer than two runs, or runs that cannot be compared: of other images, of other annotations of the
            same, or without a label in common; or an unknown name.
        FileNotFoundError, DataError: a folder holds no run, or its data is not what it was.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> for name, lr in (("a", 0.01), ("b", 0.001)):
        ...     own = dataclasses.replace(recipe, train=dataclasses.replace(train, lr=lr))
        ...     _ = run(own, f"{folder}/{name}", say=lambda line: None)
        >>> found = compare_runs([folder + "/a", folder + "/b"], resamples=20, seconds=0)
        >>> found.names, found.settings["b"], found.num_samples
        (('a', 'b'), {'train.lr': 0.001}, 11)
    """
    resolve(by, dict.fromkeys(LABEL_STATISTICS), "statistic of labels")
    resolve(correction, CORRECTIONS, "correction")
    metrics = [*METRICS, *check_include(include), by]
    if len(set(map(Path, folders))) < 2 or len(set(map(Path, folders))) < len(folders):
        raise ValueError(f"two runs or more are wanted, each once; got {', '.join(map(str, folders)) or 'none'}")
    names = _run_names([Path(folder) for folder in folders])
    opened = [Run.open(folder, device=device, progress=progress) for folder in folders]
    runs = dict(zip(names, opened, strict=True))
    part, notes = _part_of_all(runs, part)
    runs = _in_one_order({name: work.limited(limit, part) for name, work in runs.items()}, part)
    space, vocabulary_notes = _common_space(runs)
    table = _cut(next(iter(runs.values())).parts[part], space)
    _check_annotations(runs, part, table)
    rows, judged = _judge_all(runs, part, table)
    table = table[rows]
    levels, folds, decision_notes = _levels(judged, threshold)
    pairs = {}
    tests = space.num_labels * math.comb(len(runs), 2)
    resamples = min(max(LEAST_RESAMPLES, _enough(tests)), MOST_RESAMPLES) if resamples is None else resamples
    for first, second in combinations(runs, 2):
        pairs[first, second] = compare_scores(
            judged[first].scores,
            judged[second].scores,
            table.targets,
            thresholds=(levels[first], levels[second]),
            mask=table.unknown,
            space=table.space,
            spaces=(runs[first].model.space, runs[second].model.space),
            folds=folds,
            metrics=metrics,
            resamples=resamples,
            groups=table.groups,
        )
    costs, cost_notes = _costs(runs, seconds)
    found = next(iter(pairs.values()))
    return RunComparison(
        names=tuple(runs),
        folders=tuple(work.folder for work in runs.values()),
        part=part,
        space=space,
        support=np.asarray(table.counts),
        pairs=pairs,
        costs=costs,
        by=by,
        correction=correction,
        settings=differing_settings({name: work.recipe.to_dict() for name, work in runs.items()}),
        notes=(
            _describe_images(runs, part, table),
            *notes,
            *vocabulary_notes,
            *decision_notes,
            *_describe_intervals(found, resamples, correction, by, len(pairs)),
            *cost_notes,
        ),
    )


def _run_names(folders: Sequence[Path]) -> list[str]:
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) and all(short) else [str(folder) for folder in folders]


def _part_of_all(runs: Mapping[str, Run], wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the part that all runs are evaluated on, and notes."""
    found = {name: work.part_to_evaluate(wanted) for name, work in runs.items()}
    parts = {name: part for name, (part, _) in found.items()}
    if len(set(parts.values())) > 1:
        said = ", ".join(f"{name} on {part}" for name, part in parts.items())
        raise ValueError(f"the runs are evaluated on different parts ({said}); name one that all have by part (--part)")
    part, notes = next(iter(found.values()))
    return part, notes


def _in_one_order(runs: Mapping[str, Run], part: str) -> dict[str, Run]:
    """Return the runs with the images of the part in the order of the first one's.

    Raises:
        ValueError: they are not the same images.
    """
    first, *_ = runs
    wanted = runs[first].parts[part].ids
    ordered = {}
    for name, work in runs.items():
        table = work.parts[part]
        place = {each: row for row, each in enumerate(table.ids.tolist())}
        shared = sum(each in place for each in wanted.tolist())
        if shared < max(len(wanted), len(place)):
            raise ValueError(
                f"{first} and {name} are not of the same images: their {part} parts have {len(wanted):,} and "
                f"{len(place):,}, of which {shared:,} are in both; compare runs that were trained on the same data, "
                "with the same --limit, or evaluate on another part (--part)"
            )
        rows = np.array([place[each] for each in wanted.tolist()], dtype=np.int64)
        ordered[name] = dataclasses.replace(work, parts={**work.parts, part: table[rows]})
    return ordered


def _common_space(runs: Mapping[str, Run]) -> tuple[LabelSpace, tuple[str, ...]]:
    """Return the labels that all runs have, and a note where some have more."""
    spaces = {name: work.model.space for name, work in runs.items()}
    first, *others = spaces.values()
    if all(other == first for other in others):
        return first, ()
    groups = [common_group(group, others) for group in first.groups]
    held = [group for group in groups if group is not None]
    if not held:
        raise ValueError(f"the runs {', '.join(runs)} have no label in common by which they could be compared")
    space = LabelSpace(held)
    more = ", ".join(f"{name} has {each.num_labels - space.num_labels:,} more" for name, each in spaces.items())
    return space, (f"only the {space.num_labels:,} labels that all runs have are compared: {more}",)


def _cut(table: ImageTable, space: LabelSpace) -> ImageTable:
    """Return a table with the columns of `space`, in their order."""
    if table.space == space:
        return table
    columns = [table.space.index(name) for name in space.names]
    unknown = None if table.unknown is None else as_unknown(table.unknown[:, columns], (len(table), len(columns)))
    return dataclasses.replace(table, space=space, targets=table.targets[:, columns], unknown=unknown)


def _check_annotations(runs: Mapping[str, Run], part: str, table: ImageTable) -> None:
    """Raise ValueError where the same images have other labels in another run."""
    first, *others = runs
    for name in others:
        theirs = _cut(runs[name].parts[part], table.space)
        differ = [(table.targets != theirs.targets).nnz]
        known = [each.unknown is None for each in (table, theirs)]
        if not all(known):
            differ.append(1 if any(known) else (table.unknown != theirs.unknown).nnz)
        if any(differ):
            raise ValueError(
                f"{first} and {name} have other annotations of the same {part} images, {sum(differ):,} of them; "
                "were they read by other options, or has the annotation file changed?"
            )


def _judge_all(runs: Mapping[str, Run], part: str, table: ImageTable) -> tuple[np.ndarray, dict[str, Judged]]:
    """Return the rows of the images that all runs scored, and what each says of these."""
    said = {name: work.score(part) for name, work in runs.items()}
    rows = np.arange(len(table))
    for each in said.values():
        rows = np.intersect1d(rows, each.rows)
    folds = fifths(table[rows]) if part == "val" else None
    judged = {}
    for name, work in runs.items():
        own = work.parts[part][rows]
        judged[name] = judge(work.recipe, work.folder, said[name].probabilities[rows], own, folds=folds)
    return rows, judged


def _levels(
    judged: Mapping[str, Judged], threshold: float | None
) -> tuple[dict[str, Any], np.ndarray | None, tuple[str, ...]]:
    """Return what decides each run's scores, the folds of these, and notes."""
    calibrated = [note for each in judged.values() for note in each.notes if note.startswith("scores are")]
    notes = [f"some scores are calibrated: {len(calibrated)} of {len(judged)} runs"] if calibrated else []
    without = [name for name, each in judged.items() if each.thresholds is None]
    folds = next((each.folds for each in judged.values() if each.folds is not None), None)
    if threshold is not None or without:
        level = 0.5 if threshold is None else threshold
        why = f", for {', '.join(without)} has no calibrated thresholds" if threshold is None else ""
        return dict.fromkeys(judged, level), None, (*notes, f"decisions of all at the threshold {level:g}{why}")
    how = "fitted on its validation part" if folds is None else "cross-fitted in fifths of these images"
    levels = {name: each.thresholds for name, each in judged.items()}
    return levels, folds, (*notes, f"decisions of each by its own calibrated thresholds, {how}")


def _costs(runs: Mapping[str, Run], seconds: float) -> tuple[dict[str, ModelCost], tuple[str, ...]]:
    if seconds <= 0:
        return {}, ()
    models = {name: work.model for name, work in runs.items()}
    size = min(work.recipe.train.batch_size for work in runs.values())
    precisions = {name: work.recipe.train.precision for name, work in runs.items()}
    costs = measure_costs(models, batch_size=size, precisions=precisions, seconds=seconds)
    device = next(next(iter(models.values())).parameters()).device
    note = (
        f"images a second: of the networks alone, on {device}, in batches of {size:,}, measured in turns in one "
        "process; speed is over that of the first run in the same round, with its quartiles"
    )
    return costs, (note,)


def _describe_images(runs: Mapping[str, Run], part: str, table: ImageTable) -> str:
    expected = len(next(iter(runs.values())).parts[part])
    skipped = f", of which {expected - len(table):,} that some run could not read are left out"
    return f"{expected:,} images of the {part} part, the same of all runs" + (skipped if len(table) < expected else "")


def _enough(tests: int) -> int:
    """Return how many resamples it takes for the smallest p-value there can be, so many times over, to be sure."""
    return math.ceil(2 * tests / SURE)


def _describe_intervals(found: Comparison, resamples: int, correction: str, by: str, pairs: int) -> list[str]:
    drawn = f"{found.num_samples:,} images"
    if found.num_groups != found.num_samples:
        drawn = f"{found.num_groups:,} groups of {drawn}"
    several = f" and {pairs} pairs of runs" if pairs > 1 else ""
    tests = len(found.names) * pairs
    notes = [
        f"intervals hold {found.level:.0%} of the differences in {resamples:,} resamples of {drawn}, in which all runs "
        f"are measured together; p-values of metrics stand each for itself, those of labels ({by}) are corrected for "
        f"{len(found.names):,} labels{several} ({correction})"
    ]
    if resamples < _enough(tests):
        notes.append(
            f"from {resamples:,} resamples no label alone can be sure among {tests:,} tests, only several together; "
            f"that takes {_enough(tests):,} (--intervals)"
        )
    return notes


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return name of a run to those of its settings, dotted, in which the runs differ.

    Example:
        >>> differing_settings({"a": {"lr": 1, "model": {"depth": 2}}, "b": {"lr": 1, "model": {"depth": 3}}})
        {'a': {'model.depth': 2}, 'b': {'model.depth': 3}}
    """
    flat = {name: dict(_flatten(each)) for name, each in settings.items()}
    keys = dict.fromkeys(key for each in flat.values() for key in each)
    differ = [key for key in keys if len({repr(each.get(key)) for each in flat.values()}) > 1]
    return {name: {key: each.get(key) for key in differ} for name, each in flat.items()}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
