"""Which of two models is better, and how sure that is: both on the same images, in the same resamples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import binom

from mlabel._checks import as_csr, as_scores, as_unknown, resolve, suggest, to_numpy
from mlabel.labels import Group, LabelSpace
from mlabel.metrics._resampled import Plan, Resampled
from mlabel.metrics.evaluation import _aligned, _shown, check_groups, columns_of_sets, decision_rows, threshold_sets
from mlabel.metrics.intervals import check_level, count_groups, label_dicts, plain_dict, run_resamples
from mlabel.metrics.ratios import check_zero_division
from mlabel.metrics.resamples import Weights, draw_resamples, spread, two_sided


class Difference(NamedTuple):
    """What two models have, and the first less the second: numbers, or arrays (L,).

    Attributes:
        first: Of the first model.
        second: Of the second model.
        difference: first - second.
        low: The lower end of the difference's interval.
        high: The upper end.
        p_value: Two-sided, of no difference: see `compare`.

    Example:
        >>> from mlabel.metrics import compare
        >>> scores = np.array([[0.9], [0.2], [0.8], [0.4]])
        >>> found = compare(scores, 1 - scores, [[1], [0], [1], [0]], metrics=["macro_f1"], resamples=20)
        >>> isinstance(found["macro_f1"], Difference), found["macro_f1"].difference
        (True, 1.0)
    """

    first: Any
    second: Any
    difference: Any
    low: Any
    high: Any
    p_value: Any


@dataclass(frozen=True, eq=False)
class Comparison(Mapping[str, Difference]):
    """What `compare` found; a mapping from metric name to `Difference`.

    Attributes:
        metrics: Metric name to difference; `rating.accuracy` is one of the exclusive group rating.
        per_label: Name to difference of arrays (L,).
        sign_test: (L,) exact p-values of equal accuracy of each label; see `compare`. None with groups.
        resampled: Metric name to the differences in the resamples, (R,).
        names: The L label names that both models have; column numbers where no space was given.
        left_out: `first`, `second` and `targets` to the names that they have and the comparison has not.
        level: Share of the resamples between the ends.
        num_samples: N.
        num_groups: How many were drawn from: N, or the number of groups.

    Example:
        >>> first, second = [[0.9], [0.8], [0.3], [0.1]], [[0.9], [0.2], [0.6], [0.1]]
        >>> found = compare(first, second, [[1], [1], [0], [0]], metrics=["exact_match"])
        >>> print(found.table())
        metric        first  second  difference     low    high  p_value
        exact_match  1.0000  0.5000      0.5000  0.0000  1.0000   0.1359
    """

    metrics: dict[str, Difference]
    per_label: dict[str, Difference]
    sign_test: np.ndarray | None
    resampled: dict[str, np.ndarray]
    names: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]
    level: float
    num_samples: int
    num_groups: int

    def __getitem__(self, key: str) -> Difference:
        if key not in self.metrics:
            hint = "it is one of each label: see per_label" if key in self.per_label else suggest(key, self.metrics)
            raise KeyError(f"no metric {key!r} was measured; {hint}")
        return self.metrics[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __repr__(self) -> str:
        number = len(next(iter(self.resampled.values()), ()))
        return (
            f"Comparison({len(self)} metrics, {len(self.names)} labels, {self.num_samples} samples, {number} "
            f"resamples, level {self.level:g})"
        )

    def table(self) -> str:
        """Return the metrics as text, one a line: name and what `Difference` has."""
        rows = [[name, *(_shown(float(number)) for number in held)] for name, held in self.items()]
        return _aligned([["metric", *Difference._fields], *rows])

    def label_rows(self, metric: str = "f1", *, correction: str = "benjamini_hochberg") -> list[dict[str, Any]]:
        """Return one dictionary a label: name, what `Difference` has, adjusted_p; the smallest p-values first.

        Args:
            metric: A statistic of labels.
            correction: How p-values are adjusted for so many labels: see `adjust_p_values`.

        Raises:
            ValueError: no such statistic of labels, or no such correction.
        """
        held = resolve(metric, self.per_label, "statistic of labels")
        rows = label_dicts(self.names, held)
        for row, adjusted in zip(rows, adjust_p_values(held.p_value, correction).tolist(), strict=True):
            row["adjusted_p"] = None if math.isnan(adjusted) else adjusted
        return [rows[place] for place in np.argsort(held.p_value, kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the resamples as plain lists, numbers and texts, for JSON; NaN is None."""
        return {
            "format": "mlabel.comparison/1",
            "level": self.level,
            "num_samples": self.num_samples,
            "num_groups": self.num_groups,
            "metrics": {name: plain_dict(held) for name, held in self.metrics.items()},
            "names": list(self.names),
            "left_out": {name: list(held) for name, held in self.left_out.items()},
            "per_label": {name: plain_dict(held) for name, held in self.per_label.items()},
            "sign_test": None if self.sign_test is None else self.sign_test.tolist(),
        }


def compare(
    first: Any,
    second: Any,
    targets: Any,
    *,
    thresholds: Any = 0.5,
    mask: Any = None,
    space: LabelSpace | None = None,
    spaces: tuple[LabelSpace, LabelSpace] | None = None,
    folds: Any = None,
    metrics: Iterable[str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    groups: Any = None,
    seed: int = 0,
    zero_division: float = math.nan,
) -> Comparison:
    """Return how two models differ in every metric of `evaluate`, on the same images.

    Both are measured in the same resamples, so that what is easy or hard for both falls out of the difference: its
    interval is far narrower than those of the two figures suggest. The interval is that of `bootstrap`, with what is
    said there of few positives. The p-value is twice the share of resamples in which the sign is not the common one,
    at least 2 / (1 + resamples), so that many labels need many resamples: correction by Holm at 0.05 finds nothing
    in L labels below 40 L resamples.

    `sign_test` has no such bound and is exact for few positives: of the images of which one model decides a label
    right and the other wrong, each is as often the one that is right, if both are equally accurate (McNemar, 1947;
    exact binomial form). It takes images as independent, so there is none with `groups`.

    Models of different vocabularies are compared on the names that both have, and that the targets have: any-of
    labels by name, an exclusive group where all have it with the same labels. `Comparison.left_out` says the rest.

    Args:
        first: Scores (N, L) of the first model, finite: NumPy or torch.
        second: Scores of the second model, in the columns of its own space.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        thresholds: As in `bootstrap`, of both; a tuple of two: of each, in the columns of its space.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown), in the targets' columns.
        space: The meaning of the targets' columns; None: any-of labels, or the first model's space where `spaces` is
            given.
        spaces: Those of the two models' columns. None: both are `space`.
        folds: As in `evaluate`, of both.
        metrics: As in `bootstrap`.
        resamples: As in `bootstrap`.
        level: As in `bootstrap`.
        groups: As in `bootstrap`.
        seed: As in `bootstrap`.
        zero_division: As in `evaluate`.

    Raises:
        ValueError: what `bootstrap` refuses, other numbers of samples, or no label that both models have.

    References:
        Efron and Tibshirani (1993), "An Introduction to the Bootstrap".

    Example:
        >>> cats, dogs = LabelSpace([Group("tags", ["cat", "dog"])]), LabelSpace([Group("tags", ["dog", "cow"])])
        >>> found = compare([[0.9, 0.9]], [[0.2, 0.9]], [[1, 1]], spaces=(cats, dogs), metrics=["macro_f1"])
        >>> found["macro_f1"].difference, found.names, found.left_out["second"]
        (1.0, ('dog',), ('cow',))
    """
    plan = Plan.of(metrics)
    check_level(level)
    shared = _share(space, spaces)
    cut = (shared, as_csr(targets), mask, folds, plan, check_zero_division(zero_division))
    pair = thresholds if isinstance(thresholds, tuple) else (thresholds, thresholds)
    if len(pair) != 2:
        raise ValueError(f"a tuple of thresholds must be of the two models; got {len(pair)}")
    models = [
        _model(held, each, index, *cut) for index, (held, each) in enumerate(zip((first, second), pair, strict=True))
    ]
    num_samples, num_labels = models[0].checked[0].shape
    weights = Weights.of(draw_resamples(num_samples, resamples, groups=groups, seed=seed))

    def difference(values: list[np.ndarray]) -> np.ndarray:
        gap = values[0] - values[1]
        ends = spread(gap, level)
        return np.stack([values[0][..., 0], values[1][..., 0], *ends, two_sided(gap)])

    per_label, (ours, theirs) = run_resamples(models, weights, difference)
    return Comparison(
        metrics={name: Difference(*difference([ours[name], theirs[name]]).tolist()) for name in ours},
        per_label={name: Difference(*arrays) for name, arrays in per_label.items()},
        sign_test=None if groups is not None else _sign_test(*models),
        resampled={name: (ours[name] - theirs[name])[1:] for name in ours},
        names=shared.space.names if shared.space else tuple(str(column) for column in range(num_labels)),
        left_out=shared.left_out,
        level=level,
        num_samples=num_samples,
        num_groups=count_groups(groups, num_samples),
    )


def adjust_p_values(p_values: Any, method: str = "benjamini_hochberg") -> np.ndarray:
    """Return p-values (L,) adjusted for there being so many, to be compared with one level; NaN stay so, uncounted.

    Args:
        p_values: (L,) in [0, 1], or NaN.
        method: `holm`: the chance of any false finding is at most the level, however the tests depend on one another
            (Holm, 1979). `benjamini_hochberg`: of what is found, the share that is false is at most the level on
            average, for tests that are independent or depend positively (Benjamini and Hochberg, 1995).

    Raises:
        ValueError: another shape, p-values outside [0, 1], or an unknown method.

    Example:
        >>> adjust_p_values([0.01, 0.04, float("nan"), 0.03], "holm")
        array([0.03, 0.06,  nan, 0.06])
    """
    adjust = resolve(method, CORRECTIONS, "correction")
    held = to_numpy(p_values).astype(np.float64)
    known = ~np.isnan(held)
    if held.ndim != 1 or not ((held[known] >= 0) & (held[known] <= 1)).all():
        raise ValueError(f"p-values must be of shape (L,) and in [0, 1]; got {held.shape}")
    order = np.argsort(held[known])
    adjusted, found = np.empty(len(order)), np.full(len(held), np.nan)
    adjusted[order] = np.minimum(adjust(held[known][order]), 1)
    found[known] = adjusted
    return found


def _holm(ascending: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(ascending * np.arange(len(ascending), 0, -1))


def _benjamini_hochberg(ascending: np.ndarray) -> np.ndarray:
    scaled = ascending * len(ascending) / np.arange(1, len(ascending) + 1)
    return np.minimum.accumulate(scaled[::-1])[::-1]


CORRECTIONS = {"holm": _holm, "benjamini_hochberg": _benjamini_hochberg}


@dataclass(frozen=True)
class _Shared:
    """The space that is compared on, and its columns in those of the models and of the targets; None: all are equal."""

    space: LabelSpace | None
    spaces: tuple[LabelSpace | None, LabelSpace | None]
    columns: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    left_out: dict[str, tuple[str, ...]]


def _share(space: LabelSpace | None, spaces: tuple[LabelSpace, LabelSpace] | None) -> _Shared:
    """Return what two models' spaces and that of the targets have in common."""
    none_out: dict[str, tuple[str, ...]] = {"first": (), "second": (), "targets": ()}
    if spaces is None:
        return _Shared(space, (space, space), None, none_out)
    first, second = spaces
    of_targets = first if space is None else space
    if first == second == of_targets:
        return _Shared(first, (first, first), None, none_out)
    groups = [common_group(group, (second, of_targets)) for group in first.groups]
    held = [group for group in groups if group is not None]
    if not held:
        raise ValueError("the models and the targets have no label in common by which they could be compared")
    shared = LabelSpace(held)
    named = {"first": first, "second": second, "targets": of_targets}
    columns = tuple(np.array([each.index(name) for name in shared.names]) for each in named.values())
    left_out = {title: tuple(name for name in each.names if name not in shared) for title, each in named.items()}
    return _Shared(shared, (first, second), columns, left_out)  # type: ignore[arg-type]


def common_group(group: Group, others: Iterable[LabelSpace]) -> Group | None:
    """Return the part of a group that other spaces have too; of an exclusive group all of it, or None."""
    kept = list(group.labels)
    for other in others:
        if group.exclusive:
            same = any(each.exclusive and set(each.labels) == set(group.labels) for each in other.groups)
            kept = kept if same else []
        else:
            any_of = {name for each in other.groups if not each.exclusive for name in each.labels}
            kept = [name for name in kept if name in any_of]
    return Group(group.name, kept, exclusive=group.exclusive) if kept else None


def _model(
    scores: Any,
    thresholds: Any,
    index: int,
    shared: _Shared,
    targets: sp.csr_array,
    mask: Any,
    folds: Any,
    plan: Plan,
    zero_division: float,
) -> Resampled:
    """Return one of the models on what is shared, ready to be weighted."""
    what = ("first", "second")[index]
    held = as_scores(scores, what)
    if held.shape[0] != targets.shape[0]:
        raise ValueError(f"{what} must have a row for each of the {targets.shape[0]} rows of targets; got {held.shape}")
    sets = threshold_sets(thresholds, folds, held.shape, shared.spaces[index])
    unknown = as_unknown(mask, targets.shape)
    if shared.columns is not None:
        columns, of_targets = shared.columns[index], shared.columns[2]
        held, sets = held[:, columns], columns_of_sets(sets, columns)
        targets = sp.csr_array(targets[:, of_targets])
        unknown = None if unknown is None else as_unknown(sp.csr_array(unknown[:, of_targets]), held.shape)
    if held.shape != targets.shape:
        raise ValueError(f"{what} must be of shape {targets.shape}; got {held.shape}")
    check_groups(targets, unknown, shared.space)
    decisions = decision_rows(held, sets, folds, shared.space)
    return Resampled((held, targets, unknown), decisions, shared.space, plan, zero_division)


def _sign_test(first: Resampled, second: Resampled) -> np.ndarray:
    """Return (L,) the exact p-values of equal accuracy, from the images of which one model is right and one wrong."""
    only_second = _count_more(first.wrong, second.wrong)
    only_first = _count_more(second.wrong, first.wrong)
    rarer, both = np.minimum(only_first, only_second), only_first + only_second
    return np.minimum(2 * binom.cdf(rarer, both, 0.5), 1.0)


def _count_more(these: sp.csr_array, those: sp.csr_array) -> np.ndarray:
    """Return (L,) how many places of `these` (L, N) `those` have not."""
    return np.diff(these.indptr) - np.asarray(these.multiply(those).sum(axis=1)).astype(np.int64)
