"""Thresholds fitted to scores and what holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlabel.decisions._choose import Costs, choose, choose_together
from mlabel.decisions._curves import Curves, curves_of_columns, join_curves, pooled_curve, with_lower
from mlabel.decisions._even import even_of_columns
from mlabel.decisions._exact import Intervals, best_overlap, climb, interval_of_pool, wrong_groups
from mlabel.decisions._goal import ROW_OBJECTIVES, Goal, make_goal
from mlabel.decisions._pool import filled_curves, fit_pooled, take_columns
from mlabel.decisions.rules import MCut, TopK, best_k, column_sets
from mlabel.decisions.thresholds import DEFAULT, Thresholds
from mlabel.labels import LabelSpace
from mlabel.metrics._blocks import known_positives
from mlabel.metrics.ranking import Checked, check_inputs

# What `exact_match` begins at, besides a common threshold and 0.5: the fewest wrong entries, and the best F1.
_STARTS = ("cost", "f1")


def fit_thresholds(
    scores: Any,
    targets: Any,
    objective: str = "f1",
    *,
    scope: str | None = None,
    space: LabelSpace | None = None,
    mask: Any = None,
    beta: float | None = None,
    floor: float | None = None,
    false_positive_cost: Any = None,
    false_negative_cost: Any = None,
    k: int | Mapping[str, int] | None = None,
    shrink: float | None = None,
    min_positives: int = 1,
) -> Thresholds:
    """Return the thresholds under which the decisions on `scores` are best.

    Objectives, with T true positives among D decided and P positives, of a label with scope `label`, of all entries
    of a group with `group`, and of all any-of labels with `global`:

    - `f1`, `f_beta`: (1 + beta^2) T / (beta^2 P + D). Of labels that is the best macro F-beta there is.
    - `micro_f1`, `micro_f_beta`: the same of all entries together, of which every label, or group, gets the threshold
      that serves the sum best. With scope `global` it is `f_beta`'s.
    - `precision_equals_recall`: D as near to P as can be.
    - `precision_floor`: the highest T with T / D >= `floor`.
    - `recall_floor`: the highest T / D with T / P >= `floor`.
    - `cost`: the least `false_positive_cost` (D - T) + `false_negative_cost` (P - T).
    - `exact_match`: the most rows of which everything that is known is decided rightly; exclusive groups take part
      by their highest score. With `global` that is the best common threshold there is. Else each threshold in turn is
      put where the most rows are right, given the others, until no single one can be bettered: a local optimum, begun
      at the best of several starts, among them 0.5 and the common threshold, so that it is never worse than those.
    - `top_k`, `mcut`: no thresholds, but rules that compare the labels of a row; see `TopK` and `MCut`.

    Of equally good thresholds the highest is taken, and it lies halfway between the lowest score that is decided to
    be positive and the next score below it, so that scores that move a little are decided alike. Where deciding
    nothing is as good, or a floor is out of reach, it is inf. An increasing transform of the scores, one for each
    label where labels have thresholds of their own and one for all else, leaves the decisions as they are, `mcut` and
    the start of `exact_match` at 0.5 apart.

    A label with fewer positives than `min_positives` takes the threshold of its group; a group without any, that of
    all any-of labels; and where there is no positive at all it is 0.5. `Thresholds.source` says which. In
    `exact_match` such labels of a group share a threshold, and take part in the search.

    With `shrink` = s a label chooses by its own samples and as many of its group's as hold s positives: with n
    positives of its own, its weight is n / (n + s). 0 is its own threshold, and the more s, the nearer is its group's.
    It chooses among the scores of its own positives and of 64 of the group's, at even steps of recall. (This is the
    m-estimate, of counts instead of a probability.)

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        objective: See above.
        scope: `label`, `group` or `global`; None: `label`, and `global` for `top_k` and `mcut`.
        space: The columns' meaning; None: one any-of group.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What is unknown counts as if it
            were not there.
        beta: Of `f_beta` and `micro_f_beta`; None: 1.
        floor: Of `precision_floor` and `recall_floor`, above 0 and up to 1.
        false_positive_cost: Of `cost`: a number, or one for each label (L,); None: 1.
        false_negative_cost: The same.
        k: Of `top_k`: a number, or that of each any-of group; None: the one of the highest micro F1.
        shrink: See above; None: 0.
        min_positives: See above; at least 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, an unknown objective or scope, an option that the
            objective does not have, or one out of range.

    References:
        Lipton, Elkan and Naryanaswamy (2014), "Optimal thresholding of classifiers to maximize F1 measure". Dinkelbach
        (1967), "On nonlinear fractional programming", for the micro F-beta. Fan and Lin (2007), "A study on threshold
        selection for multi-label classification", for thresholds in turn. Elkan (2001), "The foundations of
        cost-sensitive learning". Cestnik (1990), "Estimating probabilities: a crucial task in machine learning", for
        the m-estimate.

    Example:
        >>> scores, targets = [[0.9, 0.3], [0.4, 0.2], [0.1, 0.1]], [[1, 1], [0, 1], [0, 0]]
        >>> fit_thresholds(scores, targets).values.round(3)
        array([0.65, 0.15])
        >>> fit_thresholds(scores, targets, "precision_floor", floor=0.9, scope="global").values.round(3)
        array([0.65, 0.65])
    """
    options = {
        "beta": beta,
        "floor": floor,
        "false_positive_cost": false_positive_cost,
        "false_negative_cost": false_negative_cost,
        "k": k,
        "shrink": shrink,
        "min_positives": min_positives,
    }
    checked = check_inputs(scores, targets, mask)
    goal = make_goal(objective, scope, options, num_labels=checked[0].shape[1])
    return fit_goal(checked, goal, space)


def fit_goal(checked: Checked, goal: Goal, space: LabelSpace | None) -> Thresholds:
    """Return what `fit_thresholds` does, of inputs and options that are checked."""
    num_labels = checked[0].shape[1]
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"scores have {num_labels} columns, but the space has {space.num_labels} labels")
    if goal.objective in ROW_OBJECTIVES:
        return _fit_rule(checked, goal, space)
    values, source = _fit_exact(checked, goal, space) if goal.objective == "exact_match" else _fit(checked, goal, space)
    return Thresholds(values, tuple(source.tolist()), space, goal.objective, goal.scope, goal.options)


def _fit_rule(checked: Checked, goal: Goal, space: LabelSpace | None) -> Thresholds:
    if goal.objective == "mcut":
        return Thresholds.of_rule(MCut(goal.scope), checked[0].shape[1], space)
    k = best_k(checked, space, goal.scope) if goal.k is None else goal.k
    return Thresholds.of_rule(TopK(k, goal.scope), checked[0].shape[1], space)


@dataclass(frozen=True)
class _Filled:
    """Thresholds (L,), NaN where there is none yet, and their sources (L,); filled in as fits go on."""

    values: np.ndarray
    source: np.ndarray

    def put(self, columns: np.ndarray, values: np.ndarray | float, source: str) -> None:
        """Set the thresholds of some columns."""
        self.values[columns], self.source[columns] = values, source


def _fit(checked: Checked, goal: Goal, space: LabelSpace | None) -> tuple[np.ndarray, np.ndarray]:
    """Return thresholds (L,) and their sources (L,), from the narrowest scope asked for to the widest needed."""
    filled, any_of, groups = _begin(checked, space)
    if goal.scope == "label":
        _fill_labels(filled, checked, goal, groups=groups)
    if goal.scope == "group" and goal.is_micro:
        _fill_groups_together(filled, checked, goal, groups)
    elif goal.scope in ("label", "group"):
        for columns in groups:
            _fill(filled, columns, checked, goal=goal, source="group")
    _fill(filled, any_of, checked, goal=goal, source="global")
    filled.values[any_of[np.isnan(filled.values[any_of])]] = DEFAULT
    return filled.values, filled.source


def _begin(checked: Checked, space: LabelSpace | None) -> tuple[_Filled, np.ndarray, list[np.ndarray]]:
    """Return empty thresholds, the any-of columns, and those of each any-of group."""
    num_labels = checked[0].shape[1]
    is_any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
    source = np.where(is_any_of, "default", "exclusive").astype(object)
    groups = [columns for _, columns in column_sets(num_labels, space, "group")]
    return _Filled(np.full(num_labels, np.nan), source), np.flatnonzero(is_any_of), groups


def _with_enough(checked: Checked, goal: Goal) -> np.ndarray:
    """Return which labels (L,) have enough positives for a threshold of their own."""
    _, targets, unknown = checked
    counts = np.bincount(known_positives(targets, unknown).indices, minlength=targets.shape[1])
    enough: np.ndarray = counts >= goal.min_positives
    return enough


def _fill_labels(filled: _Filled, checked: Checked, goal: Goal, *, groups: list[np.ndarray]) -> None:
    """Give every any-of label with enough positives its own threshold."""
    enough = _with_enough(checked, goal) & (filled.source != "exclusive")
    columns = np.flatnonzero(enough)
    if goal.objective == "precision_equals_recall":
        filled.put(columns, even_of_columns(checked)[columns], "label")
        return
    if goal.shrink:
        parts = [filled_curves(take_columns(checked, each), goal, _costs_of(goal, each)) for each in groups]
        curves = join_curves([part.take(enough[each]) for part, each in zip(parts, groups, strict=True)])
    else:
        curves = curves_of_columns(checked).take(enough)
    values = curves.thresholds_at(choose(curves, goal, _costs_of(goal, columns)))
    filled.put(columns, values, "label")


def _costs_of(goal: Goal, columns: np.ndarray) -> Costs:
    false_positive, false_negative = goal.costs
    return false_positive[columns], false_negative[columns]


def _fill_groups_together(filled: _Filled, checked: Checked, goal: Goal, groups: list[np.ndarray]) -> None:
    """Give each group that has a positive the threshold with which the F-beta of all entries is best."""
    parts = [take_columns(checked, columns) for columns in groups]
    pooled = [pooled_curve(part) for part in parts]
    curves = join_curves(pooled)
    places = choose_together(curves, goal.beta)
    for columns, part, curve, place in zip(groups, parts, pooled, _local(curves, places), strict=True):
        value = with_lower(curve, int(place[0]), part).thresholds_at(place)[0]
        if not np.isnan(value):
            filled.put(columns, value, "group")


def _local(curves: Curves, places: np.ndarray) -> list[np.ndarray]:
    """Return each segment's place, counted from its own beginning, as an array (1,)."""
    return list(np.where(places >= 0, places - curves.starts[:-1], -1)[:, None])


def _fill(filled: _Filled, columns: np.ndarray, checked: Checked, *, goal: Goal, source: str) -> None:
    """Give the labels of `columns` that have no threshold yet that of all of them together, if it exists."""
    empty = columns[np.isnan(filled.values[columns])]
    if len(empty):
        value = fit_pooled(take_columns(checked, columns), goal, _costs_of(goal, columns))
        if not np.isnan(value):
            filled.put(empty, value, source)


def _fit_exact(checked: Checked, goal: Goal, space: LabelSpace | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the thresholds (L,) of the objective `exact_match`, and their sources (L,)."""
    filled, any_of, _ = _begin(checked, space)
    if not known_positives(*checked[1:])[:, any_of].nnz:
        filled.values[any_of] = DEFAULT
        return filled.values, filled.source
    wrong = wrong_groups(checked, space)
    low, high = interval_of_pool(take_columns(checked, any_of))
    common = best_overlap(low[~wrong], high[~wrong])[0]
    filled.put(any_of, common, "global")
    if goal.scope != "global":
        _fit_in_turn(filled, checked, goal, space=space, wrong=wrong)
    return filled.values, filled.source


def _fit_in_turn(filled: _Filled, checked: Checked, goal: Goal, *, space: LabelSpace | None, wrong: np.ndarray) -> None:
    """Put in the place of a common threshold those of labels or groups that are found in turn."""
    any_of, groups = np.flatnonzero(~np.isnan(filled.values)), _begin(checked, space)[2]
    singles, pools = np.zeros(0, dtype=np.int64), groups
    if goal.scope == "label":
        enough = _with_enough(checked, goal)
        singles = any_of[enough[any_of]]
        pools = [columns[~enough[columns]] for columns in groups]
    pools = [columns for columns in pools if len(columns)]
    shared = [interval_of_pool(take_columns(checked, columns)) for columns in pools]
    first = np.concatenate([singles, [columns[0] for columns in pools]]).astype(np.int64)
    starts = [_fit(checked, replace(goal, objective=name), space)[0][first] for name in _STARTS]
    starts += [filled.values[first], np.full(len(first), DEFAULT)]
    values = climb(Intervals(checked, singles, shared), wrong, np.stack(starts))
    filled.put(singles, values[: len(singles)], "label")
    for columns, value in zip(pools, values[len(singles) :], strict=True):
        filled.put(columns, value, "group")
