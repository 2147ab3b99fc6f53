"""Losses for labels that may hold together, and for those that exclude each other.

Formulas are functions, one value an entry (`functional`); `Loss` binds one to weights, a mask and a reduction, and
`PerGroup` gives each group of a label space its own. `create` makes them by name.
"""

from mlabel.losses.adjustment import LogitAdjusted
from mlabel.losses.batch import BatchLoss, Parts, begin_epoch, total
from mlabel.losses.factory import EXCLUSIVE_NAMES, NAMES, create, options_of
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
    multilabel_soft_margin,
    poly1,
    seesaw,
    splc,
    squared_error,
    two_way,
    zlpr,
)
from mlabel.losses.module import REDUCTIONS, Loss
from mlabel.losses.per_group import PerGroup, as_loss

__all__ = [
    "EXCLUSIVE_NAMES",
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
    "begin_epoch",
    "binary_cross_entropy",
    "create",
    "cross_entropy",
    "distribution_balanced",
    "focal",
    "focal_cross_entropy",
    "hill",
    "multilabel_soft_margin",
    "options_of",
    "poly1",
    "seesaw",
    "splc",
    "squared_error",
    "total",
    "two_way",
    "zlpr",
]
