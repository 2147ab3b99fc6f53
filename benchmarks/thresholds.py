"""The F1-optimal threshold of every label: ours beside a loop over scikit-learn's `precision_recall_curve`.

Both run in one process on the same float32 scores, 13,509 samples and 8,266 Zipf-like labels; memory is the highest
held beyond the inputs. The F1 on the fitting data is shown for both, since it must be the same. Run
`python -m benchmarks.thresholds`, or with `--quick` for 2,000 x 500; threads are torch's (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.metrics import precision_recall_curve

from benchmarks.metrics import make_problem, timed
from mlabel.decisions import fit_thresholds

FULL, QUICK = (13_509, 8_266), (2_000, 500)


def fit_with_scikit_learn(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the threshold of the highest F1 on the precision-recall curve of each label, (L,)."""
    values = np.empty(scores.shape[1])
    for label in range(scores.shape[1]):
        precision, recall, thresholds = precision_recall_curve(targets[:, label], scores[:, label])
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        values[label] = thresholds[f1[:-1].argmax()]
    return values


def macro_f1(scores: np.ndarray, targets: sp.csr_array, thresholds: np.ndarray) -> float:
    """Return the mean F1 over the labels, of decisions `score >= threshold`."""
    decisions = scores >= thresholds
    right = np.asarray(targets.multiply(decisions).sum(axis=0), dtype=np.float64)
    return float((2 * right / (np.asarray(targets.sum(axis=0)) + decisions.sum(axis=0))).mean())


def peak_megabytes(scores: np.ndarray, targets: sp.csr_array, scope: str) -> float:
    """Return the highest memory that a fit of `scope` allocates."""
    tracemalloc.start()
    fit_thresholds(scores, targets, scope=scope)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each scope and one for the peer: seconds, megabytes, macro F1, and the ratio to scope label."""
    scores, targets = make_problem(QUICK if quick else FULL)
    rows = []
    for scope in ("label", "global"):
        seconds = timed(lambda scope=scope: fit_thresholds(scores, targets, scope=scope), 3)
        quality = macro_f1(scores, targets, fit_thresholds(scores, targets, scope=scope).values)
        peak = peak_megabytes(scores, targets, scope)
        rows.append({"who": f"mlabel, {scope}", "seconds": seconds, "megabytes": peak, "macro_f1": quality})
    dense = targets.toarray()
    start = time.perf_counter()
    values = fit_with_scikit_learn(scores, dense)
    seconds, quality = time.perf_counter() - start, macro_f1(scores, targets, values)
    rows.append({"who": "scikit-learn, label", "seconds": seconds, "megabytes": float("nan"), "macro_f1": quality})
    return [{**each, "ratio": each["seconds"] / rows[0]["seconds"]} for each in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 x 500")
    print(f"{'':22}{'s':>9}{'MB':>8}{'macro F1':>10}{'time ratio':>12}")
    for each in main(parser.parse_args().quick):
        print(
            f"{each['who']:22}{each['seconds']:9.3f}{each['megabytes']:8.1f}{each['macro_f1']:10.5f}{each['ratio']:12.1f}"
        )
