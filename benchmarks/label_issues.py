"""Do probable label errors lead to the errors? Planted flips are looked for, beside cleanlab and plain sorting by loss.

A share of the labels of real data is flipped, heads on frozen features (see `benchmarks/features.py`) are cross-fitted
on the flipped labels, and `label_issues` names entries. Shown: of those named, the share that was planted (precision;
the data's own errors count against all alike); of what was planted, the share that is named (recall). Sorting by loss
takes as many entries of the highest loss over all labels; `cleanlab` is its multi-label function with the same scores.

    python -m benchmarks.label_issues --data FOLDER --features FOLDER

The first folder holds `mirflickr14` and `celeba`. `--time` measures CPU seconds alone, on made-up scores.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from benchmarks.features import load_features
from mlabel.data import READERS
from mlabel.report import LabelIssues, cross_fit_scores, label_issues

PROBLEMS = {"mirflickr14": ("mirflickr", 160), "celeba": ("celeba", 128)}
FULL = (16_886, 8_266)  # what the tags of a Danbooru sample are


def flip(targets: sp.csr_array, share: float, by: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dense targets of which a share was flipped, and which ones were, bool (N, L).

    Args:
        targets: (N, L).
        share: Of all entries, or of the positives.
        by: `entries`: any entry, so that most errors are labels too many; `positives`: labels are taken away only.
        seed: Of the choice.
    """
    dense = targets.toarray().astype(bool)
    chosen = np.random.default_rng(seed).random(dense.shape) < share
    planted = chosen & dense if by == "positives" else chosen
    return dense ^ planted, planted


def judge(named: np.ndarray, planted: np.ndarray) -> str:
    """Return number, precision and recall of named entries, bool (N, L), as cells of a table."""
    hits = (named & planted).sum()
    return f"{named.sum():,} | {hits / max(named.sum(), 1):.3f} | {hits / planted.sum():.3f}"


def entries(issues: LabelIssues, shape: tuple[int, ...]) -> np.ndarray:
    """Return the issues as bool (N, L)."""
    held = np.zeros(shape, dtype=bool)
    held[issues.rows, issues.columns] = True
    return held


def by_loss(scores: np.ndarray, given: np.ndarray, count: int) -> np.ndarray:
    """Return the entries of highest loss, which are those of lowest self-confidence, bool (N, L)."""
    confidence = np.where(given, scores, 1 - scores).ravel()
    held = np.zeros(confidence.shape, dtype=bool)
    held[np.argsort(confidence, kind="stable")[:count]] = True
    return held.reshape(given.shape)


def by_cleanlab(scores: np.ndarray, given: np.ndarray, filter_by: str) -> np.ndarray:
    """Return what cleanlab names, bool (N, L)."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lists = [np.flatnonzero(row).tolist() for row in given]
        return find_multilabel_issues_per_class(lists, scores.astype(np.float64), filter_by=filter_by, n_jobs=1)


def compare(name: str, options: argparse.Namespace, *, by: str, share: float) -> None:
    """Print the table of one data set and kind of flips."""
    reader, side = PROBLEMS[name]
    table = READERS[reader](str(options.data / name))
    features = load_features(table, options.features, name, side=side)
    given, planted = flip(table.targets, share, by, options.seed)
    scores = cross_fit_scores(features, given, space=table.space, seed=options.seed)
    print(f"\n{name}: {share:.0%} of {by} flipped, {planted.sum():,} of {planted.size:,}\n")
    print("| | named | precision | recall | of the first 500 by self-confidence, by margin |\n|---|---|---|---|---|")
    for method, filter_by in (("noise_rate", "prune_by_noise_rate"), ("confident", "confident_learning")):
        issues = label_issues(scores, given, space=table.space, method=method)
        named = entries(issues, given.shape)
        ranked = (issues, label_issues(scores, given, space=table.space, method=method, rank="margin"))
        first = [planted[each.rows[:500], each.columns[:500]].mean() for each in ranked]
        print(f"| {method} | {judge(named, planted)} | {first[0]:.3f}, {first[1]:.3f} |")
        print(f"| cleanlab, {filter_by} | {judge(by_cleanlab(scores, given, filter_by), planted)} | |")
        print(f"| as many by loss | {judge(by_loss(scores, given, int(named.sum())), planted)} | |")
    first = by_loss(scores, given, 500)
    print(f"| 500 by loss | {judge(first, planted)} | |", flush=True)


def made_up(samples: int, labels: int) -> tuple[np.ndarray, sp.csr_array]:
    """Return scores (N, L) float32 and targets whose frequencies fall as those of tags do."""
    rng = np.random.default_rng(0)
    share = np.clip(0.3 * np.arange(1, labels + 1) ** -0.8, 5e-4, None).astype(np.float32)
    targets = rng.random((samples, labels), dtype=np.float32) < share
    scores = rng.standard_normal((samples, labels), dtype=np.float32)
    scores += 3 * targets + np.log(share)
    np.negative(scores, out=scores)
    np.exp(scores, out=scores)
    scores += 1
    np.reciprocal(scores, out=scores)
    return scores, sp.csr_array(targets.astype(np.uint8))


def clock() -> None:
    """Print CPU seconds, and memory beyond the scores', of sizes that cleanlab survives and of a whole one."""
    print("| images x labels | label_issues | cleanlab |\n|---|---|---|")
    for size in ((2_000, 100), (10_000, 400), FULL):
        scores, targets = made_up(*size)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        label_issues(scores, targets)
        mine = time.process_time() - begun
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        theirs = "not tried"
        if size != FULL:
            begun = time.process_time()
            by_cleanlab(scores, targets.toarray().astype(bool), "prune_by_noise_rate")
            theirs = f"{time.process_time() - begun:.2f} s"
        print(f"| {size[0]:,} x {size[1]:,} | {mine:.2f} s, {more:.0f} MB more | {theirs} |", flush=True)


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--features", type=Path, help="folder of the features, kept for the next run")
    parser.add_argument("--share", type=float, default=0.02, help="of entries that are flipped")
    parser.add_argument("--seed", type=int, default=0, help="of flips and folds")
    parser.add_argument("--time", action="store_true", help="CPU seconds instead")
    options = parser.parse_args()
    if options.time:
        clock()
        return
    if options.data is None or options.features is None:
        parser.error("--data and --features are wanted, or --time")
    for name in PROBLEMS:
        compare(name, options, by="entries", share=options.share)
        compare(name, options, by="positives", share=0.2)


if __name__ == "__main__":
    main()
