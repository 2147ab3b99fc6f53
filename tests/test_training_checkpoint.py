"""Checkpoints by themselves: what lies in one, which is taken, what is refused and why."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from training_cases import (
    SPACE,
    Tiny,
    assert_same,
    make_batch,
    make_model,
    make_state,
    make_table,
    own_loss,
    weights,
)

from mlabel._checks import DataError
from mlabel.data import ImageTable
from mlabel.labels import Group, LabelSpace
from mlabel.models import Classifier, create_model
from mlabel.training import (
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    read_description,
    save_checkpoint,
    train_step,
)
from mlabel.training.checkpoint import mark_best, problems
from mlabel.training.state import TrainState

OPTIMIZERS = ["adam", "adamw", "sgd", "adamax", "adadelta"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


def trained(table: ImageTable, model: Classifier | None = None, **settings: Any) -> TrainState:
    """Return a state after a few steps."""
    state = make_state(model or make_model(), **settings)
    for start in (0, 8):
        batch = make_batch(table, slice(start, start + 8))
        train_step(state, own_loss(), [batch], precision=state.precision, learning_rate=0.1)
    return state


def at(step: int, **settings: Any) -> TrainState:
    """Return a state that has come to a step, though without having done it."""
    state = make_state(make_model(), **settings)
    state.step = step
    return state


def rewrite(checkpoint: Path, name: str, change: Any) -> None:
    """Change a JSON file of a checkpoint, and let the manifest say so."""
    held = json.loads((checkpoint / name).read_text())
    change(held)
    (checkpoint / name).write_text(json.dumps(held))
    if name != "manifest.json":
        sign(checkpoint)


def sign(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


# What lies in one


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_checkpoint_holds_what_its_manifest_says(table: ImageTable, tmp_path: Path, ema: float | None) -> None:
    state = trained(table, ema=ema)
    path = save_checkpoint(state, tmp_path, data={"train": "abc"})
    assert path == tmp_path / "checkpoints" / "step-00000002"
    files = {"model.safetensors", "optimizer.safetensors", "state.json"} | ({"average.safetensors"} if ema else set())
    assert {each.name for each in path.iterdir()} == files | {"manifest.json"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == "mlabel.checkpoint/1"
    assert set(manifest["files"]) == files
    for name, said in manifest["files"].items():
        content = (path / name).read_bytes()
        assert said == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    described = read_description(path)
    assert set(described) == {"format", "counters", "optimizer", "config", "model", "space", "data", "versions"}
    assert described["format"] == "mlabel.checkpoint/1"
    assert described["data"] == {"train": "abc"}
    assert described["versions"] == {"torch": torch.__version__}
    assert described["config"] == json.loads(json.dumps(state.config.to_dict()))
    assert described["model"] == json.loads(json.dumps(state.model.config))
    assert LabelSpace.from_dict(described["space"]) == SPACE
    assert described["counters"] == json.loads(json.dumps(state.counters()))
    assert_same(safetensors.torch.load_file(path / "model.safetensors"), weights(state.model))
    if state.average is not None:
        assert_same(safetensors.torch.load_file(path / "average.safetensors"), state.average.tensors)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_what_is_saved_comes_back_and_goes_on(
    table: ImageTable, tmp_path: Path, optimizer: str, layout: torch.memory_format
) -> None:
    settings = {"optimizer": optimizer, "ema": 0.5, "head_lr": 0.5}
    state = trained(table, make_model().to(memory_format=layout), **settings)
    path = save_checkpoint(state, tmp_path, data={"train": "abc"})
    again = trained(table, make_model().to(memory_format=layout), **settings)  # of which nothing may be left
    with torch.no_grad():
        for tensor in (*again.model.state_dict().values(), *again.average.tensors.values()):
            tensor.fill_(9)
    load_checkpoint(path, again, data={"train": "abc"})
    assert_same(weights(again.model), weights(state.model))
    assert_same(again.average.tensors, state.average.tensors)
    groups, expected = (
        [{name: value for name, value in group.items() if name != "params"} for group in each.optimizer.param_groups]
        for each in (again, state)
    )
    assert groups == expected
    assert all(isinstance(group.get("betas", ()), tuple) for group in groups)
    for parameter, held in again.optimizer.state.items():
        for value in held.values():
            assert not torch.is_tensor(value) or value.ndim == 0 or value.stride() == parameter.stride()
    for each in (state, again):
        batch = make_batch(table, slice(8, 16))
        train_step(each, own_loss(), [batch], precision="fp32", learning_rate=0.1)
    assert again.counters() == state.counters()
    assert_same(weights(again.model), weights(state.model))


def test_numbers_of_an_optimiser_are_kept_too(table: ImageTable, tmp_path: Path) -> None:
    states = [trained(table), trained(table)]
    for held in states[0].optimizer.state.values():
        held.update({"count": 3, "note": None, "a.b": torch.ones(2)})
    load_checkpoint(save_checkpoint(states[0], tmp_path), states[1])
    for held in states[1].optimizer.state.values():
        assert (held["count"], held["note"], held["a.b"].tolist()) == (3, None, [1, 1])


def test_which_kernel_computes_is_not_gone_on_with(table: ImageTable, tmp_path: Path) -> None:
    state, other = trained(table), trained(table)
    path = save_checkpoint(state, tmp_path)
    for group in other.optimizer.param_groups:
        group["fused"] = None
    load_checkpoint(path, other)
    assert [group["fused"] for group in other.optimizer.param_groups] == [None]


# Which is taken


def test_checkpoints_are_listed_newest_first_by_number(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None
    folder = tmp_path / "checkpoints"
    names = ["step-100000000", "step-99999999", "step-00000012", "step-00000012.old", "step-00000003.old"]
    for name in [*names[::-1], ".tmp-step-00000099", "step-123", "step-0000001x", "notes", "xstep-00000001"]:
        (folder / name).mkdir(parents=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == names


@pytest.mark.parametrize(("keep", "best", "left"), [(2, 1, [5, 4, 1]), (3, 4, [5, 4, 3]), (2, None, [5, 4])])
def test_older_ones_go_but_for_the_best(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    for step in range(1, 6):
        state = at(step, keep=keep)
        state.best_step = best if best is not None and best <= step else None
        save_checkpoint(state, tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{step:08d}" for step in left]
    assert (tmp_path / "best").exists() == (best is not None)


def test_the_best_is_marked_where_it_is_on_the_disk_and_once(tmp_path: Path) -> None:
    state = at(4)
    mark_best(state, tmp_path)  # nothing was judged
    assert not (tmp_path / "best").exists()
    save_checkpoint(state, tmp_path)
    state.best_step = 3
    mark_best(state, tmp_path)  # it was best, and was not saved
    assert not (tmp_path / "best").exists()
    state.best_step = 4
    mark_best(state, tmp_path)
    assert (tmp_path / "best").read_text() == "step-00000004\n"
    before = (tmp_path / "best").stat().st_ino
    mark_best(state, tmp_path)
    assert (tmp_path / "best").stat().st_ino == before
    (tmp_path / "best").write_text("step-00000003\n")
    mark_best(state, tmp_path)
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000004"


def test_a_pointer_to_the_best_that_cannot_be_followed_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(at(step), tmp_path)
    pointer = tmp_path / "best"
    for content in ("../../etc", "step-1", "step-00000001/..", ""):
        pointer.write_text(content)
        with pytest.raises(DataError, match=r"best: the name of a checkpoint was wanted; got '"):
            best_checkpoint(tmp_path)
    pointer.write_text("y" * 500)
    with pytest.raises(DataError, match=f"got '{'y' * 80}'$"):
        best_checkpoint(tmp_path)
    pointer.write_text("step-00000007\n")
    with pytest.raises(DataError, match=r"step-00000007: FileNotFoundError: .*manifest\.json"):
        best_checkpoint(tmp_path)
    pointer.write_text(" step-00000001 \n")
    older = tmp_path / "checkpoints" / "step-00000001"
    assert best_checkpoint(tmp_path) == older
    (older / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"step-00000001: state\.json is not what was written"):
        best_checkpoint(tmp_path)
    pointer.unlink()
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000002"


def test_the_best_is_found_while_another_takes_its_place(tmp_path: Path) -> None:
    state = at(1)
    state.best_step = 1
    path = save_checkpoint(state, tmp_path)
    old = path.rename(path.with_name("step-00000001.old"))
    assert best_checkpoint(tmp_path) == newest_checkpoint(tmp_path) == old
    assert save_checkpoint(state, tmp_path) == best_checkpoint(tmp_path) == path
    (old / "half").mkdir(parents=True)
    assert best_checkpoint(tmp_path) == newest_checkpoint(tmp_path) == path


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_checkpoint(at(1), tmp_path)
    manifest = path / "manifest.json"
    sound = manifest.read_text()
    assert problems(str(path)) is None

    def said(change: Any) -> str:
        manifest.write_text(sound)
        rewrite(path, "manifest.json", change)
        return str(problems(path))

    def rename(held: dict[str, Any]) -> None:
        held["files"]["other"] = held["files"].pop("state.json")

    def grow(held: dict[str, Any]) -> None:
        held["files"]["state.json"]["size"] += 1

    assert said(lambda held: held.update(format="x/2")) == (
        "its format is 'x/2', and this version reads 'mlabel.checkpoint/1'"
    )
    assert said(rename) == (
        "manifest.json names ['model.safetensors', 'optimizer.safetensors', 'other']; "
        "['model.safetensors', 'optimizer.safetensors', 'state.json'] were wanted"
    )
    assert said(grow) == "state.json is not what was written (size or SHA-256 differ)"
    assert said(lambda held: held.pop("files")) == "KeyError: 'files'"
    assert said(lambda held: held["files"].update({"average.safetensors": {}})).startswith("FileNotFoundError: ")
    manifest.write_text("[]")
    assert str(problems(path)).startswith("TypeError: ")
    manifest.write_text("{")
    assert "not JSON" in str(problems(path))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) is None
    (said_of_it,) = caplog.records
    assert said_of_it.getMessage() == f"{path} is passed over: {problems(path)}"
    assert str(problems(path)).startswith(f"DataError: {manifest}: not JSON")
    for refuse in (
        read_description,
        lambda path: load_weights(path, make_model()),
        lambda p: load_checkpoint(p, at(1)),
    ):
        with pytest.raises(DataError, match=r"step-00000001: DataError: .*not JSON"):
            refuse(path)


def test_what_is_signed_and_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(at(1), tmp_path)
    (path / "model.safetensors").write_bytes(b"nothing of the kind")
    sign(path)
    with pytest.raises(DataError, match=r"model\.safetensors: not a safetensors file"):
        load_weights(path, make_model())


# Saving


def test_saving_twice_keeps_the_first_unless_it_says_more(tmp_path: Path) -> None:
    state = at(3)
    path = save_checkpoint(state, tmp_path)
    held = (path / "manifest.json").stat().st_ino
    assert save_checkpoint(state, str(tmp_path)) == path
    assert (path / "manifest.json").stat().st_ino == held
    state.history = [{"step": 3, "val_map": math.nan}]
    assert save_checkpoint(state, tmp_path) == path
    assert (path / "manifest.json").stat().st_ino != held
    held = (path / "manifest.json").stat().st_ino
    (path / "optimizer.safetensors").write_bytes(b"")
    assert save_checkpoint(state, tmp_path) == path  # one that is damaged is written anew
    assert problems(path) is None
    assert (path / "manifest.json").stat().st_ino != held
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == [path.name]


def test_a_rename_that_fails_puts_the_one_before_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = at(3)
    path = save_checkpoint(state, tmp_path)
    state.history = [{"step": 3, "val_map": 0.5}]
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(PermissionError):
            save_checkpoint(state, tmp_path)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == [path.name]
    assert read_description(path)["counters"]["history"] == []


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in (".tmp-step-00000001", ".tmp-step-00000003", "step-00000003.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"half")
    state = at(3)
    save_checkpoint(state, tmp_path)
    assert [each.name for each in folder.iterdir()] == ["step-00000003"]
    (folder / "step-00000003.old" / "half").mkdir(parents=True)
    state.history = [{"step": 3}]
    save_checkpoint(state, tmp_path)
    assert [each.name for each in folder.iterdir()] == ["step-00000003"]
    assert newest_checkpoint(tmp_path) == folder / "step-00000003"


def test_where_the_folder_vanishes_the_error_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def fail(path: Path, content: bytes) -> None:
        shutil.rmtree(run_dir)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlabel.training.checkpoint.write_synced", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(at(1), run_dir)


def test_a_run_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(at(1), tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_parts_of_a_model_are_not_saved_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlabel.training.checkpoint.is_part", lambda tensor: tensor.ndim == 1)
    with pytest.raises(ValueError, match=r"only a part of this model \(shard='weights'\); call gather_tensors"):
        save_checkpoint(at(1), tmp_path)
    assert list(tmp_path.iterdir()) == []


# What does not fit


@pytest.mark.parametrize("ema", [None, 0.5])
def test_weights_are_those_judged_or_the_last(table: ImageTable, tmp_path: Path, ema: float | None) -> None:
    state = trained(table, ema=ema)
    path = save_checkpoint(state, tmp_path)
    for chosen in ("judged", "last", None):
        model = make_model()
        load_weights(path, model, **({} if chosen is None else {"weights": chosen}))
        average = state.average is not None and chosen != "last"
        assert_same(weights(model), state.average.tensors if average else weights(state.model))


def test_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = save_checkpoint(at(1), tmp_path)
    other = create_model(Tiny(norm=False), SPACE, image_size=12)
    before = weights(other)
    with pytest.raises(ValueError, match=r"step-00000001 holds another model: backbone\.norm\.\w+ is not in the model"):
        load_weights(path, other)
    with pytest.raises(ValueError, match=r"backbone\.norm\.\w+ is not in the model; backbone\.norm\.\w+ is not"):
        load_weights(path, other)
    assert_same(before, weights(other))

    class Wide(Tiny):
        def __init__(self, more: int) -> None:
            super().__init__(norm=True)
            self.more = torch.nn.ParameterList([torch.zeros(1) for _ in range(more)])

    for more, said in ((8, r"backbone\.more\.7 is missing$"), (10, r"backbone\.more\.7 is missing, and 2 more$")):
        with pytest.raises(ValueError, match=said):
            load_weights(path, create_model(Wide(more), SPACE, image_size=12))


def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(table: ImageTable, tmp_path: Path) -> None:
    state = trained(table, ema=0.5)
    path = save_checkpoint(state, tmp_path, data={"train": "abc", "val": "def"})
    given = {"train": "abc", "val": "def"}

    def refused(other: TrainState, message: str, data: dict[str, str] | None = None, **options: Any) -> None:
        before = weights(other.model), json.dumps(other.counters())
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, other, data=given if data is None else data, **options)
        assert_same(before[0], weights(other.model))
        assert json.dumps(other.counters()) == before[1]

    fresh = make_state(make_model(), ema=0.5)
    space = LabelSpace([Group("tags", ["a", "b", "d"]), Group("kind", ["x", "y"], exclusive=True)])
    refused(make_state(create_model(Tiny(True), space, image_size=12), ema=0.5), str(path))
    refused(make_state(make_model(), ema=0.25), r"other settings \(ema: 0\.5 saved, 0\.25 now\)")
    refused(
        make_state(create_model(Tiny(True), SPACE, image_size=16, mean=0.5), ema=0.5),
        r"step-00000002 holds another model \(image_size: \[12, 12\] saved, \[16, 16\] now; mean: .* saved, .* now\)",
    )
    refused(make_state(create_model(Tiny(False), SPACE, image_size=12), ema=0.5), "holds another model: backbone.norm")
    for data, message in (
        ({"train": "abc", "val": "xyz"}, r"\(fingerprints of val: def saved, xyz now\)"),
        ({"train": "abc"}, r"\(fingerprints of val: def saved, None now\)"),
        ({}, r"\(fingerprints of train: abc saved, None now; val: def saved, None now\)"),
        (given | {"test": "ghi"}, r"\(fingerprints of test: None saved, ghi now\)"),
    ):
        refused(fresh, message, data)
    with pytest.raises(ValueError, match="the data has changed"):
        load_checkpoint(path, fresh)
    load_checkpoint(path, fresh, data={}, allow_changed_data=True)
    assert fresh.step == state.step


def test_an_optimiser_of_other_groups_is_refused(table: ImageTable, tmp_path: Path) -> None:
    path = save_checkpoint(trained(table), tmp_path)
    for number in (1, 2):
        other = make_state(make_model())
        group = other.optimizer.param_groups[0]
        moved = [group["params"].pop() for _ in range(number)]
        if number == 1:
            other.optimizer.add_param_group({"params": moved})
        before = weights(other.model)
        with pytest.raises(ValueError, match=r"other parameter groups; \[\d(, 1)?\] parameters were wanted"):
            load_checkpoint(path, other)
        assert_same(before, weights(other.model))
        assert other.step == 0


def test_the_settings_that_may_change_may(table: ImageTable, tmp_path: Path) -> None:
    state = trained(table)
    path = save_checkpoint(state, tmp_path)
    other = make_state(make_model())
    other.config = replace(other.config, num_workers=3, keep=5)
    load_checkpoint(path, other)
    assert other.config.keep == 5
    assert other.step == 2
