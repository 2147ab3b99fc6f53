"""`Loss`: a formula with weights, a mask and a reduction.

Called, a loss gives its reduced value; `parts` and `denominators` are what merges batches (see `BatchLoss`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlabel._checks import resolve, to_numpy
from mlabel.losses import functional
from mlabel.losses.batch import (
    ALL,
    Parts,
    as_dense,
    as_known,
    as_matrix,
    as_targets,
    as_tensor,
    count,
    holding,
    known_rows,
    shape_of,
    total,
)
from mlabel.losses.fused import Entries, weighted_sum
from mlabel.losses.kernels import KERNELS, Kernel

REDUCTIONS = {"mean": "known entries", "batchmean": "rows", "sum": "nothing", "none": "not reduced"}


class Loss(nn.Module):
    """A formula with weights, a mask and a reduction.

    With `mean` the loss is the sum of weight x loss over known entries, divided by the number of known entries;
    `batchmean` divides by the number of rows, `sum` by nothing, and `none` returns the entries' losses (N, L), 0 where
    unknown. What is unknown adds nothing to the loss, to the gradient (NaN logits and targets there are harmless) or
    to the denominator. Without any known entry the loss is 0.

    What an entry is depends on the formula's kind:

    - elementwise: an entry of the matrix;
    - per sample (`zlpr`, `multilabel_soft_margin`): a row with something known, of which what is unknown is left out;
    - `two_way`: a row in which a known label holds, and apart from that a label that is known to hold in some row of
      the batch. Its two means are added, as the parts "samples" and "labels". The latter couples the rows of a batch:
      batches that are merged, or accumulated by training, give the mean over their labels, each label against the rows
      of its own batch; everything else is the same as of the batches concatenated. Bind `dim=1` to have the first
      part only;
    - over the classes of an exclusive group (`cross_entropy`): a row whose class is known.

    Args:
        fn: An elementwise function of logits and targets (N, L), giving (N, L); one of this package or your own, with
            options bound by `functools.partial`. Or another of this package's functions.
        weight: Factors of the labels' losses (L,), or one number; for exclusive groups the classes' weights. None: 1.
        pos_weight: Further factors (L,) of the positive term: t pos_weight L+ + (1 - t) L-. A function that has no
            such terms, or whose terms are not known, has its losses multiplied by 1 + t (pos_weight - 1), which is the
            same for targets of 0 and 1. None: 1. Not for exclusive groups.
        reduction: "mean", "batchmean", "sum" or "none".

    Raises:
        ValueError: an unknown reduction, weights that are negative or not finite, or an option out of its range.
        TypeError: no function of logits and targets.

    Example:
        >>> from functools import partial
        >>> from mlabel.losses import asymmetric
        >>> loss = Loss(partial(asymmetric, gamma_neg=2.0), weight=[1.0, 3.0])
        >>> loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor(0.3549)
        >>> loss(torch.zeros(1, 2), torch.tensor([[1, 0]]), mask=torch.tensor([[True, False]]))
        tensor(0.3466)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self, fn: Callable[..., Tensor], *, weight: Any = None, pos_weight: Any = None, reduction: str = "mean"
    ) -> None:
        super().__init__()
        resolve(reduction, REDUCTIONS, "reduction")
        if not callable(fn) or isinstance(fn, type):
            raise TypeError(f"fn must be a function of logits and targets; got {fn!r}")
        self.fn, self.reduction = fn, reduction
        self.formula, self.options = _unwrap(fn)
        self.kernel = self._make_kernel()
        if pos_weight is not None and self.over_classes:
            raise ValueError(
                f"{name_of(self.formula)} has no positive term to weigh; give the classes' weights as weight="
            )
        if reduction == "none" and len(self._dims) > 1:
            raise ValueError("two_way is a mean over rows and one over labels; reduce it, or bind dim=1 for the rows'")
        self.register_buffer("weight", _as_weight(weight, "weight"))
        self.register_buffer("pos_weight", _as_weight(pos_weight, "pos_weight"))

    @property
    def over_classes(self) -> bool:
        """True where the loss is one of exclusive classes, a value a row."""
        return _is_one_of(self.formula, functional.OVER_CLASSES)

    @property
    def per_sample(self) -> bool:
        """True where the loss is one of whole rows, or of whole columns, of any-of labels."""
        return _is_one_of(self.formula, functional.PER_SAMPLE)

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss: a scalar, or with reduction "none" (N, L); (N,) per sample and over classes.

        Args:
            logits: Real numbers (N, L).
            targets: (N, L) in [0, 1], dense of any dtype or SciPy CSR; or index lists, for each row a list of the
                labels that hold; for exclusive groups also int64 classes (N,).
            mask: None (all known), dense bool (True = known), or SciPy sparse bool (True = unknown).

        Raises:
            ValueError: shapes that do not fit.
            TypeError: a dense mask that is not bool, or logits that are not floating-point.
        """
        targets = as_matrix(targets, logits.shape[1])
        if self.reduction != "none":
            # An accelerator would have to wait for the denominator.
            fused = self.kernel is not None and logits.device.type == "cpu" and not torch.compiler.is_compiling()
            return self._fused_mean(logits, targets, mask) if fused else total(self.parts(logits, targets, mask))
        (values,) = self._values(logits, targets, self._known(targets, mask, logits.device)).values()
        return values

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return {"all": (summed loss, denominator)}, of `two_way` {"samples": ..., "labels": ...}; see `total`.

        Args:
            logits: (N, L), any floating point.
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

        Raises:
            ValueError: a loss with reduction "none", or arguments of other shapes or values.
        """
        if self.reduction == "none":
            raise ValueError(
                "a loss with reduction 'none' has no sum and denominator; reduce it: mean, batchmean or sum"
            )
        targets = as_matrix(targets, logits.shape[1])
        known = self._known(targets, mask, logits.device)
        if self.kernel is not None and not torch.compiler.is_compiling():
            sums = {ALL: self._fused_sum(self.kernel, logits, targets, known)}
        else:
            sums = {part: values.sum() for part, values in self._values(logits, targets, known).items()}
        denominators = self._denominators(targets, known, logits.device)
        return {part: (value, denominators[part]) for part, value in sums.items()}

    def denominators(self, targets: Any, mask: Any = None, *, num_labels: int | None = None) -> dict[str, Tensor]:
        """Return the denominators of `parts`, int64, which need no logits.

        Args:
            targets: As in a call.
            mask: As in a call.
            num_labels: L, which index lists do not say by themselves.

        Raises:
            ValueError: index lists, of which entries are to be counted, with neither a mask nor `num_labels`.
        """
        if isinstance(targets, (list, tuple)):
            num_labels = mask.shape[1] if num_labels is None and mask is not None else num_labels
            if num_labels is None and self.reduction == "mean" and not (self.over_classes or self.per_sample):
                raise ValueError("index lists do not say how many labels there are; give num_labels=")
            targets = as_matrix(targets, num_labels)
        device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
        return self._denominators(targets, self._known(targets, mask, device), device)

    def begin_epoch(self, epoch: int) -> None:
        """Tell a formula with an option `epoch`, such as `splc`, which epoch begins, counted from 0."""
        if "epoch" in _parameters_of(self.formula):
            self.options = {**self.options, "epoch": epoch}
            self.fn = functools.partial(self.formula, **self.options)
            self.kernel = self._make_kernel()

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        options = ", ".join(f"{name}={_shown(value)}" for name, value in self.options.items())
        return f"{name_of(self.formula)}({options}), reduction={self.reduction!r}"

    @property
    def _dims(self) -> dict[str, int]:
        """The parts of the loss: 1 where it has a value for each row or entry, 0 where one for each label."""
        if self.formula is not functional.two_way:
            return {ALL: 1}
        dim = self.options.get("dim")
        return {"samples": 1, "labels": 0} if dim is None else {ALL: dim}

    def _make_kernel(self) -> Kernel | None:
        """Return the formula's kernel; None where there is none. An option out of its range is refused here."""
        make: Callable[..., Kernel] | None = None
        if isinstance(self.formula, FunctionType):
            make = KERNELS.get(self.formula)
        if make is None and is_own(self.fn):
            nothing = torch.zeros(1, len(self.options.get("counts", [0])))
            self.fn(nothing, nothing)
        return None if make is None else make(**self.options)

    def _known(self, targets: Any, mask: Any, device: torch.device) -> Tensor | None:
        """Return the known entries (N, L), over classes the known rows (N,); None where all are."""
        if self.over_classes:
            return known_rows(targets, mask, device)
        return as_known(mask, shape_of(targets), device)

    def _denominators(self, targets: Any, known: Tensor | None, device: torch.device) -> dict[str, Tensor]:
        rows, *columns = shape_of(targets)
        if self.reduction != "mean":
            return dict.fromkeys(self._dims, count(None, (rows if self.reduction == "batchmean" else 0,), device))
        if self.formula is functional.two_way:
            return {part: holding(targets, known, device, dim=dim).sum() for part, dim in self._dims.items()}
        if self.per_sample:
            return {ALL: count(None if known is None else known.any(dim=1), (rows,), device)}
        return {ALL: count(known, (rows,) if self.over_classes else (rows, *columns), device)}

    def _fused_mean(self, logits: Tensor, targets: Any, mask: Any) -> Tensor:
        """Return what `total(self.parts(...))` is; the gradient is divided while it lies in the cache."""
        assert self.kernel is not None
        known = self._known(targets, mask, logits.device)
        divisor = int(self._denominators(targets, known, logits.device)[ALL])
        return self._fused_sum(self.kernel, logits, targets, known, max(1, divisor))

    def _fused_sum(
        self, kernel: Kernel, logits: Tensor, targets: Any, known: Tensor | None, divisor: float = 1.0
    ) -> Tensor:
        negative: Any = 1.0 if self.weight is None else self._factor(self.weight, logits)
        positive = negative if self.pos_weight is None else negative * self._factor(self.pos_weight, logits)
        found = as_targets(targets, logits, known)
        return weighted_sum(kernel, logits, Entries(found, known, positive, negative), divisor)

    def _values(self, logits: Tensor, targets: Any, known: Tensor | None) -> dict[str, Tensor]:
        """Return the weighted losses of each part, 0 where unknown."""
        x, t = functional.promote(logits), self._dense(targets, logits, known)
        if self.per_sample:
            return self._of_samples(x, t, known)
        if known is not None:
            unknown = ~known[:, None] if self.over_classes else ~known
            x, t = x.masked_fill(unknown, 0.0), t.masked_fill(unknown if t.ndim == 2 else ~known, 0)
        values = self._of_classes(x, t) if self.over_classes else self._of_entries(x, t)
        return {ALL: values if known is None else values.masked_fill(~known, 0.0)}

    def _dense(self, targets: Any, logits: Tensor, known: Tensor | None) -> Tensor:
        if self.over_classes and len(targets.shape) == 1:
            return as_tensor(targets, logits.device)
        entries = known[:, None] if self.over_classes and known is not None else known
        return as_dense(as_targets(targets, logits, entries), logits)

    def _of_classes(self, x: Tensor, t: Tensor) -> Tensor:
        return self.fn(x, t) if self.weight is None else self.fn(x, t, weight=self._factor(self.weight, x))

    def _of_samples(self, x: Tensor, t: Tensor, known: Tensor | None) -> dict[str, Tensor]:
        given: dict[str, Any] = {"mask": known}
        for name, factor in (("weight", self.weight), ("pos_weight", self.pos_weight)):
            given[name] = None if factor is None else self._factor(factor, x)
        if self.formula is not functional.two_way:
            return {ALL: self.fn(x, t, **given)}
        return {part: self.fn(x, t, **given | {"dim": dim}) for part, dim in self._dims.items()}

    def _of_entries(self, x: Tensor, t: Tensor) -> Tensor:
        if self.pos_weight is None:
            values = self.fn(x, t)
        elif self.kernel is not None:
            pos_weight = self._factor(self.pos_weight, x)
            values = functional.weighted_terms(self.formula, x, t, options=self.options, pos_weight=pos_weight)
        else:
            values = self.fn(x, t) * (1.0 + t * (self._factor(self.pos_weight, x) - 1.0))
        if not isinstance(values, Tensor) or values.shape != x.shape:
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"fn must give a loss for each entry, a tensor {tuple(x.shape)}; got {came}. A function that reduces "
                "by itself is passed as it is, not inside Loss"
            )
        return values if self.weight is None else values * self._factor(self.weight, x)

    def _factor(self, weight: Tensor, logits: Tensor) -> Tensor:
        """Return a weight as a tensor (L,), in the precision and on the device of the loss."""
        if weight.ndim == 1 and weight.shape != logits.shape[1:]:
            raise ValueError(
                f"weights are of shape {tuple(weight.shape)}, but the logits have {logits.shape[1]} columns"
            )
        return weight.to(functional.promote(logits[:0])).expand(logits.shape[1])


def is_own(fn: Any) -> bool:
    """Return whether `fn` is a formula of this package, with options bound or not."""
    kinds = functional.ELEMENTWISE | functional.PER_SAMPLE | functional.OVER_CLASSES
    return _is_one_of(_unwrap(fn)[0], kinds)


def name_of(formula: Callable[..., Tensor]) -> str:
    """Return the name of a formula, for messages."""
    return getattr(formula, "__name__", repr(formula))


def _is_one_of(formula: Any, kinds: frozenset[Callable[..., Tensor]]) -> bool:
    return isinstance(formula, FunctionType) and formula in kinds  # any other callable need not be hashable


def _unwrap(fn: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return the function inside a `functools.partial`, and the options bound to it."""
    if isinstance(fn, functools.partial) and not fn.args:
        return fn.func, dict(fn.keywords)
    return fn, {}


def _parameters_of(fn: Callable[..., Tensor]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # some callables written in C do not say
        return ()


def _shown(value: Any) -> str:
    """Return an option for `print`: of long arrays the shape."""
    shape = np.shape(value)
    return f"<{' x '.join(map(str, shape))} values>" if len(shape) and shape[0] > 8 else str(value)


def _as_weight(values: Any, what: str) -> Tensor | None:
    if values is None:
        return None
    array = to_numpy(values).astype(np.float64)
    if array.ndim > 1 or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{what} must be finite numbers of at least 0, one or (L,); got {values!r}")
    return torch.from_numpy(array.astype(np.float32))  # not every accelerator has float64
