"""Losses of every entry of an (N, L) matrix by itself, for labels that may hold together.

All but the errors of the probability are t L+ + (1 - t) L-, where L+ is the loss of a label that holds and L- of one
that does not; soft targets follow from that. Notation and precision are those of `_formulas`: halves are computed in
float32 and give float32, also under autocast; float64 stays float64, for gradient checks.

These functions are plain, differentiated by autograd, any number of times. `Loss` sums them faster (`fused`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mlabel.losses._formulas import (
    Terms,
    blend,
    check_at_least,
    check_clip,
    check_gamma,
    down_weighted,
    focal_factors,
    same_shape,
)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each entry (Good, 1952).

    L+ = -log p and L- = -log(1 - p). Small losses keep their digits, as the two terms are never subtracted.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L), of any dtype.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0, 60000.0]]), torch.tensor([[1, 0]]))
        tensor([[6.9315e-01, 6.0000e+04]])
    """
    x, t = same_shape(logits, targets)
    return blend(cross_entropy_terms(x), t)


def focal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | Tensor | list[float] | None = None
) -> Tensor:
    """Return the focal loss of each entry: cross-entropy turned down where the answer is already right.

    L+ = -alpha (1 - p)^gamma log p and L- = -(1 - alpha) p^gamma log(1 - p); without alpha both factors are 1.
    With gamma 0 and alpha 0.5 it is half the binary cross-entropy.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        gamma: How much right answers are turned down; at least 0.
        alpha: The share of the positive term, in [0, 1]: a number, or one for each label (L,). None: no factors.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: gamma below 0, or alpha outside [0, 1].

    Example:
        >>> focal(torch.zeros(1, 2), torch.tensor([[1, 0]]), gamma=1.0, alpha=0.25)
        tensor([[0.0866, 0.2599]])

    Reference: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    x, t = same_shape(logits, targets)
    return blend(focal_terms(x, gamma=gamma), t, *focal_factors(alpha, x))


def asymmetric(
    logits: Tensor, targets: Tensor, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05
) -> Tensor:
    """Return the asymmetric loss of each entry: easy negatives count less than easy positives, or not at all.

    L+ = -(1 - p)^gamma_pos log p and L- = -m^gamma_neg log(1 - m), with the shifted probability m = max(p - clip, 0).
    With both gammas and clip 0 it is the binary cross-entropy. With clip above 0, L- has an upper bound and its
    gradient fades at very large logits: that is the formula, which so distrusts negatives it is sure to have wrong.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        gamma_neg: How much right negatives are turned down; at least 0.
        gamma_pos: How much right positives are turned down; at least 0.
        clip: Probability up to which a negative costs nothing; in [0, 1).

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: a gamma below 0, or clip outside [0, 1).

    Example:
        >>> asymmetric(torch.tensor([[0.0, 0.0, -4.0]]), torch.tensor([[1, 0, 0]]))
        tensor([[0.3466, 0.0245, 0.0000]])

    Reference: Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss For Multi-Label
    Classification", ICCV 2021.
    """
    x, t = same_shape(logits, targets)
    return blend(asymmetric_terms(x, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip), t)


def poly1(logits: Tensor, targets: Tensor, *, epsilon: float = 1.0) -> Tensor:
    """Return the poly-1 loss of each entry: cross-entropy whose first polynomial term has another weight.

    L+ = -log p + epsilon (1 - p) and L- = -log(1 - p) + epsilon p. In powers of 1 - p the cross-entropy is a sum of
    (1 - p)^j / j; the first, which decides the gradient of an answer that is nearly right, counts 1 + epsilon here.
    With epsilon 0 it is the binary cross-entropy.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).
        epsilon: What is added to the weight of the first term; at least -1, which leaves it out.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: epsilon below -1, for which an answer that is nearly right would be pushed away.

    Example:
        >>> poly1(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor([[1.1931, 1.1931]])

    Reference: Leng, Tan, Liu, Cubuk, Shi, Cheng and Anguelov, "PolyLoss: A Polynomial Expansion Perspective of
    Classification Loss Functions", ICLR 2022.
    """
    x, t = same_shape(logits, targets)
    return blend(poly1_terms(x, epsilon=epsilon), t)


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of the probability of each entry, (p - t)^2.

    The error is that of the target itself, soft ones included. Its gradient fades where an answer is confidently
    wrong, so that such an answer is hardly put right.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> squared_error(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.25]]))
        tensor([[0.2500, 0.2500, 0.0625]])

    Reference: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review, 1950.
    """
    return _error(logits, targets).square()


def absolute_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of the probability of each entry, abs(p - t) (Ghosh, Kumar and Sastry, 2017).

    The error is that of the target itself, soft ones included; where p = t the gradient is 0. For targets of 0 and 1 it
    is lowest at 0 or 1, whichever is the more frequent, and no probability: use it where a decision is all that counts.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L).

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> absolute_error(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.25]]))
        tensor([[0.5000, 0.5000, 0.2500]])
    """
    return _error(logits, targets).abs()


def _error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return t - p, as t (1 - p) - (1 - t) p: its digits are not lost where p is near 0 or 1."""
    x, t = same_shape(logits, targets)
    return t * torch.sigmoid(-x) - (1.0 - t) * torch.sigmoid(x)


def cross_entropy_terms(x: Tensor) -> Terms:
    """Return L+ and L- of `binary_cross_entropy`."""
    return -F.logsigmoid(x), -F.logsigmoid(-x)


def focal_terms(x: Tensor, *, gamma: float = 2.0) -> Terms:
    """Return L+ and L- of `focal`, without its factors."""
    check_gamma(gamma, "gamma")
    return down_weighted(x, gamma), down_weighted(-x, gamma)


def asymmetric_terms(x: Tensor, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Terms:
    """Return L+ and L- of `asymmetric`."""
    check_gamma(gamma_neg, "gamma_neg")
    check_gamma(gamma_pos, "gamma_pos")
    check_clip(clip)
    positive = down_weighted(x, gamma_pos)
    return positive, _shifted(x, gamma_neg, clip) if clip else down_weighted(-x, gamma_neg)


def poly1_terms(x: Tensor, *, epsilon: float = 1.0) -> Terms:
    """Return L+ and L- of `poly1`."""
    check_at_least(epsilon, -1.0, "epsilon")
    positive, negative = cross_entropy_terms(x)
    return positive + epsilon * torch.sigmoid(-x), negative + epsilon * torch.sigmoid(x)


def _shifted(x: Tensor, gamma: float, clip: float) -> Tensor:
    """Return -m^gamma log(1 - m), with m = max(p - clip, 0), for clip above 0."""
    rest = torch.sigmoid(-x) + clip  # 1 - m, exact where m is near 1 - clip
    active = rest < 1.0
    # Where nothing is left of m the power's slope may be infinite; a value of no account stands there instead.
    rest = torch.where(active, rest, 0.5)
    return torch.where(active, -((1.0 - rest) ** gamma) * rest.log(), 0.0)
