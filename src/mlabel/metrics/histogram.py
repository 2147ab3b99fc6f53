"""Scores counted in bins: every metric of labels from memory that does not grow with the number of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import scipy.sparse as sp
import torch
import torch.distributed

from mlabel._checks import DataError
from mlabel._files import write_atomically
from mlabel.labels import LabelSpace, threshold_values
from mlabel.metrics._binned import Binned, at_or_above, break_even_bin, calibration_error
from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics.counts import Counts
from mlabel.metrics.evaluation import Evaluation, check_include
from mlabel.metrics.ranking import check_probabilities, fill_undefined
from mlabel.metrics.ratios import LABEL_AVERAGES, RATIOS, check_zero_division, divide, hamming_of, nan_mean

_FORMAT = "mlabel.score_histogram/1"
_ARRAYS = ("positives", "known")
# Labels that an update works on at once: their bins stay in the processor's caches.
_COLUMNS = 256
_LARGEST_INT32 = np.iinfo(np.int32).max
_RATIOS = ("precision", "recall", "f1", "jaccard")
_ALWAYS = (*_RATIOS, "accuracy")
# Name of a number to the average and the ratio.
_AVERAGED = {f"{average}_{name}": (average, name) for name in RATIOS for average in LABEL_AVERAGES}
_RANKED = ("ap", "auroc", "break_even", "best_f1")


class ScoreHistogram:
    """How many scores of each label lie in each of `bins` equal bins of [0, 1], of the positives and of all known.

    Bin b holds the scores in [b / bins, (b + 1) / bins), the last one 1 besides. Bins are a power of two, so that a
    score's bin is exact in floating point, and so are all counts at thresholds that are multiples of 1 / bins. The
    state is two integer arrays (L, bins): 8 bytes a bin for up to 2,147,483,647 samples (int32), 16 beyond (int64),
    whatever the number of samples; 70,527 labels take 578 MB. Histograms of disjoint samples add up.

    What is not exact comes with its bound, the farthest that any order of the scores within their bins could move it:
    see `evaluate`.

    Args:
        num_labels: L.
        bins: A power of two.

    Raises:
        ValueError: no labels, or bins that are no power of two.

    Attributes:
        num_labels: L.
        bins: The number of bins.
        num_samples: The samples that were counted.
        positives: (L, bins) known positives.
        known: (L, bins) known scores.

    Example:
        >>> histogram = ScoreHistogram(2)
        >>> histogram.update([[0.9, 0.2], [0.6, 0.7]], [[1, 0], [0, 1]])
        >>> histogram.update([[0.8, 0.4]], [[1, 1]], [[True, False]])
        >>> histogram
        ScoreHistogram(3 samples, 2 labels, 1024 bins)
        >>> histogram.counts(0.5).fp, histogram.evaluate()["map"]
        (array([1, 0]), 1.0)
    """

    def __init__(self, num_labels: int, bins: int = 1024) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels must be 1 or more; got {num_labels}")
        if bins < 1 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two, such as 1024, so that edges are exact; got {bins}")
        self.num_labels, self.bins, self.num_samples = int(num_labels), int(bins), 0
        self.positives = np.zeros((num_labels, bins), dtype=np.int32)
        self.known = np.zeros((num_labels, bins), dtype=np.int32)

    def __repr__(self) -> str:
        return f"ScoreHistogram({self.num_samples} samples, {self.num_labels} labels, {self.bins} bins)"

    def update(self, scores: Any, targets: Any, mask: Any = None) -> None:
        """Count the scores of some more samples; at an error nothing is counted.

        Args:
            scores: (N, L) in [0, 1]: NumPy or torch.
            targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

        Raises:
            ValueError: scores that are not finite or outside [0, 1] (with the count and the first place), another
                number of labels, or shapes that differ.
        """
        held, present, unknown = check_probabilities(scores, targets, mask)
        if held.shape[1] != self.num_labels:
            raise ValueError(f"scores must be of shape (N, {self.num_labels}); got {held.shape}")
        self._make_room(self.num_samples + len(held))

        def count_columns(start: int, stop: int) -> None:
            cells = self._cells(held[:, start:stop], np.arange(start, stop))
            np.add.at(self.known.reshape(-1), cells.reshape(-1), self.known.dtype.type(1))

        # Each block of labels has counts of its own, so that blocks can be worked on at once.
        for _ in map_blocks(count_columns, blocks(self.num_labels, _COLUMNS)):
            pass
        self._add(self.positives, held, known_positives(present, unknown), 1)
        if unknown is not None:
            self._add(self.known, held, unknown, -1)
        self.num_samples += len(held)

    def merge(self, other: ScoreHistogram) -> None:
        """Add what `other` counted, a histogram of other samples of the same labels.

        Raises:
            ValueError: another number of labels or of bins.
            TypeError: something else than a histogram.
        """
        if not isinstance(other, ScoreHistogram):
            raise TypeError(f"a ScoreHistogram was wanted; got {type(other).__name__}")
        if (other.num_labels, other.bins) != (self.num_labels, self.bins):
            raise ValueError(f"histograms of the same labels and bins were wanted; got {self} and {other}")
        self._make_room(self.num_samples + other.num_samples)
        self.positives += other.positives
        self.known += other.known
        self.num_samples += other.num_samples

    def all_reduce(self) -> None:
        """Add what the processes of `torch.distributed` counted, each of other samples: all then hold the whole.

        Every process must call it, once. Where no process group was made, nothing is to be added.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        # NCCL sums on GPUs only.
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(self.num_samples, dtype=torch.int64, device=device)
        torch.distributed.all_reduce(total)
        self._make_room(int(total))
        for counts in (self.positives, self.known):
            held = torch.from_numpy(counts).to(device)
            torch.distributed.all_reduce(held)
            counts[...] = held.cpu().numpy()
        self.num_samples = int(total)

    def counts(self, thresholds: Any = 0.5) -> Counts:
        """Return the confusion counts at thresholds, each moved to the nearest edge between bins.

        Exact at multiples of 1 / bins below 1; elsewhere off by no more than what the threshold's own bin holds.

        Args:
            thresholds: A number, an array (L,), or an object with such an array in `.values`.

        Raises:
            ValueError: thresholds of another shape, or NaN.
        """
        return self._counts_at(self._edges(threshold_values(thresholds, self.num_labels)))

    def evaluate(
        self,
        thresholds: Any = 0.5,
        *,
        space: LabelSpace | None = None,
        include: Iterable[str] = (),
        zero_division: float = math.nan,
    ) -> Evaluation:
        """Return every metric of labels: those of decisions, AP, AUROC, P = R, calibration error, the best F1.

        Decisions are exact at the thresholds that `per_label` shows: the ones given, moved to the nearest edge. In
        `per_label`, and averaged or pooled (`micro_`) in the metrics, each value comes with its bound, the key with
        `_bound`: the value of the scores themselves differs by no more.

        - ap, auroc: the scores of a bin count as ties. AUROC is off by at most half the share of (positive, negative)
          pairs within one bin; AP by the best or worst order within bins.
        - break_even: precision where it equals recall; `break_even_threshold` is the edge next below.
        - best_f1: at an edge; between edges it may be higher by the bound. `best_f1_threshold` is the edge.
        - ece: the calibration error in 16 bins, off by at most 1 / (2 bins), its bound.

        Metrics of samples (exact match, LRAP, ...) need whole rows: see `mlabel.metrics.evaluate`.

        Args:
            thresholds: A number, an array (L,), or an object with such an array in `.values`.
            space: The columns' names. A label of an exclusive group is decided by its row's highest score, which bins
                do not have: its threshold and ratios are NaN, and it is left out of the averages of decisions.
            include: Other ratios of decisions to measure besides, of each label (`mcc`) or averaged (`macro_mcc`,
                `weighted_specificity`, `micro_f_beta_2`).
            zero_division: As in `mlabel.metrics.evaluate`.

        Raises:
            ValueError: thresholds of another shape, or NaN at an any-of column; a space of other labels; an
                unknown name in `include`.
        """
        names = check_include(include, {**RATIOS, **_AVERAGED})
        zero_division = check_zero_division(zero_division)
        edges = self._edges(threshold_values(thresholds, self.num_labels, space))
        ranked = self._ranked()
        decided, counts = edges >= 0, self._counts_at(edges)
        per_label = {
            **{name: getattr(counts, name) for name in ("support", "predicted", "tp", "fp", "fn", "tn")},
            "threshold": np.where(decided, edges / self.bins, np.nan),
            **{name: divide(RATIOS[name], counts, zero_division) for name in (*_ALWAYS, *names) if name in RATIOS},
            **{name: _filled(name, values, zero_division) for name, values in ranked.items()},
        }
        for name in RATIOS.keys() & per_label.keys():
            per_label[name][~decided] = np.nan
        pooled = _rank_block(self.positives.sum(axis=0)[None], self.known.sum(axis=0)[None])
        metrics = _of_decisions(counts.take(decided), zero_division, names)
        metrics |= _averages(per_label, {k: float(_filled(k, v, zero_division)[0]) for k, v in pooled.items()})
        return Evaluation(
            metrics=metrics,
            per_label=per_label,
            groups={},
            num_samples=self.num_samples,
            names=space.names if space is not None else tuple(str(column) for column in range(self.num_labels)),
        )

    def save(self, path: str | Path) -> None:
        """Write the counts into `path`, a safetensors file."""
        state = self.to_dict()
        texts = {"format": state["format"], "num_samples": str(state["num_samples"])}
        tensors = {name: state[name] for name in _ARRAYS}
        write_atomically(path, safetensors.numpy.save(tensors, metadata=texts))

    @classmethod
    def load(cls, path: str | Path) -> ScoreHistogram:
        """Return the histogram saved in the file `path`.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: it does not hold a histogram.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                texts = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise DataError(f"{path}: not a safetensors file: {error}") from error
        try:
            return cls.from_dict({**texts, **held})
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the state: a format name, num_samples, and copies of the arrays `positives` and `known`."""
        return {
            "format": _FORMAT,
            "num_samples": self.num_samples,
            "positives": self.positives.copy(),
            "known": self.known.copy(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoreHistogram:
        """Return the histogram that `to_dict` described as `data`; the arrays may come as lists or tensors, too.

        Raises:
            DataError: not of that form, or counts that no scores can have.
        """
        if data.get("format") != _FORMAT:
            raise DataError(f"a histogram of format {_FORMAT!r} was wanted; got {data.get('format')!r}")
        try:
            positives, known = (np.asarray(data[name]) for name in _ARRAYS)
            num_samples = int(data["num_samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a histogram of scores: {error!r}") from error
        if positives.ndim != 2 or positives.shape != known.shape or {positives.dtype.kind, known.dtype.kind} != {"i"}:
            raise DataError(
                f"positives and known must be integers of one shape (L, bins); got {positives.dtype} "
                f"{positives.shape} and {known.dtype} {known.shape}"
            )
        if not ((positives >= 0).all() and (positives <= known).all()):
            raise DataError("a bin of a histogram has more positives than scores, or fewer than none")
        if known.sum(axis=1, dtype=np.int64).max(initial=0) > num_samples:
            raise DataError(f"a label of the histogram has more scores than its {num_samples} samples")
        try:
            held = cls(*positives.shape)
        except ValueError as error:
            raise DataError(f"not a histogram of scores: {error}") from error
        held._make_room(num_samples)
        held.positives += positives.astype(held.positives.dtype)
        held.known += known.astype(held.known.dtype)
        held.num_samples = num_samples
        return held

    def _make_room(self, num_samples: int) -> None:
        """Let the counts hold `num_samples` in one bin: none may overflow unseen."""
        if num_samples > _LARGEST_INT32 and self.known.dtype == np.int32:
            self.positives, self.known = self.positives.astype(np.int64), self.known.astype(np.int64)

    def _cells(self, scores: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the places of `scores`, of the labels `columns`, in the flat arrays of counts."""
        # The product with a power of two is exact, and truncation rounds down what is not negative.
        cells = (scores * scores.dtype.type(self.bins)).astype(np.intp)
        np.minimum(cells, self.bins - 1, out=cells)
        cells += columns * self.bins
        return cells

    def _add(self, counts: np.ndarray, scores: np.ndarray, places: sp.csr_array, sign: int) -> None:
        rows, columns = rows_of(places)
        cells = self._cells(scores[rows, columns], columns)
        np.add.at(counts.reshape(-1), cells, counts.dtype.type(sign))

    def _edges(self, levels: np.ndarray) -> np.ndarray:
        """Return (L,) the bin from which on scores are positive: `bins` where none can be, -1 where levels are NaN."""
        nearest = np.clip(np.rint(np.nan_to_num(levels) * self.bins), 0, self.bins - 1)
        nearest[levels > 1] = self.bins
        nearest[np.isnan(levels)] = -1
        return nearest.astype(np.int64)

    def _counts_at(self, edges: np.ndarray) -> Counts:
        """Return the counts of each label; those at edge -1 have no decision, so that all of theirs are negative."""

        def of_block(start: int, stop: int) -> np.ndarray:
            cut = np.where(edges < 0, self.bins, edges)[start:stop, None]
            found = []
            for counts in (self.positives[start:stop], self.known[start:stop]):
                reached = np.append(at_or_above(counts), np.zeros((stop - start, 1), np.int64), axis=1)
                found += [np.take_along_axis(reached, cut, axis=1)[:, 0], reached[:, 0]]
            return np.stack(found)

        parts = list(map_blocks(of_block, self._blocks()))
        tp, support, predicted, known = np.concatenate(parts, axis=1)
        return Counts(tp, predicted - tp, support - tp, known - predicted - support + tp)

    def _ranked(self) -> dict[str, np.ndarray]:
        parts = list(map_blocks(lambda a, b: _rank_block(self.positives[a:b], self.known[a:b]), self._blocks()))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _blocks(self) -> list[tuple[int, int]]:
        # Two arrays of int64 and what is made of them.
        return blocks(self.num_labels, block_size(64 * self.bins, most=4096))


def _rank_block(positives: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of ranks of S rows of counts, with their bounds and thresholds, arrays (S,)."""
    bins = known.shape[1]
    binned = Binned.of(positives, known)
    found: dict[str, np.ndarray] = {}
    found["ap"], found["ap_bound"] = binned.average_precision()
    found["auroc"], found["auroc_bound"] = binned.auroc()
    found["break_even"], found["break_even_bound"] = binned.break_even()
    found["best_f1"], found["best_f1_bound"], best = binned.best_f1()
    found["break_even_threshold"] = _edge(break_even_bin(positives, known), bins)
    found["best_f1_threshold"] = _edge(best, bins)
    found["ece"] = calibration_error(positives, known)
    found["ece_bound"] = np.where(np.isnan(found["ece"]), np.nan, 1 / (2 * bins))
    return found


def _edge(place: np.ndarray, bins: int) -> np.ndarray:
    return np.where(place < 0, np.nan, place / bins)


def _filled(name: str, values: np.ndarray, zero_division: float) -> np.ndarray:
    """Return what `zero_division` makes of an absent label: a value that it gives by decree is not off."""
    if name in _RANKED:
        return fill_undefined(values, zero_division)
    if name.endswith("_bound") and not math.isnan(zero_division):
        return fill_undefined(values, 0.0)
    return values


def _of_decisions(counts: Counts, zero_division: float, include: Sequence[str]) -> dict[str, float]:
    averages: dict[str, Callable[..., float]] = LABEL_AVERAGES
    metrics = {f"{a}_{name}": averages[a](RATIOS[name], counts, zero_division) for name in _RATIOS for a in averages}
    metrics["hamming_loss"] = hamming_of(counts)
    metrics["label_accuracy"] = averages["macro"](RATIOS["accuracy"], counts, zero_division)
    metrics["num_labels_averaged"] = int(np.count_nonzero(~np.isnan(divide(RATIOS["f1"], counts, zero_division))))
    for name in include:
        if name in _AVERAGED:
            average, ratio = _AVERAGED[name]
            metrics[name] = averages[average](RATIOS[ratio], counts, zero_division)
    return metrics


def _averages(per_label: Mapping[str, np.ndarray], pooled: Mapping[str, float]) -> dict[str, float]:
    """Return means over labels and values of all labels pooled; the mean of bounds bounds the mean."""
    metrics: dict[str, float] = {}
    for name in ("ap", "auroc", "break_even", "best_f1", "ece"):
        macro = "map" if name == "ap" else f"macro_{name}"
        metrics[macro], metrics[f"{macro}_bound"] = nan_mean(per_label[name]), nan_mean(per_label[f"{name}_bound"])
        metrics[f"micro_{name}"], metrics[f"micro_{name}_bound"] = pooled[name], pooled[f"{name}_bound"]
    metrics["micro_break_even_threshold"] = pooled["break_even_threshold"]
    metrics["micro_best_f1_threshold"] = pooled["best_f1_threshold"]
    metrics["num_labels_auroc"] = int(np.count_nonzero(~np.isnan(per_label["auroc"])))
    return metrics
