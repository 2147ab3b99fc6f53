"""Curves of scores as PNG files: how often labels hold beside what scores say, and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from mlabel._checks import to_numpy
from mlabel.metrics import Reliability
from mlabel.report.plots import BLUE, GREY, ORANGE, SKY, _figure, _grid_of_axes, _save, _short, _tidy

_COLUMNS = 4  # of small figures side by side


class PrecisionRecall(NamedTuple):
    """The precision and recall of one label at each of its thresholds.

    Attributes:
        thresholds: Descending, the distinct scores (P,); what is at or above is decided.
        precision: (P,).
        recall: (P,); ascending, 1 at the end; NaN where the label never holds.
        share: Of the samples that have the label: the precision of deciding it always.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    share: float

    def at(self, threshold: float) -> tuple[float, float] | None:
        """Return recall and precision of `score >= threshold`, `threshold` any number; None where nothing is decided,
        or no threshold is.
        """
        decided = int((self.thresholds >= threshold).sum())
        return (float(self.recall[decided - 1]), float(self.precision[decided - 1])) if decided else None


def precision_recall(scores: Any, targets: Any) -> PrecisionRecall:
    """Return precision and recall of one label over its thresholds.

    Args:
        scores: Of the samples of which the label is known, (N,).
        targets: 0/1 (N,).

    Raises:
        ValueError: shapes that differ, or no samples.

    Example:
        >>> found = precision_recall([0.9, 0.4, 0.4, 0.1], [1, 0, 1, 0])
        >>> found.thresholds, found.precision.round(2), found.recall
        (array([0.9, 0.4, 0.1]), array([1.  , 0.67, 0.5 ]), array([0.5, 1. , 1. ]))
    """
    held, truth = to_numpy(scores), to_numpy(targets).astype(bool)
    if held.ndim != 1 or held.shape != truth.shape or not len(held):
        raise ValueError(f"scores and targets of one label (N,) were wanted; got {held.shape} and {truth.shape}")
    order = np.argsort(-held, kind="stable")
    descending, hits = held[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(descending)), len(held) - 1)  # of equal scores
    found = hits[last].astype(np.float64)
    positives = int(truth.sum())
    recall = found / positives if positives else np.full(len(last), math.nan)
    return PrecisionRecall(descending[last], found / (last + 1), recall, positives / len(held))


def plot_precision_recall(
    curves: Mapping[str, PrecisionRecall], path: str | Path, *, thresholds: Mapping[str, float] | None = None
) -> Path:
    """Draw precision over recall of some labels, each in a figure of its own, and return the path.

    A dashed line is the precision of deciding the label always, and a diamond marks the label's threshold.

    Args:
        curves: Label name to its curve.
        path: The PNG file to write.
        thresholds: Label name to its threshold; None, or NaN: no mark.

    Raises:
        ValueError: no labels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curves = {"cat": precision_recall([0.9, 0.4, 0.1], [1, 0, 1])}
        ...     plot_precision_recall(curves, f"{folder}/pr.png", thresholds={"cat": 0.5}).name
        'pr.png'
    """
    if not curves:
        raise ValueError("there are no labels to draw")
    columns = min(_COLUMNS, len(curves))
    figure = _figure(width=2.6 * columns, height=2.5 * math.ceil(len(curves) / columns))
    for axes, (name, curve) in zip(_grid_of_axes(figure, len(curves), columns), curves.items(), strict=True):
        # Precision falls and rises between thresholds; a step says that nothing lies between them.
        axes.plot(np.append(0, curve.recall), np.append(curve.precision[:1], curve.precision), color=BLUE, lw=1.4)
        axes.axhline(curve.share, color=GREY, ls="--", lw=1)
        point = curve.at((thresholds or {}).get(name, math.nan))
        if point is not None:
            axes.plot(*point, marker="D", color=ORANGE, markersize=6, clip_on=False)
        _unit_square(axes, name, "recall", "precision")
    return _save(figure, path)


def plot_reliability(diagrams: Mapping[str, Reliability], path: str | Path) -> Path:
    """Draw reliability diagrams, each in a figure of its own, and return the path.

    A point is a bin of scores: their mean, and the share of them of which the label holds, with its interval. On the
    dashed diagonal scores are right as probabilities; below it they say too much. Bars show the share of scores in
    each bin.

    Args:
        diagrams: Title to one reliability of one segment.
        path: The PNG file to write.

    Raises:
        ValueError: no diagrams, or one of several segments.

    Example:
        >>> import tempfile
        >>> from mlabel.metrics import reliability
        >>> found = reliability([[0.9], [0.2], [0.7]], [[1], [0], [0]], bins=2)
        >>> plot_reliability({"all labels": found}, tempfile.mkdtemp() + "/reliability.png").name
        'reliability.png'
    """
    if not diagrams or any(len(each.counts) != 1 for each in diagrams.values()):
        raise ValueError("at least one reliability, each of one segment, was wanted")
    columns = min(_COLUMNS, len(diagrams))
    figure = _figure(width=2.6 * columns, height=2.5 * math.ceil(len(diagrams) / columns))
    for axes, (title, found) in zip(_grid_of_axes(figure, len(diagrams), columns), diagrams.items(), strict=True):
        counts, edges = found.counts[0], found.edges[0]
        held = counts > 0
        mean, share = found.mean_score[0][held], found.share[0][held]
        axes.bar(edges[:-1], counts / max(1, counts.sum()), width=np.diff(edges), align="edge", color=SKY, alpha=0.45)
        axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
        ends = np.abs(np.stack([found.low[0][held], found.high[0][held]]) - share)
        axes.errorbar(mean, share, yerr=ends, color=BLUE, marker="o", markersize=3.5, lw=1.2, elinewidth=0.9)
        _unit_square(axes, title, "mean score", "share that holds")
    return _save(figure, path)


def _unit_square(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title(_short(title, 30), fontsize=9, loc="left", parse_math=False)
    _tidy(axes)
