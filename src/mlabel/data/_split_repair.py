"""The repair of a split: a positive of every label that can have one, in every part.

To have every label in a part is to cover a set with few rows, and a search that only ever makes the best exchange
stands still soon. So each place (a label and a part that lacks it) has a weight that grows while it stays empty: an
exchange that fills an obstinate place is made although it opens others. This is the row weighting of C. Gao, X. Yao,
T. Weise, J. Li, "An efficient local search heuristic with row weighting for the unicost set covering problem" (2015).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from mlabel.data._split_problem import Problem

_PATIENCE = 600  # exchanges without a new best that end the search: there are data which no split covers
_DONORS, _TAKERS = 32, 128  # how many units are looked at on either side of an exchange


def repair(problem: Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Fill the places where a guarded column has no unit in a part, by exchanges, in place.

    A random empty place gets the unit that then leaves the least weight empty; one of its size goes back. The state
    with the fewest empty places is what remains.
    """
    search = _Repair(problem, parts, counts, rng)
    fewest, since, idle = len(search.empty), [], 0
    while search.empty and idle < _PATIENCE:
        swap = search.step()
        if swap is not None:
            since.append(swap)
        idle += 1
        if len(search.empty) < fewest:
            fewest, since, idle = len(search.empty), [], 0
    for one, other in reversed(since):
        search.exchange(one, other)


class _Repair:
    """The state of the search: the parts and counts that it changes, the empty places, and what each place weighs."""

    def __init__(self, problem: Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
        self.problem, self.parts, self.counts, self.rng = problem, parts, counts, rng
        self.holders = sp.csc_array(problem.held)
        self.weight = np.ones(counts.shape)
        self.moved = np.zeros(problem.num_units, dtype=np.int64)  # the step at which a unit was moved last
        self.now = 0
        # A dict, since it keeps the order in which places came, and with it the split, the same on every machine.
        self.empty = dict.fromkeys(map(tuple, np.argwhere(problem.missing(counts)).tolist()))

    def step(self) -> tuple[int, int] | None:
        """Fill a random empty place by an exchange, and return the exchange; None where no unit can go back."""
        self.now += 1
        places = list(self.empty)
        column, part = places[self.rng.integers(len(places))]
        held = self.holders.indices[self.holders.indptr[column] : self.holders.indptr[column + 1]]
        donors = self._best_first(self.rng.permutation(held)[:_DONORS], part)
        swap = next((pair for donor in donors if (pair := self._complete(donor, part))), None)
        for place in self.empty:
            self.weight[place] += 1
        return swap

    def exchange(self, one: int, other: int) -> None:
        """Let two units change their parts."""
        here, there = int(self.parts[one]), int(self.parts[other])
        self._move(one, there)
        self._move(other, here)

    def _complete(self, donor: int, part: int) -> tuple[int, int] | None:
        """Move `donor` to `part` and the best of its size back; return both, or None where there is none."""
        source = int(self.parts[donor])
        others = self._same_size(donor, part)
        if not len(others):
            return None
        self._move(donor, part)
        other = self._best_first(others, source)[0]
        self._move(other, source)
        self.moved[[donor, other]] = self.now
        return donor, other

    def _best_first(self, units: np.ndarray, part: int) -> list[int]:
        """Return units by the weight that stays empty if one goes to `part`; of equal ones the longest unmoved first.

        Units of the last step come last, or the search would undo it.
        """
        rows = self.problem.held[units]
        owner = np.repeat(np.arange(len(units)), np.diff(rows.indptr))
        columns, source = rows.indices, self.parts[units][owner]
        guarded = self.problem.guarded[columns]
        opened = guarded & (self.counts[columns, source] - rows.data < 0.5)
        filled = guarded & (self.counts[columns, part] < 0.5)
        change = self.weight[columns, source] * opened - self.weight[columns, part] * filled
        cost = np.bincount(owner, weights=change, minlength=len(units))
        last = self.moved[units]
        fresh = (last == self.now - 1) & (self.now > 1)
        ordered: list[int] = units[np.lexsort((last, cost, fresh))].tolist()
        return ordered

    def _same_size(self, unit: int, part: int) -> np.ndarray:
        """Return some units of `part` that are as large as `unit`, in random order."""
        sizes = self.problem.unit_sizes
        low, high = np.searchsorted(sizes, [sizes[unit], sizes[unit] + 1])
        # Of many units a sample is enough, and finding all would cost a pass over them.
        few = high - low <= 4096
        drawn = low + (self.rng.permutation(high - low) if few else self.rng.integers(high - low, size=4096))
        return drawn[self.parts[drawn] == part][:_TAKERS]

    def _move(self, unit: int, sink: int) -> None:
        """Move a unit, and note which places that opens and fills."""
        source, held = int(self.parts[unit]), self.problem.held
        own = slice(held.indptr[unit], held.indptr[unit + 1])
        columns = held.indices[own]
        filled = columns[self.counts[columns, sink] < 0.5]
        self.counts[columns, source] -= held.data[own]
        self.counts[columns, sink] += held.data[own]
        opened = columns[self.counts[columns, source] < 0.5]
        for column in filled.tolist():
            self.empty.pop((column, sink), None)
        for column in opened[self.problem.guarded[opened]].tolist():
            self.empty[column, source] = None
        self.parts[unit] = sink
