"""Small data sets in the published formats, for trying an example where the real data is not at hand.

Each image is a sheet with some of the handwritten digits that ship with scikit-learn, in colours; each label is one
digit in one colour, and holds where that is drawn. So there is something to learn, nothing is downloaded, and the
readers meet the very files of the real data sets. No figure that is reached on them says anything about those.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlabel._checks import resolve
from mlabel.data.readers.fashion import GROUPS
from mlabel.recipes.made import make_once
from mlabel.recipes.scenes import split_scans

_COLOURS = {
    "red": (214, 39, 40), "blue": (31, 87, 180), "green": (30, 140, 30), "purple": (128, 60, 170),
    "orange": (255, 127, 14), "brown": (120, 70, 50), "pink": (227, 80, 180), "olive": (150, 150, 20),
    "cyan": (10, 160, 180), "black": (30, 30, 30),
}  # fmt: skip
_MIRFLICKR = (
    "people", "female", "male", "portrait", "clouds", "flower", "tree", "night", "sea", "bird", "dog", "car", "river",
    "baby",
)  # fmt: skip
_CELEBA = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
_CATEGORIES = ("general", "artist", "copyright", "character", "meta")
_SHARES = (0.72, 0.14, 0.14)  # of the official parts, where there are some


def write_stand_in(reader: str, folder: str | Path, *, num_images: int = 600, side: int = 64, seed: int = 0) -> Path:
    """Write a small data set in the format of a reader, and return its folder.

    A folder that already holds this very data set is used as it is.

    Args:
        reader: `celeba`, `danbooru`, `fashion` or `mirflickr`.
        folder: Where to write: a new or empty folder, or one that this function wrote.
        num_images: How many images, at least 50.
        side: Pixels of a side.
        seed: Equal seeds give equal data.

    Raises:
        ValueError: another reader, too few images, or the folder holds something else.

    Example:
        >>> import tempfile
        >>> from mlabel.data import read_celeba
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = read_celeba(write_stand_in("celeba", folder, num_images=50))
        ...     len(table), table.space
        (50, LabelSpace(attributes: 40 any-of))
    """
    write = resolve(reader, _WRITERS, "reader with a stand-in")
    if num_images < 50:
        raise ValueError(f"num_images must be at least 50, so that every part gets some; got {num_images}")
    wanted = {"format": "mlabel.stand_in/1", "reader": reader, "num_images": num_images, "side": side, "seed": seed}
    return make_once(
        folder,
        lambda fresh: write(fresh, num_images, side, np.random.default_rng(seed)),
        wanted=wanted,
        record="stand-in.json",
        what="a stand-in",
    )


def _write_mirflickr(folder: Path, num_images: int, side: int, rng: np.random.Generator) -> None:
    """Half of the images have no label, and one in eight is grey."""
    present = _draw_labels(num_images, len(_MIRFLICKR), rng, most=0.6, least=0.1)
    present[rng.random(num_images) < 0.45] = False
    (folder / "annotations").mkdir()
    for label, name in enumerate(_MIRFLICKR):
        numbers = "".join(f"{row + 1}\n" for row in np.flatnonzero(present[:, label]))
        (folder / "annotations" / f"{name}.txt").write_text(numbers, encoding="ascii")
    paths = [folder / "images" / f"im{row + 1}.jpg" for row in range(num_images)]
    _write_images(paths, present, side, rng, grey=0.125)


def _write_celeba(folder: Path, num_images: int, side: int, rng: np.random.Generator) -> None:
    present = _draw_labels(num_images, len(_CELEBA), rng, most=0.8, least=0.05)
    names = [f"{row + 1:06d}.jpg" for row in range(num_images)]
    rows = [" ".join([name, *np.where(row, "1", "-1")]) for name, row in zip(names, present, strict=True)]
    _write_lines(folder / "list_attr_celeba.txt", [str(num_images), " ".join(_CELEBA), *rows])
    parts = np.repeat(np.arange(3), _part_amounts(num_images))
    _write_lines(folder / "list_eval_partition.txt", [f"{n} {part}" for n, part in zip(names, parts, strict=True)])
    _write_images([folder / "img_align_celeba" / name for name in names], present, side, rng)


def _write_fashion(folder: Path, num_images: int, side: int, rng: np.random.Generator) -> None:
    """A head is a colour, and its class a digit. The test part has no classes, as the real one."""
    shares = [_falling(len(classes), 1.0, 0.25) for classes in GROUPS.values()]
    chosen = np.stack([rng.choice(len(share), num_images, p=share / share.sum()) for share in shares], axis=1)
    names = [f"img/{row:05d}.jpg" for row in range(num_images)]
    (folder / "split").mkdir()
    bounds = np.cumsum([0, *_part_amounts(num_images)])
    for part, start, stop in zip(("train", "val", "test"), bounds, bounds[1:], strict=False):
        _write_lines(folder / "split" / f"{part}.txt", names[start:stop])
        if part != "test":
            rows = [" ".join(map(str, row)) for row in chosen[start:stop]]
            _write_lines(folder / "split" / f"{part}_attr.txt", rows)
    marks = np.zeros((num_images, len(GROUPS) * 10), dtype=bool)
    for head in range(len(GROUPS)):
        marks[np.arange(num_images), 10 * head + chosen[:, head]] = True
    _write_images([folder / name for name in names], marks, side, rng)


def _write_danbooru(folder: Path, num_images: int, side: int, rng: np.random.Generator) -> None:
    """Forty tags in the five categories; a few posts are banned or without an image."""
    present = _draw_labels(num_images, 40, rng, most=0.6, least=0.04)
    tags = [f"{colour}_{digit}" for colour in list(_COLOURS)[:4] for digit in range(10)]
    category = np.arange(len(tags)) % 8 % len(_CATEGORIES)  # the first three have two tags for each of the last two
    ids = np.arange(num_images) + 1_000_001
    lines = [_post(int(number), row, tags, category, rng) for number, row in zip(ids, present, strict=True)]
    lines.append('{"rating": "s", "is_banned": true, "tag_string": ""}')
    (folder / "metadata").mkdir()
    _write_lines(folder / "metadata" / "posts000000000000.json", lines)
    counts = present.sum(axis=0)
    rows = [
        json.dumps({"id": str(k + 1), "name": tag, "category": str(category[k]), "post_count": str(counts[k])})
        for k, tag in enumerate(tags)
    ]
    _write_lines(folder / "metadata" / "tags000000000000.json", rows)
    _write_images([folder / "512px" / f"{n % 1000:04d}" / f"{n}.jpg" for n in ids.tolist()], present, side, rng)


def _post(number: int, row: np.ndarray, tags: Sequence[str], category: np.ndarray, rng: np.random.Generator) -> str:
    """Return a line of the metadata."""
    own = {
        f"tag_string_{name}": " ".join(tags[k] for k in np.flatnonzero(row & (category == code)).tolist())
        for code, name in enumerate(_CATEGORIES)
    }
    post = {
        "id": str(number),
        "md5": hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest(),
        "rating": "sqe"[int(rng.integers(0, 3))],
        "file_ext": "png",
        "is_banned": False,
        "tag_string": " ".join(tags[k] for k in np.flatnonzero(row).tolist()),
    }
    return json.dumps({**post, **own})


_WRITERS: dict[str, Callable[[Path, int, int, np.random.Generator], None]] = {
    "celeba": _write_celeba,
    "danbooru": _write_danbooru,
    "fashion": _write_fashion,
    "mirflickr": _write_mirflickr,
}
STAND_INS = tuple(_WRITERS)


def _falling(amount: int, most: float, least: float) -> np.ndarray:
    return np.geomspace(most, least, amount)


def _part_amounts(num_images: int) -> np.ndarray:
    bounds = np.round(np.cumsum([0.0, *_SHARES]) * num_images).astype(int)
    return np.diff(bounds)


def _draw_labels(
    num_images: int, num_labels: int, rng: np.random.Generator, *, most: float, least: float
) -> np.ndarray:
    """Return which labels hold, bool (N, L): the first is the commonest, and some images have more than others."""
    busy = rng.uniform(0.4, 1.6, size=(num_images, 1))
    return rng.random((num_images, num_labels)) < np.minimum(busy * _falling(num_labels, most, least), 0.95)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_images(
    paths: Sequence[Path], present: np.ndarray, side: int, rng: np.random.Generator, *, grey: float = 0.0
) -> None:
    """Write a JPEG for each row of `present` (N, L): column k is the digit k modulo 10 in the colour k // 10."""
    scans, digits = split_scans(0)["train"]
    masks = [[Image.fromarray((scan * 255).astype(np.uint8)) for scan in scans[digits == digit]] for digit in range(10)]
    cells = max(3, math.ceil(math.sqrt(present.sum(axis=1).max(initial=1))))
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, row in zip(paths, present, strict=True):
        image = _draw(np.flatnonzero(row), masks, cells, side, rng)
        (image.convert("L") if rng.random() < grey else image).save(path, quality=90)


def _draw(
    labels: np.ndarray, masks: Sequence[Sequence[Image.Image]], cells: int, side: int, rng: np.random.Generator
) -> Image.Image:
    """Return one image with the marks of its labels, each in a cell of its own of `cells` x `cells`."""
    paper = 225 + 20 * rng.random(3) + rng.normal(0, 4, (side, side, 3))
    image = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))
    pitch = side / cells
    colours = list(_COLOURS.values())
    for label, cell in zip(labels.tolist(), rng.permutation(cells * cells), strict=False):
        size = max(4, int(pitch * rng.uniform(0.8, 1.0)))
        own = masks[label % 10]
        mask = own[int(rng.integers(len(own)))].resize((size, size), Image.Resampling.BICUBIC)
        slack = pitch - size
        corner = [int(place * pitch + slack * rng.random()) for place in (cell % cells, cell // cells)]
        image.paste(colours[label // 10], (corner[0], corner[1]), mask)
    return image
