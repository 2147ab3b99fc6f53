"""What a recipe does about labels of different frequency: the loss with its weights and its adjustment, as a table."""

from __future__ import annotations

import numpy as np
from torch import nn

from mlabel.data import ImageTable
from mlabel.losses import LogitAdjusted, create
from mlabel.recipes.recipe import Recipe
from mlabel.weights import LabelTable, class_weights, describe


def make_loss(recipe: Recipe, train: ImageTable) -> nn.Module:
    """Return the loss of a recipe, with weights and adjusted logits from the training table where it wants them.

    Args:
        recipe: Its `loss`, `weighting`, `logit_adjustment` and what belongs to them are used.
        train: The training table.

    Raises:
        ValueError: see `mlabel.losses.create`.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=["a.png", "b.png"], targets=[[1, 0], [1, 1]], space=space)
        >>> make_loss(Recipe("csv", "labels.csv", loss="focal", loss_options={"gamma": 1.0}), table)
        Loss(focal(gamma=1.0), reduction='mean')
    """
    loss = create(
        recipe.loss,
        space=train.space,
        targets=train.targets,
        unknown=train.unknown,
        weighting=recipe.weighting,
        reduction=recipe.reduction,
        options=recipe.loss_options,
        exclusive_loss=recipe.exclusive_loss,
    )
    return LogitAdjusted(loss, logit_offset(recipe, train)) if recipe.logit_adjustment else loss


def logit_offset(recipe: Recipe, train: ImageTable) -> np.ndarray:
    """Return what the loss adds to the logits of each label (L,), float64."""
    return recipe.logit_adjustment * train.space.prior_logits(train.counts, train.known_counts)


def describe_labels(recipe: Recipe, train: ImageTable) -> LabelTable:
    """Return how often each label occurs in the training table, its weight, and what is added to its logits."""
    counts, known, space = train.counts, train.known_counts, train.space
    weight = None if recipe.weighting is None else class_weights(counts, known, scheme=recipe.weighting, space=space)
    further = {"logit_offset": logit_offset(recipe, train)} if recipe.logit_adjustment else None
    return describe(counts, known, space=space, weight=weight, further=further)
