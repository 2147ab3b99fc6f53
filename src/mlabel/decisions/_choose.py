"""Which candidate of a curve an objective takes: one formula for each, over all segments at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlabel.decisions._curves import Curves
from mlabel.decisions._goal import Goal

# The worth of each candidate (C,), and of deciding nothing (S,).
Worth = tuple[np.ndarray, np.ndarray]
Costs = tuple[np.ndarray, np.ndarray]


def choose(curves: Curves, goal: Goal, costs: Costs) -> np.ndarray:
    """Return the place of each segment's best candidate (S,); -1 where nothing is to be decided.

    Of equally good ones it is the highest.

    Args:
        curves: The candidates.
        goal: The objective.
        costs: Of a false positive and of a false negative of each segment, two arrays (S,).
    """
    if goal.is_micro:
        return choose_together(curves, goal.beta)
    return pick_highest(curves, *_WORTH[goal.objective](curves, goal, costs))


def pick_highest(curves: Curves, worth: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """Return the place of each segment's last candidate of the highest worth; -1 where nothing is worth as much."""
    places = np.full(len(curves.positives), -1, dtype=np.int64)
    lengths = np.diff(curves.starts)
    held = np.flatnonzero(lengths)
    if len(held):
        top = np.maximum.reduceat(worth, curves.starts[held])
        last = np.where(worth == np.repeat(top, lengths[held]), np.arange(len(worth)), -1)
        places[held] = np.where(top > nothing[held], np.maximum.reduceat(last, curves.starts[held]), -1)
    return places


def choose_together(curves: Curves, beta: float) -> np.ndarray:
    """Return the places (S,) of which the F-beta of all segments together is highest.

    F-beta is a ratio, (1 + beta^2) T / (beta^2 P + D), with T and D summed over segments. It reaches a level just if
    (1 + beta^2) T - level D, which each segment can maximise alone, reaches level beta^2 P; the level is raised to
    what was reached until it stays (Dinkelbach, 1967).
    """
    level, best = 0.0, np.full(len(curves.positives), -1, dtype=np.int64)
    nothing = np.zeros(len(best))
    while True:
        places = pick_highest(curves, (1 + beta**2) * curves.right - level * curves.decided, nothing)
        held = places[places >= 0]
        if not len(held):
            return best
        reached = (1 + beta**2) * curves.right[held].sum()
        reached = float(reached / (beta**2 * curves.positives.sum() + curves.decided[held].sum()))
        if reached < level:
            return best
        best = places
        if reached == level:
            return best
        level = reached


def _f_beta(curves: Curves, goal: Goal, costs: Costs) -> Worth:
    squared = goal.beta**2
    worth = (1 + squared) * curves.right / (squared * curves.spread(curves.positives) + curves.decided)
    return worth, np.zeros(len(curves.positives))


def _precision_floor(curves: Curves, goal: Goal, costs: Costs) -> Worth:
    met = curves.right / curves.decided >= goal.floor
    return np.where(met, curves.right, -1), np.zeros(len(curves.positives))


def _recall_floor(curves: Curves, goal: Goal, costs: Costs) -> Worth:
    met = curves.right / curves.spread(curves.positives) >= goal.floor
    return np.where(met, curves.right / curves.decided, -1), np.full(len(curves.positives), -1.0)


def _cost(curves: Curves, goal: Goal, costs: Costs) -> Worth:
    false_positive, false_negative = costs
    wrong = curves.decided - curves.right
    missed = curves.spread(curves.positives) - curves.right
    paid = curves.spread(false_positive) * wrong + curves.spread(false_negative) * missed
    return -paid, -false_negative * curves.positives


_WORTH: dict[str, Callable[[Curves, Goal, Costs], Worth]] = {
    "f1": _f_beta,
    "f_beta": _f_beta,
    "precision_floor": _precision_floor,
    "recall_floor": _recall_floor,
    "cost": _cost,
}
