"""Confident learning: how many labels of each kind are probably false, and which.

Of each label, scores and what was given make a 2 x 2 table of given against confidently believed, the confident joint
(Northcutt, Jiang and Chuang, 2021); of an exclusive group of K classes a K x K table. Scaled to the given counts, what
stands beside the diagonal is the number of false ones, and the entries that scores contradict most are named.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

# A score this far below the mean of its class still counts as confident: a class of equal scores is at its mean.
_SLACK = 1e-6
_BLOCK_ENTRIES = 1 << 22  # scores that are looked at together

_Places = tuple[np.ndarray, np.ndarray]  # label, from 0 in its block, and row of entries


class Found(NamedTuple):
    """Entries that are probably false.

    Attributes:
        rows: int64 (M,).
        columns: Of the label that was given, or, for one that is missing, of that; int64 (M,).
        missing: True where the label was absent; bool (M,).
        better: The column of the class that it probably is instead, -1 of any-of labels; int64 (M,).
        usual: The mean probability of what was given over all samples given the same, float64 (M,).
    """

    rows: np.ndarray
    columns: np.ndarray
    missing: np.ndarray
    better: np.ndarray
    usual: np.ndarray


def join(parts: list[Found]) -> Found:
    """Return all of `parts`, in their order."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Found(none, none, none.astype(bool), none, none.astype(np.float64))
    return Found(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def any_of_issues(
    scores: np.ndarray,
    targets: sp.csc_array,
    unknown: sp.csc_array | None,
    *,
    limits: np.ndarray,
    by_count: bool,
    first: int,
) -> tuple[Found, np.ndarray]:
    """Return the probable errors of independent labels, and their joints (L, 2, 2) int64, given by believed.

    Args:
        scores: Probabilities (N, L).
        targets: (N, L).
        unknown: (N, L), True = unknown.
        limits: Scores (L,) above which a label is believed to hold, and below which it is not.
        by_count: Of those, take as many as the joint says; otherwise, those that are confident.
        first: The column of the first label, for what is returned.
    """
    size = max(_BLOCK_ENTRIES // max(len(scores), 1), 1)
    found, joints = [], [np.zeros((0, 2, 2), dtype=np.int64)]
    for start in range(0, scores.shape[1], size):
        span = slice(start, min(start + size, scores.shape[1]))
        # Of a label all scores together.
        block = np.ascontiguousarray(scores[:, span].T)
        present = _places(targets, span)
        hidden = None if unknown is None else _places(unknown, span)
        issues, joint = _block_issues(block, present, hidden, limits=limits[span], by_count=by_count)
        found.append(issues._replace(columns=issues.columns + first + start))
        joints.append(joint)
    return join(found), np.concatenate(joints)


def _places(matrix: sp.csc_array, span: slice) -> _Places:
    """Return label (from 0) and row of each entry of some columns."""
    starts = matrix.indptr[span.start : span.stop + 1]
    labels = np.repeat(np.arange(span.stop - span.start), np.diff(starts))
    return labels, matrix.indices[starts[0] : starts[-1]].astype(np.int64)


def _block_issues(
    block: np.ndarray,
    present: _Places,
    hidden: _Places | None,
    *,
    limits: np.ndarray,
    by_count: bool,
) -> tuple[Found, np.ndarray]:
    """Return the issues of a block (l, N), and its joints (l, 2, 2)."""
    held = block[present]
    usual = _usual(block, present, hidden)
    believed, doubted = _confident(block, usual)
    counts = _joint_counts(believed, doubted, present, hidden)
    joint = _scaled(counts, _given(block.shape, present, hidden))
    over = block > limits[:, None]
    under = np.flatnonzero(held < limits[present[0]])
    if not by_count:
        over &= believed
        under = under[doubted[present][under]]
    over[present] = False
    if hidden is not None:
        over[hidden] = False
    labels, rows = np.nonzero(over)
    lacking = labels, rows
    wrong = present[0][under], present[1][under]
    if by_count:
        lacking = _lowest(lacking, -block[lacking], joint[:, 0, 1])
        wrong = _lowest(wrong, block[wrong], joint[:, 1, 0])
    columns, samples = (np.concatenate(pair).astype(np.int64) for pair in zip(lacking, wrong, strict=True))
    missing = np.arange(len(samples)) < len(lacking[0])
    none = np.full(len(samples), -1, dtype=np.int64)
    return Found(samples, columns, missing, none, usual[columns, np.where(missing, 0, 1)]), joint


def _usual(block: np.ndarray, present: _Places, hidden: _Places | None) -> np.ndarray:
    """Return the mean of one minus the score of those that lack each label, and of the score of those that have it.

    (l, 2); 2, which no score is, where nobody lacks or has it.
    """
    given = _given(block.shape, present, hidden)
    inside = np.bincount(present[0], weights=block[present], minlength=len(block))
    outside = block.sum(axis=1, dtype=np.float64) - inside
    if hidden is not None:
        outside -= np.bincount(hidden[0], weights=block[hidden], minlength=len(block))
    sums = np.stack([given[:, 0] - outside, inside], axis=1)
    return np.where(given > 0, sums / np.maximum(given, 1), 2.0)


def _confident(block: np.ndarray, usual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where a label confidently holds, and where it confidently does not, bool (l, N) each.

    It does where its score is at least what is usual of those that have it, and does not where one minus the score is
    at least what is usual of those that lack it; where both are so, the greater decides.
    """
    levels = np.maximum(usual, 2 * _SLACK) - _SLACK
    low, high = levels[:, 1], 1.0 - levels[:, 0]
    believed = (block >= low[:, None]) & (block > np.minimum(high, 0.5)[:, None])
    doubted = (block <= high[:, None]) & ~believed
    return believed, doubted


def _given(shape: tuple[int, int], present: _Places, hidden: _Places | None) -> np.ndarray:
    """Return how many known samples lack each label and how many have it, (l, 2)."""
    known = np.full(shape[0], shape[1])
    if hidden is not None:
        known = known - np.bincount(hidden[0], minlength=shape[0])
    positives = np.bincount(present[0], minlength=shape[0])
    return np.stack([known - positives, positives], axis=1)


def _joint_counts(
    believed: np.ndarray,
    doubted: np.ndarray,
    present: _Places,
    hidden: _Places | None,
) -> np.ndarray:
    """Return the counts of given against confidently believed, (l, 2, 2)."""
    counts = np.empty((len(believed), 2, 2), dtype=np.int64)
    for column, confident in enumerate((doubted, believed)):
        inside = np.bincount(present[0][confident[present]], minlength=len(believed))
        counts[:, 1, column] = inside
        counts[:, 0, column] = np.count_nonzero(confident, axis=1) - inside
        if hidden is not None:
            counts[:, 0, column] -= np.bincount(hidden[0][confident[hidden]], minlength=len(believed))
    return counts


def _scaled(counts: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return joints (..., K, K) int64 whose rows add up to what was given (..., K), in the proportions of `counts`.

    The largest remainders are rounded up. Of each class that is given, one entry at least is taken to be right.
    """
    size = counts.shape[-1]
    diagonal = np.arange(size)
    counts = counts.astype(np.float64)
    counts[..., diagonal, diagonal] = np.maximum(counts[..., diagonal, diagonal], 1.0)
    exact = counts / counts.sum(axis=-1, keepdims=True) * given[..., None]
    whole = np.floor(exact)
    remainder = exact - whole
    # Between equal remainders what is right goes first.
    remainder[..., diagonal, diagonal] += 1e-9
    order = np.argsort(np.argsort(-remainder, axis=-1, kind="stable"), axis=-1, kind="stable")
    whole += order < np.round(given - whole.sum(axis=-1))[..., None]
    joint = whole.astype(np.int64)
    alone = (joint[..., diagonal, diagonal] == 0) & (given > 0)
    for place in np.argwhere(alone):
        row = joint[tuple(place)]
        row[row.argmax()] -= 1
        row[place[-1]] += 1
    return joint


def _lowest(places: _Places, values: np.ndarray, counts: np.ndarray) -> _Places:
    """Return of each label the `counts` (l,) entries of the lowest values, equal ones by row."""
    order = np.lexsort((places[1], values, places[0]))
    labels, rows = places[0][order], places[1][order]
    starts = np.searchsorted(labels, np.arange(len(counts)))
    kept = np.arange(len(labels)) - starts[labels] < counts[labels]
    return labels[kept], rows[kept]


def class_issues(scores: np.ndarray, given: np.ndarray, *, by_count: bool) -> tuple[Found, np.ndarray]:
    """Return the probable errors of one exclusive group, and its joint (K, K) int64, given by believed.

    Args:
        scores: Probabilities (N, K).
        given: The class of each sample, -1 where it is not known; (N,).
        by_count: Take as many of each pair of classes as the joint says; otherwise, those that are confident.
    """
    rows, size = np.flatnonzero(given >= 0), scores.shape[1]
    scores, classes = scores[rows].astype(np.float64), given[rows]
    numbers = np.bincount(classes, minlength=size)
    own = np.bincount(classes, weights=scores[np.arange(len(rows)), classes], minlength=size)
    means = np.where(numbers > 0, own / np.maximum(numbers, 1), 2.0)
    confident = scores >= np.maximum(means, 2 * _SLACK) - _SLACK
    # Of several confident classes the most probable.
    believed = np.where(confident.any(axis=1), np.where(confident, scores, -1.0).argmax(axis=1), -1)
    sure = believed >= 0
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (classes[sure], believed[sure]), 1)
    joint = _scaled(counts, numbers)
    false = _furthest(scores, classes, joint) if by_count else sure & (believed != classes)
    best = scores.argmax(axis=1)
    # Where the given class is among the most probable ones, nothing speaks against it.
    false &= scores[np.arange(len(rows)), classes] < scores[np.arange(len(rows)), best]
    chosen = np.flatnonzero(false)
    own, none = classes[chosen], np.zeros(len(chosen), dtype=bool)
    return Found(rows[chosen], own, none, best[chosen], means[own]), joint


def _furthest(scores: np.ndarray, classes: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """Return which samples (N,) are, for some other class, among the joint's number of widest margins."""
    false = np.zeros(len(classes), dtype=bool)
    for mine in range(len(joint)):
        rows = np.flatnonzero(classes == mine)
        for other in np.flatnonzero(joint[mine]):
            if other != mine:
                margin = scores[rows, other] - scores[rows, mine]
                false[rows[np.argsort(-margin, kind="stable")[: joint[mine, other]]]] = True
    return false
