"""Stratified parts: every label gets its share in every part, sizes are exact, groups stay together.

The way, for N samples and k parts: draw parts of the exact sizes at random, then exchange samples between parts as
long as that brings the labels' counts nearer to their shares. The distance is Pearson's chi-squared,

    J = sum over labels l and parts p of (count[l, p] - wanted[l, p])^2 / wanted[l, p],

whose change under a move is linear in the counts but for a constant of the sample. One product of a block of rows
with an (L, k) matrix therefore prices every move of every sample of the block. Swaps of samples of equal size (a
sample, or a group of samples that must stay together) leave the sizes of the parts as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, to_numpy

_BLOCK = 2048  # rows priced at once: larger blocks cost less and swap on staler counts
_MAX_SWEEPS = 16
_ENOUGH = 0.01  # a sweep that lowers the distance by less than this share is the last one
_POLISH = 100  # blocks in which the best single swap is looked for at the end
_IDLE = 10  # and how many blocks without one end the search
_EMPTY = 8.0  # the price of a place without a unit: one count too few or too many costs a rare label about 1
_DONORS, _TAKERS = 8, 64  # how many units the repair tries on either side of a swap
_TRIES = 200  # failures the repair forgives at first; each success buys four more
_FEW = 1000  # up to this many units several attempts are made, for luck matters there and time does not
_ATTEMPTS = 4


def stratified_split(
    targets: Any,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    groups: Any = None,
    unknown: Any = None,
) -> np.ndarray:
    """Return the part of each sample, an int64 array (N,) with values 0 .. k-1, stratified over all labels at once.

    Part sizes are exact: N times the fraction, rounded by largest remainder. A label with k or more positives has
    one in every part wherever the search finds a way. Rows without
    labels are spread like a label of their own. The same arguments give the same parts on every machine. k-fold is
    `fractions=(1/k,) * k`.

    Args:
        targets: Binary (N, L): SciPy sparse, NumPy or torch. Sparse ones are never made dense.
        fractions: The share of each part, k positive numbers with sum 1.
        seed: Chooses among equally good splits.
        groups: Ids (N,) of any type that sorts. Samples with equal ids stay in one part; sizes are then as near
            to the exact ones as greedy exchange finds, and swaps happen between groups of equal size. None: every
            sample is free.
        unknown: SciPy sparse bool (N, L), True = unknown; such entries count neither as present nor as absent.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, a part that would be empty, or shapes that
            do not fit.
        TypeError: a dense `unknown`, or ids that do not sort.

    Example:
        >>> targets = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
        >>> part = stratified_split(targets, (0.5, 0.5))
        >>> [targets[part == p].sum(axis=0).tolist() for p in (0, 1)]
        [[2, 1], [2, 1]]

    The goal is that of K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of multi-label data" (2011);
    the algorithm is another one.
    """
    present = _known_positives(as_csr(targets), unknown)
    sizes = part_sizes(present.shape[0], fractions)
    rng = np.random.default_rng(seed)
    unit_of = _number_units(groups, present.shape[0], rng)
    problem = _pose(present, sizes, unit_of)
    attempts = _ATTEMPTS if problem.num_units <= _FEW and len(sizes) > 1 else 1
    parts = min((_solve(problem, rng) for _ in range(attempts)), key=lambda parts: _badness(problem, parts))
    _refuse_empty(parts, len(sizes))
    return parts[unit_of]


def part_sizes(num_samples: int, fractions: Sequence[float]) -> np.ndarray:
    """Return how many of `num_samples` each part gets, an int64 array (k,), rounded by largest remainder.

    Raises:
        ValueError: fractions that are not positive or do not sum to 1, or a part that would be empty.

    Example:
        >>> part_sizes(10, (0.64, 0.16, 0.20))
        array([6, 2, 2])
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ValueError(f"fractions must be positive numbers, one a part; got {fractions!r}")
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1; got {fractions!r} with sum {shares.sum():.6g}")
    exact = num_samples * shares / shares.sum()
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    # Rounded, so that remainders that are equal but for rounding are taken in the order of the parts.
    remainder = np.round(exact - sizes, 9)
    sizes[np.argsort(-remainder, kind="stable")[: num_samples - sizes.sum()]] += 1
    if not sizes.all():
        part = int(np.flatnonzero(sizes == 0)[0])
        raise ValueError(
            f"part {part} (fraction {shares[part]:g}) of {num_samples} samples would be empty; "
            "give more samples, fewer parts or a larger fraction"
        )
    return sizes


@dataclass(frozen=True)
class _Problem:
    """What the search works on: U units (samples, or groups of samples), C columns (labels), k parts."""

    held: sp.csr_array  # float64 (U, C): how many positives of each column a unit holds
    wanted: np.ndarray  # float64 (C, k)
    weight: np.ndarray  # float64 (C, k)
    guarded: np.ndarray  # bool (C,): columns with enough units to be in every part
    unit_sizes: np.ndarray  # int64 (U,), ascending
    part_sizes: np.ndarray  # int64 (k,)

    @property
    def num_units(self) -> int:
        return len(self.unit_sizes)

    @property
    def num_parts(self) -> int:
        return len(self.part_sizes)

    def count(self, parts: np.ndarray) -> np.ndarray:
        """Return the positives of each column in each part, float64 (C, k)."""
        return self.held.T @ np.eye(self.num_parts)[parts]

    def distance(self, counts: np.ndarray) -> float:
        """Return J of the module's first lines, and a price for each empty place."""
        return float((self.weight * (counts - self.wanted) ** 2).sum()) + _EMPTY * int(self.missing(counts).sum())

    def change(self, counts: np.ndarray, moved: np.ndarray) -> float:
        """Return by how much `distance` grows from `counts` to `counts + moved`, where that opens no place."""
        filled = self.missing(counts) & (moved > 0.5)
        grown = (self.weight * moved * (2 * (counts - self.wanted) + moved)).sum()
        return float(grown) - _EMPTY * int(filled.sum())

    def missing(self, counts: np.ndarray) -> np.ndarray:
        """Return where a column that could be in every part is not, bool (C, k)."""
        return (counts < 0.5) & self.guarded[:, None]


def _known_positives(present: sp.csr_array, unknown: Any) -> sp.csr_array:
    if unknown is None:
        return present
    if not sp.issparse(unknown):
        raise TypeError(
            f"unknown must be a SciPy sparse bool matrix, True = unknown; got {type(unknown).__name__}; "
            "for a dense mask with True = known give scipy.sparse.csr_array(~mask)"
        )
    hidden = as_unknown(unknown, present.shape)
    if hidden is None:
        return present
    present = sp.csr_array(present - present.multiply(hidden))
    present.eliminate_zeros()
    return present


def _number_units(groups: Any, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the unit of each sample, int64 (N,): one a group, or one a sample; by size, at random within a size.

    Neighbouring units then form random blocks of one size, and no later step has to shuffle the matrix again.
    """
    if groups is None:
        return rng.permutation(num_samples)
    ids = to_numpy(groups)
    if ids.shape != (num_samples,):
        raise ValueError(f"groups must hold one id a sample, of shape ({num_samples},); got {ids.shape}")
    try:
        group_of = np.unique(ids, return_inverse=True)[1]
    except TypeError as error:
        raise TypeError(f"group ids must be of one type that sorts, such as all int or all str: {error}") from None
    sizes = np.bincount(group_of)
    shuffled = rng.permutation(len(sizes))
    number = np.empty(len(sizes), dtype=np.int64)
    number[shuffled[np.argsort(sizes[shuffled], kind="stable")]] = np.arange(len(sizes))
    return number[group_of]


def _pose(present: sp.csr_array, sizes: np.ndarray, unit_of: np.ndarray) -> _Problem:
    """Return the problem over units; unit_of (N,) names the unit of each sample, units ordered by size."""
    held, unit_sizes = _with_common_columns(present), np.bincount(unit_of)
    order = np.argsort(unit_of, kind="stable")
    if len(unit_sizes) == len(unit_of):
        held = held[order]
    else:
        starts = np.concatenate([[0], np.cumsum(unit_sizes)])
        gather = sp.csr_array((np.ones(len(order)), order, starts), shape=(len(unit_sizes), len(order)))
        held = sp.csr_array(gather @ held)
    total = np.bincount(held.indices, weights=held.data, minlength=held.shape[1])
    units = np.bincount(held.indices, minlength=held.shape[1])
    guarded = units >= len(sizes)
    wanted, weight = _shares(total, guarded, sizes)
    return _Problem(held, wanted, weight, guarded, unit_sizes, sizes)


def _with_common_columns(present: sp.csr_array) -> sp.csr_array:
    """Return the positives as float64 with two columns more: labels of a single sample, and rows without labels.

    A label with one positive cannot be balanced alone, and its chi-squared would always prefer the largest part.
    Together such labels can be.
    """
    num_samples, num_labels = present.shape
    shape = (num_samples, num_labels + 2)
    single = np.bincount(present.indices, minlength=num_labels) == 1
    empty = np.flatnonzero(np.diff(present.indptr) == 0)
    indices = present.indices
    if single.any():
        indices = np.where(single[indices], num_labels, indices).astype(indices.dtype)
    # The row bounds are copied because merging the pooled entries of a row moves them in place.
    held = sp.csr_array((np.ones(len(indices)), indices, present.indptr.copy()), shape=shape)
    if single.any():
        held.sum_duplicates()
    if len(empty):
        marks = (np.ones(len(empty)), (empty, np.full(len(empty), num_labels + 1)))
        held = sp.csr_array(held + sp.csr_array(marks, shape=shape))
    return held


def _shares(total: np.ndarray, guarded: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the wanted counts and the weights of the columns in the parts, float64 (C, k) each.

    Wanted is the part's share, but at least 1 where the column can be in every part: what lacks to 1 is taken from
    the other parts in proportion. The weight is 1 / share, where the share is counted over the rarer of presence
    and absence, and shares below 1 count as 1: otherwise labels with few positives would drift to the largest part.
    """
    fraction = sizes / sizes.sum()
    wanted = np.outer(total, fraction)
    low = (wanted < 1) & guarded[:, None]
    rest = np.where(low, 0, wanted).sum(axis=1)
    scale = (total - low.sum(axis=1)) / np.maximum(rest, 1e-300)
    raised = np.where(low, 1, wanted * np.where(low.any(axis=1), scale, 1)[:, None])
    rarer = np.minimum(total, sizes.sum() - total)
    return raised, 1 / np.maximum(np.outer(rarer, fraction), 1)


def _solve(problem: _Problem, rng: np.random.Generator) -> np.ndarray:
    parts = _start(problem, rng)
    counts = problem.count(parts)
    _descend(problem, parts, counts, rng)
    if problem.missing(counts).any():
        _repair(problem, parts, counts, rng)
        _descend(problem, parts, counts, rng)
    return parts


def _badness(problem: _Problem, parts: np.ndarray) -> tuple[int, int, float]:
    """Return what makes one solution worse than another: size errors, then missing labels, then the distance."""
    sizes = np.bincount(parts, weights=problem.unit_sizes, minlength=problem.num_parts)
    counts = problem.count(parts)
    return int(abs(sizes - problem.part_sizes).sum()), int(problem.missing(counts).sum()), problem.distance(counts)


def _refuse_empty(parts: np.ndarray, num_parts: int) -> None:
    missing = np.flatnonzero(np.bincount(parts, minlength=num_parts) == 0)
    if len(missing):
        raise ValueError(
            f"part {missing[0]} would be empty: the groups are too few or too large for {num_parts} parts; "
            "give finer groups, fewer parts or a larger fraction"
        )


# The start: parts of the right sizes.


def _start(problem: _Problem, rng: np.random.Generator) -> np.ndarray:
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


def _fit_sizes(problem: _Problem, parts: np.ndarray, rng: np.random.Generator) -> None:
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


def _descend(problem: _Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
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
    problem: _Problem, parts: np.ndarray, counts: np.ndarray, own_cost: np.ndarray, rng: np.random.Generator
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
    problem: _Problem, parts: np.ndarray, counts: np.ndarray, own_cost: np.ndarray, rng: np.random.Generator
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
    problem: _Problem, block: sp.csr_array, price: np.ndarray, parts: np.ndarray, one: int, other: int
) -> np.ndarray | None:
    """Return the row of part `one` and the row of part `other` whose exchange costs least, or None without rows."""
    here, there = np.flatnonzero(parts == one), np.flatnonzero(parts == other)
    here = here[np.argsort(price[here, other], kind="stable")[:_TAKERS]]
    there = there[np.argsort(price[there, one], kind="stable")[:_TAKERS]]
    if not (len(here) and len(there)):
        return None
    weight = 2 * (problem.weight[:, one] + problem.weight[:, other])
    shared = (block[here] * weight) @ block[there].T
    cost = price[here, other][:, None] + price[there, one] - shared.toarray()
    i, j = np.unravel_index(cost.argmin(), cost.shape)
    return np.array([here[i], there[j]])


def _price_moves(
    problem: _Problem, counts: np.ndarray, block: sp.csr_array, own_cost: np.ndarray, parts: np.ndarray
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
        coming, leaving = coming - _EMPTY * (block @ missing), leaving - _EMPTY * (block @ alone)
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


# The repair: a positive of every label that can have one, in every part.


def _repair(problem: _Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Fill the places where a guarded column has no unit in a part, by swaps, in place.

    For a place (column, part) some units that hold the column elsewhere are tried against some units of the part, and
    the swap that leaves the fewest places empty is made. Swaps that leave as many empty as before are made too: they
    are the way around where every single swap opens another place. The search ends when it mostly fails, for there
    are data in which no split has every label in every part.
    """
    holders = problem.held.tocsc()
    tries = _TRIES
    while tries > 0:
        places = rng.permutation(np.argwhere(problem.missing(counts)))
        if not len(places):
            return
        for column, part in places.tolist():
            if tries <= 0 or counts[column, part] > 0.5:
                continue
            donors = holders.indices[holders.indptr[column] : holders.indptr[column + 1]]
            change, swap = _best_swap(problem, parts, counts, rng.permutation(donors)[:_DONORS], part, rng)
            tries += 4 if change < 0 else -1
            if swap is not None:
                _swap(problem, parts, counts, *swap)


def _best_swap(
    problem: _Problem, parts: np.ndarray, counts: np.ndarray, donors: np.ndarray, part: int, rng: np.random.Generator
) -> tuple[int, tuple[int, int] | None]:
    """Return by how much the empty places grow (never above 0) by the best exchange found, and that exchange."""
    best, swap = 0, None
    for donor in donors.tolist():
        others = _same_size(problem, parts, donor, part, rng)
        if not len(others):
            continue
        change = _opened(problem, counts, int(parts[donor]), part, donor, others)
        pick = int(change.argmin())
        if change[pick] <= best:
            best, swap = int(change[pick]), (donor, int(others[pick]))
        if best < 0:
            break
    return best, swap


def _same_size(problem: _Problem, parts: np.ndarray, unit: int, part: int, rng: np.random.Generator) -> np.ndarray:
    """Return some units of `part` that are as large as `unit`, in random order."""
    size = problem.unit_sizes[unit]
    low, high = np.searchsorted(problem.unit_sizes, [size, size + 1])
    # Of many units a sample is enough, and finding all would cost a pass over them.
    drawn = rng.permutation(high - low) if high - low <= 512 else rng.integers(high - low, size=512)
    drawn = drawn + low
    return drawn[parts[drawn] == part][:_TAKERS]


def _opened(
    problem: _Problem, counts: np.ndarray, source: int, part: int, donor: int, others: np.ndarray
) -> np.ndarray:
    """Return by how many the empty places grow if `donor` goes from `source` to `part`, for each that comes back."""
    opened = _move(problem, counts, donor, source, part)
    # Those that come back are counted on the state after the donor's move, which makes the sum exact.
    rows = problem.held[others]
    guarded = problem.guarded[rows.indices]
    emptied = guarded & (counts[rows.indices, part] - rows.data < 0.5)
    filled = guarded & (counts[rows.indices, source] < 0.5)
    _move(problem, counts, donor, part, source)
    owner = np.repeat(np.arange(len(others)), np.diff(rows.indptr))
    return opened + np.bincount(owner, weights=emptied * 1.0 - filled, minlength=len(others)).astype(np.int64)


def _swap(problem: _Problem, parts: np.ndarray, counts: np.ndarray, one: int, other: int) -> None:
    here, there = int(parts[one]), int(parts[other])
    _move(problem, counts, one, here, there)
    _move(problem, counts, other, there, here)
    parts[one], parts[other] = there, here


def _move(problem: _Problem, counts: np.ndarray, unit: int, source: int, sink: int) -> int:
    """Move a unit's positives in `counts`, in place; return by how many the empty places grew."""
    own = slice(problem.held.indptr[unit], problem.held.indptr[unit + 1])
    columns, held = problem.held.indices[own], problem.held.data[own]
    guarded = problem.guarded[columns]
    filled = guarded & (counts[columns, sink] < 0.5)
    counts[columns, source] -= held
    counts[columns, sink] += held
    return int((guarded & (counts[columns, source] < 0.5)).sum() - filled.sum())
