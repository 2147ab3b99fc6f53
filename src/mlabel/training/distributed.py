"""Processes that train one model together: who they are, and how they add up, agree and wait.

Each process, a *rank*, has the whole model and a share of every batch. Three things make the training of many ranks
that of one: each rank divides its summed loss by what is known in the batches of *all* ranks, the gradients of all
ranks are added up, and what is decided (a step is skipped, the best is judged, a signal stops the training) is decided
from numbers that all ranks have. A rank without a sample in a batch adds nothing, and so nothing is padded.

Gradients are added here rather than by torch's DistributedDataParallel, which divides by the number of ranks and wants
each of them to run the network equally often. Like there, they travel in buckets while the backward pass still
computes the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mlabel.training.checkpoint import newest_checkpoint

# How long a rank waits for the others in a step before it gives up. Saving and judging, which the others wait for, are
# done in far less.
TIMEOUT = timedelta(minutes=30)
# How long the others may wait for the first, which prepares what all of them read.
PREPARATION = timedelta(hours=24)
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MESSAGE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; `Ranks()` is a process that trains alone.

    Every method but the properties is called by all ranks, in the same order. Alone, they cost nothing.

    Attributes:
        rank: The number of this process, from 0.
        size: How many they are.
        local_rank: The number of this process among those of its machine: the GPU that is its own.

    Example:
        >>> alone = Ranks()
        >>> alone.first, alone.add({"tags": 3.0}), alone.gather("a"), alone.from_first({"val_map": 0.5})
        (True, {'tags': 3.0}, ['a'], {'val_map': 0.5})
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _control: Any = field(default=None, repr=False, compare=False)  # a gloo group, whose messages no GPU waits for

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, judges and speaks."""
        return self.rank == 0

    def device(self, wanted: str | torch.device | None = None) -> torch.device:
        """Return the device of this rank: where `wanted` is "cuda" its own GPU. None: a GPU if there is one, else the
        CPU.
        """
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type != "cuda" or device.index is not None or self.size == 1:
            return device
        return torch.device("cuda", self.local_rank)

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums of all ranks' `values`, in float64; all have the same names, in the same order."""
        if self.size == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        with explained():
            dist.all_reduce(sums, group=self._control)
        return dict(zip(values, sums.tolist(), strict=True))

    def largest(self, value: int) -> int:
        """Return the largest `value` of all ranks."""
        if self.size == 1:
            return value
        held = torch.tensor(value)
        with explained():
            dist.all_reduce(held, dist.ReduceOp.MAX, group=self._control)
        return int(held)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's `value`, in their order, on every rank; values that JSON can hold."""
        if self.size == 1:
            return [value]
        own = _pack(value)
        with explained():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(own)]), group=self._control)
            longest = max(int(length) for length in lengths)
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            padded = torch.cat([own, own.new_zeros(longest - len(own))])
            dist.all_gather(texts, padded, group=self._control)
        return [_unpack(text[: int(length)]) for text, length in zip(texts, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Return the first rank's `value` on every rank; a value that JSON can hold."""
        if self.size == 1:
            return value
        text = _pack(value) if self.first else torch.zeros(0, dtype=torch.uint8)
        length = torch.tensor([len(text)])
        with explained():
            dist.broadcast(length, 0, group=self._control)
            text = text if self.first else torch.zeros(int(length), dtype=torch.uint8)
            dist.broadcast(text, 0, group=self._control)
        return _unpack(text)

    def collect(self, values: np.ndarray) -> list[np.ndarray]:
        """Return on the first rank all ranks' `values`, arrays (n, D) float32 of any n and the same D; elsewhere
        nothing.
        """
        if self.size == 1:
            return [values]
        counts = self.gather(len(values))
        with explained():
            if self.first:
                others = [
                    self._receive(np.empty((n, values.shape[1]), np.float32), r) for r, n in enumerate(counts[1:], 1)
                ]
                return [values, *others]
            for chunk in _chunks(values):
                dist.send(torch.from_numpy(chunk), 0, group=self._control)
        return []

    def _receive(self, into: np.ndarray, source: int) -> np.ndarray:
        for chunk in _chunks(into):
            dist.recv(torch.from_numpy(chunk), source, group=self._control)
        return into

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.size > 1:
            with explained():
                dist.barrier(group=self._control)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first rank go through alone, such as to write what the others then find, and the others after it."""
        if not self.first:
            self._wait_long()
        yield
        if self.first:
            self._wait_long()

    def _wait_long(self) -> None:
        if self.size > 1:
            with explained():
                dist.monitored_barrier(group=self._control, timeout=PREPARATION)

    def check_same(self, described: Mapping[str, Any]) -> None:
        """Refuse, on every rank, that a rank has other values than the first.

        Args:
            described: What must be the same by what it is, such as "the training table": its fingerprint.

        Raises:
            ValueError: one has.
        """
        first, *others = self.gather(dict(described))
        for rank, held in enumerate(others, 1):
            differ = [f"{name}: {value!r} and {held[name]!r}" for name, value in first.items() if held[name] != value]
            if differ:
                raise ValueError(
                    f"ranks 0 and {rank} were not given the same ({'; '.join(differ)}); start all of them with one "
                    "command, on the same data"
                )

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the first rank's values into every rank's `tensors`, which are alike in number and shape."""
        if self.size == 1:
            return
        with explained(), torch.no_grad():
            for tensor in tensors:
                held = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(held, 0)
                tensor.copy_(held)


ALONE = Ranks()


def join_ranks(device: str | torch.device | None = None) -> Ranks:
    """Return the place of this process among those that `torchrun` started together; alone where it started one.

    The processes are connected by the first call: by NCCL between GPUs and by gloo between CPUs. Where the program has
    called `torch.distributed.init_process_group` itself, its group is used.

    Args:
        device: What is trained on; None: a GPU if there is one, else the CPU.

    Raises:
        RuntimeError: the others did not come in time, or a machine has more ranks than GPUs.

    Example:
        >>> join_ranks("cpu").size  # of a process that was started alone
        1
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        started = all(os.environ.get(name) for name in _ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1
        if not started or _HELD.left:
            return ALONE
        _connect(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        _HELD.ours = True
    if dist.get_world_size() == 1:
        return ALONE
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    return Ranks(dist.get_rank(), dist.get_world_size(), local, _control_group())


def find_checkpoint(run_dir: Path, resume: str | Path | None, ranks: Ranks) -> Path | None:
    """Return the checkpoint that all ranks go on from, which the first has chosen; None: they begin.

    Raises:
        FileNotFoundError: on every rank, where one of them does not see it.
    """
    checkpoint = newest_checkpoint(run_dir) if resume == "auto" and ranks.first else resume
    chosen = ranks.from_first(None if checkpoint is None else str(checkpoint))
    if chosen is None:
        return None
    blind = [rank for rank, seen in enumerate(ranks.gather(Path(chosen).is_dir())) if not seen]
    if blind and ranks.size > 1:
        raise FileNotFoundError(
            f"rank {blind[0]} does not see {chosen}; the run folder must be on a file system that all machines share"
        )
    return Path(chosen)


def leave_ranks() -> None:
    """Part from the other ranks, once all of them have come here; each process is alone from then on.

    Where the program made the process group itself, it is left as it is.

    Example:
        >>> leave_ranks()  # nothing to part from
        >>> join_ranks("cpu").size
        1
    """
    if _HELD.ours and dist.is_initialized():
        join_ranks().wait()
        _HELD.control, _HELD.world, _HELD.ours, _HELD.left = None, None, False, True
        dist.destroy_process_group()


def _connect(device: torch.device) -> None:
    backend = "gloo"
    if device.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise RuntimeError(
                f"this machine has {there} GPU(s), and rank {local} of it has none; lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # torchrun may restart the processes beside the same store, where the addresses of those that are gone still stand.
    store = dist.PrefixStore(f"mlabel/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)


@dataclass
class _Held:
    """What this process is connected by."""

    world: Any = None  # the default process group that `control` belongs to
    control: Any = None
    ours: bool = False  # whether it was made here
    left: bool = False


_HELD = _Held()


def _control_group() -> Any:
    """Return the gloo group of all ranks, which is the default one where that is gloo alone."""
    world = dist.group.WORLD
    if _HELD.world is not world:
        alone = dist.get_backend() == "gloo"
        _HELD.world, _HELD.control = world, world if alone else dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _HELD.control


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where another rank has gone."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "another process of this training ended or did not answer; what it said last is the cause. Start all of "
            f"them again with resume='auto' (--resume auto), as many as there are then ({error})"
        ) from error


def _pack(value: Any) -> torch.Tensor:
    # As JSON: what a process sends to another one cannot run code there.
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _unpack(text: torch.Tensor) -> Any:
    return json.loads(text.numpy().tobytes())


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Return pieces of an array (n, D), which share its memory."""
    step = max(1, _MESSAGE_BYTES // max(1, values.strides[0]))
    return (values[start : start + step] for start in range(0, len(values), step))
