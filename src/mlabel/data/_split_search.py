"""The search of a split: random parts of the exact sizes, then swaps as long as they bring the labels nearer.

The change of the distance under a move is linear in the counts but for a constant of the sample. One product of a
block of rows with an (L, k) matrix therefore prices every move of every sample of the block. Swaps of samples of
equal size (a sample, or a group of samples that must stay together) leave the sizes of the parts as they are.
"""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import scipy.sparse as sp

from mlabel.data._split_problem import EMPTY_PRICE, Problem
from mlabel.data._split_repair import repair

_BLOCK = 2048  # rows priced at once: larger blocks cost less and swap on staler counts
_MAX_SWEEPS = 16
_ENOUGH = 0.01  # a sweep that lowers the distance by less than this share is the last one
_POLISH = 100  # blocks in which the best single swap is looked for at the end
_IDLE = 10  # and how many blocks without one end the search
_CHEAPEST, _ANY = 32, 64  # how many units on either side of the swap are looked at there
_FEW = 1000  # up to this many units several attempts are made, for luck matters there and time does not
_ATTEMPTS = 4


def solve(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Return the part of each unit, int64 (U,)."""
    attempts = _ATTEMPTS if problem.num_units <= _FEW and problem.num_parts > 1 else 1
    return min((_attempt(problem, rng) for _ in range(attempts)), key=lambda parts: _badness(problem, parts))


def _attempt(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    parts = _start(problem, rng)
    counts = problem.count(parts)
    _descend(problem, parts, counts, rng)
    if problem.missing(counts).any():
        repair(problem, parts, counts, rng)
        _descend(problem, parts, counts, rng)
    return parts


def _badness(problem: Problem, parts: np.ndarray) -> tuple[int, int, float]:
    """Return what makes one solution worse than another: size errors, then missing labels, then the distance."""
    sizes = np.bincount(parts, weights=problem.unit_sizes, minlength=problem.num_parts)
    counts = problem.count(parts)
    return int(abs(sizes - problem.part_sizes).sum()), int(problem.missing(counts).sum()), problem.distance(counts)


# The start: parts of the right sizes.


def _start(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Return random parts of the right sizes: units of one size, the largest first, shared out by the room left."""
    parts = np.empty(problem.num_units, dtype=np.int64)
    room = problem.part_sizes.astype(np.float64)
    for size in np.unique(problem.unit_sizes)[::-1]:
        members = np.flatnonzero(problem.unit_sizes == size)
        rng.shuffle(members)
        left = np.maximum(room, 0)
        quota = np.floor(len(members) * left / left.sum() + 1e-9).astype(np.int64)
        room -= quota * size
        for _ in range(len(members) - quota.sum()):
            part = room.argmax()
            quota[part] += 1
            room[part] -= size
        parts[members] = np.repeat(np.arange(problem.num_parts), quota)
    if room.any():
        _fit_sizes(problem, parts, rng)
    return parts


def _fit_sizes(problem: Problem, parts: np.ndarray, rng: np.random.Generator) -> None:
    """Move or exchange groups between two parts, in place, while that brings the sizes nearer to the exact ones."""
    sizes = np.bincount(parts, weights=problem.unit_sizes, minlength=problem.num_parts)
    excess = (sizes - problem.part_sizes).astype(np.int64).tolist()
    while any(excess):
        pairs = [(p, q) for p in range(len(excess)) for q in range(len(excess)) if excess[p] > max(0, excess[q])]
        transfers = [_best_transfer(problem.unit_sizes, parts, excess, p, q) for p, q in pairs]
        (change, given, taken), (source, sink) = min(zip(transfers, pairs, strict=True))
        if change >= 0:
            return
        leaving = rng.choice(np.flatnonzero((parts == source) & (problem.unit_sizes == given)))
        if taken:
            parts[rng.choice(np.flatnonzero((parts == sink) & (problem.unit_sizes == taken)))] = source
        parts[leaving] = sink
        excess[source] -= given - taken
        excess[sink] += given - taken


def _best_transfer(
    unit_sizes: np.ndarray, parts: np.ndarray, excess: list[int], source: int, sink: int
) -> tuple[int, int, int]:
    """Return the change of the size error, the size given and the size taken back (0: none) of the best transfer."""
    given = np.unique(unit_sizes[parts == source])
    taken = np.concatenate([[0], np.unique(unit_sizes[parts == sink])])
    amount = given[:, None] - taken
    error = abs(excess[source] - amount) + abs(excess[sink] + amount)
    best = np.unravel_index(error.argmin(), error.shape)
    change = error[best] - abs(excess[source]) - abs(excess[sink])
    return int(change), int(given[best[0]]), int(taken[best[1]])


# The descent: swaps between two parts, priced block by block.


def _descend(problem: Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Lower the distance by swaps, in place, until a sweep over all units no longer pays."""
    if problem.num_parts == 1:
        return
    held = problem.held
    own_cost = sp.csr_array((held.data**2, held.indices, held.indptr), shape=held.shape) @ problem.weight
    before = problem.distance(counts)
    for _ in range(_MAX_SWEEPS):
        _sweep(problem, parts, counts, own_cost, rng)
        after = problem.distance(counts)
        if after > (1 - _ENOUGH) * before:
            break
        before = after
    _polish(problem, parts, counts, own_cost, rng)


def _sweep(
    problem: Problem, parts: np.ndarray, counts: np.ndarray, own_cost: np.ndarray, rng: np.random.Generator
) -> None:
    # Places that hold a unit now must still hold one after every step.
    least = np.where((counts > 0.5) & problem.guarded[:, None], 0.5, -np.inf)
    for start, stop in _blocks(problem.unit_sizes, rng):
        block, here = _rows(problem.held, start, stop), parts[start:stop]
        price = _price_moves(problem, counts, block, own_cost[start:stop], here)
        give, take = _propose(price, here)
        while len(give):
            moved = _moved(block, here, give, take, problem.num_parts)
            emptied = counts + moved < least
            if emptied.any():
                touched = block @ emptied.any(axis=1).astype(np.float64) > 0
                keep = ~(touched[give] | touched[take])
                give, take = give[keep], take[keep]
            elif problem.change(counts, moved) < 0:
                counts += moved
                here[give], here[take] = here[take], here[give]
                break
            else:  # Priced one by one, many swaps at once may overshoot: then the better half of them is tried.
                give, take = give[: len(give) // 2], take[: len(take) // 2]


def _polish(
    problem: Problem, parts: np.ndarray, counts: np.ndarray, own_cost: np.ndarray, rng: np.random.Generator
) -> None:
    """Make single swaps, in place, that pay only by the labels both rows share, which no row's own price shows."""
    blocks = (bounds for _ in range(_POLISH) for bounds in _blocks(problem.unit_sizes, rng))
    idle = 0
    for start, stop in islice(blocks, _POLISH):
        idle += 1
        if idle > _IDLE:
            return
        block, here = _rows(problem.held, start, stop), parts[start:stop]
        price = _price_moves(problem, counts, block, own_cost[start:stop], here)
        one, other = rng.permutation(problem.num_parts)[:2].tolist()
        pair = _cheapest_pair(problem, block, price, here, one, other)
        if pair is None:
            continue
        moved = _moved(block, here, pair[:1], pair[1:], problem.num_parts)
        opens = ((counts + moved < 0.5) & (counts > 0.5) & problem.guarded[:, None]).any()
        if problem.change(counts, moved) < -1e-9 and not opens:
            counts += moved
            here[pair] = here[pair[::-1]]
            idle = 0


def _cheapest_pair(
    problem: Problem, block: sp.csr_array, price: np.ndarray, parts: np.ndarray, one: int, other: int
) -> np.ndarray | None:
    """Return a row of part `one` and a row of part `other` whose exchange costs little, or None without rows."""
    here = _candidates(np.flatnonzero(parts == one), price[:, other])
    there = _candidates(np.flatnonzero(parts == other), price[:, one])
    if not (len(here) and len(there)):
        return None
    weight = 2 * (problem.weight[:, one] + problem.weight[:, other])
    shared = (block[here] * weight) @ block[there].T
    cost = price[here, other][:, None] + price[there, one] - shared.toarray()
    i, j = np.unravel_index(cost.argmin(), cost.shape)
    return np.array([here[i], there[j]])


def _candidates(rows: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Return the rows of lowest price and some of any: two rows of many shared labels are dear one by one."""
    rows = rows[np.argsort(price[rows], kind="stable")]
    return np.concatenate([rows[:_CHEAPEST], rows[_CHEAPEST :: max(1, len(rows) // _ANY)]])


def _price_moves(
    problem: Problem, counts: np.ndarray, block: sp.csr_array, own_cost: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Return by how much the distance grows if a row of the block goes to a part, (rows, k); infinite at its own.

    Leaving part p changes the distance by own_cost[p] - linear[p], coming to q by own_cost[q] + linear[q], where linear
    is the row times 2 * weight * (counts - wanted). Empty places add what filling them or opening them is worth.
    """
    slope = 2 * problem.weight * (counts - problem.wanted)
    missing = problem.missing(counts)
    coming = leaving = block @ slope
    if missing.any():
        alone = problem.guarded[:, None] & (counts > 0.5) & (counts < 1.5)
        coming, leaving = coming - EMPTY_PRICE * (block @ missing), leaving - EMPTY_PRICE * (block @ alone)
    rows = np.arange(len(parts))
    price = coming + own_cost
    price -= (leaving - own_cost)[rows, parts][:, None]
    price[rows, parts] = np.inf
    return price


def _blocks(unit_sizes: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return bounds of blocks that hold units of one size each, in random order, at a random offset."""
    length = min(_BLOCK, max(64, len(unit_sizes) // 8))
    edges = np.flatnonzero(np.diff(unit_sizes, prepend=-1, append=-1)).tolist()
    bounds = []
    for low, high in pairwise(edges):
        cuts = range(low + int(rng.integers(length)) + 1, high, length) if high - low > length else ()
        bounds += list(zip([low, *cuts], [*cuts, high], strict=True))
    return [bounds[i] for i in rng.permutation(len(bounds)) if bounds[i][1] - bounds[i][0] > 1]


def _rows(matrix: sp.csr_array, start: int, stop: int) -> sp.csr_array:
    """Return rows start .. stop as views of the matrix's arrays; slicing would copy them."""
    low, high = matrix.indptr[start], matrix.indptr[stop]
    arrays = (matrix.data[low:high], matrix.indices[low:high], matrix.indptr[start : stop + 1] - low)
    return sp.csr_array(arrays, shape=(stop - start, matrix.shape[1]))


def _propose(price: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows of a block whose exchange should lower the distance, the most promising first.

    Each row names the part it would best go to; rows of p that would go to q meet rows of q that would go to p, the
    best with the best. The sum of both prices overrates a swap's cost where the rows share labels; `_sweep` measures.
    """
    goal = price.argmin(axis=1)
    best = price[np.arange(len(parts)), goal]
    pair = np.minimum(parts, goal) * price.shape[1] + np.maximum(parts, goal)
    up, down = (_ranked(np.flatnonzero(side), pair, best) for side in (parts < goal, parts > goal))
    _, i, j = np.intersect1d(up[1], down[1], assume_unique=True, return_indices=True)
    give, take = up[0][i], down[0][j]
    gain = best[give] + best[take]
    order = np.argsort(gain, kind="stable")[: int((gain < 0).sum())]
    return give[order], take[order]


def _ranked(rows: np.ndarray, pair: np.ndarray, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `rows` by pair and price, and a key for each, unique: its pair and its rank in the pair."""
    rows = rows[np.lexsort((price[rows], pair[rows]))]
    codes = pair[rows]
    rank = np.arange(len(rows)) - np.searchsorted(codes, codes)
    return rows, codes * len(pair) + rank


def _moved(block: sp.csr_array, parts: np.ndarray, give: np.ndarray, take: np.ndarray, num_parts: int) -> np.ndarray:
    """Return the change of the counts (C, k) if the rows `give` and `take` change their parts pairwise."""
    step = np.zeros((len(parts), num_parts))
    step[give, parts[give]] = step[take, parts[take]] = -1
    step[give, parts[take]] = step[take, parts[give]] = 1
    return block.T @ step
