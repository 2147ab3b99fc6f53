"""The sum of an elementwise loss over a batch, with its gradient, in one pass over blocks that fit the cache.

Autograd over the plain formulas writes and reads many (N, L) buffers. Here value and slope come together, block by
block, and only the gradient is kept: one buffer of the logits' size. Positives are few, so the negative term is taken
everywhere and the few entries with a positive target are done apart.

A kernel gives value and slope (the derivative by the logit) of L+ and of L-. What makes the blocks simple: at a logit
of -`HIDDEN` L- is exactly 0, and so is its slope. Entries that must not count are set there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlabel.losses.functional import (
    asymmetric,
    binary_cross_entropy,
    check_at_least,
    check_clip,
    check_gamma,
    check_hill,
    focal,
    focal_factors,
    hill,
    poly1,
    promote,
    splc,
    splc_limit,
)

HIDDEN = 1e4
# Entries of a block: on the CPU a handful of float32 buffers of this size stay in the second-level cache.
CPU_BLOCK, OTHER_BLOCK = 1 << 17, 1 << 22
# Positives are few when at most one entry in so many has a target other than 0.
FEW = 8

ValueAndSlope = tuple[Tensor, Tensor]


class Kernel(NamedTuple):
    """Value and slope of both terms of an elementwise loss. Each function puts the slope in place of its argument."""

    positive: Callable[[Tensor], ValueAndSlope]
    negative: Callable[[Tensor], ValueAndSlope]
    alpha: Any = None


class Entries(NamedTuple):
    """What a sum runs over: dense or CSR targets (N, L), known entries, and the factors of both terms.

    `mask` is dense bool (N, L), True = known, or None. A factor is a number or a tensor (L,).
    """

    targets: Tensor | sp.csr_array
    mask: Tensor | None
    positive: float | Tensor
    negative: float | Tensor


def weighted_sum(kernel: Kernel, logits: Tensor, entries: Entries) -> Tensor:
    """Return the sum over known entries of positive x t L+ + negative x (1 - t) L-, a scalar, float32 or float64.

    Its gradient is computed with it; a second backward computes it again. It cannot be differentiated twice.
    """
    positive, negative = focal_factors(kernel.alpha, promote(logits[:0]))
    entries = entries._replace(positive=entries.positive * positive, negative=entries.negative * negative)
    result: Tensor = _WeightedSum.apply(logits, kernel, entries)
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, kernel: Kernel, entries: Entries) -> Tensor:
        ctx.kernel, ctx.entries, ctx.slope = kernel, entries, None
        ctx.save_for_backward(logits)
        # The gradient of a half is computed in backward, where its factor is known: without it, a small one would
        # vanish in float16, and a large one overflow.
        if ctx.needs_input_grad[0] and logits.dtype in (torch.float32, torch.float64):
            ctx.slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        return _sweep(logits, kernel, entries, ctx.slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slope, ctx.slope = ctx.slope, None  # handed out once: autograd may keep it as the gradient itself
        if slope is not None:
            return slope.mul_(grad), None, None
        (logits,) = ctx.saved_tensors
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        _sweep(logits, ctx.kernel, ctx.entries, slope, grad)
        return slope, None, None


def _sweep(
    logits: Tensor, kernel: Kernel, entries: Entries, slope: Tensor | None, factor: Tensor | None = None
) -> Tensor:
    """Return the sum; write the slopes, times `factor`, into `slope` (N, L)."""
    few = _few_positives(entries, logits)
    if few is None:
        return _sweep_dense(logits, kernel, entries, slope, factor)
    at, targets, bounds = few
    sums, step = [], _rows_of_block(logits)
    for number, start in enumerate(range(0, len(logits), step)):
        rows = slice(start, start + step)
        x = _scratch(logits, slope, rows)
        if entries.mask is not None:
            x.masked_fill_(~entries.mask[rows], -HIDDEN)
        x.view(-1)[at[bounds[number] : bounds[number + 1]] - start * logits.shape[1]] = -HIDDEN
        value, gradient = kernel.negative(x)
        sums.append(_total(value, entries.negative))
        _write(slope, rows, _scaled(gradient, entries.negative), factor)
    value, gradient = _at_positives(logits, kernel, entries, (at, targets))
    if slope is not None:
        slope.view(-1)[at] = (gradient if factor is None else gradient.mul_(factor)).to(slope.dtype)
    return torch.stack([*sums, value.sum()]).sum()


def _scratch(logits: Tensor, slope: Tensor | None, rows: slice) -> Tensor:
    """Return a copy of some rows to compute in: the place of their slopes, where it has the right precision."""
    x = promote(logits[rows])
    if slope is not None and slope.dtype == x.dtype:
        return slope[rows].copy_(x)
    return x.clone(memory_format=torch.contiguous_format)


def _at_positives(logits: Tensor, kernel: Kernel, entries: Entries, positives: tuple[Tensor, Tensor]) -> ValueAndSlope:
    """Return value and slope of the entries (P,) whose target is not 0; both 0 where unknown."""
    at, targets = positives
    rows, columns = at // logits.shape[1], at % logits.shape[1]
    x, targets = promote(logits[rows, columns]), targets.to(promote(logits[:0]))
    yes, no = targets * _pick(entries.positive, columns), (1.0 - targets) * _pick(entries.negative, columns)
    if entries.mask is not None:
        unknown = ~entries.mask[rows, columns]
        x, yes, no = (values.masked_fill(unknown, 0.0) for values in (x, yes, no))
    value_pos, slope_pos = kernel.positive(x.clone())
    value_neg, slope_neg = kernel.negative(x.clone())
    return yes * value_pos + no * value_neg, yes * slope_pos + no * slope_neg


def _sweep_dense(
    logits: Tensor, kernel: Kernel, entries: Entries, slope: Tensor | None, factor: Tensor | None
) -> Tensor:
    """Do as `_sweep`, both terms taken everywhere: no step waits for a count, which an accelerator would have to."""
    sums, step = [promote(logits[:0]).sum()], _rows_of_block(logits)
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        x = promote(logits[rows])
        targets = _dense(entries.targets, rows, x)
        known = None if entries.mask is None else entries.mask[rows]
        if known is not None:
            x, targets = x.masked_fill(~known, 0.0), targets.masked_fill(~known, 0.0)
        value_pos, slope_pos = kernel.positive(x.clone())
        value_neg, slope_neg = kernel.negative(x.clone())
        yes, no = targets * entries.positive, (1.0 - targets) * entries.negative
        if known is not None:
            yes, no = yes.masked_fill_(~known, 0.0), no.masked_fill_(~known, 0.0)
        sums.append((yes * value_pos + no * value_neg).sum())
        _write(slope, rows, yes.mul_(slope_pos).addcmul_(no, slope_neg), factor)
    return torch.stack(sums).sum()


def _write(slope: Tensor | None, rows: slice, values: Tensor, factor: Tensor | None) -> None:
    """Put the values of some rows, times `factor`, into `slope`, unless they lie there already."""
    values = values if factor is None else values.mul_(factor)
    if slope is not None and slope[rows].data_ptr() != values.data_ptr():
        slope[rows] = values


def _rows_of_block(logits: Tensor) -> int:
    block = CPU_BLOCK if logits.device.type == "cpu" else OTHER_BLOCK
    return max(1, block // max(1, logits.shape[1]))


def _few_positives(entries: Entries, logits: Tensor) -> tuple[Tensor, Tensor, list[int]] | None:
    """Return the flat positions (P,) at which targets are not 0, the values there, and each block's first position.

    None where they are not few, or where finding them would make an accelerator wait.
    """
    if logits.device.type != "cpu":
        return None
    targets, step = entries.targets, _rows_of_block(logits)
    starts = [*range(0, len(logits), step), len(logits)]
    if isinstance(targets, Tensor):
        blocks = [_nonzero(targets[start : start + step]) + start * logits.shape[1] for start in starts[:-1]]
        at = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *blocks]))
        bounds = np.cumsum([0, *map(len, blocks)]).tolist()
        values = targets.reshape(-1)[at]
    else:
        bounds = targets.indptr[starts].tolist()
        at, values = _csr_positions(targets, slice(0, len(logits)))
    return (at, values, bounds) if FEW * len(at) <= logits.numel() else None


def _nonzero(targets: Tensor) -> np.ndarray:
    """Return the flat positions of what is not 0; NumPy finds them many times faster than torch, as of 2.15."""
    return np.flatnonzero((targets != 0).numpy())


def _csr_positions(targets: sp.csr_array, rows: slice) -> tuple[Tensor, Tensor]:
    bounds = targets.indptr[rows.start : rows.stop + 1].astype(np.int64)
    held = slice(bounds[0], bounds[-1])
    first = np.repeat(np.arange(len(bounds) - 1) * targets.shape[1], np.diff(bounds))
    return torch.from_numpy(first + targets.indices[held]), torch.from_numpy(targets.data[held])


def _dense(targets: Tensor | sp.csr_array, rows: slice, like: Tensor) -> Tensor:
    if isinstance(targets, Tensor):
        return targets[rows].to(like)
    at, values = _csr_positions(targets, slice(rows.start, rows.start + len(like)))
    dense = torch.zeros_like(like, memory_format=torch.contiguous_format)
    dense.view(-1)[at.to(like.device)] = values.to(like)
    return dense


def _pick(factor: float | Tensor, columns: Tensor) -> float | Tensor:
    return factor[columns] if isinstance(factor, Tensor) else factor


def _total(values: Tensor, factor: float | Tensor) -> Tensor:
    return (values.sum(dim=0) * factor).sum() if isinstance(factor, Tensor) else values.sum() * factor


def _scaled(values: Tensor, factor: float | Tensor) -> Tensor:
    return values if isinstance(factor, float) and factor == 1.0 else values.mul_(factor)


def _mirrored(x: Tensor, *, negative: Callable[[Tensor], ValueAndSlope]) -> ValueAndSlope:
    """Return value and slope of the positive term L+(x) = L-(-x)."""
    value, slope = negative(x.neg_())
    return value, slope.neg_()


def _soft_plus(x: Tensor) -> ValueAndSlope:
    """Return -log(1 - p) and its slope p. Above 40 the two are x and 1, to the last digit of float64."""
    value = F.softplus(x, threshold=40.0)
    return value, x.sigmoid_()


def _down_weighted(x: Tensor, *, gamma: float) -> ValueAndSlope:
    """Return -p^gamma log(1 - p) and its slope p^gamma (p - gamma (1 - p) log(1 - p))."""
    value, p = _soft_plus(x)
    power = _power(p, gamma)
    slope = torch.addcmul(p, value, 1.0 - p, value=gamma)
    return value.mul_(power), torch.mul(slope, power, out=p)


def _shifted(x: Tensor, *, gamma: float, clip: float) -> ValueAndSlope:
    """Return -m^gamma log(1 - m), with m = max(p - clip, 0), and its slope.

    The slope is p (1 - p) m^gamma (1 / (1 - m) - gamma log(1 - m) / m).
    The clip is above 0, so that 1 - m never is 0.
    """
    q = x.neg_().sigmoid_()  # 1 - p
    rest = (q + clip).clamp_max_(1.0)  # 1 - m
    m = 1.0 - rest
    log = rest.log()
    if gamma >= 1.0:  # one power less, and the division by m is gone
        power = _power(m, gamma - 1.0)
        slope = torch.div(m, rest, out=rest).add_(log, alpha=-gamma)
        value = log.mul_(m).mul_(power).neg_()
    else:
        power = m.pow(gamma).masked_fill_(m == 0.0, 0.0)
        slope = rest.reciprocal_().addcdiv_(log, m.clamp_min(torch.finfo(m.dtype).tiny), value=-gamma)
        value = log.mul_(power).neg_()
    slope.mul_(power).mul_(1.0 - q)
    return value, q.mul_(slope)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return base ** exponent; the usual exponents by products, which are many times faster."""
    if exponent == 0.0:
        return torch.ones_like(base)
    if exponent == 1.0:
        return base
    if exponent == 2.0:
        return base * base
    if exponent == 3.0:
        return (base * base).mul_(base)
    if exponent == 4.0:
        square = base * base
        return square.mul_(square)
    return base.pow(exponent)


def _binary_cross_entropy_kernel() -> Kernel:
    return Kernel(partial(_mirrored, negative=_soft_plus), _soft_plus)


def _focal_kernel(*, gamma: float = 2.0, alpha: Any = None) -> Kernel:
    check_gamma(gamma, "gamma")
    focal_factors(alpha, torch.zeros(()))
    negative = partial(_down_weighted, gamma=float(gamma))
    return Kernel(partial(_mirrored, negative=negative), negative, alpha)


def _asymmetric_kernel(*, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Kernel:
    check_gamma(gamma_neg, "gamma_neg")
    check_gamma(gamma_pos, "gamma_pos")
    check_clip(clip)
    positive = partial(_mirrored, negative=partial(_down_weighted, gamma=float(gamma_pos)))
    if clip == 0.0:
        return Kernel(positive, partial(_down_weighted, gamma=float(gamma_neg)))
    return Kernel(positive, partial(_shifted, gamma=float(gamma_neg), clip=float(clip)))


def _poly1(x: Tensor, *, epsilon: float) -> ValueAndSlope:
    """Return -log(1 - p) + epsilon p and its slope p (1 + epsilon (1 - p))."""
    rest = torch.sigmoid(-x)
    value, p = _soft_plus(x)
    return value.add_(p, alpha=epsilon), rest.mul_(epsilon).add_(1.0).mul_(p)


def _hill(x: Tensor, *, lamb: float) -> ValueAndSlope:
    """Return (lambda - p) p^2 and its slope p^2 (1 - p) (2 lambda - 3 p)."""
    rest = torch.sigmoid(-x)
    p = x.sigmoid_()
    square = p * p
    value = square * (lamb - p)
    return value, p.mul_(-3.0).add_(2.0 * lamb).mul_(rest).mul_(square)


def _corrected(x: Tensor, *, gamma: float, limit: float) -> ValueAndSlope:
    """Return value and slope of a negative of `splc`: above the logit `limit` those of a positive."""
    sign = torch.where(x > limit, -1.0, 1.0).to(x.dtype)
    value, slope = _down_weighted(x.mul_(sign), gamma=gamma)
    return value, slope.mul_(sign)


def _with_margin(x: Tensor, *, gamma: float, margin: float) -> ValueAndSlope:
    """Return value and slope of a positive's focal loss at x - margin."""
    return _mirrored(x.sub_(margin), negative=partial(_down_weighted, gamma=gamma))


def _poly1_kernel(*, epsilon: float = 1.0) -> Kernel:
    check_at_least(epsilon, -1.0, "epsilon")
    negative = partial(_poly1, epsilon=float(epsilon))
    return Kernel(partial(_mirrored, negative=negative), negative)


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
