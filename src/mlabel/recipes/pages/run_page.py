"""What a run shows: its figures, pictures, tables and page, in the folder `report` of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlabel._checks import check_positive, resolve
from mlabel._files import to_json, write_atomically
from mlabel.recipes.evaluation import RunEvaluation
from mlabel.recipes.pages.sections import SECTIONS
from mlabel.recipes.pages.shown import Shown, choose_labels, write_rows
from mlabel.report import write_report
from mlabel.training import newest_checkpoint, read_description

if TYPE_CHECKING:
    from mlabel.recipes.run import Run

# What a training writes at its end: the sections that take little time.
QUICK = ("groups", "frequency", "examples", "galleries")
TILES = 12  # of a gallery of the whole report


def write_evaluation(
    run: Run,
    result: RunEvaluation,
    *,
    sections: Iterable[str] = QUICK,
    labels: Sequence[str] | None = None,
    tiles: int = 4,
    next_command: str | None = None,
) -> Path:
    """Write the figures of an evaluation, pictures and the page into the run's `report` folder; return the page.

    Beside the page lie its pictures as PNG and its tables as CSV; `metrics-PART.json` has every figure.

    Args:
        run: The run.
        result: What `run.evaluate` returned.
        sections: Names in `SECTIONS`: what the page has besides metrics, curves of the training and labels.
        labels: Whose curves are drawn; None: the most frequent ones, and those of the lowest average precision.
        tiles: How many pictures a gallery has at most.
        next_command: What the page says to type next; None: how to label images with the bundle.

    Raises:
        ValueError: an unknown section or label.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, Run, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> opened = Run.open(folder + "/a", device="cpu")
        >>> write_evaluation(opened, opened.evaluate()).name
        'index.html'
    """
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    chosen = {name: resolve(name, SECTIONS, "section") for name in sections}
    shown = Shown(run, result, folder, choose_labels(result, run.model.space, labels), tiles)
    made = [make(shown) for name, make in SECTIONS.items() if name in chosen]
    write_atomically(folder / f"metrics-{result.part}.json", to_json(result.to_dict()))
    write_rows(folder / "metrics.csv", _metric_rows(result))
    write_rows(folder / "labels.csv", _label_rows(result))
    newest = newest_checkpoint(run.folder)
    history = [] if newest is None else read_description(newest)["counters"]["history"]
    write_rows(folder / "history.csv", _same_keys(history))
    return write_report(
        folder,
        title=f"{run.recipe.backbone} on {Path(run.recipe.data).name}, {result.part} part",
        comparison=result.columns,
        intervals=result.all_intervals(),
        evaluation=result.best,
        label_intervals=None if result.intervals is None else result.intervals.per_label,
        label_groups=result.label_groups,
        sections=[section for section in made if section is not None and not section.is_empty],
        history=history,
        config=run.recipe.to_dict(),
        notes=(result.coverage, *(_on_a_page(note) for note in result.notes)),
        next_command=next_command or f"mlabel predict --bundle {run.folder / 'bundle'} IMAGE_OR_FOLDER",
    )


def report_run(
    run: Run,
    *,
    part: str | None = None,
    threshold: float = 0.5,
    intervals: int = 1000,
    labels: Sequence[str] | None = None,
    tiles: int = TILES,
) -> Path:
    """Measure a run's best weights, write everything that its page can show, and return the page.

    Args:
        run: From `Run.open`.
        part: None: test where it has labels, else val.
        threshold: Of the middle column of the metrics.
        intervals: Of how many resamples to make intervals, 1 or more.
        labels: See `write_evaluation`.
        tiles: How many pictures a gallery has at most.

    Raises:
        ValueError: the part is not there, or has no labels; an unknown label; or fewer than 1 resample or picture.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, Run, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> report_run(Run.open(folder + "/a", device="cpu"), intervals=20).name
        'index.html'
    """
    check_positive(intervals, "intervals")
    check_positive(tiles, "tiles")
    for name in labels or ():
        run.model.space.index(name)
    result = run.evaluate(part=part, threshold=threshold, intervals=intervals)
    return write_evaluation(run, result, sections=SECTIONS, labels=labels, tiles=tiles)


def _same_keys(history: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    keys = dict.fromkeys(key for entry in history for key in entry)
    return ({key: entry.get(key) for key in keys} for entry in history)


def _on_a_page(note: str) -> str:
    """Return a note as a page has it, where the ends of intervals stand under the numbers and not beside them."""
    return re.sub("^low and high: of [^,]*, ", "the small numbers under a metric: ", note)


def _metric_rows(result: RunEvaluation) -> Iterator[dict[str, Any]]:
    """Yield each metric with its number in every column, and the ends of intervals."""
    held = result.all_intervals()
    for name in dict.fromkeys(key for column in result.columns.values() for key in column):
        row: dict[str, Any] = {"metric": name}
        for title, column in result.columns.items():
            row[title] = column.get(name)
            if title in held:
                ends = held[title].get(name)
                row |= {f"{title} {end}": None if ends is None else getattr(ends, end) for end in ("low", "high")}
        yield row


def _label_rows(result: RunEvaluation) -> Iterator[dict[str, Any]]:
    """Yield each label with its group, what was measured of it, and the ends of intervals."""
    found = {} if result.intervals is None else result.intervals.per_label
    for place, (group, row) in enumerate(zip(result.label_groups, result.best.label_rows(), strict=True)):
        held = {name: value for name, value in row.items() if name not in ("column", "name")}
        ends = {f"{name}_{end}": getattr(each, end)[place] for name, each in found.items() for end in ("low", "high")}
        yield {"label": row["name"], "group": group, **held, **ends}
