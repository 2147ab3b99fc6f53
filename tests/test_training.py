"""Training: resuming is exact, a bad step changes nothing, checkpoints are whole or refused."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from training_cases import (
    BASE,
    SPACE,
    Tiny,
    assert_same,
    assert_same_history,
    make_batch,
    make_loss,
    make_model,
    make_state,
    make_table,
    own_loss,
    weights,
    whole,
)

from mlabel.data import ImageTable, Loader, mix_batch, repeat_factors, smooth_targets
from mlabel.labels import LabelSpace
from mlabel.losses import as_loss
from mlabel.models import create_model
from mlabel.training import (
    SCHEDULES,
    TrainConfig,
    best_checkpoint,
    fit,
    learning_rate,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    read_description,
    save_checkpoint,
    score_table,
    train,
    train_step,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


Finish = Callable[[TrainConfig], Path]


@pytest.fixture(scope="module")
def finished(table: ImageTable, tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """A function that gives the folder of a training that nobody stopped."""

    @functools.cache
    def finish(config: TrainConfig) -> Path:
        folder = tmp_path_factory.mktemp("finished")
        fit(make_model(), make_loss(), table, table, config=config, run_dir=folder, progress="none")
        return folder

    return finish


def contents(run_dir: Path) -> dict[str, bytes]:
    """Return the files of a run's newest checkpoint."""
    return {path.name: path.read_bytes() for path in list_checkpoints(run_dir)[0].iterdir()}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "warmup_steps": 3},
        {"optimizer": "sgd", "schedule": "step", "step_size": 1, "clip_norm": 0.5},
        {"optimizer": "adam", "accumulate": 2, "precision": "bf16"},
        {"optimizer": "sgd", "precision": "fp16", "ema": 0.9},
        {"optimizer": "adamax", "schedule": "plateau", "step_size": 1, "monitor": "loss"},
        {"optimizer": "adadelta", "schedule": "one_cycle", "eval_every": 2, "augment": "flip"},
        {
            "optimizer": "adamw",
            "sampler": "repeat_factor",
            "repeat_threshold": 0.9,
            "mix": "cutmix",
            "progressive_resize": (7,),
        },
        {"mix": "mixup", "label_smoothing": 0.1, "accumulate": 2, "optimizer": "sgd", "sharpness": "gsam", "ema": 0.9},
    ],
    ids=lambda settings: "-".join(settings[k] for k in ("optimizer", "precision", "sampler", "mix") if k in settings),
)
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 8])
def test_a_training_stopped_at_any_step_goes_on_as_if_it_had_not(
    table: ImageTable, tmp_path: Path, finished: Finish, settings: dict[str, Any], stop: int
) -> None:
    config = TrainConfig(**BASE | settings)
    expected = finished(config)
    events = train(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path)
    for event in events:
        if event.kind == "step" and event.step == stop:
            save_checkpoint(event.state, tmp_path, data={"train": table.fingerprint, "val": table.fingerprint})
            break
    else:
        pytest.skip("this training has fewer steps")
    events.close()
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)  # whatever the new process began with must not matter
    fit(model, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    # Byte for byte: weights, their average, optimiser, scaler, what plateaus and patience count, history.
    assert contents(tmp_path) == contents(expected)
    assert (tmp_path / "history.csv").read_text() == (expected / "history.csv").read_text()


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2)])
def test_the_number_of_workers_does_not_matter_before_or_after(
    table: ImageTable, tmp_path: Path, before: int, after: int
) -> None:
    settings = BASE | {"augment": "standard", "save_every": 2, "ema": 0.9, "mix": "mixup"}
    expected, expected_history = whole(table, TrainConfig(**settings))
    config = TrainConfig(**settings, num_workers=before)
    events = train(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path)
    assert next(event.step for event in events if event.kind == "checkpoint") == 2
    events.close()
    model = make_model()
    history = fit(
        model,
        make_loss(),
        table,
        table,
        config=TrainConfig(**settings, num_workers=after),
        run_dir=tmp_path,
        resume="auto",
        progress="none",
    )
    assert_same(weights(model), expected)
    assert_same_history(history, expected_history)


def test_repeats_mixing_and_smoothing_change_training_and_nothing_else(table: ImageTable) -> None:
    settings = BASE | {"epochs": 1, "monitor": "loss"}
    plain, _ = whole(table, TrainConfig(**settings))
    factors = repeat_factors(table.targets, unknown=table.unknown, threshold=0.9, scheme="instance_aware")
    more = int(factors.sum())
    assert more > 25
    for changed in ({"sampler": "instance_aware", "repeat_threshold": 0.9}, {"mix": "mixup"}, {"label_smoothing": 0.2}):
        events = list(train(make_model(), make_loss(), table, table, config=TrainConfig(**settings | changed)))
        steps = [event for event in events if event.kind == "step"]
        state = events[-1].state
        assert len(steps) == state.steps_per_epoch == (more // 4 + (more % 4 >= 2) if "sampler" in changed else 6)
        assert not torch.equal(state.model.backbone.conv.weight, plain["backbone.conv.weight"])
        # Validation is of the images and labels as they are.
        scores = score_table(state.model, table, own_loss(), batch_size=4, precision="fp32")
        assert state.history[-1]["val_loss"] == scores.loss


def test_a_step_trains_on_the_mixed_and_smoothed_batch(table: ImageTable) -> None:
    config = TrainConfig(**BASE | {"epochs": 2, "mix": "cutmix", "label_smoothing": 0.1, "seed": 3})
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = make_loss()

        def parts(self, logits: torch.Tensor, targets: Any, mask: Any = None) -> Any:
            seen.append((targets, mask, self.loss.denominators(targets, mask)["tags"]))
            return self.loss.parts(logits, targets, mask)

        def denominators(self, targets: Any, mask: Any = None) -> Any:
            return self.loss.denominators(targets, mask)

    fit(make_model(), Spy(), table, config=config, progress="none")
    loader = Loader(table, batch_size=4, image_size=12, sampler="shuffle", seed=3, min_last=2)
    batches = [(epoch, batch) for epoch in range(2) for batch in loader.epoch(epoch)]
    for (epoch, batch), (targets, mask, denominator) in zip(batches, seen, strict=True):
        mixed = mix_batch(batch, SPACE, mix="cutmix", seed=3, epoch=epoch)
        assert torch.equal(targets, smooth_targets(mixed.targets, SPACE, 0.1))
        assert mask is not None
        assert torch.equal(mask, mixed.mask)
        assert int(denominator) == int(mixed.mask[:, :3].sum())


def test_more_epochs_of_a_constant_schedule_are_the_same_training(table: ImageTable, tmp_path: Path) -> None:
    settings = BASE | {"schedule": "constant"}
    expected, _ = whole(table, TrainConfig(**settings | {"epochs": 3}))
    model = make_model()
    fit(model, make_loss(), table, table, config=TrainConfig(**settings), run_dir=tmp_path, progress="none")
    longer = TrainConfig(**settings | {"epochs": 3})
    fit(model, make_loss(), table, table, config=longer, run_dir=tmp_path, resume="auto", progress="none")
    assert_same(weights(model), expected)


def test_a_finished_training_is_not_trained_again(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE)
    first = make_model()
    history = fit(first, make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    second = make_model()
    again = fit(second, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    assert_same(weights(first), weights(second))
    assert_same_history(history, again)


def test_the_best_is_on_disk_and_the_last_in_the_model(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"epochs": 6, "lr": 3.0, "schedule": "constant", "monitor": "map"})
    model = make_model()
    history = fit(model, make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    best = max(history, key=lambda entry: entry["val_map"])
    assert best not in history[-2:], "the case must be one where the best is not among the newest"
    path = best_checkpoint(tmp_path)
    assert path is not None
    assert path.name == f"step-{best['step']:08d}"
    last = weights(model)
    load_weights(path, model)
    assert not all(torch.equal(last[name], tensor) for name, tensor in model.state_dict().items())
    scores = score_table(model, table, own_loss(), batch_size=4, precision="fp32")
    assert scores.loss == best["val_loss"]
    assert len(list_checkpoints(tmp_path)) == 3  # the two newest and the best


@pytest.mark.parametrize("monitor", ["loss", "map", "hamming_loss", "kind.accuracy", "micro_specificity"])
def test_the_best_is_by_the_metric_that_was_asked_for(table: ImageTable, tmp_path: Path, monitor: str) -> None:
    settings = {"epochs": 4, "lr": 1.0, "schedule": "constant", "monitor": monitor, "eval_every": 4}
    config = TrainConfig(**BASE | settings)
    history = fit(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    assert [entry["step"] for entry in history] == [4, 6, 8, 12, 16, 18, 20, 24]  # and at the end of each epoch of 6
    values = [entry[f"val_{monitor}"] for entry in history]
    best = min(values) if "loss" in monitor else max(values)
    path = best_checkpoint(tmp_path)
    assert path is not None
    assert path.name == f"step-{history[values.index(best)]['step']:08d}"


def test_patience_ends_training_and_stays_ended(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"epochs": 9, "lr": 1e-9, "patience": 2, "schedule": "constant"})
    history = fit(make_model(norm=False), make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    assert len(history) == 3  # the first is the best, two without improvement follow
    model = make_model(norm=False)
    again = fit(model, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    assert_same_history(history, again)


@pytest.mark.parametrize("stop", [None, 1, 3, 4])
def test_patience_ends_within_an_epoch_too(table: ImageTable, tmp_path: Path, stop: int | None) -> None:
    settings = {"epochs": 9, "lr": 1e-9, "patience": 1, "schedule": "constant", "eval_every": 2}
    config = TrainConfig(**BASE | settings)
    events = train(make_model(norm=False), make_loss(), table, table, config=config, run_dir=tmp_path)
    for event in events:
        if event.kind == "step" and event.step == stop:
            save_checkpoint(event.state, tmp_path, data={"train": table.fingerprint, "val": table.fingerprint})
            break
    events.close()
    model = make_model(norm=False)
    history = fit(model, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    assert [entry["step"] for entry in history] == [2, 4]
    described = read_description(list_checkpoints(tmp_path)[0])["counters"]
    assert (described["step"], described["epoch"], described["batch"], described["stopped"]) == (4, 0, 4, True)


def test_accumulation_equals_the_large_batch(table: ImageTable) -> None:
    # Unknown labels make the halves weigh differently, which a mean of means gets wrong.
    halves = [make_batch(table, slice(0, 5)), make_batch(table, slice(5, 14))]
    together = make_batch(table, slice(0, 14))
    assert halves[0].mask is not None
    results = []
    for batches in (halves, [together]):
        model = make_model(norm=False)
        model.backbone.drop.p = 0.0
        state = make_state(model, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0)
        result = train_step(state, own_loss(), batches, precision="fp32", learning_rate=1.0)
        results.append((result.loss, weights(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(tensor, results[1][1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.fault(35)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(table: ImageTable, where: str) -> None:
    model = make_model()
    state = make_state(model)
    loss = own_loss()
    train_step(state, loss, [make_batch(table, slice(0, 8))], precision="fp32", learning_rate=0.1)
    before, optimizer = weights(model), json.dumps(_plain(state.optimizer.state_dict()))

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # The square root's slope at 0 is infinite, though its value is 0.
        return logits * math.inf if where == "loss" else (logits - logits).abs().sqrt()

    batch = make_batch(table, slice(8, 16))
    result = train_step(state, as_loss(broken, SPACE), [batch], precision="fp32", learning_rate=0.1)
    assert not result.finite
    assert (state.skipped, state.skipped_in_a_row, state.step) == (1, 1, 2)
    assert_same(before, weights(model))  # batch-norm statistics among them
    assert json.dumps(_plain(state.optimizer.state_dict())) == optimizer


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items() if key != "lr"}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.fault(35)
def test_ten_bad_steps_in_a_row_stop_with_the_ids(table: ImageTable) -> None:
    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits * math.nan

    with pytest.raises(RuntimeError, match=r"10 steps in a row .* samples \['0\d\d'"):
        fit(
            make_model(),
            broken,
            table,
            config=TrainConfig(**BASE | {"epochs": 9}),
            progress="none",
        )


def test_learning_rates_by_hand() -> None:
    def rates(**settings: Any) -> list[float]:
        config = TrainConfig(**{"lr": 1.0, "epochs": 3, **settings})
        return [round(learning_rate(config, step, 2), 6) for step in range(6)]

    assert rates(schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(schedule="step", step_size=1) == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert rates(schedule="step", step_size=2, decay=0.5) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-6)
    assert rates(schedule="linear", warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates(schedule="one_cycle", warmup_steps=3)[:4] == pytest.approx([0.04, 0.52, 1.0, 0.75], abs=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "one_cycle"])
def test_learning_rates_are_torchs(name: str) -> None:
    config = TrainConfig(lr=0.3, schedule=name, epochs=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if name == "linear":
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=40)
    elif name == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    else:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=40, cycle_momentum=False)
    for step in range(40):
        assert learning_rate(config, step, 10) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        if step < 39:
            schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 40, 99])
def test_every_schedule_warms_up_and_stays_in_its_range(name: str, warmup: int) -> None:
    config = TrainConfig(lr=0.3, schedule=name, epochs=4, warmup_steps=warmup)
    rates = [learning_rate(config, step, 10) for step in range(60)]  # beyond its end, too
    assert all(0 <= rate <= 0.3 + 1e-12 for rate in rates)
    assert (max(rates) == pytest.approx(0.3, rel=0.05)) == (warmup <= 40)
    rise = rates[:warmup]
    assert rise == sorted(rise)
    if warmup > 1:
        assert rates[0] < 0.15


def test_a_plateau_lowers_the_rate(table: ImageTable) -> None:
    config = TrainConfig(**BASE | {"epochs": 5, "lr": 1e-9, "schedule": "plateau", "step_size": 2, "decay": 0.5})
    history = fit(make_model(norm=False), make_loss(), table, table, config=config, progress="none")
    assert [entry["lr"] for entry in history] == [1e-9, 1e-9, 1e-9, 0.5e-9, 0.5e-9]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    table: ImageTable, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fit(make_model(), make_loss(), table, table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")
    newest, older = list_checkpoints(tmp_path)[:2]
    content = bytearray((newest / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "cut":
        del content[-7:]
    (newest / name).write_bytes(content)
    if damage == "gone":
        (newest / name).unlink()
    assert newest_checkpoint(tmp_path) == older
    assert str(newest) in caplog.text
    assert "passed over" in caplog.text


def test_a_full_disk_leaves_the_checkpoint_before(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    fit(model, make_loss(), table, table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")
    before = list_checkpoints(tmp_path)
    state = make_state(model)
    state.step = 99

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlabel._files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(state, tmp_path)
    assert list_checkpoints(tmp_path) == before
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    assert newest_checkpoint(tmp_path) == before[0]


@pytest.mark.fault(19)
def test_what_does_not_fit_is_refused_with_the_differences(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE)

    def again(**changes: Any) -> None:
        given = {"model": make_model(), "table": table, "config": config, "resume": "auto"} | changes
        fit(
            given["model"],
            make_loss(),
            given["table"],
            given["table"],
            config=given["config"],
            run_dir=tmp_path,
            resume=given["resume"],
            allow_changed_data=given.get("allow", False),
            progress="none",
        )

    again()
    with pytest.raises(FileExistsError, match="already holds a training"):
        again(resume=None)
    with pytest.raises(ValueError, match=r"lr: 0\.01 saved, 0\.5 now"):
        again(config=TrainConfig(**BASE | {"lr": 0.5}))
    with pytest.raises(ValueError, match="data has changed"):
        again(table=table[:20])
    again(table=table[:20], allow=True)
    with pytest.raises(ValueError, match=r"another model \(image_size: \[12, 12\] saved, \[16, 16\] now"):
        again(model=create_model(Tiny(), SPACE, image_size=16))
    with pytest.raises(ValueError, match=r"another model: .*norm"):
        again(model=create_model(Tiny(norm=False), SPACE, image_size=12))


def test_the_second_training_in_a_folder_is_refused(table: ImageTable, tmp_path: Path) -> None:
    first = train(make_model(), make_loss(), table, config=TrainConfig(**BASE), run_dir=tmp_path)
    next(first)
    with pytest.raises(RuntimeError, match="another training is running"):
        fit(make_model(), make_loss(), table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")
    first.close()
    fit(make_model(), make_loss(), table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")


def test_a_run_folder_holds_what_the_design_says(table: ImageTable, tmp_path: Path) -> None:
    fit(make_model(), make_loss(), table, table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "labels.json", "history.csv", "checkpoints", "best"}
    assert LabelSpace.load(tmp_path / "labels.json") == SPACE
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch,step,lr,train_loss")
    assert json.loads((tmp_path / "config.json").read_text())["train"]["lr"] == 0.01


def test_a_checkpoint_of_the_same_step_that_says_more_takes_its_place(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(make_model())
    state.step = state.best_step = 3
    first = save_checkpoint(state, tmp_path)
    held = contents(tmp_path)
    (first / "manifest.json").touch()
    before = (first / "manifest.json").stat().st_mtime_ns
    save_checkpoint(state, tmp_path)
    assert (first / "manifest.json").stat().st_mtime_ns == before  # it says the same, and stays
    state.history = [{"step": 3, "val_map": math.nan}]
    rename = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if self.name.startswith(".tmp"):
            raise KeyboardInterrupt  # as a kill between the two renames; `_write` then clears up less, not more
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(state, tmp_path)
    # The one before is still found, as the newest and as the best.
    assert contents(tmp_path) == held
    assert newest_checkpoint(tmp_path) == best_checkpoint(tmp_path) == first.with_name(first.name + ".old")
    monkeypatch.setattr(Path, "rename", rename)
    assert save_checkpoint(state, tmp_path) == newest_checkpoint(tmp_path) == best_checkpoint(tmp_path) == first
    assert read_description(first)["counters"]["history"] == [{"step": 3, "val_map": None}]
    assert list_checkpoints(tmp_path) == [first]


def test_without_validation_nothing_is_the_best(table: ImageTable, tmp_path: Path) -> None:
    history = fit(make_model(), make_loss(), table, config=TrainConfig(**BASE), run_dir=tmp_path, progress="none")
    assert "val_loss" not in history[0]
    assert not (tmp_path / "best").exists()
    assert best_checkpoint(tmp_path) == newest_checkpoint(tmp_path)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training import *
folder = Path({folder!r})
paths = sorted(folder.glob("*.png"))
targets = np.load(folder / "targets.npy")
table = ImageTable(paths=paths, targets=targets, space=SPACE)
class Slow(Tiny):
    def forward(self, images):
        import time
        time.sleep(0.05)
        return super().forward(images)
torch.manual_seed(7)
model = create_model(Slow(True), SPACE, image_size=12)
print("ready", flush=True)
config = TrainConfig(**BASE | {{"epochs": 3}})
fit(model, make_loss(), table, table, config=config, run_dir=sys.argv[1], resume="auto", progress="none")
import safetensors.torch
end = {{name: tensor.contiguous() for name, tensor in model.state_dict().items()}}
safetensors.torch.save_file(end, sys.argv[1] + "/end.safetensors")
"""


def start(table: ImageTable, run_dir: Path) -> subprocess.Popen[str]:
    """Start SCRIPT in a process of its own, and wait until it is about to train."""
    folder = Path(str(table.paths[0])).parent
    np.save(folder / "targets.npy", table.targets.toarray())
    script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
    return process


def finish(process: subprocess.Popen[str], code: int = 0) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors


@pytest.fixture(scope="module")
def unbroken(table: ImageTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    finish(start(table, run_dir))
    return run_dir


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_process_resumes_to_the_same_weights(
    table: ImageTable, unbroken: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    stopped = start(table, tmp_path)
    while not list_checkpoints(tmp_path):
        assert stopped.poll() is None
        time.sleep(0.01)
    time.sleep(0.12)
    stopped.send_signal(number)
    finish(stopped, code)
    assert not (tmp_path / "end.safetensors").exists()
    finish(start(table, tmp_path))
    assert_same(*(safetensors.torch.load_file(run_dir / "end.safetensors") for run_dir in (unbroken, tmp_path)))
    assert (unbroken / "history.csv").read_text() == (tmp_path / "history.csv").read_text()


def test_an_unknown_monitor_is_refused_before_training(table: ImageTable) -> None:
    for name in ("loss", "micro_specificity", "kind.accuracy"):
        config = TrainConfig(**BASE | {"epochs": 1, "monitor": name})
        assert f"val_{name}" in fit(make_model(), make_loss(), table, table, config=config, progress="none")[0]
    config = TrainConfig(**BASE | {"monitor": "macro_f2"})
    with pytest.raises(ValueError, match="unknown monitor 'macro_f2'; did you mean 'macro_f1'"):
        train(make_model(), make_loss(), table, table, config=config)


def test_settings_are_checked() -> None:
    for name, value in [("epochs", 0), ("lr", 0.0), ("lr", math.inf), ("keep", 1), ("optimizer", "adma"), ("seed", -1)]:
        with pytest.raises(ValueError, match=name):
            TrainConfig(**{name: value})
    for name, value in [("mix_alpha", 0.0), ("label_smoothing", 1.5), ("repeat_threshold", 0.0), ("mix", "blend")]:
        with pytest.raises(ValueError, match=name):
            TrainConfig(**{name: value})
    with pytest.raises(ValueError, match="unknown sampler 'repeat'; did you mean 'repeat_factor'"):
        TrainConfig(sampler="repeat")
    with pytest.raises(ValueError, match="did you mean 'adam"):
        TrainConfig(optimizer="adamm")
    with pytest.raises(ValueError, match="unknown training setting 'learning_rate'"):
        TrainConfig.from_dict({"learning_rate": 1})
    config = TrainConfig(lr=0.3, clip_norm=1.0)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
