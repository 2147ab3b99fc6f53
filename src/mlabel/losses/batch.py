"""What a loss is given, targets and mask in any of their forms, and what it gives: parts that batches merge by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from mlabel.losses._formulas import promote

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
        """Return for each group the summed loss and the denominator.

        Args:
            logits: (N, L), any floating point.
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        """

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return the denominator of each group.

        Args:
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        """


def total(*batches: Parts) -> Tensor:
    """Return the loss of one or more batches together, from their `parts`: that of the batches concatenated.

    Args:
        batches: What `parts` of one loss returned for each batch: group to summed loss and denominator.

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


def begin_epoch(loss: Any, epoch: int) -> None:
    """Tell a loss, and every loss inside it, which epoch begins where it wants to know.

    Training calls this before each epoch, so that what a loss does follows from the epoch alone: a resumed training
    goes on as if it had never stopped. A loss of your own is told by a method `begin_epoch(epoch)`.

    Args:
        loss: A loss; one that does not want to know is left as it is.
        epoch: The epoch's number, from 0.

    Example:
        >>> from mlabel.losses import Loss, splc
        >>> loss = Loss(splc)
        >>> begin_epoch(loss, 3)
        >>> loss
        Loss(splc(epoch=3), reduction='mean')
    """
    for part in loss.modules() if isinstance(loss, nn.Module) else [loss]:
        tell = getattr(part, "begin_epoch", None)
        if callable(tell):
            tell(epoch)


def as_targets(targets: Any, logits: Tensor, known: Tensor | None = None) -> Targets:
    """Return targets (N, L) as a tensor on the logits' device, or as a canonical CSR array where they came sparse.

    Index lists, which hold the labels of each row, come back as CSR. Values are checked on the CPU only, and not in
    compiled code: an accelerator would have to wait for the answer.

    Raises:
        TypeError: neither an array, a tensor, a sparse matrix nor index lists.
        ValueError: another shape than the logits', or a known target outside [0, 1].
    """
    targets = as_matrix(targets, logits.shape[1] if logits.ndim == 2 else None)
    shape = shape_of(targets)
    found = _canonical(targets) if sp.issparse(targets) else as_tensor(targets, logits.device)
    if shape != tuple(logits.shape):
        raise ValueError(f"targets must have the shape of the logits, {tuple(logits.shape)}; got {shape}")
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(found, known)
    return found


def as_matrix(targets: Any, num_labels: int | None = None) -> Any:
    """Return index lists as a canonical CSR array of ones (N, L), and anything else as it is.

    Args:
        targets: A list or tuple with an entry for each row, which holds the row's labels: a list, tuple, array or
            tensor of integers in [0, L), each once, in any order. Or targets in another form.
        num_labels: L. None: one more than the largest that occurs.

    Raises:
        TypeError: an entry that does not hold integers.
        ValueError: a label outside [0, L), or twice in a row.

    Example:
        >>> as_matrix([[2, 0], [], [1]], 4).toarray()
        array([[1, 0, 1, 0],
               [0, 0, 0, 0],
               [0, 1, 0, 0]], dtype=uint8)
    """
    if not isinstance(targets, (list, tuple)):
        return targets
    indices = _joined(targets)
    bounds = np.cumsum([0, *map(len, targets)])
    width = max(indices.max(initial=-1) + 1, 1) if num_labels is None else num_labels
    wrong = np.flatnonzero((indices < 0) | (indices >= width))
    if len(wrong):
        row = np.searchsorted(bounds, wrong[0], side="right") - 1
        raise ValueError(f"index lists must hold labels in [0, {width}); got {indices[wrong[0]]} in row {row}")
    matrix = sp.csr_array((np.ones(len(indices), dtype=np.uint8), indices, bounds), shape=(len(targets), width))
    matrix.sort_indices()
    if not matrix.has_canonical_format:
        row, label = _repeated(matrix)
        raise ValueError(
            f"index lists hold each label of a row once; row {row} holds {label} more than once. "
            "A matrix of zeros and ones is passed as an array or a tensor"
        )
    return matrix


def _joined(rows: Sequence[Any]) -> np.ndarray:
    """Return the entries of all rows, int64."""
    try:
        if all(isinstance(row, (list, tuple)) for row in rows):
            joined = np.array(list(itertools.chain.from_iterable(rows)))
        else:  # an empty row has no integers, and so its array may be of any dtype
            held = [np.asarray(row).reshape(len(row)) for row in rows if len(row)]
            joined = np.concatenate(held) if held else np.zeros(0, dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise TypeError("index lists must hold a list of integers for each row") from error
    if len(joined) and joined.dtype.kind not in "iu":
        raise TypeError(f"index lists must hold a list of integers for each row; got {joined.dtype} among them")
    return joined.astype(np.int64)


def _repeated(matrix: sp.csr_array) -> tuple[int, int]:
    """Return the first row of a sorted matrix with an index that stands twice, and that index."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    again = np.flatnonzero((rows[1:] == rows[:-1]) & (matrix.indices[1:] == matrix.indices[:-1]))[0]
    return int(rows[again]), int(matrix.indices[again])


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
        raise TypeError(
            f"targets must be a torch tensor, a NumPy array, a SciPy sparse matrix or index lists; got {came}"
        )
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


def holding(targets: Targets | np.ndarray, known: Tensor | None, device: torch.device, *, dim: int) -> Tensor:
    """Return in which rows (N,), with dim 1, or columns (L,), with dim 0, a known label holds: bool, on `device`."""
    if not sp.issparse(targets):
        held = as_tensor(targets, device) > 0
        return (held if known is None else held & known).any(dim=dim)
    entries = sp.coo_array(targets)
    rows, columns = (torch.from_numpy(at.astype(np.int64)).to(device) for at in (entries.row, entries.col))
    held = torch.from_numpy(entries.data > 0).to(device)
    if known is not None:
        held = held & known[rows, columns]
    found = torch.zeros(targets.shape[1 - dim], dtype=torch.bool, device=device)
    found[(rows if dim == 1 else columns)[held]] = True
    return found


def count(known: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the number of known entries, a scalar int64 tensor on `device`; of all where `known` is None."""
    if known is not None:
        return known.sum()
    return torch.full((), math.prod(shape), dtype=torch.int64, device=device)
