"""Metrics of a large tag set: ours beside scikit-learn and torchmetrics, in one process, each with its goal.

Scores are those of 16,886 samples and 8,266 Zipf-like, correlated labels, about 28 positives a sample; the batch cases
are 20,000 x 40 in batches of 64, and batches of 8,266 and of 70,527 labels. Ours is the median of three, before and
after the peer, which is measured once where it takes long. Memory is what a call holds beyond its inputs: of ours what
Python's allocators give, of torchmetrics what the process grows by.

Run `python -m benchmarks.metrics` (about ten minutes, 8 GB), or with `--quick` for small sizes; threads are torch's
(`OMP_NUM_THREADS`). On a busy machine, `--clock process` counts processor time instead of the clock's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import sklearn.metrics as sk
import torch

from benchmarks import headline
from mlabel.metrics import ScoreHistogram, average_precision, confusion_counts, evaluate, ratio
from mlabel.metrics._ranks import auroc_of, average_precision_of, column_statistics
from mlabel.metrics.counts import count_rows
from mlabel.metrics.ranking import check_inputs, row_metrics
from mlabel.metrics.ratios import exact_match_of

FULL, QUICK, STREAM = (16_886, 8_266), (2_000, 500), (20_000, 40)
POSITIVES, BATCH = 28, 64
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
# How many times as fast as the peer each case should be.
GOALS = {
    "all count metrics | one macro F1": 25,
    "AP and AUROC of every label": 25,
    "LRAP, coverage, ranking loss": 12,
    "evaluate | the calls it replaces": 25,
    "AP of every label": 1,
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        shape: Of the problem, in words.
        name: What is measured.
        mine: Our call.
        peer: Whose call it is beside.
        theirs: The peer's call.
        goal: How many times as fast ours should be.
        per: Ours and theirs are divided by this, such as the number of batches.
        repeats: How often the peer is measured.
    """

    shape: str
    name: str
    mine: Call
    peer: str
    theirs: Call
    goal: float
    per: int = 1
    repeats: int = 1


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


def torchmetrics_ap(scores: np.ndarray, targets: np.ndarray) -> Call | None:
    """Return torchmetrics' exact average precision in batches; None where it is not installed."""
    try:
        from torchmetrics.classification import MultilabelAveragePrecision
    except ImportError:
        return None

    def in_batches() -> None:
        metric = MultilabelAveragePrecision(scores.shape[1], average="macro")
        for start in range(0, len(scores), 256):
            batch = slice(start, start + 256)
            metric.update(torch.from_numpy(scores[batch]), torch.from_numpy(targets[batch]).long())
        metric.compute()

    return in_batches


def large_cases(scores: np.ndarray, targets: sp.csr_array, dense: np.ndarray) -> Iterator[Case]:
    """Yield the cases of a whole part, beside scikit-learn and torchmetrics."""
    title, mine = f"{scores.shape[0]} x {scores.shape[1]}", ours(scores, targets)
    for name, call in scikit_learn(scores, dense).items():
        yield Case(title, name, mine[name], "scikit-learn", call, GOALS[name])
    theirs = torchmetrics_ap(scores, dense)
    if theirs is not None:
        name = "AP of every label"
        yield Case(title, name, mine[name], "torchmetrics", theirs, GOALS[name])


def stream_cases(quick: bool) -> Iterator[Case]:
    """Yield counting in batches, per update, beside torchmetrics' collections of the ratios that the counts give."""
    try:
        import torchmetrics.classification as tm
        from torchmetrics import MetricCollection
    except ImportError:
        return
    shape = (2_000, STREAM[1]) if quick else STREAM
    scores, targets = make_problem(shape, positives=8)
    dense = targets.toarray()
    starts = range(0, len(scores), BATCH)
    batches = [(torch.from_numpy(scores[i : i + BATCH]), torch.from_numpy(dense[i : i + BATCH])) for i in starts]
    few = [tm.MultilabelPrecision, tm.MultilabelRecall, tm.MultilabelF1Score]
    more = [tm.MultilabelSpecificity, tm.MultilabelAccuracy, tm.MultilabelHammingDistance]
    others = [tm.MultilabelJaccardIndex, tm.MultilabelMatthewsCorrCoef]

    def count() -> None:
        counts = sum(confusion_counts(s >= 0.5, t) for s, t in batches)
        for name in ("precision", "recall", "f1", "specificity", "accuracy", "jaccard", "mcc"):
            ratio(counts, name)

    def beside(kinds: list[Any]) -> Call:
        collection = MetricCollection([kind(STREAM[1]) for kind in kinds])

        def update() -> None:
            collection.reset()
            for s, t in batches:
                collection.update(s, t)
            collection.compute()

        update()  # the first one groups the metrics that share a state
        return update

    for kinds in (few, [*few, *more], [*few, *more, *others]):
        title, name = f"{STREAM[1]} labels, an update of {BATCH}", f"counts | {len(kinds)} ratios"
        yield Case(title, name, count, "torchmetrics", beside(kinds), 2, per=len(batches), repeats=3)


def histogram_cases(quick: bool) -> Iterator[Case]:
    """Yield an update of `ScoreHistogram`, 1,024 bins, beside torchmetrics' binned AP at far fewer thresholds.

    More thresholds take torchmetrics memory and time in proportion: 50 take 6 GB at 256 x 8,266.
    """
    try:
        from torchmetrics.classification import MultilabelAveragePrecision
    except ImportError:
        return
    wide = [(256, QUICK[1], 20)] if quick else [(256, FULL[1], 20), (32, 70_527, 20)]
    for rows, num_labels, thresholds in [(BATCH, STREAM[1], 100), *wide]:
        scores, targets = make_problem((rows, num_labels), positives=min(POSITIVES, num_labels / 5))
        given, dense = torch.from_numpy(scores), torch.from_numpy(targets.toarray()).long()
        histogram = ScoreHistogram(num_labels)
        binned = MultilabelAveragePrecision(num_labels, thresholds=thresholds)

        def mine(histogram: ScoreHistogram = histogram, pair: Any = (scores, targets)) -> None:
            histogram.update(*pair)

        def theirs(binned: Any = binned, pair: Any = (given, dense)) -> None:
            binned.update(*pair)

        name = f"binned AP in 1,024 bins | in {thresholds}"
        yield Case(f"{num_labels} labels, an update of {rows}", name, mine, "torchmetrics", theirs, 10, repeats=3)


def timed(call: Call, clock: Callable[[], float]) -> float:
    """Return the seconds of a call."""
    start = clock()
    call()
    return clock() - start


def measure(case: Case, clock: Callable[[], float]) -> dict[str, Any]:
    """Return one line of the result; ours is measured before, between and after."""
    mine, theirs = [timed(case.mine, clock)], []
    for _ in range(max(2, case.repeats)):
        if len(theirs) < case.repeats:
            theirs.append(timed(case.theirs, clock))
        mine.append(timed(case.mine, clock))
    seconds, peer_seconds = statistics.median(mine) / case.per, statistics.median(theirs) / case.per
    return {
        "shape": case.shape,
        "case": case.name,
        "seconds": seconds,
        "peer": case.peer,
        "peer_seconds": peer_seconds,
        "ratio": peer_seconds / seconds,
        "goal": case.goal,
    }


def allocated_megabytes(call: Call) -> float:
    """Return the highest memory that `call` allocates by Python's allocators, NumPy's among them."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def grown_megabytes(call: Call) -> float:
    """Return by how much the process grows at most while `call` runs (Linux; elsewhere NaN)."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, highest, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (highest[0] - before) / 2**20


def main(quick: bool = False, clock: str = "wall") -> Iterator[dict[str, Any]]:
    """Yield a row for each case: seconds, the peer's seconds, how many times ours they are, and the goal."""
    scores, targets = make_problem(QUICK if quick else FULL)
    dense = targets.toarray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cases in (stream_cases(quick), histogram_cases(quick), large_cases(scores, targets, dense)):
            for case in cases:
                yield measure(case, CLOCKS[clock])


def memory(quick: bool = False) -> dict[str, float]:
    """Return the megabytes that a call holds at most beside its inputs."""
    scores, targets = make_problem(QUICK if quick else FULL)
    found = {"evaluate": allocated_megabytes(lambda: evaluate(scores, targets))}
    theirs = torchmetrics_ap(scores, targets.toarray())
    return found if theirs is None else {**found, "torchmetrics, AP alone": grown_megabytes(theirs)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 x 500 instead of 16,886 x 8,266")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="default: wall")
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()}, clock: {arguments.clock}")
    for who, megabytes in memory(arguments.quick).items():
        print(f"memory, {who}: {megabytes:.0f} MB", flush=True)
    print(f"{'shape':>31} {'case':33} {'ms':>10} {'peer':>13} {'ms':>11} {'ratio':>8} {'goal':>5}")
    for line in main(arguments.quick, arguments.clock):
        print(
            f"{line['shape']:>31} {line['case']:33} {1e3 * line['seconds']:10.3f} {line['peer']:>13} "
            f"{1e3 * line['peer_seconds']:11.3f} {line['ratio']:8.1f} {line['goal']:5g}",
            flush=True,
        )
        measured, _, theirs = line["case"].partition(" | ")
        headline(f"{measured}, {line['shape']}", line["ratio"], ", ".join(filter(None, [line["peer"], theirs])))
    if importlib.util.find_spec("torchmetrics") is None:
        headline("average precision, and counts in batches", None, "torchmetrics")
