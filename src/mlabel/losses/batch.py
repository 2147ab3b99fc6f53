"""What a loss is given, targets and mask in any of their forms, and what it gives: parts that batches merge by."""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from mlabel.losses.functional import promote

Targets: TypeAlias = Tensor | sp.csr_array
Parts = dict[str, tuple[Tensor, Tensor]]

# The key in `parts` of a loss that does not tell groups apart.
ALL = "all"


@runtime_checkable
class BatchLoss(Protocol):
    """What training needs of a loss: three faces.

    Called, it gives the reduced loss. `parts` gives for each group the summed loss, times the group's scale, and the
    denominator (int64). From these batches are merged; the loss of several together is

        sum over groups of  (sum of their sums) / max(1, sum of their denominators),

    as `total` computes it. A denominator of 0 stands for "nothing to divide by". `denominators` gives the denominators
    alone, before there are logits, so that the parts of each batch can be divided by those of all.
    """

    def __call__(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the reduced loss, a scalar."""

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return for each group the summed loss and the denominator."""

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return the denominator of each group."""


def total(*batches: Parts) -> Tensor:
    """Return the loss of one or more batches together, from their `parts`: that of the batches concatenated.

    Example:
        >>> total({"tags": (torch.tensor(6.0), torch.tensor(4))}, {"tags": (torch.tensor(2.0), torch.tensor(4))})
        tensor(1.)
    """
    groups = []
    for name in batches[0]:
        value = torch.stack([parts[name][0] for parts in batches]).sum()
        denominator = torch.stack([parts[name][1] for parts in batches]).sum()
        groups.append(value / denominator.clamp(min=1))
    return torch.stack(groups).sum()


def as_targets(targets: Any, logits: Tensor, known: Tensor | None = None) -> Targets:
    """Return targets (N, L) as a tensor on the logits' device, or as a canonical CSR array where they came sparse.

    Values are checked on the CPU only, and not in compiled code: an accelerator would have to wait for the answer.

    Raises:
        TypeError: neither an array, a tensor nor a sparse matrix.
        ValueError: another shape than the logits', or a known target outside [0, 1].
    """
    shape = shape_of(targets)
    found = _canonical(targets) if sp.issparse(targets) else as_tensor(targets, logits.device)
    if shape != tuple(logits.shape):
        raise ValueError(f"targets must have the shape of the logits, {tuple(logits.shape)}; got {shape}")
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(found, known)
    return found


def _check_range(targets: Targets, known: Tensor | None) -> None:
    values = targets if isinstance(targets, Tensor) else torch.from_numpy(targets.data)
    if not values.numel() or values.dtype == torch.bool:
        return
    low, high = values.aminmax()
    if not (low < 0 or high > 1):  # NaN passes: it may stand where nothing is known
        return
    dense = targets if isinstance(targets, Tensor) else torch.from_numpy(targets.toarray())
    wrong = (dense < 0) | (dense > 1)
    places = (wrong if known is None else wrong & known).nonzero()
    if len(places):
        row, column = places[0].tolist()
        raise ValueError(
            f"targets must be in [0, 1]; got {dense[row, column].item()} at row {row}, column {column}. "
            "What is unknown is said by mask="
        )


def _canonical(targets: Any) -> sp.csr_array:
    matrix = sp.csr_array(targets)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def shape_of(targets: Any) -> tuple[int, ...]:
    """Return the shape of targets in any of their forms.

    Raises:
        TypeError: none of the forms.
    """
    if not (isinstance(targets, (Tensor, np.ndarray)) or sp.issparse(targets)):
        came = type(targets).__name__
        raise TypeError(f"targets must be a torch tensor, a NumPy array or a SciPy sparse matrix; got {came}")
    return tuple(targets.shape)


def as_tensor(targets: Any, device: torch.device) -> Tensor:
    """Return a tensor or NumPy array as a tensor on `device`."""
    return torch.as_tensor(targets).to(device)


def as_dense(targets: Targets, logits: Tensor) -> Tensor:
    """Return targets as a dense floating-point tensor (N, L), in the precision that the loss is computed in."""
    dense = targets if isinstance(targets, Tensor) else torch.from_numpy(targets.toarray())
    return dense.to(promote(logits[:0]))


def as_known(mask: Any, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Return the mask as a dense bool tensor on `device`, True = known; None where all is known.

    Args:
        mask: None, a dense bool array or tensor (True = known), or a SciPy sparse bool matrix (True = unknown).
        shape: The (N, L) that it must have.
        device: Where the result lies.

    Raises:
        TypeError: a dense mask that is not bool.
        ValueError: another shape.
    """
    if mask is None:
        return None
    if sp.issparse(mask):
        mask = ~sp.csr_array(mask).astype(bool).toarray()
    known = torch.as_tensor(mask)
    if known.dtype != torch.bool:
        raise TypeError(f"a dense mask must be bool (True = known); got dtype {known.dtype}")
    if tuple(known.shape) != tuple(shape):
        raise ValueError(f"mask must be of shape {tuple(shape)}; got {tuple(known.shape)}")
    return known.to(device)


def known_rows(targets: Any, mask: Any, device: torch.device) -> Tensor | None:
    """Return the rows (N,) of an exclusive group whose class is known, as a bool tensor on `device`; None: all.

    A row is known where all its columns are, and one of them holds. Where targets are classes (N,), the mask is of
    that shape too.
    """
    shape = shape_of(targets)
    known = as_known(mask, shape, device)
    if len(shape) == 1:
        return known
    if sp.issparse(targets):
        given = torch.from_numpy(np.asarray(targets.sum(axis=1)).reshape(-1) > 0).to(device)
    else:
        given = (as_tensor(targets, device) != 0).any(dim=1)
    return given if known is None else given & known.all(dim=1)


def count(known: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the number of known entries, a scalar int64 tensor on `device`; of all where `known` is None."""
    if known is not None:
        return known.sum()
    return torch.full((), math.prod(shape), dtype=torch.int64, device=device)
