"""How sure figures are: intervals of every metric, by the bootstrap over images or over groups of them.

Each resample draws as many images as there are, with replacement, and every metric is taken of it. All metrics are of
the same resamples, so that they can be set beside one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlabel._checks import resolve, suggest, to_numpy
from mlabel.labels import LabelSpace
from mlabel.metrics._blocks import map_blocks
from mlabel.metrics._resampled import Plan, Resampled, Sums
from mlabel.metrics.evaluation import _aligned, _plain, _shown, check_groups, decision_rows, threshold_sets
from mlabel.metrics.ranking import check_inputs
from mlabel.metrics.ratios import check_zero_division
from mlabel.metrics.resamples import Weights, draw_resamples, spread


class Interval(NamedTuple):
    """A value and the ends of its interval: numbers, or arrays (L,).

    Attributes:
        value: Of all samples.
        low: The lower end.
        high: The upper end.

    Example:
        >>> from mlabel.metrics import bootstrap
        >>> scores, targets = [[0.9], [0.2], [0.8], [0.4]], [[1], [0], [1], [1]]
        >>> value, low, high = bootstrap(scores, targets, metrics=["macro_f1"], resamples=50)["macro_f1"]
        >>> low <= value <= high
        True
    """

    value: Any
    low: Any
    high: Any


@dataclass(frozen=True, eq=False)
class Intervals(Mapping[str, Interval]):
    """What `bootstrap` found; a mapping from metric name to `Interval`.

    Attributes:
        metrics: Metric name to interval; `rating.accuracy` is one of the exclusive group rating.
        per_label: Name to interval of arrays (L,).
        resampled: Metric name to its values in the resamples, (R,).
        names: The L label names; column numbers where no space was given.
        level: Share of the resamples between the ends.
        num_samples: N.
        num_groups: How many were drawn from: N, or the number of groups.

    Example:
        >>> found = bootstrap([[0.9], [0.8], [0.6], [0.1]], [[1], [1], [0], [0]], metrics=["micro_f1", "exact_match"])
        >>> value, low, high = found["micro_f1"]
        >>> value, low, high
        (0.8, 0.4, 1.0)
        >>> print(found.table())
        metric        value     low    high
        micro_f1     0.8000  0.4000  1.0000
        exact_match  0.7500  0.2500  1.0000
    """

    metrics: dict[str, Interval]
    per_label: dict[str, Interval]
    resampled: dict[str, np.ndarray]
    names: tuple[str, ...]
    level: float
    num_samples: int
    num_groups: int

    def __getitem__(self, key: str) -> Interval:
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
        return f"Intervals({len(self)} metrics, {self.num_samples} samples, {number} resamples, level {self.level:g})"

    def table(self) -> str:
        """Return the metrics as text, one a line: name, value, low, high."""
        rows = [[name, *(_shown(float(number)) for number in held)] for name, held in self.items()]
        return _aligned([["metric", *Interval._fields], *rows])

    def label_rows(self, metric: str = "f1") -> list[dict[str, Any]]:
        """Return one dictionary a label, of the statistic `metric`: name, value, low, high; None where that is NaN.

        Raises:
            ValueError: no such statistic of labels.
        """
        held = resolve(metric, self.per_label, "statistic of labels")
        return label_dicts(self.names, held)

    def to_dict(self) -> dict[str, Any]:
        """Return intervals as plain lists, numbers and texts, for JSON; NaN is None."""
        return {
            "format": "mlabel.intervals/1",
            "level": self.level,
            "num_samples": self.num_samples,
            "num_groups": self.num_groups,
            "metrics": {name: plain_dict(held) for name, held in self.metrics.items()},
            "names": list(self.names),
            "per_label": {name: plain_dict(held) for name, held in self.per_label.items()},
        }


def bootstrap(
    scores: Any,
    targets: Any,
    thresholds: Any = 0.5,
    *,
    mask: Any = None,
    space: LabelSpace | None = None,
    folds: Any = None,
    metrics: Iterable[str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    groups: Any = None,
    seed: int = 0,
    zero_division: float = math.nan,
) -> Intervals:
    """Return an interval for every metric of `evaluate`, from resamples of the images.

    The interval is the percentile one (Efron, 1979): the middle `level` of the metric's values in the resamples. In
    each of them a metric is what `evaluate` says of its rows. Exact but for the `micro_` averages of ranks, where
    positives have more than 1,024 different scores: see `mlabel.metrics`' page.

    It says how far the figure would vary with other images of the same kind; nothing of other training runs. Of a
    label with few positives (fewer than ten or so) it is too narrow, and of a value that no resample can leave (all
    right, so that each resample is) it has no width. A resample without positives of a label has no value for it,
    and is left out there.

    Args:
        scores: (N, L) finite: NumPy or torch; probabilities where thresholds are in [0, 1].
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        thresholds: A number, an array (L,), or an object with such an array in `.values`; (K, L) with `folds`. They
            are taken as given: to be judged on other images than those that they were fitted on.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        space: The columns' meaning and names. None: every column is an any-of label.
        folds: As in `evaluate`.
        metrics: Names of what to measure: any number of `evaluate`, also those that `include=` names there, and
            statistics of labels (`ap`, `mcc`). None: those that `evaluate` measures always; `COUNT_METRICS` are the
            ones of decisions, which take a tenth of the time. Exclusive groups and the precision, recall, F1, Jaccard
            and accuracy of labels are always measured.
        resamples: How many.
        level: Share of resamples within the interval, above 0 and below 1.
        groups: What each image belongs to, (N,), such as the person: groups are drawn instead of images. Without it,
            images that belong together make intervals too narrow.
        seed: Of the resamples; see `draw_resamples`.
        zero_division: As in `evaluate`.

    Raises:
        ValueError: what `evaluate` refuses, an unknown metric, or a level, a number of resamples or groups that
            cannot be.

    Example:
        >>> found = bootstrap([[0.9], [0.8], [0.6], [0.1]], [[1], [1], [0], [0]], resamples=100)
        >>> found["macro_recall"], found.per_label["precision"].low.round(2)
        (Interval(value=1.0, low=1.0, high=1.0), array([0.33]))
    """
    plan = Plan.of(metrics)
    check_level(level)
    model = prepare(scores, targets, thresholds, mask, space, folds, plan, zero_division)
    num_samples, num_labels = model.checked[0].shape
    weights = Weights.of(draw_resamples(num_samples, resamples, groups=groups, seed=seed))
    per_label, (found,) = run_resamples([model], weights, lambda values: spread(values[0], level))
    return Intervals(
        metrics={name: Interval(*spread(values, level).tolist()) for name, values in found.items()},
        per_label={name: Interval(*arrays) for name, arrays in per_label.items()},
        resampled={name: values[1:] for name, values in found.items()},
        names=space.names if space is not None else tuple(str(column) for column in range(num_labels)),
        level=level,
        num_samples=num_samples,
        num_groups=count_groups(groups, num_samples),
    )


def prepare(
    scores: Any,
    targets: Any,
    thresholds: Any,
    mask: Any,
    space: LabelSpace | None,
    folds: Any,
    plan: Plan,
    zero_division: float,
) -> Resampled:
    """Return a model ready to be weighted; arguments and errors are those of `bootstrap`."""
    checked = check_inputs(scores, targets, mask)
    sets = threshold_sets(thresholds, folds, checked[0].shape, space)
    check_groups(checked[1], checked[2], space)
    decisions = decision_rows(checked[0], sets, folds, space)
    return Resampled(checked, decisions, space, plan, check_zero_division(zero_division))


def run_resamples(
    models: Sequence[Resampled], weights: Weights, say: Callable[[list[np.ndarray]], np.ndarray]
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Return what is said of the labels, and of each model name to (1 + R,) of its metrics.

    Args:
        models: Of the same labels.
        weights: Of the samples.
        say: Of the values (S, 1 + R) of a statistic, one for each model, what to keep: (k, S).
    """

    def of_block(start: int, stop: int) -> tuple[dict[str, np.ndarray], list[Sums]]:
        found = [model.measure(start, stop, weights) for model in models]
        said = {name: say([values[name] for values, _ in found]) for name in found[0][0]}
        return said, [sums for _, sums in found]

    totals: list[Sums] = [{} for _ in models]
    labels: list[dict[str, np.ndarray]] = []
    for said, parts in map_blocks(of_block, models[0].bounds(weights)):
        labels.append(said)
        for total, part in zip(totals, parts, strict=True):
            for key, sums in part.items():
                total[key] = total[key] + sums if key in total else sums
    per_label = {name: np.concatenate([each[name] for each in labels], axis=1) for name in labels[0]}
    return per_label, [model.finish(total, weights) for model, total in zip(models, totals, strict=True)]


def count_groups(groups: Any, num_samples: int) -> int:
    """Return how many groups there are; without any, each sample is one."""
    return num_samples if groups is None else len(np.unique(to_numpy(groups)))


def label_dicts(names: Sequence[str], held: Any) -> list[dict[str, Any]]:
    """Return one dictionary a label: its name, and the fields of a named tuple of arrays (L,)."""
    columns = held._asdict()
    return [
        {"name": name, **{key: _plain(array[row]) for key, array in columns.items()}} for row, name in enumerate(names)
    ]


def plain_dict(held: Any) -> dict[str, Any]:
    """Return a named tuple of numbers or arrays as a dictionary of numbers or lists, NaN as None."""
    return {key: _plain(v) if np.ndim(v) == 0 else [_plain(each) for each in v] for key, v in held._asdict().items()}


def check_level(level: float) -> None:
    """Raise ValueError unless a level is above 0 and below 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, such as 0.95; got {level!r}")
