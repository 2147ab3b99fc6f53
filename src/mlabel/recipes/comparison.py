"""What a comparison of runs found: metrics, the better run of each label, and what each costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlabel.labels import LabelSpace
from mlabel.metrics import Comparison, adjust_p_values, comparison_table, rows_table
from mlabel.recipes.cost import ModelCost

SURE = 0.05  # the largest adjusted p-value of a winner that is called sure


@dataclass(frozen=True, eq=False)
class RunComparison:
    """What `compare_runs` found.

    Attributes:
        names: Of the runs, in the order given: their folders' names where these differ, else the folders.
        folders: Of the runs.
        part: What they were measured on.
        space: The labels that all have.
        support: Images that have each label, (L,).
        pairs: Of two names, in the order given, to what `mlabel.metrics.compare` found of them.
        costs: Name to what the model costs to use; empty where it was not measured.
        by: The statistic of labels by which the better run of each is told.
        correction: How the p-values of labels were adjusted for there being so many labels and pairs.
        settings: Name to the settings in which the runs differ.
        notes: What a reader of the figures must know.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    part: str
    space: LabelSpace
    support: np.ndarray
    pairs: dict[tuple[str, str], Comparison]
    costs: dict[str, ModelCost]
    by: str
    correction: str
    settings: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Name of a run to its metrics."""
        return {name: {key: _number(key, v) for key, v in self._values(name, "metrics").items()} for name in self.names}

    @property
    def num_samples(self) -> int:
        """How many images they were measured on."""
        return next(iter(self.pairs.values())).num_samples

    def table(self) -> str:
        """Return the metrics as text, a column for each run; of two runs also their difference and its interval."""
        return comparison_table(self.columns())

    def columns(self) -> dict[str, Mapping[str, float]]:
        """Return the columns of `table`: title to metric name to number."""
        columns: dict[str, Mapping[str, float]] = dict(self.metrics)
        if len(self.names) == 2:
            (found,) = self.pairs.values()
            for title in ("difference", "low", "high", "p_value"):
                columns[title] = {key: _number(key, getattr(held, title)) for key, held in found.items()}
        return columns

    def difference_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary for each metric of each pair: the two runs, values, difference, its interval, p."""
        return [
            {"metric": key, "run": first, "other": second, **_named(held._asdict())}
            for (first, second), found in self.pairs.items()
            for key, held in found.items()
        ]

    def label_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary a label: support, each run's value, the winner, and by how much it leads.

        `lead` is the winner's value less that of the next best run, `low` and `high` the interval of this difference,
        and `adjusted_p` the largest adjusted p-value of the winner's differences from all others: where it is at most
        0.05, `sure` is True. There is no winner where values are equal or undefined.
        """
        values = np.stack([np.asarray(self._values(name, "per_label")[self.by]) for name in self.names])
        adjusted = self._adjusted()
        rows = []
        for column, label in enumerate(self.space.names):
            own = dict(zip(self.names, values[:, column].tolist(), strict=True))
            row = {"label": label, "support": int(self.support[column]), **own}
            rows.append({**row, **self._winner(own, column, adjusted)})
        return rows

    def win_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary a run: on how many labels it is the best, and on how many of these that is sure."""
        rows = self.label_rows()
        return [
            {
                "run": name,
                "labels_won": sum(row["winner"] == name for row in rows),
                "of_these_sure": sum(row["winner"] == name and row["sure"] for row in rows),
            }
            for name in self.names
        ]

    def cost_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary a run: what its model costs to use; none where that was not measured."""
        rows = []
        for name, cost in self.costs.items():
            adds = None if cost.multiply_adds is None else cost.multiply_adds / 1e9
            height, width = cost.image_size
            rows.append(
                {
                    "run": name,
                    "image_size": f"{height} x {width}",
                    "million_parameters": cost.parameters / 1e6,
                    "billion_multiply_adds": adds,
                    "images_per_second": cost.images_per_second,
                    "relative_speed": cost.relative_speed,
                    "relative_low": cost.relative_low,
                    "relative_high": cost.relative_high,
                }
            )
        return rows

    def shown_costs(self) -> list[dict[str, str]]:
        """Return `cost_rows` as a person reads them."""
        return [
            {
                "run": row["run"],
                "image_size": row["image_size"],
                "parameters": f"{row['million_parameters']:,.2f} M",
                "multiply_adds": "–" if (adds := row["billion_multiply_adds"]) is None else f"{adds:,.3f} G",
                "images_a_second": f"{row['images_per_second']:,.0f}",
                "speed": "{relative_speed:.2f} ({relative_low:.2f} to {relative_high:.2f})".format(**row),
            }
            for row in self.cost_rows()
        ]

    def text(self, *, labels: int | None = 0) -> str:
        """Return everything as text.

        Args:
            labels: How many rows of the table of labels, the smallest adjusted p-values first; None: all.
        """
        parts = [f"note: {note}" for note in self.notes]
        parts.append(self.table())
        if len(self.names) > 2:
            parts.append("\nDifferences\n" + rows_table(self.difference_rows()))
        parts.append(f"\nLabels won, by {self.by}\n" + rows_table(self.win_rows()))
        shown = sorted(self.label_rows(), key=lambda row: (row["adjusted_p"] is None, row["adjusted_p"] or 0))[:labels]
        if shown:
            parts.append(f"\nLabels, by {self.by}\n" + rows_table(_as_text(shown)))
        if self.costs:
            parts.append("\nCost\n" + rows_table(self.shown_costs()))
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        pairs = [{"runs": list(pair), **found.to_dict()} for pair, found in self.pairs.items()]
        return {
            "format": "mlabel.run_comparison/1",
            "runs": [{"name": n, "folder": str(f)} for n, f in zip(self.names, self.folders, strict=True)],
            "part": self.part,
            "num_samples": self.num_samples,
            "by": self.by,
            "correction": self.correction,
            "pairs": pairs,
            "labels": [_plain(row) for row in self.label_rows()],
            "won": self.win_rows(),
            "costs": [_plain(row) for row in self.cost_rows()],
            "settings": self.settings,
            "notes": list(self.notes),
        }

    def _values(self, name: str, kind: str) -> dict[str, Any]:
        """Return of one run what each metric, or each statistic of labels, is."""
        pair = next(pair for pair in self.pairs if name in pair)
        held = getattr(self.pairs[pair], kind)
        return {key: getattr(each, "first" if pair[0] == name else "second") for key, each in held.items()}

    def _adjusted(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the p-values of labels (L,) of each pair, adjusted for all labels of all pairs together."""
        p_values = [found.per_label[self.by].p_value for found in self.pairs.values()]
        parts = np.split(adjust_p_values(np.concatenate(p_values), self.correction), len(p_values))
        return dict(zip(self.pairs, parts, strict=True))

    def _winner(
        self, values: Mapping[str, float], column: int, adjusted: Mapping[tuple[str, str], np.ndarray]
    ) -> dict[str, Any]:
        """Return who is the best on a label, and how sure that is."""
        ordered = sorted((name for name in values if not math.isnan(values[name])), key=lambda name: -values[name])
        if len(ordered) < len(values) or values[ordered[0]] == values[ordered[1]]:
            return {"winner": None, "lead": None, "low": None, "high": None, "adjusted_p": None, "sure": False}
        best, second = ordered[:2]
        pair = (best, second) if (best, second) in self.pairs else (second, best)
        held = self.pairs[pair].per_label[self.by]
        ends = (float(held.low[column]), float(held.high[column]))
        low, high = ends if pair[0] == best else (-ends[1], -ends[0])
        largest = max(float(p[column]) for runs, p in adjusted.items() if best in runs)
        return {
            "winner": best,
            "lead": values[best] - values[second],
            "low": low,
            "high": high,
            "adjusted_p": largest,
            "sure": largest <= SURE,
        }


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a difference by names that a reader of a pair understands."""
    titles = {"first": "run_value", "second": "other_value"}
    return {titles.get(key, key): value for key, value in fields.items()}


def _number(name: str, value: Any) -> float:
    """Return the value of a metric, a whole number where it counts something."""
    return int(value) if name.startswith("num_") and value == int(value) else float(value)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}


def _as_text(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "winner": row["winner"] or "-", "sure": "yes" if row["sure"] else "no"} for row in rows]
