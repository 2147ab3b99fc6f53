"""What a search shows: a page, its pictures, and the trials as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlabel._files import to_json, write_atomically
from mlabel.report import plot_curves, plot_importances, plot_settings, plot_trials, write_search
from mlabel.tuning import Range, Study


def write_study(study: Study) -> Path:
    """Write what a search found into `report` of its folder: `index.html`, its pictures, CSV, JSON; return the page.

    Args:
        study: What `tune` returned, or `mlabel.tuning.load_study`.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, tune, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> from mlabel.tuning import SearchConfig
        >>> config = SearchConfig(strategy="grid")
        >>> study = tune(recipe, {"lr": [0.01, 0.001]}, folder + "/study", config=config, say=lambda line: None)
        >>> write_study(study).name
        'index.html'
    """
    folder = study.folder / "report"
    folder.mkdir(exist_ok=True)
    rows = study.rows()
    write_atomically(folder / "study.json", to_json(study.to_dict()))
    write_atomically(folder / "trials.csv", _csv(rows))
    metric = f"val_{study.about.get('train', {}).get('monitor', 'value')}"
    best = study.best
    return write_search(
        folder,
        title=f"Search: {', '.join(study.parameters)}",
        best={} if best is None else {metric: best.value, **best.values},
        trials=[{"trial": row["trial"], "state": row["state"], metric: row["value"], **_rest(row)} for row in rows],
        pictures=_draw(study, metric, folder),
        config={"search": study.config.to_dict(), **study.about},
        notes=_notes(study, metric),
        next_command=None if best is None else f"mlabel train --config {best.folder / 'config.json'} --run runs/best",
    )


def _rest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("trial", "state", "value")}


def _notes(study: Study, metric: str) -> list[str]:
    counted = ", ".join(f"{number:,} {state}" for state, number in study.counts().items())
    wanted = study.config.count(study.parameters)
    strategy, pruning = study.config.strategy, study.config.pruning
    notes = [
        f"{wanted:,} trials by {strategy}" + ("" if pruning == "none" else f", pruned by {pruning}") + f": {counted}"
    ]
    if study.best is not None:
        done = study.counts()["done"]
        notes.append(
            f"the best {metric} is the best of {done:,} on the validation part, and so too good to expect of new "
            "images; the test part was not looked at"
        )
    if study.importances:
        notes.append("importance: the share of the spread of values over the trials that each setting explains alone")
    return notes


def _draw(study: Study, metric: str, folder: Path) -> dict[str, Path]:
    """Draw what there is to draw; return caption to file."""
    rows = [{**row, "steps": study.trials[row["trial"]].steps} for row in study.rows() if row["value"] is not None]
    if not rows:
        return {}
    higher = study.config.higher_is_better
    pictures = {
        "Trials in their order, and the best so far": plot_trials(
            rows, folder / "trials.png", metric=metric, higher_is_better=higher
        )
    }
    listed = [name for name, each in study.parameters.items() if not isinstance(each, Range)]
    logs = [name for name, each in study.parameters.items() if isinstance(each, Range) and each.log]
    pictures["Each setting"] = plot_settings(
        rows, folder / "settings.png", names=list(study.parameters), metric=metric, listed=listed, logs=logs
    )
    if any(len(row["steps"]) > 1 for row in rows):
        pictures["Each trial by epoch"] = plot_curves(rows, folder / "epochs.png", metric=metric)
    if study.importances:
        pictures["Importance of the settings"] = plot_importances(study.importances, folder / "importance.png")
    return pictures


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    return text.getvalue()
