"""The sum of an elementwise loss over a batch, with its gradient, in one pass over blocks that fit the cache.

Autograd over the plain formulas writes and reads many (N, L) buffers. Here value and slope come together, block by
block, and only the gradient is kept: one buffer of the logits' size. Positives are few, so the negative term is taken
everywhere and the few entries with a positive target are done apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlabel.losses._formulas import focal_factors, promote
from mlabel.losses.kernels import Kernel, Scratch

# Entries of all buffers of a block together: on the CPU 1.5 MB of float32, which stay in the cache.
CPU_SCRATCH, OTHER_SCRATCH = 3 << 17, 3 << 22
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Positives are few when at most one entry in so many has a target other than 0.
FEW = 8


class Entries(NamedTuple):
    """What a sum runs over: dense or CSR targets (N, L), known entries, and the factors of both terms.

    `mask` is dense bool (N, L), True = known, or None. A factor is a number or a tensor (L,).
    """

    targets: Tensor | sp.csr_array
    mask: Tensor | None
    positive: float | Tensor
    negative: float | Tensor


def weighted_sum(kernel: Kernel, logits: Tensor, entries: Entries, divisor: float = 1.0) -> Tensor:
    """Return the sum over known entries of positive x t L+ + negative x (1 - t) L-, a scalar, float32 or float64.

    Its gradient is computed with it; a second backward computes it again. It cannot be differentiated twice. The sum
    is divided by `divisor`, and the gradient is while it lies in the cache.
    """
    positive, negative = focal_factors(kernel.alpha, promote(logits[:0]))
    entries = entries._replace(positive=entries.positive * positive, negative=entries.negative * negative)
    result: Tensor = _WeightedSum.apply(logits, kernel, entries, divisor)
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, kernel: Kernel, entries: Entries, divisor: float) -> Tensor:
        ctx.kernel, ctx.entries, ctx.divisor, ctx.slope = kernel, entries, divisor, None
        ctx.save_for_backward(logits)
        # The gradient of a half is computed in backward, where its factor is known: without it, a small one would
        # vanish in float16, and a large one overflow.
        if ctx.needs_input_grad[0] and logits.dtype in (torch.float32, torch.float64):
            ctx.slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        return _sweep(logits, kernel, entries, ctx.slope, 1.0 / divisor) / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        slope, ctx.slope = ctx.slope, None  # handed out once: autograd may keep it as the gradient itself
        if slope is not None:
            # Reading and writing all of it for a factor of 1 takes a fifth of the whole time.
            done = grad.device.type == "cpu" and grad.item() == 1.0
            return slope if done else slope.mul_(grad), None, None, None
        (logits,) = ctx.saved_tensors
        slope = torch.empty_like(logits, memory_format=torch.contiguous_format)
        _sweep(logits, ctx.kernel, ctx.entries, slope, grad / ctx.divisor)
        return slope, None, None, None


def _sweep(logits: Tensor, kernel: Kernel, entries: Entries, slope: Tensor | None, factor: float | Tensor) -> Tensor:
    """Return the sum; write the slopes, times `factor`, into `slope` (N, L)."""
    step = _rows_of_block(logits, kernel)
    few = _few_positives(entries, logits, step)
    if few is None:
        return _sweep_dense(logits, kernel, entries, slope, factor)
    at, targets, bounds = few
    sums, scratch, aside = [], Scratch(), Scratch()
    negative = entries.negative * factor
    for number, start in enumerate(range(0, len(logits), step)):
        rows = slice(start, start + step)
        x = promote(logits[rows])
        place = _place(slope, rows, x, aside)
        value = kernel.negative(x, place, scratch)
        if entries.mask is not None:
            unknown = ~entries.mask[rows]
            value.masked_fill_(unknown, 0.0)
            place.masked_fill_(unknown, 0.0)
        value.view(-1).index_fill_(0, at[bounds[number] : bounds[number + 1]] - start * logits.shape[1], 0.0)
        sums.append(_total(value, entries.negative))
        if slope is not None:
            _write(slope, rows, _scaled(place, negative))
    values, gradient = _at_positives(logits, kernel, entries, (at, targets))
    if slope is not None:
        slope.view(-1).index_copy_(0, at, gradient.mul_(factor).to(slope.dtype))
    return torch.stack([*sums, values.sum()]).sum()


def _place(slope: Tensor | None, rows: slice, x: Tensor, aside: Scratch) -> Tensor:
    """Return where the slopes of some rows are computed: at their own place, where it has the right precision."""
    return slope[rows] if slope is not None and slope.dtype == x.dtype else aside.like(x, 1)[0]


def _at_positives(
    logits: Tensor, kernel: Kernel, entries: Entries, positives: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return value and slope of the entries (P,) whose target is not 0; both 0 where unknown."""
    at, targets = positives
    rows, columns = at // logits.shape[1], at % logits.shape[1]
    # A flat index takes a fifth of the time that rows and columns take.
    chosen = logits.view(-1).index_select(0, at) if logits.is_contiguous() else logits[rows, columns]
    x, targets = promote(chosen), targets.to(promote(logits[:0]))
    yes, no = targets * _pick(entries.positive, columns), (1.0 - targets) * _pick(entries.negative, columns)
    if entries.mask is not None:
        unknown = ~entries.mask[rows, columns]
        x, yes, no = (values.masked_fill(unknown, 0.0) for values in (x, yes, no))
    if no.any():
        return _both_terms(x, kernel, yes, no, (Scratch(), Scratch()))
    slope = torch.empty_like(x)
    return kernel.positive(x, slope, Scratch()) * yes, slope.mul_(yes)


def _both_terms(
    x: Tensor, kernel: Kernel, yes: Tensor, no: Tensor, scratch: tuple[Scratch, Scratch]
) -> tuple[Tensor, Tensor]:
    """Return yes L+ + no L- and its slope, for factors of the shape of x."""
    slope_pos, slope_neg = torch.empty_like(x), torch.empty_like(x)
    value_pos = kernel.positive(x, slope_pos, scratch[0])
    value_neg = kernel.negative(x, slope_neg, scratch[1])
    return yes * value_pos + no * value_neg, slope_pos.mul_(yes).addcmul_(no, slope_neg)


def _sweep_dense(
    logits: Tensor, kernel: Kernel, entries: Entries, slope: Tensor | None, factor: float | Tensor
) -> Tensor:
    """Do as `_sweep`, both terms taken everywhere: no step waits for a count, which an accelerator would have to."""
    sums, step, scratch = [promote(logits[:0]).sum()], _rows_of_block(logits, kernel), (Scratch(), Scratch())
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        x = promote(logits[rows])
        targets = _dense(entries.targets, rows, x)
        known = None if entries.mask is None else entries.mask[rows]
        if known is not None:
            x, targets = x.masked_fill(~known, 0.0), targets.masked_fill(~known, 0.0)
        yes, no = targets * entries.positive, (1.0 - targets) * entries.negative
        if known is not None:
            yes, no = yes.masked_fill_(~known, 0.0), no.masked_fill_(~known, 0.0)
        values, slopes = _both_terms(x, kernel, yes, no, scratch)
        sums.append(values.sum())
        if slope is not None:
            _write(slope, rows, _scaled(slopes, factor))
    return torch.stack(sums).sum()


def _write(slope: Tensor, rows: slice, values: Tensor) -> None:
    """Put the values of some rows into `slope`, unless they lie there already."""
    if slope[rows].data_ptr() != values.data_ptr():
        slope[rows] = values


def _rows_of_block(logits: Tensor, kernel: Kernel) -> int:
    block = (CPU_SCRATCH if logits.device.type == "cpu" else OTHER_SCRATCH) / kernel.buffers
    return max(1, round(block / max(1, logits.shape[1])))


def _few_positives(entries: Entries, logits: Tensor, step: int) -> tuple[Tensor, Tensor, list[int]] | None:
    """Return the flat positions (P,) at which targets are not 0, the values there, and each block's first position.

    None where they are not few, or where finding them would make an accelerator wait.
    """
    if logits.device.type != "cpu":
        return None
    targets = entries.targets
    starts = [*range(0, len(logits), step), len(logits)]
    if isinstance(targets, Tensor):
        places = _nonzero(targets)
        bounds = np.searchsorted(places, np.array(starts) * logits.shape[1]).tolist()
        at = torch.from_numpy(places)
        values = targets.reshape(-1)[at]
    else:
        bounds = targets.indptr[starts].tolist()
        at, values = _csr_positions(targets, slice(0, len(logits)))
    return (at, values, bounds) if FEW * len(at) <= logits.numel() else None


def _nonzero(targets: Tensor) -> np.ndarray:
    """Return the flat positions of what is not 0; NumPy finds them many times faster than torch, as of 2.15.

    Where positives are few, most words of eight bytes are 0 as a whole: only what is in the others is looked at.
    A target of -0.0 counts as something else than 0, which does no harm.
    """
    # As integers: NumPy has no bfloat16.
    flat = targets.contiguous().view(_INTEGERS[targets.element_size()]).numpy().reshape(-1)
    held = 8 // flat.itemsize
    whole = len(flat) // held * held if flat.ctypes.data % 8 == 0 else 0
    words = np.flatnonzero(flat[:whole].view(np.int64) != 0)
    at = (words[:, None] * held + np.arange(held)).reshape(-1)
    return np.concatenate([at[flat[at] != 0], whole + np.flatnonzero(flat[whole:] != 0)])


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
    if isinstance(factor, Tensor) and factor.ndim:
        return (values.sum(dim=0) * factor).sum()
    whole = values.sum()
    return whole if isinstance(factor, float) and factor == 1.0 else whole * factor


def _scaled(values: Tensor, factor: float | Tensor) -> Tensor:
    return values if isinstance(factor, float) and factor == 1.0 else values.mul_(factor)
