"""Rules that decide by row: they compare the labels of an image with each other, and have no thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlabel._checks import DataError, as_scores, resolve
from mlabel.labels import LabelSpace, decide
from mlabel.metrics._blocks import blocks, known_positives, rows_of
from mlabel.metrics.ranking import Checked

ROW_SCOPES = {"group": "the labels of each any-of group", "global": "all any-of labels"}


@dataclass(frozen=True)
class TopK:
    """The `k` highest scores of each row are decided; of equal ones that are cut, the first columns.

    Where a row has fewer than k labels, all hold. An increasing transform of a row's scores changes nothing.

    Attributes:
        k: How many; or, with scope `group`, the name of each any-of group with its number.
        scope: What is compared: `global`, all any-of labels; `group`, those of each any-of group.

    Raises:
        ValueError: `k` negative or no integer, an unknown scope, or numbers of groups with scope `global`.

    References:
        Yang (2001), "A study of thresholding strategies for text categorization" (there RCut).

    Example:
        >>> TopK(1).decide([[0.2, 0.4, 0.3], [0.9, 0.8, 0.9]])
        array([[False,  True, False],
               [ True, False, False]])
    """

    k: int | Mapping[str, int]
    scope: str = "global"

    def __post_init__(self) -> None:
        resolve(self.scope, ROW_SCOPES, "scope of a rule")
        if isinstance(self.k, Mapping) and self.scope != "group":
            raise ValueError(f"k of each group needs scope 'group'; with scope {self.scope!r} it is one number")
        for number in self.k.values() if isinstance(self.k, Mapping) else (self.k,):
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
                raise ValueError(f"k must be a whole number, 0 or more; got {number!r}")

    def decide(self, scores: Any, space: LabelSpace | None = None) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L), columns as in `space`; see `mlabel.labels.decide`."""
        return decide(scores, self, space)

    def decide_any_of(self, scores: Any, space: LabelSpace | None = None) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L); False at the columns of exclusive groups of `space`.

        Raises:
            ValueError: scores that are no finite matrix, or of another number of columns than the space's.
        """
        return _decide_sets(scores, space, self.scope, self._highest)

    def _highest(self, block: np.ndarray, name: str | None) -> np.ndarray:
        k = int(self._number_of(name))
        if k == 0:
            return np.zeros(block.shape, dtype=bool)
        if k >= block.shape[1]:
            return np.ones(block.shape, dtype=bool)
        level = np.partition(block, block.shape[1] - k, axis=1)[:, [block.shape[1] - k]]
        above, equal = block > level, block == level
        places = k - above.sum(axis=1, keepdims=True)
        return above | (equal & (equal.cumsum(axis=1) <= places))

    def _number_of(self, name: str | None) -> int:
        if not isinstance(self.k, Mapping):
            return self.k
        if name is None or name not in self.k:
            raise ValueError(f"k has no number for the any-of group {name!r}, only for {sorted(self.k)}")
        return self.k[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a dictionary for JSON; `rule_from_dict` reads it."""
        k = {name: int(number) for name, number in self.k.items()} if isinstance(self.k, Mapping) else int(self.k)
        return {"name": "top_k", "k": k, "scope": self.scope}


@dataclass(frozen=True)
class MCut:
    """The scores of a row above its widest gap are decided: that between neighbours when they are sorted.

    Of equal gaps it is the highest; where all scores are equal there is none, and nothing is decided, else at least
    one label and not all. It looks at differences: logits and probabilities give other decisions.

    Raises:
        ValueError: an unknown scope.

    Attributes:
        scope: What is compared: `global`, all any-of labels; `group`, those of each any-of group.

    References:
        Largeron, Moulin and Géry (2012), "MCut: a thresholding strategy for multi-label classification".

    Example:
        >>> MCut().decide([[0.9, 0.2, 0.7, 0.1]])
        array([[ True, False,  True, False]])
    """

    scope: str = "global"

    def __post_init__(self) -> None:
        resolve(self.scope, ROW_SCOPES, "scope of a rule")

    def decide(self, scores: Any, space: LabelSpace | None = None) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L), columns as in `space`; see `mlabel.labels.decide`."""
        return decide(scores, self, space)

    def decide_any_of(self, scores: Any, space: LabelSpace | None = None) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L); False at the columns of exclusive groups of `space`.

        Raises:
            ValueError: scores that are no finite matrix, or of another number of columns than the space's.
        """
        return _decide_sets(scores, space, self.scope, _above_widest_gap)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a dictionary for JSON; `rule_from_dict` reads it."""
        return {"name": "mcut", "scope": self.scope}


def rule_from_dict(data: Mapping[str, Any]) -> TopK | MCut:
    """Return the rule that `to_dict` described.

    Raises:
        DataError: not of that form.
    """
    try:
        if data["name"] == "top_k":
            return TopK(data["k"], data["scope"])
        if data["name"] == "mcut":
            return MCut(data["scope"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a rule: {error}") from error
    raise DataError(f"the rule 'top_k' or 'mcut' was wanted; got {data['name']!r}")


def best_k(checked: Checked, space: LabelSpace | None, scope: str) -> int | dict[str, int]:
    """Return the k of the highest micro F1, the smallest of equally good ones; with scope `group` that of each."""
    sets = list(column_sets(checked[0].shape[1], space, scope))
    found = {name: _best_k_of(checked, columns) for name, columns in sets}
    return {str(name): k for name, k in found.items()} if None not in found else found[None]


def column_sets(num_labels: int, space: LabelSpace | None, scope: str) -> Iterator[tuple[str | None, np.ndarray]]:
    """Yield the columns that are compared with each other, with the name of their group; None: all any-of labels."""
    if space is None or scope == "global":
        any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
        yield None, np.flatnonzero(any_of)
        return
    for group in space.groups:
        if not group.exclusive:
            span = space.slices[group.name]
            yield group.name, np.arange(span.start, span.stop)


def _best_k_of(checked: Checked, columns: np.ndarray) -> int:
    """Return the best k among some columns, by counting at every rank in blocks of rows."""
    scores, targets, unknown = checked
    positives = known_positives(targets, unknown)[:, columns]
    missing = None if unknown is None else unknown[:, columns]
    right, decided = np.zeros((2, len(columns)), dtype=np.int64)
    for start, stop in blocks(len(scores), max(1, 2**20 // max(1, len(columns)))):
        order = np.argsort(-scores[start:stop, columns], axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(len(columns))[None], axis=1)
        right += np.bincount(ranks[rows_of(positives, start, stop)], minlength=len(columns))
        decided += stop - start
        if missing is not None:
            decided -= np.bincount(ranks[rows_of(missing, start, stop)], minlength=len(columns))
    right, decided = right.cumsum(), decided.cumsum()
    if not positives.nnz:
        return 0
    return int((2 * right / (positives.nnz + decided)).argmax()) + 1


def _decide_sets(scores: Any, space: LabelSpace | None, scope: str, of_block: Any) -> np.ndarray:
    held = as_scores(scores)
    decisions = np.zeros(held.shape, dtype=bool)
    for name, columns in column_sets(held.shape[1], space, scope):
        for start, stop in blocks(len(held), max(1, 2**20 // max(1, len(columns)))):
            decisions[start:stop, columns] = of_block(held[start:stop, columns], name)
    return decisions


def _above_widest_gap(block: np.ndarray, name: str | None) -> np.ndarray:
    if block.shape[1] < 2:
        return np.zeros(block.shape, dtype=bool)
    ordered = np.sort(block.astype(np.float64), axis=1)[:, ::-1]
    with np.errstate(over="ignore"):
        gaps = ordered[:, :-1] - ordered[:, 1:]
    last = gaps.argmax(axis=1)[:, None]
    level = np.take_along_axis(ordered, last, axis=1)
    return (block >= level) & (np.take_along_axis(gaps, last, axis=1) > 0)
