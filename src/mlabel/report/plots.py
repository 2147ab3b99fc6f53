"""Figures as PNG files: curves of a training, images with their labels, label frequencies.

Each function makes a figure of its own and leaves no state behind. Colours are those of Okabe and Ito (2008), which
people with any colour vision can tell apart, and nothing is said by colour alone.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlabel._checks import as_unknown, to_numpy
from mlabel._files import write_atomically

BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9"
GREY = "#595959"
DPI = 110

_SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
_DASHES = ("-", "--", "-.", ":")
_LINES_OF_LABELS = 8  # a picture with more shows the first and says how many are left


class _Line(NamedTuple):
    """One line below a picture."""

    text: str
    colour: str
    weight: str


def plot_history(history: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the losses and the validation metrics of a training into the PNG file `path`, and return the path.

    Args:
        history: One dictionary an evaluation, as `mlabel.fit` returns them, with `epoch` or `step`, `train_loss`, and
            where there was a validation part `val_loss` and other names that begin with `val_`. Values that are
            missing, None or NaN leave a gap.
        path: The file to write.

    Raises:
        ValueError: the history is empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = plot_history([{"epoch": 1, "train_loss": 0.7, "val_loss": 0.6}], f"{folder}/history.png")
        ...     path.name, path.stat().st_size > 0
        ('history.png', True)
    """
    if not history:
        raise ValueError("the history is empty; one dictionary an evaluation was wanted")
    names = [name for name in dict.fromkeys(key for entry in history for key in entry) if _is_drawn(history, name)]
    losses = [name for name in names if name.endswith("loss")]
    metrics = [name for name in names if name.startswith("val_") and name not in losses]
    panels = [(title, own) for title, own in (("Loss", losses), ("Validation metrics", metrics)) if own]
    figure = _figure(width=4.8 * max(1, len(panels)), height=3.4)
    for axes, (title, own) in zip(_row_of_axes(figure, len(panels)), panels, strict=True):
        _draw_series(axes, history, own)
        axes.set_title(title, fontsize=11, loc="left")
    return _save(figure, path)


def plot_examples(
    images: Any,
    *,
    names: Sequence[str],
    scores: Any,
    targets: Any,
    decisions: Any,
    path: str | Path,
    mask: Any = None,
    titles: Sequence[str] | None = None,
    columns: int = 6,
) -> Path:
    """Draw images with the labels they have and the labels decided for them, and return the path.

    Below each image stands a line for each label that is true or decided: a tick where both, a cross where only
    decided, a ring where it was missed, and a question mark where the truth is not known; with its score.

    Args:
        images: (N, C, H, W), or a sequence of (C, H, W) of any sizes, with one or three channels; uint8, or float in
            [0, 1]. NumPy or torch.
        names: The L label names.
        scores: (N, L), shown beside the names.
        targets: (N, L), 1 = present; dense or CSR.
        decisions: (N, L) bool.
        path: The PNG file to write.
        mask: (N, L) bool, True = known; or sparse, True = unknown; None: all is known.
        titles: A line above each image; None: none.
        columns: How many images stand side by side.

    Raises:
        ValueError: no images, or shapes that do not fit together.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = plot_examples(
        ...         np.zeros((1, 1, 8, 8), dtype=np.uint8),
        ...         names=["cat", "dog"],
        ...         scores=[[0.9, 0.2]],
        ...         targets=[[1, 1]],
        ...         decisions=[[True, False]],
        ...         path=f"{folder}/examples.png",
        ...     )
        ...     path.name
        'examples.png'
    """
    pictures = [_picture(image) for image in images]
    shape = (len(pictures), len(names))
    if not pictures:
        raise ValueError("there are no images to draw")
    score, target, decision = (
        _matrix(values, shape, what)
        for values, what in ((scores, "scores"), (targets, "targets"), (decisions, "decisions"))
    )
    unknown = as_unknown(mask, shape)
    known = np.ones(shape, dtype=bool) if unknown is None else ~unknown.toarray()
    rows = zip(score, target > 0, decision.astype(bool), known, strict=True)
    lines = [_lines(names, *row) for row in rows]
    heads = [""] * len(pictures) if titles is None else [_short(title) for title in titles]
    figure = _grid_of_pictures(pictures, lines, heads, columns=min(columns, len(pictures)))
    return _save(figure, path)


def plot_frequencies(counts: Any, path: str | Path, *, names: Sequence[str] | None = None) -> Path:
    """Draw in how many samples each label occurs, the commonest first, and return the path.

    Args:
        counts: Samples of each label, (L,).
        path: The PNG file to write.
        names: The label names, written below the bars where there are at most 40; None: never.

    Raises:
        ValueError: no labels, a count below 0, or not one name a label.

    Example:
        >>> import tempfile
        >>> plot_frequencies([120, 7], tempfile.mkdtemp() + "/frequency.png", names=["cat", "dog"]).name
        'frequency.png'
    """
    values = to_numpy(counts)
    if values.ndim != 1 or not values.size or values.min() < 0:
        raise ValueError(f"counts must be of shape (L,) and not below 0; got shape {values.shape}")
    if names is not None and len(names) != len(values):
        raise ValueError(f"names must be one a label ({len(values)}); got {len(names)}")
    order = np.argsort(-values, kind="stable")
    figure = _figure(width=9.6, height=3.4)
    (axes,) = _row_of_axes(figure, 1)
    if len(values) <= 100:
        axes.bar(np.arange(len(values)), values[order], color=BLUE)
    else:  # one shape instead of thousands, which take seconds
        axes.stairs(values[order], fill=True, color=BLUE)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylabel("samples (log scale)")
    axes.set_xlabel("labels, the commonest first")
    if names is not None and len(names) <= 40:
        axes.set_xticks(np.arange(len(names)), [_short(names[k]) for k in order.tolist()], rotation=45, ha="right")
        for tick in axes.get_xticklabels():
            tick.set_parse_math(False)
    _tidy(axes)
    return _save(figure, path)


def plot_labels_per_image(amounts: Any, path: str | Path, *, decided: Any = None) -> Path:
    """Draw how many images have 0, 1, 2, ... labels, and return the path.

    Args:
        amounts: Images with as many labels as the position says, (M,).
        path: The PNG file to write.
        decided: As `amounts`, of the labels that were decided, drawn beside them; None: not drawn.

    Raises:
        ValueError: a number below 0.

    Example:
        >>> import tempfile
        >>> plot_labels_per_image([3, 10, 4], tempfile.mkdtemp() + "/labels.png", decided=[5, 9, 3]).name
        'labels.png'
    """
    values = to_numpy(amounts)
    if values.ndim != 1 or (values.size and values.min() < 0):
        raise ValueError(f"amounts must be of shape (M,) and not below 0; got shape {values.shape}")
    figure = _figure(width=9.6, height=3.0)
    (axes,) = _row_of_axes(figure, 1)
    axes.bar(np.arange(len(values)), values, color=BLUE, label="true")
    if decided is not None:
        held = to_numpy(decided)
        axes.plot(np.arange(len(held)), held, "--", color=ORANGE, marker="D", markersize=4, label="decided")
        axes.legend(frameon=False, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("labels of an image")
    axes.set_ylabel("images")
    _tidy(axes)
    return _save(figure, path)


def _is_drawn(history: Iterable[Mapping[str, Any]], name: str) -> bool:
    return any(math.isfinite(_number(entry.get(name))) for entry in history)


def _number(value: Any) -> float:
    """Return a number as float, and NaN for anything else."""
    return float(value) if isinstance(value, int | float | np.number) else math.nan


def _draw_series(axes: Axes, history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    where, label = _positions(history)
    for place, name in enumerate(names):
        colour, dash = _SERIES[place % len(_SERIES)], _DASHES[place % len(_DASHES)]
        values = [_number(entry.get(name)) for entry in history]
        # Markers keep a single evaluation, or one between two gaps, in sight.
        axes.plot(where, values, dash, color=colour, marker="o", markersize=3.5, label=_series_name(name))
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(where) == 1:
        axes.set_xlim(where[0] - 0.6, where[0] + 0.6)
    # Below, where no line can run through it.
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    _tidy(axes)


def _series_name(name: str) -> str:
    """Return a history key as a reader sees it: `val_macro_f1` as "macro F1", `train_loss` as "training"."""
    known = {"train_loss": "training", "val_loss": "validation", "val_map": "mAP"}
    return known.get(name, name.removeprefix("val_").replace("_", " ").replace("f1", "F1"))


def _positions(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """Return the evaluations' places on the horizontal axis, and what they count."""
    for name in ("epoch", "step"):
        values = [_number(entry.get(name)) for entry in history]
        if all(math.isfinite(value) for value in values) and len(set(values)) == len(values):
            return values, name
    return [float(place) for place in range(1, len(history) + 1)], "evaluation"


def _matrix(values: Any, shape: tuple[int, int], what: str) -> np.ndarray:
    dense = values.toarray() if sp.issparse(values) else to_numpy(values)
    if dense.shape != shape:
        raise ValueError(f"{what} must be of shape {shape}, one row an image and one column a name; got {dense.shape}")
    return dense


def _picture(image: Any) -> np.ndarray:
    """Return an image (C, H, W) as (H, W) or (H, W, 3), float in [0, 1]."""
    array = to_numpy(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(f"an image must be of shape (C, H, W) with 1 or 3 channels; got {array.shape}")
    scaled = array / 255.0 if array.dtype == np.uint8 else np.clip(array.astype(np.float64), 0.0, 1.0)
    return scaled[0] if array.shape[0] == 1 else np.moveaxis(scaled, 0, 2)


def _lines(
    names: Sequence[str], scores: np.ndarray, present: np.ndarray, decided: np.ndarray, known: np.ndarray
) -> list[_Line]:
    """Return what stands below one image: right labels, then wrong, then missed, then those of unknown truth."""
    kinds = (
        ("✓", BLUE, "normal", known & present & decided),
        ("✗", ORANGE, "bold", known & ~present & decided),
        ("○", PURPLE, "bold", known & present & ~decided),
        ("?", GREY, "normal", ~known & decided),
    )
    lines = [
        _Line(f"{sign} {_short(names[label])} {scores[label]:.2f}", colour, weight)
        for sign, colour, weight, chosen in kinds
        for label in np.flatnonzero(chosen).tolist()
    ]
    if len(lines) > _LINES_OF_LABELS:
        left = len(lines) - _LINES_OF_LABELS + 1
        return [*lines[: _LINES_OF_LABELS - 1], _Line(f"... and {left} more", GREY, "normal")]
    return lines or [_Line("no labels", GREY, "normal")]


def _short(text: str, most: int = 20) -> str:
    """Return a name fit for one narrow line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _grid_of_pictures(
    pictures: Sequence[np.ndarray], lines: Sequence[Sequence[_Line]], heads: Sequence[str], *, columns: int
) -> Figure:
    """Return a figure with the pictures in rows; measures are inches."""
    side, gap, line = 1.5, 0.18, 0.165
    head = line if any(heads) else 0.0
    rows = math.ceil(len(pictures) / columns)
    cell = head + side + line * (max(len(own) for own in lines) + 0.8)
    width, height = columns * (side + gap) + gap, rows * cell + gap + line
    figure = _figure(width, height)
    for place, (picture, own, title) in enumerate(zip(pictures, lines, heads, strict=True)):
        left = gap + (place % columns) * (side + gap)
        top = height - gap - (place // columns) * cell - head
        axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        _write(figure, (left / width, (top + 0.3 * line) / height), _Line(title, GREY, "normal"))
        for row, text in enumerate(own):
            _write(figure, (left / width, (top - side - (row + 1) * line) / height), text)
    key = "✓ right    ✗ decided, not true    ○ true, missed    ? truth not known    (with scores)"
    _write(figure, (gap / width, 0.5 * line / height), _Line(key, GREY, "normal"))
    return figure


def _write(figure: Figure, place: tuple[float, float], line: _Line) -> None:
    # Label names are texts, never formulas: a dollar sign in one is a dollar sign.
    figure.text(*place, line.text, color=line.colour, fontweight=line.weight, fontsize=8, va="bottom", parse_math=False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _row_of_axes(figure: Figure, amount: int) -> list[Axes]:
    return _grid_of_axes(figure, amount, amount)


def _grid_of_axes(figure: Figure, amount: int, columns: int) -> list[Axes]:
    figure.set_layout_engine("constrained")
    return [figure.add_subplot(math.ceil(amount / columns), columns, place + 1) for place in range(amount)]


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file and return its path."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no reason to stop.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.savefig(content, format="png", metadata={"Software": None})
    write_atomically(path, content.getvalue())
    return Path(path)
