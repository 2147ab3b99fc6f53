"""A small table, model and loss for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mlabel.data import Batch, ImageTable, Loader
from mlabel.labels import Group, LabelSpace
from mlabel.losses import BatchLoss, as_loss, create
from mlabel.models import Classifier, create_model
from mlabel.training import TrainConfig, fit, make_optimizer
from mlabel.training.ema import WeightAverage
from mlabel.training.state import TrainState

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])


class Tiny(nn.Module):
    """A user's backbone: one convolution, without batch statistics unless asked for."""

    num_features = 8

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.drop = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(images)).relu().mean((2, 3)))


def make_model(norm: bool = True) -> Classifier:
    torch.manual_seed(7)
    return create_model(Tiny(norm), SPACE, image_size=12)


def make_loss() -> nn.Module:
    return create("asymmetric", space=SPACE)


BASE: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "precision": "fp32"}


def make_table(folder: Path) -> ImageTable:
    """Return 22 images of noise, the kind of one of which is not known."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(22):
        path = folder / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    tags = rng.random((22, 3)) < 0.4
    kind = np.eye(2)[rng.integers(0, 2, 22)]
    kind[3] = 0  # of this one the kind is not known
    return ImageTable(paths=paths, targets=np.hstack([tags, kind]).astype(np.uint8), space=SPACE)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_same_history(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert json.dumps(first) == json.dumps(second)


def whole(table: ImageTable, config: TrainConfig) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    model = make_model()
    history = fit(model, make_loss(), table, table, config=config, progress="none")
    return weights(model), history


def make_state(model: Classifier, **settings: Any) -> TrainState:
    config = TrainConfig(**BASE | settings)
    average = None if config.ema is None else WeightAverage(model, config.ema)
    scaler = torch.amp.GradScaler("cpu", enabled=config.precision == "fp16")
    return TrainState(model, make_optimizer(model, config), scaler, config, average, config.precision)


def make_batch(table: ImageTable, rows: slice) -> Batch:
    return next(iter(Loader(table[rows], batch_size=len(table[rows]), image_size=12)))


def own_loss() -> BatchLoss:
    return as_loss(make_loss(), SPACE)
