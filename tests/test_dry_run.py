"""`--dry-run`: what a command would do and cost, and that nothing is written."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mlabel.cli import main
from mlabel.cli._plans import say_index
from mlabel.data import build_cache, plan_cache, plan_shards, read_shards, write_shards
from mlabel.labels import Group, LabelSpace
from mlabel.models import Classifier, count_kept_bytes, count_multiply_adds, create_model
from mlabel.recipes import Recipe, plan_run, run
from mlabel.recipes.run import read_table
from mlabel.training import TrainConfig, newest_checkpoint

SPACE = LabelSpace([Group("tags", ["red", "green", "blue"]), Group("kind", ["dark", "light"], exclusive=True)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,tags,part"]
    for number in range(50):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        tags = " ".join(name for name in ("red", "green", "blue") if rng.random() < 0.5)
        lines.append(f"{number}.png,{tags},{'val' if number % 5 == 0 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def recipe_of(data: Path, **train: object) -> Recipe:
    options = {"tags_column": "tags", "separator": " ", "partition_column": "part"}
    config = TrainConfig(**{"epochs": 3, "batch_size": 8, "precision": "fp32", "monitor": "loss", **train})
    file = str(data / "labels.csv")
    return Recipe("csv", file, reader_options=options, backbone="small_cnn", image_size=16, train=config)


def reader(data: Path) -> list[str]:
    words = ["--reader", "csv", "--data", str(data / "labels.csv")]
    for option in ("tags_column=tags", 'separator=" "', "partition_column=part"):
        words += ["--reader-option", option]
    return words


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    run(recipe_of(data, epochs=1), folder, say=lambda _: None, device="cpu")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def rows(printed: str) -> dict[str, str]:
    return {line[:10].strip(): line[10:] for line in printed.splitlines()}


# The plan of a training.


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_what_is_kept_is_what_a_real_pass_keeps(head: str) -> None:
    model = create_model("small_cnn", SPACE, head=head, image_size=24)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as flops:
        logits = model(torch.rand(6, 3, 24, 24))
    wanted = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert logits.requires_grad
    assert count_kept_bytes(model, 6) == wanted > 0
    assert count_multiply_adds(model) * 6 == flops.get_total_flops() // 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_the_figures_of_a_plan_are_those_of_the_run(data: Path, trained: Path) -> None:
    for optimizer, states in (("adam", 2), ("sgd", 1), ("adamw", 2)):
        plan = plan_run(recipe_of(data, optimizer=optimizer, ema=0.9, accumulate=2), "nowhere", device="cpu")
        learned = 4 * (plan.backbone_parameters + plan.head_parameters)
        assert plan.gradient_bytes == learned
        assert 0 <= plan.optimizer_bytes - states * learned < 1000, "and a step number for each parameter"
        assert plan.average_bytes >= learned
        assert plan.weights_bytes >= learned
        assert plan.memory_bytes == sum(
            (
                plan.weights_bytes,
                plan.gradient_bytes,
                plan.optimizer_bytes,
                plan.average_bytes,
                plan.activation_bytes or 0,
            )
        )
        assert (plan.steps_per_epoch, plan.steps) == (3, 9), "5 batches of 8, two of them a step, three epochs"
    plan = plan_run(recipe_of(data, epochs=1), "nowhere", device="cpu")
    assert plan.parts == {"train": 40, "val": 10}
    assert plan.steps == json.loads((trained / "log.jsonl").read_text().splitlines()[-1]).get("step", plan.steps)
    checkpoint = newest_checkpoint(trained)
    assert checkpoint is not None
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert plan.checkpoint_bytes == pytest.approx(size, rel=0.05)
    assert plan.step_seconds is not None
    assert plan.step_seconds > 0
    assert not Path("nowhere").exists()


def test_a_plan_says_what_it_leaves_out(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, patience=3, compile="default", progressive_resize=(8,), precision="bf16")
    text = plan_run(recipe, tmp_path / "r", device="cpu", seconds=0.0).text()
    for words in ("the median of 1 measured", "without torch.compile", "first size", "after 3 evaluations", "16 bits"):
        assert words in text


def test_training_is_planned_and_nothing_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(data)
    words = [*reader(data), "--backbone", "small_cnn", "--image-size", "16", "--batch-size", "8", "--epochs", "2"]
    written: list[str] = []
    active = True

    def hook(event: str, arguments: tuple) -> None:
        if not active:
            return
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(str(arguments[0]))
        elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect"):
            written.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    assert main(["train", *words, "--run", "r", "--dry-run"]) == 0
    active = False
    assert [path for path in written if "/dev/null" not in path] == []
    assert (contents(data), list(tmp_path.iterdir())) == (before, [])
    said = rows(capsys.readouterr().out)
    assert said["images"] == "train 40, val 10"
    assert said["labels"].startswith("3: 3 in tags (any of)")
    assert re.fullmatch(
        r"small_cnn 0\.\d+ M parameters, head linear 0\.00 M; 0\.\d+ G multiply-adds for an image of 16 x 16",
        said["network"],
    )
    assert said["training"].startswith("2 epochs of 5 steps = 10 steps of 8 images, adamw, on ")
    assert "the folder is not there yet" in said["written"]
    assert {"memory", "time", "disk"} <= set(said)


def test_a_plan_of_a_run_that_is_there(trained: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*reader(data), "--backbone", "small_cnn", "--image-size", "16", "--batch-size", "8", "--run", str(trained)]
    before = contents(trained)
    assert main(["train", *words, "--dry-run"]) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert main(["train", *words, "--dry-run", "--resume", "auto"]) == 0
    assert "it goes on from step-" in rows(capsys.readouterr().out)["written"]
    assert contents(trained) == before


def test_a_plan_is_made_by_one_process(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        plan_run(recipe_of(data), "r")


def test_a_network_that_needs_values_is_planned_without_its_counts(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        images = images.float()
        return self.head(self.features(images)) + 0 * float(images.sum())

    monkeypatch.setattr(Classifier, "forward", forward)
    plan = plan_run(recipe_of(data), tmp_path / "r", device="cpu", seconds=0.0)
    assert (plan.activation_bytes, plan.multiply_adds) == (None, None)
    assert "activations are not known" in plan.text()
    assert "multiply-adds are not known" in plan.text()


# The plans of commands that go over images once.


def test_a_cache_is_planned(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    to = tmp_path / "cache"
    words = ["cache", *reader(data), "--image-size", "32", "--augment", "crop", "--to", str(to)]
    assert main([*words, "--dry-run"]) == 0
    assert not to.exists()
    said = rows(capsys.readouterr().out)
    assert said["images"] == "50, of which 0 are in the cache and 50 would be decoded"
    assert said["written"].endswith("not there yet")
    assert main(words) == 0
    before = contents(to)
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["images"] == "50, of which 50 are in the cache and 0 would be decoded"
    assert contents(to) == before
    table = read_table(recipe_of(data))
    shape, _ = plan_cache(table, tmp_path / "other", image_size=32, augment="crop")
    assert shape == build_cache(table, tmp_path / "other", image_size=32, augment="crop").shape
    assert main([*words, "--image-size", "16", "--dry-run"]) == 2
    assert "holds a cache of" in capsys.readouterr().err


def test_shards_are_planned(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    to = tmp_path / "shards"
    words = ["shard", *reader(data), "--shard-mb", "0.04", "--to", str(to)]
    assert main([*words, "--dry-run"]) == 0
    assert not to.exists()
    said = rows(capsys.readouterr().out)
    table = read_table(recipe_of(data))
    made = write_shards(table, to, shard_bytes=int(0.04 * 2**20))
    assert said["images"] == "50, of which 0 are in 0 tars that are there, 50 to do"
    assert float(said["output"].split()[1]) == pytest.approx(made.num_bytes / 2**20, abs=0.06)
    assert int(said["output"].split(" in ")[1].split()[0]) == pytest.approx(len(made.names), abs=2)
    before = contents(to)
    assert main([*words, "--dry-run"]) == 0
    assert f"50 are in {len(made.names)} tars that are there, 0 to do" in capsys.readouterr().out
    assert contents(to) == before
    assert plan_shards(table, tmp_path / "none") == (0, 0)
    with pytest.raises(ValueError, match="holds shards of settings"):
        plan_shards(table, to, shard_bytes=99)
    assert len(read_shards(to)) == 50


@pytest.mark.parametrize(
    ("format", "more"),
    [("tsv", []), ("csv", ["--top", "2"]), ("jsonl", ["--min-score", "0"]), ("jsonl", []), ("parquet", [])],
)
def test_predictions_are_planned(
    trained: Path, data: Path, tmp_path: Path, format: str, more: list[str], capsys: pytest.CaptureFixture
) -> None:
    to = tmp_path / "predictions"
    words = ["predict", "--bundle", str(trained / "bundle"), str(data), "--format", format, *more, "--to", str(to)]
    assert main([*words, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    said = rows(capsys.readouterr().out)
    assert (said["images"], said["labels"]) == ("50", "3")
    assert main(words) == 0
    planned = float(re.search(r"([\d,.]+) bytes an image", said["output"])[1].replace(",", ""))
    assert planned * 50 == pytest.approx(to.stat().st_size, rel=0.3 if format != "parquet" else 1)
    capsys.readouterr()
    before = contents(tmp_path)
    assert main([*words, "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["written"].endswith("which is there, which is replaced")
    assert contents(tmp_path) == before


def test_parts_and_an_index_are_planned(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bundle = ["--bundle", str(trained / "bundle"), str(data)]
    words = ["predict", *bundle, "--part-size", "20", "--batch-size", "4", "--to", str(tmp_path / "parts")]
    assert main([*words, "--dry-run"]) == 0
    assert "3 parts of 20 images, of which 0 are done" in capsys.readouterr().out
    assert main([*words, "--worker", "1/3"]) == 0
    assert main([*words, "--dry-run"]) == 0
    assert "3 parts of 20 images, of which 1 are done" in capsys.readouterr().out
    to = tmp_path / "index"
    words = ["index", *bundle, "--with-features", "--to", str(to)]
    assert main([*words, "--dry-run"]) == 0
    assert not to.exists()
    said = rows(capsys.readouterr().out)
    assert said["images"] == "50"
    assert "3 scores and" in said["output"]
    assert main(words) == 0
    size = sum(path.stat().st_size for path in to.glob("*.bin"))
    assert float(said["output"].split()[2]) == pytest.approx(size / 2**20, abs=0.06)
    before = contents(to)
    assert main([*words, "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["written"].endswith("the index there is replaced")
    assert contents(to) == before
    file = tmp_path / "p.jsonl"
    assert main(["predict", *bundle, "--format", "jsonl", "--to", str(file)]) == 0
    capsys.readouterr()
    assert main(["index", "--predictions", str(file), "--to", str(tmp_path / "other"), "--dry-run"]) == 0
    assert rows(capsys.readouterr().out)["images"] == "50"
    assert not (tmp_path / "other").exists()


def test_the_size_of_an_index_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = argparse.Namespace(top=64, to=str(tmp_path / "index"))
    say_index(2**20, 100, 0, options, ["abcdefgh"] * 3)
    # 64 scores of 8 bytes, a name of 8, and where it ends, of 8; before they are sorted, 12 more a score.
    output = rows(capsys.readouterr().out)["output"]
    assert output == "at most 528.0 MiB, 64 scores for each image; while it is made, 1.27 GiB"
    say_index(2**20, 5, 256, options, ["abcdefgh"] * 3)
    assert "at most 1.05 GiB, 5 scores and 256 features" in rows(capsys.readouterr().out)["output"]
