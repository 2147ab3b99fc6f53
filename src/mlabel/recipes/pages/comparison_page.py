"""What a comparison of runs shows: a page, its pictures, and the figures as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlabel._files import to_json, write_atomically
from mlabel.recipes.comparison import RunComparison
from mlabel.report import plot_differences, write_comparison

# Metrics that are not between 0 and 1, beside which the others could not be seen.
_LARGE = ("num_", "coverage_error")


def write_run_comparison(result: RunComparison, folder: str | Path) -> Path:
    """Write a comparison into a folder: `index.html`, its pictures, `comparison.json` and CSV files; return the page.

    Args:
        result: What `compare_runs` returned.
        folder: Where to write; made where it is not there.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, compare_runs, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> for name, lr in (("a", 0.01), ("b", 0.001)):
        ...     own = dataclasses.replace(recipe, train=dataclasses.replace(train, lr=lr))
        ...     _ = run(own, f"{folder}/{name}", say=lambda line: None)
        >>> found = compare_runs([folder + "/a", folder + "/b"], resamples=20, seconds=0)
        >>> write_run_comparison(found, folder + "/compared").name
        'index.html'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "comparison.json", to_json(result.to_dict()))
    labels, differences, costs = result.label_rows(), result.difference_rows(), result.cost_rows()
    for name, rows in {"metrics": differences, "labels": labels, "costs": costs}.items():
        write_atomically(folder / f"{name}.csv", _csv(rows))
    return write_comparison(
        folder,
        title=f"{', '.join(result.names)}: compared on the {result.part} part",
        comparison=result.columns(),
        tables={
            f"Labels won, by {result.by}": result.win_rows(),
            "Cost": result.shown_costs(),
            **_difference_tables(result),
            "Settings that differ": _settings_rows(result.settings),
        },
        labels=labels,
        pictures=_draw(result, labels, folder),
        notes=result.notes,
    )


def _difference_tables(result: RunComparison) -> dict[str, list[dict[str, Any]]]:
    """Return a table for each pair of more than two runs; of two, the table of metrics has it."""
    if len(result.names) == 2:
        return {}
    return {
        f"Differences: {first} less {second}": [{"metric": name, **held._asdict()} for name, held in found.items()]
        for (first, second), found in result.pairs.items()
    }


def _draw(result: RunComparison, labels: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """Draw the differences of metrics, and of labels where two runs are compared; return caption to file."""
    pictures = {}
    for place, ((first, second), found) in enumerate(result.pairs.items()):
        rows = [{"name": name, **held._asdict()} for name, held in found.items() if not name.startswith(_LARGE)]
        path = folder / f"metrics-{place + 1}.png"
        pictures[f"{first} less {second}: metrics with their intervals"] = plot_differences(
            rows, path, first=first, second=second
        )
    if len(result.pairs) == 1 and any(row["lead"] is not None for row in labels):
        ((first, second),) = result.pairs
        rows = [_signed(row, first) for row in labels if row["lead"] is not None]
        path = folder / "labels.png"
        caption = f"{first} less {second}: {result.by} of the labels that differ most"
        pictures[caption] = plot_differences(rows, path, first=first, second=second)
    return pictures


def _signed(row: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return the lead of a label as the first run's, which is below 0 where the second leads."""
    low, high, lead = row["low"], row["high"], row["lead"]
    if row["winner"] != first:
        low, high, lead = -high, -low, -lead
    return {"name": row["label"], "difference": lead, "low": low, "high": high}


def _settings_rows(settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    keys = next(iter(settings.values()))
    return [{"setting": key, "run": name, "value": str(held[key])} for key in keys for name, held in settings.items()]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: "" if v is None or v != v else v for key, v in row.items()} for row in rows])
    return text.getvalue()
