"""What thresholds are worth: 0.5 beside every objective and scope, in sample and held out, with intervals.

Two data sets: mirflickr14 (14 labels of photographs) and openclipart_danbooru (138 tags with at least 20 images), split
70/15/15. An MLP head is trained on features of the pip-installable pretrained EfficientNet-Lite0, computed once and
kept in `--features`. Thresholds are fitted on the validation part. They are judged there (in sample), there by
thresholds of which each was fitted on the other four fifths (cross-fitted), and on the test part (held out), with 95 %
intervals of 1,000 resamples; of drawings by one artist, or whatever the reader says belongs together, groups are drawn.
Bold is what differs from 0.5 by more than chance: the interval of the paired difference leaves out 0. Run

    python -m benchmarks.decisions --data FOLDER --features FOLDER

where the first folder holds `mirflickr14` and `danbooru`; `--quick` takes made-up features instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.features import load_features
from benchmarks.imbalance import made_up
from benchmarks.transfer import rows_of, scores_of, train_head
from mlabel import evaluate, fit_thresholds
from mlabel.data import ImageTable, read_danbooru, read_mirflickr
from mlabel.decisions import cross_fit_thresholds
from mlabel.metrics import COUNT_METRICS, bootstrap, compare
from mlabel.models import create_head

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
SHOWN = ("exact_match", "micro_f1", "macro_f1")
BESIDE = ("macro_precision", "macro_recall")


@dataclass(frozen=True)
class Method:
    """A way to decide, and the metric by which its optimism is shown; no objective: at 0.5."""

    name: str
    objective: str | None = None
    scope: str | None = None
    metric: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


METHODS = (
    Method("0.5"),
    Method("F1, one a label", "f1", "label", "macro_f1"),
    Method("F1, one a label, shrunk", "f1", "label", "macro_f1", {"shrink": 20.0}),
    Method("F1, one for all", "f1", "global", "micro_f1"),
    Method("micro F1, one a label", "micro_f1", "label", "micro_f1"),
    Method("exact match, one a label", "exact_match", "label", "exact_match"),
    Method("exact match, one for all", "exact_match", "global", "exact_match"),
    Method("P = R, one a label", "precision_equals_recall", "label", "macro_f1"),
    Method("precision ≥ 0.8, one a label", "precision_floor", "label", "macro_precision", {"floor": 0.8}),
    Method("precision ≥ 0.8, one for all", "precision_floor", "global", "micro_precision", {"floor": 0.8}),
    Method("recall ≥ 0.8, one a label", "recall_floor", "label", "macro_recall", {"floor": 0.8}),
    Method("recall ≥ 0.8, one for all", "recall_floor", "global", "micro_recall", {"floor": 0.8}),
    Method("a miss costs 3 alarms, one a label", "cost", "label", "macro_recall", {"false_negative_cost": 3.0}),
    Method("the k best", "top_k", None, "micro_f1"),
    Method("above the widest gap", "mcut", None, "micro_f1"),
)


# Each method with its thresholds, and the cross-fitted ones.
Fits = list[tuple[Method, Any, Any]]


@dataclass(frozen=True)
class Scored:
    """A part's probabilities, and its table."""

    scores: np.ndarray
    table: ImageTable

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the part, as options of the calls that measure."""
        return {"mask": self.table.unknown, "space": self.table.space}


def problems(data: Path, folder: Path) -> Iterator[tuple[str, ImageTable, np.ndarray]]:
    """Yield the name, the images and the features of each data set."""
    photographs = read_mirflickr(str(data / "mirflickr14"))
    yield "mirflickr14", photographs, load_features(photographs, folder, "mirflickr14", side=160)
    drawings = read_danbooru(data / "danbooru", min_count=20)
    yield "openclipart_danbooru", drawings, load_features(drawings, folder, "danbooru", side=128)


def score_parts(table: ImageTable, features: np.ndarray, seed: int) -> dict[str, Scored]:
    """Return the parts that thresholds are fitted and judged on, scored by a head that was trained on the first."""
    parts = dict(zip(FRACTIONS, table.split(tuple(FRACTIONS.values()), seed=seed), strict=True))
    held = {name: torch.from_numpy(features[rows_of(table, part)]) for name, part in parts.items()}
    torch.manual_seed(seed)
    head = create_head("mlp", features.shape[1], table.space, dropout=0.3)
    train_head(head, held["train"], parts["train"], weighting=None)
    return {name: Scored(scores_of(head, held[name], parts[name]), parts[name]) for name in ("val", "test")}


def fit(method: Method, val: Scored) -> tuple[Any, Any]:
    """Return the thresholds fitted on a part, and the cross-fitted ones; 0.5 and None where nothing is fitted."""
    if method.objective is None:
        return 0.5, None
    given = {"scope": method.scope, **val.known, **method.options}
    crossed = cross_fit_thresholds(val.scores, val.table.targets, method.objective, **given)
    return fit_thresholds(val.scores, val.table.targets, method.objective, **given), crossed


def held_out_rows(fitted: Mapping[str, Any], test: Scored, resamples: int) -> list[list[str]]:
    """Return a row for each method: figures of the test part, with intervals."""
    options = {**test.known, "groups": test.table.groups, "metrics": COUNT_METRICS, "resamples": resamples}
    rows = []
    for name, levels in fitted.items():
        found = bootstrap(test.scores, test.table.targets, levels, **options)
        paired = compare(test.scores, test.scores, test.table.targets, thresholds=(levels, 0.5), **options)
        cells = []
        for metric in SHOWN:
            value, low, high = found[metric]
            differs = paired[metric].low > 0 or paired[metric].high < 0
            text = f"**{value:.3f}**" if differs else f"{value:.3f}"
            cells.append(f"{text} ({low:.3f} to {high:.3f})")
        rows.append([name, *cells, *(f"{found[metric].value:.3f}" for metric in BESIDE)])
    return rows


def optimism_rows(val: Scored, test: Scored, fits: Fits, resamples: int) -> list[list[str]]:
    """Return a row for each method: its own metric in sample, cross-fitted and held out."""
    rows = []
    for method, levels, crossed in fits:
        if crossed is None:
            continue
        inside = evaluate(val.scores, val.table.targets, levels, **val.known)
        across = evaluate(val.scores, val.table.targets, crossed.parts, folds=crossed.folds, **val.known)
        groups = {"groups": test.table.groups, "resamples": resamples, "metrics": [method.metric]}
        value, low, high = bootstrap(test.scores, test.table.targets, levels, **test.known, **groups)[method.metric]
        numbers = [inside[method.metric], across[method.metric], value]
        cells = [f"{number:.3f}" for number in numbers]
        rows.append([method.name, title_of(method.metric), *cells, f"{low:.3f} to {high:.3f}"])
    return rows


def title_of(metric: str) -> str:
    """Return a metric's name in words."""
    return metric.replace("_", " ").replace("f1", "F1")


def show(titles: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for row in (titles, ["---"] * len(titles), *rows):
        print("| " + " | ".join(row) + " |")


def study(name: str, table: ImageTable, features: np.ndarray, *, seed: int, resamples: int) -> None:
    """Print the two tables of a data set."""
    parts = score_parts(table, features, seed)
    val, test = parts["val"], parts["test"]
    fits = [(method, *fit(method, val)) for method in METHODS]
    counts = ", ".join(f"{len(part.table):,} images of the {title} part" for title, part in parts.items())
    print(f"\n**{name}**: {table.space.num_labels} labels, {counts}\n")
    fitted = {method.name: levels for method, levels, _ in fits}
    show(
        ["thresholds", *map(title_of, (*SHOWN, *BESIDE))],
        held_out_rows(fitted, test, resamples),
    )
    print()
    show(
        ["thresholds", "metric", "in sample", "cross-fitted", "test", "95 %"], optimism_rows(val, test, fits, resamples)
    )


def main() -> None:
    """Print the tables of every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--features", type=Path, help="folder of the features, kept for the next run")
    parser.add_argument("--seed", type=int, default=0, help="of split, head and order")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="made-up features, 100 resamples")
    options = parser.parse_args()
    if options.quick:
        problem = made_up()
        study("made up", problem.table, problem.features, seed=options.seed, resamples=100)
        return
    if options.data is None or options.features is None:
        parser.error("--data and --features are needed, but with --quick")
    for name, table, features in problems(options.data, options.features):
        study(name, table, features, seed=options.seed, resamples=options.resamples)


if __name__ == "__main__":
    main()
