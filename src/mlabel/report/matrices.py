"""Matrices of labels as PNG files: correlation, co-occurrence, confusions, and the 2 x 2 tables of single labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mlabel._checks import to_numpy
from mlabel.report.plots import _figure, _grid_of_axes, _row_of_axes, _save, _short

_BLANK = "#c9ced3"  # what there is no number of
_WRITTEN = 12  # in matrices of at most so many labels the numbers are written into the cells


def plot_correlation(correlation: Any, path: str | Path, *, names: Sequence[str]) -> Path:
    """Draw a matrix of correlations between labels, from -1 to 1, and return the path.

    Args:
        correlation: (K, K); NaN is left blank.
        path: The PNG file to write.
        names: Of the K labels.

    Raises:
        ValueError: another shape than (K, K).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/correlation.png"
        >>> plot_correlation([[1.0, 0.5], [0.5, 1.0]], path, names=["cat", "dog"]).name
        'correlation.png'
    """
    values = to_numpy(correlation)
    if values.shape != (len(names), len(names)):
        raise ValueError(f"correlation must be of shape ({len(names)}, {len(names)}); got {values.shape}")
    return _plot(values, path, rows=names, columns=names, limits=(-1, 1), colours="RdBu_r", titles=("", ""))


def plot_shares(shares: Any, path: str | Path, *, names: Sequence[str], titles: tuple[str, str]) -> Path:
    """Draw a matrix of shares between 0 and 1, one row and one column a label, and return the path.

    Args:
        shares: (K, K); NaN is left blank.
        path: The PNG file to write.
        names: Of the K labels.
        titles: What a row and what a column is.

    Raises:
        ValueError: another shape than (K, K).

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/shares.png"
        >>> plot_shares([[0.0, 0.2], [0.1, 0.0]], path, names=["cat", "dog"], titles=("holds", "was decided")).name
        'shares.png'
    """
    values = to_numpy(shares)
    if values.shape != (len(names), len(names)):
        raise ValueError(f"shares must be of shape ({len(names)}, {len(names)}); got {values.shape}")
    highest = float(np.nanmax(values, initial=0.0)) or 1.0
    return _plot(values, path, rows=names, columns=names, limits=(0, highest), colours="Blues", titles=titles)


def plot_confusions(counts: Mapping[str, Sequence[int]], path: str | Path) -> Path:
    """Draw the 2 x 2 tables of some labels side by side, and return the path.

    Args:
        counts: Label name to its true positives, false positives, false negatives and true negatives.
        path: The PNG file to write.

    Raises:
        ValueError: no labels.

    Example:
        >>> import tempfile
        >>> plot_confusions({"cat": (8, 2, 1, 89)}, tempfile.mkdtemp() + "/confusions.png").name
        'confusions.png'
    """
    if not counts:
        raise ValueError("there are no labels to draw")
    columns = min(4, len(counts))
    rows = math.ceil(len(counts) / columns)
    figure = _figure(width=2.4 * columns, height=2.3 * rows)
    for axes, (name, (tp, fp, fn, tn)) in zip(_grid_of_axes(figure, len(counts), columns), counts.items(), strict=True):
        table = np.array([[tp, fn], [fp, tn]], dtype=np.float64)
        with np.errstate(invalid="ignore"):
            shares = table / table.sum(axis=1, keepdims=True)
        axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
        _write_cells(axes, shares, [[f"{int(v):,}" for v in line] for line in table])
        axes.set_xticks([0, 1], ["decided", "not"], fontsize=8)
        axes.set_yticks([0, 1], ["holds", "not"], fontsize=8)
        axes.set_title(_short(name), fontsize=9, loc="left", parse_math=False)
    return _save(figure, path)


def _plot(
    values: np.ndarray,
    path: str | Path,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    colours: str,
    titles: tuple[str, str],
) -> Path:
    side = 3.0 + 0.2 * len(rows)
    figure = _figure(width=side + 1.0, height=side)
    (axes,) = _row_of_axes(figure, 1)
    axes.set_facecolor(_BLANK)
    picture = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    figure.colorbar(picture, ax=axes, shrink=0.8)
    for axis, names, title, turn in ((axes.yaxis, rows, titles[0], 0), (axes.xaxis, columns, titles[1], 90)):
        axis.set_ticks(np.arange(len(names)), [_short(name) for name in names], rotation=turn)
        axis.set_label_text(title)
        for tick in axis.get_ticklabels():
            tick.set_parse_math(False)
    if len(rows) <= _WRITTEN:
        darkness = (values - limits[0]) / (limits[1] - limits[0])
        darkness = 2 * np.abs(darkness - 0.5) if limits[0] < 0 else darkness
        texts = [["" if math.isnan(v) else f"{v:.2f}" for v in line] for line in values.tolist()]
        _write_cells(axes, darkness, texts)
    return _save(figure, path)


def _write_cells(axes: Axes, darkness: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Write into each cell, light on dark ones."""
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "white" if darkness[row, column] > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
