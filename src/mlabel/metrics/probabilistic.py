"""Metrics of probabilities as such: Brier score, log loss, expected calibration error.

Scores must be in [0, 1]. They mean something for a label without positives, too, so only a label of which nothing is
known is NaN, and averages leave it out. `micro` takes all entries as those of one label; `weighted` weighs labels by
their positives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlabel._checks import resolve
from mlabel.metrics._binned import ECE_BINS
from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics.ranking import Checked, check_probabilities
from mlabel.metrics.ratios import nan_mean

Elementwise = Callable[[np.ndarray], np.ndarray]


def brier_score(scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro") -> float | np.ndarray:
    """Return the mean of (score - target)² (Brier, 1950); 0 at best.

    Args:
        scores: (N, L) in [0, 1]: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, or None for an array (L,).

    Raises:
        ValueError: scores that are not finite or outside [0, 1], shapes that differ, or an unknown average.

    Example:
        >>> brier_score([[0.5, 1.0], [0.5, 0.5]], [[1, 1], [0, 1]], average=None)
        array([0.25 , 0.125])
    """
    return _averaged(brier_of, check_probabilities(scores, targets, mask), average)


def log_loss(scores: Any, targets: Any, mask: Any = None, *, average: str | None = "macro") -> float | np.ndarray:
    """Return the mean of -log of the probability that was given to what is so (Good, 1952).

    Scores are first brought into [eps, 1 - eps], eps being that of their floating-point type, as in scikit-learn.

    Args:
        scores: (N, L) in [0, 1]: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, or None for an array (L,).

    Raises:
        ValueError: scores that are not finite or outside [0, 1], shapes that differ, or an unknown average.

    Example:
        >>> round(log_loss([[0.5], [0.25]], [[1], [0]]), 4)
        0.4904
    """
    return _averaged(log_loss_of, check_probabilities(scores, targets, mask), average)


def expected_calibration_error(
    scores: Any, targets: Any, mask: Any = None, *, bins: int = ECE_BINS, average: str | None = "macro"
) -> float | np.ndarray:
    """Return how far scores are from the share of positives, bin by bin (Naeini, Cooper and Hauskrecht, 2015).

    The sum over bins of abs(sum of scores - positives), divided by the number of scores. Bin b holds the scores from
    b / bins to below (b + 1) / bins, the last one 1 besides. `micro` pools the bins of all labels.

    Args:
        scores: (N, L) in [0, 1]: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        bins: How many bins of equal width, 1 or more.
        average: micro, macro, weighted, or None for an array (L,).

    Raises:
        ValueError: scores that are not finite or outside [0, 1], shapes that differ, an unknown average, or bins below
            1.

    Example:
        >>> expected_calibration_error([[0.75], [0.75], [0.25]], [[1], [1], [0]], bins=2)
        0.25
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more; got {bins}")

    def measure(checked: Checked) -> tuple[np.ndarray, float]:
        return calibration_error_of(checked, bins)

    return _averaged(measure, check_probabilities(scores, targets, mask), average)


def brier_of(checked: Checked) -> tuple[np.ndarray, float]:
    """Return the Brier score of each label (L,) and of all entries together."""
    return _mean_of(checked, *_brier_losses(checked[0].dtype))


def log_loss_of(checked: Checked) -> tuple[np.ndarray, float]:
    """Return the log loss of each label (L,) and of all entries together."""
    return _mean_of(checked, *_log_losses(checked[0].dtype))


def _brier_losses(_: np.dtype) -> tuple[Elementwise, Elementwise]:
    return np.square, lambda scores: (1 - scores) ** 2


def _log_losses(kind: np.dtype) -> tuple[Elementwise, Elementwise]:
    eps = float(np.finfo(kind).eps)
    return (
        lambda scores: -np.log1p(-np.clip(scores, eps, 1 - eps)),
        lambda scores: -np.log(np.clip(scores, eps, 1 - eps)),
    )


# What a negative's and what a positive's score costs, for scores of a type: metrics that are means of such losses.
ENTRY_LOSSES: dict[str, Callable[[np.dtype], tuple[Elementwise, Elementwise]]] = {
    "brier": _brier_losses,
    "log_loss": _log_losses,
}


def calibration_error_of(checked: Checked, bins: int = ECE_BINS) -> tuple[np.ndarray, float]:
    """Return the expected calibration error of each label (L,) and of all entries together."""
    scores, targets, unknown = checked
    num_labels = scores.shape[1]

    def of_block(start: int, stop: int) -> np.ndarray:
        block = scores[:, start:stop].astype(np.float64)
        cells = cells_of(block, bins) + np.arange(stop - start) * bins
        if unknown is not None:
            block[rows_of(unknown[:, start:stop])] = 0
        return np.bincount(cells.reshape(-1), weights=block.reshape(-1), minlength=(stop - start) * bins)

    size = block_size(scores.shape[0] * 32, most=256)
    parts = list(map_blocks(of_block, blocks(num_labels, size)))
    confidence = np.concatenate([np.zeros(0), *parts]).reshape(num_labels, bins)
    rows, columns = rows_of(known_positives(targets, unknown))
    places = columns * bins + cells_of(scores[rows, columns].astype(np.float64), bins)
    gaps = confidence - np.bincount(places, minlength=num_labels * bins).reshape(num_labels, bins)
    known = _known_counts(checked)
    return _mean(np.abs(gaps).sum(axis=1), known), float(
        _mean(np.abs(gaps.sum(axis=0)).sum()[None], known.sum()[None])[0]
    )


def _averaged(
    measure: Callable[[Checked], tuple[np.ndarray, float]], checked: Checked, average: str | None
) -> float | np.ndarray:
    if average is not None:
        resolve(average, dict.fromkeys(("micro", "macro", "weighted")), "average")
    values, pooled = measure(checked)
    if average is None:
        return values
    if average == "micro":
        return pooled
    if average == "macro":
        return nan_mean(values)
    return nan_mean(values, np.bincount(known_positives(*checked[1:]).indices, minlength=len(values)))


def _mean_of(checked: Checked, absent: Elementwise, present: Elementwise) -> tuple[np.ndarray, float]:
    """Return means over known entries, of each label and of all: what `absent` says of negatives, `present` of others.

    All entries are taken as negatives, block by block; then the few positives are put right.
    """
    scores, targets, unknown = checked
    num_labels = scores.shape[1]

    def of_block(start: int, stop: int) -> np.ndarray:
        block = absent(scores[start:stop].astype(np.float64))
        if unknown is not None:
            block[rows_of(unknown, start, stop)] = 0
        return block.sum(axis=0)

    size = block_size(num_labels * 24, most=max(64, 2**20 // max(1, num_labels)))
    sums = np.zeros(num_labels)
    for part in map_blocks(of_block, blocks(scores.shape[0], size)):
        sums += part
    rows, columns = rows_of(known_positives(targets, unknown))
    held = scores[rows, columns].astype(np.float64)
    sums += np.bincount(columns, weights=present(held) - absent(held), minlength=num_labels)
    known = _known_counts(checked)
    return _mean(sums, known), float(_mean(sums.sum()[None], known.sum()[None])[0])


def cells_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each score, of `bins` of equal width."""
    return np.minimum((scores * bins).astype(np.intp), bins - 1)


def _known_counts(checked: Checked) -> np.ndarray:
    scores, _, unknown = checked
    missing = 0 if unknown is None else np.bincount(unknown.indices, minlength=scores.shape[1])
    return np.full(scores.shape[1], scores.shape[0]) - missing


def _mean(sums: np.ndarray, known: np.ndarray) -> np.ndarray:
    return sums / np.where(known > 0, known, np.nan)
