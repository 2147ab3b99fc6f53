"""Report 5: 40 attributes of CelebA's faces, ResNet50 against DenseNet121, with what accuracy hides beside it.

    python examples/celeba_resnet_vs_densenet.py --data celeba --run runs/celeba
    python examples/celeba_resnet_vs_densenet.py --data celeba --run runs/celeba --grid

The report chose batch size, learning rate, features and dropout on a grid; `--grid` searches it, as `mlabel tune` does
(`pip install 'mlabel[tune]'`), and trains both networks with what was best. Then both are compared on the same images,
with intervals. Without `--data` a small stand-in in the same format is written and used.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import mlabel
from mlabel.metrics import comparison_table
from mlabel.recipes import (
    REPORTS,
    Recipe,
    best_recipe,
    compare_runs,
    run,
    tune,
    write_run_comparison,
    write_stand_in,
)
from mlabel.tuning import SearchConfig

REPORT = REPORTS["celeba_resnet_vs_densenet"]
NETWORKS = ("resnet50", "densenet121")
BALANCED = ("macro_balanced_accuracy", "weighted_ap")
SHOWN = (
    "label_accuracy", "macro_balanced_accuracy", "map", "weighted_precision", "weighted_recall", "weighted_f1",
    "macro_f1", "exact_match",
)  # fmt: skip
GRID = {"batch_size": [64], "lr": [0.01, 0.001], "hidden": [512], "dropout": [0.3, 0.5]}


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CelebA's folder; none: a stand-in")
    parser.add_argument("--run", default="runs/celeba")
    parser.add_argument("--weights", default=REPORT.recipe.weights, help="`none`, a name, or a file")
    parser.add_argument("--images", type=int, default=REPORT.recipe.limit, help="use so many")
    parser.add_argument("--image-size", type=int, default=REPORT.recipe.image_size)
    parser.add_argument("--weighting", default=REPORT.recipe.weighting, help="`none` or a scheme of mlabel.weights")
    parser.add_argument("--hold-out", type=float, help="share of the training images to validate on")
    parser.add_argument("--epochs", type=int, default=REPORT.recipe.train.epochs)
    parser.add_argument("--lr", type=float, default=REPORT.recipe.train.lr)
    parser.add_argument("--dropout", type=float, default=REPORT.recipe.dropout)
    parser.add_argument("--grid", action="store_true", help="search the report's grid first, with ResNet50")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return the report's recipe with the changes asked for; a small one for the stand-in."""
    train = dataclasses.replace(REPORT.recipe.train, epochs=options.epochs, lr=options.lr, seed=options.seed)
    recipe = dataclasses.replace(
        REPORT.recipe,
        weights=None if options.weights == "none" else options.weights,
        limit=options.images,
        image_size=options.image_size,
        weighting=None if options.weighting == "none" else options.weighting,
        hold_out=options.hold_out,
        dropout=options.dropout,
        train=train,
    )
    if options.data is not None:
        return dataclasses.replace(recipe, data=options.data)
    data = write_stand_in("celeba", f"{options.run}-data", seed=options.seed)
    train = dataclasses.replace(train, epochs=min(train.epochs, 2))
    return dataclasses.replace(recipe, data=str(data), weights=None, train=train)


def write_class_report(path: Path, evaluation: mlabel.Evaluation) -> None:
    """Write each label's figures as CSV."""
    rows = evaluation.label_rows(sort="support")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Train both networks, compare them, and use the better one."""
    options = parse_options()
    recipe = make_recipe(options)
    if options.grid:
        study = tune(recipe, GRID, Path(options.run) / "grid", config=SearchConfig(strategy="grid"))
        recipe = best_recipe(study)
    columns = {}
    for network in NETWORKS:
        folder = Path(options.run) / network
        result = run(dataclasses.replace(recipe, backbone=network), folder, resume="auto", include=BALANCED)
        assert result is not None, "started by torchrun, the first process alone gets the figures"
        columns |= {f"{network} {title}": figures for title, figures in result.columns.items() if title != "prior"}
        columns["prior"] = result.columns["prior"]
        write_class_report(folder / "report" / "classes.csv", result.best)

    print(f"\n{REPORT.title}: the {result.part} part. The report does not tell {REPORT.untold}.\n")
    print(comparison_table({**REPORT.figures, **columns}, SHOWN))
    print("(always saying what is commoner has the accuracy of the prior: it says little where labels are rare)\n")

    comparison = compare_runs([Path(options.run) / network for network in NETWORKS])
    print(comparison.text(labels=5))
    page = write_run_comparison(comparison, Path(options.run) / "comparison")
    print(f"\nlook at {page}; correlations of labels are in {options.run}/{NETWORKS[0]}/report/index.html")

    best = max(NETWORKS, key=lambda network: comparison.metrics[network]["map"])
    tagger = mlabel.Tagger.load(Path(options.run) / best / "bundle")
    unseen = mlabel.data.read_celeba(recipe.data).parts()["val"].paths[:3].tolist()
    print(f"\n{best} says of images it has not learned from:")
    for prediction in tagger.predict(unseen):
        print(f"{Path(prediction.path).name}: {', '.join(prediction.labels)}")
    print("next: examples/search_faces.py finds faces by attributes")


if __name__ == "__main__":
    main()
