"""Intervals of every metric: ours beside a loop that takes the rows of each resample and measures them anew.

16,886 samples, 8,266 Zipf-like labels and 1,000 resamples, in one process. The loops would take hours: of them
`--repeats` resamples are measured, and the seconds are multiplied; each is by far the same work, so that the product is
near. The peers are scikit-learn, on dense rows, and a loop over mlabel's own functions, which is the harder one to
beat. Ours is measured before and after the peers; memory is what Python's allocators give beyond the inputs.

Run `python -m benchmarks.comparison`, or with `--quick` for 2,000 x 500 and 100 resamples; threads are torch's
(`OMP_NUM_THREADS`). On a busy machine, `--clock process` counts processor time instead of the clock's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import sklearn.metrics as sk

from benchmarks.metrics import CLOCKS, FULL, QUICK, Call, allocated_megabytes, make_problem, timed
from mlabel.metrics import COUNT_METRICS, bootstrap, compare, draw_resamples, evaluate
from mlabel.metrics._ranks import auroc_of, average_precision_of, column_statistics
from mlabel.metrics.counts import count_rows
from mlabel.metrics.ranking import row_metrics
from mlabel.metrics.ratios import exact_match_of, ratio

Rows = Callable[[np.ndarray], Any]
_RANKS = {"ap": average_precision_of, "auroc": auroc_of}


@dataclass(frozen=True)
class Case:
    """What is measured: ours of all resamples, and the peers', each a call on the rows of one."""

    name: str
    mine: Call
    peers: dict[str, Rows]


def count_all(scores: np.ndarray, targets: sp.csr_array) -> None:
    """Measure every metric of decisions with mlabel's functions."""
    decisions = scores >= 0.5
    labels, samples = count_rows(lambda start, stop: decisions[start:stop], targets, None)
    for name in ("precision", "recall", "f1", "jaccard"):
        for average in ("micro", "macro", "weighted", None):
            ratio(labels, name, average=average)
        ratio(samples, name, average="samples")
    exact_match_of(samples)


def cases(scores: np.ndarray, targets: sp.csr_array, resamples: int) -> Iterator[Case]:
    """Yield the cases."""
    dense = targets.toarray().astype(bool)

    def ours(names: Any) -> Call:
        return lambda: bootstrap(scores, targets, metrics=names, resamples=resamples)

    def with_scikit_learn(rows: np.ndarray) -> None:
        decided, present = scores[rows] >= 0.5, dense[rows]
        for average in ("micro", "macro", "weighted", "samples"):
            sk.precision_recall_fscore_support(present, decided, average=average, zero_division=0)
        sk.accuracy_score(present, decided)
        sk.hamming_loss(present, decided)

    yield Case(
        "count metrics, of labels too",
        ours(COUNT_METRICS),
        {"scikit-learn": with_scikit_learn, "mlabel, a loop": lambda rows: count_all(scores[rows], targets[rows])},
    )
    yield Case(
        "AP and AUROC of every label",
        ours(["map", "macro_auroc"]),
        {"mlabel, a loop": lambda rows: column_statistics(scores[rows], targets[rows], None, statistics=_RANKS)},
    )
    yield Case(
        "LRAP, coverage, ranking loss",
        ours(["lrap", "coverage_error", "ranking_loss"]),
        {"mlabel, a loop": lambda rows: row_metrics((scores[rows], targets[rows], None))},
    )
    yield Case(
        "all that evaluate has", ours(None), {"mlabel, a loop": lambda rows: evaluate(scores[rows], targets[rows])}
    )
    other = np.clip(scores + np.float32(0.01), 0, 1)
    yield Case(
        "two models, count metrics",
        lambda: compare(scores, other, targets, metrics=COUNT_METRICS, resamples=resamples),
        {
            "mlabel, a loop": lambda rows: [count_all(each[rows], targets[rows]) for each in (scores, other)],
        },
    )


def measure(case: Case, resamples: int, repeats: int, clock: Callable[[], float], num_samples: int) -> dict[str, Any]:
    """Return the seconds of ours, and of each peer those of all resamples, from some of them."""
    drawn = draw_resamples(num_samples, repeats)
    rows = [np.repeat(np.arange(num_samples), counts) for counts in drawn]
    mine, theirs = [timed(case.mine, clock)], {}
    for title, peer in case.peers.items():
        seconds = [timed(lambda each=each, peer=peer: peer(each), clock) for each in rows]
        theirs[title] = resamples * min(seconds)
    megabytes = allocated_megabytes(lambda: mine.append(timed(case.mine, clock)))
    return {"case": case.name, "seconds": min(mine), "peers": theirs, "megabytes": megabytes}


def main() -> None:
    """Measure, and print a line for each case and peer as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 x 500, 100 resamples")
    parser.add_argument("--repeats", type=int, default=3, help="resamples of the loops that are measured")
    parser.add_argument("--only", default="", help="the cases whose name has this text")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    shape, resamples = (QUICK, 100) if options.quick else (FULL, 1000)
    scores, targets = make_problem(shape)
    print(f"{shape[0]:,} x {shape[1]:,}, {targets.nnz:,} positives, {resamples:,} resamples; {options.clock} seconds")
    print(f"{'':30}{'s':>9}{'MB':>7}  {'peer':16}{f's, from {options.repeats}':>12}{'times as fast':>15}")
    for case in cases(scores, targets, resamples):
        if options.only not in case.name:
            continue
        found = measure(case, resamples, options.repeats, CLOCKS[options.clock], shape[0])
        for title, seconds in found["peers"].items():
            ratio_of = seconds / found["seconds"]
            print(
                f"{found['case']:30}{found['seconds']:9.2f}{found['megabytes']:7.0f}  {title:16}{seconds:12.0f}"
                f"{ratio_of:15.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
