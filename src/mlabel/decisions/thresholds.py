"""Thresholds: fitted to scores, kept with what they mean, saved and read back.

The rule is always `score >= threshold`. Exclusive groups are decided by their highest score and have no thresholds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, check_positive, resolve, to_numpy
from mlabel._files import read_json, to_json, write_atomically
from mlabel.decisions._search import best_of_columns, best_pooled
from mlabel.labels import LabelSpace, decide, threshold_values
from mlabel.metrics.ranking import Checked, check_inputs

FORMAT = "mlabel.thresholds/1"
OBJECTIVES = {"f1": "the F1 score", "f_beta": "F-beta with `beta`: recall counts beta times as much as precision"}
SCOPES = {"label": "one for each label", "group": "one for each any-of group", "global": "one for all any-of labels"}
SOURCES = ("label", "group", "global", "default", "exclusive")
DEFAULT = 0.5


@dataclass(frozen=True, eq=False)
class Thresholds:
    """One threshold a label, with what it was fitted for.

    Attributes:
        values: (L,) float64, read-only; NaN at the columns of exclusive groups.
        source: For each label what its threshold was fitted on: `label`, `group` or `global`; `default` where nothing
            could be fitted (0.5), `exclusive` where there is none.
        space: The columns' meaning; None: every column is an any-of label.
        objective: What they were fitted for.
        scope: What was to have a threshold of its own.

    Raises:
        ValueError: values, sources and space of different lengths, or NaN at an any-of column.

    Example:
        >>> Thresholds(np.array([0.2, 0.7]), ("label", "label")).decide([[0.5, 0.5]])
        array([[ True, False]])
    """

    values: np.ndarray
    source: tuple[str, ...]
    space: LabelSpace | None = None
    objective: str = "f1"
    scope: str = "label"

    def __post_init__(self) -> None:
        values = threshold_values(self.values, len(self.source), self.space)
        for source in self.source:
            resolve(source, dict.fromkeys(SOURCES), "source of a threshold")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "source", tuple(self.source))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def names(self) -> tuple[str, ...]:
        """The label names; column numbers where there is no space."""
        return self.space.names if self.space else tuple(str(column) for column in range(len(self)))

    def decide(self, scores: Any) -> np.ndarray:
        """Return decisions (N, L) bool for scores (N, L); see `mlabel.labels.decide`."""
        return decide(scores, self.values, self.space)

    def save(self, path: str | Path) -> None:
        """Write the thresholds as JSON to the file `path`; `load` reads it."""
        rows = zip(self.names, self.values.tolist(), self.source, strict=True)
        labels = [{"name": n, "threshold": None if v != v else v, "source": s} for n, v, s in rows]
        data = {"format": FORMAT, "objective": self.objective, "scope": self.scope, "labels": labels}
        write_atomically(path, to_json({**data, "space": self.space.to_dict() if self.space else None}))

    @classmethod
    def load(cls, path: str | Path, space: LabelSpace | None = None) -> Thresholds:
        """Return the thresholds saved in the file `path`.

        Args:
            path: The file.
            space: The space that they must be of; None: any.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is not what `save` wrote.
            ValueError: they are of another space; the first difference is shown.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path}: thresholds of format {FORMAT!r} were wanted")
        try:
            held = None if data["space"] is None else LabelSpace.from_dict(data["space"])
            values = [
                float("nan") if each["threshold"] is None else float(each["threshold"]) for each in data["labels"]
            ]
            source = tuple(each["source"] for each in data["labels"])
            loaded = cls(np.array(values), source, held, data["objective"], data["scope"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not thresholds: {error}") from error
        if space is not None:
            if held is None:
                raise ValueError(f"{path}: these thresholds were saved without a label space, so theirs is not known")
            space.check_same(held, str(path))
        return loaded

    def to_csv(self, path: str | Path) -> None:
        """Write `name,threshold,source` lines to the file `path`; the threshold of an exclusive label is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "threshold", "source"])
        for name, value, source in zip(self.names, self.values.tolist(), self.source, strict=True):
            writer.writerow([name, "" if value != value else repr(value), source])
        write_atomically(path, text.getvalue())


def fit_thresholds(
    scores: Any,
    targets: Any,
    objective: str = "f1",
    *,
    scope: str = "label",
    space: LabelSpace | None = None,
    mask: Any = None,
    beta: float = 1.0,
    min_positives: int = 1,
) -> Thresholds:
    """Return the thresholds under which the decisions on `scores` are best.

    With scope `label` the F-beta of each label is the highest that any threshold gives, so macro F-beta is; with
    `group` and `global` it is the pooled (micro) F-beta of the group's or of all any-of labels. Of equally good
    thresholds the highest is taken, and it lies halfway between the lowest score that is decided to be positive and
    the next score below it, so that scores that move a little are decided alike.

    A label with fewer positives than `min_positives` takes the threshold of its group; a group without any, that of
    all any-of labels; and where there is no positive at all it is 0.5. `Thresholds.source` says which.

    Args:
        scores: (N, L) finite: NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        objective: `f1`, or `f_beta` with `beta`.
        scope: `label`, `group` or `global`.
        space: The columns' meaning; None: one any-of group.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What is unknown counts as if it
            were not there.
        beta: Of `f_beta`.
        min_positives: See above; at least 1.

    Raises:
        ValueError: scores that are not finite, shapes that differ, or an unknown objective or scope.

    References:
        Lipton, Elkan and Naryanaswamy (2014), "Optimal thresholding of classifiers to maximize F1 measure".

    Example:
        >>> thresholds = fit_thresholds([[0.9, 0.3], [0.4, 0.2], [0.1, 0.1]], [[1, 1], [0, 1], [0, 0]])
        >>> thresholds.values.round(3)
        array([0.65, 0.15])
    """
    resolve(objective, OBJECTIVES, "objective")
    resolve(scope, SCOPES, "scope")
    check_positive(beta, "beta")
    check_positive(min_positives, "min_positives")
    if objective == "f1" and beta != 1.0:
        raise ValueError(f"beta is for objective 'f_beta'; objective 'f1' has none, and {beta} was given")
    checked = check_inputs(scores, targets, mask)
    if space is not None and space.num_labels != checked[0].shape[1]:
        raise ValueError(f"scores have {checked[0].shape[1]} columns, but the space has {space.num_labels} labels")
    values, source = _fit(checked, scope, space, beta, min_positives)
    return Thresholds(values, tuple(source.tolist()), space, objective, scope)


def cross_fit_thresholds(
    scores: Any,
    targets: Any,
    objective: str = "f1",
    *,
    scope: str = "label",
    folds: Any = 5,
    seed: int = 0,
    space: LabelSpace | None = None,
    mask: Any = None,
    beta: float = 1.0,
    min_positives: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each fold the thresholds fitted on the other folds (K, L), and the fold of each sample (N,).

    `mlabel.evaluate(scores, targets, levels, folds=folds)` then judges every sample by thresholds it did not help to
    choose.

    Args:
        folds: How many, dealt out at random by `seed`; or the fold of each sample, integers (N,) from 0, such as
            `mlabel.data.stratified_split(targets, (0.2,) * 5)` gives.
        seed: Of the random folds.
        scores, targets, objective, scope, space, mask, beta, min_positives: See `fit_thresholds`.

    Raises:
        ValueError: fewer than two folds, an empty one, or what `fit_thresholds` refuses.

    Example:
        >>> scores, targets = np.array([[0.9], [0.8], [0.2], [0.1]]), np.array([[1], [1], [0], [0]])
        >>> levels, folds = cross_fit_thresholds(scores, targets, folds=[0, 1, 0, 1])
        >>> levels.round(2).tolist(), folds.tolist()
        ([[0.45], [0.55]], [0, 1, 0, 1])
    """
    held, sparse_targets, unknown = check_inputs(scores, targets, mask)
    rows = _folds(folds, len(held), seed)
    levels = []
    for fold in range(int(rows.max()) + 1):
        others = np.flatnonzero(rows != fold)
        fitted = fit_thresholds(
            held[others],
            sparse_targets[others],
            objective,
            scope=scope,
            space=space,
            mask=None if unknown is None else unknown[others],
            beta=beta,
            min_positives=min_positives,
        )
        levels.append(fitted.values)
    return np.stack(levels), rows


def _folds(folds: Any, num_samples: int, seed: int) -> np.ndarray:
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


def _fit(
    checked: Checked, scope: str, space: LabelSpace | None, beta: float, min_positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return thresholds (L,) and their sources (L,), from the narrowest scope asked for to the widest needed."""
    num_labels = checked[0].shape[1]
    any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
    values = np.full(num_labels, np.nan)
    source = np.where(any_of, "default", "exclusive").astype(object)
    if scope == "label":
        found = best_of_columns(*checked, beta)
        fitted = any_of & (found.positives >= min_positives)
        values[fitted], source[fitted] = found.values[fitted], "label"
    if scope in ("label", "group"):
        for columns in _any_of_columns(num_labels, space):
            _fill(values, source, columns, checked, beta, "group")
    _fill(values, source, np.flatnonzero(any_of), checked, beta, "global")
    values[any_of & np.isnan(values)] = DEFAULT
    return values, source


def _any_of_columns(num_labels: int, space: LabelSpace | None) -> Iterator[np.ndarray]:
    groups = (None,) if space is None else tuple(group for group in space.groups if not group.exclusive)
    for group in groups:
        span = slice(0, num_labels) if group is None or space is None else space.slices[group.name]
        yield np.arange(span.start, span.stop)


def _fill(
    values: np.ndarray, source: np.ndarray, columns: np.ndarray, checked: Checked, beta: float, name: str
) -> None:
    """Give the labels of `columns` that have no threshold yet that of all of them together, if it exists."""
    empty = columns[np.isnan(values[columns])]
    if not len(empty):
        return
    # A slice is a view; only where exclusive columns stand between is a copy needed.
    is_run = len(columns) == columns[-1] - columns[0] + 1
    picked: Any = slice(int(columns[0]), int(columns[-1]) + 1) if is_run else columns
    scores, targets, unknown = checked
    value = best_pooled(
        scores[:, picked],
        sp.csr_array(targets[:, picked]),
        None if unknown is None else sp.csr_array(unknown[:, picked]),
        beta,
    ).values[0]
    if not np.isnan(value):
        values[empty], source[empty] = value, name
