"""Images in a thousand folders, `0000` to `0999`, each by its number modulo 1000."""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from pathlib import Path

import numpy as np

from mlabel.data.readers._lines import IMAGE_SUFFIXES

_ID = re.compile("0|[1-9][0-9]{0,14}")


class NumberedImages:
    """Which ids have an image, and with which suffix: two flat arrays, since a dict of millions would be large."""

    def __init__(self, ids: array, suffixes: array) -> None:
        order = np.argsort(np.frombuffer(ids, dtype=np.int64), kind="stable")
        self._ids = array("q", np.frombuffer(ids, dtype=np.int64)[order].tobytes())
        self._suffixes = np.frombuffer(suffixes, dtype=np.int8)[order].tobytes()

    def __len__(self) -> int:
        return len(self._ids)

    def suffix(self, post_id: int) -> int:
        """Return the number of the suffix of a post's image, -1 where it has none."""
        place = bisect_left(self._ids, post_id)
        return self._suffixes[place] if place < len(self._ids) and self._ids[place] == post_id else -1


def list_numbered_images(folder: Path) -> NumberedImages:
    """Return the images in the buckets of a folder, by listing them: one look a bucket, not one a post."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; buckets 0000 to 0999 of images were wanted in it")
    ids, suffixes = array("q"), array("b")
    known = {suffix: number for number, suffix in enumerate(IMAGE_SUFFIXES)}
    for bucket in range(1000):
        try:
            names = os.listdir(folder / f"{bucket:04d}")
        except FileNotFoundError:
            continue
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix in known and _ID.fullmatch(stem) and int(stem) % 1000 == bucket:
                ids.append(int(stem))
                suffixes.append(known[suffix])
    return NumberedImages(ids, suffixes)
