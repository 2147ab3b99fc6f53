"""What helps rare labels: losses, weights, samplers, adjusted logits and biases, each beside plain cross-entropy.

A small head is trained on the features that a pretrained EfficientNet-Lite0 has of `mirflickr14` (14 any-of labels),
`openclipart_danbooru` (138 any-of labels with at least 20 images) and FashionDataset (26 classes of 6 exclusive
groups), for the same number of steps under every method. Each seed
splits the images anew, 60/20/20, and draws the head's weights and the order. The learning rate and the step that count
are those with the best mean AP on the validation part; thresholds are fitted there, too, and everything is measured on
the test part. Labels are grouped by the deciles of their frequency: tail (the rarest three), middle and head.

What is shown for a method is its mean over the seeds less that of the baseline, in hundredths, with a 95 % interval: a
t-interval of the differences seed by seed, widened because the parts of different seeds overlap (Nadeau and Bengio,
2003: 1 / seeds + test / train in place of 1 / seeds).

    python -m benchmarks.imbalance --data FOLDER --features FOLDER [--results FILE] [--quick]

`--data` (or MLABEL_DATA) is the folder of the data sets, `--features` where features are kept (a quarter of an hour for
all where they are not there yet), `--results` a file of JSON lines from which runs that it has are taken. `--quick`
runs one seed of some methods for a few steps, on made-up features if there is no data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy import stats
from torch import nn

from benchmarks.features import load_features
from mlabel import evaluate, fit_thresholds
from mlabel.data import ImageTable, make_sampler, read_danbooru, read_fashion, read_mirflickr, stratified_split
from mlabel.labels import Group, LabelSpace
from mlabel.losses import EXCLUSIVE_NAMES, NAMES, LogitAdjusted, begin_epoch, create
from mlabel.metrics import average_precision
from mlabel.models import create_head
from mlabel.weights import SCHEMES

FRACTIONS = (0.6, 0.2, 0.2)
HIDDEN, DROPOUT, BATCH, WEIGHT_DECAY = 128, 0.5, 256, 0.01
RATES = (3e-4, 1e-3, 3e-3)
STEPS, QUICK_STEPS, CHECKS = 600, 20, 10
SEEDS = 5
BANDS = {"tail": range(3), "middle": range(3, 7), "head": range(7, 10), "all": range(10)}
# The baseline, binary or over classes, and what is the same under another name.
NOT_MEASURED = ("binary_cross_entropy", "cross_entropy", "multilabel_soft_margin")


@dataclass(frozen=True)
class Method:
    """What a head is trained with; each field as in `losses.create`, `make_sampler` and the recipe."""

    name: str
    loss: str = "binary_cross_entropy"
    weighting: str | None = None
    sampler: str = "shuffle"
    repeat_threshold: float = 0.01
    logit_adjustment: float = 0.0
    init_bias: str = "default"
    options: dict[str, Any] = field(default_factory=dict)


def methods(space: LabelSpace) -> list[Method]:
    """Return the baseline, one method for each factor, and combinations."""
    names = NAMES if space.any_of.any() else EXCLUSIVE_NAMES
    schemes = [scheme for scheme in SCHEMES if scheme != "neg_pos" or space.any_of.any()]
    single = [Method("baseline")]
    single += [Method(f"loss {name}", loss=name) for name in names if name not in NOT_MEASURED]
    single += [Method(f"weighting {scheme}", weighting=scheme) for scheme in schemes]
    single += [
        Method(f"sampler {name}, threshold {at}", sampler=name, repeat_threshold=at)
        for name in ("repeat_factor", "instance_aware")
        for at in (0.01, 0.1)
    ]
    single += [Method(f"logit adjustment {tau}", logit_adjustment=tau) for tau in (0.5, 1.0)]
    single += [Method("init bias", init_bias="prior")]
    return single + (combinations() if space.any_of.any() else exclusive_combinations())


REPEAT: dict[str, Any] = {"sampler": "repeat_factor", "repeat_threshold": 0.1}


def combinations() -> list[Method]:
    """Return methods of more than one factor, for any-of labels."""
    losses = ("asymmetric", "focal", "two_way", "zlpr")
    made = [Method(f"init bias + {name}", loss=name, init_bias="prior") for name in losses]
    made += [Method(f"init bias + {name}", weighting=name, init_bias="prior") for name in ("power", "effective_number")]
    made += [Method(f"power + {name}", loss=name, weighting="power") for name in ("asymmetric", "focal")]
    made += [Method("init bias + repeat_factor 0.1", init_bias="prior", **REPEAT)]
    made += [Method("asymmetric + repeat_factor 0.1", loss="asymmetric", **REPEAT)]
    return made


def exclusive_combinations() -> list[Method]:
    """Return methods of more than one factor, for exclusive groups."""
    made = [Method("logit adjustment 0.5 + power", weighting="power", logit_adjustment=0.5)]
    made += [Method("logit adjustment 1.0 + repeat_factor 0.1", logit_adjustment=1.0, **REPEAT)]
    made += [Method("logit adjustment 1.0 + focal_cross_entropy", loss="focal_cross_entropy", logit_adjustment=1.0)]
    return made


@dataclass(frozen=True)
class Problem:
    """A data set: its table and the features (N, D) of its images."""

    name: str
    table: ImageTable
    features: np.ndarray

    def split(self, seed: int) -> Split:
        """Return the parts of a seed."""
        groups, unknown = self.table.groups, self.table.unknown
        part = stratified_split(self.table.targets, FRACTIONS, seed=seed, groups=groups, unknown=unknown)
        return Split(self, *(np.flatnonzero(part == number) for number in range(3)))

    @cached_property
    def deciles(self) -> np.ndarray:
        """The decile of each label's frequency (L,), 0 for the rarest."""
        ranks = stats.rankdata(self.table.counts, method="ordinal") - 1
        return (10 * ranks // self.table.space.num_labels).astype(int)


@dataclass(frozen=True)
class Split:
    """Training, validation and test rows of a problem, and its features, standardised by the training part."""

    problem: Problem
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @cached_property
    def features(self) -> torch.Tensor:
        """All images' features, float32 (N, D)."""
        raw = self.problem.features
        return torch.from_numpy((raw - raw[self.train].mean(axis=0)) / (raw[self.train].std(axis=0) + 1e-6))

    @cached_property
    def table(self) -> ImageTable:
        """The training part."""
        return self.problem.table[self.train]

    def targets(self, rows: np.ndarray) -> sp.csr_array:
        """Return the targets of some rows."""
        return self.problem.table.targets[rows]


def make_loss(method: Method, table: ImageTable) -> nn.Module:
    """Return the loss of a method, with what it counts in the training part."""
    targets, weighting = table.targets, method.weighting
    loss = create(method.loss, space=table.space, targets=targets, weighting=weighting, options=method.options)
    if not method.logit_adjustment:
        return loss
    return LogitAdjusted(loss, method.logit_adjustment * table.space.prior_logits(table.counts, table.known_counts))


def make_head(method: Method, split: Split, seed: int) -> nn.Module:
    """Return a new head."""
    torch.manual_seed(seed)
    table = split.table
    head = create_head("mlp", split.features.shape[1], table.space, hidden=HIDDEN, dropout=DROPOUT)
    if method.init_bias == "prior":
        head.init_bias(table.counts, table.known_counts, logit_adjustment=method.logit_adjustment)
    return head


def batches(method: Method, split: Split, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the epoch and the rows of batch after batch, without end."""
    sampler = make_sampler(method.sampler, split.table, seed=seed, threshold=method.repeat_threshold)
    epoch = 0
    while True:
        order = split.train[sampler.order(epoch)]
        yield from ((epoch, order[start : start + BATCH]) for start in range(0, len(order) - BATCH + 1, BATCH))
        epoch += 1


def scores_of(head: nn.Module, split: Split, rows: np.ndarray) -> np.ndarray:
    """Return the probabilities of some rows."""
    head.eval()
    with torch.no_grad():
        logits = head(split.features[torch.from_numpy(rows)])
    head.train()
    return split.table.space.probabilities(logits).numpy()


def train(method: Method, split: Split, *, seed: int, rate: float, steps: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the best mean AP on the validation part and the scores of validation and test part at that step."""
    head, loss = make_head(method, split, seed), make_loss(method, split.table)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    dense = torch.from_numpy(split.problem.table.targets.toarray())
    best: tuple[float, np.ndarray, np.ndarray] = (-math.inf, np.empty(0), np.empty(0))
    for step, (epoch, rows) in zip(range(1, steps + 1), batches(method, split, seed), strict=False):
        begin_epoch(loss, epoch)
        chosen = torch.from_numpy(rows)
        optimiser.zero_grad()
        loss(head(split.features[chosen]), dense[chosen]).backward()
        optimiser.step()
        if step % (steps // CHECKS) == 0:
            scores = scores_of(head, split, split.val)
            value = float(np.nanmean(average_precision(scores, split.targets(split.val))))
            if value > best[0]:
                best = (value, scores, scores_of(head, split, split.test))
    return best


def measure(method: Method, split: Split, *, seed: int, steps: int, rates: Sequence[float]) -> dict[str, float]:
    """Return the figures of a method with one seed."""
    space = split.table.space
    found = {rate: train(method, split, seed=seed, rate=rate, steps=steps) for rate in rates}
    rate = max(found, key=lambda each: found[each][0])
    _, val, test = found[rate]
    targets = split.targets(split.test)
    fitted = evaluate(test, targets, fit_thresholds(val, split.targets(split.val), space=space), space=space)
    half = evaluate(test, targets, 0.5, space=space)
    figures = {"rate": rate, "micro_ap": fitted["micro_ap"], "f1_at_half": half["macro_f1"]}
    for key in ("accuracy", "mean_class_accuracy") if fitted.groups else ():
        figures[key] = float(np.mean([each[key] for each in fitted.groups.values()]))
    for band, deciles in BANDS.items():
        labels = np.isin(split.problem.deciles, deciles)
        figures |= {f"{key}_{band}": float(np.nanmean(fitted.per_label[key][labels])) for key in ("f1", "ap")}
    return figures


def run(problem: Problem, wanted: Sequence[Method], *, quick: bool, results: Path | None) -> list[dict[str, Any]]:
    """Return a row for each method and seed; those in the file `results` are taken from there, others added to it."""
    held = {} if results is None or not results.is_file() else _read_rows(results)
    steps, rates = (QUICK_STEPS, RATES[:1]) if quick else (STEPS, RATES)
    rows = []
    for seed in range(1 if quick else SEEDS):
        split = problem.split(seed)
        for method in wanted:
            key = (problem.name, seed, json.dumps(dataclasses.asdict(method) | {"steps": steps, "rates": rates}))
            if key not in held:
                figures = measure(method, split, seed=seed, steps=steps, rates=rates)
                held[key] = dict(zip(("problem", "seed", "method"), key, strict=True), **figures)
                if results is not None:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(held[key]) + "\n")
            rows.append(held[key] | {"name": method.name})
    return rows


def _read_rows(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["problem"], row["seed"], row["method"]): row for row in rows}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95 % interval; see the module's text."""
    values = np.asarray(differences)
    if len(values) < 2:
        return float(values.mean()), math.nan
    spread = math.sqrt(1 / len(values) + FRACTIONS[2] / FRACTIONS[0])
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) * spread)


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the table of one problem in Markdown: figures of the baseline, differences of the others."""
    titles = {f"{metric}_{band}": f"{metric.upper()} {band}" for metric in ("f1", "ap") for band in BANDS}
    if "accuracy" in rows[0]:
        titles |= {"accuracy": "accuracy", "mean_class_accuracy": "mean class accuracy"}
    else:
        titles |= {"micro_ap": "micro AP", "f1_at_half": "F1 at 0.5"}
    keys = list(titles)
    lines = ["| method | " + " | ".join(titles.values()) + " |", "|---" * (len(keys) + 1) + "|"]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    baseline = by_name.pop("baseline")
    cells = [f"{100 * np.mean([row[key] for row in baseline]):.1f}" for key in keys]
    lines.append("| " + " | ".join(["baseline", *cells]) + " |")
    for name, mine in by_name.items():
        pairs = zip(mine, baseline, strict=True)
        differences = [[100 * (row[key] - other[key]) for key in keys] for row, other in pairs]
        cells = [_cell(*interval([each[place] for each in differences])) for place in range(len(keys))]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _cell(mean: float, half: float) -> str:
    """Return a difference with its interval, bold where that leaves out 0."""
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"**{text}**" if abs(mean) > half else text


def problems(data: Path, features: Path) -> Iterator[Problem]:
    """Yield the data sets with their features."""
    for name, table in (
        ("mirflickr14", read_mirflickr(data / "mirflickr14")),
        ("danbooru", read_danbooru(data / "danbooru", min_count=20)),
        ("fashion", labelled(read_fashion(data / "FashionDataset"))),
    ):
        yield Problem(name, table, load_features(table, features, name))


def labelled(table: ImageTable) -> ImageTable:
    """Return the images of which something is known."""
    if table.unknown is None:
        return table
    return table[np.diff(table.unknown.indptr) < table.space.num_labels]


def made_up() -> Problem:
    """Return a problem of random features, for a run without data."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2_000, 32)).astype(np.float32)
    logits = features @ rng.normal(size=(32, 20)) / 4 - np.linspace(1, 4, 20)
    targets = sp.csr_array((logits + rng.logistic(size=logits.shape) > 0).astype(np.uint8))
    space = LabelSpace([Group("labels", [f"label {number}" for number in range(20)])])
    paths = [f"{number}.jpg" for number in range(len(features))]
    return Problem("made up", ImageTable(paths=paths, targets=targets, space=space), features)


def main(
    quick: bool, data: Path | None, features: Path | None, results: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Print a table for each data set and return its rows."""
    if data is None or features is None:
        if not quick:
            raise SystemExit("--data (or MLABEL_DATA) and --features are needed, but with --quick")
        chosen: Iterator[Problem] = iter([made_up()])
    else:
        chosen = problems(data, features)
    rows = {}
    for problem in chosen:
        wanted = methods(problem.table.space)
        rows[problem.name] = run(problem, wanted[::5] if quick else wanted, quick=quick, results=results)
        print(f"\n{problem.name}\n\n{table_of(rows[problem.name])}", flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of some methods, a few steps")
    parser.add_argument("--data", type=Path, default=os.environ.get("MLABEL_DATA"), help="folder of the data sets")
    parser.add_argument("--features", type=Path, help="folder where features are kept")
    parser.add_argument("--results", type=Path, help="file of JSON lines to take runs from and add them to")
    given = parser.parse_args()
    main(given.quick, given.data and Path(given.data), given.features, given.results)
