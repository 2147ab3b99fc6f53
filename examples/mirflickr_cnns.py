"""Report 2: 14 labels of MIRFLICKR photographs with small CNNs and ResNet50, to train, to evaluate and to predict.

    python examples/mirflickr_cnns.py train --data mirflickr14 --model resnet50 --optimizer adadelta --lr 0.2
    python examples/mirflickr_cnns.py eval
    python examples/mirflickr_cnns.py pred photographs/ > labels.tsv

The report trained at 128 pixels, in colour or grey, on a random 85 % (or 80 %, with 10 to validate) of the images.
Without `--data` a small stand-in in the same format is written and used.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import mlabel
from mlabel.inference import find_images, write_predictions
from mlabel.metrics import comparison_table
from mlabel.recipes import REPORTS, Recipe, Run, RunEvaluation, run, write_stand_in

REPORT = REPORTS["mirflickr_cnns"]
MODELS = ("cnn4_maxpool", "cnn3_batchnorm", "cnn5_avgpool", "resnet18", "resnet50", "prior")
OPTIMIZERS = ("adam", "adamw", "sgd", "adamax", "adadelta")
LOSSES = ("binary_cross_entropy", "squared_error", "absolute_error", "multilabel_soft_margin")
SPLITS = {"85-15": (0.85, 0.15), "80-10-10": (0.80, 0.10, 0.10)}
SHOWN = ("exact_match", "label_accuracy", "micro_f1", "macro_f1", "micro_precision", "micro_recall", "map")


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("train", "eval", "pred"), default="train")
    parser.add_argument("images", nargs="*", help="with pred: files or folders")
    parser.add_argument("--data", help="folder with annotations/ and images/; none: a stand-in")
    parser.add_argument("--run", default="runs/mirflickr_cnns")
    parser.add_argument("--model", default=REPORT.recipe.backbone, help=f"{', '.join(MODELS)}, or any other backbone")
    parser.add_argument("--weights", default="none", help="`none`, a name, or a file")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default=REPORT.recipe.train.optimizer)
    parser.add_argument("--loss", choices=LOSSES, default=REPORT.recipe.loss)
    parser.add_argument("--lr", type=float, default=REPORT.recipe.train.lr)
    parser.add_argument("--epochs", type=int, default=REPORT.recipe.train.epochs)
    parser.add_argument("--split", choices=SPLITS, default="85-15")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return the report's recipe with the changes asked for; a small one for the stand-in."""
    train = dataclasses.replace(
        REPORT.recipe.train, optimizer=options.optimizer, lr=options.lr, epochs=options.epochs, seed=options.seed
    )
    recipe = dataclasses.replace(
        REPORT.recipe,
        backbone=options.model,
        weights=None if options.weights == "none" else options.weights,
        loss=options.loss,
        split=SPLITS[options.split],
        in_channels=1 if options.grey else 3,
        train=train,
    )
    if options.data is not None:
        return dataclasses.replace(recipe, data=options.data)
    data = write_stand_in("mirflickr", f"{options.run}-data", seed=options.seed)
    train = dataclasses.replace(train, epochs=min(train.epochs, 2))
    return dataclasses.replace(recipe, data=str(data), image_size=64, train=train)


def show(result: RunEvaluation) -> None:
    """Print the figures beside the report's, and each label's."""
    print(f"\n{REPORT.title}: the {result.part} part, {result.coverage}. The report does not tell {REPORT.untold}.\n")
    print(comparison_table({**REPORT.figures, **result.columns}, SHOWN))
    print(f"\n{result.best.label_table()}")
    at_half = result.columns["at 0.5"].per_label
    never = [name for name, hits in zip(result.best.names, at_half["tp"], strict=True) if not hits]
    print(f"labels without a true positive at 0.5: {', '.join(never) or 'none'} (the report: river)")


def main() -> None:
    """Do what the mode says."""
    options = parse_options()
    if options.mode == "train":
        result = run(make_recipe(options), options.run, resume="auto")
        assert result is not None, "started by torchrun, the first process alone gets the figures"
        show(result)
        print(f"\nlook at {options.run}/report/index.html: curves, a confusion matrix of each label, examples")
    elif options.mode == "eval":
        show(Run.open(options.run).evaluate())
    else:
        tagger = mlabel.Tagger.load(f"{options.run}/bundle")
        images = find_images(options.images)
        write_predictions(sys.stdout, tagger.stream(images), space=tagger.space, format="tsv")


if __name__ == "__main__":
    main()
