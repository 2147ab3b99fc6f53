"""The cut at which as many are decided positive as there are positives: there precision equals recall."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from mlabel.decisions._curves import between
from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics._ranks import _gather_columns, _hide_unknown
from mlabel.metrics.ranking import Checked

_DIGIT = 16  # bits by which a score is looked for at a time


def even_of_columns(checked: Checked) -> np.ndarray:
    """Return thresholds (L,) that decide as near as possible as many as there are positives; NaN without any.

    Equal scores are decided alike, so the number can be missed; of the two nearest numbers that are as near, it is the
    smaller, with the higher threshold. inf: nothing is decided.
    """
    scores, targets, unknown = checked
    wanted = np.bincount(known_positives(targets, unknown).indices, minlength=scores.shape[1])
    missing = None if unknown is None else sp.csr_array(unknown.T)

    def of_block(start: int, stop: int) -> np.ndarray:
        block = _gather_columns(scores, start, stop)
        known = _hide_unknown(block, missing, start)
        block.sort(axis=1)
        return np.array(
            [
                _even_cut(row[:number], count) if count else np.nan
                for row, number, count in zip(block, known, wanted[start:stop].tolist(), strict=True)
            ]
        )

    size = block_size(scores.shape[0] * scores.itemsize, most=64)
    parts = list(map_blocks(of_block, blocks(scores.shape[1], size)))
    return np.concatenate(parts) if parts else np.zeros(0)


def _even_cut(ordered: np.ndarray, wanted: int) -> float:
    """Return the threshold for ascending scores of which `wanted` are to be decided."""
    value = ordered[len(ordered) - wanted]
    first, after = (int(ordered.searchsorted(value, side)) for side in ("left", "right"))
    lower = ordered[first - 1] if first else -np.inf
    higher = ordered[after] if after < len(ordered) else np.inf
    return _nearer(float(lower), float(value), float(higher), surplus=len(ordered) - first - wanted, ties=after - first)


def _nearer(lower: float, value: float, higher: float, *, surplus: int, ties: int) -> float:
    """Return the threshold at or above `value`, by which of the two comes nearer.

    Args:
        lower: The next score below.
        value: The score at which as many are decided as are wanted, or `surplus` more.
        higher: The next score above.
        surplus: See `value`.
        ties: How many scores equal `value`.
    """
    return float(between(lower, value)) if surplus < ties - surplus else float(between(value, higher))


def even_pooled(checked: Checked) -> float:
    """Return the threshold of all entries of the matrix together; NaN where none is positive.

    The score is found digit by digit of its bits, by counting in blocks of rows, so that nothing is sorted.
    """
    scores, targets, unknown = checked
    wanted = known_positives(targets, unknown).nnz
    if not wanted:
        return float("nan")
    value = _highest_at(checked, wanted)
    below, above, lower, higher = 0, 0, -np.inf, np.inf
    for block in _known_blocks(checked):
        is_below, is_above = block < value, block > value
        below, above = below + int(is_below.sum()), above + int(is_above.sum())
        lower = max(lower, float(block.max(where=is_below, initial=-np.inf)))
        higher = min(higher, float(block.min(where=is_above, initial=np.inf)))
    known = scores.size - (0 if unknown is None else unknown.nnz)
    ties = known - below - above
    return _nearer(lower, float(value), higher, surplus=above + ties - wanted, ties=ties)


def _known_blocks(checked: Checked) -> Iterator[np.ndarray]:
    """Yield the known scores, one-dimensional, of blocks of rows."""
    scores, _, unknown = checked
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, scores.shape[1]))):
        block = scores[start:stop]
        if unknown is None:
            yield block.reshape(-1)
        else:
            known = np.ones(block.shape, dtype=bool)
            known[rows_of(unknown, start, stop)] = False
            yield block[known]


def _highest_at(checked: Checked, place: int) -> np.floating:
    """Return the known score that `place` scores, itself one of them, are not below."""
    kind = checked[0].dtype
    bits = 8 * kind.itemsize
    prefix = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(2**_DIGIT, dtype=np.int64)
        for block in _known_blocks(checked):
            keys = _ordered_bits(block)
            if shift < bits - _DIGIT:
                keys = keys[keys >> (shift + _DIGIT) == prefix]
            counts += np.bincount((keys >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT)
        from_above = counts[::-1].cumsum()
        step = int(from_above.searchsorted(place))
        place -= int(from_above[step - 1]) if step else 0
        prefix = (prefix << _DIGIT) + 2**_DIGIT - 1 - step
    return _score_of(prefix, kind)


def _ordered_bits(scores: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of the scores: the sign is turned, and negative ones are mirrored."""
    whole = np.dtype(f"u{scores.itemsize}")
    bits = (scores + scores.dtype.type(0)).view(whole)  # of both zeros the positive one
    sign = whole.type(1 << (8 * scores.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _score_of(key: int, kind: np.dtype) -> np.floating:
    """Return the score whose ordered bits are `key`."""
    size = 8 * kind.itemsize
    sign = 1 << (size - 1)
    bits = key ^ sign if key & sign else key ^ (2**size - 1)
    found: np.floating = np.array([bits], dtype=f"u{kind.itemsize}").view(kind)[0]
    return found
