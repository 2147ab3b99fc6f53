"""What a run's model is worth on a part, and of how many images that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel.labels import LabelSpace
from mlabel.metrics import Evaluation, Interval, Intervals, category_rows, comparison_table, frequency_rows
from mlabel.metrics.evaluation import decision_rows, threshold_sets

# As many labels as there are deciles; parts of fewer say nothing.
_LEAST_LABELS = 10
_BLOCK = 2**24  # decisions that are made at once


@dataclass(frozen=True)
class RunEvaluation:
    """What a run's model is worth on one part.

    Attributes:
        part: The part it was measured on.
        columns: Column title to `Evaluation`: `prior` (every image gets the labels' shares in the training part), one
            at 0.5 or the threshold asked for, and `calibrated` where thresholds were fitted.
        notes: What a reader of the figures must know, such as how the thresholds were fitted.
        scores: Probabilities (N, L) float32 of the part; NaN in the rows of images that were skipped.
        rows: The rows of the part that were scored, int64 (M,).
        counts: How many training images have each label, (L,).
        label_groups: The group of each label, L names.
        intervals: Of the last column; None where they were not asked for.
        fixed_intervals: Of the column before it, where that is not the prior; rank metrics, which no threshold changes,
            are only in `intervals`. None as there.
        levels: What the last column was decided by: thresholds, or those of each fold.
        folds: The fold of each image that was scored, int (M,); None: there are none.
    """

    part: str
    columns: dict[str, Evaluation]
    notes: tuple[str, ...]
    scores: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    label_groups: tuple[str, ...]
    intervals: Intervals | None = None
    fixed_intervals: Intervals | None = None
    levels: Any = 0.5
    folds: np.ndarray | None = None

    @property
    def expected(self) -> int:
        """How many images the part has."""
        return len(self.scores)

    @property
    def scored(self) -> int:
        """How many of them the figures are of."""
        return len(self.rows)

    @property
    def coverage(self) -> str:
        """A sentence on how many images were expected and how many were scored."""
        return f"scored {self.scored:,} of {self.expected:,} images"

    @property
    def best(self) -> Evaluation:
        """The evaluation at the calibrated thresholds, or, where there are none, at the fixed one."""
        return list(self.columns.values())[-1]

    def table(self) -> str:
        """Return the metrics as text, one a line, with a column for each evaluation and the ends of intervals."""
        return comparison_table({**self.columns, **self.ends()})

    def ends(self) -> dict[str, dict[str, float]]:
        """Return low and high to the ends of the intervals by metric; nothing where there are none."""
        if self.intervals is None:
            return {}
        return {end: {name: getattr(held, end) for name, held in self.intervals.items()} for end in ("low", "high")}

    def all_intervals(self) -> dict[str, dict[str, Interval]]:
        """Return title to metric to interval, of the columns that have them."""
        if self.intervals is None:
            return {}
        titles = list(self.columns)
        found = {titles[-1]: dict(self.intervals.items())}
        if self.fixed_intervals is not None:
            found[titles[-2]] = {**found[titles[-1]], **self.fixed_intervals}
        return found

    def decisions(self, space: LabelSpace) -> sp.csr_array:
        """Return what was decided in the last column of the images that were scored, CSR bool (M, L), in the columns of
        `space`.
        """
        scores = self.scores if self.scored == self.expected else self.scores[self.rows]
        sets = threshold_sets(self.levels, self.folds, scores.shape, space)
        rows = decision_rows(scores, sets, self.folds, space)
        step = max(1, _BLOCK // max(1, scores.shape[1]))
        blocks = [sp.csr_array(rows(k, min(k + step, self.scored))) for k in range(0, self.scored, step)]
        return sp.csr_array(sp.vstack(blocks, format="csr"), dtype=bool)

    def by_frequency(self, by: str = "tier") -> list[dict[str, Any]]:
        """Return how labels fare that are frequent or rare in training: see `mlabel.metrics.frequency_rows`.

        Args:
            by: tier (head, middle, tail) or decile.

        Returns:
            The rows, of the last column; none where there are fewer than ten labels.
        """
        if len(self.counts) < _LEAST_LABELS:
            return []
        return frequency_rows(self.best, self.counts, by=by)

    def by_group(self) -> list[dict[str, Any]]:
        """Return the means over the labels of each group: see `mlabel.metrics.category_rows`; none of one group."""
        return category_rows(self.best, self.label_groups) if len(set(self.label_groups)) > 1 else []

    def label_parts(self) -> dict[str, list[dict[str, Any]]]:
        """Return title to rows of the tables in which labels are put together, those that there are."""
        tables = {"Labels by frequency": self.by_frequency(), "Labels by group": self.by_group()}
        return {title: rows for title, rows in tables.items() if rows}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        columns = {title: result.to_dict() for title, result in self.columns.items()}
        numbers = {"expected": self.expected, "scored": self.scored}
        parts = {"by_frequency": self.by_frequency("decile"), "by_group": self.by_group()}
        held = {} if self.intervals is None else {"intervals": self.intervals.to_dict()}
        if self.fixed_intervals is not None:
            held["fixed_intervals"] = self.fixed_intervals.to_dict()
        return {"part": self.part, **numbers, "columns": columns, **held, **parts, "notes": list(self.notes)}


def describe_intervals(intervals: Intervals, resamples: int) -> str:
    """Return words on what intervals are of."""
    drawn = f"{intervals.num_samples:,} images"
    if intervals.num_groups != intervals.num_samples:
        drawn = f"{intervals.num_groups:,} groups of {drawn}"
    return f"the {intervals.level:.0%} interval from {resamples:,} resamples of {drawn}"
