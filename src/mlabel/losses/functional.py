"""The loss formulas: one value for each entry of an (N, L) matrix, or for each row of an exclusive group.

Notation: x a logit, p = sigmoid(x), t a target in [0, 1]. Every elementwise loss is t L+ + (1 - t) L-, where L+ is the
loss of a label that holds and L- of one that does not; soft targets follow from that. Everything is written in log
space, log p = logsigmoid(x) and log(1 - p) = logsigmoid(-x), so that loss and gradient stay finite at any logit.

Halves are computed in float32 and give float32, also under autocast; float64 stays float64, for gradient checks.
These functions are plain, differentiated by autograd, any number of times. `Loss` sums them faster (`fused`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlabel._checks import check_between, to_numpy

Terms = tuple[Tensor, Tensor]


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each entry.

    L+ = -log p and L- = -log(1 - p). Small losses keep their digits, as the two terms are never subtracted.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1] of the same shape, of any dtype.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Example:
        >>> binary_cross_entropy(torch.tensor([[0.0, 60000.0]]), torch.tensor([[1, 0]]))
        tensor([[6.9315e-01, 6.0000e+04]])
    """
    x, t = _same_shape(logits, targets)
    return _blend(_cross_entropy_terms(x), t)


def focal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | Tensor | list[float] | None = None
) -> Tensor:
    """Return the focal loss of each entry: cross-entropy turned down where the answer is already right.

    L+ = -alpha (1 - p)^gamma log p and L- = -(1 - alpha) p^gamma log(1 - p); without alpha both factors are 1.
    With gamma 0 and alpha 0.5 it is half the binary cross-entropy.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1] of the same shape.
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
    x, t = _same_shape(logits, targets)
    return _blend(_focal_terms(x, gamma=gamma), t, *focal_factors(alpha, x))


def asymmetric(
    logits: Tensor, targets: Tensor, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05
) -> Tensor:
    """Return the asymmetric loss of each entry: easy negatives count less than easy positives, or not at all.

    L+ = -(1 - p)^gamma_pos log p and L- = -m^gamma_neg log(1 - m), with the shifted probability m = max(p - clip, 0).
    With both gammas and clip 0 it is the binary cross-entropy. With clip above 0, L- has an upper bound and its
    gradient fades at very large logits: that is the formula, which so distrusts negatives it is sure to have wrong.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1] of the same shape.
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
    x, t = _same_shape(logits, targets)
    return _blend(_asymmetric_terms(x, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip), t)


def cross_entropy(logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each row, for labels of which exactly one holds.

    L = -sum over k of w_k s_k log softmax(x)_k, with s = (1 - smoothing) t + smoothing / K.

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
    check_between(smoothing, 0.0, 1.0, "smoothing")
    x = promote(logits)
    wanted = _class_probabilities(targets, x)
    if smoothing:
        wanted = wanted * (1.0 - smoothing) + smoothing / x.shape[1]
    if weight is not None:
        wanted = wanted * weight.to(x)
    return -(wanted * x.log_softmax(dim=1)).sum(dim=1)


def promote(logits: Tensor) -> Tensor:
    """Return `logits` as float32; float64 is kept.

    Raises:
        TypeError: not a floating-point tensor.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point torch tensor; got {came}")
    return logits if logits.dtype == torch.float64 else logits.float()


def focal_factors(alpha: float | Tensor | list[float] | None, like: Tensor) -> tuple[Any, Any]:
    """Return the factors of the positive and of the negative term: numbers, or tensors (L,) as `like`."""
    if alpha is None:
        return 1.0, 1.0
    values = to_numpy(alpha)
    if values.ndim > 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"alpha must be in [0, 1], a number or one for each label; got {alpha!r}")
    if values.ndim == 0:
        return float(values), 1.0 - float(values)
    factor = torch.as_tensor(values).to(like)
    return factor, 1.0 - factor


def check_gamma(value: float, name: str) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number, at least 0; got {value!r}")


def check_clip(value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"clip must be at least 0 and below 1; got {value!r}")


def weighted_terms(
    fn: Callable[..., Tensor], logits: Tensor, targets: Tensor, *, options: dict[str, Any], pos_weight: Tensor
) -> Tensor:
    """Return the entries' losses of one of this module's elementwise functions, L+ multiplied by `pos_weight` (L,)."""
    x, t = _same_shape(logits, targets)
    options = dict(options)
    positive, negative = focal_factors(options.pop("alpha", None), x)
    return _blend(TERMS[fn](x, **options), t, pos_weight * positive, negative)


def _cross_entropy_terms(x: Tensor) -> Terms:
    return -F.logsigmoid(x), -F.logsigmoid(-x)


def _focal_terms(x: Tensor, *, gamma: float = 2.0) -> Terms:
    check_gamma(gamma, "gamma")
    return _down_weighted(x, gamma), _down_weighted(-x, gamma)


def _asymmetric_terms(x: Tensor, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Terms:
    check_gamma(gamma_neg, "gamma_neg")
    check_gamma(gamma_pos, "gamma_pos")
    check_clip(clip)
    positive = _down_weighted(x, gamma_pos)
    return positive, _shifted(x, gamma_neg, clip) if clip else _down_weighted(-x, gamma_neg)


def _down_weighted(x: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p.

    The power is an exponential of a logarithm, whose derivative has no division by 1 - p: it stays finite where
    gamma is below 1 and 1 - p is 0.
    """
    return -torch.exp(gamma * F.logsigmoid(-x)) * F.logsigmoid(x)


def _shifted(x: Tensor, gamma: float, clip: float) -> Tensor:
    """Return -m^gamma log(1 - m), with m = max(p - clip, 0), for clip above 0."""
    rest = torch.sigmoid(-x) + clip  # 1 - m, exact where m is near 1 - clip
    active = rest < 1.0
    # Where nothing is left of m the power's slope may be infinite; a value of no account stands there instead.
    rest = torch.where(active, rest, 0.5)
    return torch.where(active, -((1.0 - rest) ** gamma) * rest.log(), 0.0)


def _blend(terms: Terms, targets: Tensor, positive: Any = 1.0, negative: Any = 1.0) -> Tensor:
    return positive * targets * terms[0] + negative * (1.0 - targets) * terms[1]


def _same_shape(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    x = promote(logits)
    if x.shape != targets.shape:
        raise ValueError(f"targets must have the shape of the logits, {tuple(x.shape)}; got {tuple(targets.shape)}")
    return x, targets.to(x)


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


# The positive and negative terms of each elementwise function, without its factors.
TERMS: dict[Callable[..., Tensor], Callable[..., Terms]] = {
    binary_cross_entropy: _cross_entropy_terms,
    focal: _focal_terms,
    asymmetric: _asymmetric_terms,
}
