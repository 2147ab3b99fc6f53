"""Losses for labels that may hold together, and for those that exclude each other.

Formulas are functions, one value an entry (`functional`); `Loss` binds one to weights, a mask and a reduction, and
`PerGroup` gives each group of a label space its own. `create` makes them by name.
"""

from mlabel.losses.adjustment import LogitAdjusted
from mlabel.losses.batch import BatchLoss, Parts, total
from mlabel.losses.factory import NAMES, create, options_of
from mlabel.losses.foreign import ForeignLoss
from mlabel.losses.functional import (
    absolute_error,
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    distribution_balanced,
    focal,
    focal_cross_entropy,
    hill,
    poly1,
    seesaw,
    splc,
    squared_error,
)
from mlabel.losses.module import REDUCTIONS, Loss, PerGroup, as_loss

__all__ = [
    "NAMES",
    "REDUCTIONS",
    "BatchLoss",
    "ForeignLoss",
    "LogitAdjusted",
    "Loss",
    "Parts",
    "PerGroup",
    "absolute_error",
    "as_loss",
    "asymmetric",
    "binary_cross_entropy",
    "create",
    "cross_entropy",
    "distribution_balanced",
    "focal",
    "focal_cross_entropy",
    "hill",
    "options_of",
    "poly1",
    "seesaw",
    "splc",
    "squared_error",
    "total",
]
