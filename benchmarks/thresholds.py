"""The F1-optimal threshold of every label: ours beside a loop over scikit-learn's `precision_recall_curve`.

Both run in one process on the same float32 scores, 13,509 samples and 8,266 Zipf-like labels; memory is the highest
held beyond the inputs. The F1 on the fitting data is shown for both, since it must be the same. Every other objective
is measured once, in each scope. Run `python -m benchmarks.thresholds`, or with `--quick` for 2,000 x 500; threads are
torch's (`OMP_NUM_THREADS`). `--cpu` measures CPU seconds, which other work disturbs less; take one thread for it.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.metrics import precision_recall_curve

from benchmarks import headline
from benchmarks.metrics import make_problem, timed
from mlabel.decisions import Thresholds, fit_thresholds

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


# Objectives, scopes and options; the first is what scikit-learn is compared with.
CASES: tuple[dict[str, Any], ...] = (
    {"scope": "label"},
    {"scope": "global"},
    {"scope": "label", "shrink": 10.0},
    {"objective": "micro_f1", "scope": "label"},
    {"objective": "precision_equals_recall", "scope": "label"},
    {"objective": "precision_equals_recall", "scope": "global"},
    {"objective": "precision_floor", "scope": "label", "floor": 0.8},
    {"objective": "recall_floor", "scope": "label", "floor": 0.8},
    {"objective": "cost", "scope": "label", "false_negative_cost": 3.0},
    {"objective": "exact_match", "scope": "label"},
    {"objective": "exact_match", "scope": "global"},
    {"objective": "top_k", "scope": "global"},
)


def peak_megabytes(scores: np.ndarray, targets: sp.csr_array, case: dict[str, Any]) -> float:
    """Return the highest memory that a fit allocates."""
    tracemalloc.start()
    fit_thresholds(scores, targets, **case)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main(quick: bool = False, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Return a row for each case and one for the peer: seconds, megabytes, macro F1, and the ratio to the first."""
    scores, targets = make_problem(QUICK if quick else FULL)
    rows = []
    for case in CASES:

        def fit(case: dict[str, Any] = case) -> Thresholds:
            return fit_thresholds(scores, targets, **case)

        quality = macro_f1(scores, targets, fit().values) if "objective" not in case else float("nan")
        seconds = min(timed(fit, clock) for _ in range(3 if case is CASES[0] else 1))
        who = "mlabel, " + " ".join(str(value) for value in case.values())
        rows.append({"who": who, "seconds": seconds, "megabytes": peak_megabytes(scores, targets, case)})
        rows[-1]["macro_f1"] = quality
    dense, start = targets.toarray(), clock()
    values = fit_with_scikit_learn(scores, dense)
    peer = {"who": "scikit-learn, label", "seconds": clock() - start, "megabytes": float("nan")}
    rows.append({**peer, "macro_f1": macro_f1(scores, targets, values)})
    return [{**each, "ratio": each["seconds"] / rows[0]["seconds"]} for each in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 x 500")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of all threads, not those of a clock")
    options = parser.parse_args()
    print(f"{'':40}{'s':>9}{'MB':>8}{'macro F1':>10}{'time ratio':>12}")
    for each in main(options.quick, time.process_time if options.cpu else time.perf_counter):
        print(
            f"{each['who']:40}{each['seconds']:9.3f}{each['megabytes']:8.1f}{each['macro_f1']:10.5f}{each['ratio']:12.1f}"
        )
    headline("the F1-optimal threshold of each label", each["ratio"], "scikit-learn's precision_recall_curve in a loop")
