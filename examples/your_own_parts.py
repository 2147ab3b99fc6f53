"""Your own annotations, backbone, head, loss and metric: each a few lines, and all of the library works with them.

Run it with `python examples/your_own_parts.py [FOLDER]`; it takes half a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import mlabel
from mlabel.models import Head
from mlabel.recipes import write_scenes
from mlabel.training import best_checkpoint, load_weights, score_table

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/your_own_parts")


def read_mine(path: Path) -> mlabel.ImageTable:
    """1. Annotations: a reader is any function that returns an `ImageTable`."""
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    space = mlabel.LabelSpace([mlabel.Group("digits", sorted({name for row in rows for name in row[2].split()}))])
    targets, unknown = space.encode([row[2].split() for row in rows])
    return mlabel.ImageTable(
        paths=[path.parent / row[0] for row in rows],
        targets=targets,
        unknown=unknown,
        space=space,
        partition=[row[1] for row in rows],
    )


class MyBackbone(nn.Module):
    """2. A backbone: any module from images (N, C, H, W) to features (N, D) that says D as its `num_features`."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Sequential(
            *[
                part
                for before, after in ((1, 32), (32, 64), (64, 64))
                for part in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
            ]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolve(images).amax(dim=(2, 3))


class CosineHead(Head):
    """3. A head: features (N, D) to logits (N, L). Here, how much their direction is like that of each label."""

    def __init__(self, num_features: int, space: mlabel.LabelSpace) -> None:
        super().__init__(space)
        self.directions = nn.Parameter(torch.randn(space.num_labels, num_features))
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.full((space.num_labels,), -2.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        likeness = F.normalize(features, dim=1) @ F.normalize(self.directions, dim=1).T
        return self.scale * likeness + self.bias


def hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """4. A loss: any function of logits and targets. Of shape (N, L), it is masked and averaged by the library."""
    return F.relu(1 - logits * (2 * targets - 1))


def half_right(decisions: np.ndarray, targets: np.ndarray) -> float:
    """5. A metric: any function of decisions and targets. Here, of how many images half the labels were found."""
    found = (decisions & (targets > 0)).sum(axis=1)
    return float((2 * found >= targets.sum(axis=1)).mean())


table = read_mine(write_scenes(folder / "scenes", num_scenes=4000))
train, val, test = (table.part(name) for name in ("train", "val", "test"))

head = CosineHead(MyBackbone.num_features, table.space)
model = mlabel.create_model(MyBackbone(), table.space, head=head, in_channels=1, image_size=32)
config = mlabel.TrainConfig(epochs=6, batch_size=64, lr=4e-3, monitor="map")
mlabel.fit(model, hinge, train, val, config=config, run_dir=folder, resume="auto")
load_weights(best_checkpoint(folder), model)

thresholds = mlabel.fit_thresholds(score_table(model, val).probabilities, val.targets, space=table.space)
scores = score_table(model, test).probabilities
result = mlabel.evaluate(scores, test.targets, thresholds, space=table.space)
print(result.table())
print(f"half right: {half_right(thresholds.decide(scores), test.targets.toarray()):.3f}")

# 6. A bundle holds weights, never code: who opens it hands in the parts that are their own.
mlabel.Tagger(model, thresholds).save(folder / "bundle")
tagger = mlabel.Tagger.load(
    folder / "bundle", backbone=MyBackbone(), head=CosineHead(MyBackbone.num_features, table.space)
)
for prediction in tagger.predict(test.paths[:3]):
    print(prediction.path, prediction.labels)
