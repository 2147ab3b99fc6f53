"""One model in resamples: which metrics are wanted, what they need, and their values in each resample.

Labels are worked on in blocks; of each block remain the sums over its labels that averages are made of, and what the
caller makes of the values of each label, so that no array of labels times resamples is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr
from mlabel.labels import LabelSpace
from mlabel.metrics._binned import ECE_BINS
from mlabel.metrics._blocks import block_size, blocks, known_positives, rows_of
from mlabel.metrics._curves import CURVE_STATISTICS
from mlabel.metrics._levels import LabelCurves, pooled_curves
from mlabel.metrics._measures import EXTRA_METRICS, LABEL_METRICS, METRICS, PROBABILISTIC
from mlabel.metrics._top import TOP_STATISTICS
from mlabel.metrics.counts import Counts, DecisionRows, SampleCounts
from mlabel.metrics.evaluation import check_include
from mlabel.metrics.probabilistic import ENTRY_LOSSES, cells_of
from mlabel.metrics.ranking import ROW_METRICS, Checked, fill_undefined, refuse_outside, row_values
from mlabel.metrics.ratios import RATIOS, divide, exact_values, samples_values
from mlabel.metrics.resamples import Weights

# Statistics that every label has.
_ALWAYS = ("precision", "recall", "f1", "jaccard", "accuracy")
_AVERAGES = ("micro", "macro", "weighted")
# Name of a metric to the average, and the statistic of labels that it averages.
_AVERAGED = {
    **{f"{a}_{name}": (a, name) for name in (*RATIOS, *CURVE_STATISTICS, *PROBABILISTIC) for a in _AVERAGES},
    "map": ("macro", "ap"),
    "label_accuracy": ("macro", "accuracy"),
    "num_labels_averaged": ("number", "f1"),
    "num_labels_auroc": ("number", "auroc"),
}
_OF_SAMPLES = {f"samples_{name}": formula for name, formula in RATIOS.items()}
# What `evaluate` measures always that needs decisions and no ranks: the quick ones.
COUNT_METRICS = tuple(
    name
    for name in METRICS
    if name in _OF_SAMPLES or name in ("exact_match", "hamming_loss") or _AVERAGED.get(name, ("", ""))[1] in RATIOS
)

Sums = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    Attributes:
        names: Metrics that are numbers.
        labels: Statistics of each label.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, metrics: Iterable[str] | None) -> Plan:
        """Return the plan for names of metrics and of statistics of labels; None: what `evaluate` measures always.

        Raises:
            TypeError: one string instead of a list of names.
            ValueError: an unknown name.
        """
        of_labels = dict.fromkeys((*_ALWAYS, "ap", "auroc", *LABEL_METRICS))
        names = list(METRICS) if metrics is None else check_include(metrics, (*METRICS, *EXTRA_METRICS, *of_labels))
        averaged = [_AVERAGED[name] for name in names if name in _AVERAGED]
        needed = [name for average, name in averaged if average != "micro" or name in PROBABILISTIC]
        labels = dict.fromkeys((*_ALWAYS, *needed, *(name for name in names if name in of_labels)))
        numbers = dict.fromkeys(name for name in names if name not in of_labels)
        return cls(tuple(numbers), tuple(labels))

    def labels_in(self, table: Iterable[str]) -> list[str]:
        """Return the statistics of labels that are in a table."""
        held = set(table)
        return [name for name in self.labels if name in held]

    def pooled_in(self, table: Iterable[str]) -> list[str]:
        """Return the statistics of a table that are wanted of all entries together."""
        held = set(table)
        averaged = [_AVERAGED[name] for name in self.names if name in _AVERAGED]
        return [name for average, name in averaged if average == "micro" and name in held]


class Resampled:
    """One model's decisions and scores beside the targets, ready to be weighted.

    Args:
        checked: From `check_inputs`.
        decisions: Gives the decisions of rows.
        space: The columns' meaning; None: every column is an any-of label.
        plan: What is wanted.
        zero_division: As in `evaluate`.
    """

    def __init__(
        self, checked: Checked, decisions: DecisionRows, space: LabelSpace | None, plan: Plan, zero_division: float
    ) -> None:
        self.checked, self.space, self.plan, self.zero_division = checked, space, plan, zero_division
        scores, targets, self._unknown = checked
        if plan.labels_in(PROBABILISTIC):
            refuse_outside(scores)
        self._positives = known_positives(targets, self._unknown)
        size = max(255, 2**20 // max(1, scores.shape[1]))
        rows = [as_csr(decisions(start, stop)) for start, stop in blocks(len(scores), size)]
        decided = known_positives(sp.csr_array(sp.vstack(rows)), self._unknown)
        right = sp.csr_array(decided.multiply(self._positives))
        # Rows of samples, for the counts of samples; rows of labels, for those of labels.
        self._parts = [right, _without(decided, right), _without(self._positives, right)]
        self._by_label = [sp.csr_array(part.T) for part in self._parts]
        self._unknown_by_label = None if self._unknown is None else sp.csr_array(self._unknown.T)
        self._curves = LabelCurves(checked, plan.labels_in(CURVE_STATISTICS))

    @property
    def wrong(self) -> sp.csr_array:
        """Ones where it was decided wrong, CSR (L, N)."""
        return sp.csr_array(self._by_label[1] + self._by_label[2])

    def bounds(self, weights: Weights) -> list[tuple[int, int]]:
        """Return the blocks of labels; none has labels of an exclusive group and others."""
        cuts = {0, self.checked[0].shape[1]}
        for group in self.space.exclusive_groups if self.space else ():
            span = self.space.slices[group.name] if self.space else slice(0)
            cuts |= {span.start, span.stop}
        edges = sorted(cuts)
        size = block_size(len(weights) * 8 * 12, most=1024)
        return [(first + a, first + b) for first, last in pairwise(edges) for a, b in blocks(last - first, size)]

    def measure(self, start: int, stop: int, weights: Weights) -> tuple[dict[str, np.ndarray], Sums]:
        """Return name to (S, 1 + R) of the statistics of the labels start to stop, and the sums for the averages."""
        counts = self._counts(start, stop, weights)
        tp, _, fn, _ = counts
        known, support = counts.sum(axis=0), tp + fn
        found = {name: self._ratio(name, counts) for name in self.plan.labels_in(RATIOS)}
        curves = self._curves.measure(start, stop, known, weights)
        found |= {name: fill_undefined(values, self.zero_division) for name, values in curves.items()}
        sums: Sums = {("counts", ""): counts.sum(axis=1)}
        for name in self.plan.labels_in(PROBABILISTIC):
            found[name], sums["pooled", name] = self._probabilistic(name, start, stop, known, weights)
        for name, values in found.items():
            sums["label", name] = _label_sums(values, support)
        for group in self._groups_at(start):
            sums["counts", group], sums["recall", group] = sums["counts", ""], sums["label", "recall"]
        return {name: found[name] for name in self.plan.labels}, sums

    def finish(self, sums: Sums, weights: Weights) -> dict[str, np.ndarray]:
        """Return name to (1 + R,) of every metric, from the sums of all blocks."""
        pooled = pooled_curves(
            self.checked, self.plan.pooled_in(CURVE_STATISTICS), sums["counts", ""].sum(axis=0)[None], weights
        )
        rows = self._rows()
        found = {}
        for name in self.plan.names:
            if name in rows:
                found[name] = weights.means_of(rows[name])
            elif name == "hamming_loss":
                _, fp, fn, _ = sums["counts", ""]
                found[name] = _over(fp + fn, sums["counts", ""].sum(axis=0))
            else:
                found[name] = self._average(*_AVERAGED[name], sums, pooled)
        for group in self.space.exclusive_groups if self.space else ():
            tp, _, fn, _ = sums["counts", group.name]
            found[f"{group.name}.accuracy"] = _over(tp, tp + fn)
            found[f"{group.name}.mean_class_accuracy"] = _mean(sums["recall", group.name], "macro")
        return found

    def _average(self, average: str, name: str, sums: Sums, pooled: dict[str, np.ndarray]) -> np.ndarray:
        if average != "micro":
            return _mean(sums["label", name], average)
        if name in RATIOS:
            return divide(RATIOS[name], Counts(*sums["counts", ""]), self.zero_division)
        if name in PROBABILISTIC:
            return _over(np.abs(sums["pooled", name]).sum(axis=0), sums["counts", ""].sum(axis=0))
        return fill_undefined(pooled[name], self.zero_division)

    def _counts(self, start: int, stop: int, weights: Weights) -> np.ndarray:
        """Return tp, fp, fn, tn of some labels, int64 (4, S, 1 + R)."""
        counts = [weights.counts_of(part[start:stop]) for part in self._by_label]
        known = np.broadcast_to(weights.totals, counts[0].shape)
        if self._unknown_by_label is not None:
            known = known - weights.counts_of(self._unknown_by_label[start:stop])
        return np.stack([*counts, known - sum(counts)])

    def _ratio(self, name: str, counts: np.ndarray) -> np.ndarray:
        flat = Counts(*(each.reshape(-1) for each in counts))
        return divide(RATIOS[name], flat, self.zero_division).reshape(counts.shape[1:])

    def _probabilistic(
        self, name: str, start: int, stop: int, known: np.ndarray, weights: Weights
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric of probabilities (S, 1 + R), and the sums (bins, 1 + R) that it is made of for all labels."""
        scores = self.checked[0]
        block = scores[:, start:stop].T.astype(np.float64)
        hidden = None if self._unknown_by_label is None else rows_of(self._unknown_by_label, start, stop)
        places = self._places(start, stop)
        if name in ENTRY_LOSSES:
            absent, present = ENTRY_LOSSES[name](scores.dtype)
            values = absent(block)
            values[places] = present(block[places])
            if hidden is not None:
                values[hidden] = 0
            sums = weights.sums_of(values)[:, None]
        else:
            sums = self._gaps(block, places, hidden, weights)
        return _over(np.abs(sums).sum(axis=1), known), sums.sum(axis=0)

    def _places(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, counted from start, and samples of the known positives of some labels."""
        samples, labels = rows_of(sp.csr_array(self._positives[:, start:stop]))
        return labels, samples

    def _gaps(self, block: np.ndarray, places: tuple, hidden: tuple | None, weights: Weights) -> np.ndarray:
        """Return the sums (S, bins, 1 + R) of score - target in each bin of each label."""
        size, num_samples = block.shape
        cells = (cells_of(block, ECE_BINS) + np.arange(size)[:, None] * ECE_BINS).reshape(-1)
        block[places] -= 1
        if hidden is not None:
            block[hidden] = 0
        samples = np.tile(np.arange(num_samples), size)
        matrix = sp.csr_array((block.reshape(-1), (cells, samples)), shape=(size * ECE_BINS, num_samples))
        sums = [matrix @ part.astype(np.float64) for part in weights.parts]
        return np.concatenate(sums, axis=1).reshape(size, ECE_BINS, -1)

    def _rows(self) -> dict[str, np.ndarray]:
        """Return name to (N,), the values of samples whose means are wanted."""
        tp, fp, fn = (np.diff(part.indptr).astype(np.int64) for part in self._parts)
        known = np.full(len(tp), self.checked[0].shape[1]) - (
            0 if self._unknown is None else np.diff(self._unknown.indptr)
        )
        counts = SampleCounts(tp, fp, fn, known - tp - fp - fn)
        found = {
            name: samples_values(_OF_SAMPLES[name], counts, self.zero_division)
            for name in self.plan.names
            if name in _OF_SAMPLES
        }
        if "exact_match" in self.plan.names:
            found["exact_match"] = exact_values(counts)
        any_of = None if self.space is None else self.space.any_of
        for table, ties in ((ROW_METRICS, False), (TOP_STATISTICS, True)):
            asked = {name: table[name] for name in self.plan.names if name in table}
            found |= row_values(self.checked, asked, any_of, ties=ties) if asked else {}
        return found

    def _groups_at(self, column: int) -> list[str]:
        """Return the exclusive group of a column, or nothing."""
        groups = self.space.exclusive_groups if self.space else ()
        spans = {group.name: self.space.slices[group.name] for group in groups if self.space}
        return [name for name, span in spans.items() if span.start <= column < span.stop]


def _without(matrix: sp.csr_array, part: sp.csr_array) -> sp.csr_array:
    """Return the ones of `matrix` that `part` has not."""
    rest = sp.csr_array(matrix - part)
    rest.eliminate_zeros()
    return rest


def _label_sums(values: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Return (4, 1 + R) what averages over labels are made of: number, sum, weighted sum and weights where defined."""
    held = ~np.isnan(values)
    filled = np.where(held, values, 0.0)
    number, weight = held.sum(axis=0), np.where(held, support, 0)
    return np.stack([number, filled.sum(axis=0), (filled * weight).sum(axis=0), weight.sum(axis=0)])


def _mean(sums: np.ndarray, average: str) -> np.ndarray:
    """Return (1 + R,) the average from `_label_sums`, as `nan_mean` has it."""
    number, total, weighted, weight = sums
    if average == "number":
        return number
    plain = _over(total, number)
    return plain if average == "macro" else np.where(weight > 0, _over(weighted, weight), plain)


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is 0."""
    return numerator / np.where(denominator > 0, denominator, math.nan)
