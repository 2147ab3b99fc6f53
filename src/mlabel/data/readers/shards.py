"""Shards: tars of images and labels that `write_shards` made, or those of others in the layout of WebDataset."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, resolve
from mlabel.data._shard_index import MANIFEST, ShardIndex, check_space, index_path, load_space, read_manifest
from mlabel.data._tar import Member, walk
from mlabel.data.images import member_address
from mlabel.data.readers._columns import PART_NAMES
from mlabel.data.readers._lines import IMAGE_SUFFIXES, refuse_repeats, shown
from mlabel.data.readers._tags import TagRows, Vocabulary, as_vocabulary
from mlabel.data.shard_checks import check_manifest, content_problems, find_tars, manifest_problems, size_problem
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

VERIFY = {
    "none": "trust the indices",
    "size": "compare sizes, and the headers of the first and the last image of each tar",
    "sha256": "compare every byte with the checksums",
}
_MAX_JSON = 1 << 24


def read_shards(
    folder: str | Path,
    *,
    verify: str = "size",
    labels_field: str = "labels",
    min_count: int = 1,
    vocabulary: Vocabulary | None = None,
) -> ImageTable:
    """Return the table of a folder of tars, whose images are read where they lie; nothing is extracted.

    The table's paths are addresses such as `shard-000000.tar@1536+20000`, which all that reads images understands: the
    loader shuffles over all tars, with any number of workers, and resumes exactly, as it does with files.

    Tars that `write_shards` made have an index each, and give the table back that was written. Of other tars, the
    headers are walked: `a.jpg` and `a.json` are a sample, whose JSON holds a list of `labels`, and may hold `id`,
    `unknown` (a list of labels), `part` and `group`. Their labels are those of `labels.json` in the folder, or of
    `vocabulary`, or else all that are found, an any-of group "tags", the most frequent first.

    Args:
        folder: Of the tars; or one tar.
        verify: Of tars with an index: "none" trusts it, "size" compares what takes no time, "sha256" reads every byte.
        labels_field: Of tars without: the entry of the JSON that lists the labels, such as "tags".
        min_count: Of tars without: labels on fewer images are left out; not used where the labels are given.
        vocabulary: Of tars without: what the labels are; see `read_sidecar`.

    Raises:
        FileNotFoundError: there is no tar.
        ValueError: an option that does not fit, such as a vocabulary for tars with an index.
        DataError: a tar, index or member is damaged, missing, of another table, or no regular file; with its place.

    Example:
        >>> import io, tarfile, tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("L", (30, 20), 7).save(folder / "a.png")
        >>> _ = (folder / "a.json").write_text('{"labels": ["cat", "dog"]}')
        >>> with tarfile.open(folder / "x.tar", "w") as tar:
        ...     tar.add(folder / "a.png", "a.png"), tar.add(folder / "a.json", "a.json")
        (None, None)
        >>> table = read_shards(folder)
        >>> table.ids.tolist(), table.space.decode(table.targets)
        (['a'], [['cat', 'dog']])
    """
    resolve(verify, VERIFY, "value of verify=")
    folder = Path(folder)
    tars = find_tars(folder)
    root = tars[0].parent
    if folder.is_dir():
        check_manifest(folder, tars)
    bare = [tar for tar in tars if not index_path(tar).is_file()]
    if bare and (len(bare) < len(tars) or (root / MANIFEST).exists()):
        raise DataError(f"{bare[0]}: its index {index_path(bare[0]).name} is not there, and others are; write it again")
    given = load_space(root)
    if bare:
        if verify == "sha256":
            raise ValueError(f"{folder}: without an index there are no checksums to verify")
        return _walked_table(tars, given, labels_field=labels_field, min_count=min_count, vocabulary=vocabulary)
    if vocabulary is not None or min_count != 1:
        raise ValueError(f"{folder}: these shards have their labels; choose among them with table.select_labels")
    return _indexed_table(folder, tars, given, verify)


def _indexed_table(folder: Path, tars: Sequence[Path], space: LabelSpace | None, verify: str) -> ImageTable:
    """Return the table that the indices tell of."""
    if verify == "sha256" and folder.is_dir() and (manifest := read_manifest(folder)) is not None:
        _refuse(manifest_problems(folder, manifest))
    joined = _Joined()
    for tar in tars:
        index = ShardIndex.load(index_path(tar))
        space = index.space if space is None else space
        check_space(index_path(tar), index.space, space)
        if verify != "none":
            _refuse([problem] if (problem := size_problem(tar, index)) else [])
        if verify == "sha256":
            _refuse(content_problems(tar, index))
        joined.add(tar, index)
    assert space is not None
    return joined.table(folder, space)


def _refuse(problems: Iterator[str] | list[str]) -> None:
    for problem in problems:
        raise DataError(problem)


class _Joined:
    """The samples of several indices, as arrays: lists of texts would take several times the memory."""

    def __init__(self) -> None:
        self.tars: list[Path] = []
        self.ends: list[int] = []
        self.texts: list[tuple[np.ndarray, np.ndarray]] = []
        self.matrices: list[tuple[sp.csr_array, sp.csr_array]] = []
        self.parts: list[list[str] | None] = []
        self.groups: list[list[str] | list[int] | None] = []
        self.skipped = 0

    def add(self, tar: Path, index: ShardIndex) -> None:
        """Add the samples of a tar."""
        places = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
        paths = [member_address(tar, offset, size) for offset, size in places]
        text: Any = np.dtypes.StringDType()
        try:
            self.texts.append((np.array(paths, dtype=text), np.array(index.ids, dtype=text)))
        except ValueError as error:  # half of a surrogate pair
            raise DataError(f"{index_path(tar)}: {error}") from None
        self.tars.append(tar)
        self.ends.append(len(index) + (self.ends[-1] if self.ends else 0))
        self.matrices.append((index.targets(), index.unknown_matrix()))
        self.parts.append(index.parts)
        self.groups.append(index.groups)
        self.skipped += len(index.skipped)

    def table(self, folder: Path, space: LabelSpace) -> ImageTable:
        """Return all of it as a table."""
        paths, ids = (np.concatenate(column) for column in zip(*self.texts, strict=True))
        targets, unknown = (
            sp.csr_array(sp.vstack(blocks, format="csr")) for blocks in zip(*self.matrices, strict=True)
        )
        notes = [f"{self.skipped:,} images were left out when the shards were written"] if self.skipped else []
        return _checked_table(
            folder,
            lambda row: str(self.tars[bisect_right(self.ends, row)]),
            paths=paths,
            ids=ids,
            targets=targets,
            unknown=unknown,
            space=space,
            partition=_joined(self.parts, folder, "parts"),
            groups=_joined(self.groups, folder, "groups"),
            notes=tuple(notes),
        )


def _joined(columns: Sequence[list[Any] | None], folder: Path, what: str) -> list[Any] | None:
    """Return one list of all, or None where there is none."""
    held = [column for column in columns if column is not None]
    if not held:
        return None
    values = [value for column in held for value in column]
    if len(held) < len(columns) or len({type(value) for value in values}) > 1:
        raise DataError(f"{folder}: some samples have {what} and others have none, or of another type")
    return values


def _checked_table(folder: Path, place: Callable[[int], str], **values: Any) -> ImageTable:
    """Return the table, whose own refusals become those of a file."""
    try:
        return ImageTable(**values)
    except (ValueError, TypeError) as error:
        refuse_repeats([str(name) for name in values["ids"]], place, "the id")
        raise DataError(f"{folder}: {error}") from None


@dataclass
class _Walked:
    """The samples of tars without an index, as their JSON members tell of them."""

    labels_field: str
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    rows: TagRows = field(default_factory=TagRows)
    unknown: list[tuple[list[str], list[str]]] = field(default_factory=list)
    parts: list[list[str] | None] = field(default_factory=list)
    groups: list[list[Any] | None] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, tar: Path) -> None:
        """Add the samples of a tar."""
        images: dict[str, Member] = {}
        texts: dict[str, Member] = {}
        for member in walk(tar):
            stem, _, suffix = os.path.basename(member.name).partition(".")
            key = os.path.join(os.path.dirname(member.name), stem)
            if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                if key in images:
                    raise DataError(f"{tar}: {images[key].name!a:.80} and {member.name!a:.80} are images of one sample")
                images[key] = member
            elif suffix == "json":
                texts[key] = member
            else:
                self.others[f".{suffix}"[:20]] += 1
        lonely = texts.keys() - images.keys()
        if lonely:
            self.others[".json"] += len(lonely)
        with open(tar, "rb", buffering=0) as file:
            for key, image in images.items():
                place = f"{tar}, member {image.name!a:.80}"
                if key not in texts:
                    raise DataError(f"{place}: the tar has no {key + '.json'!a:.80} with its labels")
                self._add_sample(tar, key, image, _read_object(file.fileno(), texts[key], tar))

    def _add_sample(self, tar: Path, key: str, image: Member, values: dict[str, Any]) -> None:
        place = f"{tar}, member {key!a:.80}.json"
        if self.labels_field not in values:
            raise DataError(
                f"{place}: no entry {self.labels_field!r}; it has {shown(sorted(values))}. See labels_field="
            )
        try:
            self.rows.add(_names(values, self.labels_field, place))
        except ValueError as error:
            raise error if isinstance(error, DataError) else DataError(f"{place}: {error}") from None
        self.paths.append(member_address(tar, image.offset, image.size))
        self.ids.append(_text_or_number(values.get("id", key), place))
        self.places.append(place)
        self.unknown.append((_names(values, "unknown", place), _names(values, "unknown_groups", place)))
        part, group = values.get("part"), values.get("group")
        self.parts.append(None if part is None else [_part(part, place)])
        if group is not None and type(group) not in (str, int):
            raise DataError(f"{place}: a group is a text or an integer; got {shown(group)}")
        self.groups.append(None if group is None else [group])


def _walked_table(
    tars: Sequence[Path],
    space: LabelSpace | None,
    *,
    labels_field: str,
    min_count: int,
    vocabulary: Vocabulary | None,
) -> ImageTable:
    """Return the table of tars without an index."""
    samples = _Walked(labels_field)
    for tar in tars:
        samples.add(tar)
    folder = tars[0].parent
    if not samples.paths:
        raise DataError(f"{folder}: the tars hold no image with a JSON member beside it")
    notes = [f"{number:,} members {name} were not read" for name, number in sorted(samples.others.items())]
    space = space if vocabulary is None else as_vocabulary(vocabulary)
    if space is None:
        space = LabelSpace([Group("tags", samples.rows.frequent(min_count, folder))])
    else:
        notes += samples.rows.outside(space.names, folder)
    return _checked_table(
        folder,
        lambda row: samples.places[row],
        paths=samples.paths,
        ids=samples.ids,
        targets=samples.rows.targets(space.names),
        unknown=_unknown_matrix(samples.unknown, space),
        space=space,
        partition=_joined(samples.parts, folder, "parts"),
        groups=_joined(samples.groups, folder, "groups"),
        notes=tuple(notes),
    )


def _unknown_matrix(names: Sequence[tuple[list[str], list[str]]], space: LabelSpace) -> sp.csr_array:
    """Return what is not known, CSR bool (N, L), from the names of labels and groups; others are not of the space."""
    rows: list[int] = []
    columns: list[int] = []
    for row, (labels, groups) in enumerate(names):
        held = {space.index(name) for name in labels if name in space}
        for name in groups:
            span = space.slices.get(name, slice(0, 0))
            held.update(range(span.start, span.stop))
        rows += [row] * len(held)
        columns += sorted(held)
    return sp.csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(names), space.num_labels))


def _read_object(file: int, member: Member, tar: Path) -> dict[str, Any]:
    """Return the JSON object that a member of a tar holds."""
    place = f"{tar}, member {member.name!a:.80}"
    if member.size > _MAX_JSON:
        raise DataError(f"{place}: {member.size:,} bytes of JSON; {_MAX_JSON:,} are allowed")
    try:
        values = json.loads(os.pread(file, member.size, member.offset).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{place}: an object was wanted; got {shown(values)}")
    return values


def _names(values: dict[str, Any], entry: str, place: str) -> list[str]:
    names = values.get(entry) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place}: {entry} must be a list of names; got {shown(names)}")
    return names


def _part(value: Any, place: str) -> str:
    part = PART_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if part is None:
        raise DataError(f"{place}: a part is one of {', '.join(PART_NAMES)}; got {shown(value)}")
    return part


def _text_or_number(value: Any, place: str) -> str:
    if type(value) not in (str, int):
        raise DataError(f"{place}: an id is a text or an integer; got {shown(value)}")
    return str(value)
