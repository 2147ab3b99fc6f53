"""Prediction files: TSV and CSV, JSON Lines, and Parquet."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from mlabel._checks import check_between, check_positive, require, resolve
from mlabel.inference.tagger import Prediction
from mlabel.labels import LabelSpace

_DELIMITERS = {"tsv": "\t", "csv": ","}
# What a cell begins with that a spreadsheet takes for a formula, the wide forms of East Asian input among it.
_RISKY = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_GROUP = 1024  # images that are written together in Parquet


@dataclass(frozen=True)
class Kept:
    """Which scores of an image are written.

    Attributes:
        top: So many, the highest; None: any number.
        above: Those from this one on; None: all.

    Raises:
        ValueError: `top` is not above 0, or `above` leaves [0, 1].
    """

    top: int | None = None
    above: float | None = None

    def __post_init__(self) -> None:
        if self.top is not None:
            check_positive(self.top, "top")
        if self.above is not None:
            check_between(self.above, 0.0, 1.0, "above")

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.top is None and self.above is None

    def columns(self, scores: np.ndarray) -> np.ndarray:
        """Return the columns of the scores (L,) that are kept: all in order, or else the highest first."""
        if self.everything:
            return np.arange(len(scores))
        columns = np.arange(len(scores)) if self.above is None else np.flatnonzero(scores >= self.above)
        return columns[np.argsort(-scores[columns], kind="stable")][: self.top]


Writer = Callable[[Any, Iterable[Prediction], LabelSpace, Kept], int]


def write_predictions(
    file: Any,
    predictions: Iterable[Prediction],
    *,
    space: LabelSpace,
    format: str = "tsv",
    top: int | None = None,
    above: float | None = None,
    for_spreadsheet: bool = False,
) -> int:
    """Write predictions to an open file as they come, and return how many there were.

    `tsv` and `csv` have the image and then one 0/1 column a label; with `top` or `above` they have one line a score
    that is kept, with the columns `image`, `label` and `score`. `jsonl` has one object a line with `image`, `labels`
    (those that hold) and `scores` (by name). `parquet` has the columns `image`, `labels`, `scored` (names) and
    `scores`, the last three lists. Scores have seven significant digits in text.

    Args:
        file: Opened for text with `newline=""`; for `parquet` for bytes.
        predictions: What to write.
        space: The label space of the predictions.
        format: `tsv`, `csv`, `jsonl` or `parquet`.
        top: Of each image keep so many scores, the highest; None: any number.
        above: Keep scores from this one on; None: all.
        for_spreadsheet: Write label names and paths so that no spreadsheet takes them for a formula; see
            `escape_cell`. Of `tsv` and `csv`.

    Raises:
        ValueError: another format; `for_spreadsheet` with one that no spreadsheet opens; `top` or `above` out of range.
        ImportError: `parquet` without pyarrow.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from mlabel.inference import Prediction
        >>> from mlabel.labels import Group
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> found = Prediction("a.jpg", {"cat": 0.75}, np.array([0.75, 0.25], np.float32), np.array([True, False]))
        >>> file = io.StringIO()
        >>> write_predictions(file, [found], space=space)
        1
        >>> file.getvalue().splitlines()
        ['image\\tcat\\tdog', 'a.jpg\\t1\\t0']
    """
    write = resolve(format, FORMATS, "format")
    kept = Kept(top, above)
    if not for_spreadsheet:
        return write(file, predictions, space, kept)
    if format not in _DELIMITERS:
        raise ValueError(f"for_spreadsheet is of the formats {' and '.join(_DELIMITERS)}; got format {format!r}")
    return _write_table(file, predictions, space, kept, delimiter=_DELIMITERS[format], cell=escape_cell)


def escape_cell(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula, so that a tag `=cmd` cannot run anything.

    A text whose first character, apostrophes apart, is one of = + - @, a tab or a line break gets an apostrophe before
    it; any other is left as it is. `unescape_cell` is the way back, for every text.

    Args:
        text: A label's name, or a path.

    Example:
        >>> escape_cell("=cmd"), escape_cell("cat"), escape_cell("'-)")
        ("'=cmd", 'cat', "''-)")
    """
    return "'" + text if _is_risky(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given.

    Args:
        text: What is in the cell.

    Example:
        >>> [unescape_cell(escape_cell(text)) for text in ("=cmd", "'=cmd", "'tis", "cat")]
        ['=cmd', "'=cmd", "'tis", 'cat']
    """
    return text[1:] if text.startswith("'") and _is_risky(text) else text


def _is_risky(text: str) -> bool:
    return text.lstrip("'")[:1] in _RISKY


def _write_table(
    file: Any,
    predictions: Iterable[Prediction],
    space: LabelSpace,
    kept: Kept,
    *,
    delimiter: str,
    cell: Callable[[str], str] = str,
) -> int:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    names = [cell(name) for name in space.names]
    writer.writerow(["image", *names] if kept.everything else ["image", "label", "score"])
    written = 0
    for prediction in predictions:
        image = cell(prediction.path)
        if kept.everything:
            writer.writerow([image, *prediction.decisions.astype(int).tolist()])
        else:
            columns = kept.columns(prediction.scores)
            writer.writerows([image, names[column], _digits(prediction.scores[column])] for column in columns)
        written += 1
    return written


def _write_lines(file: Any, predictions: Iterable[Prediction], space: LabelSpace, kept: Kept) -> int:
    written = 0
    for prediction in predictions:
        columns = kept.columns(prediction.scores)
        scores = {space.names[column]: float(_digits(prediction.scores[column])) for column in columns}
        line = {"image": prediction.path, "labels": list(prediction.labels), "scores": scores}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        written += 1
    return written


def _digits(score: np.float32) -> str:
    return f"{score:.7g}"


def _write_parquet(file: Any, predictions: Iterable[Prediction], space: LabelSpace, kept: Kept) -> int:
    pa, parquet = (require(name, "parquet") for name in ("pyarrow", "pyarrow.parquet"))
    texts = pa.list_(pa.string())
    columns = {"image": pa.string(), "labels": texts, "scored": texts, "scores": pa.list_(pa.float32())}
    schema = pa.schema(list(columns.items()))
    written = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for rows in _in_groups(predictions):
            held = [(prediction, kept.columns(prediction.scores)) for prediction in rows]
            values = {
                "image": [prediction.path for prediction in rows],
                "labels": [list(prediction.labels) for prediction in rows],
                "scored": [[space.names[column] for column in chosen] for _, chosen in held],
                "scores": [prediction.scores[chosen] for prediction, chosen in held],
            }
            writer.write_table(pa.table(values, schema=schema))
            written += len(rows)
    return written


def _in_groups(predictions: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    source = iter(predictions)
    while group := list(itertools.islice(source, _GROUP)):
        yield group


def _table_writer(delimiter: str) -> Writer:
    return lambda file, predictions, space, kept: _write_table(file, predictions, space, kept, delimiter=delimiter)


FORMATS: Mapping[str, Writer] = MappingProxyType(
    {
        **{name: _table_writer(delimiter) for name, delimiter in _DELIMITERS.items()},
        "jsonl": _write_lines,
        "parquet": _write_parquet,
    }
)
BINARY_FORMATS = frozenset({"parquet"})


def open_for_predictions(path: str | Path, format: str) -> IO[Any]:
    """Open a new file as `write_predictions` wants it for a format.

    Args:
        path: The file.
        format: `tsv`, `csv`, `jsonl` or `parquet`.

    Raises:
        OSError: it cannot be written there.

    Example:
        >>> import tempfile
        >>> with open_for_predictions(tempfile.mkdtemp() + "/found.csv", "csv") as file:
        ...     file.mode, file.newlines
        ('w', None)
    """
    if format in BINARY_FORMATS:
        return open(path, "wb")
    return open(path, "w", encoding="utf-8", newline="")
