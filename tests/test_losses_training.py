"""Losses in training: each by its name, told its epoch, resumed exactly, and accumulated as it says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mlabel.data import ImageTable
from mlabel.labels import Group, LabelSpace
from mlabel.losses import EXCLUSIVE_NAMES, NAMES, ForeignLoss, Loss, PerGroup, begin_epoch, create, splc
from mlabel.models import Classifier, create_model
from mlabel.training import TrainConfig, fit, save_checkpoint, train

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])
BASE: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.05, "precision": "fp32", "optimizer": "sgd"}


class Mean(nn.Module):
    """A backbone that sees mean colours."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def make_model() -> Classifier:
    torch.manual_seed(7)
    return create_model(Mean(), SPACE, image_size=4)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    targets = np.hstack([rng.random((12, 3)) < 0.4, np.eye(2)[rng.integers(0, 2, 12)]])
    targets[3, 3:] = 0  # of this one the kind is not known
    return ImageTable(paths=paths, targets=targets.astype(np.uint8), space=SPACE)


def correcting(start_epoch: int) -> Loss | PerGroup:
    return create("splc", space=SPACE, options={"tau": 0.3, "start_epoch": start_epoch})


def trained(loss: Any, table: ImageTable, **settings: Any) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return the weights that training leaves, and its history."""
    model = make_model()
    history = fit(model, loss, table, table, config=TrainConfig(**BASE | settings), progress="none")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), history


@pytest.mark.parametrize(("name", "exclusive"), list(zip(NAMES, itertools.cycle(EXCLUSIVE_NAMES))))
def test_training_lowers_every_loss(table: ImageTable, name: str, exclusive: str) -> None:
    loss = create(name, space=SPACE, targets=table.targets, unknown=table.unknown, exclusive_loss=exclusive)
    _, history = trained(loss, table, epochs=4, batch_size=12, schedule="constant")
    values = [entry["val_loss"] for entry in history]
    assert np.isfinite(values).all()
    if name != "splc":  # whose second epoch begins to correct
        assert values[-1] < values[0]


def test_every_loss_inside_another_is_told_the_epoch() -> None:
    class Own(nn.Module):
        epoch: int | None = None

        def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return logits.sum() * 0

        def begin_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    own = Own()
    loss = PerGroup(SPACE, {"tags": splc, "kind": own})
    begin_epoch(loss, 4)
    assert own.epoch == 4
    assert loss.losses[0].options == {"epoch": 4}
    begin_epoch(ForeignLoss(own), 5)
    assert own.epoch == 5
    begin_epoch(lambda logits, targets: 0, 1)  # does not want to know

    def of_a_user(logits: torch.Tensor, targets: torch.Tensor, *, epoch: int = 0) -> torch.Tensor:
        return logits * epoch

    mine = Loss(of_a_user)
    begin_epoch(mine, 3)
    assert mine(torch.ones(1, 2), torch.zeros(1, 2)) == 3


def test_the_correction_begins_with_its_epoch(table: ImageTable) -> None:
    never, first, second = (trained(correcting(start), table) for start in (9, 0, 1))
    assert second[1][0] == never[1][0]
    assert second[1][1] != never[1][1]
    assert first[1][0] != never[1][0]
    x, t = torch.full((1, 3), 2.0), torch.zeros(1, 3)
    loss = Loss(splc)
    values = []
    for epoch in (0, 1):
        loss.begin_epoch(epoch)
        values.append(loss(x, t).item())
        assert loss(x, t).item() == pytest.approx(splc(x, t, epoch=epoch).mean().item())
    assert values[1] < values[0]


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_training_corrects_as_if_it_had_not_stopped(table: ImageTable, tmp_path: Path, stop: int) -> None:
    wanted, wanted_history = trained(correcting(1), table)
    events = train(make_model(), correcting(1), table, table, config=TrainConfig(**BASE), run_dir=tmp_path)
    for event in events:
        if event.kind == "step" and event.step == stop:
            save_checkpoint(event.state, tmp_path, data={"train": table.fingerprint, "val": table.fingerprint})
            break
    events.close()
    model, loss = make_model(), correcting(1)
    history = fit(
        model, loss, table, table, config=TrainConfig(**BASE), run_dir=tmp_path, resume="auto", progress="none"
    )
    assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), wanted)
    assert history == wanted_history


@pytest.mark.parametrize("name", [name for name in NAMES if name != "two_way"])
def test_accumulated_batches_are_one(table: ImageTable, name: str) -> None:
    def make() -> Loss | PerGroup:
        return create(name, space=SPACE, targets=table.targets, exclusive_loss="seesaw")

    one, _ = trained(make(), table, batch_size=12)
    several, _ = trained(make(), table, accumulate=3)
    torch.testing.assert_close(several, one)
