"""The page of a run, or of the doctor: one HTML file with everything in it, to be opened or sent to somebody."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from mlabel._files import write_atomically
from mlabel.report.matrices import plot_correlation
from mlabel.report.plots import plot_frequencies, plot_history, plot_labels_per_image
from mlabel.report.section import Picture, Section, Tile, as_text, render_section

if TYPE_CHECKING:
    from mlabel.data import Diagnosis
    from mlabel.metrics import Evaluation, Interval

_PACKAGES = ("mlabel", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow")
# What the table of labels shows of `Evaluation.per_label`, and under which title; after some the interval.
_LABEL_COLUMNS = {
    "support": "support",
    "ap": "AP",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "threshold": "threshold",
    "auroc": "AUROC",
    "predicted": "decided",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
    "tn": "TN",
}
_LABELS_TEXT = (
    "As in the last column of the metrics. A head sorts by its column; a name shows what was decided of the label. "
    "Precision, recall, F1 and counts are at the threshold shown; where there is none, the highest score of the group "
    "decides. A label without positives has no recall, F1 or AP."
)


def write_report(
    folder: str | Path,
    *,
    title: str,
    comparison: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    evaluation: Evaluation | None = None,
    label_intervals: Mapping[str, Interval] | None = None,
    label_groups: Sequence[str] | None = None,
    sections: Sequence[Section] = (),
    history: Sequence[Mapping[str, Any]] = (),
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
        intervals: Column title to metric to its interval; `Intervals` are such a mapping. None: none are shown.
        evaluation: What the table of labels shows; None: no such table.
        label_intervals: Statistic of labels to its interval, as `Intervals.per_label` has them; None: none are shown.
        label_groups: The group of each label, shown where there is more than one; None: not shown.
        sections: What follows the metrics, the curves and the labels.
        history: What `mlabel.fit` returned; empty: no curves.
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
    sections = list(sections)
    if history:
        picture = Picture(plot_history(history, folder / "history.png"), _describe_history(history))
        sections.insert(0, Section("Training", pictures={"": picture}))
    return _write_page(
        folder,
        title=title,
        columns=list(comparison),
        metrics=_metric_rows(comparison, intervals or {}),
        labels=None if evaluation is None else _label_data(evaluation, label_intervals or {}, label_groups),
        labels_text=_LABELS_TEXT,
        details=True,
        sections=sections,
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

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from mlabel.data import ImageTable, examine
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=["a.png", "b.png"], targets=[[1, 0], [1, 1]], space=space)
        >>> write_diagnosis(tempfile.mkdtemp(), examine({"all": table}), title="Cats and dogs").name
        'index.html'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(diagnosis.counts)
    totals = [sum(counts.values()) for counts in diagnosis.counts.values()]
    pictures = {"Label frequency": plot_frequencies(totals, folder / "frequency.png", names=names)}
    if diagnosis.labels_per_image.any():  # none where all groups are exclusive
        pictures["Labels per image"] = plot_labels_per_image(
            diagnosis.labels_per_image, folder / "labels-per-image.png"
        )
    if len(diagnosis.names) > 1:
        pictures["Correlation of the most frequent labels"] = plot_correlation(
            diagnosis.correlation, folder / "correlation.png", names=diagnosis.names
        )
    sizes = [f"{name}: {size:,} images" for name, size in diagnosis.num_images.items()]
    columns = [
        _column(part, "count", [counts[part] for counts in diagnosis.counts.values()]) for part in diagnosis.num_images
    ]
    return _write_page(
        folder,
        title=title,
        labels={"names": names, "columns": columns},
        sections=[Section(caption, pictures={"": Picture(path, caption)}) for caption, path in pictures.items()],
        notes=[*sizes, *map(str, diagnosis.findings), *diagnosis.facts()],
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
    sections = [Section(caption, galleries={"": tiles}) for caption, tiles in galleries.items()]
    return _write_page(folder, title=title, notes=list(notes), sections=sections)


# What the template shows where a page has no such part.
_EMPTY: Mapping[str, Any] = {
    "columns": (),
    "metrics": (),
    "labels": None,
    "labels_text": "",
    "details": False,
    "settings": {},
    "next_command": None,
}


def _write_page(folder: Path, *, sections: Sequence[Section], **parts: Any) -> Path:
    """Fill in the template; `parts` are its variables."""
    held = {**_EMPTY, **parts}
    shown = [render_section(each, place) for place, each in enumerate(sections, start=1)]
    contents = [("metrics-title", "Metrics")] if held["columns"] else []
    contents += [("labels-title", "Labels")] if held["labels"] else []
    contents += [(f"{each['id']}-title", each["title"]) for each in shown]
    # Both are files of ours, with no word of a user in them.
    own = {name: Markup(_own_text(f"page.{kind}")) for name, kind in (("style", "css"), ("script", "js"))}
    text = _template().render(sections=shown, contents=contents, versions=_versions(), **own, **held)
    write_atomically(folder / "index.html", text)
    return folder / "index.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_own_text("page.html"))


def _own_text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _metric_rows(
    comparison: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, Interval]]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each metric its name, and for each column the number and the ends of its interval."""

    def shown(title: str, name: str) -> tuple[str, str]:
        ends = "" if name.startswith("num_") else _ends(intervals.get(title, {}).get(name))
        return as_text(comparison[title].get(name)), ends

    names = dict.fromkeys(name for column in comparison.values() for name in column)
    return [(name, [shown(title, name) for title in comparison]) for name in names]


def _ends(interval: Interval | None) -> str:
    return "" if interval is None or np.isnan(interval.low) else f"{interval.low:.3f}–{interval.high:.3f}"


def _label_data(
    evaluation: Evaluation, intervals: Mapping[str, Interval], groups: Sequence[str] | None
) -> dict[str, Any]:
    """Return names and columns of the table of labels."""
    columns = []
    if groups is not None and len(set(groups)) > 1:
        columns.append(_column("group", "words", groups))
    for name, title in _LABEL_COLUMNS.items():
        values = np.asarray(evaluation.per_label[name])
        if name == "threshold" and np.isnan(values).all():
            continue  # all groups are exclusive, or labels are compared with each other
        columns.append(_column(title, "count" if values.dtype.kind in "iu" else "number", values.tolist()))
        if name in ("ap", "f1") and name in intervals:
            ends = np.stack([intervals[name].low, intervals[name].high], axis=1)
            columns.append(_column(f"{title} interval", "interval", ends.tolist()))
    return {"names": list(evaluation.names), "columns": columns}


def _column(title: str, kind: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return a column of the table of labels as JSON has it; NaN is None, and what is infinite is text."""
    return {"title": title, "kind": kind, "values": [_plain(value) for value in values]}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        ends = [_plain(each) for each in value]
        return None if None in ends else ends
    if isinstance(value, float) and np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value


def _describe_history(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the last numbers of a training, for those who do not see the curves."""
    last = {name: value for name, value in history[-1].items() if isinstance(value, float) and value == value}
    return "Losses and validation metrics; at the end " + ", ".join(f"{name} {v:.4f}" for name, v in last.items())


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
