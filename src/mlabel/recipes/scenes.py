"""The demonstration's data: multi-label scenes composed of the handwritten digits that ship with scikit-learn.

A scene is a sheet of paper, 32 x 32 grey pixels, with one to four digits that do not touch, among scraps of other
digits, faint strokes and grain. Its labels are the digits present (any of ten, with a long tail) and how many digits
there are (exactly one of four; a digit may occur twice). Nothing is downloaded: the 1,797 scans of 8 x 8 pixels are
real and come with the library, and no scan serves in two partitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from mlabel.recipes.made import make_once

CANVAS = 32
MOST_DIGITS = 4
PARTITIONS = {"train": 0.70, "val": 0.12, "test": 0.18}
DIGIT_NAMES = tuple(f"digit-{digit}" for digit in range(10))
COUNT_NAMES = ("one", "two", "three", "four")
COLUMNS = ("image", "partition", "digits", "count")

# Digits from the commonest to the rarest, and how often each is drawn: with one to four draws a scene, 0.36 and 0.008
# a draw put the first into about 62 % of the scenes and the last into about 2 %.
_COMMON_TO_RARE = (1, 8, 3, 9, 5, 2, 7, 4, 6, 0)
_DRAW = np.geomspace(0.36, 0.008, 10) / np.geomspace(0.36, 0.008, 10).sum()

_FORMAT = "mlabel.scenes/2"
_LABELS, _RECORD = "labels.csv", "scenes.json"
_GRID = 16.0  # half the canvas: the spacing of the layout that every scene starts from
_LEAST_GAP = 13.8  # two digits' centres are at least so far apart in x or in y
_PATCH = 20  # pixels: holds a turned scan
_EDGE = 12  # pixels around the canvas that take what a patch at its rim holds beyond it
_CHUNK = 1024  # scenes rendered at once, so that memory stays small


def write_scenes(folder: str | Path, *, num_scenes: int = 10_000, seed: int = 0) -> Path:
    """Write scenes as PNG files and a CSV, and return the path of the CSV.

    The folder then holds `images/{train,val,test}/00000.png`, ..., `labels.csv` with the columns image, partition,
    digits (names separated by a space) and count, and `scenes.json`, which says what they were made from. A folder
    that already holds these very scenes is used as it is. Others are put together in a folder beside it and renamed
    last, so that an interrupted writing leaves nothing that looks finished.

    Args:
        folder: Where to write: a new or empty folder, or one that this function wrote.
        num_scenes: How many scenes in all; 70 % are for training, 12 % for validation and 18 % for testing.
        seed: Equal seeds give equal scenes.

    Raises:
        ValueError: too few scenes for three partitions, or the folder holds something else.

    Example:
        >>> import tempfile
        >>> from mlabel.data import read_csv
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     labels = write_scenes(folder, num_scenes=200)
        ...     table = read_csv(
        ...         labels, tags_column="digits", separator=" ", exclusive=["count"], partition_column="partition"
        ...     )
        ...     len(table), table.space
        (200, LabelSpace(tags: 10 any-of, count: 4 exclusive))
    """
    if num_scenes < 20:
        raise ValueError(f"num_scenes must be at least 20, so that every partition gets some; got {num_scenes}")
    wanted = {"format": _FORMAT, "num_scenes": num_scenes, "seed": seed}
    made = make_once(
        folder, lambda fresh: _write(fresh, num_scenes, seed), wanted=wanted, record=_RECORD, what="scenes"
    )
    return made / _LABELS


def _write(folder: Path, num_scenes: int, seed: int) -> None:
    """Write the images and the CSV of all partitions into the folder."""
    lines = [",".join(COLUMNS)]
    scans = split_scans(seed)
    bounds = np.round(np.cumsum([0.0, *PARTITIONS.values()]) * num_scenes).astype(int)
    for part, (name, amount) in enumerate(zip(PARTITIONS, np.diff(bounds).tolist(), strict=True)):
        scenes = compose_scenes(*scans[name], num_scenes=amount, seed=seed * len(PARTITIONS) + part)
        (folder / "images" / name).mkdir(parents=True)
        for row, (image, present, count) in enumerate(zip(scenes.images, scenes.digits, scenes.counts, strict=True)):
            path = f"images/{name}/{row:05d}.png"
            Image.fromarray(image).save(folder / path, compress_level=1)
            digits = " ".join(DIGIT_NAMES[digit] for digit in np.flatnonzero(present))
            lines.append(f"{path},{name},{digits},{COUNT_NAMES[count - 1]}")
    (folder / _LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Scenes:
    """Scenes in memory.

    Attributes:
        images: Grey values, uint8 (N, 32, 32).
        digits: Which digits are present, bool (N, 10).
        counts: How many digits there are, int64 (N,), from 1 to 4.
        scans: The scans used, int64 (N, 4), positions in what was handed in; -1 where there is no digit.
        centres: Where those stand, x and y in pixels, float (N, 4, 2); NaN where there is no digit.
    """

    images: np.ndarray
    digits: np.ndarray
    counts: np.ndarray
    scans: np.ndarray
    centres: np.ndarray


def split_scans(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, for each partition, its scans (n, 8, 8) in [0, 1] and their digits (n,).

    Every digit is divided alike (70 : 12 : 18), and no scan is in two partitions.

    Example:
        >>> {name: len(digits) for name, (scans, digits) in split_scans(seed=0).items()}
        {'train': 1258, 'val': 215, 'test': 324}
    """
    bunch = load_digits()
    scans, digits = bunch.images.astype(np.float32) / 16.0, bunch.target
    order = np.random.default_rng([seed, 0]).permutation(len(digits))
    bounds = np.cumsum(list(PARTITIONS.values()))[:-1]
    parts: list[list[np.ndarray]] = [[] for _ in PARTITIONS]
    for digit in range(10):
        own = order[digits[order] == digit]
        for part, piece in zip(parts, np.split(own, np.round(bounds * len(own)).astype(int)), strict=True):
            part.append(piece)
    chosen = [np.concatenate(part) for part in parts]
    return {name: (scans[rows], digits[rows]) for name, rows in zip(PARTITIONS, chosen, strict=True)}


def compose_scenes(scans: np.ndarray, digits: np.ndarray, *, num_scenes: int, seed: int = 0) -> Scenes:
    """Return `num_scenes` scenes composed of the given scans.

    Args:
        scans: Ink in [0, 1], float (n, 8, 8).
        digits: Which digit each scan shows, (n,); every digit from 0 to 9 occurs.
        num_scenes: N, at least 1.
        seed: Equal seeds give equal scenes.

    Raises:
        ValueError: `num_scenes` below 1, or a digit without a scan.

    Example:
        >>> scans, digits = split_scans(seed=0)["val"]
        >>> scenes = compose_scenes(scans, digits, num_scenes=5)
        >>> scenes.images.shape, scenes.images.dtype, scenes.digits.shape
        ((5, 32, 32), dtype('uint8'), (5, 10))
    """
    if num_scenes < 1:
        raise ValueError(f"num_scenes must be at least 1; got {num_scenes}")
    if missing := sorted(set(range(10)) - set(np.unique(digits).tolist())):
        raise ValueError(f"every digit from 0 to 9 needs a scan; none came for {missing}")
    scans, digits = np.asarray(scans, dtype=np.float32), np.asarray(digits)
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, MOST_DIGITS + 1, size=num_scenes)
    used = np.arange(MOST_DIGITS) < counts[:, None]
    drawn = rng.choice(_COMMON_TO_RARE, size=used.shape, p=_DRAW)
    chosen = np.where(used, _scan_of_digit(drawn, digits, rng), -1)
    present = np.zeros((num_scenes, 10), dtype=bool)
    present[np.nonzero(used)[0], drawn[used]] = True
    centres = _lay_out(used, rng)
    starts = range(0, num_scenes, _CHUNK)
    images = [_draw(scans, chosen[i : i + _CHUNK], centres[i : i + _CHUNK], rng) for i in starts]
    centres[~used] = np.nan
    return Scenes(np.concatenate(images), present, counts, chosen, centres)


def _scan_of_digit(drawn: np.ndarray, digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each drawn digit the position of a random scan that shows it."""
    order = np.argsort(digits, kind="stable")
    amounts = np.bincount(digits, minlength=10)
    starts = np.cumsum(amounts) - amounts
    return order[starts[drawn] + rng.integers(0, amounts[drawn])]


def _lay_out(used: np.ndarray, rng: np.random.Generator, steps: int = 60) -> np.ndarray:
    """Return the digits' centres (N, 4, 2), x and y in pixels, no two nearer than `_LEAST_GAP`.

    Each scene starts from a 2 x 2 layout, and its digits take a random walk in which a step that would bring two too
    near is not made. So a scene of four stays near the layout, and one digit may stand anywhere.
    """
    corners = np.array([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]]) * _GRID
    centres = corners[rng.permuted(np.broadcast_to(np.arange(MOST_DIGITS), used.shape), axis=1)]
    margin = 7.0
    for step in range(steps):
        mover = step % MOST_DIGITS
        place = centres[:, mover] + rng.uniform(-4, 4, size=(len(used), 2))
        gaps = np.abs(centres - place[:, None]).max(axis=2)
        gaps[:, mover] = np.inf
        free = np.where(used, gaps, np.inf).min(axis=1) >= _LEAST_GAP
        inside = ((place >= margin) & (place <= CANVAS - margin)).all(axis=1)
        centres[:, mover] = np.where((free & inside)[:, None], place, centres[:, mover])
    return centres


def _draw(scans: np.ndarray, chosen: np.ndarray, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the images uint8 (n, 32, 32) of scenes with these scans (n, 4) at these centres (n, 4, 2)."""
    num = len(chosen)
    ink = _clutter(scans, num, rng)
    for place in range(MOST_DIGITS):
        rows = np.flatnonzero(chosen[:, place] >= 0)
        size, turn = rng.uniform(12.0, 14.0, len(rows)), rng.uniform(-0.2, 0.2, len(rows))
        strength = rng.uniform(0.75, 1.0, len(rows))
        _stamp(ink, rows, scans[chosen[rows, place]], centres[rows, place], size=size, turn=turn, strength=strength)
    ink = ink[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    paper = rng.uniform(0.84, 0.98, size=(num, 1, 1)).astype(np.float32) + _shade(num, rng)
    grain = 0.025 * rng.standard_normal(ink.shape, dtype=np.float32)
    return np.clip(np.rint(255 * (paper * (1 - 0.9 * ink) + grain)), 0, 255).astype(np.uint8)


def _stamp(
    ink: np.ndarray,
    rows: np.ndarray,
    scans: np.ndarray,
    centres: np.ndarray,
    *,
    size: np.ndarray,
    turn: np.ndarray,
    strength: np.ndarray,
) -> None:
    """Add one scan (m, 8, 8) to each of these rows of `ink` (n, 32 + edges, 32 + edges), where it is darker.

    Args:
        ink: Written to. Its edges take what reaches beyond the canvas.
        rows: Which images, (m,), each at most once.
        scans: Ink in [0, 1], one scan a row.
        centres: Where on the canvas, x and y in pixels, (m, 2).
        size: How wide the scan becomes, in pixels, (m,).
        turn: By how much it is turned, in radians, (m,).
        strength: By how much its ink is multiplied, (m,).
    """
    corner = np.floor(centres).astype(int) - _PATCH // 2
    grid = _sampling_grid(centres - corner, size, turn)
    # With a border of no ink, strokes at the scan's edge end softly.
    source = F.pad(torch.from_numpy(scans)[:, None], (1, 1, 1, 1))
    sampled = F.grid_sample(source, torch.from_numpy(grid), mode="bicubic", align_corners=False)[:, 0]
    patch = (1.25 * sampled - 0.1).clamp_(0, 1).numpy() * strength[:, None, None].astype(np.float32)
    span = np.arange(_PATCH) + _EDGE
    index = (rows[:, None, None], (corner[:, 1:] + span)[:, :, None], (corner[:, :1] + span)[:, None, :])
    ink[index] = np.maximum(ink[index], patch)


def _sampling_grid(centres: np.ndarray, size: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return where in its scan each pixel of a patch lies, (m, P, P, 2), x and y as `grid_sample` wants them."""
    axis = (np.arange(_PATCH) + 0.5).astype(np.float32)
    across, down = (axis - centres[:, i : i + 1].astype(np.float32) for i in range(2))
    # A scan is 8 pixels wide, and 10 with the border that `_stamp` adds; half of that is 1 in these coordinates.
    scale = 1.6 / size
    cos, sin = ((scale * part)[:, None].astype(np.float32) for part in (np.cos(turn), np.sin(turn)))
    grid = np.empty((len(size), _PATCH, _PATCH, 2), dtype=np.float32)
    np.add((cos * across)[:, None, :], (sin * down)[:, :, None], out=grid[..., 0])
    np.subtract((cos * down)[:, :, None], (sin * across)[:, None, :], out=grid[..., 1])
    return grid


def _clutter(scans: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Return faint ink that is no digit, with the edges of `_stamp`: a straight stroke and two scraps of scans each."""
    ink = np.zeros((num, CANVAS + 2 * _EDGE, CANVAS + 2 * _EDGE), dtype=np.float32)
    ink[:, _EDGE:-_EDGE, _EDGE:-_EDGE] = _stroke(num, rng)
    for _ in range(2):
        scraps = scans[rng.integers(0, len(scans), num)] * _window(num, rng)
        centres = rng.uniform(2, CANVAS - 2, size=(num, 2))
        size, turn = rng.uniform(12.0, 14.0, num), rng.uniform(-np.pi, np.pi, num)
        _stamp(ink, np.arange(num), scraps, centres, size=size, turn=turn, strength=rng.uniform(0.0, 0.5, num))
    return ink


def _window(num: int, rng: np.random.Generator, side: int = 3) -> np.ndarray:
    """Return masks (n, 8, 8) that keep a random square of `side` pixels."""
    corner = rng.integers(0, 8 - side + 1, size=(num, 2, 1))
    kept = (np.arange(8) >= corner) & (np.arange(8) < corner + side)
    return (kept[:, 0, :, None] & kept[:, 1, None, :]).astype(np.float32)


def _stroke(num: int, rng: np.random.Generator) -> np.ndarray:
    """Return ink (n, 32, 32) of one thin, faint, straight stroke across each canvas."""
    angle, offset, strength = rng.uniform([0, -14, 0.1], [np.pi, 14, 0.3], size=(num, 3)).astype(np.float32).T
    axis = np.arange(CANVAS, dtype=np.float32) - (CANVAS - 1) / 2
    across, down = np.cos(angle)[:, None] * axis, np.sin(angle)[:, None] * axis
    distance = np.abs(down[:, :, None] + (across - offset[:, None])[:, None, :])
    return np.clip(1.2 - distance, 0, 1) * strength[:, None, None]


def _shade(num: int, rng: np.random.Generator) -> np.ndarray:
    """Return a weak slope of light (n, 32, 32) across the paper."""
    slope = rng.uniform(-0.06, 0.06, size=(num, 2, 1)).astype(np.float32)
    axis = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    across, down = slope[:, 0] * axis, slope[:, 1] * axis
    return across[:, None, :] + down[:, :, None]
