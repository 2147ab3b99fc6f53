"""What thresholds are fitted for: the objective with its options, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlabel._checks import check_between, check_positive, resolve, to_numpy

OBJECTIVES = {
    "f1": "the F1 score of each label (macro), group or all",
    "f_beta": "the same of F-beta with `beta`: recall counts beta times as much as precision",
    "micro_f1": "the F1 score of all entries together, with a threshold for each label or group",
    "micro_f_beta": "the same of F-beta with `beta`",
    "exact_match": "the share of rows of which every label is right",
    "precision_equals_recall": "as many decided positive as there are positives",
    "precision_floor": "the highest recall with a precision of at least `floor`",
    "recall_floor": "the highest precision with a recall of at least `floor`",
    "cost": "the least cost, of `false_positive_cost` and `false_negative_cost`",
    "top_k": "the `k` highest scores of each row; without `k` the one of the highest micro F1",
    "mcut": "in each row the scores above the widest gap",
}
SCOPES = {"label": "one for each label", "group": "one for each any-of group", "global": "one for all any-of labels"}
# What decides by row has no thresholds, and no scope of a label's own.
ROW_OBJECTIVES = ("top_k", "mcut")
_SMOOTHED = ("f1", "f_beta", "micro_f1", "micro_f_beta", "precision_floor", "recall_floor", "cost")
# The objectives that know each option; None: not given.
_KNOWN_BY = {
    "beta": ("f_beta", "micro_f_beta"),
    "floor": ("precision_floor", "recall_floor"),
    "false_positive_cost": ("cost",),
    "false_negative_cost": ("cost",),
    "k": ("top_k",),
    "shrink": _SMOOTHED,
}


@dataclass(frozen=True)
class Goal:
    """An objective with its scope and options; see `fit_thresholds`. None: not given.

    Attributes:
        costs: Of a false positive and of a false negative, two arrays (L,); ones for other objectives than `cost`.
    """

    objective: str
    scope: str
    beta: float
    floor: float
    k: Any
    shrink: float
    min_positives: int
    costs: tuple[np.ndarray, np.ndarray]
    options: dict[str, Any]

    @property
    def is_micro(self) -> bool:
        """Whether thresholds are chosen together, for the F-beta of all entries."""
        return self.objective.startswith("micro")


def check_objective(objective: str, scope: str | None, options: Mapping[str, Any]) -> None:
    """Refuse what `fit_thresholds` would refuse before it sees scores.

    Args:
        objective: As in `fit_thresholds`.
        scope: As in `fit_thresholds`.
        options: Name to value of its other options, such as `{"floor": 0.9}`.

    Raises:
        ValueError: an unknown name, an option that the objective does not have, or one out of range.

    Example:
        >>> check_objective("f1", "local", {})
        Traceback (most recent call last):
        ...
        ValueError: unknown scope 'local'; did you mean 'global'? Known: global, group, label
    """
    for name in options:
        resolve(name, dict.fromkeys((*_KNOWN_BY, "min_positives")), f"option of objective {objective!r}")
    costs = (np.shape(options[name]) for name in options if name.endswith("_cost"))
    make_goal(objective, scope, options, num_labels=max((shape[0] for shape in costs if shape), default=1))


def make_goal(objective: str, scope: str | None, options: Mapping[str, Any], *, num_labels: int) -> Goal:
    """Return the goal of an objective, a scope and the options of `fit_thresholds`.

    Raises:
        ValueError: an unknown objective or scope, an option that the objective does not have, or one out of range.
    """
    resolve(objective, OBJECTIVES, "objective")
    scope = _check_scope(objective, scope)
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        known = _KNOWN_BY.get(name, (objective,))
        if objective not in known:
            raise ValueError(
                f"{name} is for objective {_listed(known)}; objective {objective!r} has none, and {value!r} was given"
            )
    if "floor" not in given and objective.endswith("floor"):
        raise ValueError(f"objective {objective!r} needs floor=, the least {objective.split('_')[0]} wanted, above 0")
    _check_ranges(given, scope)
    costs = tuple(
        _cost(given.get(name, 1.0), name, num_labels) for name in ("false_positive_cost", "false_negative_cost")
    )
    return Goal(
        objective,
        scope,
        beta=float(given.get("beta", 1.0)),
        floor=float(given.get("floor", 1.0)),
        k=given.get("k"),
        shrink=float(given.get("shrink", 0.0)),
        min_positives=given.get("min_positives", 1),
        costs=(costs[0], costs[1]),
        options={name: _plain(value) for name, value in given.items() if (name, value) != ("min_positives", 1)},
    )


def _check_scope(objective: str, scope: str | None) -> str:
    by_row = objective in ROW_OBJECTIVES
    if scope is None:
        return "global" if by_row else "label"
    resolve(scope, SCOPES, "scope")
    if by_row and scope == "label":
        raise ValueError(
            f"objective {objective!r} compares the labels of a row, so a label has none of its own; choose scope "
            "'global' or 'group'"
        )
    return scope


def _check_ranges(given: dict[str, Any], scope: str) -> None:
    for name in ("beta", "floor", "min_positives"):
        if name in given:
            check_positive(given[name], name)
    if "floor" in given:
        check_between(given["floor"], 0, 1, "floor")
    shrink = given.get("shrink", 0.0)
    check_between(shrink, 0, np.finfo(np.float64).max, "shrink")
    if shrink and scope != "label":
        raise ValueError(f"shrink moves a label's threshold towards its group's; with scope {scope!r} there is none")


def _cost(value: Any, name: str, num_labels: int) -> np.ndarray:
    cost = np.asarray(to_numpy(value), dtype=np.float64)
    if cost.shape not in ((), (num_labels,)):
        raise ValueError(f"{name} must be a number or of shape ({num_labels},); got {cost.shape}")
    if not (np.isfinite(cost).all() and (cost >= 0).all()):
        raise ValueError(f"{name} must be finite and not negative; got {cost.min():g}")
    return np.broadcast_to(cost, (num_labels,))


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names) if len(names) < 4 else f"one of {', '.join(names)}"


def _plain(value: Any) -> Any:
    """Return an option as numbers and lists, for JSON."""
    return to_numpy(value).tolist() if not isinstance(value, dict) else {n: int(v) for n, v in value.items()}
