"""Losses that were not written for mlabel: any module or callable of logits and targets, used as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlabel.losses._formulas import promote
from mlabel.losses.batch import (
    ALL,
    Parts,
    as_dense,
    as_known,
    as_matrix,
    as_targets,
    count,
    known_rows,
    shape_of,
    total,
)


class ForeignLoss(nn.Module):
    """A callable of logits and targets with the faces of `Loss`; `PerGroup` says what it is given and may return.

    Args:
        fn: The callable; a module's parameters and buffers belong to this one.
        exclusive: Whether the columns are one exclusive group.

    Raises:
        TypeError: not callable, or a class instead of an instance of it.

    Example:
        >>> loss = ForeignLoss(nn.CrossEntropyLoss(), exclusive=True)
        >>> loss(torch.zeros(2, 4), torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]))  # the second row's class is unknown
        tensor(1.3863)
    """

    def __init__(self, fn: Callable[..., Any], *, exclusive: bool = False) -> None:
        super().__init__()
        if isinstance(fn, type):
            raise TypeError(f"a loss must be an instance; got the class {fn.__name__}. Call it: {fn.__name__}()")
        if not callable(fn):
            raise TypeError(f"a loss must be a module or a function of logits and targets; got {fn!r}")
        self.fn, self.exclusive = fn, exclusive

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss, a scalar; `logits`, `targets` and `mask` are those of `parts`."""
        return total(self.parts(logits, targets, mask))

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return {"all": (mean x denominator, denominator)}, the denominator being known rows or entries.

        Args:
            logits: (N, L), any floating point.
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

        Raises:
            ValueError: targets or mask of another shape, or a loss that does not say what each entry has while
                something is unknown.
            TypeError: targets in none of those forms.
        """
        targets = as_matrix(targets, logits.shape[1])
        known = self._known(targets, mask, logits.device)
        found = as_targets(targets, logits, known[:, None] if self.exclusive and known is not None else known)
        x, t = promote(logits), as_dense(found, logits)
        value = self._of_rows(x, t, known) if self.exclusive else self._of_entries(x, t, known)
        return {ALL: (value, self._denominator(found, known, logits.device))}

    def denominators(self, targets: Any, mask: Any = None, *, num_labels: int | None = None) -> dict[str, Tensor]:
        """Return {"all": denominator}, int64.

        Args:
            targets: As in `parts`, or for each row the list of its labels.
            mask: As in `parts`.
            num_labels: L, which lists do not say by themselves.

        Raises:
            ValueError: lists without `num_labels`.
        """
        if isinstance(targets, (list, tuple)):
            num_labels = mask.shape[1] if num_labels is None and mask is not None else num_labels
            if num_labels is None and not self.exclusive:
                raise ValueError("index lists do not say how many labels there are; give num_labels=")
            targets = as_matrix(targets, num_labels)
        device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
        return {ALL: self._denominator(targets, self._known(targets, mask, device), device)}

    def _known(self, targets: Any, mask: Any, device: torch.device) -> Tensor | None:
        if self.exclusive:
            return known_rows(targets, mask, device)
        return as_known(mask, shape_of(targets), device)

    def _denominator(self, targets: Any, known: Tensor | None, device: torch.device) -> Tensor:
        shape = shape_of(targets)
        return count(known, shape[:1] if self.exclusive else shape, device)

    def _of_rows(self, x: Tensor, t: Tensor, known: Tensor | None) -> Tensor:
        """Return the mean loss of the known rows times their number."""
        x, t = (x, t) if known is None else (x[known], t[known])
        if not len(x):
            return x.sum()  # 0, and part of the graph
        hard = bool(((t == 0) | (t == 1)).all())
        result = self._call(x, t.argmax(dim=1) if hard else t)
        if result.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"the loss of an exclusive group must give a scalar or a value a row ({len(x)},); "
                f"got shape {tuple(result.shape)}"
            )
        return result.mean() * len(x)

    def _of_entries(self, x: Tensor, t: Tensor, known: Tensor | None) -> Tensor:
        """Return the mean loss of the known entries times their number."""
        if known is not None:
            x, t = x.masked_fill(~known, 0.0), t.masked_fill(~known, 0.0)
        result = self._call(x, t)
        if result.shape == x.shape:
            return (result if known is None else result.masked_fill(~known, 0.0)).sum()
        if result.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"a loss must give a scalar, a value a row or a value an entry {tuple(x.shape)}; "
                f"got shape {tuple(result.shape)}"
            )
        if known is not None and not bool(known.all()):
            raise ValueError(
                f"{int((~known).sum())} entries of the batch are unknown, and the loss has added them up already: "
                "give one that returns a value an entry (such as reduction='none'), which is then masked and averaged"
            )
        return result.mean() * x.numel()

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        result = self.fn(x, t)
        if not isinstance(result, Tensor):
            raise TypeError(f"a loss must return a tensor; got {type(result).__name__}")
        return result
