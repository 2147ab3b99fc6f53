"""Prediction files: TSV and CSV with one column a label, and JSON Lines."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, resolve
from mlabel.data.readers._lines import fail, parse_json, read_lines, shown
from mlabel.inference.tagger import Prediction
from mlabel.labels import Group, LabelSpace

# How the files of a folder are told from others; what they really hold is found when they are read.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

_BATCH = 1024  # images whose scores are read together
_DELIMITERS = {"tsv": "\t", "csv": ","}
# What a cell begins with that a spreadsheet takes for a formula, the wide forms of East Asian input among it.
_RISKY = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

Writer = Callable[[TextIO, Iterable[Prediction], LabelSpace], int]


def find_images(sources: Sequence[str | Path]) -> list[str]:
    """Return the images that `sources` name: files as they are, folders by the image files below them, sorted.

    Raises:
        FileNotFoundError: a source is not there, or a folder holds no image file.

    Example:
        >>> find_images([])
        []
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"there is no file or folder {path}")
            found.append(str(path))
            continue
        below = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
        if not below:
            raise FileNotFoundError(f"{path} holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found += sorted(below)
    return found


def write_predictions(
    file: TextIO,
    predictions: Iterable[Prediction],
    *,
    space: LabelSpace,
    format: str = "tsv",
    for_spreadsheet: bool = False,
) -> int:
    """Write predictions to an open text file as they come, and return how many there were.

    `tsv` and `csv` have the image and then one 0/1 column a label; `jsonl` has one object a line with `image`, `labels`
    (those that hold) and `scores` (of all labels, by name).

    Args:
        file: Opened with `newline=""`.
        predictions: What to write.
        space: The label space of the predictions.
        format: `tsv`, `csv` or `jsonl`.
        for_spreadsheet: Write label names and paths so that no spreadsheet takes them for a formula; see
            `escape_cell`. Of `tsv` and `csv`.

    Raises:
        ValueError: another format, or `for_spreadsheet` with `jsonl`, which no spreadsheet opens.
    """
    write = resolve(format, FORMATS, "format")
    if not for_spreadsheet:
        return write(file, predictions, space)
    if format not in _DELIMITERS:
        raise ValueError(f"for_spreadsheet is of the formats {' and '.join(_DELIMITERS)}; got format {format!r}")
    return _write_table(file, predictions, space, _DELIMITERS[format], cell=escape_cell)


def read_predictions(path: str | Path) -> tuple[LabelSpace, Iterator[tuple[list[str], sp.csr_array, None]]]:
    """Return the labels of a `jsonl` file of predictions, and its images with their scores in batches.

    The batches are what `build_index` takes. Which group a label was of is not in the file: all are any-of here.

    Args:
        path: Of a file as `write_predictions` writes it; the scores of an object may be of some labels only.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a line is not such an object; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.jsonl")
        ...     _ = path.write_text('{"image": "a.jpg", "labels": [], "scores": {"cat": 0.2}}')
        ...     space, batches = read_predictions(path)
        ...     space.names, [names for names, _, _ in batches]
        (('cat',), [['a.jpg']])
    """
    columns: dict[str, int] = {}
    for _, scores in _read_scores(path):
        for name in scores:
            columns.setdefault(name, len(columns))
    if not columns:
        raise DataError(f"{path}: there are no scores in it")
    return LabelSpace([Group("tags", list(columns))]), _in_batches(path, columns)


def _in_batches(path: str | Path, columns: dict[str, int]) -> Iterator[tuple[list[str], sp.csr_array, None]]:
    lines = _read_scores(path)
    while part := list(itertools.islice(lines, _BATCH)):
        values = [value for _, scores in part for value in scores.values()]
        places = [columns[name] for _, scores in part for name in scores]
        starts = np.cumsum([0, *(len(scores) for _, scores in part)])
        yield (
            [image for image, _ in part],
            sp.csr_array((values, places, starts), shape=(len(part), len(columns))),
            None,
        )


def _read_scores(path: str | Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the image and the scores of each line."""
    for number, text in read_lines(path):
        if not text.strip():
            continue
        line = parse_json(path, number, text)
        scores = line.get("scores") if isinstance(line, dict) else None
        if not isinstance(scores, dict) or not isinstance(line.get("image"), str):
            raise fail(path, number, 'an object with "image" and "scores" was wanted')
        for name, value in scores.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise fail(path, number, f"the score of {shown(name)} must be from 0 to 1; got {shown(value)}")
        yield line["image"], scores


def escape_cell(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula, so that a tag `=cmd` cannot run anything.

    A text whose first character, apostrophes apart, is one of = + - @, a tab or a line break gets an apostrophe before
    it; any other is left as it is. `unescape_cell` is the way back, for every text.

    Example:
        >>> escape_cell("=cmd"), escape_cell("cat"), escape_cell("'-)")
        ("'=cmd", 'cat', "''-)")
    """
    return "'" + text if _is_risky(text) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given.

    Example:
        >>> [unescape_cell(escape_cell(text)) for text in ("=cmd", "'=cmd", "'tis", "cat")]
        ['=cmd', "'=cmd", "'tis", 'cat']
    """
    return text[1:] if text.startswith("'") and _is_risky(text) else text


def _is_risky(text: str) -> bool:
    return text.lstrip("'")[:1] in _RISKY


def _write_table(
    file: TextIO,
    predictions: Iterable[Prediction],
    space: LabelSpace,
    delimiter: str,
    *,
    cell: Callable[[str], str] = str,
) -> int:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["image", *map(cell, space.names)])
    written = 0
    for prediction in predictions:
        writer.writerow([cell(prediction.path), *prediction.decisions.astype(int).tolist()])
        written += 1
    return written


def _write_lines(file: TextIO, predictions: Iterable[Prediction], space: LabelSpace) -> int:
    written = 0
    for prediction in predictions:
        scores = {name: round(float(score), 6) for name, score in zip(space.names, prediction.scores, strict=True)}
        line = {"image": prediction.path, "labels": list(prediction.labels), "scores": scores}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        written += 1
    return written


FORMATS: dict[str, Writer] = {
    "tsv": lambda file, predictions, space: _write_table(file, predictions, space, _DELIMITERS["tsv"]),
    "csv": lambda file, predictions, space: _write_table(file, predictions, space, _DELIMITERS["csv"]),
    "jsonl": _write_lines,
}
