"""Gradients that look for flat minima: SAM and GSAM, each from two passes over the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mlabel.training.parts import whole

# Keeps a gradient of 0 from being divided by its norm.
_TINY = 1e-12


def sharpen_gradient(
    parameters: Sequence[nn.Parameter], pass_there: Callable[[], float], *, rho: float, alpha: float = 0.0
) -> float:
    """Put the gradient of SAM or GSAM in the place of the plain one, and return the loss where it was taken.

    With the gradient g at the weights w, which the parameters have as this is called,

        h = gradient at w + rho * g / norm(g)        (SAM: the gradient at the worst place near by)
        h - alpha * (g - (g·h / h·h) * h)            (GSAM: less of the part of g that is orthogonal to h)

    g and h being those of all parameters together. Both gradients may be scaled by the same number, as a loss scaler
    does: the result then is, too. A gradient that is not finite is left as it is, and no second pass is made; the
    weights are what they were in any case.

    Args:
        parameters: Those with a gradient. It is that of all batches, and of all processes.
        pass_there: Leaves the gradient at the weights of that moment in the parameters, and returns the loss there.
        rho: How far away the second gradient is taken.
        alpha: How much of the orthogonal part is taken away; 0: SAM.

    Example:
        >>> w = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> def pass_there():  # half the squared length, whose gradient is w
        ...     w.grad = w.detach().clone()
        ...     return float(w.detach().square().sum() / 2)
        >>> pass_there()
        12.5
        >>> round(sharpen_gradient([w], pass_there, rho=5.0), 4), w.grad, w.detach()
        (50.0, tensor([6., 8.]), tensor([3., 4.]))

    References: Foret, Kleiner, Mobahi and Neyshabur (2021); Zhuang et al. (2022).
    """
    here = [_gradient(parameter) for parameter in parameters]
    norm = whole(nn.utils.get_total_norm(here))
    if not torch.isfinite(norm):
        return 0.0
    weights = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, here, strict=True):
            parameter.add_(gradient * (rho / (norm + _TINY)))
            parameter.grad = None
    try:
        loss = pass_there()
    finally:
        with torch.no_grad():
            for parameter, own in zip(parameters, weights, strict=True):
                parameter.copy_(own)
    if alpha:
        _take_orthogonal(parameters, here, alpha)
    return loss


def _take_orthogonal(parameters: Sequence[nn.Parameter], here: Sequence[torch.Tensor], alpha: float) -> None:
    """Take `alpha` times the part of the gradient `here` that is orthogonal to the parameters' own from that one."""
    there = [_gradient(parameter) for parameter in parameters]
    share = _dot(here, there) / (_dot(there, there) + _TINY)
    for parameter, g, h in zip(parameters, here, there, strict=True):
        parameter.grad = h - alpha * (g - share * h)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _dot(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    return whole(torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum())
