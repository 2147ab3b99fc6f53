"""Calibration: logits in, probabilities out that are as often right as they say.

A calibration is a chain of maps from logits to logits, after which `sigmoid` or, in an exclusive group, `softmax` gives
the probability. Of any-of labels every map rises with the logit, so that calibrating never changes which of two images
a label's score is higher for. It does change how the labels of one image compare, and, in exclusive groups,
`vector` may change which class is highest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import expit, softmax

from mlabel._checks import DataError, as_scores, check_between, resolve, to_numpy
from mlabel._files import read_json, to_json, write_atomically
from mlabel.decisions._isotonic import fit_isotonic
from mlabel.decisions._maps import MAPS, LogitMap, SlopeMap
from mlabel.decisions._slopes import AnyOfData, Evidence, as_slopes, fit_classes, fit_labels, fit_pools
from mlabel.decisions.cross_fitting import check_folds
from mlabel.labels import LabelSpace
from mlabel.metrics._blocks import block_size, blocks, map_blocks
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.ranking import Checked, check_inputs

FORMAT = "mlabel.calibration/1"
CALIBRATION_METHODS = {
    "temperature": "slope x logit",
    "platt": "slope x logit + offset",
    "beta": "low log p - high log(1 - p) + offset",
    "isotonic": "any curve that never falls",
}
EXCLUSIVE_METHODS = {"temperature": "slope x logit", "vector": "a slope and an offset for each class"}
CALIBRATION_SCOPES = {
    "label": "a map for each label, drawn to that of its group",
    "group": "a map for each any-of group",
    "global": "a map for all any-of labels",
}
SHRINKAGE = 10.0
_MAX_BYTES = 2**28  # of a file: the curves of many labels are long


@dataclass(frozen=True, eq=False)
class Calibration:
    """Maps from logits to probabilities.

    It takes logits, as the model gives them, and not probabilities; `logits_of` makes those of these.

    Attributes:
        num_labels: L.
        steps: The maps, in the order in which they are applied; none: the probabilities as the model says them.
        space: The columns' meaning; None: every column is an any-of label.
        method: What it was made by, for a reader.

    Raises:
        ValueError: a space of another number of labels.

    Example:
        >>> calibration = Calibration(2).shifted([0.5, 0.5], [0.1, 0.5])
        >>> calibration.apply([[0.0, 0.0]]).round(3)
        array([[0.1, 0.5]])
    """

    num_labels: int
    steps: tuple[LogitMap, ...] = ()
    space: LabelSpace | None = None
    method: str = "none"

    def __post_init__(self) -> None:
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be 1 or more; got {self.num_labels}")
        if self.space is not None and self.space.num_labels != self.num_labels:
            raise ValueError(f"num_labels is {self.num_labels}, but the space has {self.space.num_labels} labels")

    def apply(self, logits: Any) -> np.ndarray:
        """Return probabilities (N, L) for logits (N, L), in blocks of columns; float64 for float64, else float32.

        Args:
            logits: (N, L) finite: NumPy or torch.

        Raises:
            ValueError: logits that are not finite, or of another number of labels.
        """
        held = as_scores(logits, "logits")
        if held.shape[1] != self.num_labels:
            raise ValueError(f"logits have {held.shape[1]} columns, but the calibration has {self.num_labels} labels")
        result = np.empty_like(held)

        def of_piece(number: int, _: int) -> None:
            span, exclusive = pieces[number]
            block = self._mapped(_gather_columns(held, span.start, span.stop).astype(np.float64), span, exclusive)
            result[:, span] = (softmax(block, axis=0) if exclusive else expit(block)).T

        pieces = list(_pieces(self.space, self.num_labels, len(held)))
        for _ in map_blocks(of_piece, blocks(len(pieces), 1)):
            pass
        return result

    def _mapped(self, block: np.ndarray, span: slice, exclusive: bool) -> np.ndarray:
        for step in self.steps:
            block = step.of_block(block, span, exclusive)
        return block

    def shifted(self, old: Any, new: Any) -> Calibration:
        """Return the calibration for data in which the labels occur `new` often, where here they occur `old` often.

        It is exact where images of a label look as before and only how many there are has changed (label shift). An
        any-of label's log odds move by logit(new) - logit(old), the classes of a group by log(new / old).

        Args:
            old: Shares (L,) above 0 and below 1, such as `counts / known_counts` of the data the model was fitted to.
            new: Shares (L,), such as `estimate_priors` gives; 0 and 1 are allowed.

        Raises:
            ValueError: shares of another number of labels or out of range.

        References:
            Saerens, Latinne and Decaestecker (2002), "Adjusting the outputs of a classifier to new a priori
            probabilities: a simple procedure".

        Example:
            >>> Calibration(1).shifted([0.5], [0.2]).apply([[0.0]])
            array([[0.2]])
        """
        before, after = as_shares(old, self.num_labels, "old"), as_shares(new, self.num_labels, "new")
        any_of = np.ones(self.num_labels, dtype=bool) if self.space is None else self.space.any_of
        if ((before <= 0) | (any_of & (before >= 1))).any():
            column = int(np.flatnonzero((before <= 0) | (any_of & (before >= 1)))[0])
            raise ValueError(f"old shares must be above 0 and below 1; label {column} has {before[column]:g}")
        # A share of 0 or 1 is the nearest that still has finite log odds.
        after = np.clip(after, 1e-300, 1 - 2**-53)
        gain = np.log(after / before) - np.where(
            any_of, np.log1p(-after) - np.log1p(-np.minimum(before, 1 - 2**-53)), 0
        )
        return self.offset_by(gain)

    def offset_by(self, offset: Any) -> Calibration:
        """Return the calibration with `offset`, finite numbers (L,), added to the logits after all its maps.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        held = np.array(to_numpy(offset), dtype=np.float64)
        if held.shape != (self.num_labels,):
            raise ValueError(f"offset must be of shape ({self.num_labels},); got {held.shape}")
        return replace(self, steps=(*self.steps, SlopeMap.straight(np.ones(self.num_labels), held)))

    def raw_thresholds(self, thresholds: Any) -> np.ndarray:
        """Return thresholds (L,) on the model's own probabilities that decide as `thresholds` do on calibrated ones.

        For programs that know nothing of the calibration. At the columns of exclusive groups they are NaN.

        Args:
            thresholds: (L,), or an object with such an array in `.values`.

        Raises:
            TypeError: a sparse matrix.
        """
        wanted = np.array(to_numpy(getattr(thresholds, "values", thresholds)), dtype=np.float64)
        low, high = np.full(self.num_labels, -40.0), np.full(self.num_labels, 40.0)
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.apply(middle[None])[0] >= wanted
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        raw = np.where(high >= 40.0, np.inf, np.where(low <= -40.0, 0.0, expit(high)))
        return np.where(np.isnan(wanted), np.nan, raw)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain lists and texts, for JSON; `from_dict` reads it."""
        steps = [{"kind": step.kind, **step.to_dict()} for step in self.steps]
        space = self.space.to_dict() if self.space else None
        return {"format": FORMAT, "method": self.method, "num_labels": self.num_labels, "steps": steps, "space": space}

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """Return the calibration that `to_dict` described as `data`.

        Raises:
            DataError: not of that form.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"a calibration of format {FORMAT!r} was wanted")
        try:
            space = None if data["space"] is None else LabelSpace.from_dict(data["space"])
            number = data["num_labels"]
            if type(number) is not int:
                raise ValueError(f"num_labels must be a whole number; got {number!r}")
            steps = tuple(resolve(each["kind"], MAPS, "map").from_dict(each, number) for each in data["steps"])
            return cls(number, steps, space, str(data["method"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise DataError(f"not a calibration: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the calibration as JSON to the file `path`; `load` reads it."""
        write_atomically(path, to_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path, space: LabelSpace | None = None) -> Calibration:
        """Return the calibration saved in the file `path`.

        Args:
            path: The file.
            space: The space that it must be of; None: any.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is not what `save` wrote.
            ValueError: it is of another space; the first difference is shown.
        """
        try:
            loaded = cls.from_dict(read_json(path, most=_MAX_BYTES))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if space is not None:
            if loaded.space is None:
                raise ValueError(f"{path}: this calibration was saved without a label space, so its is not known")
            space.check_same(loaded.space, str(path))
        return loaded


def fit_calibration(
    logits: Any,
    targets: Any,
    method: str = "platt",
    *,
    scope: str = "label",
    exclusive: str = "temperature",
    shrinkage: float = SHRINKAGE,
    space: LabelSpace | None = None,
    mask: Any = None,
) -> Calibration:
    """Return the calibration that fits `targets` best, by their likelihood; `isotonic` is also best by squared error.

    With scope `label`, rare labels are drawn to the map of their group. Evidence is a label's positives or negatives,
    whichever are fewer; `shrinkage` says how much of it the group's map is worth. For the maps with parameters it is a
    normal prior around those of the group, whose precision is the curvature of the group's loss for so much evidence
    (a unit-information prior, Kass and Wasserman, 1995); isotonic curves are mixed in the proportion
    evidence : shrinkage. A label without any evidence has the group's map, or, where the prior is one of parameters,
    one that is lower or higher by what its negatives or positives say. A group without positives or negatives is left
    as it is.

    Args:
        logits: (N, L) finite: NumPy or torch. Of probabilities: `logits_of(probabilities, space)`.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        method: For any-of labels: `temperature` (Guo et al., 2017), `platt` (Platt, 1999), `beta` (Kull, Silva Filho
            and Flach, 2017) or `isotonic` (Zadrozny and Elkan, 2002). Slopes are never below 0.
        scope: `label`, `group` or `global`; of any-of labels.
        exclusive: For exclusive groups, one map each: `temperature`, or `vector` (vector scaling, Guo et al., 2017),
            whose classes are drawn to the temperature in the same way, each by its images.
        shrinkage: See above; 0: each label by itself, those without evidence by their group's map.
        space: The columns' meaning; None: one any-of group.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What is unknown counts as if it
            were not there; an image of which something in an exclusive group is unknown, or which has no class of it,
            says nothing of that group.

    Raises:
        ValueError: logits that are not finite, shapes that differ, or an unknown method or scope.

    References:
        Platt (1999), "Probabilistic outputs for support vector machines and comparisons to regularized likelihood
        methods". Zadrozny and Elkan (2002), "Transforming classifier scores into accurate multiclass probability
        estimates". Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks". Kull, Silva
        Filho and Flach (2017), "Beyond sigmoids: how to obtain well-calibrated probabilities from binary classifiers
        with beta calibration". Kass and Wasserman (1995), "A reference Bayesian test for nested hypotheses and its
        relationship to the Schwarz criterion".

    Example:
        >>> logits, targets = [[3.0], [2.0], [1.0], [0.0]], [[1], [0], [1], [0]]
        >>> fit_calibration(logits, targets, "isotonic", shrinkage=0).apply(logits).ravel()
        array([1. , 0.5, 0.5, 0. ])
    """
    resolve(method, CALIBRATION_METHODS, "calibration method")
    resolve(scope, CALIBRATION_SCOPES, "calibration scope")
    resolve(exclusive, EXCLUSIVE_METHODS, "calibration method of exclusive groups")
    check_between(shrinkage, 0, 1e12, "shrinkage")
    checked = check_inputs(logits, targets, mask)
    num_labels = checked[0].shape[1]
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"logits have {num_labels} columns, but the space has {space.num_labels} labels")
    steps: list[LogitMap] = []
    slopes = [np.ones(num_labels), np.ones(num_labels), np.zeros(num_labels)]
    pools = _pools(space, num_labels, scope)
    if pools and method == "isotonic":
        own = scope == "label"
        steps.append(fit_isotonic(checked, pools, Evidence.of(checked), per_label=own, shrinkage=shrinkage))
    elif pools:
        columns = np.flatnonzero(np.ones(num_labels, dtype=bool) if space is None else space.any_of)
        for held, found in zip(slopes, _fit_slopes(checked, method, scope, pools, shrinkage), strict=True):
            held[columns] = found[columns]
    _fit_exclusive(checked, space, exclusive, shrinkage, slopes)
    if method != "isotonic" or (space is not None and space.exclusive_groups):
        steps.append(SlopeMap(*slopes))
    return Calibration(num_labels, tuple(steps), space, method)


def cross_fit_calibration(
    logits: Any,
    targets: Any,
    method: str = "platt",
    *,
    folds: Any = 5,
    seed: int = 0,
    scope: str = "label",
    exclusive: str = "temperature",
    shrinkage: float = SHRINKAGE,
    space: LabelSpace | None = None,
    mask: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, L), each image's by maps fitted on the other folds, and the fold of each image (N,).

    What is measured of them is not flattered by maps that have seen the image.

    Args:
        folds: How many, dealt out at random by `seed`; or the fold of each image, integers (N,) from 0, such as
            `mlabel.data.stratified_split(targets, (0.2,) * 5)` gives.
        seed: Of the random folds.
        logits, targets, method, scope, exclusive, shrinkage, space, mask: See `fit_calibration`.

    Raises:
        ValueError: fewer than two folds, an empty one, or what `fit_calibration` refuses.

    Example:
        >>> logits, targets = np.array([[2.0], [1.0], [-1.0], [-2.0]]), np.array([[1], [0], [1], [0]])
        >>> probabilities, folds = cross_fit_calibration(logits, targets, "isotonic", folds=[0, 0, 1, 1], shrinkage=0)
        >>> probabilities.ravel().tolist(), folds.tolist()
        ([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    """
    held, sparse_targets, unknown = check_inputs(logits, targets, mask)
    rows = check_folds(folds, len(held), seed)
    result = np.empty_like(held)
    for fold in range(int(rows.max()) + 1):
        mine, others = np.flatnonzero(rows == fold), np.flatnonzero(rows != fold)
        fitted = fit_calibration(
            held[others],
            sparse_targets[others],
            method,
            scope=scope,
            exclusive=exclusive,
            shrinkage=shrinkage,
            space=space,
            mask=None if unknown is None else unknown[others],
        )
        result[mine] = fitted.apply(held[mine])
    return result, rows


def logits_of(probabilities: Any, space: LabelSpace | None = None) -> np.ndarray:
    """Return logits (N, L) of probabilities: log odds of any-of labels, logarithms in exclusive groups.

    `space.probabilities` of them is what came. A probability of 0 or 1 is taken for the nearest one to it that its type
    tells apart from it, so that all are finite.

    Args:
        probabilities: (N, L) in [0, 1]: NumPy or torch.
        space: The columns' meaning; None: every column is an any-of label.

    Raises:
        ValueError: not finite, or outside [0, 1].

    Example:
        >>> logits_of([[0.5, 0.25]]).round(4)
        array([[ 0.    , -1.0986]])
    """
    held = as_scores(probabilities, "probabilities")
    if held.size and not (held.min() >= 0 and held.max() <= 1):
        raise ValueError(f"probabilities must be in [0, 1]; they go from {held.min()} to {held.max()}")
    if space is not None and space.num_labels != held.shape[1]:
        raise ValueError(f"probabilities have {held.shape[1]} columns, but the space has {space.num_labels} labels")
    kind = np.finfo(held.dtype)
    result = np.clip(held, kind.tiny, 1 - kind.epsneg)
    for span, exclusive in _pieces(space, held.shape[1], len(held)):
        part = result[:, span]
        result[:, span] = np.log(part) if exclusive else np.log(part) - np.log1p(-part)
    return result


def as_shares(values: Any, num_labels: int, what: str) -> np.ndarray:
    """Return shares (L,) in [0, 1] as float64.

    Raises:
        ValueError: of another shape, or outside [0, 1].
    """
    held = np.array(to_numpy(values), dtype=np.float64)
    if held.shape != (num_labels,) or not ((held >= 0) & (held <= 1)).all():
        raise ValueError(f"{what} must be shares in [0, 1] of shape ({num_labels},); got {held}")
    return held


def _pieces(space: LabelSpace | None, num_labels: int, num_samples: int) -> Iterator[tuple[slice, bool]]:
    """Yield blocks of any-of columns and whole exclusive groups, and which of the two each is."""
    size = block_size(max(1, num_samples) * 8 * 4, most=4096)
    groups = () if space is None else space.groups
    for group in groups:
        span = space.slices[group.name] if space is not None else slice(0)
        if group.exclusive:
            yield span, True
        else:
            yield from ((slice(span.start + a, span.start + b), False) for a, b in blocks(len(group), size))
    if space is None:
        yield from ((slice(a, b), False) for a, b in blocks(num_labels, size))


def _pools(space: LabelSpace | None, num_labels: int, scope: str) -> list[list[slice]]:
    """Return for each pool of any-of labels its runs of columns."""
    if space is None:
        return [[slice(0, num_labels)]]
    runs = [space.slices[group.name] for group in space.groups if not group.exclusive]
    return [runs] if scope == "global" and runs else [[run] for run in runs]


def _fit_slopes(
    checked: Checked, method: str, scope: str, pools: list[list[slice]], shrinkage: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data, evidence = AnyOfData(checked, method), Evidence.of(checked)
    fitted = fit_pools(data, pools, evidence)
    pool_of = np.zeros(len(evidence.known), dtype=np.int64)
    for number, pool in enumerate(pools):
        for run in pool:
            pool_of[run] = number
    theta = fitted.theta[pool_of]
    if scope == "label":
        runs = [run for pool in pools for run in pool]
        theta = fit_labels(data, runs, pool_of, fitted, evidence=evidence, shrinkage=shrinkage)
    return as_slopes(theta, method)


def _fit_exclusive(
    checked: Checked, space: LabelSpace | None, method: str, shrinkage: float, slopes: list[np.ndarray]
) -> None:
    """Put slopes and offsets of the exclusive groups into (L,) arrays."""
    logits, targets, unknown = checked
    for group in () if space is None else space.exclusive_groups:
        span = space.slices[group.name] if space is not None else slice(0)
        rows, classes = known_classes(sp.csr_array(targets[:, span]), None if unknown is None else unknown[:, span])
        slope, offset = fit_classes(logits[rows, span], classes, method, shrinkage)
        slopes[0][span], slopes[1][span], slopes[2][span] = slope, slope, offset


def known_classes(targets: sp.csr_array, unknown: sp.csr_array | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n,) of an exclusive group's targets (N, K) whose class is known, and the classes (n,).

    Raises:
        ValueError: an image has two classes.
    """
    counts = np.diff(targets.indptr)
    if (counts > 1).any():
        row = int(np.flatnonzero(counts > 1)[0])
        raise ValueError(f"sample {row} has {counts[row]} classes of an exclusive group, in which one holds")
    known = counts == 1
    if unknown is not None:
        known &= np.diff(sp.csr_array(unknown).indptr) == 0
    rows = np.flatnonzero(known)
    return rows, targets.indices[targets.indptr[rows]]
