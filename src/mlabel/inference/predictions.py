"""Prediction files: TSV and CSV with one column a label, and JSON Lines."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from mlabel._checks import resolve
from mlabel.inference.tagger import Prediction
from mlabel.labels import LabelSpace

# How the files of a folder are told from others; what they really hold is found when they are read.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

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
    file: TextIO, predictions: Iterable[Prediction], *, space: LabelSpace, format: str = "tsv"
) -> int:
    """Write predictions to an open text file as they come, and return how many there were.

    `tsv` and `csv` have the image and then one 0/1 column a label; `jsonl` has one object a line with `image`, `labels`
    (those that hold) and `scores` (of all labels, by name).

    Args:
        file: Opened with `newline=""`.
        predictions: What to write.
        space: The label space of the predictions.
        format: `tsv`, `csv` or `jsonl`.

    Raises:
        ValueError: another format.
    """
    return resolve(format, FORMATS, "format")(file, predictions, space)


def _write_table(file: TextIO, predictions: Iterable[Prediction], space: LabelSpace, delimiter: str) -> int:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["image", *space.names])
    written = 0
    for prediction in predictions:
        writer.writerow([prediction.path, *prediction.decisions.astype(int).tolist()])
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
    "tsv": lambda file, predictions, space: _write_table(file, predictions, space, "\t"),
    "csv": lambda file, predictions, space: _write_table(file, predictions, space, ","),
    "jsonl": _write_lines,
}
