"""Conformal sets: for an image the classes of an exclusive group among which the right one is, with a promise.

What is promised, and when it fails, is said in `docs/guarantees.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError, as_scores, resolve
from mlabel._files import read_json, to_json, write_atomically
from mlabel.decisions.calibration import known_classes
from mlabel.decisions.risk_control import check_open
from mlabel.labels import LabelSpace
from mlabel.metrics.ranking import check_probabilities, refuse_outside

FORMAT = "mlabel.conformal-sets/1"
SET_METHODS = {
    "lac": "classes whose probability is high enough: the smallest sets on average",
    "aps": "the most probable classes until they add up to enough: sets that grow with doubt",
}
SET_SCOPES = {"marginal": "one promise over all classes", "class": "one promise for each class"}


@dataclass(frozen=True, eq=False)
class ConformalSets:
    """What turns the probabilities of an exclusive group into sets of classes.

    Attributes:
        limits: (K,) the highest score of a class that is in the set, in [0, 1]; 1 takes it always.
        reached: (K,) bool; False where there were so few images that the class must always be in the set.
        num_images: (K,) how many images each limit was found from.
        method: How classes are scored, one of `SET_METHODS`.
        alpha: How often the right class may be missing.
        scope: `marginal` or `class`.
        group: The group's name, where the columns are those of a space.
        space: The columns' meaning; None: the columns are the classes.
    """

    limits: np.ndarray
    reached: np.ndarray
    num_images: np.ndarray
    method: str
    alpha: float
    scope: str
    group: str | None = None
    space: LabelSpace | None = None

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        whom = "the right class" if self.scope == "marginal" else "each class, where it is the right one,"
        return (
            f"{whom} is in the set with probability {1 - self.alpha:g} or more, on average over calibration sets and "
            "new images drawn alike"
        )

    def predict(self, probabilities: Any) -> np.ndarray:
        """Return sets (N, K) bool for `probabilities` (N, K), or (N, L) where there is a space.

        A set of `lac` is empty where no class is probable enough; one of `aps` has the most probable class at least.

        Raises:
            ValueError: probabilities out of [0, 1], or of another number of columns.
        """
        held = as_scores(probabilities, "probabilities")
        refuse_outside(held)
        held = held[:, _span(held.shape[1], self.group, self.space)]
        if held.shape[1] != len(self.limits):
            raise ValueError(f"probabilities have {held.shape[1]} classes, but the sets have {len(self.limits)}")
        scores = score_classes(held, self.method)
        return (scores <= self.limits) | ~self.reached

    def save(self, path: str | Path) -> None:
        """Write the sets' limits as JSON to the file `path`; `load` reads it."""
        data = {"format": FORMAT, "method": self.method, "alpha": self.alpha, "scope": self.scope, "group": self.group}
        arrays = {name: getattr(self, name).tolist() for name in ("limits", "reached", "num_images")}
        write_atomically(path, to_json({**data, **arrays, "space": self.space.to_dict() if self.space else None}))

    @classmethod
    def load(cls, path: str | Path) -> ConformalSets:
        """Return what was saved in the file `path`.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is not what `save` wrote.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path}: conformal sets of format {FORMAT!r} were wanted")
        try:
            space = None if data["space"] is None else LabelSpace.from_dict(data["space"])
            resolve(data["method"], SET_METHODS, "method of sets")
            resolve(data["scope"], SET_SCOPES, "scope of sets")
            limits = np.array([float(each) for each in data["limits"]])
            reached = np.array([bool(each) for each in data["reached"]])
            images = np.array([int(each) for each in data["num_images"]])
            good = len(limits) > 1 and len(limits) == len(reached) == len(images) and np.isfinite(limits).all()
            wanted = len(limits) if space is None else space.num_labels
            span = _span(wanted, data["group"], space)
            if not good or len(range(wanted)[span]) != len(limits):
                raise ValueError("limits, images and classes are of different lengths")
            check_open(data["alpha"], "alpha")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: not conformal sets: {error}") from error
        return cls(limits, reached, images, data["method"], data["alpha"], data["scope"], data["group"], space)


def fit_conformal_sets(
    probabilities: Any,
    targets: Any,
    alpha: float,
    *,
    method: str = "lac",
    scope: str = "marginal",
    group: str | None = None,
    space: LabelSpace | None = None,
    mask: Any = None,
) -> ConformalSets:
    """Return what gives for new images sets of classes that hold the right one with probability 1 - `alpha` or more.

    Split conformal prediction: every image with a known class has the score of that class, and with n of them the
    limit is the ceil((n + 1)(1 - alpha))-th lowest. The images must be drawn like those to come, and must have had no
    part in the making of the model or of its calibration. Where n is below 1 / alpha - 1 every class is always in the
    set, and `reached` is False.

    Args:
        probabilities: (N, K) in [0, 1], or (N, L) with a space: NumPy or torch.
        targets: The same shape, 0/1: NumPy, torch or SciPy sparse.
        alpha: Above 0 and below 1.
        method: `lac`: a class's score is 1 - its probability. `aps`: the sum of all probabilities from the highest down
            to its own, and 0 for the most probable one (the paper takes a random share of its own off instead; here
            sets are the same at every call, and never empty).
        scope: `marginal`, or `class`: each class has a limit of its own, from its own images.
        group: Which exclusive group; None: the only one of the space.
        space: The columns' meaning; None: the columns are the classes.
        mask: None, dense bool (True = known) or sparse bool (True = unknown). Images of which something in the group is
            unknown, or without a class, do not enter.

    Raises:
        ValueError: probabilities or alpha out of range, shapes that differ, an image with two classes, an unknown
            method or scope, or a group that is not exclusive.

    References:
        Vovk, Gammerman and Shafer (2005), "Algorithmic learning in a random world" (also limits by class). Sadinle, Lei
        and Wasserman (2019), "Least ambiguous set-valued classifiers with bounded error levels" (lac). Romano, Sesia
        and Candès (2020), "Classification with valid and adaptive coverage" (aps).

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9]])
        >>> sets = fit_conformal_sets(probabilities, [[1, 0], [1, 0], [1, 0], [0, 1]], 0.25)
        >>> sets.predict([[0.55, 0.45], [0.95, 0.05]])
        array([[ True,  True],
               [ True, False]])
    """
    resolve(method, SET_METHODS, "method of sets")
    resolve(scope, SET_SCOPES, "scope of sets")
    check_open(alpha, "alpha")
    held, csr, unknown = check_probabilities(probabilities, targets, mask)
    group = _only_group(space) if group is None and space is not None else group
    span = _span(held.shape[1], group, space)
    rows, classes = known_classes(csr[:, span], None if unknown is None else unknown[:, span])
    scores = score_classes(held[rows, span], method)
    num_classes = scores.shape[1]
    own = scores[np.arange(len(rows)), classes]
    if scope == "marginal":
        limit, reached, number = conformal_limit(own, alpha)
        found = [(limit, reached, number)] * num_classes
    else:
        found = [conformal_limit(own[classes == each], alpha) for each in range(num_classes)]
    limits, enough, images = (np.array(each) for each in zip(*found, strict=True))
    return ConformalSets(limits, enough, images, method, alpha, scope, group, space)


def conformal_limit(scores: np.ndarray, alpha: float) -> tuple[float, bool, int]:
    """Return the ceil((n + 1)(1 - alpha))-th lowest of n scores, whether there are as many, and n; 1 where not."""
    number = len(scores)
    # (n + 1)(1 - alpha) may lie a last digit above a whole number, which is then meant.
    rank = int(np.ceil((number + 1) * (1 - alpha) - 1e-9))
    if rank > number:
        return 1.0, False, number
    return float(np.partition(scores, rank - 1)[rank - 1]), True, number


def score_classes(probabilities: np.ndarray, method: str) -> np.ndarray:
    """Return how strange each class would be (N, K) float64, from 0 to 1."""
    held = probabilities.astype(np.float64)
    if method == "lac":
        return 1 - held
    order = np.argsort(-held, axis=1, kind="stable")
    sums = np.minimum(np.cumsum(np.take_along_axis(held, order, axis=1), axis=1), 1.0)
    sums[:, 0] = 0.0  # in every set; as a part of the score this does not make the others larger than they need be
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, axis=1)
    return scores


def _only_group(space: LabelSpace) -> str:
    names = [group.name for group in space.exclusive_groups]
    if len(names) != 1:
        raise ValueError(f"group= must name one of the exclusive groups {names}")
    return names[0]


def _span(num_columns: int, group: str | None, space: LabelSpace | None) -> slice:
    """Return the columns of the group."""
    if space is None:
        if group is not None:
            raise ValueError(f"group {group!r} is of a space, and none is given")
        return slice(0, num_columns)
    if space.num_labels != num_columns:
        raise ValueError(f"probabilities have {num_columns} columns, but the space has {space.num_labels} labels")
    names = {each.name: each for each in space.exclusive_groups}
    return space.slices[resolve(str(group), names, "exclusive group").name]
