"""Report 3: six attributes of garments, a head each on one ResNet18, and the file that the contest wanted.

    python examples/fashion_multihead.py --data FashionDataset --run runs/fashion
    python examples/fashion_multihead.py --data FashionDataset --loss seesaw --run runs/seesaw

The report weighed the classes of each head by their frequency. `--logit-adjustment 1` is the other way to say that
all classes matter equally, and `--hold-out 0.1` chooses the checkpoint on a tenth of the training images, so that the
validation part is only reported. Without `--data` a small stand-in in the same format is written and used.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

import mlabel
from mlabel.data import read_fashion, write_submission
from mlabel.metrics import comparison_table
from mlabel.recipes import REPORTS, Recipe, run, write_stand_in

REPORT = REPORTS["fashion_multihead"]


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with img/ and split/; none: a stand-in")
    parser.add_argument("--run", default="runs/fashion_multihead")
    parser.add_argument("--backbone", default=REPORT.recipe.backbone)
    parser.add_argument("--weights", default=REPORT.recipe.weights, help="`none`, a name, or a file")
    parser.add_argument("--image-size", type=int, default=REPORT.recipe.image_size)
    parser.add_argument("--loss", choices=("cross_entropy", "focal_cross_entropy", "seesaw"), default="cross_entropy")
    parser.add_argument("--weighting", default=REPORT.recipe.weighting, help="`none` or a scheme of mlabel.weights")
    parser.add_argument("--logit-adjustment", type=float, default=0.0)
    parser.add_argument("--hold-out", type=float, help="share of the training images to validate on")
    parser.add_argument("--epochs", type=int, default=REPORT.recipe.train.epochs)
    parser.add_argument("--batch-size", type=int, default=REPORT.recipe.train.batch_size)
    parser.add_argument("--lr", type=float, default=REPORT.recipe.train.lr)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return the report's recipe with the changes asked for; a small one for the stand-in."""
    train = dataclasses.replace(
        REPORT.recipe.train, epochs=options.epochs, batch_size=options.batch_size, lr=options.lr, seed=options.seed
    )
    recipe = dataclasses.replace(
        REPORT.recipe,
        backbone=options.backbone,
        weights=None if options.weights == "none" else options.weights,
        image_size=options.image_size,
        exclusive_loss=options.loss,
        # The other two losses see to rare classes themselves.
        weighting=None if options.weighting == "none" or options.loss != "cross_entropy" else options.weighting,
        logit_adjustment=options.logit_adjustment,
        hold_out=options.hold_out,
        train=train,
    )
    if options.data is not None:
        return dataclasses.replace(recipe, data=options.data)
    data = write_stand_in("fashion", f"{options.run}-data", seed=options.seed)
    train = dataclasses.replace(train, epochs=min(train.epochs, 2), batch_size=16)
    return dataclasses.replace(recipe, data=str(data), weights=None, image_size=64, train=train)


def main() -> None:
    """Train, print the report's figures beside those reached, and write the submission file."""
    options = parse_options()
    recipe = make_recipe(options)
    result = run(recipe, options.run, resume="auto")
    assert result is not None, "started by torchrun, the first process alone gets the figures"

    print(f"\n{REPORT.title}: the {result.part} part, {result.coverage}. The report does not tell {REPORT.untold}.\n")
    reached = {"this run": result.best, "prior": result.columns["prior"]}
    print(comparison_table({**REPORT.figures, **reached}, ("macro_recall", "exact_match")))
    print("(macro_recall over all 26 classes is the average class accuracy)\n")
    for name, figures in result.best.groups.items():
        print(f"{name:10} accuracy {figures['accuracy']:.3f}, mean class accuracy {figures['mean_class_accuracy']:.3f}")
    means = [
        np.mean([each[key] for each in result.best.groups.values()]) for key in ("accuracy", "mean_class_accuracy")
    ]
    print(f"{'mean':10} accuracy {means[0]:.3f}, mean class accuracy {means[1]:.3f}")

    # The images of the test part have no labels: what the model says of them is what the contest judges.
    tagger = mlabel.Tagger.load(f"{options.run}/bundle")
    test = read_fashion(recipe.data).part("test")
    scores = np.concatenate([scored.scores for scored in tagger.score(test)])
    write_submission(f"{options.run}/prediction.txt", scores, space=tagger.space)
    print(f"\nwrote {options.run}/prediction.txt, and {options.run}/report/index.html")


if __name__ == "__main__":
    main()
