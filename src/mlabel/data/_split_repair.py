"""The repair of a split: a positive of every label that can have one, in every part.

To have every label in a part is to cover a set with few rows. First exchanges are made that leave no more places (a
label and a part that lacks it) empty than before. Where that stands still, each place gets a weight that grows while
it stays empty: an exchange that fills an obstinate place is made although it opens others. This is the row weighting
of C. Gao, X. Yao, T. Weise, J. Li, "An efficient local search heuristic with row weighting for the unicost set
covering problem" (2015).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from mlabel.data._split_problem import Problem

_PATIENCE = 600  # exchanges without a new best that end the search: there are data which no split covers
_TRIES = 200  # failures that the climb forgives at first; each success buys four more
_CLIMBERS, _DONORS, _TAKERS = 3, 32, 128  # how many units are looked at on either side of an exchange
_DRAWN = 1024  # units that are drawn to find the takers among them
_FIRM = 1e9  # the weight of the sizes while the parts must keep them

_Move = tuple[int, int]  # a unit, and the part it came from


def repair(problem: Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Fill the places where a guarded column has no unit in a part, by exchanges, in place.

    What remains is the state with the fewest empty places among those whose sizes are as near to the wanted ones as
    the sizes are now. On the way groups of different size may be exchanged.
    """
    search = _Repair(problem, parts, counts, rng)
    search.climb()
    fewest, idle = len(search.empty), 0
    since: list[_Move] = []
    while fewest and idle < _PATIENCE:
        since += search.step()
        idle += 1
        if len(search.empty) < fewest and not search.too_uneven():
            fewest, since, idle = len(search.empty), [], 0
    search.undo(since)


class _Repair:
    """The state of the search: the parts and counts that it changes, the empty places, and what each place weighs."""

    def __init__(self, problem: Problem, parts: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
        self.problem, self.parts, self.counts, self.rng = problem, parts, counts, rng
        self.holders = sp.csc_array(problem.held)
        self.weight = np.ones(counts.shape)
        self.size_weight = _FIRM
        self.moved = np.zeros(problem.num_units, dtype=np.int64)  # the step at which a unit was moved last
        self.now = 0
        # A dict, since it keeps the order in which places came, and with it the split, the same on every machine.
        self.empty = dict.fromkeys(map(tuple, np.argwhere(problem.missing(counts)).tolist()))
        sizes = np.bincount(parts, weights=problem.unit_sizes, minlength=problem.num_parts)
        self.excess = sizes.astype(np.int64) - problem.part_sizes
        self.allowed = int(abs(self.excess).sum())

    def too_uneven(self) -> bool:
        """Whether the sizes of the parts are further from the wanted ones than at first, or a part is empty."""
        return int(abs(self.excess).sum()) > self.allowed or bool((self.excess == -self.problem.part_sizes).any())

    def climb(self) -> None:
        """Fill places by exchanges that leave no more of them empty; end when that mostly fails."""
        tries = _TRIES
        while tries > 0 and self.empty:
            places = list(self.empty)
            for place in self.rng.permutation(len(places)).tolist():
                if tries > 0 and places[place] in self.empty:
                    tries += 4 if self._fill(*places[place]) else -1
        self.size_weight = 1.0

    def undo(self, moves: list[_Move]) -> None:
        """Take moves back."""
        for unit, source in reversed(moves):
            self.move(unit, source)

    def step(self) -> list[_Move]:
        """Fill a random empty place, or mend the sizes; return the moves made."""
        self.now += 1
        uneven = self.too_uneven()
        if uneven and (not self.empty or self.rng.random() < 0.5):
            part = int(self.excess.argmin())
            donors = self._some(0, self.problem.num_units, int(self.excess.argmax()))
        else:
            places = list(self.empty)
            column, part = places[self.rng.integers(len(places))]
            donors = self._holders(column)[:_DONORS]
        for place in self.empty:
            self.weight[place] += 1
        self.size_weight += uneven
        return self._exchange(self._best(donors, part), part) if len(donors) else []

    def move(self, unit: int, sink: int) -> None:
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
        self.excess[source] -= self.problem.unit_sizes[unit]
        self.excess[sink] += self.problem.unit_sizes[unit]

    def _fill(self, column: int, part: int) -> bool:
        """Return whether an exchange was made that leaves fewer places empty; else one may be that leaves as many."""
        before, sideways = len(self.empty), None
        donors = self._holders(column)[:_DONORS]
        for donor in donors[np.argsort(self._cost(donors, part), kind="stable")][:_CLIMBERS].tolist():
            made = self._exchange(donor, part)
            if len(self.empty) < before and not self.too_uneven():
                return True
            if len(self.empty) == before and not self.too_uneven():
                sideways = [(unit, int(self.parts[unit])) for unit, _ in made]
            self.undo(made)
        for unit, sink in sideways or []:
            self.move(unit, sink)
        return False

    def _holders(self, column: int) -> np.ndarray:
        """Return the units that hold a column, in random order."""
        bounds = self.holders.indptr[column : column + 2]
        return self.rng.permutation(self.holders.indices[bounds[0] : bounds[1]])

    def _exchange(self, donor: int, part: int) -> list[_Move]:
        """Move `donor` to `part`, and the best unit back unless none is better; return the moves made."""
        source = int(self.parts[donor])
        others = self._takers(donor, part)
        self.move(donor, part)
        self.moved[donor] = self.now
        if not len(others):
            return [(donor, source)]
        other = self._best(others, source)
        if self._cost(np.array([other]), source)[0] >= 0:
            return [(donor, source)]
        self.move(other, source)
        self.moved[other] = self.now
        return [(donor, source), (other, part)]

    def _best(self, units: np.ndarray, part: int) -> int:
        """Return the unit that costs least to move to `part`; of equal ones the longest unmoved.

        Units of the last step come last, or the search would undo it.
        """
        last = self.moved[units]
        fresh = (last == self.now - 1) & (self.now > 1)
        return int(units[np.lexsort((last, self._cost(units, part), fresh))[0]])

    def _cost(self, units: np.ndarray, part: int) -> np.ndarray:
        """Return by how much the weight of what is wrong grows if one of `units` goes to `part`."""
        rows = self.problem.held[units]
        owner = np.repeat(np.arange(len(units)), np.diff(rows.indptr))
        columns, source = rows.indices, self.parts[units][owner]
        guarded = self.problem.guarded[columns]
        opened = guarded & (self.counts[columns, source] - rows.data < 0.5)
        filled = guarded & (self.counts[columns, part] < 0.5)
        change = self.weight[columns, source] * opened - self.weight[columns, part] * filled
        cost = np.bincount(owner, weights=change, minlength=len(units))
        size, here, there = self.problem.unit_sizes[units], self.excess[self.parts[units]], self.excess[part]
        uneven = abs(here - size) - abs(here) + abs(there + size) - abs(there)
        return cost + self.size_weight * uneven

    def _takers(self, unit: int, part: int) -> np.ndarray:
        """Return some units of `part`: of the size of `unit`, and of any size where sizes differ."""
        sizes = self.problem.unit_sizes
        low, high = np.searchsorted(sizes, [sizes[unit], sizes[unit] + 1]).tolist()
        same = self._some(low, high, part)
        return same if high - low == len(sizes) else np.concatenate([same, self._some(0, len(sizes), part)])

    def _some(self, low: int, high: int, part: int) -> np.ndarray:
        """Return some of the units low .. high that are in `part`, in random order."""
        # Of many units a sample is enough, and finding all would cost a pass over them.
        few = high - low <= _DRAWN
        drawn = low + (self.rng.permutation(high - low) if few else self.rng.integers(high - low, size=_DRAWN))
        return drawn[self.parts[drawn] == part][:_TAKERS]
