"""A model shared out over several processes trains as a whole one does, and its checkpoints are the same."""

from __future__ import annotations

import logging
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import end_of_ranks, on_ranks
from safetensors.torch import load_file
from test_training_distributed import (
    BASE,
    SPACE,
    STOPPED,
    Tiny,
    assert_near,
    assert_near_history,
    make_model,
    make_table,
    train_until_signal,
)
from torch import nn

from mlabel.data import Loader
from mlabel.losses import as_loss, create
from mlabel.models import Classifier, create_model
from mlabel.training import (
    TrainConfig,
    fit,
    gather_tensors,
    join_ranks,
    list_checkpoints,
    save_checkpoint,
    score_table,
    sharding,
    step,
    train,
)
from mlabel.training.distributed import Ranks
from mlabel.training.parts import is_part, part_like, put, whole

SHARDED = {"shard": "weights"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.9, "eval_every": 2},
    "accumulated": {"optimizer": "adamw", "clip_norm": 0.5, "accumulate": 3, "lr": 0.01, "memory_format": "contiguous"},
    "one row": {"batch_size": 1, "epochs": 1, "optimizer": "adamax", "lr": 1e-3},
    "averaged": {"ema": 0.9, "accumulate": 2, "batch_size": 3, "layer_decay": 0.5},
    "flat": {"sharpness": "gsam", "batch_size": 5, "clip_norm": 0.5},
    "frozen norms": {"batch_norm": "frozen", "batch_size": 3, "optimizer": "adadelta"},
    "norms": {"batch_size": 1, "epochs": 1},  # all images are the first rank's, and so are the statistics
    "resized": {"progressive_resize": (8,), "batch_size": 2},
}
LONG = BASE | {"optimizer": "adamw", "lr": 0.01, "ema": 0.8, "save_every": 2, "epochs": 3, "schedule": "constant"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    make_table(folder)
    return folder


def train_all_cases(folder: Path, shard: dict[str, str]) -> dict[str, Any]:
    return {name: train_case(folder, name, settings | shard) for name, settings in CASES.items()}


def train_case(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    model, table = make_model(norm="norms" in name, seed=7 + join_ranks("cpu").rank), make_table(folder, 23)
    loss = create("asymmetric", space=SPACE)
    history = fit(model, loss, table, table, config=TrainConfig(**BASE | settings), progress="none")
    scores = score_table(model, table, as_loss(loss, SPACE), precision="fp32", ranks=join_ranks("cpu"))
    return {"weights": dict(model.state_dict()), "history": history, "loss": scores.loss}


def go_on(folder: Path, run_dir: str | None, shard: dict[str, str], stop: int | None = None) -> dict[str, Any]:
    """Train, from the newest checkpoint of a run if there is one, to the end or until after step `stop`."""
    model, table = make_model(seed=7 if run_dir is None or stop else 9), make_table(folder, 23)
    events = train(
        model,
        create("asymmetric", space=SPACE),
        table,
        table,
        config=TrainConfig(**LONG | shard),
        run_dir=None if run_dir is None else folder / run_dir,
        resume=None if run_dir is None else "auto",
    )
    first = None
    for event in events:
        first = first or event.step
        if event.step == stop and event.kind == "step":
            break
    average, last = event.state.average, event.state.model.state_dict()
    assert average is not None
    with torch.no_grad():
        last = {name: whole(tensor).clone() for name, tensor in last.items()}
    events.close()
    with torch.no_grad():
        averages = {name: whole(tensor).clone() for name, tensor in average.tensors.items()}
    given = {"weights": dict(model.state_dict()), "last": last, "average": averages}
    return {**given, "history": event.state.history, "first": first}


def do_all(folder: Path) -> dict[str, Any]:
    """Do all of it at once: that a process starts costs more than what it then does."""
    sharding.SMALL_BYTES, sharding.UNIT_BYTES = 1, 100  # so that a tiny network has several units
    ranks = join_ranks("cpu")
    given: dict[str, Any] = {"cases": train_all_cases(folder, SHARDED), "parts": look_at_parts(folder)}
    given["stopped"] = go_on(folder, "sharded", SHARDED, stop=6)
    if ranks.first:
        shutil.copytree(folder / "sharded", folder / "sharded-again")
    ranks.wait()
    given["sharded"] = go_on(folder, "sharded-again", SHARDED)
    given["whole"] = go_on(folder, "whole", SHARDED)
    given["refused"] = refuse(folder)
    return given


def look_at_parts(folder: Path) -> dict[str, Any]:
    """Return how much of a model a rank has in training, and what becomes of steps that are not finite."""
    given: dict[str, Any] = {}
    model, table, steps = make_model(), make_table(folder, 23), []

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return logits.square() * (float("nan") if len(steps) == 3 and join_ranks("cpu").rank == 1 else 1.0)

    for event in train(model, broken, table, config=TrainConfig(**BASE | SHARDED | {"optimizer": "adamw"})):
        if event.kind == "step" and event.step == 2:
            held = event.state.model
            given["own"] = sum(part.to_local().numel() for part in held.parameters())
            given["state"] = sum(
                value.to_local().numel()
                for each in event.state.optimizer.state.values()
                for value in each.values()
                if is_part(value)
            )
            given["units"] = sorted(n for n, each in held.named_modules() if isinstance(each, sharding_class()))
            given["apart"] = held is not model
    given["skipped"] = event.state.skipped
    given["plain"] = not any(map(is_part, model.state_dict().values())) and model.training
    return given


def sharding_class() -> type:
    from torch.distributed.fsdp import FSDPModule

    return FSDPModule


def refuse(folder: Path) -> dict[str, Any]:
    """Return what is said to who saves a part alone, or goes on in fp16, and what is left after an error."""
    given: dict[str, Any] = {}
    table = make_table(folder, 5)
    loss, ranks = create("asymmetric", space=SPACE), join_ranks("cpu")
    events = train(make_model(), loss, table, config=TrainConfig(**BASE | SHARDED))
    event = next(events)
    with pytest.raises(ValueError, match="each process has only a part") as error:
        save_checkpoint(event.state, folder)
    given["saved"] = str(error.value)
    gathered = gather_tensors(event.state, ranks)
    assert (gathered is not None) == ranks.first
    events.close()
    model = make_model()
    with (
        pytest.raises(ZeroDivisionError),
        closing(train(model, loss, table, config=TrainConfig(**BASE | SHARDED))) as events,
    ):
        raise ZeroDivisionError(next(events).step)
    given["left"] = model.backbone.conv.weight.detach()  # as it was at the last evaluation, which there was none
    trained = sharding.TrainedModel(make_model(), TrainConfig(**SHARDED), ranks)
    with pytest.raises(ValueError, match="precision 'fp16'") as error:
        trained.check("fp16")
    given["fp16"] = str(error.value)
    return given


@pytest.fixture(scope="module")
def of_one(folder: Path) -> dict[str, Any]:
    """What one process does, which begins a run that the others then go on with."""
    go_on(folder, "whole", {}, stop=6)
    return {"cases": train_all_cases(folder, {}), "long": go_on(folder, None, {})}


@pytest.fixture(scope="module")
def of_two(of_one: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    return on_ranks(do_all, 2, folder)


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_model_trains_as_a_whole_one(of_one: dict[str, Any], of_two: list[dict[str, Any]], case: str) -> None:
    alone = of_one["cases"][case]
    for given in (each["cases"][case] for each in of_two):
        assert_near(given["weights"], alone["weights"])
        assert_near_history(given["history"], alone["history"])
        assert given["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert given["history"] == of_two[0]["cases"][case]["history"]
        for name, tensor in given["weights"].items():
            assert torch.equal(tensor, of_two[0]["cases"][case]["weights"][name]), name


def test_each_rank_has_a_part_only_and_the_given_model_stays_plain(of_two: list[dict[str, Any]]) -> None:
    size = sum(each.numel() for each in make_model().parameters())
    parts = [given["parts"] for given in of_two]
    assert sum(part["own"] for part in parts) == size
    assert max(part["own"] for part in parts) < 0.6 * size
    unused = sum(each.numel() for each in Tiny().unused.parameters())
    assert sum(part["state"] for part in parts) == 2 * (size - unused)
    for part in parts:
        assert part["units"] == ["", "backbone.conv", "head.linear"]
        assert part["apart"]
        assert part["plain"]
        assert part["skipped"] == 1


@pytest.mark.parametrize("way", ["sharded to sharded", "whole to sharded", "sharded to whole"])
def test_a_run_goes_on_with_and_without_sharding(
    folder: Path, of_one: dict[str, Any], of_two: list[dict[str, Any]], way: str
) -> None:
    key = {"sharded to sharded": "sharded", "whole to sharded": "whole"}.get(way)
    for given in [go_on(folder, "sharded", {})] if key is None else [each[key] for each in of_two]:
        assert given["first"] == 5
        assert_near(given["weights"], of_one["long"]["weights"])
        assert_near(given["average"], of_one["long"]["average"])
        assert_near_history(given["history"], of_one["long"]["history"])


def test_a_checkpoint_is_the_same_with_and_without_sharding(folder: Path, of_two: list[dict[str, Any]]) -> None:
    go_on(folder, "plain", {}, stop=99)
    sharded, plain = (folder / name / "checkpoints" / "step-00000012" for name in ("sharded-again", "plain"))
    assert sorted(each.name for each in sharded.iterdir()) == sorted(each.name for each in plain.iterdir())
    for name in ("model", "optimizer", "average"):
        assert_near(load_file(sharded / f"{name}.safetensors"), load_file(plain / f"{name}.safetensors"))


def test_who_stops_early_has_the_weights_of_that_moment(of_two: list[dict[str, Any]]) -> None:
    for given in (each["stopped"] for each in of_two):
        assert given["weights"].keys() == given["last"].keys()
        assert all(torch.equal(tensor, given["last"][name]) for name, tensor in given["weights"].items())


def test_after_an_error_of_one_process_nobody_waits_for_it(of_two: list[dict[str, Any]]) -> None:
    for given in of_two:
        assert torch.equal(given["refused"]["left"], make_model().backbone.conv.weight)


def test_saving_a_part_and_fp16_are_refused(of_two: list[dict[str, Any]]) -> None:
    for given in of_two:
        assert "gather_tensors(state, ranks)" in given["refused"]["saved"]
        assert "shard='weights' cannot go together with precision 'fp16'" in given["refused"]["fp16"]


@pytest.mark.parametrize(("setting", "value"), [("compile", "default"), ("freeze", "backbone"), ("precision", "fp16")])
def test_what_cannot_be_combined_is_refused_by_name(setting: str, value: str) -> None:
    with pytest.raises(
        ValueError, match=rf"shard='weights' cannot go together with {setting}='{value}'; use {setting}="
    ):
        TrainConfig(shard="weights", **{setting: value})


def test_a_process_alone_trains_the_whole_model_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, weights = BASE | {"epochs": 1}, []
    for shard in ({}, SHARDED):
        model = make_model()
        with caplog.at_level(logging.WARNING):
            table = make_table(folder, 9)
            loss = create("asymmetric", space=SPACE)
            fit(model, loss, table, config=TrainConfig(**settings | shard), progress="none")
        weights.append(model.state_dict())
    assert [record.message for record in caplog.records] == [
        "shard='weights': a process alone has nothing to share out, and trains the whole model"
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


class Nested(nn.Module):
    """A block, a layer that is called twice, two that share a weight, and one that is never called."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.twice = nn.Linear(4, 4)
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight
        self.unused = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.block(images.mean((2, 3)))
        return self.other(self.one(self.twice(self.twice(features))))


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        (1000, ["backbone.block", "head"]),
        (100, ["backbone.block.2", "head"]),
        (10, ["backbone.block.2", "head.linear"]),
    ],
)
def test_units_are_the_outermost_modules_that_are_called_once(
    monkeypatch: pytest.MonkeyPatch, limit: int, names: list[str]
) -> None:
    monkeypatch.setattr(sharding, "SMALL_BYTES", 70)
    monkeypatch.setattr(sharding, "UNIT_BYTES", limit)
    model: Classifier = create_model(Nested(), SPACE, image_size=8).train()
    units = sharding._list_units(model)
    assert [name for name, each in model.named_modules() if each in units] == names
    assert model.training
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_a_batch_without_images_weighs_nothing(folder: Path) -> None:
    table, loss = make_table(folder, 5), create("asymmetric", space=SPACE)
    events = train(make_model(norm=True), loss, table, config=TrainConfig(**BASE))
    state = next(events).state
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    batch = next(iter(Loader(table, batch_size=5, image_size=(12, 12)).epoch()))
    nothing = replace(batch, images=batch.images[:0])
    step._backward_of_nothing(state, nothing, "fp32", sharding.GradientsOfParts(Ranks()))
    gradients = {name: each.grad for name, each in state.model.named_parameters()}
    assert {name for name, each in gradients.items() if each is None} == {
        "backbone.unused.weight",
        "backbone.unused.bias",
    }
    assert all(not each.any() for each in gradients.values() if each is not None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    events.close()


def test_whole_tensors_stay_as_they_are() -> None:
    tensor, held = torch.arange(3.0), torch.zeros(3)
    assert whole(tensor) is tensor
    assert part_like(tensor, held) is tensor
    put(held, tensor)
    assert torch.equal(held, tensor)
    assert not is_part(tensor)
    gathered = sharding._gather({"a": {"b": tensor, "c": 2}}, Ranks())
    assert torch.equal(gathered["a"]["b"], tensor)
    assert gathered["a"]["c"] == 2
    assert sharding._gather({"a": tensor}, Ranks(rank=1, size=2)) == {"a": None}


@pytest.mark.slow
def test_a_sharded_training_that_is_killed_goes_on_whole(folder: Path) -> None:
    codes = end_of_ranks(train_until_signal, 2, folder, folder / "killed", {1: signal.SIGKILL}, SHARDED)
    assert codes == [3, -9]
    assert "--resume auto" in (folder / "killed" / "said-0").read_text()
    assert list_checkpoints(folder / "killed")[0].name == "step-00000004"
    weights = []
    for run_dir in (folder / "killed", None):
        model, table, resume = make_model(), make_table(folder, 23), "auto" if run_dir else None
        loss, config = create("asymmetric", space=SPACE), TrainConfig(**STOPPED)
        fit(model, loss, table, config=config, run_dir=run_dir, resume=resume, progress="none")
        weights.append(dict(model.state_dict()))
    assert_near(*weights)
