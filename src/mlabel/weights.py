"""Weights of labels from how often they occur, for losses that would otherwise forget the rare ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from mlabel._checks import as_csr, as_unknown, check_between, check_counts, check_positive, resolve, to_numpy
from mlabel._files import write_atomically
from mlabel.labels import LabelSpace


def count_labels(targets: Any, unknown: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each label is present, and for how many samples it is known.

    Nothing dense of shape (N, L) is made from sparse input.

    Args:
        targets: (N, L), SciPy sparse, NumPy or torch: 0 or 1, or, of a floating dtype, in [0, 1].
        unknown: What is not known: SciPy sparse bool (True = unknown), dense bool (True = known), or None. What is
            both present and unknown counts as unknown.

    Returns:
        Positives (L,), int64, or float64 for targets of a floating dtype (their sums); and known samples (L,), int64.

    Raises:
        ValueError: targets outside [0, 1], or an `unknown` of another shape.

    Example:
        >>> count_labels(np.array([[1, 0], [1, 1], [0, 0]]))
        (array([2, 1]), array([3, 3]))
    """
    soft = _is_floating(targets)
    matrix = as_csr(targets, soft=soft)
    missing = as_unknown(unknown, matrix.shape)
    known = np.full(matrix.shape[1], matrix.shape[0], dtype=np.int64)
    if missing is not None:
        known -= np.bincount(missing.indices, minlength=matrix.shape[1])
        matrix = sp.csr_array(matrix - matrix.multiply(missing))
    counts = np.bincount(matrix.indices, weights=matrix.data, minlength=matrix.shape[1])
    return (counts if soft else counts.astype(np.int64)), known


def prior(counts: Any, known: Any) -> np.ndarray:
    """Return the share of positives among the known samples of each label, float64 (L,); NaN where none is known.

    Args:
        counts: Positives (L,), as `count_labels` gives them.
        known: Known samples: (L,), or one number.

    Raises:
        ValueError: negative counts, or more positives than known samples.

    Example:
        >>> prior([2, 1], 4)
        array([0.5 , 0.25])
    """
    counts, known = check_counts(counts, known)
    return np.divide(counts, known, out=np.full(len(counts), np.nan), where=known > 0)


def class_weights(
    counts: Any,
    num_samples: Any,
    *,
    scheme: str = "effective_number",
    cap: float = 100.0,
    space: LabelSpace | None = None,
    beta: float = 0.999,
    exponent: float = 0.5,
) -> np.ndarray:
    """Return a weight for each label: the rarer it is, the more it counts.

    With c positives among n known samples the weight is

    - `inverse_frequency`: n / c;
    - `power`: (n / c)^exponent, the square root unless told otherwise: between no weights and the inverse frequency;
    - `effective_number`: 1 / (1 - beta^c), the inverse of the effective number of samples;
    - `neg_pos`: (n - c) / c, which lets positives and negatives weigh the same; it is a `pos_weight`, which classes of
      exclusive groups do not have: they get 1.

    The first three are 1 for a label that holds always, so `cap` bounds how much more a rare label counts than that
    one. Weights are capped, and then, except for `neg_pos`, divided by the mean of their group, so that the loss keeps
    its size. A label without positives gets the weight of one with a single positive and does not enter the mean; a
    label of which nothing is known gets 1.

    Args:
        counts: Positives (L,), as `count_labels` gives them.
        num_samples: Known samples: one number, or (L,).
        scheme: "inverse_frequency", "power", "effective_number" or "neg_pos".
        cap: The largest weight before the division by the mean.
        space: The groups whose weights get mean 1 each. None: all labels are one any-of group.
        beta: The effective number's parameter, in [0, 1): 0 weighs all labels the same.
        exponent: The power's, in [0, 1]: 0 weighs all labels the same, 1 is the inverse frequency.

    Returns:
        Weights (L,), float64.

    Raises:
        ValueError: an unknown scheme, counts that are negative or above the known samples, another number of labels
            than the space has, or cap, beta or exponent out of range.

    Example:
        >>> class_weights([50, 25, 1], 100, scheme="inverse_frequency", cap=10.0)
        array([0.375, 0.75 , 1.875])

    Reference: Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    Mahajan, Girshick, Ramanathan, He, Paluri, Li, Bharambe and van der Maaten, "Exploring the Limits of Weakly
    Supervised Pretraining", ECCV 2018, for the square root.
    """
    formula = resolve(scheme, _FORMULAS, "scheme")
    check_positive(cap, "cap")
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must be at least 0 and below 1; got {beta!r}")
    check_between(exponent, 0.0, 1.0, "exponent")
    counts, known = check_counts(counts, num_samples)
    _check_length(counts, space)
    raw = formula(np.where(counts > 0, counts, 1.0), known, {"beta": beta, "exponent": exponent})
    weights = np.where(known > 0, np.minimum(raw, cap), 1.0)
    if scheme != "neg_pos":
        for span in [slice(None)] if space is None else space.slices.values():
            weights[span] = _mean_one(weights[span], counts[span] > 0)
    elif space is not None:
        weights[~space.any_of] = 1.0
    return weights


def _inverse_frequency(counts: np.ndarray, known: np.ndarray, options: Mapping[str, float]) -> np.ndarray:
    return known / counts


def _power(counts: np.ndarray, known: np.ndarray, options: Mapping[str, float]) -> np.ndarray:
    return (known / counts) ** options["exponent"]


def _neg_pos(counts: np.ndarray, known: np.ndarray, options: Mapping[str, float]) -> np.ndarray:
    return (known - counts) / counts


def _effective_number(counts: np.ndarray, known: np.ndarray, options: Mapping[str, float]) -> np.ndarray:
    beta = options["beta"]
    # expm1 keeps the digits that 1 - beta^c loses where beta^c is near 1.
    return np.ones_like(counts) if beta == 0.0 else -1.0 / np.expm1(counts * np.log(beta))


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, Mapping[str, float]], np.ndarray]] = {
    "effective_number": _effective_number,
    "inverse_frequency": _inverse_frequency,
    "neg_pos": _neg_pos,
    "power": _power,
}
SCHEMES: tuple[str, ...] = tuple(_FORMULAS)


@dataclass(frozen=True, eq=False)
class LabelTable:
    """How often each label occurs, and what was chosen for it; `print` shows it as text.

    Attributes:
        space: The columns' meaning.
        columns: Name to an array (L,): positives, known, prior (positives / known), weight, and any further ones.

    Example:
        >>> from mlabel.labels import Group
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> print(describe([50, 1], 100, space=space, weight=class_weights([50, 1], 100)))
        name  group  positives  known  prior  weight
        dog   tags           1    100   0.01    1.66
        cat   tags          50    100    0.5  0.3402
    """

    space: LabelSpace
    columns: Mapping[str, np.ndarray] = field(repr=False)

    def rows(self, sort: str = "column", limit: int | None = None) -> list[dict[str, Any]]:
        """Return a dictionary a label: name, group, and a number of each column; None where there is none.

        Args:
            sort: column (the labels' order), or the name of a column of numbers: the lowest first, equal ones in the
                labels' order, labels without a number last.
            limit: How many labels at most; None: all.

        Raises:
            ValueError: an unknown `sort`.
        """
        keys = resolve(sort, {"column": np.arange(self.space.num_labels), **self.columns}, "column")
        groups = [group.name for group in self.space.groups for _ in group.labels]
        return [
            {"name": self.space.names[place], "group": groups[place]}
            | {name: _plain(values[place]) for name, values in self.columns.items()}
            for place in np.argsort(keys, kind="stable")[:limit].tolist()
        ]

    def text(self, sort: str = "prior", limit: int | None = None) -> str:
        """Return the table as text, one line a label under a header; `sort` and `limit` are those of `rows`."""
        header = ["name", "group", *self.columns]
        cells = [[_shown(row[name]) for name in header] for row in self.rows(sort, limit)]
        lines = _aligned([header, *cells])
        hidden = self.space.num_labels - len(cells)
        return "\n".join([*lines, f"... and {hidden:,} labels more"] if hidden else lines)

    def to_csv(self, path: str | Path) -> None:
        """Write the table to the file `path`, in the labels' order; a number that is not there is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["name", "group", *self.columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        write_atomically(path, text.getvalue())

    def __str__(self) -> str:
        return self.text()


def describe(
    counts: Any, num_samples: Any, *, space: LabelSpace, weight: Any = None, further: Mapping[str, Any] | None = None
) -> LabelTable:
    """Return a table of the labels: name, group, positives, known samples, prior, and the weight chosen.

    Args:
        counts: Positives (L,), as `count_labels` gives them.
        num_samples: Known samples: one number, or (L,).
        space: The columns' meaning.
        weight: What `class_weights` gave (L,); None: 1 for all.
        further: Further columns of numbers, name to (L,), such as an adjustment of the logits.

    Raises:
        ValueError: arrays of another length than the space's, or counts that `class_weights` refuses.

    Example:
        >>> from mlabel.labels import Group
        >>> table = describe([1, 3], 4, space=LabelSpace([Group("tags", ["cat", "dog"])]), weight=[1.5, 0.5])
        >>> table.columns["prior"], table.columns["weight"]
        (array([0.25, 0.75]), array([1.5, 0.5]))
    """
    positives, known = check_counts(counts, num_samples)
    _check_length(positives, space)
    given = {"weight": np.ones(len(positives)) if weight is None else weight, **(further or {})}
    columns = {"positives": _whole(positives), "known": _whole(known), "prior": prior(positives, known)}
    for name, values in given.items():
        columns[name] = np.array(to_numpy(values), dtype=np.float64)
        if columns[name].shape != positives.shape:
            raise ValueError(f"{name} must be of shape {positives.shape}; got {columns[name].shape}")
    return LabelTable(space, columns)


def _whole(values: np.ndarray) -> np.ndarray:
    """Return `values` as integers where they all are, as the counts of hard targets."""
    return values.astype(np.int64) if (values == np.floor(values)).all() else values


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python one, NaN as None."""
    number = value.item()
    return None if number != number else number


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines: names and groups to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _mean_one(weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return `weights` divided by the mean over labels that occur; all 1 where none does."""
    return weights / weights[present].mean() if present.any() else np.ones_like(weights)


def _check_length(counts: np.ndarray, space: LabelSpace | None) -> None:
    if space is not None and len(counts) != space.num_labels:
        raise ValueError(f"counts are of {len(counts)} labels, but the space has {space.num_labels}")


def _is_floating(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return values.is_floating_point()
    dtype = values.dtype if sp.issparse(values) else np.asarray(values).dtype
    return bool(dtype.kind == "f")
