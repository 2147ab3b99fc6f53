"""The checked table that every reader gives and every other part of the library takes.

A table holds no images: it holds where they lie, what is known about each, and which part each belongs to. Texts are
kept in NumPy string arrays and labels in sparse matrices, so that a table of millions of images is some hundred
megabytes, and worker processes need not copy it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, resolve, suggest
from mlabel.data.cache import ImageCache, open_cache
from mlabel.data.split import random_split, stratified_split
from mlabel.data.survey import survey_images
from mlabel.labels import Group, LabelSpace

PARTS = ("train", "val", "test")
SPLIT_METHODS = ("stratified", "random")
_TEXT: Any = np.dtypes.StringDType()


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageTable:
    """Images with their labels: paths, ids, targets (N, L) and what of them is unknown.

    Everything is checked once, here: what holds a table may rely on it. A table is never changed; what selects from
    it gives another table.

    Args:
        paths: Where the images lie, N texts or `Path` objects. They are not opened here.
        targets: What holds, 1 present and 0 absent, (N, L), dense or sparse; kept as CSR uint8.
        space: The meaning of the L columns.
        ids: N unique texts. None: the file names without suffix where these are unique, else the paths.
        unknown: What is not known: sparse bool (N, L), True = unknown, or a dense bool mask, True = known. None: all
            is known. Kept as CSR, or None where nothing is unknown. An exclusive group of which a row has no label is
            unknown in that row, whether said here or not.
        partition: For each image "train", "val" or "test". None: there is no official partition.
        groups: For each image an id (integer or text) of what must not be torn apart by a split, such as the person
            shown or the original of an edited copy. None: each image stands alone.
        cache: The images already decoded; see `cached`. None: they are read from `paths`.
        notes: Sentences a reader wants said, such as how many records were left out and why.

    Raises:
        ValueError: lengths or columns that do not fit, an id given twice (both rows named), two labels of an
            exclusive group in one row, a label both present and unknown, or another name of a part.
        TypeError: paths, ids or groups of another type.

    Example:
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=["img/a.jpg", "img/b.jpg", "img/c.jpg"], targets=[[1, 0], [1, 1], [0, 0]],
        ...                    space=space)
        >>> table
        ImageTable(3 images, LabelSpace(tags: 2 any-of))
        >>> table.ids.tolist(), table.counts.tolist()
        (['a', 'b', 'c'], [2, 1])
        >>> table[[2, 0]].ids.tolist()
        ['c', 'a']
    """

    paths: Any
    targets: Any
    space: LabelSpace
    ids: Any = None
    unknown: Any = None
    partition: Any = None
    groups: Any = None
    cache: ImageCache | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        paths = _as_texts(self.paths, "paths")
        ids = _default_ids(paths) if self.ids is None else _as_texts(self.ids, "ids")
        shape = (len(paths), self.space.num_labels)
        _check_length(ids, len(paths), "ids")
        _refuse_duplicates(ids)
        targets = as_csr(self.targets, shape=shape)
        unknown = _complete_unknown(targets, as_unknown(self.unknown, shape), self.space, ids)
        partition = None if self.partition is None else _as_partition(self.partition, len(paths))
        groups = None if self.groups is None else _as_groups(self.groups, len(paths))
        if self.cache is not None:
            _check_length(self.cache, len(paths), "cache")
        checked = {"paths": paths, "ids": ids, "targets": targets, "unknown": unknown}
        checked |= {"partition": partition, "groups": groups, "notes": _as_notes(self.notes)}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageTable({len(self)} images, {self.space!r})"

    def __getitem__(self, indices: Any) -> ImageTable:
        """Return the table of some rows, in the order asked for.

        Args:
            indices: A slice, integers (negative ones count from the end), or a bool array (N,).

        Raises:
            TypeError: a single integer, or another type.
            IndexError: a row that there is not.
            ValueError: a bool array of another length, or a row asked for twice (ids are unique in a table).
        """
        return self._take(_as_rows(indices, len(self)))

    @cached_property
    def counts(self) -> np.ndarray:
        """How many images have each label: int64 (L,)."""
        return np.bincount(self.targets.indices, minlength=self.space.num_labels)

    @cached_property
    def known_counts(self) -> np.ndarray:
        """Of how many images it is known whether they have each label: int64 (L,)."""
        if self.unknown is None:
            return np.full(self.space.num_labels, len(self), dtype=np.int64)
        return len(self) - np.bincount(self.unknown.indices, minlength=self.space.num_labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over space, ids, targets and unknowns, in their order, as hexadecimal text.

        Where the images lie does not enter, so that a moved data set is the same data set.
        """
        digest = hashlib.sha256(self.space.fingerprint.encode())
        digest.update(np.strings.str_len(self.ids).astype("<i8").tobytes())
        for start in range(0, len(self), 65_536):
            digest.update("".join(self.ids[start : start + 65_536].tolist()).encode())
        for matrix in (self.targets, self.unknown):
            if matrix is not None:
                digest.update(matrix.indptr.astype("<i8").tobytes())
                digest.update(matrix.indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def part(self, name: str) -> ImageTable:
        """Return the images of the part `name` of the official partition.

        Raises:
            ValueError: there is no partition, or no image in that part; the message says which there are.
        """
        if self.partition is None:
            raise ValueError(f"this table has no official partition, so no part {name!r}; use parts() or split()")
        rows = np.flatnonzero(self.partition == name)
        if not len(rows):
            raise ValueError(f"this table has no part {name!r}; {suggest(str(name), self._part_sizes())}")
        return self._take(rows)

    def split(
        self, fractions: Sequence[float], *, seed: int = 0, groups: Any = None, method: str = "stratified"
    ) -> tuple[ImageTable, ...]:
        """Return one table for each of `fractions`. The official partition is not looked at.

        Args:
            fractions: The share of each part, such as (0.8, 0.1, 0.1).
            seed: Which of the many such splits.
            groups: For each image an id (N,) of what must stay together. None: the table's own `groups`.
            method: `stratified` by the labels, or `random`.

        Raises:
            ValueError: an unknown method; also see `stratified_split`.
            TypeError: groups that are no array of ids.
        """
        resolve(method, dict.fromkeys(SPLIT_METHODS), "method")
        groups = self.groups if groups is None else _as_groups(groups, len(self))
        codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
        if method == "random":
            part = random_split(len(self), fractions, seed=seed, groups=codes)
        else:
            part = stratified_split(self.targets, fractions, seed=seed, groups=codes, unknown=self.unknown)
        return tuple(self._take(np.flatnonzero(part == k), partition=None) for k in range(len(fractions)))

    def parts(
        self,
        seed: int = 0,
        *,
        fractions: Sequence[float] | None = None,
        method: str = "stratified",
        hold_out: float | None = None,
    ) -> dict[str, ImageTable]:
        """Return the tables to train, validate and test on, by their names.

        The official partition where there is one; a validation part that it lacks is split off the training part,
        90 to 10, which the notes say; a test part that it lacks is lacking here. Without an official partition: 80,
        10 and 10 %, stratified.

        Args:
            seed: Of what is split here.
            fractions: Shares of train and val, or of train, val and test: split so, whatever the official partition
                is. None: as said above.
            method: How it is split here: `stratified` by the labels, or `random`.
            hold_out: The share of the official training part that becomes the validation part, in the place of the
                official one. Where the test part has no labels or is missing, the official validation part is the
                test part then: so it can be reported without having chosen anything. None: as said above.

        Raises:
            ValueError: not two or three fractions, an unknown method, or `hold_out` with fractions, or without an
                official partition.
        """
        resolve(method, dict.fromkeys(SPLIT_METHODS), "method")
        if fractions is not None and len(fractions) not in (2, 3):
            raise ValueError(f"fractions must be two (train, val) or three (train, val, test); got {tuple(fractions)}")
        if hold_out is not None and (fractions is not None or self.partition is None):
            raise ValueError("hold_out is a share of the official training part; without one, give fractions")
        if fractions is not None or self.partition is None:
            return dict(zip(PARTS, self.split(fractions or (0.8, 0.1, 0.1), seed=seed, method=method), strict=False))
        parts = {name: self.part(name) for name in self._part_sizes()}
        if "train" in parts and (hold_out is not None or "val" not in parts):
            parts |= self._held_out(parts, hold_out or 0.1, seed, method)
        return {name: parts[name] for name in PARTS if name in parts}

    def _held_out(self, parts: dict[str, ImageTable], share: float, seed: int, method: str) -> dict[str, ImageTable]:
        """Return the parts that change when a share of the training part becomes the validation part."""
        train, val = parts["train"].split((1 - share, share), seed=seed, method=method)
        amount = "a tenth" if share == 0.1 else f"{share:.3g}"
        notes = [f"{amount} of the training part became the validation part (seed {seed})"]
        changed = {"train": train, "val": val}
        tested = "test" in parts and bool(parts["test"].known_counts.any())
        if "val" in parts and not tested:
            notes.append("the official validation part is the test part")
            changed["test"] = parts["val"]
        elif "val" not in parts:
            notes = [f"there is no official validation part: {notes[0]}"]
        return {name: table._derive(notes=(*self.notes, *notes)) for name, table in changed.items()}

    def limit(self, n: int, seed: int = 0) -> ImageTable:
        """Return at most `n` images drawn by `seed`, in table order, from each official part in proportion.

        Each part keeps at least one image where `n` allows it.

        Raises:
            ValueError: `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"a table can be limited to 1 image or more; got {n!r}")
        if n >= len(self):
            return self
        shuffled = np.random.default_rng(seed).permutation(len(self))
        if self.partition is None:
            return self._take(np.sort(shuffled[:n]))
        quotas = _quotas(n, self._part_sizes())
        names = self.partition[shuffled]
        chosen = [shuffled[names == name][:quota] for name, quota in quotas.items()]
        return self._take(np.sort(np.concatenate(chosen)))

    def select_labels(self, names: Iterable[str]) -> ImageTable:
        """Return the table with the labels `names` alone, in the order they have in this one.

        Raises:
            ValueError: an unknown name, no name, or some but not all labels of an exclusive group, of which the
                others would no longer say that exactly one holds.
        """
        names = [names] if isinstance(names, str) else list(names)
        wanted = np.zeros(self.space.num_labels, dtype=bool)
        wanted[[self.space.index(name) for name in names]] = True
        groups = []
        for group in self.space.groups:
            kept = [label for label in group.labels if wanted[self.space.index(label)]]
            if group.exclusive and 0 < len(kept) < len(group):
                raise ValueError(f"exclusive group {group.name!r} is kept whole or left out; got {kept} of it")
            if kept:
                groups.append(Group(group.name, kept, exclusive=group.exclusive))
        columns = np.flatnonzero(wanted)
        unknown = None if self.unknown is None else _none_if_empty(self.unknown[:, columns])
        return self._derive(space=LabelSpace(groups), targets=self.targets[:, columns], unknown=unknown)

    def duplicates(self, distance: int = 0, *, num_workers: int = 0) -> np.ndarray:
        """Return for each image the number of its set of duplicates, int64 (N,), having read every image.

        `table.split(fractions, groups=table.duplicates(4))` keeps copies of a picture in one part.

        Args:
            distance: 0: the same picture, pixel by pixel; 1 to 16: also near-duplicates. See `Survey.duplicates`.
            num_workers: Processes that read; 0: this one does.
        """
        return survey_images(self, num_workers=num_workers).duplicates(distance)

    def cached(self, folder: str | Path, *, check: str = "source") -> ImageTable:
        """Return the table with its images taken from the cache in `folder`, which `build_cache` made.

        What reads images of that table takes them from there, and so of every table selected or split from it.

        Args:
            folder: Of the cache. It may hold more images than the table has.
            check: "source": refuse the cache if an image file is not as it was when it was decoded: of other size, or
                of other time and other content. "none": the files may be gone.

        Raises:
            FileNotFoundError: there is no cache.
            DataError: it is not finished or damaged, or an image file changed.
            ValueError: it lacks an image of the table.
        """
        return self._derive(cache=open_cache(folder, self.ids, self.paths, check=check))

    def summary(self) -> str:
        """Return some lines of text: how many images and labels, positives a label, unknowns, parts, notes."""
        lines = [f"{len(self):,} images, {self.space.num_labels:,} labels"]
        lines += [self._describe_group(group) for group in self.space.groups]
        if self.unknown is not None:
            share = self.unknown.nnz / (len(self) * self.space.num_labels)
            lines.append(f"unknown: {self.unknown.nnz:,} entries ({share:.1%})")
        if self.partition is not None:
            sizes = ", ".join(f"{name} {size:,}" for name, size in self._part_sizes().items())
            lines.append(f"official parts: {sizes}")
        if self.groups is not None:
            lines.append(f"kept together: {len(np.unique(self.groups)):,} groups of images")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _describe_group(self, group: Group) -> str:
        span = self.space.slices[group.name]
        counts = self.counts[span]
        low, high = int(counts.argmin()), int(counts.argmax())
        held = np.diff(self.targets[:, span].indptr)
        text = (
            f"group {group.name!r}: {len(group):,} {'exclusive' if group.exclusive else 'any-of'} labels; positives "
            f"{counts[low]:,} ({group.labels[low]}) to {counts[high]:,} ({group.labels[high]}), "
            f"median {np.median(counts):,.0f}"
        )
        absent = int((counts == 0).sum())
        text += f"; {absent:,} never present" if absent else ""
        if group.exclusive or not len(self):
            return text
        return f"{text}; {held.mean():.2f} an image, {np.mean(held == 0):.1%} of the images have none"

    def _part_sizes(self) -> dict[str, int]:
        """The sizes of the official parts that have images."""
        sizes = {name: 0 if self.partition is None else int((self.partition == name).sum()) for name in PARTS}
        return {name: size for name, size in sizes.items() if size}

    def _take(self, rows: np.ndarray, **changes: Any) -> ImageTable:
        unknown = None if self.unknown is None else _none_if_empty(self.unknown[rows])
        taken = {"paths": self.paths[rows], "ids": self.ids[rows], "targets": self.targets[rows], "unknown": unknown}
        taken["partition"] = None if self.partition is None else self.partition[rows]
        taken["groups"] = None if self.groups is None else self.groups[rows]
        taken["cache"] = None if self.cache is None else self.cache[rows]
        return self._derive(**(taken | changes))

    def _derive(self, **changes: Any) -> ImageTable:
        """Return a table with some fields changed and without the checks, which at 5 million rows take seconds."""
        table = object.__new__(type(self))
        for field in fields(self):
            object.__setattr__(table, field.name, changes.get(field.name, getattr(self, field.name)))
        return table


def _as_texts(values: Any, what: str) -> np.ndarray:
    if isinstance(values, str | bytes | Path):
        raise TypeError(f"{what} must be a sequence of texts; got the single {type(values).__name__} {values!r}")
    if isinstance(values, np.ndarray) and values.dtype.kind in "TU" and values.ndim == 1:
        return values.astype(_TEXT)
    texts = [os.fspath(value) if isinstance(value, os.PathLike) else value for value in values]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what} must be texts; row {row} is {text!r} of type {type(text).__name__}")
    return np.array(texts, dtype=_TEXT)


def _default_ids(paths: np.ndarray) -> np.ndarray:
    names = (os.path.basename(path) for path in paths.tolist())
    stems = [os.path.splitext(name)[0] for name in names]
    return np.array(stems, dtype=_TEXT) if len(set(stems)) == len(stems) else paths


def _check_length(values: Sized, wanted: int, what: str) -> None:
    if len(values) != wanted:
        raise ValueError(f"{what} must have one entry an image ({wanted}); got {len(values)}")


def _refuse_duplicates(ids: np.ndarray) -> None:
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        first, second = int(order[same[0]]), int(order[same[0] + 1])
        more = f" ({len(same)} such in all)" if len(same) > 1 else ""
        raise ValueError(f"ids must be unique; {ordered[same[0]]!r} is the id of rows {first} and {second}{more}")


def _complete_unknown(
    targets: sp.csr_array, unknown: sp.csr_array | None, space: LabelSpace, ids: np.ndarray
) -> sp.csr_array | None:
    """Return the unknowns with every exclusive group that has no label in a row, after the checks against targets."""
    if unknown is not None:
        both = sp.coo_array(targets.multiply(unknown))
        if both.nnz:
            row, column = int(both.coords[0][0]), int(both.coords[1][0])
            raise ValueError(f"row {row} (id {ids[row]!r}): {space.names[column]!r} is both present and unknown")
    for group in space.exclusive_groups:
        span = space.slices[group.name]
        held = np.diff(targets[:, span].indptr)
        if (held > 1).any():
            row = int(np.flatnonzero(held > 1)[0])
            names = [space.names[span.start + k] for k in targets[[row], span].indices]
            raise ValueError(f"row {row} (id {ids[row]!r}): group {group.name!r} is exclusive, but {names} are present")
        doubtful = np.zeros(len(held), dtype=int) if unknown is None else np.diff(unknown[:, span].indptr)
        if ((held == 1) & (doubtful > 0)).any():
            row = int(np.flatnonzero((held == 1) & (doubtful > 0))[0])
            raise ValueError(
                f"row {row} (id {ids[row]!r}): of the exclusive group {group.name!r} one label is present, so no "
                "other can be unknown"
            )
        missing = np.flatnonzero((held == 0) & (doubtful < len(group)))
        if len(missing):
            unknown = _with_block(unknown, missing, span, targets.shape)
    return unknown


def _with_block(unknown: sp.csr_array | None, rows: np.ndarray, span: slice, shape: tuple[int, int]) -> sp.csr_array:
    """Return `unknown` with the columns `span` of `rows` set."""
    columns = np.arange(span.start, span.stop)
    places = (np.repeat(rows, len(columns)), np.tile(columns, len(rows)))
    block = sp.csr_array((np.ones(len(places[0]), dtype=bool), places), shape=shape)
    block.sort_indices()
    if unknown is None:
        return block
    both = sp.csr_array(unknown + block).astype(bool)
    both.sort_indices()
    return both


def _as_partition(values: Any, n: int) -> np.ndarray:
    partition = _as_texts(values, "partition")
    _check_length(partition, n, "partition")
    good = np.logical_or.reduce([partition == name for name in PARTS])
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(f"partition must hold {', '.join(PARTS)}; row {row} is {partition[row]!r}")
    return partition


def _as_groups(values: Any, n: int) -> np.ndarray:
    groups = np.asarray(values)
    if groups.ndim != 1:
        raise ValueError(f"groups must have one id an image ({n}); got shape {groups.shape}")
    if groups.dtype.kind not in "iuTU" and len(groups):
        raise TypeError(f"groups must be integers or texts; got dtype {groups.dtype}")
    _check_length(groups, n, "groups")
    return groups.astype(_TEXT) if groups.dtype.kind in "TU" else groups.astype(np.int64)


def _as_notes(notes: Any) -> tuple[str, ...]:
    return (notes,) if isinstance(notes, str) else tuple(str(note) for note in notes)


def _as_rows(indices: Any, n: int) -> np.ndarray:
    if isinstance(indices, slice):
        return np.arange(n)[indices]
    rows = np.asarray(indices)
    if rows.ndim != 1:
        raise TypeError(f"a table takes a slice, a list of rows or a bool array (N,); got {indices!r}. One row: [[3]]")
    if rows.dtype == bool:
        if len(rows) != n:
            raise ValueError(f"a bool array must have one entry an image ({n}); got {len(rows)}")
        return np.flatnonzero(rows)
    if not len(rows):
        return np.zeros(0, dtype=np.int64)
    if rows.dtype.kind not in "iu":
        raise TypeError(f"rows must be integers or bool; got dtype {rows.dtype}")
    rows = rows.astype(np.int64)
    if rows.min() < -n or rows.max() >= n:
        raise IndexError(f"rows must lie in 0 to {n - 1}; got {rows[(rows < -n) | (rows >= n)][0]}")
    rows = np.where(rows < 0, rows + n, rows)
    repeated = np.flatnonzero(np.bincount(rows, minlength=n) > 1)
    if len(repeated):
        raise ValueError(f"a row can be taken once, since ids are unique; row {repeated[0]} is asked for twice")
    return rows


def _none_if_empty(unknown: sp.csr_array) -> sp.csr_array | None:
    return unknown if unknown.nnz else None


def _quotas(n: int, sizes: dict[str, int]) -> dict[str, int]:
    """Share out `n` (below the sum of sizes) in proportion to `sizes`: at least one each while there are enough."""
    total = sum(sizes.values())
    quotas = {name: min(size, max(1, n * size // total)) for name, size in sizes.items()}
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    while sum(quotas.values()) > n:
        largest = max(by_size, key=lambda name: quotas[name])
        quotas[largest] -= 1
    for name in by_size:
        quotas[name] += min(sizes[name] - quotas[name], n - sum(quotas.values()))
    return quotas
