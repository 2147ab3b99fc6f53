"""What a run shows: its figures, pictures and page, in the folder `report` of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlabel._files import to_json, write_atomically
from mlabel.data import ImageDataset
from mlabel.decisions import Thresholds
from mlabel.labels import decide
from mlabel.recipes.evaluation import RunEvaluation
from mlabel.report import explain, plot_examples, plot_explanations, write_report
from mlabel.training import newest_checkpoint, read_description

if TYPE_CHECKING:
    from mlabel.recipes.run import Run

_log = logging.getLogger(__name__)

EXAMPLES = 24  # images in the picture of a run
EXPLAINED = 12  # of these, those of which it is drawn where the model looked


def write_evaluation(run: Run, result: RunEvaluation, *, next_command: str | None = None) -> Path:
    """Write the figures of an evaluation, pictures and the page into the run's `report` folder; return the page.

    Args:
        run: The run.
        result: What `run.evaluate` returned.
        next_command: What the page says to type next; None: how to label images with the bundle.
    """
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"metrics-{result.part}.json", to_json(result.to_dict()))
    newest = newest_checkpoint(run.folder)
    history = [] if newest is None else read_description(newest)["counters"]["history"]
    return write_report(
        folder,
        title=f"{run.recipe.backbone} on {Path(run.recipe.data).name}, {result.part} part",
        comparison=result.columns,
        evaluation=result.best,
        tables=result.label_parts(),
        history=history,
        pictures=_draw_pictures(run, result, folder),
        config=run.recipe.to_dict(),
        notes=(result.coverage, *result.notes),
        next_command=next_command or f"mlabel predict --bundle {run.folder / 'bundle'} IMAGE_OR_FOLDER",
    )


def _draw_pictures(run: Run, result: RunEvaluation, folder: Path) -> dict[str, Path]:
    """Draw some images of the part: what holds and was decided, and where the model looked; return caption to file."""
    table, model = run.parts[result.part], run.model
    rows = result.rows[np.sort(np.random.default_rng(0).permutation(result.scored)[:EXAMPLES])]
    dataset = ImageDataset(table, image_size=model.image_size, channels=model.in_channels)
    images = [dataset[int(row)][1].numpy() for row in rows]
    drawn = {"Examples": _draw_examples(run, result, rows, images, folder / "examples.png")}
    try:
        drawn["What it looked at"] = _draw_explanations(run, result, rows, images, folder / "looked-at.png")
    except TypeError as error:  # a network that keeps no map of places
        _log.info("no picture of what it looked at: %s", error)
    return drawn


def _draw_explanations(
    run: Run, result: RunEvaluation, rows: np.ndarray, images: Sequence[np.ndarray], path: Path
) -> Path:
    """Draw the first of some images, each with where the model looked for the label of the highest score."""
    rows, shown = rows[:EXPLAINED], np.stack(images[:EXPLAINED])
    top = result.scores[rows].argmax(axis=1)
    names, ids = run.model.space.names, run.parts[result.part].ids
    captions = [
        [Path(str(ids[row])).name, f"{names[label]} {result.scores[row, label]:.2f}"]
        for row, label in zip(rows, top, strict=True)
    ]
    return plot_explanations(shown, explain(run.model, shown, top[:, None]), path, captions=captions)


def _draw_examples(run: Run, result: RunEvaluation, rows: np.ndarray, images: Sequence[np.ndarray], path: Path) -> Path:
    """Draw images of the part with what holds and what was decided."""
    table = run.parts[result.part]
    saved = run.folder / "thresholds.json"
    levels = Thresholds.load(saved, table.space) if saved.exists() else 0.5
    chosen = table[rows]
    return plot_examples(
        images,
        names=table.space.names,
        scores=result.scores[rows],
        targets=chosen.targets,
        decisions=decide(result.scores[rows], levels, table.space),
        mask=chosen.unknown,
        titles=[Path(str(each)).name for each in chosen.ids],
        path=path,
    )
