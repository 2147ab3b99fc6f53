"""Losses of whole rows of an (N, L) matrix, for labels that may hold together: one value for each sample.

Here labels of a row meet: those that hold are to come before those that do not. What is unknown must therefore be said
by `mask`; it enters no sum, and a row without a known entry has the loss 0. Weights stand inside the sums: a weight
of k is k copies of the label. Soft targets stand there too, t as the weight of a label that holds and 1 - t as that of
one that does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlabel._checks import check_positive
from mlabel.losses._formulas import NOTHING, same_shape, softplus


def two_way(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature_pos: float = 4.0,
    temperature_neg: float = 1.0,
    dim: int = 1,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the two-way loss of each row: its hardest positives against its hardest negatives.

    L = log(1 + e^(T- log(sum of e^(x / T-) over negatives) + T+ log(sum of e^(-x / T+) over positives))). A row without
    positives, or without negatives, has the loss 0.

    That is one way. The other is the same formula over the samples of each label, `dim=0`. `Loss(two_way)` adds both:
    the mean over rows with a positive, and the mean over labels with a positive, which couples the rows of a batch.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        temperature_pos: T+, above 0; the higher, the more of the positives count beside the lowest.
        temperature_neg: T-, above 0; the higher, the more of the negatives count beside the highest.
        dim: 1: over the labels of each row. 0: over the rows of each label.
        mask: bool (N, L), True = known. None: all known.
        weight: Factors of the labels (L,). None: 1.
        pos_weight: Further factors (L,) of labels that hold. None: 1.

    Returns:
        Losses (N,), or (L,) with dim 0; float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ, a temperature that is not above 0, or another dim.

    Example:
        >>> two_way(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1, 0, 0]]))
        tensor([0.2395])

    Reference: Kobayashi, "Two-Way Multi-Label Loss", CVPR 2023.
    """
    check_positive(temperature_pos, "temperature_pos")
    check_positive(temperature_neg, "temperature_neg")
    if dim not in (0, 1):
        raise ValueError(f"dim must be 1, over the labels of each row, or 0, over the rows of each label; got {dim!r}")
    x, positive, negative = _factors(logits, targets, mask, weight if dim == 1 else None, pos_weight)
    if not x.shape[dim]:
        return x.sum(dim=dim)  # 0, and part of the graph
    highest_negative = x.detach().masked_fill(negative == 0, NOTHING).amax(dim=dim, keepdim=True)
    x = x - _or_zero(highest_negative)  # only differences count; these keep their digits at any size of logits
    lowest = temperature_pos * _log_sum(-x / temperature_pos, positive, dim)
    highest = temperature_neg * _log_sum(x / temperature_neg, negative, dim)
    losses = softplus(lowest + highest)
    return losses if dim == 1 or weight is None else losses * weight.to(x)


def zlpr(
    logits: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the ZLPR loss of each row: positives above 0, negatives below, and every positive above every negative.

    L = log(1 + sum of e^x over negatives) + log(1 + sum of e^-x over positives): the zero-bounded log-sum-exp of all
    pairs. It does not grow with the number of negatives as a sum of binary cross-entropies does.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        mask: bool (N, L), True = known. None: all known.
        weight: Factors of the labels (L,). None: 1.
        pos_weight: Further factors (L,) of labels that hold. None: 1.

    Returns:
        Losses (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> zlpr(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1, 0, 0]]))
        tensor([1.2255])

    Reference: Su, Zhu, Murtadha, Pan and Liu, "ZLPR: A Novel Loss for Multi-label Classification", arXiv 2208.02955,
    2022.
    """
    x, positive, negative = _factors(logits, targets, mask, weight, pos_weight)
    return softplus(_log_sum(x, negative, 1)) + softplus(_log_sum(-x, positive, 1))


def multilabel_soft_margin(
    logits: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the multilabel soft margin loss of each row: the mean of its known labels' binary cross-entropies.

    L = (sum of w (t v log(1 + e^-x) + (1 - t) log(1 + e^x))) / K over the K known labels of the row, with w = weight
    and v = pos_weight. Where all is known, its mean is that of the binary cross-entropy; where not, every row counts
    the same here, however much of it is known.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        mask: bool (N, L), True = known. None: all known.
        weight: Factors of the labels (L,). None: 1.
        pos_weight: Further factors (L,) of labels that hold. None: 1.

    Returns:
        Losses (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> multilabel_soft_margin(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor([0.6931])
    """
    x, positive, negative = _factors(logits, targets, mask, weight, pos_weight)
    known = x.shape[1] if mask is None else mask.sum(dim=1).clamp_min(1)
    return -(positive * F.logsigmoid(x) + negative * F.logsigmoid(-x)).sum(dim=1) / known


def _factors(logits: Tensor, targets: Tensor, mask: Tensor | None, weight: Any, pos_weight: Any) -> tuple[Tensor, ...]:
    """Return logits, and what each entry counts as one that holds and as one that does not; all 0 where unknown."""
    x, t = same_shape(logits, targets)
    rest = 1.0 - t
    if mask is not None:
        x, t, rest = (values.masked_fill(~mask, 0.0) for values in (x, t, rest))
    if weight is not None:
        t, rest = t * weight.to(x), rest * weight.to(x)
    return x, t if pos_weight is None else t * pos_weight.to(x), rest


def _log_sum(x: Tensor, factors: Tensor, dim: int) -> Tensor:
    """Return log(sum of factor x e^x); far below any logit where all factors are 0."""
    # The highest is taken out of the sum, so that a factor is not lost beside a large logit.
    shown = x.masked_fill(factors == 0, NOTHING)
    highest = _or_zero(shown.detach().amax(dim=dim, keepdim=True))
    total = (torch.exp(shown - highest) * factors).sum(dim=dim)
    nothing = total == 0
    return (total.masked_fill(nothing, 1.0).log() + highest.squeeze(dim)).masked_fill(nothing, NOTHING)


def _or_zero(highest: Tensor) -> Tensor:
    """Return `highest`, 0 where it is `NOTHING`."""
    return highest.masked_fill(highest == NOTHING, 0.0)
