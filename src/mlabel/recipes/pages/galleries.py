"""The pictures of a run's page that a person should look at: where it is right, wrong, or the labels are."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlabel.data import ImageDataset
from mlabel.recipes.pages.shown import Shown
from mlabel.report import Section, Tile, explain, label_issues, plot_explanations, plot_sheet

_log = logging.getLogger(__name__)

_OF_A_LABEL = 2  # pictures of one label in a gallery
_BATCH = 16  # images that are explained at once
_LIGHT = 0.15  # of a pixel that is left where no label looked
_NAMED = 6  # labels of an image that are named


_TEXT = (
    "Best: the fewest errors, then the most labels. False positives: decided and absent, the highest scores first. "
    "False negatives: present and not decided, the lowest scores first. Probable missing and wrong labels: what "
    "confident learning doubts; look whether the label is false or the model is.",
    f"At most {_OF_A_LABEL} pictures of a label. Under each: its name, the label with its score, and the labels it was "
    "given; beside it, bright: what speaks for the label.",
)


class Find(NamedTuple):
    """An image of a gallery, and the label that it is there for."""

    row: int
    label: int


def make_galleries(shown: Shown) -> Section:
    """Return the galleries, each also drawn as a PNG file and listed in `galleries.csv`."""
    kinds = {
        "Best": _best(shown),
        "Worst false positives": _errors(shown, "wrong"),
        "Worst false negatives": _errors(shown, "missed"),
        **_doubtful(shown),
    }
    chosen = {caption: list(finds)[: shown.tiles] for caption, finds in kinds.items()}
    shown.write_rows("galleries.csv", (_record(shown, kind, each) for kind, finds in chosen.items() for each in finds))
    tiles = {kind: _tiles(shown, kind, finds) for kind, finds in chosen.items() if finds}
    return Section("Pictures", _TEXT, galleries=tiles)


def _best(shown: Shown) -> Iterator[Find]:
    """Yield images of the fewest errors, those of most labels first, each with the label it is surest of."""
    errors = np.diff(shown.wrong.indptr) + np.diff(shown.missed.indptr)
    labels = np.diff(shown.present.indptr)
    order = np.lexsort([-labels, errors])
    return _spread((Find(row, _surest(shown, row)) for row in order[labels[order] > 0].tolist()), shown.tiles)


def _surest(shown: Shown, row: int) -> int:
    held = shown.present.indices[shown.present.indptr[row] : shown.present.indptr[row + 1]]
    return int(held[shown.scores[row, held].argmax()])


def _errors(shown: Shown, kind: str) -> Iterator[Find]:
    """Yield what was wrongly decided, the highest scores first, or missed, the lowest first."""
    held = (shown.wrong if kind == "wrong" else shown.missed).tocoo()
    rows, columns = held.coords
    scores = shown.scores[rows, columns]
    order = np.argsort(-scores if kind == "wrong" else scores, kind="stable")
    return _spread((Find(int(rows[k]), int(columns[k])) for k in order), shown.tiles)


def _doubtful(shown: Shown) -> dict[str, Iterator[Find]]:
    """Return by kind what was probably labelled falsely; of a class that is wrong the one that it rather is."""
    found = shown.result.best.per_label["threshold"]
    # Where labels are compared with each other there are none.
    levels = 0.5 if np.isnan(found[shown.space.any_of]).any() else found
    table = shown.table
    issues = label_issues(shown.scores, table.targets, mask=table.unknown, space=shown.space, thresholds=levels)
    rather = np.where(issues.better >= 0, issues.better, issues.columns)

    def finds(kind: str) -> Iterator[Find]:
        places = np.flatnonzero(issues.kinds == kind).tolist()
        return _spread((Find(int(issues.rows[k]), int(rather[k])) for k in places), shown.tiles)

    return {"Probable missing labels": finds("missing"), "Probable wrong labels": finds("wrong")}


def _spread(finds: Iterator[Find], most: int) -> Iterator[Find]:
    """Yield at most so many, of each image one and of each label few."""
    rows: set[int] = set()
    labels: Counter[int] = Counter()
    for find in finds:
        if len(rows) >= most:
            return
        if find.row not in rows and labels[find.label] < _OF_A_LABEL:
            rows.add(find.row)
            labels[find.label] += 1
            yield find


def _tiles(shown: Shown, kind: str, finds: Sequence[Find]) -> list[Tile]:
    """Return the pictures of a gallery, and draw them into a PNG file."""
    model = shown.run.model
    dataset = ImageDataset(shown.table, image_size=model.image_size, channels=model.in_channels)
    images = np.stack([dataset[find.row][1].numpy() for find in finds])
    maps = _explained(shown, images, [find.label for find in finds])
    lines = [_lines(shown, find) for find in finds]
    path = shown.folder / f"{kind.lower().replace(' ', '-')}.png"
    if maps is None:
        plot_sheet(list(images), path, captions=[each[1] for each in lines])
        lit: list[np.ndarray | None] = [None] * len(finds)
    else:
        plot_explanations(images, maps, path, captions=[each[:2] for each in lines])
        light = _LIGHT + (1 - _LIGHT) * maps
        lit = [_pixels(np.round(own * image).astype(np.uint8)) for own, image in zip(light, images, strict=True)]
    return [Tile(_pixels(image), own, beside) for image, own, beside in zip(images, lines, lit, strict=True)]


def _explained(shown: Shown, images: np.ndarray, labels: Sequence[int]) -> np.ndarray | None:
    """Return where the model looked for a label of each image (n, 1, H, W); None where it keeps no map of places."""
    columns = np.array(labels)[:, None]
    starts = range(0, len(images), _BATCH)
    try:
        maps = [explain(shown.run.model, images[k : k + _BATCH], columns[k : k + _BATCH]) for k in starts]
    except TypeError as error:
        _log.info("no pictures of where the model looked: %s", error)
        return None
    return np.concatenate([each.cpu().numpy() for each in maps])


def _lines(shown: Shown, find: Find) -> list[str]:
    """Return what stands under a picture: its name, the label with its score, and what holds."""
    names = shown.space.names
    held = shown.present.indices[shown.present.indptr[find.row] : shown.present.indptr[find.row + 1]]
    true = [names[label] for label in held.tolist()]
    more = f" and {len(true) - _NAMED} more" if len(true) > _NAMED else ""
    return [
        Path(str(shown.table.ids[find.row])).name,
        f"{names[find.label]} {shown.scores[find.row, find.label]:.2f}",
        f"labels: {', '.join(true[:_NAMED])}{more}" if true else "labels: none",
    ]


def _record(shown: Shown, kind: str, find: Find) -> dict[str, object]:
    level = float(shown.result.best.per_label["threshold"][find.label])
    return {
        "gallery": kind,
        "id": shown.table.ids[find.row],
        "label": shown.space.names[find.label],
        "score": float(shown.scores[find.row, find.label]),
        "threshold": level,
    }


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) of one or three channels as (H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(np.moveaxis(image, 0, 2), (*image.shape[1:], 3)))
