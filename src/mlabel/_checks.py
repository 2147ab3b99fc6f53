"""Checks that the public functions share: shapes, values, options, and the errors they end in.

Each helper takes what a caller may hand in (NumPy, torch on any device, SciPy sparse), and returns one form, without
ever changing its input. Messages say what was wanted, what came, and where.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch

T = TypeVar("T")


class DataError(ValueError):
    """A file or a record does not hold what its format promises; the message names the place.

    Example:
        >>> from mlabel.labels import LabelSpace
        >>> LabelSpace.from_dict({})
        Traceback (most recent call last):
        ...
        mlabel._checks.DataError: a label space of format 'mlabel.labels/1' was wanted; got 'None'
    """


def suggest(name: str, options: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest option, if one is near, and all of them."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(known[:60]) + (f", ... ({len(known)} in all)" if len(known) > 60 else "")
    return f"{hint}Known: {shown}"


def resolve(name: str, table: Mapping[str, T], what: str) -> T:
    """Return `table[name]`.

    Raises:
        ValueError: `name` is not in the table; the message lists the options and the nearest one.
    """
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; {suggest(str(name), table)}")
    return table[name]


def require(module: str, extra: str) -> ModuleType:
    """Return an optional package.

    Raises:
        ImportError: it is not installed; the message names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{module} is not installed; it comes with pip install 'mlabel[{extra}]'") from error


def to_numpy(values: Any) -> np.ndarray:
    """Return `values` as a NumPy array: torch tensors come from any device, half precisions as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        return values.cpu().numpy()
    if sp.issparse(values):
        raise TypeError("a dense array was wanted here and a sparse matrix came")
    return np.asarray(values)


def as_scores(scores: Any, what: str = "scores") -> np.ndarray:
    """Return `scores` as a finite float array (N, L); float32 and float64 are kept as they are.

    Raises:
        ValueError: not two-dimensional, or NaN or infinite somewhere (with the count and the first place).
    """
    array = to_numpy(scores)
    if array.ndim != 2:
        raise ValueError(f"{what} must be of shape (N, L); got {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    # Two reductions find any NaN or infinity without a temporary the size of the scores.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        bad = ~np.isfinite(array)
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{what} must be finite; {int(bad.sum())} entries are not, the first at row {row}, column {column}: "
            f"{array[row, column]}"
        )
    return array


def as_csr(targets: Any, *, soft: bool = False, shape: tuple[int, int] | None = None) -> sp.csr_array:
    """Return `targets` as a canonical CSR array (N, L): uint8 ones, or float32 in (0, 1] where `soft`.

    Raises:
        ValueError: another shape than `shape`, or a value outside {0, 1} ([0, 1] where `soft`), with its place.
    """
    if sp.issparse(targets):
        matrix = sp.csr_array(targets)
    else:
        dense = to_numpy(targets)
        if dense.ndim != 2:
            raise ValueError(f"targets must be of shape (N, L); got {dense.shape}")
        if dense.dtype.kind not in "buif":
            raise ValueError(f"targets must be numbers; got {_first_text(dense)}")
        matrix = _csr_of_dense(dense)
    if shape is not None and matrix.shape != tuple(shape):
        raise ValueError(f"targets must be of shape {tuple(shape)}; got {matrix.shape}")
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    _check_target_values(matrix, soft)
    return matrix.astype(np.float32 if soft else np.uint8, copy=False)


def _csr_of_dense(dense: np.ndarray) -> sp.csr_array:
    """Return `dense` (N, L) as canonical CSR of its type; SciPy's own way, by coordinates, takes twice as long."""
    kind = dense.dtype
    if dense.dtype == np.uint8 and dense.flags.c_contiguous and dense.max(initial=0) <= 1:
        dense = dense.view(np.bool_)  # of which the ones are found faster
    rows, columns = np.nonzero(dense)
    data = np.ones(len(rows), dtype=kind) if dense.dtype == bool else dense[rows, columns]
    # Indices in 32 bits where they fit, as SciPy has them.
    width = np.int32 if max(len(rows), dense.shape[1]) <= np.iinfo(np.int32).max else np.int64
    starts = rows.searchsorted(np.arange(len(dense) + 1)).astype(width)
    matrix = sp.csr_array((data, columns.astype(width), starts), shape=dense.shape)
    matrix.has_canonical_format = True
    return matrix


def _first_text(dense: np.ndarray) -> str:
    """Return the first entry that is no number, with its place; where there is none, the type of all."""
    for (row, column), value in np.ndenumerate(dense):
        try:
            float(value)
        except (TypeError, ValueError):
            return f"{str(value)!r} at row {row}, column {column}"
    return f"dtype {dense.dtype}"


def _check_target_values(matrix: sp.csr_array, soft: bool) -> None:
    data = matrix.data
    good = (data > 0) & (data <= 1) if soft else data == 1
    if good.all():
        return
    place = int(np.flatnonzero(~good)[0])
    row = int(np.searchsorted(matrix.indptr, place, side="right")) - 1
    wanted = "in [0, 1]" if soft else "0 or 1 (soft targets only where declared)"
    raise ValueError(f"targets must be {wanted}; got {data[place]} at row {row}, column {int(matrix.indices[place])}")


def as_unknown(mask: Any, shape: tuple[int, int]) -> sp.csr_array | None:
    """Return what is not known as a CSR bool array (True = unknown), or None where all is known.

    Args:
        mask: None; a dense bool array (True = known), as batches hold it; or a SciPy sparse bool matrix
            (True = unknown), as tables hold it.
        shape: The (N, L) that it must have.
    """
    if mask is None:
        return None
    if sp.issparse(mask):
        unknown = sp.csr_array(mask).astype(bool)
    else:
        known = to_numpy(mask)
        if known.dtype != bool:
            raise TypeError(f"a dense mask must be bool (True = known); got dtype {known.dtype}")
        if known.shape != tuple(shape):
            raise ValueError(f"mask must be of shape {tuple(shape)}; got {known.shape}")
        unknown = _csr_of_dense(~known)
    if unknown.shape != tuple(shape):
        raise ValueError(f"unknown must be of shape {tuple(shape)}; got {unknown.shape}")
    if not unknown.has_canonical_format:
        unknown.sum_duplicates()
    unknown.eliminate_zeros()
    return unknown if unknown.nnz else None


def check_positive(value: float, what: str) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{what} must be a finite number above 0; got {value!r}")


def check_between(value: float, low: float, high: float, what: str) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{what} must be between {low} and {high}; got {value!r}")


def check_counts(counts: Any, known: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return counts of positives and of known samples as float64 arrays (L,); one number of samples is repeated.

    Raises:
        ValueError: another shape, counts below 0 or above the known samples, or samples that are not finite.
    """
    counts = np.array(to_numpy(counts), dtype=np.float64)
    known = np.array(to_numpy(known), dtype=np.float64)
    if counts.ndim != 1 or known.shape not in ((), counts.shape):
        raise ValueError(
            f"counts must be of shape (L,), and samples a number or (L,); got {counts.shape} and {known.shape}"
        )
    known = np.broadcast_to(known, counts.shape)
    wrong = np.flatnonzero(~((counts >= 0) & (counts <= known) & np.isfinite(known)))
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"counts must be between 0 and the number of known samples; label {place} has {counts[place]:g} "
            f"of {known[place]:g}"
        )
    return counts, known
