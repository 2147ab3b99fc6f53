"""Tables of labels put together: by category, and by how frequent they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlabel._checks import check_counts, resolve
from mlabel.metrics.evaluation import Evaluation, _aligned, _shown
from mlabel.metrics.ratios import nan_mean

_KEYS = ("precision", "recall", "f1", "ap")
# Deciles of labels, the most frequent first: three are the head, four the middle, three the tail.
_TIERS = ("head",) * 3 + ("middle",) * 4 + ("tail",) * 3


def category_rows(
    result: Evaluation, categories: Sequence[str], *, keys: Sequence[str] = _KEYS
) -> list[dict[str, Any]]:
    """Return one dictionary a category: its number of labels, how many had a value, and the means over these.

    With `ap` among the keys, that is the average precision by category (CP, CR and mAP of each part of a tag set).

    Args:
        result: From `evaluate` or `ScoreHistogram.evaluate`.
        categories: The category of each label, (L,); `[group.name for group in space.groups for _ in group.labels]`
            gives those of a space.
        keys: Names in `result.per_label`, to be averaged; what is NaN is left out.

    Raises:
        ValueError: another number of categories than labels, or an unknown key.

    Example:
        >>> from mlabel.metrics import evaluate
        >>> result = evaluate([[0.9, 0.2, 0.8], [0.6, 0.7, 0.1]], [[1, 0, 1], [0, 1, 0]])
        >>> category_rows(result, ["animal", "animal", "place"], keys=["f1"])[0]
        {'category': 'animal', 'num_labels': 2, 'num_averaged': 2, 'support': 2, 'f1': 0.8333333333333333}
    """
    held = np.asarray(categories, dtype=object)
    if held.shape != (len(result.names),):
        raise ValueError(f"one category for each of the {len(result.names)} labels was wanted; got {held.shape}")
    names = dict.fromkeys(held.tolist())
    return [{"category": name, **_means(result, held == name, keys)} for name in names]


def frequency_rows(
    result: Evaluation, counts: Any = None, *, by: str = "decile", keys: Sequence[str] = _KEYS
) -> list[dict[str, Any]]:
    """Return one dictionary a decile of labels, or one for head, middle and tail: how well rare labels fare.

    Labels are ordered by how often they occur, the most frequent first. The first three deciles are the head, the
    next four the middle, the last three the tail. Labels of equal counts stay together, in the decile of the first of
    them, so that the order of labels does not matter; a part may be empty for that.

    Args:
        result: From `evaluate` or `ScoreHistogram.evaluate`.
        counts: How often each label occurs, (L,), best those of the training part. None: the support in `result`.
        by: decile or tier.
        keys: As in `category_rows`.

    Returns:
        For each part: decile (1 to 10) and tier, or tier alone; least and most, the counts in it (None where it is
        empty); and what `category_rows` has.

    Raises:
        ValueError: counts of another shape or below 0, or an unknown `by` or key.

    Example:
        >>> import numpy as np
        >>> from mlabel.metrics import evaluate
        >>> targets = np.tri(10, dtype=int)
        >>> rows = frequency_rows(evaluate(targets * 0.75, targets), by="tier", keys=["recall"])
        >>> [(row["tier"], row["least"], row["most"], row["recall"]) for row in rows]
        [('head', 8, 10, 1.0), ('middle', 4, 7, 1.0), ('tail', 1, 3, 1.0)]
    """
    resolve(by, {"decile": None, "tier": None}, "part")
    held, _ = check_counts(result.per_label["support"] if counts is None else counts, np.finfo(np.float64).max)
    if held.shape != (len(result.names),):
        raise ValueError(f"one count for each of the {len(result.names)} labels was wanted; got {held.shape}")
    ordered = np.sort(held)
    more_frequent = len(held) - np.searchsorted(ordered, held, side="right")
    decile = 10 * more_frequent // max(1, len(held))
    if by == "decile":
        parts = [({"decile": d + 1, "tier": tier}, decile == d) for d, tier in enumerate(_TIERS)]
    else:
        parts = [({"tier": t}, np.array(_TIERS)[decile] == t) for t in dict.fromkeys(_TIERS)]
    return [{**title, **_range(held[mine]), **_means(result, mine, keys)} for title, mine in parts]


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as aligned text with a header.

    Args:
        rows: One dictionary a line, column name to value; none gives no text.

    Example:
        >>> print(rows_table([{"tier": "head", "f1": 0.75}, {"tier": "tail", "f1": None}]))
        tier      f1
        head  0.7500
        tail     nan
    """
    return _aligned([list(rows[0]), *[[_shown(value) for value in row.values()] for row in rows]]) if rows else ""


def _means(result: Evaluation, mine: np.ndarray, keys: Sequence[str]) -> dict[str, Any]:
    """Return what the labels `mine` (L,) have together; a mean of nothing is None."""
    columns = {key: resolve(key, result.per_label, "key")[mine] for key in keys}
    defined = np.zeros(int(mine.sum()), dtype=bool)
    for values in columns.values():
        defined |= ~np.isnan(values)
    means = {key: nan_mean(values.astype(np.float64)) for key, values in columns.items()}
    return {
        "num_labels": len(defined),
        "num_averaged": int(defined.sum()),
        "support": int(result.per_label["support"][mine].sum()),
        **{key: None if math.isnan(mean) else mean for key, mean in means.items()},
    }


def _range(counts: np.ndarray) -> dict[str, Any]:
    if not len(counts):
        return {"least": None, "most": None}
    return {"least": _whole(counts.min()), "most": _whole(counts.max())}


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)
