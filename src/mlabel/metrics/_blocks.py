"""Work in blocks of rows or columns: bounded memory, and as many threads as torch may use on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
import torch

R = TypeVar("R")

# Scratch memory of all threads together, in bytes; a block takes its share of it.
SCRATCH_BYTES = 64 * 2**20


def num_threads() -> int:
    """Return how many blocks may be worked on at once: torch's own number, so that one setting governs both."""
    return max(1, torch.get_num_threads())


def blocks(length: int, size: int) -> list[tuple[int, int]]:
    """Return the (start, stop) pairs that cut `length` entries into runs of at most `size`."""
    size = max(1, size)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def block_size(bytes_per_entry: int, most: int) -> int:
    """Return how many entries, at most `most` and at least one, fit one thread's share of the scratch memory."""
    share = SCRATCH_BYTES // num_threads()
    return int(np.clip(share // max(1, bytes_per_entry), 1, most))


def map_blocks(function: Callable[[int, int], R], bounds: Sequence[tuple[int, int]]) -> Iterator[R]:
    """Yield `function(start, stop)` for each of `bounds`, in order; NumPy sorts and compares without the GIL."""
    threads = min(num_threads(), len(bounds))
    if threads <= 1:
        for start, stop in bounds:
            yield function(start, stop)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda pair: function(*pair), bounds)


def known_positives(targets: sp.csr_array, unknown: sp.csr_array | None) -> sp.csr_array:
    """Return `targets` without the entries that are unknown: these count as if they were not there."""
    if unknown is None:
        return targets
    kept = sp.csr_array(targets - targets.multiply(unknown.astype(targets.dtype)))
    kept.eliminate_zeros()
    kept.sort_indices()
    return kept


def rows_of(matrix: sp.csr_array, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the stored entries in rows start to stop: rows counted from `start`, and columns."""
    stop = matrix.shape[0] if stop is None else stop
    lengths = np.diff(matrix.indptr[start : stop + 1])
    columns = matrix.indices[matrix.indptr[start] : matrix.indptr[stop]]
    return np.repeat(np.arange(stop - start), lengths), columns
