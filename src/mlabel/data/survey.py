"""What the images of a table are: sizes, faults, and fingerprints by which duplicates are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from torch.utils.data import DataLoader, Dataset

from mlabel._checks import check_between, check_positive
from mlabel.data.facts import Facts, read_facts
from mlabel.data.images import MAX_PIXELS
from mlabel.data.isolation import read_isolated

Progress = Callable[[Iterable[Facts], int, str], Iterable[Facts]]


class HasPaths(Protocol):
    """As much of an `ImageTable` as a survey needs."""

    @property
    def paths(self) -> np.ndarray:
        """Where the images lie (N,)."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Survey:
    """What the images of a table are, in the table's order.

    Attributes:
        heights: (N,) int32; 0 where an image could not be read.
        widths: (N,) int32.
        pixels: (N, 2) uint64: a 128-bit hash of the picture as it is shown; equal pictures have equal ones.
        looks: (N,) uint64: a perceptual hash; pictures that look alike differ in few bits. 0: a flat picture.
        faults: Row to (reason, message) of each image that could not be read.
        notes: Oddity to the number of images that have it.
    """

    heights: np.ndarray
    widths: np.ndarray
    pixels: np.ndarray
    looks: np.ndarray
    faults: dict[int, tuple[str, str]]
    notes: Counter[str]

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool: True where the image could be read."""
        return self.heights > 0

    def duplicates(self, distance: int = 0) -> np.ndarray:
        """Return for each image the number of its set of duplicates, int64 (N,): equal numbers, equal pictures.

        The numbers suit `groups=` of `stratified_split` and of `ImageTable.split`. What could not be read is alone.

        Args:
            distance: 0: pictures that are the same pixel by pixel. 1 to 16: also those whose perceptual hashes differ
                in at most so many of 64 bits, and all that are linked by such pairs; 4 finds re-encoded and resized
                copies. Flat pictures are compared pixel by pixel only.

        Raises:
            ValueError: a distance that is not from 0 to 16.
        """
        check_between(distance, 0, 16, "distance")
        rows = np.flatnonzero(self.readable)
        number = np.arange(len(self.heights))
        if not len(rows):
            return number
        exact = np.unique(self.pixels[rows], axis=0, return_inverse=True)[1].reshape(-1)
        links = [_links_of_equal(exact)]
        if distance:
            textured = np.flatnonzero(self.looks[rows])
            values, which = np.unique(self.looks[rows][textured], return_inverse=True)
            links.append(textured[_links_of_equal(which)])
            first = textured[np.unique(which, return_index=True)[1]]
            links += [first[pairs] for pairs in _near_pairs(values, distance)]
        number[rows] = _linked(links, rows)
        return number


def survey_images(
    table: HasPaths,
    *,
    num_workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    isolate: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Return what the images of `table` are, having read each of them once. A bad image is a finding, not an error.

    Args:
        table: An `ImageTable`, whose images.
        num_workers: Processes that read; 0: this one does.
        max_pixels: Larger images count as unreadable.
        isolate: Decode in processes that are thrown away after a few images. An image that crashes its decoder, keeps
            it for a minute, or makes it take more than 512 MiB and 16 bytes for each of `max_pixels` is then a
            finding too (`crashed`, `slow`, `memory`).
        progress: Wraps the facts as they come; gets them, their number and a title.

    Raises:
        ValueError: `max_pixels` that is not above 0.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data.table import ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> path = tempfile.mkdtemp() + "/a.png"
        >>> Image.new("L", (30, 20), 7).save(path)
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> paths, ids = [path, path, "gone.png"], ["a", "b", "c"]
        >>> table = ImageTable(paths=paths, ids=ids, targets=np.zeros((3, 2)), space=space)
        >>> survey = survey_images(table)
        >>> survey.heights.tolist(), survey.faults[2][0], survey.duplicates().tolist()
        ([20, 20, 0], 'missing', [0, 0, 2])
    """
    check_positive(max_pixels, "max_pixels")
    read = read_isolated if isolate else _read_here
    facts: Iterable[Facts] = read(table.paths, num_workers, max_pixels)
    if progress is not None:
        facts = progress(facts, len(table), "reading images")
    sizes = np.zeros((len(table), 2), dtype=np.int32)
    pixels = np.zeros((len(table), 2), dtype=np.uint64)
    looks = np.zeros(len(table), dtype=np.uint64)
    faults: dict[int, tuple[str, str]] = {}
    notes: Counter[str] = Counter()
    for each in facts:
        sizes[each.row], pixels[each.row], looks[each.row] = each.size, each.pixels, each.look
        notes.update(each.notes)
        if each.fault is not None:
            faults[each.row] = each.fault
    return Survey(sizes[:, 0], sizes[:, 1], pixels, looks, dict(sorted(faults.items())), notes)


def _read_here(paths: np.ndarray, num_workers: int, max_pixels: int) -> Iterator[Facts]:
    reader = _Reader(paths, max_pixels)
    # Not shuffled and not collated: torch's loader serves as a pool of processes whose death is noticed.
    for batch in DataLoader(reader, batch_size=16, num_workers=num_workers, collate_fn=list):
        yield from batch


class _Reader(Dataset[Facts]):
    """The facts of an image by its row; what a worker is given."""

    def __init__(self, paths: np.ndarray, max_pixels: int) -> None:
        self.paths, self.max_pixels = paths, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Facts:
        return read_facts(row, str(self.paths[row]), self.max_pixels)


def unite_groups(first: Any, second: Any) -> np.ndarray:
    """Return groups that keep together what either of two keeps together, int64 (N,).

    What is linked by a chain of groups of both is one group, which has the number of its first row. So do duplicates
    and, say, the persons shown both stay in one part: `groups=unite_groups(table.groups, survey.duplicates(4))`.

    Args:
        first: An id (N,), integer or text, for each image; None: each image stands alone.
        second: The like.

    Raises:
        ValueError: lengths that differ, or both are None.

    Example:
        >>> unite_groups(["ann", "ann", "bob", "cid", "dan"], [0, 1, 1, 3, 3]).tolist()
        [0, 0, 0, 3, 3]
    """
    codes = [np.unique(ids, return_inverse=True)[1].reshape(-1) for ids in (first, second) if ids is not None]
    lengths = sorted({len(each) for each in codes})
    if len(lengths) != 1:
        raise ValueError(f"two groupings of the same images were wanted; got lengths {lengths}")
    return _linked([_links_of_equal(each) for each in codes], np.arange(lengths[0]))


def _linked(links: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return for each of n things the smallest of the `rows` (n,) that it is linked to, by pairs (2, P) of places."""
    pairs = np.concatenate(links, axis=1)
    shape = (len(rows), len(rows))
    graph = sp.coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=shape)
    members = connected_components(graph, directed=False)[1]
    # A set is called by its first row, so that numbers do not depend on how sets were found.
    leaders = np.full(members.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(leaders, members, rows)
    return leaders[members]


def _links_of_equal(codes: np.ndarray) -> np.ndarray:
    """Return pairs (2, P) that link all entries of equal code into one chain."""
    order = np.argsort(codes, kind="stable")
    same = np.flatnonzero(codes[order][1:] == codes[order][:-1])
    return np.stack([order[same], order[same + 1]])


def _near_pairs(values: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yield pairs (2, P) of different 64-bit `values` that differ in at most `distance` bits.

    Cut into distance + 1 bands, two such values agree in at least one band, so only those that share a band are
    compared.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for start, stop in pairwise(edges.tolist()):
        band = (values >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        left = np.arange(len(values) - 1)
        for step in range(1, len(values)):
            left = left[left + step < len(values)]
            left = left[ordered[left] == ordered[left + step]]
            if not len(left):
                break
            one, other = order[left], order[left + step]
            near = np.bitwise_count(values[one] ^ values[other]) <= distance
            yield np.stack([one[near], other[near]])
