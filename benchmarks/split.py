"""Stratified splits: ours beside iterative-stratification and a random split of the same sizes, in one process.

Labels are Zipf-like and correlated (16 hidden topics). A row shows seconds, the highest memory held beyond the inputs,
and how far the shares of the labels in the 20 % part are from 20 %, as a part of it: mean and maximum. Run
`python -m benchmarks.split`, with `--quick` for small sizes only, or with `--full` to wait some eight minutes for the
peer at 84,430 x 8,266 as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks import headline
from mlabel.data.split import part_sizes, stratified_split

# Samples, labels, positives of the most frequent label, and the exponent with which counts fall by rank.
SHAPES = {
    "10,000 x 100": (10_000, 100, 4_000, 1.2),
    "20,000 x 14": (20_000, 14, 9_000, 1.8),
    "40,000 x 40": (40_000, 40, 16_000, 1.4),
    "20,000 x 1,000": (20_000, 1_000, 8_000, 0.8),
    "84,430 x 8,266": (84_430, 8_266, 59_000, 0.735),
}
QUICK = ("10,000 x 100", "20,000 x 14")
LONG = "84,430 x 8,266"
TEST = 0.2
FRACTIONS = (1 - TEST, TEST)


def make_targets(num_samples: int, num_labels: int, top: int, power: float, *, seed: int = 0) -> sp.csr_array:
    """Return CSR uint8 targets whose label counts fall like rank^-power, correlated through 16 topics."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((num_samples, 16), dtype=np.float32)
    topics = rng.standard_normal((num_labels, 16), dtype=np.float32) * np.float32(0.3)
    share = top / num_samples * np.arange(1, num_labels + 1) ** -power
    # The mean of exp(normal) is exp(variance / 2): taking that off leaves the shares as they were.
    bias = (np.log(share) - (topics.astype(np.float64) ** 2).sum(axis=1) / 2).astype(np.float32)
    blocks = []
    for start in range(0, num_samples, 2048):
        chance = np.exp(samples[start : start + 2048] @ topics.T + bias)
        blocks.append(sp.csr_array(rng.random(chance.shape, dtype=np.float32) < chance, dtype=np.uint8))
    return sp.csr_array(sp.vstack(blocks, format="csr"))


PEER = "iterative-stratification"
PEER_IS_THERE = importlib.util.find_spec("iterstrat") is not None


def split_with_peer(targets: np.ndarray) -> np.ndarray:
    """Return the parts that iterative-stratification gives, int array (N,)."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=TEST, random_state=0)
    _, test = next(splitter.split(targets, targets))
    return np.isin(np.arange(len(targets)), test).astype(np.int64)


def split_at_random(num_samples: int) -> np.ndarray:
    """Return random parts of the exact sizes, int array (N,)."""
    parts = np.repeat([0, 1], part_sizes(num_samples, FRACTIONS))
    return np.random.default_rng(0).permutation(parts)


def deviations(targets: sp.csr_array, parts: np.ndarray) -> np.ndarray:
    """Return how far each label's positives in part 1 are from their share, relative to it, (L,)."""
    total = np.asarray(targets.sum(axis=0), dtype=np.float64)
    there = np.asarray(targets[parts == 1].sum(axis=0), dtype=np.float64)
    return abs(there[total > 0] / (TEST * total[total > 0]) - 1)


def measure(call: Callable[[], np.ndarray], repeats: int) -> tuple[np.ndarray, float, float]:
    """Return what `call` returns, the median seconds, and the peak megabytes (NaN for calls above half a minute)."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        parts = call()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    if seconds > 30:
        return parts, seconds, float("nan")
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return parts, seconds, peak / 2**20


def row(shape: str, who: str, targets: sp.csr_array, measured: tuple[np.ndarray, float, float]) -> dict[str, Any]:
    """Return one line of the result."""
    parts, seconds, megabytes = measured
    far = deviations(targets, parts)
    return {
        "shape": shape,
        "who": who,
        "seconds": seconds,
        "megabytes": megabytes,
        "test_size": int((parts == 1).sum()),
        "mean": far.mean(),
        "max": far.max(),
        "ratio": 1.0,
    }


def main(quick: bool = False, full: bool = False) -> list[dict[str, Any]]:
    """Return a row for each size and way to split; `ratio` is how many times our seconds the way takes."""
    rows = []
    for shape in QUICK if quick else SHAPES:
        targets = make_targets(*SHAPES[shape])
        ways: dict[str, tuple[Callable[[], np.ndarray], int]] = {
            "mlabel": (lambda targets=targets: stratified_split(targets, FRACTIONS), 3),
            "random": (lambda targets=targets: split_at_random(targets.shape[0]), 1),
        }
        if PEER_IS_THERE and (shape != LONG or full):
            dense = targets.toarray().astype(np.int64)
            ways[PEER] = (lambda dense=dense: split_with_peer(dense), 1)
        held = [row(shape, who, targets, measure(*way)) for who, way in ways.items()]
        for each in held:
            each["ratio"] = each["seconds"] / held[0]["seconds"]
        rows += held
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two small sizes only")
    parser.add_argument("--full", action="store_true", help="the peer at the largest size too: about eight minutes")
    arguments = parser.parse_args()
    print(f"{'shape':16}{'':26}{'s':>9}{'MB':>8}{'test size':>11}{'mean':>10}{'max':>8}{'time ratio':>12}")
    for each in main(arguments.quick, arguments.full):
        print(
            f"{each['shape']:16}{each['who']:26}{each['seconds']:9.3f}{each['megabytes']:8.0f}{each['test_size']:11d}"
            f"{each['mean']:10.6f}{each['max']:8.4f}{each['ratio']:12.1f}"
        )
        if each["who"] == PEER:
            headline(f"stratified split, {each['shape']}", each["ratio"], PEER)
    if not PEER_IS_THERE:
        headline("stratified split", None, PEER)
