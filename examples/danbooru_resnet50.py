"""Report 1: tags of Danbooru2021 with ResNet50, and what calibrated thresholds do to a recall of 0.23.

    python examples/danbooru_resnet50.py --data danbooru2021 --run runs/danbooru
    python examples/danbooru_resnet50.py --data openclipart_danbooru --weights none --image-size 128 \
        --sample-every 1 --min-count 50

The report took every fourth post, tags with 100 posts or more, images of 512 pixels, 64 / 16 / 20 % stratified, and
trained ResNet50 with binary cross-entropy. Without `--data` a small stand-in in the same format is written and used.
Stop it at any time: the same command goes on from the last checkpoint to the very weights of an unbroken run.
"""

from __future__ import annotations

import argparse
import dataclasses

from mlabel.metrics import comparison_table
from mlabel.recipes import REPORTS, Recipe, Run, make_loss, run, write_stand_in
from mlabel.training import score_table

REPORT = REPORTS["danbooru_resnet50"]
SHOWN = ("micro_precision", "micro_recall", "micro_f1", "macro_precision", "macro_recall", "macro_f1", "map")


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with metadata/ and 512px/; none: a stand-in")
    parser.add_argument("--run", default="runs/danbooru_resnet50")
    parser.add_argument("--backbone", default=REPORT.recipe.backbone)
    parser.add_argument("--weights", default=REPORT.recipe.weights, help="`none`, a name, or a file")
    parser.add_argument("--image-size", type=int, default=REPORT.recipe.image_size)
    parser.add_argument("--sample-every", type=int, default=4, help="take one post in so many")
    parser.add_argument("--min-count", type=int, default=100, help="posts that a tag needs to become a label")
    parser.add_argument("--loss", default=REPORT.recipe.loss)
    parser.add_argument("--logit-adjustment", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=REPORT.recipe.train.epochs)
    parser.add_argument("--lr", type=float, default=REPORT.recipe.train.lr)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return the report's recipe with the changes asked for; a small one for the stand-in."""
    train = dataclasses.replace(
        REPORT.recipe.train, epochs=options.epochs, lr=options.lr, seed=options.seed, num_workers=options.workers
    )
    recipe = dataclasses.replace(
        REPORT.recipe,
        backbone=options.backbone,
        weights=None if options.weights == "none" else options.weights,
        image_size=options.image_size,
        reader_options={
            **REPORT.recipe.reader_options,
            "sample_every": options.sample_every,
            "min_count": options.min_count,
        },
        loss=options.loss,
        logit_adjustment=options.logit_adjustment,
        train=train,
    )
    if options.data is not None:
        return dataclasses.replace(recipe, data=options.data)
    data = write_stand_in("danbooru", f"{options.run}-data", num_images=1600, seed=options.seed)
    train = dataclasses.replace(train, epochs=min(train.epochs, 2))
    return dataclasses.replace(recipe, data=str(data), weights=None, image_size=64, train=train)


def main() -> None:
    """Train, or go on training, and print the report's figures beside those reached."""
    options = parse_options()
    recipe = make_recipe(options)
    result = run(recipe, options.run, resume="auto")
    assert result is not None, "started by torchrun, the first process alone gets the figures"

    print(f"\n{REPORT.title}: the {result.part} part, {result.coverage}. The report does not tell {REPORT.untold}.\n")
    print(comparison_table({**REPORT.figures, **result.columns}, SHOWN))

    # The loss of both parts, as the report gives it; each part by itself, with the pieces that `run` is made of.
    work = Run.open(options.run)
    loss = make_loss(recipe, work.parts["train"])
    for part in ("val", "test"):
        scored = score_table(work.model, work.parts[part], loss, batch_size=recipe.train.batch_size)
        print(f"loss of the {part} part: {scored.loss:.4f}")
    print(f"\nlook at {options.run}/report/index.html")


if __name__ == "__main__":
    main()
