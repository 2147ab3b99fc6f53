"""A part of a page: what it is called, how to read it, and its pictures, tables and galleries."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mlabel.data.images import read_image

_THUMBNAIL = (320, 320)  # at most, in pixels
_LEAST = 128  # smaller pixels are enlarged by a whole number, or browsers would blur them
_WIDE = 800  # pictures of more pixels are not shrunk to the width of a phone, but scroll
# Which files may be put into the page, by their first bytes.
_IMAGE_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class Tile(NamedTuple):
    """A picture of a gallery.

    Attributes:
        image: A path, an address such as `a.tar@1536+20000`, or pixels uint8 (H, W, 3).
        lines: What stands under it; the first is what it is called.
        beside: Pixels uint8 (H, W, 3) that are shown beside it, such as where the model looked; None: nothing.

    Example:
        >>> Tile("a.png", ["a.png", "cat 0.93"]).lines[0]
        'a.png'
    """

    image: str | Path | np.ndarray
    lines: Sequence[str]
    beside: np.ndarray | None = None


class Picture(NamedTuple):
    """A picture of a page.

    Attributes:
        file: PNG or JPEG.
        alt: What it shows, for those who do not see it.

    Example:
        >>> Picture("curve.png", "The loss falls.").alt
        'The loss falls.'
    """

    file: str | Path
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of a page. What is empty is left out.

    Attributes:
        title: Its heading.
        text: Lines under it: what it shows, and how to read it.
        pictures: Caption to a picture, or to its file; the caption may be empty.
        tables: Caption to rows of the same keys, such as `mlabel.metrics.frequency_rows` gives.
        galleries: Caption to pictures with lines under each.

    Example:
        >>> Section("Words").is_empty, Section("Labels", tables={"": [{"name": "cat", "f1": 0.5}]}).is_empty
        (True, False)
    """

    title: str
    text: Sequence[str] = ()
    pictures: Mapping[str, Picture | str | Path] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    galleries: Mapping[str, Sequence[Tile]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing but words."""
        return not any([self.pictures, any(self.tables.values()), any(self.galleries.values())])


class Cell(NamedTuple):
    """A cell of a table: what is read, and whether it is words."""

    text: str
    words: bool


def render_section(section: Section, place: int) -> dict[str, Any]:
    """Return what the template shows of a section, the `place`-th of the page; files are read into it."""
    tables = [(caption, rows) for caption, rows in section.tables.items() if rows]
    return {
        "id": f"section-{place}",
        "title": section.title,
        "text": [section.text] if isinstance(section.text, str) else list(section.text),
        "pictures": [_render_picture(section, caption, each) for caption, each in section.pictures.items()],
        "tables": [
            {
                "id": f"table-{place}-{number}",
                "caption": caption,
                "heads": [name.replace("_", " ") for name in rows[0]],
                "rows": [[as_cell(value) for value in row.values()] for row in rows],
            }
            for number, (caption, rows) in enumerate(tables, start=1)
        ],
        "galleries": [
            (caption, [_render_tile(tile) for tile in tiles]) for caption, tiles in section.galleries.items() if tiles
        ],
    }


def as_cell(value: Any) -> Cell:
    """Return a value as it is shown; see `as_text`."""
    return Cell(as_text(value), isinstance(value, str))


def as_text(value: Any) -> str:
    """Return a number as it is shown: whole ones as such, others with four decimals, none as a dash; and words."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "–"
    return f"{int(value):,}" if isinstance(value, bool | int | np.integer) else f"{value:.4f}"


def _render_picture(section: Section, caption: str, given: Picture | str | Path) -> dict[str, Any]:
    picture = given if isinstance(given, Picture) else Picture(given, caption or section.title)
    content = Path(picture.file).read_bytes()
    for start, kind in _IMAGE_KINDS.items():
        if content.startswith(start):
            source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
            with Image.open(io.BytesIO(content)) as image:
                wide = image.width > _WIDE
            return {"source": source, "caption": caption, "alt": picture.alt, "wide": wide}
    raise ValueError(f"{picture.file} is neither a PNG nor a JPEG file")


def _render_tile(tile: Tile) -> dict[str, Any]:
    images = [tile.image, *([] if tile.beside is None else [tile.beside])]
    return {"sources": [_as_thumbnail(image) for image in images], "lines": list(tile.lines)}


def _as_thumbnail(image: str | Path | np.ndarray) -> str:
    pixels = image if isinstance(image, np.ndarray) else read_image(image)
    scale = _LEAST // max(1, min(pixels.shape[:2]))
    if scale > 1:
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(pixels)
    picture.thumbnail(_THUMBNAIL)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
