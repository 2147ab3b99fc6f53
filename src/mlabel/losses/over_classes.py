"""Losses of the rows of an exclusive group: labels of which exactly one holds.

s is the softmax of a row's logits. Precision is that of the elementwise losses. Targets are classes (N,) or
probabilities (N, K), for which the loss is the mean over the classes; a row of zeros has the loss 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlabel._checks import check_between
from mlabel.losses._formulas import NOTHING, check_at_least, check_gamma, label_counts, promote, softplus


def cross_entropy(logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each row, for labels of which exactly one holds.

    L = -sum over k of w_k u_k log s_k, with u = (1 - smoothing) t + smoothing / K.

    Args:
        logits: Real numbers (N, K).
        targets: Classes (N,), integers in [0, K); or probabilities (N, K), such as one-hot rows.
        weight: The classes' weights w (K,). None: all 1.
        smoothing: The share of the target that is spread evenly over the classes; in [0, 1].

    Returns:
        Losses (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, classes of a floating dtype, or smoothing outside [0, 1].

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])

    Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016 (smoothing).
    """
    x = promote(logits)
    return -(_wanted(targets, x, weight, smoothing) * x.log_softmax(dim=1)).sum(dim=1)


def focal_cross_entropy(
    logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, gamma: float = 2.0, smoothing: float = 0.0
) -> Tensor:
    """Return the focal loss of each row: cross-entropy turned down where the answer is already right.

    L = -sum over k of w_k u_k (1 - s_k)^gamma log s_k, with u = (1 - smoothing) t + smoothing / K. With gamma 0 it is
    `cross_entropy`.

    Args:
        logits: Real numbers (N, K).
        targets: Classes (N,), integers in [0, K); or probabilities (N, K), such as one-hot rows.
        weight: The classes' weights w (K,). None: all 1.
        gamma: How much right answers are turned down; at least 0.
        smoothing: The share of the target that is spread evenly over the classes; in [0, 1].

    Returns:
        Losses (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, classes of a floating dtype, gamma below 0, or smoothing outside [0, 1].

    Example:
        >>> focal_cross_entropy(torch.zeros(1, 4), torch.tensor([0]))
        tensor([0.7798])

    Reference: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, in its form for
    softmax.
    """
    check_gamma(gamma)
    x = promote(logits)
    log_share = x.log_softmax(dim=1)
    turned_down = torch.exp(gamma * _log_rest(log_share)) * log_share
    return -(_wanted(targets, x, weight, smoothing) * turned_down).sum(dim=1)


def seesaw(
    logits: Tensor,
    targets: Tensor,
    *,
    counts: Any,
    weight: Tensor | None = None,
    p: float = 0.8,
    q: float = 2.0,
    floor: float = 0.01,
) -> Tensor:
    """Return the seesaw loss of each row: rare classes are pushed down less by the samples of frequent ones.

    For a sample of class i, L_i = -log(e^x_i / (e^x_i + sum over j other than i of S_ij e^x_j)) with S_ij = M_ij C_ij.
    M_ij = min(1, (n_j / n_i)^p) mitigates the push on classes j rarer than i; C_ij = max(1, (s_j / s_i)^q) gives it
    back where the sample is taken for class j. C is a weight, and has no gradient. L = sum over i of w_i t_i L_i.
    With p and q 0 it is `cross_entropy`.

    The counts n are those of the training part, not of the samples seen so far: the loss so is the same at every step,
    and after a resume.

    Args:
        logits: Real numbers (N, K).
        targets: Classes (N,), integers in [0, K); or probabilities (N, K). Soft ones take (N, K, K) numbers of memory.
        counts: Samples n of each class in the training part (K,); less than 1 counts as 1.
        weight: The classes' weights w (K,). None: all 1.
        p: How much frequent classes spare rare ones; at least 0.
        q: How much of it a mistake takes back; at least 0.
        floor: What s_i is at least taken to be in C, as in the authors' code; 0: no floor.

    Returns:
        Losses (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that do not fit, classes of a floating dtype, or an option out of its range.

    Example:
        >>> seesaw(torch.zeros(2, 2), torch.tensor([0, 1]), counts=[1000, 10])
        tensor([0.0248, 0.6931])

    Reference: Wang, Zhang, Zang, Cao, Pang, Gong, Chen, Liu, Loy and Lin, "Seesaw Loss for Long-Tailed Instance
    Segmentation", CVPR 2021.
    """
    for name, value in (("p", p), ("q", q)):
        check_at_least(value, 0.0, name)
    check_between(floor, 0.0, 1.0, "floor")
    x = promote(logits)
    wanted = _wanted(targets, x, weight, 0.0)
    log_counts = label_counts(counts, x).clamp_min(1.0).log()
    log_floor = math.log(floor) if floor else -math.inf
    if targets.ndim == 1 or bool(((targets == 0) | (targets == 1)).all()):  # one class a row: its S alone is needed
        classes = wanted.argmax(dim=1, keepdim=True)
    else:
        classes = torch.arange(x.shape[1], device=x.device).expand(x.shape)
    losses = _seesaw_of(x, classes, log_counts, p=p, q=q, log_floor=log_floor)
    return (wanted.gather(1, classes) * losses).sum(dim=1)


def _seesaw_of(x: Tensor, classes: Tensor, log_counts: Tensor, *, p: float, q: float, log_floor: float) -> Tensor:
    """Return the loss L_i (N, C) of each row for each of some classes i (N, C)."""
    log_share = x.log_softmax(dim=1)
    as_weight = log_share.detach()
    own = as_weight.gather(1, classes).clamp_min(log_floor)
    mitigation = p * (log_counts - log_counts[classes][:, :, None]).clamp_max(0.0)
    # log C_ij = q (max(log s_j, own) - own): the second part is the same for all j, and is taken off after the sum,
    # in which what counts is near 0 and keeps its digits.
    compensated = q * torch.maximum(as_weight[:, None, :], own[:, :, None])
    of_class = F.one_hot(classes, x.shape[1]).bool()
    others = (log_share[:, None, :] + mitigation + compensated).masked_fill(of_class, NOTHING).logsumexp(dim=2)
    return softplus(others - log_share.gather(1, classes) - q * own)


def _log_rest(log_share: Tensor) -> Tensor:
    """Return log(1 - s) of log s, with all its digits.

    Of the highest class, whose s may be 1 to the last digit, it is the sum of the others; of all others s is at most a
    half.
    """
    top = F.one_hot(log_share.argmax(dim=1), log_share.shape[1]).bool()
    others = log_share.masked_fill(top, NOTHING).logsumexp(dim=1, keepdim=True)
    return torch.where(top, others, torch.log1p(-log_share.masked_fill(top, -1.0).exp()))


def _wanted(targets: Tensor, x: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """Return the classes' smoothed targets times their weights (N, K)."""
    check_between(smoothing, 0.0, 1.0, "smoothing")
    wanted = _class_probabilities(targets, x)
    if smoothing:
        wanted = wanted * (1.0 - smoothing) + smoothing / x.shape[1]
    return wanted if weight is None else wanted * weight.to(x)


def _class_probabilities(targets: Tensor, x: Tensor) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"logits must be of shape (N, K); got {tuple(x.shape)}")
    if targets.shape == x.shape:
        return targets.to(x)
    if targets.shape != x.shape[:1]:
        raise ValueError(
            f"targets must be classes ({len(x)},) or probabilities {tuple(x.shape)}; got shape {tuple(targets.shape)}"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"classes must be integers; got dtype {targets.dtype}")
    return F.one_hot(targets.long().to(x.device), x.shape[1]).to(x)
