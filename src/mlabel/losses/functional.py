"""All loss formulas, and of which kind each is; `Loss` and `create` know them from here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mlabel.losses import elementwise, missing_labels
from mlabel.losses._formulas import (
    Terms,
    blend,
    check_at_least,
    check_clip,
    check_gamma,
    focal_factors,
    promote,
    same_shape,
)
from mlabel.losses.balanced import distribution_balanced
from mlabel.losses.elementwise import absolute_error, asymmetric, binary_cross_entropy, focal, poly1, squared_error
from mlabel.losses.missing_labels import check_hill, hill, splc, splc_limit
from mlabel.losses.over_classes import cross_entropy, focal_cross_entropy, seesaw
from mlabel.losses.per_sample import multilabel_soft_margin, two_way, zlpr

__all__ = [
    "ELEMENTWISE",
    "OVER_CLASSES",
    "PER_SAMPLE",
    "TERMS",
    "absolute_error",
    "asymmetric",
    "binary_cross_entropy",
    "check_at_least",
    "check_clip",
    "check_gamma",
    "check_hill",
    "cross_entropy",
    "distribution_balanced",
    "focal",
    "focal_cross_entropy",
    "focal_factors",
    "hill",
    "multilabel_soft_margin",
    "poly1",
    "promote",
    "seesaw",
    "splc",
    "splc_limit",
    "squared_error",
    "two_way",
    "weighted_terms",
    "zlpr",
]

# The positive and negative terms of each function that is t L+ + (1 - t) L-, without its factors.
TERMS: dict[Callable[..., Tensor], Callable[..., Terms]] = {
    binary_cross_entropy: elementwise.cross_entropy_terms,
    focal: elementwise.focal_terms,
    asymmetric: elementwise.asymmetric_terms,
    poly1: elementwise.poly1_terms,
    hill: missing_labels.hill_terms,
    splc: missing_labels.splc_terms,
}
# Functions that give a loss for each entry (N, L), for each row of any-of labels (N,), which take a mask, and for each
# row of an exclusive group (N,).
ELEMENTWISE: frozenset[Callable[..., Tensor]] = frozenset(
    {*TERMS, squared_error, absolute_error, distribution_balanced}
)
PER_SAMPLE: frozenset[Callable[..., Tensor]] = frozenset({two_way, zlpr, multilabel_soft_margin})
OVER_CLASSES: frozenset[Callable[..., Tensor]] = frozenset({cross_entropy, focal_cross_entropy, seesaw})


def weighted_terms(
    fn: Callable[..., Tensor], logits: Tensor, targets: Tensor, *, options: dict[str, Any], pos_weight: Tensor
) -> Tensor:
    """Return the entries' losses of a function in `TERMS`, L+ multiplied by `pos_weight` (L,)."""
    x, t = same_shape(logits, targets)
    options = dict(options)
    positive, negative = focal_factors(options.pop("alpha", None), x)
    return blend(TERMS[fn](x, **options), t, pos_weight * positive, negative)
