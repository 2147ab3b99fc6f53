"""What the loss formulas share: precision, shapes, checks, and the pieces that several are built of.

Notation, here and in every formula: x a logit, p = sigmoid(x), t a target in [0, 1]. Everything is written in log
space, log p = logsigmoid(x) and log(1 - p) = logsigmoid(-x), so that loss and gradient stay finite at any logit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlabel._checks import to_numpy

# The losses of a label that holds, L+, and of one that does not, L-.
Terms = tuple[Tensor, Tensor]
# The logarithm of a sum without any entry: finite, so that no gradient is infinity minus infinity, and below any logit.
NOTHING = -1e30


def promote(logits: Tensor) -> Tensor:
    """Return `logits` as float32; float64 is kept.

    Raises:
        TypeError: not a floating-point tensor.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point torch tensor; got {came}")
    return logits if logits.dtype == torch.float64 else logits.float()


def same_shape(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets in the precision that a loss is computed in.

    Raises:
        ValueError: shapes that differ.
    """
    x = promote(logits)
    if x.shape != targets.shape:
        raise ValueError(f"targets must have the shape of the logits, {tuple(x.shape)}; got {tuple(targets.shape)}")
    return x, targets.to(x)


def blend(terms: Terms, targets: Tensor, positive: Any = 1.0, negative: Any = 1.0) -> Tensor:
    """Return positive t L+ + negative (1 - t) L-; the factors are numbers or tensors (L,)."""
    return positive * targets * terms[0] + negative * (1.0 - targets) * terms[1]


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x), with all its digits at any x."""
    return -F.logsigmoid(-x)


def down_weighted(x: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p.

    The power is an exponential of a logarithm, whose derivative has no division by 1 - p: it stays finite where
    gamma is below 1 and 1 - p is 0.
    """
    return -torch.exp(gamma * F.logsigmoid(-x)) * F.logsigmoid(x)


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


def label_counts(counts: Any, like: Tensor, what: str = "counts") -> Tensor:
    """Return counts of the labels as a tensor (L,) as `like`, whose columns they count.

    Raises:
        ValueError: another shape, or a count that is negative or not finite.
    """
    found = torch.as_tensor(counts).to(like)
    if found.shape != like.shape[1:]:
        raise ValueError(f"{what} must be of shape ({like.shape[1]},), one for each column; got {tuple(found.shape)}")
    # On an accelerator the answer would have to be waited for, at every step.
    if found.device.type == "cpu" and not bool((torch.isfinite(found) & (found >= 0)).all()):
        raise ValueError(f"{what} must be finite and at least 0; got {counts!r}")
    return found


def check_at_least(value: float, low: float, name: str) -> None:
    """Raise ValueError unless `value` is a finite number of at least `low`."""
    if not low <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number, at least {low:g}; got {value!r}")


def check_gamma(value: float, name: str = "gamma") -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    check_at_least(value, 0.0, name)


def check_clip(value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"clip must be at least 0 and below 1; got {value!r}")
