"""Newton's method for many small convex problems at once: the logistic fits of all labels of a block, and of pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Parameters (S, P) of the problems with these numbers (A,) -> loss (A,), gradient (A, P), curvature (A, P, P).
Sums = tuple[np.ndarray, np.ndarray, np.ndarray]
Evaluate = Callable[[np.ndarray, np.ndarray], Sums]

# What is left to gain by a step, in nats over all samples, below which it is the last one.
TOLERANCE = 1e-10
MOST_STEPS = 200
# A pull, for each sample, so weak that it only speaks where the samples leave a direction open: labels that scores
# separate without a fault have no finite optimum, and scores all far below 0 say nothing of the slope above it.
RIDGE = 1e-8


@dataclass(frozen=True)
class Pull:
    """What draws parameters somewhere: half of (parameters - centre)' precision (parameters - centre) is added.

    Attributes:
        centre: (S, P).
        precision: (S, P, P).
    """

    centre: np.ndarray
    precision: np.ndarray

    @classmethod
    def weak(cls, centre: np.ndarray, samples: np.ndarray) -> Pull:
        """Return the ridge alone, for problems of so many samples (S,)."""
        return cls(centre, ridge(samples, centre.shape[1]))

    def added(self, sums: Sums, theta: np.ndarray, rows: np.ndarray) -> Sums:
        """Return sums with the pull of the problems `rows`."""
        loss, gradient, curvature = sums
        precision = self.precision[rows]
        away = theta - self.centre[rows]
        force = np.einsum("spq,sq->sp", precision, away)
        return loss + (force * away).sum(axis=1) / 2, gradient + force, curvature + precision


def ridge(samples: np.ndarray, num_parameters: int) -> np.ndarray:
    """Return precisions (S, P, P) of the ridge for problems of so many samples (S,)."""
    return RIDGE * np.maximum(samples, 1.0)[:, None, None] * np.eye(num_parameters)


def minimise(evaluate: Evaluate, pull: Pull, slopes: int, start: np.ndarray | None = None) -> np.ndarray:
    """Return the parameters (S, P) at which loss + pull is lowest, the first `slopes` of them 0 or more.

    Newton's steps, halved where they would not go down, on the parameters that are not held at 0 (Bertsekas, 1982,
    "Projected Newton methods for optimization problems with simple constraints").

    Args:
        evaluate: The loss without the pull; convex.
        pull: What is added.
        slopes: How many of the parameters must be 0 or more.
        start: Where to begin; None: at the pull's centre.
    """
    theta = (pull.centre if start is None else start).copy()
    rows = np.arange(len(theta))
    loss, gradient, curvature = pull.added(evaluate(theta, rows), theta, rows)
    scale = np.ones(len(theta))
    for _ in range(MOST_STEPS):
        step, gain = _step(theta[rows], gradient[rows], curvature[rows], slopes)
        last = gain <= TOLERANCE
        theta[rows[last]] = _bounded(theta[rows[last]] - step[last], slopes)
        rows, step = rows[~last], step[~last]
        if not len(rows):
            break
        trial = _bounded(theta[rows] - scale[rows, None] * step, slopes)
        found = pull.added(evaluate(trial, rows), trial, rows)
        # Where sums of many samples are rounded, a step that changes nothing is as good as one that goes down.
        better = found[0] <= loss[rows] + 1e-12 * np.abs(loss[rows])
        taken = rows[better]
        theta[taken] = trial[better]
        loss[taken], gradient[taken], curvature[taken] = (each[better] for each in found)
        scale[taken], scale[rows[~better]] = 1.0, scale[rows[~better]] / 2
    return theta


def _step(theta: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, slopes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Newton's step (A, P) of the parameters that are free, and twice what it is to gain (A,)."""
    held = (theta <= 0) & (gradient > 0)
    held[:, slopes:] = False
    gradient = np.where(held, 0.0, gradient)
    curvature = np.where(held[:, :, None] | held[:, None, :], np.eye(theta.shape[1]), curvature)
    step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
    return step, (gradient * step).sum(axis=1)


def _bounded(theta: np.ndarray, slopes: int) -> np.ndarray:
    theta[:, :slopes] = np.maximum(theta[:, :slopes], 0.0)
    return theta


def logistic_sums(features: list[np.ndarray], theta: np.ndarray, known: np.ndarray | None) -> Sums:
    """Return the sums over samples, for each of w labels, of log(1 + e^eta), with eta linear in the features.

    Args:
        features: Arrays (w, n); where `theta` has one parameter more, it is that of a constant 1.
        theta: (w, P).
        known: (w, n) bool, what enters the sums; None: all.
    """
    eta = theta[:, :1] * features[0]
    for number in range(1, len(features)):
        eta += theta[:, number, None] * features[number]
    if theta.shape[1] > len(features):
        eta += theta[:, -1:]
    small = np.exp(-np.abs(eta))
    rest = 1 / (1 + small)
    loss = np.maximum(eta, 0) - np.log(rest)
    share = np.where(eta >= 0, rest, small * rest)
    if known is not None:
        loss, share, small = loss * known, share * known, small * known
    bend = small * rest * rest
    gradient = np.empty_like(theta)
    curvature = np.empty((*theta.shape, theta.shape[1]))
    weighted = []
    for number, feature in enumerate(features):
        gradient[:, number] = np.einsum("wn,wn->w", share, feature)
        weighted.append(bend * feature)
        for other in range(number + 1):
            curvature[:, number, other] = curvature[:, other, number] = np.einsum(
                "wn,wn->w", weighted[number], features[other]
            )
    if theta.shape[1] > len(features):
        gradient[:, -1] = share.sum(axis=1)
        for number, each in enumerate(weighted):
            curvature[:, number, -1] = curvature[:, -1, number] = each.sum(axis=1)
        curvature[:, -1, -1] = bend.sum(axis=1)
    return loss.sum(axis=1), gradient, curvature
