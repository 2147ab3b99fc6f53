"""How often labels occur where nobody has labelled: from the probabilities of a model that was fitted elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlabel._checks import as_scores, as_unknown
from mlabel.decisions.calibration import _pieces, as_shares
from mlabel.labels import LabelSpace
from mlabel.metrics._blocks import block_size, blocks, rows_of
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.ranking import refuse_outside

# Shares that move less than this are found.
_NEAR = 1e-10
_MOST_STEPS = 100_000


def estimate_priors(
    probabilities: Any, priors: Any, *, space: LabelSpace | None = None, mask: Any = None
) -> np.ndarray:
    """Return the shares (L,) under which unlabelled images look as they do, by maximum likelihood.

    It is where the steps of expectation maximisation lead: images' probabilities are brought to the shares believed
    in, and their mean is the next belief. For exclusive groups these steps are taken; for an any-of label the
    likelihood has one unknown, and its peak is found by bisection. Give the result to `Calibration.shifted`. The
    probabilities must be calibrated where `priors` are the shares, and images of a label must look alike there and
    here (label shift); nothing tells whether they do.

    Args:
        probabilities: (N, L) in [0, 1], of the new images.
        priors: Shares (L,), above 0 and below 1, where the model was fitted and calibrated.
        space: The columns' meaning; None: every column is an any-of label.
        mask: None, dense bool (N, L) (True: is to be counted) or sparse bool (True: is not).

    Raises:
        ValueError: probabilities or priors out of range, or shapes that differ.

    References:
        Saerens, Latinne and Decaestecker (2002), "Adjusting the outputs of a classifier to new a priori
        probabilities: a simple procedure".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> held = rng.random(4000) < 0.1
        >>> likelihood_ratio = np.exp(2 * np.where(held, rng.normal(1, 1, 4000), rng.normal(-1, 1, 4000)))
        >>> bool(abs(estimate_priors((likelihood_ratio / (1 + likelihood_ratio))[:, None], [0.5])[0] - 0.1) < 0.02)
        True
    """
    held = as_scores(probabilities, "probabilities")
    refuse_outside(held)
    num_labels = held.shape[1]
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"probabilities have {num_labels} columns, but the space has {space.num_labels} labels")
    before = as_shares(priors, num_labels, "priors")
    if (before <= 0).any() or (before >= 1).any():
        raise ValueError("priors must be above 0 and below 1; leave out labels that never or always hold")
    unknown = as_unknown(mask, held.shape)
    result = before.copy()
    for span, exclusive in _pieces(space, num_labels, len(held)):
        known = np.ones((len(held), span.stop - span.start), dtype=bool)
        if unknown is not None:
            known[rows_of(unknown[:, span])] = False
        if exclusive:
            result[span] = _of_group(held[known.all(axis=1), span], before[span])
        else:
            for start, stop in blocks(span.stop - span.start, block_size(len(held) * 64, most=64)):
                few = slice(span.start + start, span.start + stop)
                block = _gather_columns(held, few.start, few.stop).astype(np.float64)
                result[few] = _of_labels(block, known[:, start:stop].T, before[few])
    return result


def _of_labels(probabilities: np.ndarray, known: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Return the shares (w,) of any-of labels from probabilities (w, n): where the likelihood's slope is 0."""
    present, absent = probabilities / priors[:, None], (1 - probabilities) / (1 - priors[:, None])
    gap = np.where(known, present - absent, 0.0)
    absent = np.where(known, absent, 1.0)
    low, high = np.zeros(len(priors)), np.ones(len(priors))
    for _ in range(50):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            slope = (gap / (absent + middle[:, None] * gap)).sum(axis=1)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    found = (low + high) / 2
    return np.where(known.any(axis=1) & (gap != 0).any(axis=1), found, priors)


def _of_group(probabilities: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Return the shares (K,) of an exclusive group's classes, by expectation maximisation."""
    if not len(probabilities):
        return priors
    ratios = probabilities.astype(np.float64) / priors
    shares = priors / priors.sum()
    for _ in range(_MOST_STEPS):
        joint = ratios * shares
        after = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(after - shares).max()
        shares = after
        if moved < _NEAR:
            break
    return shares
