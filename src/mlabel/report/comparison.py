"""The page of several runs side by side, and the picture of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlabel.report.page import _column, _flatten, _metric_rows, _write_page
from mlabel.report.plots import BLUE, GREY, ORANGE, _figure, _save, _short
from mlabel.report.section import Section

_TITLES = {"adjusted_p": "adjusted p"}  # other columns are called as they come, runs among them
_ROW = 0.24  # inches of a line of the picture


def write_comparison(
    folder: str | Path,
    *,
    title: str,
    comparison: Mapping[str, Mapping[str, float]],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, str | Path],
    config: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write `index.html` into a folder, and return the page's path.

    The page needs no network and no other file. Texts are shown as they are and never read as HTML.

    Args:
        folder: Where to write; made where it is not there.
        title: The page's heading.
        comparison: Name of a run to its metrics.
        tables: Caption to rows of the same keys.
        labels: Rows of the same keys, `label` the first, for the table that is sorted and searched.
        pictures: Caption to a PNG or JPEG file.
        config: Settings, nested as they come.
        notes: Sentences that a reader of the figures must know.

    Example:
        >>> import tempfile
        >>> rows = [{"label": "cat", "winner": "a", "lead": 0.2}]
        >>> parts = {"comparison": {"a": {"map": 0.7}, "b": {"map": 0.5}}, "tables": {}, "pictures": {}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_comparison(folder, title="a and b", labels=rows, **parts)
        ...     '"names": ["cat"]' in page.read_text(encoding="utf-8")
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _write_page(
        folder,
        title=title,
        columns=list(comparison),
        metrics=_metric_rows(comparison, {}),
        labels=_label_data(labels) if labels else None,
        sections=[
            *(Section(caption, tables={"": rows}) for caption, rows in tables.items() if rows),
            *(Section(caption, pictures={"": file}) for caption, file in pictures.items()),
        ],
        settings=dict(_flatten(config or {})),
        notes=list(notes),
    )


def plot_differences(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, first: str = "", second: str = "", most: int = 40
) -> Path:
    """Draw differences with their intervals, one below the other, and return the path.

    Those whose interval has no 0 in it are drawn in colour with a filled dot, the others grey and open.

    Args:
        rows: Each with `name`, `difference`, `low` and `high`; those that are None or NaN are left out.
        path: The PNG file to write.
        first: What differences above 0 speak for.
        second: What those below 0 speak for.
        most: How many are drawn at most, those of the largest differences.

    Raises:
        ValueError: there is nothing to draw.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = [{"name": "map", "difference": 0.1, "low": 0.05, "high": 0.2}]
        ...     plot_differences(rows, f"{folder}/differences.png").name
        'differences.png'
    """
    drawn = [row for row in rows if all(_is_number(row[key]) for key in ("difference", "low", "high"))]
    if not drawn:
        raise ValueError("there are no differences to draw")
    if len(drawn) > most:
        largest = sorted(range(len(drawn)), key=lambda place: -abs(drawn[place]["difference"]))[:most]
        drawn = [drawn[place] for place in sorted(largest)]
    figure = _figure(width=8.0, height=1.0 + _ROW * len(drawn))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(drawn):
        sure = row["low"] > 0 or row["high"] < 0
        colour = GREY if not sure else (BLUE if row["difference"] > 0 else ORANGE)
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6)
        axes.plot(row["difference"], place, "o", color=colour, markersize=5, fillstyle="full" if sure else "none")
    axes.axvline(0, color="black", linewidth=0.9)
    axes.set_yticks(range(len(drawn)), [_short(str(row["name"]), 34) for row in drawn], fontsize=9, parse_math=False)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlabel(f"← {second} higher    difference    {first} higher →", fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return _save(figure, path)


def _is_number(value: Any) -> bool:
    return value is not None and value == value


def _label_data(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return names and columns of the table of labels."""
    columns = []
    for key in list(rows[0])[1:]:
        values = [row[key] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if bool in kinds:
            values = [None if value is None else "yes" if value else "no" for value in values]
        kind = "words" if kinds & {bool, str} else "count" if kinds == {int} else "number"
        columns.append(_column(_TITLES.get(key, key), kind, values))
    return {"names": [str(row["label"]) for row in rows], "columns": columns}
