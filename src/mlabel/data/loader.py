"""Batches from a table: images read and augmented in workers, labels made dense in the main process.

What a batch holds follows from the table, the seed, the epoch and the batch's number alone: not from how many workers
there are, nor from where in the epoch one began, nor from what was read before.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch.utils.data import DataLoader, Dataset

from mlabel._checks import check_between, check_positive, resolve
from mlabel.data.dataset import ImageDataset, Key
from mlabel.data.images import MAX_PIXELS, WHITE, ImageError, too_many_bad
from mlabel.data.sampling import (
    REPEAT_THRESHOLD,
    Sampler,
    check_rank,
    checked_order,
    count_repeats,
    make_sampler,
    rank_share,
)
from mlabel.data.table import ImageTable
from mlabel.data.transforms import Transform

# The reason of a sample that is left out though its own image is well.
LEFT_ALONE = "the others of its batch are bad, and it may not be alone"


@dataclass(frozen=True)
class Batch:
    """Images of some rows of a table, with what is known about them.

    Attributes:
        images: uint8 (N, C, H, W).
        targets: uint8 (N, L), 1 present and 0 absent; float32 in [0, 1] where they were mixed or smoothed.
        mask: bool (N, L), True = known; None where the table knows all.
        index: int64 (N,), the rows of the table.
        number: Which batch of its epoch this is. After it, `Loader.epoch(epoch, start=number + 1)` goes on.
    """

    images: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None
    index: torch.Tensor
    number: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`.

        Args:
            device: Where to.
            non_blocking: Do not wait for the copy; it needs pinned memory to make a difference.
        """
        images = self.images.to(device, non_blocking=non_blocking)
        targets = self.targets.to(device, non_blocking=non_blocking)
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        index = self.index.to(device, non_blocking=non_blocking)
        return replace(self, images=images, targets=targets, mask=mask, index=index)


class BadImage(NamedTuple):
    """A sample that was skipped, and why.

    Attributes:
        id: The sample's id.
        path: Of its file.
        reason: Why, in a word or two; see `ImageError`.

    Example:
        >>> BadImage("im7", "im7.jpg", "truncated").reason
        'truncated'
    """

    id: str
    path: str
    reason: str


class Loader:
    """Batches of a table, epoch by epoch, the same ones however many workers read them.

    Workers start with the first epoch, stay over epochs, and end with `close()` or with the loader. Targets are made
    dense from the rows of the batch only; torch's global random numbers are neither used nor changed.

    Args:
        table: Which images, and what is known about them.
        batch_size: Rows in a batch; those of all ranks together, where there are several.
        image_size: Side, or height and width, of the images.
        channels: 3 for RGB, 1 for grey.
        augment: What is done to each image; see `mlabel.data.augmentation`.
        sampler: Which rows an epoch has, and in which order: a name of `make_sampler`, such as "shuffle", or an object
            of your own. A row that comes again in an epoch is augmented anew. What the order is follows from seed and
            epoch alone, and its length, and so that of the loader, is the same in every epoch.
        repeat_threshold: With "repeat_factor" and "instance_aware", the frequency below which a label is rare.
        seed: Of order and augmentation.
        rank: Of this process among those that train together; it gets its share of each batch (see `rank_share`).
        world_size: How many they are. What an epoch's batches are does not depend on it: their batches of one number
            are together the batch of that number of one process, and no row is padded. A rank that has no row of a
            batch gets it without rows, so that all come to its end together.
        num_workers: Processes that read images. 0: the main process does.
        pin_memory: Put batches into pinned memory, for faster copies to a GPU. Without a GPU it does nothing.
        min_last: A last batch of fewer rows is merged into the one before it, for networks with batch normalisation,
            which cannot train on a single row. Nothing is dropped. No rank's share has fewer rows, unless it has none.
        timeout: Seconds to wait for a batch of the workers before giving up. 0: for ever.
        background: The colour under transparent pixels.
        max_pixels: Larger images are refused.
        on_bad: "error" stops at an image that cannot be read. "skip" goes on without it: its batch gets smaller, or,
            with fewer than `min_last` rows left, is left out; nothing takes its place. Of several ranks each gets what
            is left of its share, and `leave_out` is called by those who know what is left of all.
        max_bad: With "skip", the share of the table that may be bad; beyond it the loader stops.

    Attributes:
        skips: Whether `on_bad` is "skip".
        bad: With "skip", the samples left out so far, each once, with the reason.
        notes: How often each oddity was passed over, such as damaged EXIF data.

    Raises:
        ValueError: an empty table, an option out of range, or a table of fewer rows than `min_last`.
        ImageError: (while iterating) an image cannot be read, or with "skip" too many cannot.
        RuntimeError: (while iterating) a worker died, or sent nothing within `timeout`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> path = tempfile.mkdtemp() + "/a.png"
        >>> Image.new("L", (30, 20), 7).save(path)
        >>> space = LabelSpace([Group("tags", list("vwxyz"))])
        >>> table = ImageTable(paths=[path] * 5, ids=list("abcde"), targets=np.eye(5), space=space)
        >>> loader = Loader(table, batch_size=2, image_size=8, sampler="shuffle")
        >>> [batch.index.tolist() for batch in loader.epoch(3)]
        [[2, 4], [0, 1], [3]]
        >>> [batch.index.tolist() for batch in loader.epoch(3, start=1)]
        [[0, 1], [3]]
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        batch_size: int,
        image_size: int | tuple[int, int],
        channels: int = 3,
        augment: str | Transform = "none",
        sampler: str | Sampler = "sequential",
        repeat_threshold: float = REPEAT_THRESHOLD,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        min_last: int = 1,
        timeout: float = 300.0,
        background: tuple[int, int, int] = WHITE,
        max_pixels: int = MAX_PIXELS,
        on_bad: str = "error",
        max_bad: float = 0.001,
    ) -> None:
        self.dataset = ImageDataset(
            table,
            image_size=image_size,
            channels=channels,
            augment=augment,
            seed=seed,
            background=background,
            max_pixels=max_pixels,
        )
        if len(table) == 0:
            raise ValueError("the table is empty; a loader needs at least one image")
        check_rank(rank, world_size)
        self.table = table
        self.sampler = make_sampler(sampler, table, seed=seed, threshold=repeat_threshold)
        _check_sizes(len(self.sampler), batch_size, min_last)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.num_workers = num_workers
        self.min_last = min_last
        self.timeout = timeout
        self.max_bad = max_bad
        self.bad: list[BadImage] = []
        self.notes: Counter[str] = Counter()
        self.skips = resolve(on_bad, {"error": False, "skip": True}, "on_bad")
        check_between(max_bad, 0.0, 1.0, "max_bad")
        self._pin = pin_memory and torch.accelerator.is_available()
        self._bad_rows: dict[int, bool] = {}  # row: whether its own image is what is bad
        self._plan = _Plan()
        self._reader: DataLoader[Any] | None = None
        self._stream: Any = None
        self._passes = 0

    def __len__(self) -> int:
        """How many batches an epoch has."""
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + 1 if rest >= self.min_last else full

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Return the batches of epoch number `epoch`, from batch number `start` on; what lies before is not read.

        A pass that was not finished may be dropped. Where two are begun, the later one is served and the earlier one
        raises a RuntimeError when it is asked for more.

        Raises:
            ValueError: `start` is not in 0..len(self).
        """
        check_between(start, 0, len(self), "start")
        return self._pass(epoch, start)

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of epoch number `epoch` in their order, int64 (M,), those of all ranks.

        Raises:
            ValueError: a sampler of your own gave another number of rows than its length, or a row that there is not.
        """
        return checked_order(self.sampler, epoch, num_rows=len(self.table))

    def leave_out(self, rows: Sequence[int]) -> None:
        """Note in `bad` the `rows` of a batch that is left out because too few of it can be read."""
        for row in rows:
            self._skip_row(row, LEFT_ALONE, own=False)

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        self._passes += 1
        stream, self._stream, self._reader = self._stream, None, None
        # Dropping the references would do, were none of them held elsewhere, by a traceback for example.
        if hasattr(stream, "_shutdown_workers"):
            stream._shutdown_workers()

    def _pass(self, epoch: int, start: int) -> Iterator[Batch]:
        if start == len(self):
            return
        turn = self._begin(epoch, start)
        for number in range(start, start + len(self._plan.batches)):
            batch = self._collate(self._next(turn), number)
            if batch is not None:
                yield batch

    def _begin(self, epoch: int, start: int) -> int:
        """Set the workers on an epoch; return the number of this pass."""
        self._passes += 1
        order = self.order(epoch)
        places = np.stack([order, count_repeats(order)], axis=1)
        ends = [(number + 1) * self.batch_size for number in range(len(self) - 1)] + [len(order)]
        starts = [0, *ends[:-1]]
        bounds = zip(starts[start:], ends[start:], strict=True)
        self._plan.epoch = epoch
        share = {"rank": self.rank, "world_size": self.world_size, "at_least": self.min_last}
        self._plan.batches = [rank_share(places[first:end], **share) for first, end in bounds]
        if self._reader is None:
            self._reader = self._make_reader()
        with self._explained(), warnings.catch_warnings():
            # The workers run none of the code that this Python warns about: they decode and send.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            self._stream = iter(self._reader)
        return self._passes

    def _make_reader(self) -> DataLoader[Any]:
        # Forked workers share the table's memory with this process; where there is no fork, it is the platform's way.
        forks = self.num_workers and "fork" in multiprocessing.get_all_start_methods()
        return DataLoader(
            _BatchReader(self.dataset, skip=self.skips),
            sampler=self._plan,
            batch_size=None,  # the sampler gives whole batches
            num_workers=self.num_workers,
            collate_fn=_same,
            pin_memory=self._pin,
            timeout=self.timeout if self.num_workers else 0,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if forks else None,
            generator=torch.Generator(),  # else the global one would be drawn from
            persistent_workers=self.num_workers > 0,
        )

    def _next(self, turn: int) -> _Read:
        if turn != self._passes:
            raise RuntimeError("this pass has ended: the loader was closed, or a later pass was begun on it")
        with self._explained():
            return next(self._stream)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """End the workers where one of them died or hangs, and say what to do about it."""
        try:
            yield
        # A worker that dies while it hands over a batch shows as a broken connection.
        except (RuntimeError, OSError, EOFError) as error:
            if not self.num_workers or str(error).startswith("Caught "):
                raise  # by the caller's own transform, which says what it is
            self._kill()
            self.close()
            raise RuntimeError(
                f"a loader worker died, or none sent anything for {self.timeout:g} s: {error}. If memory is short, use "
                "fewer workers; if reading is slow, raise timeout=; with num_workers=0 the cause shows itself"
            ) from error

    def _kill(self) -> None:
        """Kill the workers: one that hangs, in a file system that does not answer, would be waited for."""
        for worker in getattr(self._stream, "_workers", ()):
            with suppress(RuntimeError):  # by which torch reports the death of a worker
                worker.kill()
                worker.join(5)

    def _collate(self, read: _Read, number: int) -> Batch | None:
        """Return the batch of what was read, or None where too few rows of it are left."""
        self.notes.update(note.split(":")[0] for note in read.notes)
        self._record(read)
        rows = read.rows.numpy()
        if len(rows) < self.min_last and self.world_size == 1:
            self.leave_out(rows.tolist())
            return None
        targets = _dense(self.table.targets, rows)
        mask = None if self.table.unknown is None else _dense(self.table.unknown, rows).logical_not_()
        if self._pin:
            targets, mask = targets.pin_memory(), None if mask is None else mask.pin_memory()
        return Batch(read.images, targets, mask, read.rows, number)

    def _record(self, read: _Read) -> None:
        """Raise the error of the first bad image; or, with "skip", note them and stop where they are too many."""
        for row, error in read.bad:
            if not self.skips:
                self.close()
                raise error
            self._skip_row(row, str(error), own=True)
        count, last = sum(self._bad_rows.values()), self.bad[-1].reason if self.bad else ""
        too_many = too_many_bad(count, len(self.table), max_bad=self.max_bad, last=last)
        if too_many is not None:
            self.close()
            raise too_many

    def _skip_row(self, row: int, reason: str, *, own: bool) -> None:
        if row not in self._bad_rows:
            self.bad.append(BadImage(str(self.table.ids[row]), str(self.table.paths[row]), reason))
        self._bad_rows[row] = own or self._bad_rows.get(row, False)


class _Plan:
    """The batches of an epoch as lists of keys; torch asks for them in the main process."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batches: Sequence[np.ndarray] = ()  # (n, 2) each: rows, and how often they came before

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        return ([(epoch, row, repeat) for row, repeat in places.tolist()] for places in self.batches)


class _Read(NamedTuple):
    """What a worker sends for a batch."""

    rows: torch.Tensor  # int64 (n,), those that could be read
    images: torch.Tensor  # uint8 (n, C, H, W)
    bad: list[tuple[int, ImageError]]
    notes: list[str]


class _BatchReader(Dataset[_Read]):
    """Whole batches of a dataset's images, with the errors among them as data: raised, torch would rewrite them."""

    def __init__(self, dataset: ImageDataset, *, skip: bool) -> None:
        self.dataset = dataset
        self.skip = skip

    def __getitem__(self, keys: list[Key]) -> _Read:
        rows = [row for _, row, _ in keys]
        images = self.dataset.take(rows)
        if images is not None:
            return _Read(torch.tensor(rows, dtype=torch.int64), images, [], [])
        return self._read_each(keys)

    def _read_each(self, keys: list[Key]) -> _Read:
        # The channels of a pixel lie together, as decoders give them and networks are fastest with them.
        images = torch.empty((len(keys), *self.dataset.size, self.dataset.channels), dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2)
        rows: list[int] = []
        bad: list[tuple[int, ImageError]] = []
        notes: list[str] = []
        for epoch, row, repeat in keys:
            try:
                images[len(rows)] = self.dataset.read(epoch, row, repeat=repeat, notes=notes)
            except ImageError as error:
                bad.append((row, error))
                if not self.skip:
                    break
            else:
                rows.append(row)
        return _Read(torch.tensor(rows, dtype=torch.int64), images[: len(rows)], bad, notes)


def _same(value: Any) -> Any:
    return value


def _start_worker(_: int) -> None:
    """Leave signals to the main process, which saves its state on them and then ends the workers.

    A terminal or a job scheduler sends them to every process of the group: were the workers to die of them, the main
    process would stop in the middle of saving. For the case that it is gone itself, SIGTERM sets an alarm.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def _dense(matrix: sp.csr_array, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(matrix[rows].toarray())


def _check_sizes(num_rows: int, batch_size: int, min_last: int) -> None:
    check_positive(batch_size, "batch_size")
    if not 1 <= min_last <= batch_size:
        raise ValueError(f"min_last must be between 1 and batch_size ({batch_size}); got {min_last}")
    if num_rows < min_last:
        raise ValueError(f"an epoch has {num_rows} image(s), fewer than a batch must have at least ({min_last})")
