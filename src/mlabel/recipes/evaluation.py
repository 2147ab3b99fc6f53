"""What a run's model is worth on a part, and of how many images that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlabel.metrics import Evaluation, comparison_table


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
    """

    part: str
    columns: dict[str, Evaluation]
    notes: tuple[str, ...]
    scores: np.ndarray
    rows: np.ndarray

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
        """Return the metrics as text, one a line, with a column for each evaluation."""
        return comparison_table(self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        columns = {title: result.to_dict() for title, result in self.columns.items()}
        numbers = {"expected": self.expected, "scored": self.scored}
        return {"part": self.part, **numbers, "columns": columns, "notes": list(self.notes)}
