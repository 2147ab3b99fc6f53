"""The page of a search over settings, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlabel.report.page import _flatten, _write_page
from mlabel.report.plots import BLUE, GREEN, GREY, ORANGE, _figure, _row_of_axes, _save, _short, _tidy
from mlabel.report.section import Picture, Section

# State of a trial to how it is drawn, told apart by form as well as by colour.
_MARKS = {"done": ("o", BLUE), "pruned": ("x", ORANGE), "failed": ("v", GREY), "running": (">", GREEN)}
_COLUMNS = 3  # of panels side by side


def write_search(
    folder: str | Path,
    *,
    title: str,
    best: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Picture | str | Path],
    config: Mapping[str, Any],
    notes: Sequence[str] = (),
    next_command: str | None = None,
) -> Path:
    """Write `index.html` into a folder, and return the page's path.

    Args:
        folder: Where to write; made where it is not there.
        title: The page's heading.
        best: Name to value of the best trial: its metric and its settings; empty: there is none.
        trials: Rows of the same keys, in the order in which they are shown.
        pictures: Heading to a PNG or JPEG file, or to one with words on what it shows.
        config: Settings, nested as they come.
        notes: Sentences that a reader of the figures must know.
        next_command: What to type next; None: nothing is suggested.

    Example:
        >>> import tempfile
        >>> told = {"best": {"macro_f1": 0.5, "lr": 0.1}, "trials": [{"trial": 0, "macro_f1": 0.5, "lr": 0.1}]}
        >>> path = write_search(tempfile.mkdtemp(), title="Learning rates", **told, pictures={}, config={"seed": 0})
        >>> "Learning rates" in path.read_text()
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [{"setting": name, "value": _plain(value)} for name, value in best.items()]
    rows = [{key: _as_said(key, value) for key, value in row.items()} for row in trials]
    return _write_page(
        folder,
        title=title,
        sections=[
            *([Section("The best trial", tables={"": chosen})] if chosen else []),
            *(Section(each, pictures={"": picture}) for each, picture in pictures.items()),
            Section("Trials, the best first", tables={"": rows}),
        ],
        settings=dict(_flatten(config)),
        notes=list(notes),
        next_command=next_command,
    )


def _as_said(key: str, value: Any) -> Any:
    """Return a value of a trial as the page is to show it: learning rates are too small for four decimals."""
    return value if key == "trial" or value is None or isinstance(value, str) else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plot_trials(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, metric: str, higher_is_better: bool = True
) -> Path:
    """Draw the values of trials in their order, with a line of the best so far, and return the path.

    Args:
        rows: Each with `trial`, `state` and `value`.
        path: The PNG file to write.
        metric: The name of the values.
        higher_is_better: Which way is up for the line.

    Example:
        >>> import tempfile
        >>> rows = [{"trial": 0, "state": "done", "value": 0.5, "lr": 0.1, "steps": {1: 0.4, 2: 0.5}}]
        >>> plot_trials(rows, tempfile.mkdtemp() + "/trials.png", metric="macro_f1").name
        'trials.png'
    """
    figure = _figure(width=8.0, height=3.4)
    (axes,) = _row_of_axes(figure, 1)
    _scatter(axes, rows, [row["trial"] for row in rows])
    done = sorted((row["trial"], row["value"]) for row in rows if row["state"] == "done")
    if done:
        best, line = done[0][1], []
        for _, value in done:
            best = max(best, value) if higher_is_better else min(best, value)
            line.append(best)
        axes.step([number for number, _ in done], line, where="post", color=BLUE, linewidth=1.4, label="best so far")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(metric, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def plot_settings(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    names: Sequence[str],
    metric: str,
    listed: Sequence[str] = (),
    logs: Sequence[str] = (),
) -> Path:
    """Draw the values of trials by each setting, a panel each, and return the path.

    Args:
        rows: Each with `state`, `value` and the settings by name.
        path: The PNG file to write.
        names: The settings.
        metric: The name of the values.
        listed: Settings that were chosen from some values, which are set out evenly.
        logs: Settings whose axis is logarithmic.

    Example:
        >>> import tempfile
        >>> rows = [{"trial": 0, "state": "done", "value": 0.5, "lr": 0.1, "steps": {1: 0.4, 2: 0.5}}]
        >>> plot_settings(rows, tempfile.mkdtemp() + "/settings.png", names=["lr"], metric="macro_f1", logs=["lr"]).name
        'settings.png'
    """
    lines = math.ceil(len(names) / _COLUMNS)
    figure = _figure(width=3.1 * min(len(names), _COLUMNS) + 0.6, height=2.9 * lines)
    figure.set_layout_engine("constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(lines, min(len(names), _COLUMNS), place + 1)
        values = [row[name] for row in rows]
        if name in listed:
            known = sorted(set(values), key=_order)
            _scatter(axes, rows, [known.index(value) for value in values])
            axes.set_xticks(range(len(known)), [_short(_plain(each), 14) for each in known], parse_math=False)
            axes.set_xlim(-0.5, len(known) - 0.5)
        else:
            _scatter(axes, rows, values)
            axes.set_xscale("log" if name in logs else "linear")
        axes.set_xlabel(name, parse_math=False)
        if place % _COLUMNS == 0:
            axes.set_ylabel(metric, parse_math=False)
        if place == 0 and len({row["state"] for row in rows}) > 1:
            axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _order(value: Any) -> tuple[int, float, str]:
    """Return what numbers are sorted by, and after them texts."""
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, *, metric: str) -> Path:
    """Draw what each trial reported by epoch, the first of `rows` in colour, and return the path.

    Args:
        rows: Each with `trial`, `state` and `steps`, a mapping from epoch to value.
        path: The PNG file to write.
        metric: The name of the values.

    Example:
        >>> import tempfile
        >>> rows = [{"trial": 0, "state": "done", "value": 0.5, "lr": 0.1, "steps": {1: 0.4, 2: 0.5}}]
        >>> plot_curves(rows, tempfile.mkdtemp() + "/curves.png", metric="macro_f1").name
        'curves.png'
    """
    figure = _figure(width=8.0, height=3.4)
    (axes,) = _row_of_axes(figure, 1)
    for place, row in reversed(list(enumerate(rows))):
        first = place == 0
        colour, dash = (BLUE, "-") if first else (GREY, "--" if row["state"] == "pruned" else "-")
        steps, name = row["steps"], f"trial {row['trial']}, the best" if first else None
        (line,) = axes.plot(list(steps), list(steps.values()), dash, color=colour, marker="o", markersize=2.5)
        line.set(linewidth=2.0 if first else 0.8, alpha=1.0 if first else 0.6, label=name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(metric, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    return _save(figure, path)


def plot_importances(shares: Mapping[str, float], path: str | Path) -> Path:
    """Draw name to share as bars, the largest on top, and return the path.

    Args:
        shares: Name of a setting to its share, in [0, 1].
        path: The PNG file to write.

    Example:
        >>> import tempfile
        >>> plot_importances({"lr": 0.75, "loss": 0.25}, tempfile.mkdtemp() + "/importances.png").name
        'importances.png'
    """
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    figure = _figure(width=8.0, height=0.9 + 0.3 * len(ordered))
    (axes,) = _row_of_axes(figure, 1)
    axes.barh(range(len(ordered)), [share for _, share in ordered], color=BLUE, height=0.6)
    axes.set_yticks(range(len(ordered)), [_short(name, 30) for name, _ in ordered], parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance")
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _scatter(axes: Axes, rows: Sequence[Mapping[str, Any]], where: Sequence[float]) -> None:
    for state, (mark, colour) in _MARKS.items():
        places = [place for place, row in enumerate(rows) if row["state"] == state]
        if places:
            x, y = [where[place] for place in places], [rows[place]["value"] for place in places]
            axes.plot(x, y, mark, color=colour, markersize=5, label=state)
    _tidy(axes)
