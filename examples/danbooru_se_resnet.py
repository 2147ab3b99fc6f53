"""Report 4: Danbooru's 100 commonest tags with an SE-ResNet from scratch and focal loss, in five categories.

    python examples/danbooru_se_resnet.py --data danbooru2021 --run runs/se_resnet

Its list of further work is here as options: `--backbone convnext_tiny`, `--backbone vit_b_16` (at `--image-size 224`),
`--sharpness gsam`, `--max-labels 1000`. Without `--data` a small stand-in in the same format is written and used.
"""

from __future__ import annotations

import argparse
import dataclasses

from mlabel.metrics import comparison_table, rows_table
from mlabel.recipes import REPORTS, Recipe, run, write_stand_in
from mlabel.training import SHARPNESS

REPORT = REPORTS["danbooru_se_resnet"]
SHOWN = ("micro_f1", "macro_f1", "micro_precision", "micro_recall", "map", "num_labels_averaged")


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with metadata/ and 512px/; none: a stand-in")
    parser.add_argument("--run", default="runs/danbooru_se_resnet")
    parser.add_argument("--backbone", default=REPORT.recipe.backbone)
    parser.add_argument("--weights", default="none", help="`none`, a name, or a file")
    parser.add_argument("--image-size", type=int, default=REPORT.recipe.image_size)
    parser.add_argument("--images", type=int, default=REPORT.recipe.limit, help="use so many")
    parser.add_argument("--max-labels", type=int, default=100, help="so many of the commonest tags")
    parser.add_argument("--loss", default=REPORT.recipe.loss)
    parser.add_argument("--sharpness", choices=SHARPNESS, default="none")
    parser.add_argument("--epochs", type=int, default=REPORT.recipe.train.epochs)
    parser.add_argument("--lr", type=float, default=REPORT.recipe.train.lr)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return the report's recipe with the changes asked for; a small one for the stand-in."""
    train = dataclasses.replace(
        REPORT.recipe.train, epochs=options.epochs, lr=options.lr, sharpness=options.sharpness, seed=options.seed
    )
    recipe = dataclasses.replace(
        REPORT.recipe,
        backbone=options.backbone,
        weights=None if options.weights == "none" else options.weights,
        image_size=options.image_size,
        limit=options.images,
        reader_options={**REPORT.recipe.reader_options, "max_labels": options.max_labels},
        loss=options.loss,
        train=train,
    )
    if options.data is not None:
        return dataclasses.replace(recipe, data=options.data)
    data = write_stand_in("danbooru", f"{options.run}-data", seed=options.seed)
    train = dataclasses.replace(train, epochs=min(train.epochs, 2))
    return dataclasses.replace(recipe, data=str(data), image_size=64, train=train)


def main() -> None:
    """Train and print the figures, of all tags and of each category, beside the report's."""
    options = parse_options()
    result = run(make_recipe(options), options.run, resume="auto")
    assert result is not None, "started by torchrun, the first process alone gets the figures"

    print(f"\n{REPORT.title}: the {result.part} part, {result.coverage}. The report does not tell {REPORT.untold}.\n")
    print(comparison_table({**REPORT.figures, **result.columns}, SHOWN))
    print("\nby category, at the calibrated thresholds:")
    print(rows_table(result.by_group()))
    print("\nby how often a tag occurs in training:")
    print(rows_table(result.by_frequency()))
    print(f"\nlook at {options.run}/report/index.html")


if __name__ == "__main__":
    main()
