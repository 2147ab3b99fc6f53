"""How labels go together: how often pairs of them hold, and their correlation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mlabel.data.table import ImageTable


class Relations(NamedTuple):
    """How the most frequent labels of some tables go together.

    Attributes:
        names: The K labels, the most frequent first.
        together: (K, K) int64: images that have both; on the diagonal those that have the label.
        correlation: (K, K) float64: phi coefficients over the images of which both are known; NaN for a label that
            is constant.
    """

    names: tuple[str, ...]
    together: np.ndarray
    correlation: np.ndarray


def relate_labels(tables: Iterable[ImageTable], *, most: int) -> Relations:
    """Return how the most frequent labels of tables of one label space go together.

    Args:
        tables: At least one.
        most: How many labels at most.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=["a", "b", "c"], targets=[[1, 0], [1, 0], [0, 1]], space=space)
        >>> relate_labels([table], most=2).correlation.round(1)
        array([[ 1., -1.],
               [-1.,  1.]])
    """
    tables = list(tables)
    names = tables[0].space.names
    totals = np.sum([table.counts for table in tables], axis=0)
    chosen = np.argsort(-totals, kind="stable")[:most]
    positives = sp.csr_array(sp.vstack([table.targets[:, chosen] for table in tables]), dtype=np.float64)
    blanks = [sp.csr_array((len(table), len(names)), dtype=bool) for table in tables]
    masks = [blank if table.unknown is None else table.unknown for table, blank in zip(tables, blanks, strict=True)]
    unknown = sp.csr_array(sp.vstack([mask[:, chosen] for mask in masks]), dtype=np.float64)
    together = (positives.T @ positives).toarray()
    # Of every pair: images of which both are known, and those with the one present where the other is known.
    num_unknown = unknown.sum(axis=0)
    both = positives.shape[0] - num_unknown[:, None] - num_unknown + (unknown.T @ unknown).toarray()
    one = positives.sum(axis=0)[:, None] - (positives.T @ unknown).toarray()
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = together * both - one * one.T
        variance = one * (both - one)
        correlation = covariance / np.sqrt(variance * variance.T)
    return Relations(tuple(names[k] for k in chosen), together.astype(np.int64), correlation)
