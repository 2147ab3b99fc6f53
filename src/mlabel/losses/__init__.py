"""Losses for labels that may hold together, and for those that exclude each other.

Formulas are functions, one value an entry (`functional`); `Loss` binds one to weights, a mask and a reduction, and
`PerGroup` gives each group of a label space its own. `create` makes them by name.
"""

from mlabel.losses.batch import BatchLoss, Parts, total
from mlabel.losses.factory import NAMES, create, options_of
from mlabel.losses.foreign import ForeignLoss
from mlabel.losses.functional import asymmetric, binary_cross_entropy, cross_entropy, focal
from mlabel.losses.module import REDUCTIONS, Loss, PerGroup, as_loss

__all__ = [
    "NAMES",
    "REDUCTIONS",
    "BatchLoss",
    "ForeignLoss",
    "Loss",
    "Parts",
    "PerGroup",
    "as_loss",
    "asymmetric",
    "binary_cross_entropy",
    "create",
    "cross_entropy",
    "focal",
    "options_of",
    "total",
]
