"""Elementwise losses for annotations that miss labels: a target of 0 may stand for a label that holds.

Both distrust a negative that the model is sure to see, instead of driving it down. They are t L+ + (1 - t) L-, as
those of `elementwise`. Labels that are known to be unknown need no such loss: they are masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlabel.losses._formulas import Terms, blend, check_at_least, check_gamma, down_weighted, same_shape


def hill(logits: Tensor, targets: Tensor, *, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> Tensor:
    """Return the Hill loss of each entry: negatives pull most in the middle, and hardly where they look present.

    L- = (lambda - p) p^2, whose gradient 3 p^2 (1 - p)^2, for lambda 1.5, is a hill over p. L+ is the focal loss with a
    margin, -(1 - q)^gamma log q with q = sigmoid(x - margin), which goes on where p is right already.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        lamb: The paper's lambda, at least 1. Below 1.5 negatives with p above 2 lambda / 3 are pushed up.
        margin: By how much the logit of a positive must be higher.
        gamma: How much right positives are turned down; at least 0.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: lamb below 1, gamma below 0, or a margin that is not finite.

    Example:
        >>> hill(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor([[0.7019, 0.2500]])

    Reference: Zhang, Cheng, Huang, Wen, Feng, Li and Guo, "Simple and Robust Loss Design for Multi-Label Learning with
    Missing Labels", arXiv 2112.07368, 2021.
    """
    x, t = same_shape(logits, targets)
    return blend(hill_terms(x, lamb=lamb, margin=margin, gamma=gamma), t)


def splc(
    logits: Tensor,
    targets: Tensor,
    *,
    tau: float = 0.6,
    start_epoch: int = 1,
    margin: float = 1.0,
    gamma: float = 2.0,
    epoch: int | None = None,
) -> Tensor:
    """Return the loss of each entry with self-paced correction: what the model is sure to see is no negative.

    L+ = -(1 - q)^gamma log q with q = sigmoid(x - margin), the focal loss with a margin. L- is the focal loss,
    -p^gamma log(1 - p), where p is at most tau; above, the label is taken to be missing, and L- is the focal loss of a
    positive, -(1 - p)^gamma log p: without the margin, as the authors' code has it. The step at tau has no gradient.

    The model's first answers are not to be trusted: the correction starts with an epoch. Training tells a `Loss` its
    epoch (`Loss.begin_epoch`), from which alone the correction follows.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        tau: The probability above which a negative is taken for a missing positive; above 0, at most 1 (never).
        start_epoch: The first epoch, counted from 0, that corrects.
        margin: By how much the logit of a positive must be higher.
        gamma: How much right answers are turned down; at least 0.
        epoch: The epoch under way, from 0. None: correct, whatever the epoch.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: tau outside (0, 1], gamma below 0, or a margin that is not finite.

    Example:
        >>> x, absent = torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)
        >>> splc(x, absent, epoch=0)
        tensor([[0.1733, 2.7663]])
        >>> splc(x, absent, epoch=1)
        tensor([[1.7329e-01, 1.0928e-04]])

    Reference: Zhang, Cheng, Huang, Wen, Feng, Li and Guo, "Simple and Robust Loss Design for Multi-Label Learning with
    Missing Labels", arXiv 2112.07368, 2021.
    """
    x, t = same_shape(logits, targets)
    terms = splc_terms(x, tau=tau, start_epoch=start_epoch, margin=margin, gamma=gamma, epoch=epoch)
    return blend(terms, t)


def hill_terms(x: Tensor, *, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> Terms:
    """Return L+ and L- of `hill`."""
    check_hill(lamb, margin, gamma)
    p = torch.sigmoid(x)
    return down_weighted(x - margin, gamma), p.square() * (lamb - p)


def splc_terms(
    x: Tensor,
    *,
    tau: float = 0.6,
    start_epoch: int = 1,
    margin: float = 1.0,
    gamma: float = 2.0,
    epoch: int | None = None,
) -> Terms:
    """Return L+ and L- of `splc`."""
    limit = splc_limit(tau, start_epoch, margin, gamma, epoch)
    return down_weighted(x - margin, gamma), torch.where(x > limit, down_weighted(x, gamma), down_weighted(-x, gamma))


def check_hill(lamb: float, margin: float, gamma: float) -> None:
    """Raise ValueError where an option of `hill` is out of its range."""
    check_at_least(lamb, 1.0, "lamb")
    check_at_least(abs(margin), 0.0, "the size of margin")
    check_gamma(gamma)


def splc_limit(tau: float, start_epoch: int, margin: float, gamma: float, epoch: int | None) -> float:
    """Return the logit above which `splc` corrects a negative, infinite where it corrects none.

    Raises:
        ValueError: an option out of its range.
    """
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must be above 0 and at most 1; got {tau!r}")
    check_at_least(abs(margin), 0.0, "the size of margin")
    check_gamma(gamma)
    if tau == 1.0 or (epoch is not None and epoch < start_epoch):
        return math.inf
    return math.log(tau) - math.log1p(-tau)
