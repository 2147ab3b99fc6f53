"""What prediction and search begin with: images by path, and files of predictions that are there."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, require
from mlabel.data.readers._lines import fail, parse_json, read_lines, shown
from mlabel.labels import Group, LabelSpace

# How the files of a folder are told from others; what they really hold is found when they are read.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

_MAX_GROUP = 2**28  # bytes, unpacked, of a group of rows in Parquet
_BATCH = 1024  # images whose scores are read together
_MOST_SCORES = 2**22  # of an image, and of images that become Python objects together


def find_images(sources: Sequence[str | Path]) -> list[str]:
    """Return the images that `sources` name: files as they are, folders by the image files below them, sorted.

    Args:
        sources: Files and folders.

    Raises:
        FileNotFoundError: a source is not there, or a folder holds no image file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.jpg", "notes.txt"):
        ...     (folder / name).touch()
        >>> [Path(path).name for path in find_images([folder])]
        ['a.jpg', 'b.png']
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


def read_list(path: str | Path) -> list[str]:
    """Return the paths in a file with one a line, as they stand there; the file `-` is stdin.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not UTF-8, or has a line longer than memory should bear.
        ValueError: there is no path in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.txt"
        >>> _ = path.write_text("b.png\\na.jpg\\n")
        >>> read_list(path)
        ['b.png', 'a.jpg']
    """
    lines = (line.rstrip("\n") for line in sys.stdin) if str(path) == "-" else (text for _, text in read_lines(path))
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"{'stdin' if str(path) == '-' else path}: there is no path in it")
    return found


def read_predictions(path: str | Path) -> tuple[LabelSpace, Iterator[tuple[list[str], sp.csr_array, None]]]:
    """Return the labels of predictions in files, and the images with their scores in batches.

    The batches are what `build_index` takes. Which group a label was of is not in the files: all are any-of here.

    Args:
        path: A file that `write_predictions` wrote as `jsonl` or `parquet`, or a folder of such parts. The scores of an
            image may be of some labels only.

    Raises:
        FileNotFoundError: there is no such file, or a folder without parts.
        DataError: a file is not what `write_predictions` writes; the message names file and line.
        ImportError: `parquet` without pyarrow.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "predictions.jsonl")
        ...     _ = path.write_text('{"image": "a.jpg", "labels": [], "scores": {"cat": 0.2}}')
        ...     space, batches = read_predictions(path)
        ...     space.names, [names for names, _, _ in batches]
        (('cat',), [['a.jpg']])
    """
    files = _prediction_files(Path(path))
    columns: dict[str, int] = {}
    for _, scores in _read_scores(files):
        for name in scores:
            columns.setdefault(name, len(columns))
    if not columns:
        raise DataError(f"{path}: there are no scores in it")
    return LabelSpace([Group("tags", list(columns))]), _in_batches(files, columns)


def _prediction_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for suffix in _READERS:
        files = [each for each in sorted(path.glob(f"part-*{suffix}")) if not each.name.endswith(".bad.jsonl")]
        if files:
            return files
    raise FileNotFoundError(
        f"{path} holds no parts of predictions ({' or '.join(f'part-*{each}' for each in _READERS)})"
    )


def _in_batches(files: Sequence[Path], columns: dict[str, int]) -> Iterator[tuple[list[str], sp.csr_array, None]]:
    lines = _read_scores(files)
    while part := list(itertools.islice(lines, _BATCH)):
        values = [value for _, scores in part for value in scores.values()]
        places = [columns[name] for _, scores in part for name in scores]
        starts = np.cumsum([0, *(len(scores) for _, scores in part)])
        yield (
            [image for image, _ in part],
            sp.csr_array((values, places, starts), shape=(len(part), len(columns))),
            None,
        )


def _read_scores(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each image and its scores."""
    for path in files:
        for number, image, scores in _READERS.get(path.suffix, _read_lines)(path):
            for name, value in scores.items():
                if not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise fail(path, number, f"the score of {shown(name)} must be from 0 to 1; got {shown(value)}")
            yield image, scores


def _read_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, text in read_lines(path):
        if not text.strip():
            continue
        line = parse_json(path, number, text)
        scores = line.get("scores") if isinstance(line, dict) else None
        if not isinstance(scores, dict) or not isinstance(line.get("image"), str):
            raise fail(path, number, 'an object with "image" and "scores" was wanted')
        yield number, line["image"], scores


def _read_parquet(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    pa, parquet = (require(name, "parquet") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        with parquet.ParquetFile(path, thrift_string_size_limit=2**26, thrift_container_size_limit=2**20) as file:
            _check_groups(path, file.metadata)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=["image", "scored", "scores"]):
                for row in _rows_of(batch, path, number):
                    number += 1
                    yield number, row["image"], dict(zip(row["scored"], row["scores"], strict=True))
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a file of predictions: {error}") from error


def _rows_of(batch: Any, path: Path, number: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch from Parquet; `number` are those before it.

    A few bytes of Parquet can stand for any number of equal values. So what a row holds is counted before it becomes
    Python objects.
    """
    arrays = [batch.column(name) for name in ("scored", "scores")]
    lengths = np.max([np.asarray(array.value_lengths().fill_null(0)) for array in arrays], axis=0)
    for row in np.flatnonzero(lengths > _MOST_SCORES):
        raise DataError(
            f"{path}: row {number + row + 1} holds {lengths[row]:,} scores; at most {_MOST_SCORES:,} were wanted"
        )
    if batch.nbytes > _MAX_GROUP:
        raise DataError(
            f"{path}: rows from {number + 1} on take {batch.nbytes:,} bytes; at most {_MAX_GROUP:,} were wanted"
        )
    whole = int(lengths.sum()) <= _MOST_SCORES
    for part in [batch] if whole else (batch.slice(row, 1) for row in range(len(batch))):
        yield from part.to_pylist()


def _check_groups(path: Path, about: Any) -> None:
    """Refuse a file whose groups of rows, of which one is unpacked at a time, are larger than memory should bear."""
    for place in range(about.num_row_groups):
        size = about.row_group(place).total_byte_size
        if size > _MAX_GROUP:
            raise DataError(f"{path}: row group {place} unpacks to {size:,} bytes; at most {_MAX_GROUP:,} were wanted")


_READERS = {".jsonl": _read_lines, ".parquet": _read_parquet}
