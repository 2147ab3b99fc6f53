"""Metrics of a large tag set: ours beside scikit-learn and, where it is installed, torchmetrics, in one process.

Scores are those of 16,886 samples and 8,266 Zipf-like, correlated labels, about 28 positives a sample; the batch cases
are 20,000 x 40 in batches of 64. A peer is measured once after ours, whose time is the median of three; memory is what
`evaluate` holds beyond its inputs. Run `python -m benchmarks.metrics`, or with `--quick` for 2,000 x 500; threads are
torch's (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import sklearn.metrics as sk
import torch

from mlabel.metrics import ScoreHistogram, average_precision, confusion_counts, evaluate, ratio
from mlabel.metrics._ranks import auroc_of, average_precision_of, column_statistics
from mlabel.metrics.counts import count_rows
from mlabel.metrics.ranking import check_inputs, row_metrics
from mlabel.metrics.ratios import exact_match_of

FULL, QUICK, STREAM = (16_886, 8_266), (2_000, 500), (20_000, 40)
POSITIVES, BATCH = 28, 64
Call = Callable[[], Any]


def make_problem(shape: tuple[int, int], positives: float = POSITIVES) -> tuple[np.ndarray, sp.csr_array]:
    """Return float32 scores and CSR targets in which each label has a positive and a negative."""
    rng = np.random.default_rng(0)
    rows, labels = shape
    share = 1 / np.arange(1, labels + 1)
    share = np.minimum(share * positives / share.sum(), 0.5)
    bias = np.log(share / (1 - share)).astype(np.float32)
    factors = rng.standard_normal((16, labels), dtype=np.float32) / 4
    scores, blocks = np.empty(shape, np.float32), []
    for start in range(0, rows, 512):
        count = min(512, rows - start)
        logits = rng.standard_normal((count, 16), dtype=np.float32) @ factors + bias
        blocks.append(sp.csr_array(rng.random((count, labels), dtype=np.float32) < 1 / (1 + np.exp(-logits))))
        logits += rng.standard_normal((count, labels), dtype=np.float32)
        scores[start : start + count] = 1 / (1 + np.exp(-logits))
    some = sp.csr_array((np.ones(labels, bool), (rng.integers(rows, size=labels), np.arange(labels))), shape=shape)
    return scores, (sp.csr_array(sp.vstack(blocks)) + some).astype(np.uint8)


def ours(scores: np.ndarray, targets: sp.csr_array) -> dict[str, Call]:
    """Return our calls by the name of their case."""
    decisions = scores >= 0.5

    def counts() -> None:
        labels, samples = count_rows(lambda start, stop: decisions[start:stop], targets, None)
        for name in ("precision", "recall", "f1", "jaccard", "accuracy", "specificity"):
            for average in ("micro", "macro", "weighted", None):
                ratio(labels, name, average=average)
            ratio(samples, name, average="samples")
        exact_match_of(samples)

    def curves() -> None:
        statistics = {"ap": average_precision_of, "auroc": auroc_of}
        column_statistics(*check_inputs(scores, targets, None), statistics=statistics)

    return {
        "all count metrics | one macro F1": counts,
        "AP and AUROC of every label": curves,
        "AP of every label": lambda: average_precision(scores, targets),
        "LRAP, coverage, ranking loss": lambda: row_metrics(check_inputs(scores, targets, None)),
        "evaluate | the calls it replaces": lambda: evaluate(scores, targets),
    }


def scikit_learn(scores: np.ndarray, targets: np.ndarray) -> dict[str, Call]:
    """Return scikit-learn's calls by the name of their case."""
    decisions = scores >= 0.5

    def curves() -> None:
        sk.average_precision_score(targets, scores)
        sk.roc_auc_score(targets, scores)

    def rows() -> None:
        sk.label_ranking_average_precision_score(targets, scores)
        sk.coverage_error(targets, scores)
        sk.label_ranking_loss(targets, scores)

    def everything() -> None:
        for average in ("micro", "macro", "weighted", "samples", None):
            sk.precision_recall_fscore_support(targets, decisions, average=average, zero_division=0)
            sk.jaccard_score(targets, decisions, average=average, zero_division=0)
        sk.accuracy_score(targets, decisions)
        sk.hamming_loss(targets, decisions)
        sk.average_precision_score(targets, scores, average="micro")
        curves()
        rows()

    return {
        "all count metrics | one macro F1": lambda: sk.f1_score(targets, decisions, average="macro", zero_division=0),
        "AP and AUROC of every label": curves,
        "LRAP, coverage, ranking loss": rows,
        "evaluate | the calls it replaces": everything,
    }


def torchmetrics_calls(scores: np.ndarray, targets: np.ndarray) -> dict[str, Call]:
    """Return torchmetrics' calls by the name of their case; none where it is not installed."""
    try:
        from torchmetrics.classification import MultilabelAveragePrecision
    except ImportError:
        return {}

    def average_precision_in_batches() -> None:
        metric = MultilabelAveragePrecision(scores.shape[1], average="macro")
        for start in range(0, len(scores), 256):
            batch = slice(start, start + 256)
            metric.update(torch.from_numpy(scores[batch]), torch.from_numpy(targets[batch]).long())
        metric.compute()

    return {"AP of every label": average_precision_in_batches}


def stream_cases(quick: bool) -> list[dict[str, Any]]:
    """Return the row of counting in batches, per update, beside torchmetrics' collection of the same ratios."""
    try:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MultilabelF1Score, MultilabelPrecision, MultilabelRecall
    except ImportError:
        return []
    scores, targets = make_problem((2_000, STREAM[1]) if quick else STREAM, positives=8)
    dense = targets.toarray()
    starts = range(0, len(scores), BATCH)
    batches = [(torch.from_numpy(scores[i : i + BATCH]), torch.from_numpy(dense[i : i + BATCH])) for i in starts]
    collection = MetricCollection(
        [kind(STREAM[1]) for kind in (MultilabelF1Score, MultilabelPrecision, MultilabelRecall)]
    )

    def count() -> None:
        ratio(sum(confusion_counts(s >= 0.5, t) for s, t in batches), "f1")

    def update() -> None:
        collection.reset()
        for s, t in batches:
            collection.update(s, t)
        collection.compute()

    update()  # the first one groups the metrics that share a state
    mine, theirs = timed(count, 3) / len(batches), timed(update, 3) / len(batches)
    return [row(f"{STREAM[1]} labels, an update of {BATCH}", "counts", mine, "torchmetrics collection", theirs)]


def histogram_cases(quick: bool) -> list[dict[str, Any]]:
    """Return the row of an update of `ScoreHistogram`, 1,024 bins, beside torchmetrics' binned AP at 20 thresholds.

    More thresholds take torchmetrics memory and time in proportion: 50 take 6 GB at 8,266 labels.
    """
    try:
        from torchmetrics.classification import MultilabelAveragePrecision
    except ImportError:
        return []
    scores, targets = make_problem((256, QUICK[1] if quick else FULL[1]))
    num_labels, dense = scores.shape[1], torch.from_numpy(targets.toarray()).long()
    histogram, binned = ScoreHistogram(num_labels), MultilabelAveragePrecision(num_labels, thresholds=20)
    mine = timed(lambda: histogram.update(scores, targets), 5)
    theirs = timed(lambda: binned.update(torch.from_numpy(scores), dense), 3)
    title = f"{num_labels} labels, an update of {len(scores)}"
    return [row(title, "binned AP (1024 bins | 20)", mine, "torchmetrics", theirs)]


def timed(call: Call, repeats: int = 1) -> float:
    """Return the median seconds of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_megabytes(call: Call) -> float:
    """Return the highest memory that `call` allocates."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def row(shape: str, case: str, mine: float, peer: str, theirs: float) -> dict[str, Any]:
    """Return one line of the result."""
    return {"shape": shape, "case": case, "seconds": mine, "peer": peer, "peer_seconds": theirs, "ratio": theirs / mine}


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each case and peer: seconds, the peer's seconds and how many times ours they are."""
    shape = QUICK if quick else FULL
    scores, targets = make_problem(shape)
    dense, title = targets.toarray(), f"{shape[0]} x {shape[1]}"
    calls = ours(scores, targets)
    mine = {case: timed(call, 3) for case, call in calls.items()}
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for peer, peers in {"scikit-learn": scikit_learn, "torchmetrics": torchmetrics_calls}.items():
            for case, call in peers(scores, dense).items():
                rows.append(row(title, case, mine[case], peer, timed(call)))
        rows += stream_cases(quick)
        rows += histogram_cases(quick)
    for held in rows:
        held["megabytes"] = peak_megabytes(calls[held["case"]]) if held["case"].startswith("evaluate") else None
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 x 500 instead of 16,886 x 8,266")
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()}")
    print(f"{'shape':>24} {'case':36} {'ms':>10} {'peer':>24} {'ms':>11} {'ratio':>8}  memory")
    for line in main(arguments.quick):
        memory = "" if line["megabytes"] is None else f"{line['megabytes']:.0f} MB"
        print(
            f"{line['shape']:>24} {line['case']:36} {1e3 * line['seconds']:10.3f} {line['peer']:>24} "
            f"{1e3 * line['peer_seconds']:11.3f} {line['ratio']:8.1f}  {memory}".rstrip()
        )
