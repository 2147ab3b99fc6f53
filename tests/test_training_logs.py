"""What a run writes down: right after a kill, too, and telling of what is odd."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_cases import (
    BASE,
    assert_same,
    assert_same_history,
    make_loss,
    make_model,
    make_state,
    make_table,
    weights,
)

from mlabel.data import ImageTable
from mlabel.training import TrainConfig, fit, save_checkpoint, train


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in read]


def data_of(table: ImageTable) -> dict[str, str]:
    return {"train": table.fingerprint, "val": table.fingerprint}


def test_the_log_has_steps_and_evaluations(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"log_every": 4, "eval_every": 5, "schedule": "constant"})
    events = list(train(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path))
    losses = {event.step: event.loss for event in events if event.kind == "step"}
    steps = [line for line in lines(tmp_path) if line["kind"] == "step"]
    assert steps == [
        {"kind": "step", "step": step, "epoch": epoch, "loss": losses[step], "lr": 0.01}
        for step, epoch in ((4, 0), (8, 1), (12, 1))
    ]
    evaluations = [line for line in lines(tmp_path) if line["kind"] == "eval"]
    assert_same_history([{"kind": "eval", **entry} for entry in events[-1].state.history], evaluations)
    assert all(event.images == (2 if event.step % 6 == 0 else 4) for event in events if event.kind == "step")
    rates = [json.loads(line).get("images_per_second", 1) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("killed", [3, 4, 5, 6, 8])
def test_after_a_kill_the_log_is_that_of_an_unbroken_run(table: ImageTable, tmp_path: Path, killed: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = TrainConfig(**BASE | {"log_every": 1, "eval_every": 3, "monitor": "loss", "lr": 1e-9})
    fit(make_model(), make_loss(), table, table, config=config, run_dir=whole, progress="none")
    events = train(make_model(), make_loss(), table, table, config=config, run_dir=broken)
    for event in events:
        if event.kind == "step" and event.step == 3:
            save_checkpoint(event.state, broken, data=data_of(table))  # before the evaluation of this very step
        if event.kind == "step" and event.step == killed:
            break
    events.close()
    with open(broken / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "st')  # as a kill may leave it
    fit(make_model(), make_loss(), table, table, config=config, run_dir=broken, resume="auto", progress="none")
    assert lines(broken) == lines(whole)


def test_a_run_that_begins_anew_has_a_new_log(table: ImageTable, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "step": 1}\n')
    (tmp_path / "anomaly.json").write_text('{"step": 1}')
    config = TrainConfig(**BASE | {"epochs": 1, "log": "none"})
    fit(make_model(), make_loss(), table, config=config, run_dir=tmp_path, progress="none")
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "anomaly.json").exists()


# What is odd


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_the_first_bad_batch_is_recorded(table: ImageTable, tmp_path: Path, what: str) -> None:
    model = make_model()
    state: list[Any] = []

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        bad = what == "gradient" and state and state[0].step in (4, 5)
        return (logits - targets).square() + ((logits - logits).abs().sqrt() if bad else 0.0)

    config = TrainConfig(**BASE | {"epochs": 1, "optimizer": "sgd"})
    events = train(model, loss, table, config=config, run_dir=tmp_path)
    state.append(next(events).state)
    for event in events:
        if what == "weight" and event.step in (4, 5) and event.kind == "step":
            with torch.no_grad():
                model.head.linear.weight[0, 0] = math.nan if event.step == 4 else 0.0
    record = json.loads((tmp_path / "anomaly.json").read_text())
    assert (record["step"], record["epoch"], record["precision"]) == (5, 0, "fp32")
    order = [str(table.ids[row]) for row in _order(table)]
    assert record["ids"] == order[16:20]
    if what == "weight":
        assert record["parameters_not_finite"] == ["head.linear.weight"]
        assert record["loss"] is None
        assert record["parts"] == {"all": [None, record["parts"]["all"][1]]}
    else:
        assert record["parameters_not_finite"] == []
        assert "head.linear.weight" in record["gradients_not_finite"]
        assert record["loss"] > 0
    odd = [line["step"] for line in lines(tmp_path) if line.get("finite") is False]
    assert odd == ([5] if what == "weight" else [5, 6])  # odd steps are in the log whatever `log_every` says


def _order(table: ImageTable) -> list[int]:
    from mlabel.data import Loader

    loader = Loader(table, batch_size=4, image_size=12, sampler="shuffle", min_last=2)
    return [row for batch in loader.epoch(0) for row in batch.index.tolist()]


def test_a_record_of_after_the_checkpoint_is_dropped(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"epochs": 1, "save_every": 2})
    events = train(make_model(), make_loss(), table, config=config, run_dir=tmp_path)
    next(event for event in events if event.kind == "checkpoint")
    events.close()
    for step, kept in ((3, False), (2, True)):
        (tmp_path / "anomaly.json").write_text(json.dumps({"step": step}))
        again = train(make_model(), make_loss(), table, config=config, run_dir=tmp_path, resume="auto")
        next(again)
        again.close()
        assert (tmp_path / "anomaly.json").exists() == kept


def test_a_spike_by_hand() -> None:
    state = make_state(make_model())
    calm = [1.0, 1.1, 0.9, 1.0] * 5
    for loss in [50.0, *calm[1:]]:  # nothing stands out among few
        assert not state.is_spike(loss)
        state.step += 1
    assert not state.is_spike(1.99)  # ten deviations of a tenth away is 2, and twice the median, too
    state.step += 1
    assert state.is_spike(2.05)
    for _ in range(50):
        state.step += 1
        assert not state.is_spike(9.0)  # no news
    assert len(state.recent) == 50
    state.step += 1
    assert state.is_spike(99.0)


@given(st.lists(st.floats(0, 100), min_size=20, max_size=60), st.floats(1e-3, 1e3))
def test_a_spike_does_not_depend_on_the_scale_of_the_loss(losses: list[float], scale: float) -> None:
    one, other = make_state(make_model()), make_state(make_model())
    scale = 2.0 ** round(math.log2(scale))  # exact
    for loss in losses:
        assert one.is_spike(loss) == other.is_spike(loss * scale)
        one.step, other.step = one.step + 1, other.step + 1


def test_a_spike_is_warned_of_and_logged_and_remembered_over_a_resume(
    table: ImageTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(**BASE | {"epochs": 5, "save_every": 22, "lr": 1e-9, "log_every": 100})

    def run(stop: int | None, resume: str | None) -> None:
        model = make_model()
        events = train(model, make_loss(), table, config=config, run_dir=tmp_path, resume=resume)
        for event in events:
            if event.kind == "step" and event.step == 24:
                with torch.no_grad():
                    model.head.linear.bias.fill_(40.0)
            if event.step == stop:
                break
        events.close()

    run(23, None)
    with caplog.at_level(logging.WARNING):
        run(None, "auto")
    assert [line["step"] for line in lines(tmp_path) if line.get("spike")] == [25]
    assert caplog.text.count("stands out") == 1


# TensorBoard


def test_tensorboard_that_is_not_there_is_named(
    table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = TrainConfig(**BASE | {"log": "tensorboard"})
    with pytest.raises(ImportError, match=r"pip install mlabel\[tensorboard\]"):
        fit(make_model(), make_loss(), table, config=config, run_dir=tmp_path, progress="none")
    with pytest.raises(ValueError, match="unknown log 'json'"):
        TrainConfig(log="json")


def test_tensorboard_gets_the_same_figures(table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, int]] = []
    opened: list[tuple[str, int | None]] = []

    class Writer:
        def __init__(self, folder: str, *, purge_step: int | None) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, *given: Any) -> None:
            drawn.append(given)

        def close(self) -> None:
            opened.append(("closed", None))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    config = TrainConfig(**BASE | {"log": "tensorboard", "log_every": 1, "epochs": 1, "schedule": "constant"})
    history = fit(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    board = str(tmp_path / "tensorboard")
    assert opened == [(board, None), ("closed", None)]
    logged = [(line["loss"], line["step"]) for line in lines(tmp_path) if line["kind"] == "step"]
    assert [(value, step) for name, value, step in drawn if name == "train/loss"] == logged
    assert ("val/map", history[0]["val_map"], 6) in drawn
    longer = TrainConfig(**config.to_dict() | {"epochs": 2})
    fit(make_model(), make_loss(), table, table, config=longer, run_dir=tmp_path, resume="auto", progress="none")
    assert opened[2] == (board, 7)  # later steps of a run that was killed are hidden


def test_tensorboard_itself_reads_it(table: ImageTable, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrainConfig(**BASE | {"log": "tensorboard", "log_every": 2, "epochs": 1})
    fit(make_model(), make_loss(), table, table, config=config, run_dir=tmp_path, progress="none")
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [each.step for each in read.Scalars("train/loss")] == [2, 4, 6]
    assert [each.step for each in read.Scalars("val/map")] == [6]


# The line on the screen, and steering


def test_the_progress_line_has_what_a_person_wants_to_know(
    table: ImageTable, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(**BASE | {"monitor": "micro_f1"})
    history = fit(make_model(), make_loss(), table, table, config=config)
    shown = capsys.readouterr().err
    last = shown.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("epoch 2/2 ")
    assert "12/12 steps, 00:00 left, loss " in last
    assert f", micro_f1 {history[0]['val_micro_f1']:.4f}, " in last
    assert " images/s, " in last
    assert last.endswith(" GB")
    gigabytes = float(last.split()[-2])
    assert 0.1 <= gigabytes < 64


def test_a_learning_rate_that_was_changed_stays_changed(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**BASE | {"schedule": "constant"})

    def run(stop: int | None, run_dir: Path | None, resume: str | None) -> Any:
        model = make_model()
        events = train(model, make_loss(), table, table, config=config, run_dir=run_dir, resume=resume)
        for event in events:
            if event.kind == "step" and event.step == 3:
                event.state.lr_scale *= 0.1
            if event.kind == "step" and event.step == stop:
                save_checkpoint(event.state, tmp_path, data=data_of(table))
                break
        events.close()
        return model, event.state

    expected, whole = run(None, None, None)
    run(4, tmp_path, None)
    resumed, state = run(None, tmp_path, "auto")
    assert [entry["lr"] for entry in state.history] == pytest.approx([1e-3, 1e-3])
    assert_same_history(state.history, whole.history)
    assert_same(weights(resumed), weights(expected))
