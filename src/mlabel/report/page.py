"""The page of a run, or of the doctor: one HTML file with everything in it, to be opened or sent to somebody."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from mlabel._files import write_atomically
from mlabel.data.images import read_image
from mlabel.report.plots import plot_correlation, plot_frequencies, plot_history, plot_labels_per_image

if TYPE_CHECKING:
    from mlabel.data import Diagnosis
    from mlabel.metrics import Evaluation

_PACKAGES = ("mlabel", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow")
_THUMBNAIL = (320, 320)  # at most, in pixels
# Which files may be put into the page, by their first bytes.
_IMAGE_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
# What the table of labels shows of `Evaluation.per_label`, and under which title.
_LABEL_COLUMNS = {
    "support": "support",
    "predicted": "predicted",
    "threshold": "threshold",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ap": "AP",
    "auroc": "AUROC",
}


class Tile(NamedTuple):
    """A picture of a gallery.

    Attributes:
        image: A path, an address such as `a.tar@1536+20000`, or pixels uint8 (H, W, 3).
        lines: What stands under it; the first is what it is called.
    """

    image: str | Path | np.ndarray
    lines: Sequence[str]


class _Cell(NamedTuple):
    """A cell of a table: what is read, and what is sorted by (empty: after all others)."""

    text: str
    value: str


def write_report(
    folder: str | Path,
    *,
    title: str,
    comparison: Mapping[str, Mapping[str, float]],
    evaluation: Evaluation | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    pictures: Mapping[str, str | Path] | None = None,
    config: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    next_command: str | None = None,
) -> Path:
    """Write `index.html` into a folder, with the curves as `history.png` beside it, and return the page's path.

    The page needs no network and no other file: images are inside. Texts, label names among them, are shown as they
    are and never read as HTML.

    Args:
        folder: Where to write; made where it is not there.
        title: The page's heading.
        comparison: Column title to metric values, such as the prior baseline, at 0.5 and calibrated. An `Evaluation` is
            such a mapping. A metric that a column lacks is shown as a dash.
        evaluation: What the table of labels shows; None: no such table.
        tables: Caption to rows of the same keys, such as `mlabel.metrics.frequency_rows` gives; None: none.
        history: What `mlabel.fit` returned; empty: no curves.
        pictures: Caption to a PNG or JPEG file, shown in this order; None: none.
        config: The settings of the run, nested as they come; None: none.
        notes: Sentences that a reader of the figures must know.
        next_command: What to type next; None: nothing is suggested.

    Raises:
        FileNotFoundError: a picture is not there.
        ValueError: no column to compare, or a picture that is neither PNG nor JPEG.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(folder, title="Cats & dogs", comparison={"at 0.5": {"macro_f1": 0.91}})
        ...     "Cats &amp; dogs" in page.read_text(encoding="utf-8")
        True
    """
    if not comparison:
        raise ValueError("comparison is empty; at least one column of metrics was wanted")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = dict(pictures or {})
    if history:
        shown = {"Training": plot_history(history, folder / "history.png"), **shown}
    return _write_page(
        folder,
        title=title,
        columns=list(comparison),
        metrics=_metric_rows(comparison),
        tables=[_plain_table(caption, rows) for caption, rows in (tables or {}).items() if rows],
        label_columns=list(_LABEL_COLUMNS.values()),
        labels=[] if evaluation is None else _label_rows(evaluation),
        pictures=shown,
        settings=dict(_flatten(config or {})),
        notes=list(notes),
        next_command=next_command,
    )


def write_diagnosis(folder: str | Path, diagnosis: Diagnosis, *, title: str) -> Path:
    """Write what the doctor found as `index.html` into a folder, its pictures beside it, and return the page's path.

    Args:
        folder: Where to write; made where it is not there.
        diagnosis: What `mlabel.data.examine` returned.
        title: The page's heading.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    totals = [sum(counts.values()) for counts in diagnosis.counts.values()]
    pictures = {"Label frequency": plot_frequencies(totals, folder / "frequency.png", names=list(diagnosis.counts))}
    if diagnosis.labels_per_image.any():  # none where all groups are exclusive
        pictures["Labels per image"] = plot_labels_per_image(
            diagnosis.labels_per_image, folder / "labels-per-image.png"
        )
    if len(diagnosis.names) > 1:
        pictures["Correlation of the most frequent labels"] = plot_correlation(
            diagnosis.correlation, folder / "correlation.png", names=diagnosis.names
        )
    sizes = [f"{name}: {size:,} images" for name, size in diagnosis.num_images.items()]
    return _write_page(
        folder,
        title=title,
        columns=[],
        metrics=[],
        tables=[],
        label_columns=list(diagnosis.num_images),
        labels=[(name, [_cell(number) for number in counts.values()]) for name, counts in diagnosis.counts.items()],
        pictures=pictures,
        settings={},
        notes=[*sizes, *map(str, diagnosis.findings), *diagnosis.facts()],
        next_command=None,
    )


def write_gallery(
    folder: str | Path, galleries: Mapping[str, Sequence[Tile]], *, title: str, notes: Sequence[str] = ()
) -> Path:
    """Write pictures with lines under each as `index.html` into a folder, and return the page's path.

    The pictures are inside the page, so that it can be sent to somebody.

    Args:
        folder: Where to write; made where it is not there.
        galleries: Caption to its pictures.
        title: The page's heading.
        notes: Sentences under it.

    Raises:
        ImageError: a picture cannot be read.

    Example:
        >>> import tempfile
        >>> tile = Tile(np.zeros((30, 40, 3), np.uint8), ["a.jpg", "cat 0.93"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_gallery(folder, {"Found": [tile]}, title="cat AND NOT dog")
        ...     "cat 0.93" in page.read_text(encoding="utf-8")
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = {
        caption: [{"source": _as_thumbnail(tile.image), "lines": list(tile.lines)} for tile in tiles]
        for caption, tiles in galleries.items()
    }
    empty: dict[str, Any] = dict.fromkeys(("columns", "metrics", "tables", "label_columns", "labels"), ())
    return _write_page(
        folder, title=title, pictures={}, galleries=shown, settings={}, notes=list(notes), next_command=None, **empty
    )


def _as_thumbnail(image: str | Path | np.ndarray) -> str:
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    picture = Image.fromarray(pixels)
    picture.thumbnail(_THUMBNAIL)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _write_page(
    folder: Path,
    *,
    pictures: Mapping[str, str | Path],
    galleries: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **parts: Any,
) -> Path:
    """Fill in the template; `parts` are its variables."""
    sources = {caption: _as_data_url(path) for caption, path in pictures.items()}
    text = _template().render(pictures=sources, galleries=galleries or {}, versions=_versions(), **parts)
    write_atomically(folder / "index.html", text)
    return folder / "index.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _metric_rows(comparison: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for column in comparison.values() for name in column)
    return [(name, [_cell(column.get(name)).text for column in comparison.values()]) for name in names]


def _plain_table(caption: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """Return a caption, the heads of the columns, and the rows of cells."""
    shown = [[value if isinstance(value, str) else _cell(value).text for value in row.values()] for row in rows]
    return caption, [name.replace("_", " ") for name in rows[0]], shown


def _label_rows(evaluation: Evaluation) -> list[tuple[str, list[_Cell]]]:
    """Return for each label its name and the cells of `_LABEL_COLUMNS`."""
    arrays = [np.asarray(evaluation.per_label[name]).tolist() for name in _LABEL_COLUMNS]
    rows = zip(*arrays, strict=True)
    return [(name, [_cell(value) for value in row]) for name, row in zip(evaluation.names, rows, strict=True)]


def _cell(value: Any) -> _Cell:
    """Return a number as it is shown: whole numbers as such, others with four decimals, what is not there as a dash."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return _Cell("–", "")
    if isinstance(value, bool | int | np.integer):
        return _Cell(str(int(value)), str(int(value)))
    return _Cell(f"{value:.4f}", repr(float(value)))


def _as_data_url(path: str | Path) -> str:
    content = Path(path).read_bytes()
    for start, kind in _IMAGE_KINDS.items():
        if content.startswith(start):
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    raise ValueError(f"{path} is neither a PNG nor a JPEG file")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
