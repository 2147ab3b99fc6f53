"""One threshold for all entries of some columns, and labels whose evidence is filled up from their group's."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel.decisions._choose import Costs, choose, pick_highest
from mlabel.decisions._curves import (
    Curves,
    count_at_levels,
    curves_of_columns,
    pooled_curve,
    with_lower,
)
from mlabel.decisions._even import even_pooled
from mlabel.decisions._goal import Goal
from mlabel.metrics._blocks import blocks, known_positives, rows_of
from mlabel.metrics.ranking import Checked

# A label with shrinkage chooses among its own positives' scores and so many of its group's.
LEVELS = 64


def take_columns(checked: Checked, columns: np.ndarray) -> Checked:
    """Return scores, targets and unknown of some ascending columns; a run of them is a view of the scores."""
    scores, targets, unknown = checked
    if len(columns) == scores.shape[1]:
        return checked
    is_run = len(columns) > 0 and len(columns) == columns[-1] - columns[0] + 1
    picked: Any = slice(int(columns[0]), int(columns[-1]) + 1) if is_run else columns
    missing = None if unknown is None else sp.csr_array(unknown[:, picked])
    return scores[:, picked], sp.csr_array(targets[:, picked]), missing


def fit_pooled(checked: Checked, goal: Goal, costs: Costs) -> float:
    """Return the best threshold for all entries together; NaN where none is positive.

    Args:
        checked: Scores, targets and unknown of the columns.
        goal: The objective.
        costs: Of a false positive and of a false negative of each column, two arrays (K,).
    """
    if goal.objective == "precision_equals_recall":
        return even_pooled(checked)
    curve = pooled_curve(checked)
    place = choose_pooled(curve, checked, goal, costs)
    return float(with_lower(curve, int(place[0]), checked).thresholds_at(place)[0])


def choose_pooled(curve: Curves, checked: Checked, goal: Goal, costs: Costs) -> np.ndarray:
    """Return the place (1,) of the best candidate of a pooled curve."""
    if goal.objective == "cost" and any(np.ptp(each) for each in costs):
        return pick_highest(curve, *_weighted_cost(curve, checked, costs))
    return choose(curve, goal, (costs[0][:1], costs[1][:1]))


def _weighted_cost(curve: Curves, checked: Checked, costs: Costs) -> tuple[np.ndarray, np.ndarray]:
    """Return the negative cost at each candidate, and of deciding nothing, where labels cost differently.

    Every entry is looked up among the candidates, in blocks of rows: slower than where the costs are equal.
    """
    scores, targets, unknown = checked
    false_positive, false_negative = costs
    positives = known_positives(targets, unknown)
    levels = np.unique(curve.scores)
    wrong, found = np.zeros((2, len(levels) + 1))
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, scores.shape[1]))):
        place = levels.searchsorted(scores[start:stop], side="right")  # how many candidates decide the entry
        paid = np.broadcast_to(false_positive, place.shape).copy()
        rows, columns = rows_of(positives, start, stop)
        found += np.bincount(place[rows, columns], false_negative[columns], len(levels) + 1)
        paid[rows, columns] = 0.0
        if unknown is not None:
            paid[rows_of(unknown, start, stop)] = 0.0
        wrong += np.bincount(place.reshape(-1), paid.reshape(-1), len(levels) + 1)
    missed = found.cumsum()[:-1]  # below each candidate
    spent = wrong[1:][::-1].cumsum()[::-1] + missed
    return -spent[levels.searchsorted(curve.scores)], np.array([-found.sum()])


def filled_curves(checked: Checked, goal: Goal, costs: Costs) -> Curves:
    """Return the curves of the columns of one group, each with the group's evidence added to its own.

    To a label's own samples are added as many of the group's as hold `shrink` positives: its true positives at a
    threshold are T + shrink T_group / P_group, and so are all its counts. Of its own positives n and these, its weight
    is n / (n + shrink).
    """
    own, group = curves_of_columns(checked), pooled_curve(checked)
    if not len(group.scores):
        return own
    best = choose_pooled(group, checked, goal, costs)
    group = with_lower(group, int(best[0]), checked)
    places = _spread_places(group, int(best[0]))
    offered = _offered(group, places, int(best[0]), own, count_at_levels(checked, group.scores[places]))
    return _merged(own, offered, group, goal.shrink)


def _spread_places(group: Curves, best: int) -> np.ndarray:
    """Return the places of at most `LEVELS` of the group's candidates, at even steps of its recall, and its best."""
    first = np.flatnonzero(np.diff(group.scores, prepend=-np.inf) != 0)  # of equal scores one
    steps = np.unique(np.linspace(0, len(first) - 1, min(LEVELS, len(first))).round().astype(np.int64))
    places = first[steps]
    if best >= 0:
        places = np.append(places[group.scores[places] != group.scores[best]], best)
    return np.sort(places)


def _offered(group: Curves, places: np.ndarray, best: int, own: Curves, decided: np.ndarray) -> Curves:
    """Return each label's own counts at the group's candidates; the group's best has its threshold, others theirs."""
    scores = group.scores[places]
    lower = np.where(places == best, group.lower[places], scores)
    right = np.stack([stop - start - own.scores[start:stop].searchsorted(scores) for start, stop in _spans(own)])
    num_segments, number = len(own.positives), len(places)
    return Curves(
        np.arange(num_segments + 1) * number,
        np.tile(scores, num_segments),
        np.tile(lower, num_segments),
        right.reshape(-1),
        decided.reshape(-1),
        own.positives,
    )


def _spans(curves: Curves) -> list[tuple[int, int]]:
    return list(zip(curves.starts[:-1].tolist(), curves.starts[1:].tolist(), strict=True))


def _merged(own: Curves, offered: Curves, group: Curves, shrink: float) -> Curves:
    """Return both kinds of candidates in one curve a label, with the group's counts added; its own stand first."""
    segment = np.concatenate([each.spread(np.arange(len(own.positives))) for each in (own, offered)])
    scores = np.concatenate([own.scores, offered.scores])
    kind = np.repeat([0, 1], [len(own.scores), len(offered.scores)])
    order = np.lexsort((kind, scores, segment))
    place = group.scores.searchsorted(scores)  # a label's positives are among its group's
    share = shrink / int(group.positives[0])
    lower = np.concatenate([own.lower.astype(np.float64), offered.lower])
    right = np.concatenate([own.right, offered.right]) + share * group.right[place]
    decided = np.concatenate([own.decided, offered.decided]) + share * group.decided[place]
    starts = own.starts + offered.starts
    return Curves(starts, scores[order], lower[order], right[order], decided[order], own.positives + shrink)
