"""The index beside a tar of samples: where each image lies, its checksum, and what is known about it.

`a.index.json` belongs to `a.tar`. It holds columns rather than samples, each a list with one entry a sample, which JSON
reads several times as fast; labels are numbers of the label space that it holds too, so a tar and its index suffice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError
from mlabel._files import read_json
from mlabel.data._tar import BLOCK, padded
from mlabel.data.table import PARTS
from mlabel.labels import LabelSpace

FORMAT = "mlabel.shard/1"
MANIFEST_FORMAT = "mlabel.shards/1"
SUFFIX, MANIFEST, LABELS = ".index.json", "shards.json", "labels.json"


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What one tar holds: n samples, in their order.

    Attributes:
        space: The meaning of the columns of targets.
        tar_size: Of the tar, in bytes.
        tar_sha256: Of the tar.
        rows: Which samples these are, from and to, in the order of writing; those left out count.
        skipped: Ids and reasons of samples whose images could not be read.
        members: Names of the images in the tar, `key.jpg`.
        ids: Of the samples.
        offsets: (n,) int64, where the bytes of each image begin.
        sizes: (n,) int64, how many they are.
        hashes: SHA-256 of each image.
        labels: For each sample the columns that hold.
        unknown: For each sample the columns that are not known, but for those of `unknown_groups`.
        unknown_groups: For each sample the numbers of the groups of which nothing is known.
        parts: For each sample "train", "val" or "test", or None.
        groups: For each sample what a split must keep together, or None.
    """

    space: LabelSpace
    tar_size: int
    tar_sha256: str
    rows: tuple[int, int]
    skipped: list[tuple[str, str]]
    members: list[str]
    ids: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    hashes: list[str]
    labels: list[list[int]]
    unknown: list[list[int]]
    unknown_groups: list[list[int]]
    parts: list[str] | None
    groups: list[str] | list[int] | None

    def __len__(self) -> int:
        return len(self.ids)

    def to_json(self) -> str:
        """Return the index as one line of JSON a column."""
        values = {
            "format": FORMAT,
            "tar": {"size": self.tar_size, "sha256": self.tar_sha256},
            "space": self.space.to_dict(),
            "rows": list(self.rows),
            "skipped": [list(each) for each in self.skipped],
            "member": self.members,
            "id": self.ids,
            "offset": self.offsets.tolist(),
            "size": self.sizes.tolist(),
            "sha256": self.hashes,
            "labels": self.labels,
            "unknown": self.unknown,
            "unknown_groups": self.unknown_groups,
            "part": self.parts,
            "group": self.groups,
        }
        lines = (f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in values.items())
        return "{" + ",\n".join(lines) + "}\n"

    @classmethod
    def load(cls, path: str | Path) -> ShardIndex:
        """Return the index in the file `path`.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is no index, or what it says cannot be.
        """
        values = load_object(path, FORMAT)
        try:
            index = cls._from_values(values)
            _check_places(index)
        except KeyError as error:
            raise DataError(f"{path}: no entry {error}") from None
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise DataError(f"{path}: {error}") from None
        return index

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> ShardIndex:
        ids = _texts(values["id"], None, "id")
        n = len(ids)
        space = LabelSpace.from_dict(_of_type(values["space"], dict, "space"))
        start, stop = _integers(values["rows"], "rows").tolist()
        columns = {
            name: _lists(values[name], n, bound, name)
            for name, bound in (
                ("labels", space.num_labels),
                ("unknown", space.num_labels),
                ("unknown_groups", len(space.groups)),
            )
        }
        tar = _of_type(values["tar"], dict, "tar")
        return cls(
            space=space,
            tar_size=_of_type(tar["size"], int, "size of the tar"),
            tar_sha256=_of_type(tar["sha256"], str, "sha256 of the tar"),
            rows=(start, stop),
            skipped=[(str(name), str(reason)) for name, reason in values["skipped"]],
            members=_texts(values["member"], n, "member"),
            ids=ids,
            offsets=_integers(values["offset"], "offset", n),
            sizes=_integers(values["size"], "size", n),
            hashes=_texts(values["sha256"], n, "sha256"),
            parts=_parts(values["part"], n),
            groups=_groups(values["group"], n),
            **columns,
        )

    def targets(self) -> sp.csr_array:
        """Return what holds, CSR uint8 (n, L)."""
        return _as_matrix(self.labels, self.space.num_labels).astype(np.uint8)

    def unknown_matrix(self) -> sp.csr_array:
        """Return what is not known, CSR bool (n, L), True = unknown."""
        spans = [self.space.slices[group.name] for group in self.space.groups]
        ranges = [range(span.start, span.stop) for span in spans]
        rows = self.unknown
        if any(self.unknown_groups):
            rows = [
                [*some, *chain.from_iterable(ranges[number] for number in whole)]
                for some, whole in zip(rows, self.unknown_groups, strict=True)
            ]
        return _as_matrix(rows, self.space.num_labels)


def index_path(tar: str | Path) -> Path:
    """Return where the index of a tar is."""
    return Path(tar).with_suffix(SUFFIX)


def load_space(folder: Path) -> LabelSpace | None:
    """Return the label space in a folder's `labels.json`; None where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    path = folder / LABELS
    if not path.is_file():
        return None
    try:
        return LabelSpace.load(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


def check_space(path: Path, space: LabelSpace, wanted: LabelSpace) -> None:
    """Raise DataError unless the space of the index in `path` is the one that is wanted."""
    try:
        wanted.check_same(space, path.name)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def load_object(path: str | Path, wanted: str) -> dict[str, Any]:
    """Return the JSON object in the file `path`, whose entry "format" is `wanted`.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values = read_json(path)
    except DataError:
        raise
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(f"{path}: {error}") from None
    found = values.get("format") if isinstance(values, dict) else values
    if found != wanted:
        raise DataError(f"{path}: wanted format {wanted!r}; found {found!r:.80}")
    return dict(values)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the folder of shards says about itself; None where it does not.

    Raises:
        DataError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    values = load_object(path, MANIFEST_FORMAT)
    try:
        _of_type(values["settings"], dict, "settings")
        _of_type(values["table"], str, "table")
        for shard in _of_type(values["shards"], list, "shards"):
            name = _of_type(shard["name"], str, "name of a shard")
            if Path(name).name != name:
                raise ValueError(f"{name!r} is not the name of a file in this folder")
            _of_type(shard["index_sha256"], str, "index_sha256")
        _of_type(values["complete"], bool, "complete")
    except KeyError as error:
        raise DataError(f"{path}: no entry {error}") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from None
    return values


def _check_places(index: ShardIndex) -> None:
    """Raise ValueError unless the members lie in the tar, one behind the other, and their names are unique."""
    if index.tar_size < 0 or not 0 <= index.rows[0] <= index.rows[1]:
        raise ValueError(f"the tar cannot have {index.tar_size} bytes and rows {index.rows}")
    if len(set(index.members)) < len(index):
        raise ValueError("a member is given twice")
    starts, sizes = index.offsets.tolist(), index.sizes.tolist()
    for name, start, size in zip(index.members, starts, sizes, strict=True):
        if start < BLOCK or start % BLOCK or size < 0 or start + padded(size) > index.tar_size:
            raise ValueError(f"member {name!a:.120} cannot lie at byte {start} with {size} bytes in its tar")
    for (start, size, name), (following, _, other) in pairwise(sorted(zip(starts, sizes, index.members, strict=True))):
        if start + padded(size) + BLOCK > following:
            raise ValueError(f"members {name!a:.120} and {other!a:.120} overlap")


def _of_type(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{what} must be of type {kind.__name__}; got {value!r:.80}")
    return value


def _of_length(values: Any, n: int | None, what: str) -> list[Any]:
    held: list[Any] = _of_type(values, list, what)
    if n is not None and len(held) != n:
        raise ValueError(f"{what} must have an entry for each of {n} samples; got {len(held)}")
    return held


def _texts(values: Any, n: int | None, what: str) -> list[str]:
    held = _of_length(values, n, what)
    odd = next((value for value in held if type(value) is not str), None)
    if odd is not None or None in held:
        raise TypeError(f"{what} must hold texts; got {odd!r:.80}")
    return held


def _integers(values: Any, what: str, n: int | None = None) -> np.ndarray:
    """Return a list of integers as int64 (n,); NumPy alone would take texts, fractions and truths for some."""
    held = np.array(_of_length(values, n, what) or np.zeros(0, dtype=np.int64))
    if held.dtype.kind not in "iu" or held.ndim != 1:
        raise TypeError(f"{what} must hold integers")
    return held.astype(np.int64)


def _lists(values: Any, n: int, bound: int, what: str) -> list[list[int]]:
    """Return lists of columns, one a sample, after a look at each of them."""
    held = _of_length(values, n, what)
    if not all(type(each) is list for each in held):
        raise TypeError(f"{what} must hold a list for each sample")
    columns = _integers(list(chain.from_iterable(held)), what)
    if len(columns) and not 0 <= columns.min() <= columns.max() < bound:
        raise ValueError(f"{what} must hold numbers from 0 to {bound - 1}; got {columns.min()} and {columns.max()}")
    return held


def _parts(values: Any, n: int) -> list[str] | None:
    if values is None:
        return None
    held = _texts(values, n, "part")
    if not set(held) <= set(PARTS):
        raise ValueError(f"part must hold {', '.join(PARTS)}; got {min(set(held) - set(PARTS))!r:.80}")
    return held


def _groups(values: Any, n: int) -> list[str] | list[int] | None:
    if values is None:
        return None
    held = _of_length(values, n, "group")
    if held and type(held[0]) is str:
        return _texts(held, n, "group")
    numbers: list[int] = _integers(held, "group").tolist()
    return numbers


def _as_matrix(rows: Iterable[Sequence[int]], width: int) -> sp.csr_array:
    """Return a CSR bool matrix that is True at these columns of each row."""
    rows = list(rows)
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(ends[-1]))
    matrix = sp.csr_array((np.ones(len(columns), dtype=bool), columns, ends), shape=(len(rows), width))
    matrix.sum_duplicates()
    return matrix
