"""COCO instances: images, and annotations each of which names an image and a category."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError, resolve
from mlabel.data.readers._json_stream import read_object
from mlabel.data.readers._lines import locate_images, refuse_repeats, shown, whole_rows
from mlabel.data.table import PARTS, ImageTable
from mlabel.labels import Group, LabelSpace

# What an annotation of a kind says of its category in its image; of several annotations the strongest word counts.
_IGNORED, _UNKNOWN, _PRESENT = 0, 1, 2
MEANINGS = {"present": _PRESENT, "unknown": _UNKNOWN, "ignore": _IGNORED}
GROUP_BY = {"category": "one group of all categories", "supercategory": "one group for each supercategory"}
# Where the parts of a data set are, as COCO itself and as exporting tools lay them out.
_PART_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_EXPORTED = "_annotations.coco.json"


def read_coco(
    path: str | Path,
    *,
    root: str | Path | None = None,
    crowd: str = "present",
    difficult: str = "present",
    group_by: str = "category",
) -> ImageTable:
    """Return the table of COCO instances: the categories of an image's annotations are its any-of labels.

    Labels are in the order of the categories' ids. An image without annotations has no labels; in a file without a
    list `annotations`, nothing is known of any image. The file is read piece by piece: a member of a list at a time is
    in memory, and of an annotation only ids and flags are looked at.

    Args:
        path: The JSON file; or a folder with one for each part, as `annotations/instances_train2017.json` and
            `train2017/` (or `images/train2017/`) with the images, or as `train/_annotations.coco.json` beside the
            images. The parts are then official, the files have the same categories, and ids are `train/1` and so on.
        root: The folder the image names start from. None: the file's own.
        crowd: What an annotation with `iscrowd` 1 says of its category: "present", "unknown" or "ignore" (nothing).
            Where another annotation of the image has the category too, it is present all the same.
        difficult: The same for one with `difficult` 1 or `ignore` 1.
        group_by: "category" gives one group "categories", "supercategory" one group for each supercategory.

    Raises:
        FileNotFoundError: there is no such file, or images are not there.
        ValueError: an option out of range.
        DataError: it is not JSON or not of that form, an id or a name given twice, or an annotation of an image or
            category that there is not; with the file and the place, such as `annotations[3]`.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.jpg").touch()
        >>> content = {
        ...     "images": [{"id": 1, "file_name": "a.jpg"}],
        ...     "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        ...     "annotations": [{"id": 5, "image_id": 1, "category_id": 18, "iscrowd": 0}],
        ... }
        >>> _ = (folder / "instances.json").write_text(json.dumps(content))
        >>> table = read_coco(folder / "instances.json")
        >>> table.space.names, table.space.decode(table.targets)
        (('cat', 'dog'), [['dog']])

    Reference:
        T.-Y. Lin, M. Maire, S. Belongie, J. Hays, P. Perona, D. Ramanan, P. Dollár, C. L. Zitnick. Microsoft COCO:
        Common Objects in Context (2014).
    """
    meanings = tuple(resolve(value, MEANINGS, "meaning") for value in (crowd, difficult))
    resolve(group_by, GROUP_BY, "value of group_by=")
    path = Path(path)
    if path.is_dir():
        found = _find_parts(path, None if root is None else Path(root))
        files = {part: _read(file, folder, *meanings) for part, (file, folder) in found.items()}
    else:
        files = {"": _read(path, path.parent if root is None else Path(root), *meanings)}
    first = next(iter(files.values()))
    for other in files.values():
        first.refuse_other_categories(other)
    space, codes = first.space(group_by)
    marks = [file.matrices(codes, space.num_labels) for file in files.values()]
    return ImageTable(
        paths=[image for file in files.values() for image in file.paths()],
        targets=sp.vstack([targets for targets, _ in marks], format="csr"),
        space=space,
        ids=[f"{part}/{key}" if part else key for part, file in files.items() for key in file.images.keys],
        unknown=sp.vstack([unknown for _, unknown in marks], format="csr"),
        partition=[part for part, file in files.items() for _ in file.images.keys] if path.is_dir() else None,
        notes=tuple(note for file in files.values() for note in file.notes()),
    )


class _Ids:
    """The ids of a list's members, and a number for each id that anything has named, in the order met.

    Attributes:
        what: What an id is of, for messages.
        keys: The ids of the members, in their order.
        codes: The number of each of `keys`.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.keys: list[str] = []
        self.codes: list[int] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        """Return the number of an id."""
        return self._numbers.setdefault(_key(value, self.what), len(self._numbers))

    def add(self, value: Any) -> None:
        """Add the id of a member."""
        self.keys.append(_key(value, self.what))
        self.codes.append(self.number(value))

    def rows(self) -> np.ndarray:
        """Return for each number the member that has it, -1 where none has."""
        rows = np.full(len(self._numbers), -1, dtype=np.int64)
        rows[self.codes] = np.arange(len(self.codes))
        return rows

    def name(self, number: int) -> str:
        """Return the id that has a number."""
        return next(key for key, code in self._numbers.items() if code == number)


@dataclass
class _File:
    """What one file says; annotations are columns of integers."""

    path: Path
    root: Path
    crowd: int
    difficult: int
    images: _Ids = field(default_factory=lambda: _Ids("image"))
    categories: _Ids = field(default_factory=lambda: _Ids("category"))
    file_names: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parents: list[Any] = field(default_factory=list)
    annotation_ids: array = field(default_factory=lambda: array("q"))
    annotated: array = field(default_factory=lambda: array("i"))
    labels: array = field(default_factory=lambda: array("i"))
    marks: bytearray = field(default_factory=bytearray)
    lists: set[str] = field(default_factory=set)

    def add_image(self, image: Any) -> None:
        self.images.add(_member(image, "id"))
        self.file_names.append(_text(image, "file_name"))

    def add_category(self, category: Any) -> None:
        self.categories.add(_member(category, "id"))
        self.names.append(_text(category, "name"))
        self.parents.append(category.get("supercategory"))

    def add_annotation(self, annotation: Any) -> None:
        self.annotated.append(self.images.number(_member(annotation, "image_id")))
        self.labels.append(self.categories.number(_member(annotation, "category_id")))
        number = annotation.get("id")
        if not isinstance(number, int | None) or isinstance(number, bool) or abs(number or 0) >= 1 << 62:
            raise ValueError(f"the id of an annotation must be an integer; found {shown(number)}")
        # Those without an id get ones that no other has.
        self.annotation_ids.append(-(1 << 62) - len(self.annotation_ids) if number is None else number)
        mark = self.crowd if _flag(annotation, "iscrowd") else _PRESENT
        hard = _flag(annotation, "difficult") or _flag(annotation, "ignore")
        self.marks.append(min(mark, self.difficult if hard else _PRESENT))

    def check(self) -> None:
        """Raise DataError where lists are lacking or ids do not fit together."""
        for name in ("images", "categories"):
            if name not in self.lists:
                raise DataError(f"{self.path}: no list {name!r} in it; a file of COCO instances was wanted")
        if not self.images.keys or not self.categories.keys:
            raise DataError(
                f"{self.path}: it has {len(self.images.keys)} images, {len(self.categories.keys)} categories"
            )
        refuse_repeats(self.images.keys, self.place("images"), "the id")
        refuse_repeats(self.categories.keys, self.place("categories"), "the id")
        ids = np.frombuffer(self.annotation_ids, dtype=np.int64)
        if len(np.unique(ids)) < len(ids):
            refuse_repeats(ids.astype(str).tolist(), self.place("annotations"), "the id")
        for named, ids_of in ((self.annotated, self.images), (self.labels, self.categories)):
            lost = np.flatnonzero(ids_of.rows()[np.frombuffer(named, dtype=np.int32)] < 0)
            if len(lost):
                raise DataError(
                    f"{self.path}, annotations[{lost[0]}]: no {ids_of.what} has the id {ids_of.name(named[lost[0]])}, "
                    f"which it names ({len(lost)} such annotations in all)"
                )

    def place(self, name: str) -> Callable[[int], str]:
        """Return what says where a member of the list `name` stands."""
        return lambda position: f"{self.path}, {name}[{position}]"

    def paths(self) -> list[str]:
        return locate_images(self.root, self.file_names, self.place("images"))

    def refuse_other_categories(self, other: _File) -> None:
        """Raise DataError where another file has other categories."""
        mine, theirs = (sorted(zip(file.categories.keys, file.names, strict=True)) for file in (self, other))
        if mine != theirs:
            odd = sorted(set(mine) ^ set(theirs))[0]
            raise DataError(
                f"{self.path} and {other.path} have different categories: id {odd[0]} with the name {shown(odd[1])} is "
                "in one of them only"
            )

    def space(self, group_by: str) -> tuple[LabelSpace, list[str]]:
        """Return the label space, and the id of the category of each column."""
        order = sorted(range(len(self.names)), key=lambda row: _by_number(self.categories.keys[row]))
        groups: dict[str, list[int]] = {}
        for row in order:
            groups.setdefault(self._group_of(row, group_by), []).append(row)
        try:
            space = LabelSpace([Group(name, [self.names[row] for row in rows]) for name, rows in groups.items()])
        except ValueError as error:
            raise DataError(f"{self.path}, categories: {error}") from None
        return space, [self.categories.keys[row] for rows in groups.values() for row in rows]

    def _group_of(self, row: int, group_by: str) -> str:
        if group_by == "category":
            return "categories"
        name = self.parents[row]
        if not isinstance(name, str) or not name:
            raise DataError(f"{self.place('categories')(row)}: a supercategory was wanted; found {shown(name)}")
        return name

    def matrices(self, columns: list[str], num_labels: int) -> tuple[sp.csr_array, sp.csr_array]:
        """Return targets and unknowns (N, L) of which column k is the category with the id `columns[k]`."""
        shape = (len(self.images.keys), num_labels)
        if "annotations" not in self.lists:
            return sp.csr_array(shape, dtype=np.uint8), whole_rows(np.arange(shape[0]), shape)
        column_of = {key: column for column, key in enumerate(columns)}
        places = np.array([column_of[key] for key in self.categories.keys])
        rows = self.images.rows()[np.frombuffer(self.annotated, dtype=np.int32)]
        entries = rows * num_labels + places[self.categories.rows()[np.frombuffer(self.labels, dtype=np.int32)]]
        marks = np.frombuffer(self.marks, dtype=np.uint8)
        present = np.unique(entries[marks == _PRESENT])
        unknown = np.setdiff1d(entries[marks == _UNKNOWN], present)
        return _from_entries(present, shape, np.uint8), _from_entries(unknown, shape, np.bool_)

    def notes(self) -> list[str]:
        if "annotations" not in self.lists:
            images = len(self.images.keys)
            return [f"{self.path.name} has no list of annotations, so of its {images:,} images nothing is known"]
        ignored = self.marks.count(_IGNORED)
        return [f"{ignored:,} annotations of {self.path.name} were ignored, as asked for"] if ignored else []


def _read(path: Path, root: Path, crowd: int, difficult: int) -> _File:
    """Return what a file says, checked."""
    file = _File(path, root, crowd, difficult)
    takers = {"images": file.add_image, "categories": file.add_category, "annotations": file.add_annotation}
    for key, place, value in read_object(path):
        if key not in takers:
            continue
        if place is None:
            raise DataError(f"{path}: {key!r} must be a list; found {shown(value)}")
        file.lists.add(key)
        if place >= 0:
            try:
                takers[key](value)
            except ValueError as error:
                raise DataError(f"{file.place(key)(place)}: {error}") from None
    file.check()
    return file


def _find_parts(folder: Path, root: Path | None) -> dict[str, tuple[Path, Path]]:
    """Return for each part its file and the folder of its images."""
    found = {part: pair for part in PARTS for pair in _candidates(folder, root, part)}
    if not found:
        raise FileNotFoundError(
            f"{folder}: neither annotations/instances_train*.json nor train/{_EXPORTED} in this folder; give the file"
        )
    return found


def _candidates(folder: Path, root: Path | None, part: str) -> Iterator[tuple[Path, Path]]:
    """Yield the files of one part with the folders of their images."""
    exported = [folder / name / _EXPORTED for name in _PART_NAMES[part]]
    listed = sorted((folder / "annotations").glob(f"instances_{part}*.json"))
    files = [file for file in exported if file.is_file()] + listed
    if len(files) > 1:
        raise DataError(f"{folder}: several files are of the part {part!r}: {files[0]} and {files[1]}; give the file")
    for file in files:
        name = file.stem.removeprefix("instances_")
        beside = [folder / name, folder / "images" / name, folder / "images"]
        own = file.parent if file.name == _EXPORTED else next((each for each in beside if each.is_dir()), folder)
        yield file, own if root is None else root


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was wanted; found {shown(value)}")
    if value.get(name) is None:
        raise ValueError(f"it has no {name!r}")
    return value[name]


def _text(value: dict[str, Any], name: str) -> str:
    text = _member(value, name)
    if not isinstance(text, str) or not text:
        raise ValueError(f"{name!r} must be a text; found {shown(text)}")
    text.encode()  # half a surrogate pair is no text, and would fail when it is written
    return text


def _flag(value: dict[str, Any], name: str) -> bool:
    flag = value.get(name, 0)
    if flag not in (0, 1):
        raise ValueError(f"{name!r} must be 0 or 1; found {shown(flag)}")
    return bool(flag)


def _key(value: Any, what: str) -> str:
    if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
        raise ValueError(f"{what} id: it must be an integer or a text; found {shown(value)}")
    return str(value)


def _by_number(key: str) -> tuple[bool, int, str]:
    """Order ids that are numbers as numbers, and before the others."""
    is_number = key.removeprefix("-").isdecimal() and key.isascii() and len(key) < 20
    return not is_number, int(key) if is_number else 0, key


def _from_entries(entries: np.ndarray, shape: tuple[int, int], dtype: Any) -> sp.csr_array:
    """Return a matrix with ones at `entries`, each row * L + column."""
    rows, columns = np.divmod(entries, shape[1])
    return sp.csr_array((np.ones(len(entries), dtype=dtype), (rows, columns)), shape=shape)
