"""What prediction and search begin with: images by path, and files of predictions that are there."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError
from mlabel.data.readers._lines import fail, parse_json, read_lines, shown
from mlabel.labels import Group, LabelSpace

# How the files of a folder are told from others; what they really hold is found when they are read.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

_BATCH = 1024  # images whose scores are read together


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
