"""Fine-tuning: what is frozen stays, what trains follows from the epoch, and resuming is exact with all of it."""

from __future__ import annotations

import copy
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
from mlabel.losses import create
from mlabel.models import Classifier, create_model
from mlabel.models.stages import count_trained, freeze, list_stages, stages_until, unfreeze
from mlabel.training import TrainConfig, fit, learning_rate, make_optimizer, newest_checkpoint, save_checkpoint, train

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])
BASE: dict[str, Any] = {"epochs": 4, "batch_size": 4, "lr": 0.01, "precision": "fp32"}
ALL: dict[str, Any] = {
    "freeze": "third",
    "unfreeze_epoch": 1,
    "unfreeze": "gradual",
    "layer_decay": 0.5,
    "head_lr": 0.03,
    "weight_decay_on": "weights",
    "batch_norm": "frozen",
    "weight_decay": 0.1,
}


class Four(nn.Module):
    """A user's backbone of four stages, the first and third with batch norm, the second with dropout."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.first = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Dropout(0.5))
        self.third = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.fourth = nn.Conv2d(6, 6, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.third(self.second(self.norm(self.first(images)) + self.token).relu()).relu()
        return self.fourth(maps).mean((2, 3))


def make_model() -> Classifier:
    torch.manual_seed(7)
    return create_model(Four(), SPACE, image_size=12)


def make_loss() -> nn.Module:
    return create("asymmetric", space=SPACE)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    targets = np.hstack([rng.random((10, 3)) < 0.4, np.eye(2)[rng.integers(0, 2, 10)]])
    return ImageTable(paths=paths, targets=targets.astype(np.uint8), space=SPACE)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("name", "number"),
    [("small_cnn", 4), ("resnet18", 5), ("vgg11", 9), ("efficientnet_b0", 9), ("swin_t", 8), ("vit_b_32", 13)],
)
def test_every_parameter_of_a_backbone_lies_in_one_stage(name: str, number: int) -> None:
    model = create_model(name, SPACE, image_size=32)
    stages = list_stages(model)
    assert len(stages) == number
    for parameter, _ in model.backbone.named_parameters():
        assert sum(stage.holds(parameter) for stage in stages) == 1, parameter


def test_stages_of_a_users_backbone() -> None:
    stages = list_stages(make_model())
    assert [stage.name for stage in stages] == ["first", "second", "third", "fourth"]
    assert stages[0].modules == ("first", "norm")
    assert stages[0].loose == ("token",)


def test_a_stage_is_found_by_its_own_name_or_that_of_what_holds_it() -> None:
    model = make_model()
    assert [stages_until(model, name) for name in ("first", "norm", "third", "fourth", "backbone")] == [1, 1, 3, 4, 4]
    vgg = create_model("vgg11", SPACE, image_size=32)
    assert stages_until(vgg, "features") == len(list_stages(vgg)) - 1
    with pytest.raises(ValueError, match="no stage 'layer3'; Known: backbone, first"):
        stages_until(model, "layer3")


@pytest.mark.parametrize("until", ["first", "second", "third", "fourth"])
def test_what_is_frozen_does_not_change_and_all_else_does(table: ImageTable, until: str) -> None:
    model = make_model()
    before = weights(model)
    history = fit(
        model, make_loss(), table, config=TrainConfig(**BASE | {"epochs": 1, "freeze": until}), progress="none"
    )
    assert len(history) == 1
    stages = list_stages(model)
    held = [name for name in before if any(s.holds(name[9:]) for s in stages[: stages_until(model, until)])]
    assert changed(before, model) == {name for name in before if name not in held}  # running statistics among them
    assert all(parameter.requires_grad for parameter in model.parameters()), "flags are put back"
    assert all(module.training for module in model.modules()), "and so are modes"


def test_a_frozen_backbone_gives_the_features_of_evaluation(table: ImageTable) -> None:
    config = TrainConfig(**BASE | {"freeze": "backbone"})
    model = make_model()
    images = torch.rand(4, 3, 12, 12)
    expected = copy.deepcopy(model).eval().features(images)
    for event in train(model, make_loss(), table, table, config=config):
        if event.kind == "step":
            assert model.training
            torch.testing.assert_close(model.features(images), expected)


def test_what_trains_follows_from_the_epoch(table: ImageTable) -> None:
    def trained(**settings: Any) -> list[int]:
        model = make_model()
        events = train(model, make_loss(), table, config=TrainConfig(**BASE | settings))
        steps = [event for event in events if event.kind == "step"]
        return [next(event.trained for event in steps if event.epoch == epoch) for epoch in range(4)]

    model = make_model()
    every = count_trained(model)
    sizes = [
        sum(p.numel() for name, p in model.backbone.named_parameters() if stage.holds(name))
        for stage in list_stages(model)
    ]
    head = every - sum(sizes)
    assert trained() == [every] * 4
    assert trained(freeze="backbone") == [head] * 4
    assert trained(freeze="second", unfreeze_epoch=2) == [every - sum(sizes[:2])] * 2 + [every] * 2
    gradual = [head, head + sizes[3], head + sum(sizes[2:]), head + sum(sizes[1:])]
    assert trained(freeze="backbone", unfreeze_epoch=1, unfreeze="gradual") == gradual


def test_scoring_between_steps_does_not_wake_what_is_frozen(table: ImageTable) -> None:
    model = make_model()
    before = weights(model)
    for event in train(model, make_loss(), table, config=TrainConfig(**BASE | {"freeze": "third", "epochs": 1})):
        if event.kind == "step":
            model.train()  # as `score_table` leaves it
    assert not [name for name in changed(before, model) if "running" in name]


def test_frozen_statistics_stay_and_their_scales_train(table: ImageTable) -> None:
    torch.manual_seed(7)
    model = create_model(Four(), SPACE, head="multi", image_size=12)
    before = weights(model)
    fit(model, make_loss(), table, config=TrainConfig(**BASE | {"batch_norm": "frozen"}), progress="none")
    different = changed(before, model)
    assert not [name for name in different if name.startswith("backbone.") and ("running" in name or "num_b" in name)]
    assert {"backbone.norm.weight", "backbone.norm.bias", "head.groups.0.0.running_mean"} <= different


def test_frozen_statistics_take_a_batch_of_one(table: ImageTable) -> None:
    config = TrainConfig(**BASE | {"batch_size": 1, "epochs": 1, "batch_norm": "frozen"})
    assert np.isfinite(fit(make_model(), make_loss(), table, config=config, progress="none")[0]["train_loss"])


def rates(model: Classifier, config: TrainConfig) -> dict[str, tuple[float, float]]:
    optimizer = make_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_groups_by_hand() -> None:
    model = make_model()
    got = rates(model, TrainConfig(lr=0.1, layer_decay=0.5, head_lr=0.2, weight_decay=0.3, weight_decay_on="weights"))
    assert got["backbone.fourth.weight"] == (0.5, 0.3)
    assert got["backbone.third.0.weight"] == (0.25, 0.3)
    assert got["backbone.third.0.bias"] == (0.25, 0.0)
    assert got["backbone.third.1.weight"] == (0.25, 0.0)
    assert got["backbone.second.0.weight"] == (0.125, 0.3)
    assert got["backbone.norm.bias"] == (0.0625, 0.0)
    assert got["head.linear.weight"] == (2.0, 0.3)
    assert got["head.linear.bias"] == (2.0, 0.0)
    assert got.keys() == dict(model.named_parameters()).keys()


def test_layer_norms_of_several_dimensions_are_not_shrunk() -> None:
    class Wide(Four):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((6, 5, 5))

    model = create_model(Wide(), SPACE, image_size=12)
    assert rates(model, TrainConfig(weight_decay_on="weights"))["backbone.norm.weight"][1] == 0.0


def test_the_default_is_one_group_and_what_never_trains_is_in_none() -> None:
    model = make_model()
    assert len(make_optimizer(model, TrainConfig()).param_groups) == 1
    never = rates(model, TrainConfig(freeze="third"))
    assert {name.split(".")[1] for name in never if name.startswith("backbone.")} == {"fourth"}
    later = rates(model, TrainConfig(freeze="third", unfreeze_epoch=2))
    assert later.keys() == dict(model.named_parameters()).keys()
    model.backbone.fourth.requires_grad_(False)
    assert not [name for name in rates(model, TrainConfig()) if "fourth" in name]


def test_a_step_takes_each_groups_learning_rate(table: ImageTable) -> None:
    """Of plain SGD a step is learning rate times gradient, so that steps of two configurations are in proportion."""
    moved = []
    for settings in ({}, {"layer_decay": 0.5, "head_lr": 0.2}):
        model = make_model()
        model.backbone.second[1].p = 0.0
        before = weights(model)
        config = TrainConfig(
            **BASE | {"lr": 0.1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"},
            **settings,
        )
        assert next(iter(train(model, make_loss(), table, config=config))).kind == "step"
        moved.append({name: before[name] - tensor for name, tensor in model.state_dict().items()})
    for name, factor in (("head.linear.weight", 2), ("backbone.fourth.weight", 0.5), ("backbone.second.0.bias", 0.125)):
        torch.testing.assert_close(moved[1][name], moved[0][name] * factor, rtol=1e-3, atol=1e-7)


def test_the_history_says_the_learning_rate_before_the_factors(table: ImageTable) -> None:
    config = TrainConfig(**BASE | ALL)
    history = fit(make_model(), make_loss(), table, config=config, progress="none")
    steps = -(-10 // 4)
    expected = [learning_rate(config, entry["step"] - 1, steps) for entry in history]
    assert [entry["lr"] for entry in history] == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [2, 4, 6, 7, 11])
def test_a_training_with_all_of_it_goes_on_bit_for_bit(
    table: ImageTable, tmp_path: Path, optimizer: str, stop: int
) -> None:
    config = TrainConfig(**BASE | ALL | {"optimizer": optimizer})
    whole = make_model()
    expected = fit(whole, make_loss(), table, table, config=config, progress="none")
    events = train(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path)
    for event in itertools.islice((e for e in events if e.kind == "step"), stop - 1, stop):
        save_checkpoint(event.state, tmp_path, data={"train": table.fingerprint, "val": table.fingerprint})
    events.close()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / f"step-{stop:08d}"
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    history = fit(model, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    assert not changed(weights(whole), model)
    assert history == expected


def test_going_on_with_another_freezing_is_refused(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"epochs": 1, "freeze": "first"})
    fit(make_model(), make_loss(), table, config=config, run_dir=tmp_path, progress="none")
    other = TrainConfig(**BASE | {"epochs": 1, "freeze": "second"})
    with pytest.raises(ValueError, match="freeze: 'first' saved, 'second' now"):
        fit(make_model(), make_loss(), table, config=other, run_dir=tmp_path, resume="auto", progress="none")


def test_the_bar_says_how_many_parameters_train(table: ImageTable, capsys: pytest.CaptureFixture) -> None:
    config = TrainConfig(**BASE | {"epochs": 2, "freeze": "backbone", "unfreeze_epoch": 1})
    fit(make_model(), make_loss(), table, config=config)
    said = capsys.readouterr().err
    assert said.count("training 35 of 359 parameters") == 1
    assert said.count("training 359 of 359 parameters") == 1
    fit(make_model(), make_loss(), table, config=config, progress="none")
    assert capsys.readouterr().err == ""


def test_freeze_and_unfreeze_of_ones_own() -> None:
    model = make_model()
    assert freeze(model, "third") == 42 + 35
    assert not model.backbone.norm.training
    assert model.backbone.fourth.training
    assert unfreeze(model) == 359
    assert model.backbone.norm.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze_epoch": 2}, "unfreeze_epoch needs freeze"),
        ({"freeze": "first", "unfreeze_epoch": 0}, "unfreeze_epoch must be a whole number of at least 1"),
        ({"unfreeze": "gradully"}, "did you mean 'gradual'"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"head_lr": -1.0}, "head_lr"),
        ({"weight_decay_on": "weight"}, "did you mean 'weights'"),
        ({"batch_norm": "freeze"}, "did you mean 'frozen'"),
    ],
)
def test_messages(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_an_unknown_stage_is_refused_before_training(table: ImageTable) -> None:
    config = TrainConfig(freeze="thrid", unfreeze_epoch=1)
    with pytest.raises(ValueError, match="did you mean 'third'"):
        train(make_model(), make_loss(), table, config=config)
