"""Thresholds that are judged by samples they were not fitted on, and how much better they looked on those they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import to_numpy
from mlabel.decisions._goal import ROW_OBJECTIVES, Goal, make_goal
from mlabel.decisions.fitting import fit_goal
from mlabel.decisions.rules import column_sets
from mlabel.decisions.thresholds import Thresholds
from mlabel.labels import LabelSpace
from mlabel.metrics.counts import Counts, count_rows
from mlabel.metrics.ranking import Checked, check_inputs
from mlabel.metrics.ratios import nan_mean


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Thresholds fitted on all samples, and how well the same fit does on samples that it has not seen.

    Attributes:
        fitted: Fitted on all samples: the thresholds to use.
        parts: Of each fold, those fitted on the other folds (K of them).
        folds: The fold of each sample (N,).
        in_sample: What the objective is worth under `fitted`: name to number. With scope `label` and `group` it is the
            mean over labels, and over groups, that have a positive. A floor shows precision and recall, the
            better for the objective first; `precision_equals_recall` how near the number decided is to that of
            positives (1: equal); `cost` the cost of a known entry, for which lower is better; `top_k` and `mcut`
            micro F1.
        held_out: The same where each sample is decided by the thresholds of the other folds.
    """

    fitted: Thresholds
    parts: tuple[Thresholds, ...]
    folds: np.ndarray
    in_sample: Mapping[str, float]
    held_out: Mapping[str, float]

    @property
    def values(self) -> np.ndarray:
        """The thresholds of the parts, (K, L)."""
        return np.stack([part.values for part in self.parts])

    @property
    def optimism(self) -> dict[str, float]:
        """By how much what was seen in sample exceeds what held out: name to number."""
        return {name: value - self.held_out[name] for name, value in self.in_sample.items()}

    def decide(self, scores: Any) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L), each sample's by thresholds fitted without it.

        Raises:
            ValueError: scores of another number of samples.
        """
        held = to_numpy(scores)
        if len(held) != len(self.folds):
            raise ValueError(f"scores must be those of the {len(self.folds)} samples of the folds; got {len(held)}")
        return _decide_folds(held, self.parts, self.folds)

    def summary(self) -> str:
        """Return a line for people: each number in sample and held out."""
        shown = (f"{name} {value:.4f}, held out {self.held_out[name]:.4f}" for name, value in self.in_sample.items())
        return f"{self.fitted.objective} by {self.fitted.scope}: in sample " + "; ".join(shown)


def cross_fit_thresholds(
    scores: Any,
    targets: Any,
    objective: str = "f1",
    *,
    scope: str | None = None,
    folds: Any = 5,
    seed: int = 0,
    space: LabelSpace | None = None,
    mask: Any = None,
    beta: float | None = None,
    floor: float | None = None,
    false_positive_cost: Any = None,
    false_negative_cost: Any = None,
    k: int | Mapping[str, int] | None = None,
    shrink: float | None = None,
    min_positives: int = 1,
) -> CrossFit:
    """Return thresholds fitted on all samples, those of each fold fitted on the others, and the optimism of the first.

    `mlabel.evaluate(scores, targets, result.parts, folds=result.folds)` judges every sample by thresholds that it did
    not help to choose.

    Args:
        folds: How many, dealt out at random by `seed`; or the fold of each sample, integers (N,) from 0, such as
            `mlabel.data.stratified_split(targets, (0.2,) * 5)` gives.
        seed: Of the random folds.
        scores, targets, objective, scope, space, mask: See `fit_thresholds`.
        beta, floor, false_positive_cost, false_negative_cost, k, shrink, min_positives: Its options.

    Raises:
        ValueError: fewer than two folds, an empty one, or what `fit_thresholds` refuses.

    References:
        Efron (1986), "How biased is the apparent error rate of a prediction rule?", for the optimism.

    Example:
        >>> scores, targets = np.array([[0.9], [0.8], [0.2], [0.1]]), np.array([[1], [1], [0], [0]])
        >>> result = cross_fit_thresholds(scores, targets, folds=[0, 1, 0, 1])
        >>> result.values.round(2).tolist(), result.folds.tolist(), result.optimism
        ([[0.45], [0.55]], [0, 1, 0, 1], {'macro_f1': 0.0})
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
    rows = check_folds(folds, len(checked[0]), seed)
    fitted = fit_goal(checked, goal, space)
    parts = tuple(fit_goal(_take_rows(checked, rows != fold), goal, space) for fold in range(int(rows.max()) + 1))
    alone = np.zeros(len(rows), dtype=np.int64)
    in_sample, held_out = (
        _measure(checked, goal, space, parts=sets, folds=held) for sets, held in (((fitted,), alone), (parts, rows))
    )
    return CrossFit(fitted, parts, rows, in_sample, held_out)


def check_folds(folds: Any, num_samples: int, seed: int) -> np.ndarray:
    """Return the fold of each sample, int64 (N,): those given, or a number of them dealt out at random.

    Raises:
        ValueError: fewer than two folds, an empty one, or another shape.
    """
    given = to_numpy(folds)
    if given.ndim == 0:
        if not 2 <= int(given) <= num_samples:
            raise ValueError(f"folds must be 2 to the number of samples, {num_samples}; got {folds}")
        return np.random.default_rng(seed).permutation(np.arange(num_samples) % int(given))
    if given.shape != (num_samples,) or given.dtype.kind not in "iu" or given.min() < 0:
        raise ValueError(f"folds must be a number, or integers from 0 of shape ({num_samples},); got {given.shape}")
    sizes = np.bincount(given)
    if len(sizes) < 2 or not sizes.all():
        raise ValueError(f"each of at least two folds needs a sample; they have {sizes.tolist()}")
    return given.astype(np.int64)


def _take_rows(checked: Checked, kept: np.ndarray) -> Checked:
    scores, targets, unknown = checked
    rows = np.flatnonzero(kept)
    missing = None if unknown is None else sp.csr_array(unknown[rows])
    return scores[rows], sp.csr_array(targets[rows]), missing


def _decide_folds(scores: np.ndarray, parts: tuple[Thresholds, ...], folds: np.ndarray) -> np.ndarray:
    decisions = np.empty(scores.shape, dtype=bool)
    for fold in np.unique(folds):
        rows = folds == fold
        decisions[rows] = parts[fold].decide(scores[rows])
    return decisions


def _measure(
    checked: Checked, goal: Goal, space: LabelSpace | None, *, parts: tuple[Thresholds, ...], folds: np.ndarray
) -> dict[str, float]:
    """Return what the objective of a goal is worth under thresholds, name to number."""
    scores, targets, unknown = checked
    labels, rows = count_rows(
        lambda start, stop: _decide_folds(scores[start:stop], parts, folds[start:stop]), targets, unknown
    )
    if goal.objective == "exact_match":
        return {"exact_match": float((rows.fp + rows.fn == 0).mean())}
    pooled = goal.objective in ROW_OBJECTIVES or goal.is_micro or goal.scope == "global"
    any_of = np.concatenate([columns for _, columns in column_sets(scores.shape[1], space, "global")])
    if goal.objective == "cost":
        return {"cost": _mean_cost(labels.take(any_of), goal, any_of)}
    if pooled:
        counts = labels.take(any_of).pooled()
    elif goal.scope == "label":
        counts = labels.take(any_of)
    else:
        groups = [columns for _, columns in column_sets(scores.shape[1], space, "group")]
        counts = _join([labels.take(columns).pooled() for columns in groups])
    prefix = "micro" if pooled else "macro"
    return {f"{prefix}_{name}": value for name, value in _mean_worth(counts, goal).items()}


def _join(parts: list[Counts]) -> Counts:
    if not parts:
        return Counts(*np.zeros((4, 0), dtype=np.int64))
    return Counts(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tp", "fp", "fn", "tn")))


def _mean_cost(counts: Counts, goal: Goal, columns: np.ndarray) -> float:
    """Return the cost of an entry that is known; NaN where none is."""
    false_positive, false_negative = goal.costs
    paid = float(counts.fp @ false_positive[columns] + counts.fn @ false_negative[columns])
    known = int(counts.known.sum())
    return paid / known if known else math.nan


def _mean_worth(counts: Counts, goal: Goal) -> dict[str, float]:
    """Return the means over what has a positive; NaN where nothing has."""
    held = np.flatnonzero(counts.support)
    counts, squared = counts.take(held), goal.beta**2
    precision, recall = counts.tp / np.maximum(counts.predicted, 1), counts.tp / counts.support
    if goal.objective == "precision_floor":
        found = {"recall": recall, "precision": np.where(counts.predicted > 0, precision, np.nan)}
    elif goal.objective == "recall_floor":
        found = {"precision": precision, "recall": recall}
    elif goal.objective == "precision_equals_recall":
        ends = np.sort([counts.predicted, counts.support], axis=0)
        found = {"balance": ends[0] / ends[1]}
    else:
        name = "f_beta" if goal.objective.endswith("f_beta") else "f1"
        found = {name: (1 + squared) * counts.tp / (squared * counts.support + counts.predicted)}
    return {name: nan_mean(values) for name, values in found.items()}
