"""Five published student reports as settings of a run, with the figures that they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlabel.recipes.recipe import Recipe
from mlabel.training import TrainConfig


@dataclass(frozen=True)
class Report:
    """A published experiment.

    Attributes:
        title: What was done.
        recipe: Its settings; what it does not tell is said in `untold`. `data` is a name that stands for the folder.
        figures: What it and those it compares with reached: column title to metric, under the names of `Evaluation`,
            to number.
        untold: What had to be chosen here.

    Example:
        >>> from mlabel.recipes import REPORTS
        >>> sorted(REPORTS)[:2]
        ['celeba_resnet_vs_densenet', 'danbooru_resnet50']
    """

    title: str
    recipe: Recipe
    figures: Mapping[str, Mapping[str, float]]
    untold: str


REPORTS: dict[str, Report] = {
    "danbooru_resnet50": Report(
        title="Danbooru2021 tags with ResNet50",
        recipe=Recipe(
            reader="danbooru",
            data="danbooru2021",
            reader_options={"sample_every": 4, "min_count": 100, "with_rating": False},
            split=(0.64, 0.16, 0.20),
            backbone="resnet50",
            weights="IMAGENET1K_V2",
            image_size=512,
            loss="binary_cross_entropy",
            train=TrainConfig(
                epochs=10, batch_size=16, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant",
                augment="flip+rotation", monitor="micro_f1",
            ),
        ),
        figures={"report, at 0.5": {"micro_precision": 0.68, "micro_recall": 0.23, "micro_f1": 0.35}},
        untold="the number of epochs, which ImageNet weights, and over what precision and recall are averaged",
    ),
    "mirflickr_cnns": Report(
        title="14 MIRFLICKR labels with small CNNs and ResNet50",
        recipe=Recipe(
            reader="mirflickr",
            data="mirflickr14",
            split=(0.85, 0.15),
            split_method="random",
            backbone="resnet50",
            image_size=128,
            loss="binary_cross_entropy",
            train=TrainConfig(
                epochs=15, batch_size=32, optimizer="adadelta", lr=0.2, weight_decay=0.0, schedule="constant",
                monitor="exact_match",
            ),
        ),
        figures={"report, at 0.5": {"exact_match": 0.59}},
        untold="whether ResNet50 began from ImageNet weights (here it does not)",
    ),
    "fashion_multihead": Report(
        title="Six fashion attributes, a head each, on ResNet18",
        recipe=Recipe(
            reader="fashion",
            data="FashionDataset",
            backbone="resnet18",
            weights="IMAGENET1K_V1",
            head="multi",
            hidden=512,
            dropout=0.5,
            image_size=224,
            loss="cross_entropy",
            weighting="inverse_frequency",
            train=TrainConfig(
                epochs=45, batch_size=4, optimizer="adam", lr=1e-4, weight_decay=1e-3, schedule="plateau", decay=0.1,
                step_size=5, augment="flip", monitor="macro_recall",
            ),
        ),
        # Macro recall over the 26 classes, each decided within its attribute, is their average class accuracy.
        figures={
            "report, validation": {"macro_recall": 0.6796},
            "report, hidden test": {"macro_recall": 0.6716},
            "contest's best, hidden test": {"macro_recall": 0.7188},
        },
        untold="the augmentation and the hidden units of a head",
    ),
    "danbooru_se_resnet": Report(
        title="The 100 commonest Danbooru tags with an SE-ResNet and focal loss",
        recipe=Recipe(
            reader="danbooru",
            data="danbooru2021",
            reader_options={"min_count": 1, "max_labels": 100, "with_rating": False},
            limit=25_000,
            backbone="se_resnet22",
            dropout=0.5,
            image_size=256,
            loss="focal",
            train=TrainConfig(
                epochs=20, batch_size=32, optimizer="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine",
                augment="flip", monitor="micro_f1",
            ),
        ),
        figures={
            "report": {"micro_f1": 0.3778, "macro_f1": 0.1865},
            "Camie Tagger": {"micro_f1": 0.576, "macro_f1": 0.204},
        },
        untold="optimiser, epochs, batch size and augmentation",
    ),
    "celeba_resnet_vs_densenet": Report(
        title="40 CelebA attributes, ResNet50 against DenseNet121",
        recipe=Recipe(
            reader="celeba",
            data="celeba",
            limit=50_000,
            backbone="resnet50",
            weights="IMAGENET1K_V1",
            head="mlp",
            hidden=512,
            dropout=0.3,
            image_size=64,
            loss="binary_cross_entropy",
            weighting="neg_pos",
            train=TrainConfig(
                epochs=8, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant",
                augment="flip", monitor="label_accuracy",
            ),
        ),
        figures={"report, by batch": {"label_accuracy": 0.92}},
        untold="the augmentation, and which ImageNet weights",
    ),
}  # fmt: skip
"""The reports by the names of their scripts in `examples/`."""
