"""Data sets of Hugging Face's `datasets`: rows with an image and columns of tags, labels or classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError
from mlabel.data.readers._columns import PART_NAMES, Columns, table_of_cells
from mlabel.data.readers._lines import IMAGE_SUFFIXES, shown
from mlabel.data.readers._tags import Vocabulary
from mlabel.data.table import ImageTable

# What an image file of each format begins with.
_SIGNATURES = {b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II*": ".tif", b"MM": ".tif"}
# Tags are joined by what none of them may hold.
_SEPARATOR = "\0"
_ID, _PART = "(id)", "(part)"


def read_hf(
    dataset: Any,
    *,
    root: str | Path,
    image_column: str = "image",
    tags_column: str | None = None,
    separator: str = ",",
    label_columns: Sequence[str] = (),
    exclusive: Sequence[str] = (),
    id_column: str | None = None,
    group_column: str | None = None,
    min_count: int = 1,
    vocabulary: Vocabulary | None = None,
) -> ImageTable:
    """Return the table of a Hugging Face data set; images that it holds as bytes are written to files below `root`.

    Groups are made as by `read_csv`. Numbers of a column of class labels are taken by their names, and -1 is unknown
    there; None is unknown in `label_columns` and `exclusive`. Anything that yields rows as mappings will do, with the
    image of each row a path or a mapping with `bytes` or `path`; `datasets` itself is needed for a folder alone.

    Args:
        dataset: A `Dataset`; a mapping of parts (train, validation, test) to such, which are then official; or a folder
            that `save_to_disk` wrote. To read from the hub, pass what `datasets.load_dataset` returns.
        root: The folder in which the images lie, or to which those given as bytes are written, as `train/00000000.jpg`
            and so on. One that is there already must hold the same.
        image_column: The column of images.
        tags_column: The column of tags: a list of texts or class numbers, or a text. None: there is none.
        separator: What stands between two tags of a text.
        label_columns: The columns of 0 and 1, or of False and True.
        exclusive: The columns of classes.
        id_column: The column of ids. None: the row's number, in official parts as `train/0`.
        group_column: The column of ids of what a split must keep together. None: there is none.
        min_count: Tags on fewer images are left out.
        vocabulary: As for `read_csv`.

    Raises:
        ImportError: a folder is given, and `datasets` is not installed.
        ValueError: a column there is not, or no label column is named.
        DataError: a row that does not fit, with its number, or a file in `root` that holds another image.

    Example:
        >>> import tempfile
        >>> rows = [{"image": {"bytes": b"...", "path": "a.png"}, "tags": ["cat"]}]
        >>> table = read_hf({"train": rows}, root=tempfile.mkdtemp(), tags_column="tags")
        >>> table.ids.tolist(), table.space.names, table.partition.tolist()
        (['train/0'], ('cat',), ['train'])
    """
    splits, official = _splits(dataset)
    header = [image_column, *([tags_column] if tags_column else []), *label_columns, *exclusive]
    header += [name for name in (id_column, group_column) if name is not None]
    header = list(dict.fromkeys(header))
    columns = Columns(
        image=image_column,
        tags=tags_column,
        separator=_SEPARATOR,
        labels=label_columns,
        exclusive=exclusive,
        partition=_PART if official else None,
        ids=_ID if id_column is None else id_column,
        groups=group_column,
        unknown=frozenset([""]),
        min_count=min_count,
        vocabulary=vocabulary,
    )
    rows = _rows(splits, official, header, tags_column=tags_column, separator=separator, root=Path(root))
    return table_of_cells("the data set", [*header, _ID, _PART], rows, columns=columns, root=root)


def _splits(dataset: Any) -> tuple[dict[str, Any], bool]:
    """Return the data sets by part, and whether these are official."""
    if isinstance(dataset, str | os.PathLike):
        try:
            from datasets import load_from_disk
        except ImportError:
            raise ImportError("to read a folder of a Hugging Face data set: pip install datasets") from None
        dataset = load_from_disk(os.fspath(dataset))
    if not isinstance(dataset, Mapping):
        return {"": dataset}, False
    parts: dict[str, Any] = {}
    for name, rows in dataset.items():
        part = PART_NAMES.get(str(name).lower())
        if part is None or part in parts:
            raise ValueError(
                f"the parts of a data set must be one each of train, validation and test; got {list(dataset)}. Pass "
                "{'train': ..., 'test': ...} of those that are meant"
            )
        parts[part] = rows
    return parts, True


def _rows(
    splits: Mapping[str, Any], official: bool, header: list[str], *, tags_column: str | None, separator: str, root: Path
) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the cells of each row; what `header` names, id and part."""
    for part, rows in splits.items():
        names = {column: _class_names(rows, column) for column in header}
        for number, row in enumerate(_undecoded(rows, header)):
            place = f"row {number} of {part}" if official else f"row {number}"
            try:
                cells = [_image(row[header[0]], root, part, number)]
                for column in header[1:]:
                    value = _named(row[column], names[column])
                    cells.append(_tags(value, separator) if column == tags_column else _text(value))
            except KeyError as error:
                raise ValueError(f"{place}: there is no column {error}; there are {', '.join(map(str, row))}") from None
            except (ValueError, TypeError) as error:
                raise DataError(f"the data set, {place}: {error}") from None
            yield place, [*cells, f"{part}/{number}" if official else str(number), part]


def _undecoded(rows: Any, header: list[str]) -> Iterable[Mapping[str, Any]]:
    """Return the rows with the columns of `header` alone, and with images as they are stored."""
    features = getattr(rows, "features", None)
    if features is None or not hasattr(rows, "cast_column"):
        return rows
    missing = [name for name in header if name not in features]
    if missing:
        raise ValueError(f"there is no column {missing[0]!r}; there are {', '.join(features)}")
    rows = rows.select_columns(header)
    image = features[header[0]]
    # The column's own class is used, so that `datasets` need not be imported to say that images stay undecoded.
    return rows.cast_column(header[0], type(image)(decode=False)) if hasattr(image, "decode") else rows


def _class_names(rows: Any, column: str) -> Sequence[str] | None:
    """Return the names of the classes of a column, or of what its lists hold; None where it has none."""
    feature = (getattr(rows, "features", None) or {}).get(column)
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    names: Sequence[str] | None = getattr(inner, "names", None)
    return names


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """Return class numbers as names, and None for -1."""
    if names is None or value is None:
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [_named(each, names) for each in value]
    if not -1 <= value < len(names):
        raise ValueError(f"the number of a class, -1 to {len(names) - 1}, was wanted; found {shown(value)}")
    return None if value == -1 else names[value]


def _tags(value: Any, separator: str) -> str:
    tags = value.split(separator) if isinstance(value, str) else value
    if not isinstance(tags, list | tuple | np.ndarray) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"tags must be a list of texts, or a text; found {shown(value)}. An image without tags has []")
    if any(_SEPARATOR in tag for tag in tags):
        raise ValueError("a tag must not hold NUL")
    return _SEPARATOR.join(tags)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if not isinstance(value, str | int | float | np.integer | np.floating):
        raise ValueError(f"a number or a text was wanted; found {shown(value)}")
    return str(value)


def _image(value: Any, root: Path, part: str, number: int) -> str:
    """Return the path of an image, absolute or below `root`; one given as bytes is written first."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if content is None:
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"an image must be a path, or have bytes or a path; found {shown(value)}. One that is decoded comes so "
                "after dataset.cast_column(image_column, datasets.Image(decode=False))"
            )
        return os.fspath(path)
    suffix = os.path.splitext(os.fspath(path or ""))[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        suffix = next((end for begin, end in _SIGNATURES.items() if content.startswith(begin)), ".jpg")
    name = os.path.join(part, f"{number:08d}{suffix}")
    _write_once(root / name, content)
    return name


def _write_once(path: Path, content: bytes) -> None:
    """Write a file that is not there; one that is must hold `content`."""
    if path.exists():
        if path.stat().st_size != len(content) or path.read_bytes() != content:
            raise DataError(f"{path} holds another image; give a new folder as root")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
