"""What a run's model is judged by: its calibrated scores of a part, and the thresholds that decide them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlabel.data import ImageTable, stratified_split
from mlabel.decisions import Thresholds, cross_fit_thresholds
from mlabel.recipes.calibration import FILE as CALIBRATION_FILE
from mlabel.recipes.calibration import calibrated, cross_calibrated
from mlabel.recipes.recipe import Recipe


@dataclass(frozen=True)
class Judged:
    """What a run says of images, ready to be measured.

    Attributes:
        scores: Probabilities (N, L), calibrated where the run has a calibration.
        thresholds: The calibrated ones; one for each fold where there are folds; None: the run has none, or needs none.
        folds: The fold of each image (N,), as `mlabel.evaluate` takes it; None: one set of thresholds for all.
        notes: What a reader of figures must know.
    """

    scores: np.ndarray
    thresholds: Any
    folds: np.ndarray | None
    notes: tuple[str, ...]


def judge(
    recipe: Recipe, folder: Path, scores: np.ndarray, table: ImageTable, *, folds: np.ndarray | None = None
) -> Judged:
    """Return the scores of a run as its calibration makes them, and its thresholds.

    Args:
        recipe: The run's.
        folder: The run's.
        scores: The model's probabilities (N, L).
        table: The images that they are of.
        folds: Where calibration and thresholds were fitted on these images: the fold of each, from `fifths`, whose
            images are judged by what is fitted on the others. None: they were fitted on others.
    """
    notes: tuple[str, ...] = ()
    if (folder / CALIBRATION_FILE).exists():
        notes = (f"scores are calibrated: {recipe.calibration}",)
        if folds is None:
            scores = calibrated(folder, scores, table)
        else:
            scores = cross_calibrated(recipe, folder, scores, table, folds=folds)
    saved = folder / "thresholds.json"
    if not table.space.any_of.any():
        note = "every group is exclusive: the highest score decides, and there are no thresholds"
        return Judged(scores, None, None, (*notes, note))
    if not saved.exists():
        return Judged(scores, None, None, notes)
    if folds is None:
        return Judged(scores, Thresholds.load(saved, table.space), None, notes)
    crossed = cross_fit_thresholds(scores, table.targets, folds=folds, **threshold_fit(recipe, table))
    note = "calibrated: cross-fitted, each fifth judged by thresholds fitted on the others"
    return Judged(scores, crossed.parts, crossed.folds, (*notes, note, f"thresholds for {crossed.summary()}"))


def fifths(table: ImageTable) -> np.ndarray:
    """Return the stratified fifth of each image (N,)."""
    return stratified_split(table.targets, (0.2,) * 5, groups=table.groups, unknown=table.unknown)


def threshold_fit(recipe: Recipe, table: ImageTable) -> Mapping[str, Any]:
    """Return the options by which a recipe's thresholds are fitted on a table."""
    goal = {"objective": recipe.objective, "scope": recipe.scope, **recipe.objective_options}
    return {**goal, "mask": table.unknown, "space": table.space}
