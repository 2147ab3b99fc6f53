"""The isotonic fit: only positives begin a step of the curve, so only they are looked up among the sorted scores.

Ascending by score, the known samples fall into runs that begin at a positive (with those of equal score) and end before
the next one. Within a run nothing rises, so that the best rising curve is level on it (Ayer et al., 1955); the rest is
done on the runs, of which there are no more than positives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.optimize import isotonic_regression

from mlabel.decisions._maps import IsotonicMap
from mlabel.decisions._slopes import Evidence
from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics._ranks import _gather_columns, _rank, pooled_ranks
from mlabel.metrics.ranking import Checked

Curve = tuple[np.ndarray, np.ndarray]
_NOTHING: Curve = (np.zeros(0), np.zeros(0))
# Of a block of rows.
_ENTRIES = 2**20


def fit_isotonic(
    checked: Checked, pools: Sequence[Sequence[slice]], evidence: Evidence, *, per_label: bool, shrinkage: float
) -> IsotonicMap:
    """Return the curves of labels, mixed with those of their pools by evidence / (evidence + shrinkage)."""
    num_labels = checked[0].shape[1]
    pool_of = np.full(num_labels, -1)
    own = np.zeros(num_labels)
    curves: list[Curve] = [_NOTHING] * num_labels
    for pool in pools:
        columns = np.concatenate([np.arange(run.start, run.stop) for run in pool])
        amount = evidence.amount[columns]
        if per_label:
            own[columns] = amount / np.maximum(amount + shrinkage, 1e-300)
            for run in pool:
                curves[run] = _curves_of_columns(checked, run)
        positives, known = evidence.positives[columns].sum(), evidence.known[columns].sum()
        if 0 < positives < known and (own[columns] < 1).any():
            pool_of[columns] = len(curves)
            curves.append(_pooled_curve(_of_columns(checked, pool, columns)))
    for column in np.flatnonzero(own == 0):
        curves[column] = _NOTHING
    lengths = [len(curve[0]) for curve in curves]
    x, y = (np.concatenate(each) if each else np.zeros(0) for each in zip(*curves, strict=True))
    return IsotonicMap(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), x, y, own, pool_of)


def _of_columns(checked: Checked, pool: Sequence[slice], columns: np.ndarray) -> Checked:
    """Return scores, targets and unknown of a pool; a view of the scores where its columns are one run."""
    scores, targets, unknown = checked
    if columns[-1] - columns[0] + 1 == len(columns):
        scores = scores[:, columns[0] : columns[-1] + 1]
    else:
        scores = scores[:, columns]
    return scores, sp.csr_array(targets[:, columns]), None if unknown is None else sp.csr_array(unknown[:, columns])


def _curves_of_columns(checked: Checked, run: slice) -> list[Curve]:
    """Return the curve of each column of a run; that of a column without positives has no knots."""
    scores, targets, unknown = checked
    positives = sp.csr_array(known_positives(targets, unknown)[:, run].T)
    missing = None if unknown is None else sp.csr_array(unknown[:, run].T)

    def of_block(start: int, stop: int) -> list[Curve]:
        block = _gather_columns(scores, run.start + start, run.start + stop)
        ranks = _rank(block, positives, missing, start=start, ties=False)
        found = []
        for row, ordered in enumerate(block):
            below = ranks.below[ranks.starts[row] : ranks.starts[row + 1]]
            found.append(_curve(below, int(ranks.known[row]), ordered) if len(below) else _NOTHING)
        return found

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    return [curve for part in map_blocks(of_block, blocks(positives.shape[0], size)) for curve in part]


def _curve(below: np.ndarray, known: int, ordered: np.ndarray) -> Curve:
    """Return the knots of a label: from ranks of its positives, ascending, and its scores in order."""
    starts, ends, shares = _steps(below, known)
    return _knots(ordered[starts].astype(np.float64), ordered[ends - 1].astype(np.float64), shares)


def _steps(below: np.ndarray, known: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first rank, the rank behind the last, and the share of positives of each level step."""
    starts, positives = np.unique(below, return_counts=True)
    if starts[0] > 0:
        starts, positives = np.append(0, starts), np.append(0, positives)
    lengths = np.diff(np.append(starts, known))
    fitted = isotonic_regression(positives / lengths, weights=lengths)
    first = fitted.blocks[:-1]
    # Of shares that are the same to the last digits the sums are exact, the running means of the fit are not.
    shares = np.add.reduceat(positives, first) / np.add.reduceat(lengths, first)
    return starts[first], np.append(starts[first[1:]], known), np.maximum.accumulate(shares)


def _knots(low: np.ndarray, high: np.ndarray, shares: np.ndarray) -> Curve:
    x, y = np.stack([low, high], axis=1).ravel(), np.repeat(shares, 2)
    kept = np.append(True, x[1:] > x[:-1])
    return x[kept], y[kept]


def _pooled_curve(checked: Checked) -> Curve:
    """Return the curve of all entries of the matrix together, in blocks of rows."""
    scores, targets, unknown = checked
    ranks = pooled_ranks(scores, targets, unknown)
    starts, _, shares = _steps(ranks.below, int(ranks.known[0]))
    values = np.sort(scores[rows_of(known_positives(targets, unknown))])
    begins = values[np.searchsorted(ranks.below, starts[1:])]
    lowest, before, highest = np.inf, np.full(len(begins), -np.inf), -np.inf
    size = max(1, _ENTRIES // max(1, scores.shape[1]))
    for start, stop in blocks(len(scores), size):
        block = scores[start:stop].copy()
        if unknown is not None:
            block[rows_of(unknown, start, stop)] = -np.inf
        block = np.sort(block, axis=None)
        place = block.searchsorted(begins, "left")
        before = np.maximum(before, np.where(place > 0, block[np.maximum(place - 1, 0)], -np.inf))
        first = int(block.searchsorted(-np.inf, "right"))
        if first < len(block):
            lowest, highest = min(lowest, float(block[first])), max(highest, float(block[-1]))
    return _knots(np.append(lowest, begins.astype(np.float64)), np.append(before, highest), shares)
