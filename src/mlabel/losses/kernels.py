"""Value and slope of the elementwise losses, computed together and in place.

A kernel is of one formula with its options: L+ and L-, each giving its value and its slope, the derivative by the
logit. The slope is written where the caller wants it; the value lies in scratch memory until the next block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlabel.losses._formulas import check_at_least, check_clip, check_gamma, focal_factors
from mlabel.losses.elementwise import asymmetric, binary_cross_entropy, focal, poly1
from mlabel.losses.missing_labels import check_hill, hill, splc, splc_limit


class Scratch:
    """Buffers in which one block after another is computed: fresh memory each time costs more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def like(self, x: Tensor, count: int) -> list[Tensor]:
        """Return `count` buffers of the shape and type of `x`, the same ones at each call."""
        if len(self._buffers) < count or self._buffers[0].numel() < x.numel():
            self._buffers = [torch.empty(x.numel(), dtype=x.dtype, device=x.device) for _ in range(count)]
        return [buffer[: x.numel()].view(x.shape) for buffer in self._buffers[:count]]


Term = Callable[[Tensor, Tensor, Scratch], Tensor]
"""Of x, returns the value, in scratch memory, and writes the slope into the second argument. It leaves x as it is."""


class Kernel(NamedTuple):
    """Both terms of an elementwise loss, and how many buffers the negative one computes in."""

    positive: Term
    negative: Term
    alpha: Any = None
    buffers: int = 3


def _mirrored(x: Tensor, slope: Tensor, scratch: Scratch, *, negative: Term) -> Tensor:
    """Return the value of the positive term L+(x) = L-(-x)."""
    value = negative(-x, slope, scratch)
    slope.neg_()
    return value


def _soft_plus(x: Tensor, slope: Tensor, scratch: Scratch) -> Tensor:
    """Return -log(1 - p); its slope is p. Above 40 the two are x and 1, to the last digit of float64."""
    (value,) = scratch.like(x, 1)
    torch.ops.aten.softplus.out(x, 1.0, 40.0, out=value)
    torch.sigmoid(x, out=slope)
    return value


def _down_weighted(x: Tensor, slope: Tensor, scratch: Scratch, *, gamma: float) -> Tensor:
    """Return -p^gamma log(1 - p); its slope is p^gamma (p - gamma (1 - p) log(1 - p))."""
    value, power = scratch.like(x, 2)
    _soft_plus(x, slope, scratch)
    if gamma == 0.0:
        return value
    # gamma (1 - p) times the value, p being in `slope`.
    torch.mul(slope, -gamma, out=power).add_(gamma).mul_(value)
    power.add_(slope)
    _raise_power(slope, gamma)
    value.mul_(slope)
    slope.mul_(power)
    return value


def _shifted(x: Tensor, slope: Tensor, scratch: Scratch, *, gamma: float, clip: float) -> Tensor:
    """Return -m^gamma log(1 - m), with m = max(p - clip, 0).

    Its slope is p (1 - p) m^gamma (1 / (1 - m) - gamma log(1 - m) / m). The clip is above 0, so that 1 - m never is.
    """
    m, rest, value = scratch.like(x, 3)
    q = torch.neg(x, out=slope).sigmoid_()  # 1 - p
    torch.add(q, clip, out=rest).clamp_max_(1.0)  # 1 - m
    torch.sub(rest, 1.0, out=value)  # -m
    torch.neg(value, out=m)
    value.log1p_().neg_()  # torch's log takes twice the time
    if gamma >= 1.0:  # one power less, and the division by m is gone
        torch.div(m, rest, out=rest).add_(value, alpha=gamma)
        value.mul_(m)
        _raise_power(m, gamma - 1.0)
        value.mul_(m)
        rest.mul_(m)
    else:
        empty = m == 0.0
        rest.reciprocal_().addcdiv_(value, m.clamp_min(torch.finfo(m.dtype).tiny), value=gamma)
        m.pow_(gamma).masked_fill_(empty, 0.0)
        value.mul_(m)
        rest.mul_(m)
    torch.ops.aten.sigmoid_backward.grad_input(rest, q, grad_input=slope)
    return value


def _raise_power(base: Tensor, exponent: float) -> None:
    """Raise `base` in place; torch is many times faster with the exponents 2 and 3 than with any other."""
    if exponent == 0.0:
        base.fill_(1.0)
    elif exponent == 4.0:
        base.square_().square_()
    elif exponent != 1.0:
        base.pow_(exponent)


def _poly1(x: Tensor, slope: Tensor, scratch: Scratch, *, epsilon: float) -> Tensor:
    """Return -log(1 - p) + epsilon p; its slope is p (1 + epsilon (1 - p))."""
    value, factor = scratch.like(x, 2)
    _soft_plus(x, slope, scratch)
    value.add_(slope, alpha=epsilon)
    slope.mul_(torch.mul(slope, -epsilon, out=factor).add_(1.0 + epsilon))
    return value


def _hill(x: Tensor, slope: Tensor, scratch: Scratch, *, lamb: float) -> Tensor:
    """Return (lambda - p) p^2; its slope is p^2 (1 - p) (2 lambda - 3 p)."""
    value, rest, square = scratch.like(x, 3)
    torch.neg(x, out=rest).sigmoid_()
    p = torch.sigmoid(x, out=slope)
    torch.mul(p, p, out=square)
    torch.neg(p, out=value).add_(lamb).mul_(square)
    slope.mul_(-3.0).add_(2.0 * lamb).mul_(rest).mul_(square)
    return value


def _corrected(x: Tensor, slope: Tensor, scratch: Scratch, *, gamma: float, limit: float) -> Tensor:
    """Return the value of a negative of `splc`: above the logit `limit` that of a positive."""
    sign = torch.where(x > limit, -1.0, 1.0).to(x.dtype)
    value = _down_weighted(x * sign, slope, scratch, gamma=gamma)
    slope.mul_(sign)
    return value


def _with_margin(x: Tensor, slope: Tensor, scratch: Scratch, *, gamma: float, margin: float) -> Tensor:
    """Return a positive's focal loss at x - margin."""
    return _mirrored(x - margin, slope, scratch, negative=partial(_down_weighted, gamma=gamma))


def _binary_cross_entropy_kernel() -> Kernel:
    return Kernel(partial(_mirrored, negative=_soft_plus), _soft_plus, buffers=1)


def _focal_kernel(*, gamma: float = 2.0, alpha: Any = None) -> Kernel:
    check_gamma(gamma, "gamma")
    focal_factors(alpha, torch.zeros(()))
    negative = partial(_down_weighted, gamma=float(gamma))
    return Kernel(partial(_mirrored, negative=negative), negative, alpha, buffers=2)


def _asymmetric_kernel(*, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Kernel:
    check_gamma(gamma_neg, "gamma_neg")
    check_gamma(gamma_pos, "gamma_pos")
    check_clip(clip)
    positive = partial(_mirrored, negative=partial(_down_weighted, gamma=float(gamma_pos)))
    if clip == 0.0:
        return Kernel(positive, partial(_down_weighted, gamma=float(gamma_neg)), buffers=2)
    return Kernel(positive, partial(_shifted, gamma=float(gamma_neg), clip=float(clip)))


def _poly1_kernel(*, epsilon: float = 1.0) -> Kernel:
    check_at_least(epsilon, -1.0, "epsilon")
    negative = partial(_poly1, epsilon=float(epsilon))
    return Kernel(partial(_mirrored, negative=negative), negative, buffers=2)


def _hill_kernel(*, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> Kernel:
    check_hill(lamb, margin, gamma)
    positive = partial(_with_margin, gamma=float(gamma), margin=float(margin))
    return Kernel(positive, partial(_hill, lamb=float(lamb)))


def _splc_kernel(
    *, tau: float = 0.6, start_epoch: int = 1, margin: float = 1.0, gamma: float = 2.0, epoch: int | None = None
) -> Kernel:
    limit = splc_limit(tau, start_epoch, margin, gamma, epoch)
    positive = partial(_with_margin, gamma=float(gamma), margin=float(margin))
    return Kernel(positive, partial(_corrected, gamma=float(gamma), limit=limit))


# The kernel of each elementwise function, from that function's options.
KERNELS: dict[Callable[..., Tensor], Callable[..., Kernel]] = {
    binary_cross_entropy: _binary_cross_entropy_kernel,
    focal: _focal_kernel,
    asymmetric: _asymmetric_kernel,
    poly1: _poly1_kernel,
    hill: _hill_kernel,
    splc: _splc_kernel,
}
