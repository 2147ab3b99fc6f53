"""Sidecar text: beside each image a text file of its name with the tags, as image-caption tools write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlabel._checks import DataError, resolve
from mlabel.data.readers._lines import IMAGE_SUFFIXES, locate_images, read_lines, whole_rows
from mlabel.data.readers._tags import TagRows, Vocabulary, as_vocabulary
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

MISSING = {
    "error": "stop, and name the first such image",
    "skip": "leave the image out, and count it",
    "unknown": "keep the image, of which then nothing is known",
}


def read_sidecar(
    root: str | Path,
    *,
    separator: str = ",",
    min_count: int = 1,
    vocabulary: Vocabulary | None = None,
    missing: str = "error",
    suffix: str = ".txt",
) -> ImageTable:
    """Return the table of a folder where `a.txt` beside `a.jpg` holds its tags: an any-of group "tags".

    All folders below are walked, in the order of their names; names that begin with a dot and links to folders are
    passed over. The most frequent tag is the first label. A line end separates tags, too; an empty text file is an
    image without tags. Ids are the paths below `root` without their suffix, such as `sub/a`.

    Args:
        root: The folder.
        separator: What stands between two tags; spaces around a tag are dropped.
        min_count: Tags on fewer images are left out; not used with a `vocabulary`.
        vocabulary: What the labels are, and in which order: a list of tags, a `LabelSpace`, or the path of a space
            (`labels.json`) or of a tagger's `selected_tags.csv`. Tags outside are left out and counted in the notes.
            None: the tags found.
        missing: What an image without a text file is: "error", "skip" (left out and counted in the notes) or "unknown"
            (kept, with all its labels unknown).
        suffix: That of the text files.

    Raises:
        FileNotFoundError: there is no such folder, no image in it, or an image without a text file.
        ValueError: an option out of range.
        DataError: a text or a file name that is not UTF-8, a tag that cannot be a label (with its file), two images of
            one text file, a link that leads out of `root`, or no tag that is frequent enough.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, tags in {"a": "cat, dog", "b": "dog", "c": ""}.items():
        ...     (folder / f"{name}.jpg").touch()
        ...     _ = (folder / f"{name}.txt").write_text(tags)
        >>> table = read_sidecar(folder)
        >>> table.space.decode(table.targets)
        [['dog', 'cat'], ['dog'], []]
    """
    resolve(missing, MISSING, "value of missing=")
    if not separator or not suffix.startswith("."):
        raise ValueError(f"separator must not be empty and suffix begin with a dot; got {separator!r} and {suffix!r}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; one with images and a text file beside each was wanted")
    images, bare, lonely = _walk(root, suffix)
    if bare and missing == "error":
        raise FileNotFoundError(
            f"{len(bare)} of {len(images)} images have no {suffix} file beside them, the first "
            f"{root / images[bare[0]]}; missing='skip' leaves them out, missing='unknown' keeps them without labels"
        )
    notes = [f"{lonely:,} {suffix} files have no image beside them and were not read"] if lonely else []
    if bare and missing == "skip":
        notes.append(f"{len(bare):,} images without a {suffix} file were left out")
        images, bare = _without(images, bare), []
    rows = _read_tags(root, images, set(bare), separator, suffix)
    if vocabulary is None:
        space = LabelSpace([Group("tags", rows.frequent(min_count, root))])
    else:
        space = as_vocabulary(vocabulary)
        notes += rows.outside(space.names, root)
    return ImageTable(
        paths=locate_images(root, images, lambda row: f"{root}, image {images[row]}"),
        targets=rows.targets(space.names),
        space=space,
        ids=[os.path.splitext(name)[0] for name in images],
        unknown=whole_rows(bare, (len(images), space.num_labels)),
        notes=tuple(notes),
    )


def _walk(root: Path, suffix: str) -> tuple[list[str], list[int], int]:
    """Return the images below `root`, which of them have no text file, and how many texts have no image."""
    images: list[str] = []
    bare: list[int] = []
    lonely = 0
    for folder, below, files in os.walk(root, onerror=_raise):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        texts = {name.removesuffix(suffix) for name in files if name.endswith(suffix) and not name.startswith(".")}
        for stem, name in _images_in(folder, files):
            if stem not in texts:
                bare.append(len(images))
            texts.discard(stem)
            images.append(name if inside == "." else f"{inside}/{name}")
        lonely += len(texts)
    if not images:
        raise FileNotFoundError(f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder or below")
    return images, bare, lonely


def _images_in(folder: str, files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield stem and name of the images among the files of a folder, in the order of their names."""
    seen: dict[str, str] = {}
    for name in sorted(files):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{folder}: the file name {name!a} is not UTF-8; rename it") from None
        if seen.setdefault(stem, name) != name:
            raise DataError(f"{folder}: {seen[stem]} and {name} would have one text file; rename or remove one of them")
        yield stem, name


def _raise(error: OSError) -> None:
    raise error


def _without(images: list[str], left_out: list[int]) -> list[str]:
    gone = set(left_out)
    kept = [name for row, name in enumerate(images) if row not in gone]
    if not kept:
        raise FileNotFoundError(f"none of the {len(images)} images, such as {images[0]}, has a text file beside it")
    return kept


def _read_tags(root: Path, images: list[str], bare: set[int], separator: str, suffix: str) -> TagRows:
    """Return the tags of each image, none for those without a text file."""
    rows = TagRows()
    base = os.path.realpath(root)
    for row, name in enumerate(images):
        tags: list[str] = []
        if row not in bare:
            path = root / (os.path.splitext(name)[0] + suffix)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(base):
                raise DataError(f"{path} is a link that leads out of the folder {root}")
            tags = [tag for _, text in read_lines(path) for tag in text.split(separator)]
        try:
            rows.add(tags)
        except ValueError as error:
            raise DataError(f"{root / name}: {error}") from None
    return rows
