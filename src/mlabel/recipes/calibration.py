"""What a run makes of its model's probabilities before thresholds are fitted to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlabel.data import ImageTable
from mlabel.decisions import (
    CALIBRATION_METHODS,
    Calibration,
    cross_fit_calibration,
    fit_calibration,
    logits_of,
    undo_loss,
)
from mlabel.recipes.imbalance import logit_offset
from mlabel.recipes.recipe import Recipe
from mlabel.weights import class_weights

FILE = "calibration.json"


def make_calibration(
    recipe: Recipe, train: ImageTable, probabilities: np.ndarray, table: ImageTable
) -> Calibration | None:
    """Return the calibration that a recipe asks for, or None.

    Args:
        recipe: The recipe.
        train: The training part, whose counts gave the loss its weights.
        probabilities: The model's (N, L), of the images of `table`.
        table: What maps are fitted to.
    """
    if recipe.calibration == "none":
        return None
    if recipe.calibration == "loss":
        return undo_recipe_loss(recipe, train)
    logits, known = logits_of(probabilities, table.space), {"mask": table.unknown, "space": table.space}
    return fit_calibration(logits, table.targets, recipe.calibration, scope=recipe.calibration_scope, **known)


def undo_recipe_loss(recipe: Recipe, train: ImageTable) -> Calibration:
    """Return what undoes the loss that a recipe trains with: its form, its weights and its adjusted logits."""
    space = train.space
    weighted = recipe.weighting is not None
    weight = None
    if weighted:
        weight = class_weights(train.counts, train.known_counts, scheme=recipe.weighting or "", space=space)
    exclusive_loss = recipe.exclusive_loss or "cross_entropy"
    loss = recipe.loss
    if not space.any_of.any():  # then it may be the name of a loss of classes
        exclusive_loss, loss = recipe.exclusive_loss or recipe.loss, "binary_cross_entropy"
    return undo_loss(
        loss,
        space,
        exclusive_loss=exclusive_loss,
        options=recipe.loss_options,
        pos_weight=weight,
        offset=logit_offset(recipe, train) if recipe.logit_adjustment else None,
    )


def calibrated(folder: Path, probabilities: np.ndarray, table: ImageTable) -> np.ndarray:
    """Return probabilities as the calibration of a run's folder makes them; as they are where it has none."""
    path = folder / FILE
    if not path.exists():
        return probabilities
    return Calibration.load(path, table.space).apply(logits_of(probabilities, table.space))


def cross_calibrated(
    recipe: Recipe, folder: Path, probabilities: np.ndarray, table: ImageTable, *, folds: np.ndarray
) -> np.ndarray:
    """Return the same of the images that the maps were fitted to: those of each fold by maps of the other folds."""
    if not (folder / FILE).exists() or recipe.calibration not in CALIBRATION_METHODS:
        return calibrated(folder, probabilities, table)
    logits, known = logits_of(probabilities, table.space), {"mask": table.unknown, "space": table.space}
    method, scope = recipe.calibration, recipe.calibration_scope
    return cross_fit_calibration(logits, table.targets, method, folds=folds, scope=scope, **known)[0]
