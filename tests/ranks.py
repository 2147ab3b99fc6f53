"""Several processes that train together, for tests: a function run on each of them, and what it gives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def on_ranks(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(folder, *arguments)` in `size` new processes that know of one another, and return what they give.

    What is given travels as a file of tensors and plain values.
    """
    mp.spawn(_work, args=(function, size, free_port(), str(folder), arguments), nprocs=size)
    return [torch.load(folder / f"given-{size}-{rank}.pt") for rank in range(size)]


def _work(
    rank: int, function: Callable[..., Any], size: int, port: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    _introduce(rank, size, port)
    torch.save(function(Path(folder), *arguments), Path(folder) / f"given-{size}-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def _introduce(rank: int, size: int, port: int) -> None:
    """Tell this process what torchrun would."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def end_of_ranks(function: Callable[..., Any], size: int, *arguments: Any, timeout: float = 120.0) -> list[int | None]:
    """Call `function(rank, *arguments)` in `size` new processes as `on_ranks` does, and return their exit codes.

    None stands for a process that did not end in time, and nobody ends one because another has.
    """
    context, port = mp.get_context("spawn"), free_port()
    processes = [context.Process(target=_call, args=(rank, function, size, port, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _call(rank: int, function: Callable[..., Any], size: int, port: int, arguments: tuple[Any, ...]) -> None:
    _introduce(rank, size, port)
    function(rank, *arguments)
