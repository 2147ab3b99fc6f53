"""Several processes that train together, for tests: a function run on each of them, and what it gives."""

from __future__ import annotations

import os
import socket
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
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(function(Path(folder), *arguments), Path(folder) / f"given-{size}-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
