"""Metrics of decisions: precision, recall, F-beta, Jaccard, their likes for negatives, agreement, Hamming loss.

What is absent is reported, not averaged (`zero_division=nan`, the default):

- A label without known positives has no precision, recall, F-beta or Jaccard; one without known negatives has no
  specificity or negative predictive value; one that lacks either has no balanced accuracy, G-mean, Matthews correlation
  or kappa. Its value is NaN and averages over labels leave it out. All its errors still enter the micro averages.
- A label with positives and without positive decisions has precision 0; one with negatives and without negative
  decisions has negative predictive value 0; one whose decisions are all the same has Matthews correlation 0.
- `micro` is the ratio of the counts of all labels together, under the same rules; `weighted` weighs labels by their
  positives.
- A row that has neither positives nor positive decisions has 0 in the `samples` averages, as in scikit-learn; a row
  of which nothing is known is left out.

With `zero_division=0` or `1` a quotient 0/0 has that value and every label enters, as in scikit-learn. Unknown entries
count as if they were not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mlabel._checks import check_positive, resolve
from mlabel.metrics.counts import Counts, SampleCounts, confusion_counts, sample_counts

_AnyCounts = Counts | SampleCounts

# A ratio gives its numerator, its denominator, and what must be above 0 for it to mean anything.
Ratio = Callable[[_AnyCounts], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _precision(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tp, counts.predicted, counts.support


def _recall(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tp, counts.support, counts.support


def _f_beta(beta: float) -> Ratio:
    square = beta**2

    def of(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hits = (1 + square) * counts.tp
        return hits, hits + square * counts.fn + counts.fp, counts.support

    return of


def _jaccard(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tp, counts.tp + counts.fp + counts.fn, counts.support


def _specificity(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    negatives = counts.tn + counts.fp
    return counts.tn, negatives, negatives


def _npv(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tn, counts.tn + counts.fn, counts.tn + counts.fp


def _accuracy(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tp + counts.tn, counts.known, counts.known


def _floats(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # Products of four counts do not fit integers.
    return tuple(array.astype(np.float64) for array in (counts.tp, counts.fp, counts.fn, counts.tn))  # type: ignore[return-value]


def _balanced_accuracy(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, tn = _floats(counts)
    both = (tp + fn) * (tn + fp)
    return tp * (tn + fp) + tn * (tp + fn), 2 * both, both


def _g_mean(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, tn = _floats(counts)
    both = (tp + fn) * (tn + fp)
    return np.sqrt(tp * tn), np.sqrt(both), both


def _mcc(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, tn = _floats(counts)
    both = (tp + fn) * (tn + fp)
    return tp * tn - fp * fn, np.sqrt(both * (tp + fp) * (tn + fn)), both


def _kappa(counts: _AnyCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tp, fp, fn, tn = _floats(counts)
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return 2 * (tp * tn - fp * fn), chance, (tp + fn) * (tn + fp)


RATIOS: dict[str, Ratio] = {
    "precision": _precision,
    "recall": _recall,
    "f1": _f_beta(1.0),
    "f_beta_2": _f_beta(2.0),
    "f_beta_0.5": _f_beta(0.5),
    "jaccard": _jaccard,
    "specificity": _specificity,
    "npv": _npv,
    "balanced_accuracy": _balanced_accuracy,
    "g_mean": _g_mean,
    "mcc": _mcc,
    "kappa": _kappa,
    "accuracy": _accuracy,
}


def check_zero_division(value: float) -> float:
    """Return `value` if it is NaN, 0 or 1.

    Raises:
        ValueError: it is something else.
    """
    if not (math.isnan(value) or value in (0, 1)):
        raise ValueError(f"zero_division must be nan, 0 or 1; got {value!r}")
    return float(value)


def divide(formula: Ratio, counts: _AnyCounts, zero_division: float) -> np.ndarray:
    """Return the ratio of each entry of `counts`, float64, under the rules of `zero_division`."""
    numerator, denominator, needed = formula(counts)
    fill = 0.0 if math.isnan(zero_division) else zero_division
    values = np.full(len(counts), fill)
    np.divide(numerator, denominator, out=values, where=denominator > 0)
    if math.isnan(zero_division):
        values[needed == 0] = np.nan
    return values


def nan_mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean of what is not NaN, weighted where `weights` are given and not all 0; NaN of nothing."""
    held = ~np.isnan(values)
    if not held.any():
        return math.nan
    if weights is None or not weights[held].any():
        return float(values[held].mean())
    return float(np.average(values[held], weights=weights[held]))


def _micro(formula: Ratio, counts: Counts, zero_division: float) -> float:
    return float(divide(formula, counts.pooled(), zero_division)[0])


def _macro(formula: Ratio, counts: Counts, zero_division: float) -> float:
    return nan_mean(divide(formula, counts, zero_division))


def _weighted(formula: Ratio, counts: Counts, zero_division: float) -> float:
    return nan_mean(divide(formula, counts, zero_division), counts.support)


LABEL_AVERAGES: dict[str, Callable[[Ratio, Counts, float], float]] = {
    "micro": _micro,
    "macro": _macro,
    "weighted": _weighted,
}


def samples_average(formula: Ratio, counts: SampleCounts, zero_division: float) -> float:
    """Return the mean of the ratio over the rows of which something is known; 0/0 is 0 unless told otherwise."""
    return nan_mean(samples_values(formula, counts, zero_division))


def samples_values(formula: Ratio, counts: SampleCounts, zero_division: float) -> np.ndarray:
    """Return the ratio of each row (N,), NaN where nothing is known of it; 0/0 is 0 unless told otherwise."""
    fill = 0.0 if math.isnan(zero_division) else zero_division
    return np.where(counts.known > 0, divide(formula, counts, fill), np.nan)


def ratio(
    counts: Counts | SampleCounts, name: str, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return a ratio of counts that are there already, such as those merged over shards.

    Args:
        counts: Of labels (`confusion_counts`), or of samples (`sample_counts`) for `average="samples"`.
        name: precision, recall, f1, f_beta_2, f_beta_0.5, jaccard, specificity, npv, balanced_accuracy, g_mean, mcc,
            kappa or accuracy.
        average: As in `precision`.
        zero_division: As in `precision`.

    Raises:
        ValueError: an unknown name or average, or an average over labels of counts of samples or the reverse.

    Example:
        >>> shard = confusion_counts([[1, 0], [1, 1]], [[1, 1], [1, 1]])
        >>> ratio(shard + shard, "recall", average=None)
        array([1. , 0.5])
    """
    return _averaged(resolve(name, RATIOS, "ratio"), counts, average, zero_division)


def _averaged(
    formula: Ratio, counts: Counts | SampleCounts, average: str | None, zero_division: float
) -> float | np.ndarray:
    zero_division = check_zero_division(zero_division)
    if average is None:
        return divide(formula, counts, zero_division)
    resolve(average, {**LABEL_AVERAGES, "samples": samples_average}, "average")
    if isinstance(counts, SampleCounts) != (average == "samples"):
        wanted = "sample_counts(...)" if average == "samples" else "confusion_counts(...)"
        raise ValueError(f"average={average!r} needs the counts of {wanted}; got {type(counts).__name__}")
    if isinstance(counts, SampleCounts):
        return samples_average(formula, counts, zero_division)
    return LABEL_AVERAGES[average](formula, counts, zero_division)


def _score(formula: Ratio, data: tuple[Any, Any, Any], average: str | None, zero_division: float) -> float | np.ndarray:
    count = sample_counts if average == "samples" else confusion_counts
    return _averaged(formula, count(*data), average, zero_division)


def precision(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return tp / (tp + fp): how much of what was decided positive is so (van Rijsbergen, 1979).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> precision([[1, 1], [1, 0]], [[1, 0], [0, 0]], average=None)
        array([0.5, nan])
    """
    return _score(_precision, (decisions, targets, mask), average, zero_division)


def recall(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return tp / (tp + fn): how much of what is positive was decided so (van Rijsbergen, 1979).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> recall([[1, 1], [0, 0]], [[1, 0], [1, 0]], average=None)
        array([0.5, nan])
    """
    return _score(_recall, (decisions, targets, mask), average, zero_division)


def f_beta(
    decisions: Any,
    targets: Any,
    mask: Any = None,
    *,
    beta: float,
    average: str | None = "macro",
    zero_division: float = math.nan,
) -> float | np.ndarray:
    """Return (1 + beta²) tp / ((1 + beta²) tp + beta² fn + fp) (van Rijsbergen, 1979).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        beta: How many times as important recall is as precision; above 0.
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, an unknown average, or a beta of 0 or below.

    Example:
        >>> round(f_beta([[1], [0]], [[1], [1]], beta=2.0), 4)
        0.5556
    """
    check_positive(beta, "beta")
    return _score(_f_beta(beta), (decisions, targets, mask), average, zero_division)


def f1(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return 2 tp / (2 tp + fn + fp), the harmonic mean of precision and recall (van Rijsbergen, 1979).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> f1([[1, 0], [1, 0]], [[1, 0], [1, 1]], average="macro")
        0.5
    """
    return _score(_f_beta(1.0), (decisions, targets, mask), average, zero_division)


def jaccard(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return tp / (tp + fp + fn), intersection over union (Jaccard, 1912).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> jaccard([[1, 1, 0]], [[1, 0, 0]], average="samples")
        0.5
    """
    return _score(_jaccard, (decisions, targets, mask), average, zero_division)


def specificity(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return tn / (tn + fp): how much of what is negative was decided so (Yerushalmy, 1947).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> specificity([[1], [0]], [[0], [0]])
        0.5
    """
    return _score(_specificity, (decisions, targets, mask), average, zero_division)


def npv(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return tn / (tn + fn), the negative predictive value: how much of what was decided negative is so.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> npv([[1], [0], [0]], [[0], [0], [1]])
        0.5
    """
    return _score(_npv, (decisions, targets, mask), average, zero_division)


def balanced_accuracy(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the mean of recall and specificity (Brodersen et al., 2010).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> round(balanced_accuracy([[1], [0], [0], [1]], [[1], [0], [0], [0]]), 4)
        0.8333
    """
    return _score(_balanced_accuracy, (decisions, targets, mask), average, zero_division)


def g_mean(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the root of recall times specificity (Kubat and Matwin, 1997).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> round(g_mean([[1], [0], [0], [1], [1]], [[1], [0], [0], [0], [0]]), 4)
        0.7071
    """
    return _score(_g_mean, (decisions, targets, mask), average, zero_division)


def mcc(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return the correlation of decisions and targets (Matthews, 1975), in [-1, 1].

    (tp tn - fp fn) / sqrt((tp + fp) (tp + fn) (tn + fp) (tn + fn)).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> round(mcc([[1], [1], [0], [0]], [[1], [0], [0], [0]]), 4)
        0.5774
    """
    return _score(_mcc, (decisions, targets, mask), average, zero_division)


def kappa(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = "macro", zero_division: float = math.nan
) -> float | np.ndarray:
    """Return how far decisions and targets agree beyond chance (Cohen, 1960): 1 always, 0 as by chance.

    2 (tp tn - fp fn) / ((tp + fp) (fp + tn) + (tp + fn) (fn + tn)).

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> kappa([[1], [1], [0], [0]], [[1], [0], [0], [0]])
        0.5
    """
    return _score(_kappa, (decisions, targets, mask), average, zero_division)


def label_accuracy(
    decisions: Any, targets: Any, mask: Any = None, *, average: str | None = None, zero_division: float = math.nan
) -> float | np.ndarray:
    """Return (tp + tn) / known of each label, or an average of it.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        average: micro, macro, weighted, samples, or None for an array (L,).
        zero_division: nan (what is undefined is left out; see the head of this module), or 0 or 1 for 0/0.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, values other than 0 and 1, or an unknown average.

    Example:
        >>> label_accuracy([[1, 0], [1, 1]], [[1, 1], [1, 1]])
        array([1. , 0.5])
    """
    return _score(_accuracy, (decisions, targets, mask), average, zero_division)


def example_accuracy(decisions: Any, targets: Any, mask: Any = None, *, zero_division: float = 0.0) -> float:
    """Return the mean over samples of right decisions / (decided or present labels) (Godbole and Sarawagi, 2004).

    The Jaccard index of samples under its name of multi-label work. A sample with neither labels nor decisions has
    `zero_division`: 0 as in scikit-learn, 1 as in MULAN.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        zero_division: What a sample with neither labels nor decisions has: 0 or 1.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> example_accuracy([[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]], zero_division=1)
        0.75
    """
    return float(_score(_jaccard, (decisions, targets, mask), "samples", zero_division))


def hamming_loss(decisions: Any, targets: Any, mask: Any = None) -> float:
    """Return the share of wrong decisions among all known entries (Schapire and Singer, 1999); NaN of nothing.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> hamming_loss([[1, 0], [1, 1]], [[1, 1], [1, 1]])
        0.25
    """
    return hamming_of(confusion_counts(decisions, targets, mask))


def exact_match(decisions: Any, targets: Any, mask: Any = None) -> float:
    """Return the share of samples whose known entries are all decided right.

    Subset accuracy (Ghamrawi and McCallum, 2005). Samples of which nothing is known are left out.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> exact_match([[1, 0], [1, 1]], [[1, 1], [1, 1]])
        0.5
    """
    return exact_match_of(sample_counts(decisions, targets, mask))


def mean_class_accuracy(decisions: Any, targets: Any, mask: Any = None, *, zero_division: float = math.nan) -> float:
    """Return the mean over classes of the share of a class's samples that were decided so (mean recall).

    Args:
        decisions: (N, K), the columns of one exclusive group: one positive in each row.
        targets: (N, K), one positive in each known row.
        mask: None, dense bool (True = known) or sparse bool (True = unknown).
        zero_division: nan leaves a class without samples out; 0 or 1 lets it count as that.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> mean_class_accuracy([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]])
        0.5
    """
    zero_division = check_zero_division(zero_division)
    return _macro(_recall, confusion_counts(decisions, targets, mask), zero_division)


def hamming_of(counts: Counts) -> float:
    """Return the Hamming loss of counts."""
    known = int(counts.known.sum())
    return int((counts.fp + counts.fn).sum()) / known if known else math.nan


def exact_match_of(counts: SampleCounts) -> float:
    """Return the exact match of counts of samples."""
    return nan_mean(exact_values(counts))


def exact_values(counts: SampleCounts) -> np.ndarray:
    """Return of each row (N,) 1 where all that is known of it was decided right, else 0; NaN where nothing is known."""
    return np.where(counts.known > 0, counts.fp + counts.fn == 0, np.nan)
