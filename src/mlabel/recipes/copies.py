"""Copies of a picture in one part: found once and kept with the run, so that opening it gives the same parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError
from mlabel._files import read_json, to_json, write_atomically
from mlabel.data import ImageTable, survey_images, unite_groups

FILE = "duplicates.json"
_FORMAT = "mlabel.duplicates/1"

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def keep_copies_together(
    table: ImageTable, distance: int, folder: str | Path, *, num_workers: int = 0, progress: Progress | None = None
) -> ImageTable:
    """Return the table with groups that keep copies of a picture, and what its own groups keep, in one part.

    Every image that can come into one part or another is read once. What was found is written into `folder`, by ids,
    and taken from there when it is asked for again of the same table and distance.

    Args:
        table: Without official parts, or with a training part off which the validation part is split.
        distance: Bits of 64 in which copies may differ; see `Survey.duplicates`.
        folder: Of the run.
        num_workers: Processes that read images.
        progress: Wraps what was read; see `survey_images`.

    Raises:
        ValueError: the table has official parts and nothing is split.
        DataError: the file in `folder` is damaged.
    """
    rows = _rows_to_split(table)
    sets = _read(Path(folder) / FILE, table[rows], distance)
    if sets is None:
        survey = survey_images(table[rows], num_workers=num_workers, progress=progress)
        sets = _sets(table.ids[rows], survey.duplicates(distance))
        _write(Path(folder) / FILE, table[rows], distance, sets)
    found = f"{sum(map(len, sets)):,} images are copies of {len(sets):,} pictures" if sets else "no image is a copy"
    note = f"{found} (hashes that differ in at most {distance} of 64 bits); copies stay in one part"
    groups = unite_groups(table.groups, _numbers(table.ids, sets))
    return dataclasses.replace(table, groups=groups, notes=(*table.notes, note))


def _rows_to_split(table: ImageTable) -> np.ndarray:
    """Return the rows that `table.parts` shares out."""
    if table.partition is None:
        return np.arange(len(table))
    given = set(table.partition.tolist())
    if "val" in given or "train" not in given:
        raise ValueError(
            f"the data has official parts ({', '.join(sorted(given))}), which stay as they are, so `duplicates` would "
            "change nothing; leave it out, and let `mlabel doctor` count the copies across parts"
        )
    return np.flatnonzero(table.partition == "train")


def _sets(ids: np.ndarray, numbers: np.ndarray) -> list[list[str]]:
    """Return the ids of each set of two images or more."""
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    return [ids[rows].tolist() for rows in np.split(order, bounds) if len(rows) > 1]


def _numbers(ids: np.ndarray, sets: list[list[str]]) -> np.ndarray:
    """Return for each id the number of its set (N,), each of the others having one of its own."""
    set_of = {name: len(ids) + number for number, held in enumerate(sets) for name in held}
    return np.array([set_of.get(name, row) for row, name in enumerate(ids.tolist())], dtype=np.int64)


def _read(path: Path, table: ImageTable, distance: int) -> list[list[str]] | None:
    """Return the sets that were found before; None where there is no file, or it is of other images or bits."""
    if not path.exists():
        return None
    data: Any = read_json(path)
    if not isinstance(data, dict) or data.get("format") != _FORMAT or not _are_sets(data.get("sets")):
        raise DataError(f"{path}: not a file of duplicates; remove it, and images are read again")
    same = data.get("distance") == distance and data.get("table") == table.fingerprint
    return data["sets"] if same else None


def _are_sets(sets: Any) -> bool:
    return isinstance(sets, list) and all(
        isinstance(held, list) and all(isinstance(name, str) for name in held) for held in sets
    )


def _write(path: Path, table: ImageTable, distance: int, sets: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"format": _FORMAT, "distance": distance, "table": table.fingerprint, "sets": sets}
    write_atomically(path, to_json(found))
