"""Losses as modules: weights, mask and reduction around a formula, and one formula for each group of labels.

Called, a loss gives its reduced value; `parts` and `denominators` are what merges batches (see `BatchLoss`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlabel._checks import resolve, to_numpy
from mlabel.labels import Group, LabelSpace
from mlabel.losses import functional
from mlabel.losses.batch import (
    ALL,
    BatchLoss,
    Parts,
    as_dense,
    as_known,
    as_targets,
    as_tensor,
    count,
    known_rows,
    shape_of,
    total,
)
from mlabel.losses.foreign import ForeignLoss
from mlabel.losses.fused import Entries, weighted_sum
from mlabel.losses.kernels import KERNELS, Kernel

REDUCTIONS = {"mean": "known entries", "batchmean": "rows", "sum": "nothing", "none": "not reduced"}


class Loss(nn.Module):
    """A formula with weights, a mask and a reduction.

    With `mean` the loss is the sum of weight x loss over known entries, divided by the number of known entries;
    `batchmean` divides by the number of rows, `sum` by nothing, and `none` returns the entries' losses (N, L), 0 where
    unknown. For `cross_entropy` the entries are rows: those whose class is known. What is unknown adds nothing to the
    loss, to the gradient (NaN logits and targets there are harmless) or to the denominator. Without any known entry
    the loss is 0.

    Args:
        fn: An elementwise function of logits and targets (N, L), giving (N, L); one of this package or your own, with
            options bound by `functools.partial`. Or `cross_entropy`, for the columns of one exclusive group.
        weight: Factors of the labels' losses (L,), or one number; for `cross_entropy` the classes' weights. None: 1.
        pos_weight: Further factors (L,) of the positive term: t pos_weight L+ + (1 - t) L-. A function of your own is
            not known by terms; its losses are multiplied by 1 + t (pos_weight - 1), which is the same for targets of
            0 and 1. None: 1. Not for `cross_entropy`.
        reduction: "mean", "batchmean", "sum" or "none".

    Raises:
        ValueError: an unknown reduction, weights that are negative or not finite, or an option out of its range.

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
        make_kernel = _kernel_of(self.formula)
        self.kernel = None if make_kernel is None else make_kernel(**self.options)
        if pos_weight is not None and self.over_classes:
            raise ValueError(
                f"{_name(self.formula)} has no positive term to weigh; give the classes' weights as weight="
            )
        self.register_buffer("weight", _as_weight(weight, "weight"))
        self.register_buffer("pos_weight", _as_weight(pos_weight, "pos_weight"))

    @property
    def over_classes(self) -> bool:
        """True where the loss is one of exclusive classes, a value a row."""
        return isinstance(self.formula, FunctionType) and self.formula in functional.OVER_CLASSES

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss: a scalar, or with reduction "none" (N, L); (N,) for `cross_entropy`.

        Args:
            logits: Real numbers (N, L).
            targets: (N, L) in [0, 1], dense of any dtype or SciPy CSR; for `cross_entropy` also int64 classes (N,).
            mask: None (all known), dense bool (True = known), or SciPy sparse bool (True = unknown).

        Raises:
            ValueError: shapes that do not fit.
            TypeError: a dense mask that is not bool, or logits that are not floating-point.
        """
        if self.reduction == "none":
            return self._entries(logits, targets, self._known(targets, mask, logits.device))
        return total(self.parts(logits, targets, mask))

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return {"all": (summed loss, denominator)}; see `total`."""
        if self.reduction == "none":
            raise ValueError(
                "a loss with reduction 'none' has no sum and denominator; reduce it: mean, batchmean or sum"
            )
        known = self._known(targets, mask, logits.device)
        if self.kernel is not None and not torch.compiler.is_compiling():
            negative: Any = 1.0 if self.weight is None else self._factor(self.weight, logits)
            positive = negative if self.pos_weight is None else negative * self._factor(self.pos_weight, logits)
            value = weighted_sum(
                self.kernel, logits, Entries(as_targets(targets, logits, known), known, positive, negative)
            )
        else:
            value = self._entries(logits, targets, known).sum()
        return {ALL: (value, self._denominator(targets, known, logits.device))}

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return {"all": denominator}, int64: the second half of `parts`, which needs no logits."""
        device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
        return {ALL: self._denominator(targets, self._known(targets, mask, device), device)}

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{_name(self.formula)}({options}), reduction={self.reduction!r}"

    def _known(self, targets: Any, mask: Any, device: torch.device) -> Tensor | None:
        """Return the known entries (N, L), for `cross_entropy` the known rows (N,); None where all are."""
        if self.over_classes:
            return known_rows(targets, mask, device)
        return as_known(mask, shape_of(targets), device)

    def _denominator(self, targets: Any, known: Tensor | None, device: torch.device) -> Tensor:
        shape = shape_of(targets)
        if self.reduction == "mean":
            return count(known, shape[:1] if self.over_classes else shape, device)
        return count(None, (shape[0] if self.reduction == "batchmean" else 0,), device)

    def _entries(self, logits: Tensor, targets: Any, known: Tensor | None) -> Tensor:
        """Return the weighted loss of each entry, 0 where unknown."""
        x, t = functional.promote(logits), self._dense(targets, logits, known)
        if known is not None:
            unknown = ~known[:, None] if self.over_classes else ~known
            x, t = x.masked_fill(unknown, 0.0), t.masked_fill(unknown if t.ndim == 2 else ~known, 0)
        values = self._over_classes(x, t) if self.over_classes else self._elementwise(x, t)
        return values if known is None else values.masked_fill(~known, 0.0)

    def _dense(self, targets: Any, logits: Tensor, known: Tensor | None) -> Tensor:
        if self.over_classes and len(targets.shape) == 1:
            return as_tensor(targets, logits.device)
        entries = known[:, None] if self.over_classes and known is not None else known
        return as_dense(as_targets(targets, logits, entries), logits)

    def _over_classes(self, x: Tensor, t: Tensor) -> Tensor:
        return self.fn(x, t) if self.weight is None else self.fn(x, t, weight=self._factor(self.weight, x))

    def _elementwise(self, x: Tensor, t: Tensor) -> Tensor:
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


class PerGroup(nn.Module):
    """The sum of the reduced losses of a space's groups, each computed on its own columns.

    A group's loss may be

    - a `Loss`, or one of this package's functions: elementwise for an any-of group, `cross_entropy` for an exclusive;
    - any other module or callable. Of an exclusive group it gets the known rows only, logits (n, K) and int64 classes
      (probabilities (n, K) where targets are soft), and returns a scalar or a value a row; with no known row it is not
      called, and the loss is 0. Of an any-of group it gets logits and dense floating-point targets (N, K). A result
      (N, K) is masked and averaged over known entries; a scalar or a value a row is taken where all is known, and is
      an error where something is unknown. Its `parts` count it as a mean over known rows or entries.

    Args:
        space: The columns' meaning.
        losses: For each group name its loss.
        scale: Factors of the groups' losses, by name; 1 where not given. `parts` has it in the sums already.

    Raises:
        ValueError: a group without a loss, an unknown group, a loss of the wrong kind for its group, one with
            reduction "none", or a scale that is negative or not finite.

    Example:
        >>> from mlabel.labels import Group
        >>> from mlabel.losses import focal
        >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
        >>> loss = PerGroup(space, {"tags": Loss(focal), "rating": nn.CrossEntropyLoss()}, scale={"rating": 0.5})
        >>> loss(torch.zeros(1, 4), torch.tensor([[1, 0, 0, 1]]))
        tensor(0.5199)
    """

    def __init__(
        self, space: LabelSpace, losses: Mapping[str, Any], *, scale: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        for name in [*losses, *(scale or {})]:
            resolve(name, space.slices, "group")
        missing = [group.name for group in space.groups if group.name not in losses]
        if missing:
            raise ValueError(f"every group needs a loss; {missing} have none")
        self.space = space
        self.losses = nn.ModuleList(_group_loss(losses[group.name], group) for group in space.groups)
        self.scale = {
            group.name: _check_scale((scale or {}).get(group.name, 1.0), group.name) for group in space.groups
        }

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss, a scalar: the groups' reduced losses times their scales, added.

        Args:
            logits: Real numbers (N, L).
            targets: (N, L) in [0, 1], dense or SciPy CSR.
            mask: None (all known), dense bool (True = known), or SciPy sparse bool (True = unknown).
        """
        return total(self.parts(logits, targets, mask))

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return for each group its scale times its summed loss, and its denominator; see `total`."""
        self._check_columns(logits)
        mask = as_known(mask, tuple(logits.shape), logits.device)
        targets = as_targets(targets, logits, mask)
        # One split, whose gradient is one concatenation; a slice a group would each cost a whole gradient.
        columns = logits.split([len(group) for group in self.space.groups], dim=1)
        parts = {}
        for (name, loss, span), x in zip(self._each(), columns, strict=True):
            value, denominator = loss.parts(x, targets[:, span], None if mask is None else mask[:, span])[ALL]
            parts[name] = (value * self.scale[name], denominator)
        return parts

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return each group's denominator, int64: the second half of `parts`, which needs no logits."""
        self._check_columns(targets)
        device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
        mask = as_known(mask, shape_of(targets), device)
        found = {}
        for name, loss, span in self._each():
            found[name] = loss.denominators(targets[:, span], None if mask is None else mask[:, span])[ALL]
        return found

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{self.space!r}, scale={self.scale}"

    def _each(self) -> Iterator[tuple[str, Any, slice]]:
        """Yield each group's name, loss and columns."""
        for (name, span), loss in zip(self.space.slices.items(), self.losses, strict=True):
            yield name, loss, span

    def _check_columns(self, values: Any) -> None:
        if len(values.shape) != 2 or values.shape[1] != self.space.num_labels:
            raise ValueError(f"the space has {self.space.num_labels} labels; got shape {tuple(values.shape)}")


def _unwrap(fn: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return the function inside a `functools.partial`, and the options bound to it."""
    if isinstance(fn, functools.partial) and not fn.args:
        return fn.func, dict(fn.keywords)
    return fn, {}


def _name(formula: Callable[..., Tensor]) -> str:
    return getattr(formula, "__name__", repr(formula))


def _is_own(fn: Any) -> bool:
    formula = _unwrap(fn)[0]
    return isinstance(formula, FunctionType) and formula in functional.ELEMENTWISE | functional.OVER_CLASSES


def _kernel_of(formula: Any) -> Callable[..., Kernel] | None:
    """Return what makes the kernel of an elementwise function of ours; None for any other callable."""
    return KERNELS.get(formula) if isinstance(formula, FunctionType) else None


def _as_weight(values: Any, what: str) -> Tensor | None:
    if values is None:
        return None
    array = to_numpy(values).astype(np.float64)
    if array.ndim > 1 or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{what} must be finite numbers of at least 0, one or (L,); got {values!r}")
    return torch.from_numpy(array.astype(np.float32))  # not every accelerator has float64


def _check_scale(value: float, name: str) -> float:
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"the scale of group {name!r} must be a finite number of at least 0; got {value!r}")
    return float(value)


def _group_loss(loss: Any, group: Group) -> nn.Module:
    """Return what computes the loss of `group`: a `Loss`, or a foreign one in our shape."""
    loss = Loss(loss) if _is_own(loss) else loss
    if not isinstance(loss, Loss):
        return ForeignLoss(loss, exclusive=group.exclusive)
    if loss.reduction == "none":
        raise ValueError(f"the loss of group {group.name!r} must be reduced; its reduction is 'none'")
    if loss.over_classes != group.exclusive:
        wanted = (
            "exclusive: use cross_entropy, focal_cross_entropy or seesaw"
            if group.exclusive
            else f"any-of: use an elementwise loss, not {_name(loss.formula)}"
        )
        raise ValueError(f"group {group.name!r} is {wanted}, or a callable of your own outside Loss")
    return loss


def as_loss(loss: Any, space: LabelSpace) -> BatchLoss:
    """Return `loss` as what training calls: an object with `parts` and `denominators`, over the columns of `space`.

    A `Loss` or `PerGroup` comes back as it is. Any other module or callable is given the logits (N, L) and dense
    floating-point targets (N, L); a result (N, L) is masked and averaged over known entries, a scalar or a value a row
    is an error while something is unknown. In a space of one group it is that group's loss, as in `PerGroup`: if the
    group is exclusive, it gets the known rows with int64 classes.

    Raises:
        TypeError: not a loss.
        ValueError: a `Loss` with reduction "none", or of a kind that does not fit the space's groups; a `PerGroup` of
            another space.

    Example:
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> as_loss(nn.BCEWithLogitsLoss(), space)(torch.zeros(2, 2), torch.tensor([[0, 1], [1, 0]]))
        tensor(0.6931)
    """
    if isinstance(loss, PerGroup):
        space.check_same(loss.space, "the loss")
        return loss
    if isinstance(loss, str):
        raise TypeError(
            f"a loss must be an object; got the name {loss!r}. Make it with losses.create({loss!r}, space=space)"
        )
    if isinstance(loss, BatchLoss) and not isinstance(loss, Loss):
        return loss
    if len(space.groups) == 1:
        return PerGroup(space, {space.groups[0].name: loss})
    loss = Loss(loss) if _is_own(loss) else loss
    if not isinstance(loss, Loss):
        return ForeignLoss(loss)
    exclusive = [group.name for group in space.exclusive_groups]
    if exclusive or loss.over_classes:
        raise ValueError(
            f"one Loss cannot serve all groups of {space!r}: give each its own with PerGroup, or use losses.create"
        )
    if loss.reduction == "none":
        raise ValueError("training needs a reduced loss; its reduction is 'none'")
    return loss
