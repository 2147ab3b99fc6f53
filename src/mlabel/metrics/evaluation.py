"""Everything that is measured of scores against targets, in one result: numbers, per label, per group, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import resolve, suggest, to_numpy
from mlabel.labels import LabelSpace, decide, row_rule, threshold_values
from mlabel.metrics._blocks import known_positives
from mlabel.metrics._measures import EXTRA_METRICS, LABEL_METRICS, METRICS, Parts
from mlabel.metrics.counts import Counts, DecisionRows, count_rows
from mlabel.metrics.ranking import check_inputs
from mlabel.metrics.ratios import LABEL_AVERAGES, RATIOS, check_zero_division

_GROUP_KEYS = ("accuracy", "mean_class_accuracy")


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """What `evaluate` found; a mapping from metric name to number.

    `result["macro_f1"]` is a number; `result["rating.accuracy"]` is one of the exclusive group rating.

    Attributes:
        metrics: Metric name to number; NaN where there was nothing to measure.
        per_label: Name to an array (L,): support (known positives), predicted (known positive decisions), tp, fp,
            fn, tn, threshold (NaN at exclusive columns), precision, recall, f1, jaccard, accuracy, ap, auroc, and
            what else `include=` named.
        groups: Exclusive group to its accuracy, mean_class_accuracy and num_samples (samples of known class).
        num_samples: N.
        names: The L label names; column numbers where no space was given.

    Example:
        >>> result = evaluate([[0.9, 0.2], [0.6, 0.7]], [[1, 0], [0, 1]])
        >>> result["micro_precision"], result["map"], result.per_label["fp"]
        (0.6666666666666666, 1.0, array([1, 0]))
    """

    metrics: dict[str, float]
    per_label: dict[str, np.ndarray]
    groups: dict[str, dict[str, float]]
    num_samples: int
    names: tuple[str, ...]

    def _flat(self) -> dict[str, float]:
        of_groups = {f"{name}.{key}": held[key] for name, held in self.groups.items() for key in _GROUP_KEYS}
        return {**self.metrics, **of_groups}

    def __getitem__(self, key: str) -> float:
        held = self._flat()
        if key not in held:
            hint = f"; {suggest(str(key), held)}"
            if key in self.per_label:
                hint = "; it is one of each label: see per_label"
            elif key in EXTRA_METRICS:
                hint = "; ask for it with include="
            raise KeyError(f"no metric {key!r} was measured{hint}")
        return held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._flat()

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat())

    def __len__(self) -> int:
        return len(self._flat())

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={self.metrics[key]:.4f}" for key in ("micro_f1", "macro_f1", "map"))
        return f"Evaluation({self.num_samples} samples, {len(self.names)} labels: {shown})"

    def table(self) -> str:
        """Return the metrics as text, one a line: name, number."""
        return comparison_table({"value": self})

    def label_rows(self, sort: str = "column", limit: int | None = None) -> list[dict[str, Any]]:
        """Return one dictionary a label: column, name, and what `per_label` has; None where that is NaN, for CSV.

        Args:
            sort: column (their order), name, or a key of `per_label`: highest first, NaN last.
            limit: How many labels at most; None: all.

        Raises:
            ValueError: an unknown `sort`.
        """
        columns = {"column": np.arange(len(self.names)), "name": np.array(self.names, dtype=object), **self.per_label}
        keys = resolve(sort, columns, "sort")
        # A stable sort of negated numbers: highest first, NaN last, equal ones in column order.
        order = np.argsort(keys if sort in ("column", "name") else -keys.astype(np.float64), kind="stable")
        return [{key: _plain(array[row]) for key, array in columns.items()} for row in order[:limit]]

    def label_table(self, sort: str = "support", limit: int | None = None) -> str:
        """Return a table of the labels as text, one a line; `sort` and `limit` are those of `label_rows`."""
        keys = ("name", "support", "threshold", "precision", "recall", "f1", "ap", "auroc")
        rows = [[_shown(row[key]) for key in keys] for row in self.label_rows(sort, limit)]
        return _aligned([list(keys), *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists, numbers and texts, for JSON; NaN is None, and a threshold of inf "inf"."""
        return {
            "format": "mlabel.evaluation/1",
            "num_samples": self.num_samples,
            "metrics": {key: _plain(value) for key, value in self.metrics.items()},
            "groups": {name: {key: _plain(v) for key, v in held.items()} for name, held in self.groups.items()},
            "names": list(self.names),
            "per_label": {key: [_in_json(value) for value in array] for key, array in self.per_label.items()},
        }


def evaluate(
    scores: Any,
    targets: Any,
    thresholds: Any = 0.5,
    *,
    mask: Any = None,
    space: LabelSpace | None = None,
    folds: Any = None,
    include: Iterable[str] = (),
    zero_division: float = math.nan,
) -> Evaluation:
    """Return every metric of `scores` against `targets`.

    Decisions are `labels.decide`'s: `score >= threshold`, and the highest score in an exclusive group. All columns
    enter the counts, AP, AUROC and exact match; LRAP, coverage error and ranking loss use the any-of columns.
    Work goes in blocks: extra memory stays far below that of the scores.

    Args:
        scores: (N, L) finite: NumPy or torch; probabilities where thresholds are in [0, 1].
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        thresholds: A number, an array (L,), or an object with such an array in `.values`; or a rule of
            `mlabel.decisions` that decides by row.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What is unknown counts as if it
            were not there.
        space: The columns' meaning and names. None: every column is an any-of label.
        folds: For cross-fitted thresholds, the row of `thresholds` (K, L), or the one of K objects, that decides each
            sample, integers (N,). The thresholds that `per_label` shows are then their means. None: one set of
            thresholds for all.
        include: Names of `EXTRA_METRICS` (numbers) and `LABEL_METRICS` (arrays, which go to `per_label`) to measure
            besides: `macro_mcc`, `mcc`, `micro_ece`, `one_error`, `ndcg_at_5`, `macro_precision_at_recall_0.9`, ...
        zero_division: nan leaves labels without positives out of averages, and `num_labels_averaged` says how many
            entered; 0 or 1 is the value of 0/0, and every label enters. See `mlabel.metrics.ratios`.

    Raises:
        ValueError: scores that are not finite, shapes that differ, an unknown name in `include`, scores outside [0, 1]
            where it names a metric of probabilities, or a row with more or fewer than one label of an exclusive group
            that is known.

    Example:
        >>> result = evaluate([[0.5, 0.2], [0.6, 0.7]], [[1, 0], [0, 0]])
        >>> result["macro_recall"], result["num_labels_averaged"], result.per_label["recall"]
        (1.0, 1, array([ 1., nan]))
    """
    zero_division = check_zero_division(zero_division)
    names = check_include(include)
    wanted = {**METRICS, **{name: EXTRA_METRICS[name] for name in names if name in EXTRA_METRICS}}
    checked = check_inputs(scores, targets, mask)
    held, sparse_targets, unknown = checked
    sets = threshold_sets(thresholds, folds, held.shape, space)
    groups = check_groups(sparse_targets, unknown, space)
    labels, samples = count_rows(decision_rows(held, sets, folds, space), sparse_targets, unknown)
    any_of = None if space is None else space.any_of
    parts = Parts(checked, labels, samples, any_of, zero_division, frozenset([*wanted, *names]))
    return Evaluation(
        metrics={name: measure(parts) for name, measure in wanted.items()},
        per_label=_per_label(parts, _mean_levels(sets, held.shape[1])),
        groups={name: _group_metrics(labels.take(span), zero_division) for name, span in groups.items()},
        num_samples=held.shape[0],
        names=space.names if space is not None else tuple(str(column) for column in range(held.shape[1])),
    )


def threshold_sets(thresholds: Any, folds: Any, shape: tuple[int, ...], space: LabelSpace | None) -> list[Any]:
    """Return the thresholds of each fold, or one for all: float64 (L,), NaN at exclusive columns, or a row's rule."""
    given: Any = [thresholds]
    if folds is not None:
        given = thresholds if _are_objects(thresholds) else to_numpy(thresholds)
        _check_folds(len(given) if _are_objects(thresholds) else given.shape, to_numpy(folds), shape)
    return [row_rule(each) or threshold_values(each, shape[1], space) for each in given]


def _are_objects(thresholds: Any) -> bool:
    return isinstance(thresholds, list | tuple) and all(hasattr(each, "decide") for each in thresholds)


def _check_folds(given: int | tuple[int, ...], rows: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse folds that are not of these samples, or of more sets of thresholds than are given."""
    given = (given, shape[1]) if isinstance(given, int) else given
    if len(given) != 2 or rows.shape != shape[:1] or rows.dtype.kind not in "iu":
        raise ValueError(
            f"with folds, thresholds must be of shape (K, {shape[1]}) and folds integers of shape ({shape[0]},); got "
            f"{given} and {rows.dtype} {rows.shape}"
        )
    if len(rows) and not 0 <= rows.min() <= rows.max() < given[0]:
        raise ValueError(f"folds must lie in 0 to {given[0] - 1}; got {rows.min()} to {rows.max()}")


def columns_of_sets(sets: list[Any], columns: np.ndarray) -> list[Any]:
    """Return what `threshold_sets` gave, for some columns only; a rule compares what is left."""
    return [each if row_rule(each) is not None else each[columns] for each in sets]


def decision_rows(scores: np.ndarray, sets: list[Any], folds: Any, space: LabelSpace | None) -> DecisionRows:
    """Return what decides rows start to stop of the scores, by what `threshold_sets` gave."""
    rows = None if folds is None else to_numpy(folds)

    def decide_block(start: int, stop: int) -> np.ndarray:
        block = scores[start:stop]
        if rows is None:
            return decide(block, sets[0], space)
        decisions = np.empty(block.shape, dtype=bool)
        for fold in np.unique(rows[start:stop]):
            held = rows[start:stop] == fold
            decisions[held] = decide(block[held], sets[fold], space)
        return decisions

    return decide_block


def _mean_levels(sets: list[Any], num_labels: int) -> np.ndarray:
    """Return the mean thresholds (L,); NaN of rules, which have none."""
    by_value = [each for each in sets if row_rule(each) is None]
    return np.mean(by_value, axis=0) if by_value else np.full(num_labels, np.nan)


def comparison_table(columns: Mapping[str, Mapping[str, float]], keys: Iterable[str] | None = None) -> str:
    """Return a text with one metric a line: its name, then one number a column, aligned, under a header.

    Args:
        columns: Title to an `Evaluation`, or to any mapping from metric name to number.
        keys: The metrics, in order. None: all that any column has. What a column lacks is nan there.

    Example:
        >>> print(comparison_table({"prior": {"macro_f1": 0.12}, "at 0.5": {"macro_f1": 0.912}}))
        metric     prior  at 0.5
        macro_f1  0.1200  0.9120
    """
    if keys is None:
        keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[key, *(_shown(column.get(key, math.nan)) for column in columns.values())] for key in keys]
    return _aligned([["metric", *columns], *rows])


def check_include(include: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return the names of metrics to measure besides.

    Args:
        include: The names.
        known: Those that there are; empty: those of `evaluate`.

    Raises:
        TypeError: one string instead of a list of names.
        ValueError: an unknown name.
    """
    if isinstance(include, str):
        raise TypeError(f"include must be a list of metric names; got the string {include!r}")
    names = list(include)
    table = dict.fromkeys(known or (*METRICS, *EXTRA_METRICS, *LABEL_METRICS))
    for name in names:
        resolve(name, table, "metric")
    return names


def _per_label(parts: Parts, levels: np.ndarray) -> dict[str, np.ndarray]:
    ratios = {name: parts.ratio(name) for name in ("precision", "recall", "f1", "jaccard", "accuracy")}
    numbers = {name: getattr(parts.labels, name) for name in ("support", "predicted", "tp", "fp", "fn", "tn")}
    asked = {name: measure(parts) for name, measure in LABEL_METRICS.items() if name in parts.wanted}
    usual = {name: parts.curves[name] for name in ("ap", "auroc")}
    return {**numbers, "threshold": levels, **ratios, **usual, **asked}


def _group_metrics(counts: Counts, zero_division: float) -> dict[str, float]:
    # Exactly one class holds and one is decided, so a class's recall is the share of its samples that are right.
    num_samples = int(counts.support.sum())
    return {
        "accuracy": int(counts.tp.sum()) / num_samples if num_samples else math.nan,
        "mean_class_accuracy": LABEL_AVERAGES["macro"](RATIOS["recall"], counts, zero_division),
        "num_samples": num_samples,
    }


def check_groups(targets: sp.csr_array, unknown: sp.csr_array | None, space: LabelSpace | None) -> dict[str, slice]:
    """Return the exclusive groups' columns, having seen that each known row has exactly one label of each."""
    spans = {} if space is None else {group.name: space.slices[group.name] for group in space.exclusive_groups}
    positives = known_positives(targets, unknown) if spans else targets
    for name, span in spans.items():
        held = positives[:, span].sum(axis=1)
        missing = np.zeros(len(held)) if unknown is None else unknown[:, span].sum(axis=1)
        bad = np.flatnonzero((held > 1) | ((held == 0) & (missing == 0)))
        if len(bad):
            raise ValueError(
                f"group {name!r} is exclusive, so a row that is known has one of its labels; row {bad[0]} has "
                f"{int(held[bad[0]])} ({len(bad)} such rows); mark rows without one as unknown"
            )
    return spans


def _plain(value: Any) -> Any:
    """Return a NumPy or Python number as a Python one, NaN as None, and anything else as it is."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _in_json(value: Any) -> Any:
    """Return a number as JSON has it: NaN as None, and what is infinite as text."""
    held = _plain(value)
    return str(held) if isinstance(held, float) and math.isinf(held) else held


def _shown(value: Any) -> str:
    if value is None:
        return "nan"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> str:
    """Return rows as lines: the first cell to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)
