"""The state of a training by itself: what it counts, what it judges, and that it comes back from JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from training_cases import make_model, make_state

from mlabel._files import to_json
from mlabel.training.state import Event, TrainState

COUNTERS: dict[str, Any] = {
    "step": 7,
    "epoch": 2,
    "batch": 3,
    "skipped": 2,
    "skipped_in_a_row": 1,
    "lr_scale": 0.25,
    "best": 0.5,
    "best_step": 6,
    "stale": 4,
    "stopped": True,
    "precision": "bf16",
    "recent": [1.0, 2.0],
    "spiked_at": 5,
    "running": {"tags": [3.0, 4.0]},
}


def filled() -> TrainState:
    """Return a state in which no counter is as it begins."""
    state = make_state(make_model())
    for name, value in COUNTERS.items():
        setattr(state, name, value)
    state.history = [{"step": 6, "val_map": math.nan, "val_loss": 0.5, "note": None}, {"step": 7, "val_map": 0.25}]
    return state


def test_counters_are_json_and_come_back() -> None:
    values = json.loads(to_json(filled().counters()))
    assert values["history"][0]["val_map"] is None
    assert values == {**COUNTERS, "history": values["history"], "scaler": {}}
    state = make_state(make_model())
    state.restore_counters(values)
    assert {name: getattr(state, name) for name in COUNTERS} == COUNTERS
    assert math.isnan(state.history[0]["val_map"])
    assert state.history[1] == {"step": 7, "val_map": 0.25}
    assert json.loads(to_json(state.counters())) == values


def test_what_an_older_version_did_not_count_stays_as_it_begins() -> None:
    values = json.loads(to_json(filled().counters()))
    for name in ("recent", "spiked_at", "precision", "lr_scale", "running"):
        del values[name]
    state, fresh = make_state(make_model(), precision="bf16"), make_state(make_model(), precision="bf16")
    state.restore_counters(values)
    for name in ("recent", "spiked_at", "precision", "lr_scale", "running"):
        assert getattr(state, name) == getattr(fresh, name)
    assert state.step == 7


@pytest.mark.parametrize(("saved", "here"), [("fp16", "fp32"), ("fp16", "fp16"), ("bf16", "fp16"), ("fp32", "fp32")])
def test_the_scaler_is_that_of_the_precision_gone_on_in(saved: str, here: str) -> None:
    state = make_state(make_model(), precision=saved)
    if saved == "fp16":
        state.scaler.scale(torch.ones(()))  # it is made by its first use
        state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 512.0, "_growth_tracker": 3})
    values = json.loads(to_json(state.counters()))
    other = make_state(make_model(), precision=here)
    held = other.scaler
    other.restore_counters(values)
    assert other.precision == saved
    assert other.scaler.is_enabled() == (saved == "fp16")
    assert other.scaler.state_dict() == state.scaler.state_dict()
    assert (other.scaler is held) == ((saved == "fp16") == (here == "fp16"))
    assert other.scaler._device == "cpu"


@pytest.mark.parametrize(
    ("higher", "values", "best", "stale"),
    [
        (True, [0.1, 0.3, 0.3, 0.2, 0.4], [0.1, 0.3, 0.3, 0.3, 0.4], [0, 0, 1, 2, 0]),
        (False, [0.4, 0.2, 0.2, 0.3, 0.1], [0.4, 0.2, 0.2, 0.2, 0.1], [0, 0, 1, 2, 0]),
        (True, [math.nan, -1.0, math.nan, 0.0], [None, -1.0, -1.0, 0.0], [1, 0, 1, 0]),
        (False, [math.nan, 1.0, 0.0, -1.0], [None, 1.0, 0.0, -1.0], [1, 0, 0, 0]),
    ],
)
def test_judging_by_hand(higher: bool, values: list[float], best: list[float | None], stale: list[int]) -> None:
    state = make_state(make_model())
    best_step: int | None = None
    for value, expected, since in zip(values, best, stale, strict=True):
        state.step += 1
        improved = since == 0
        assert state.judge(value, higher_is_better=higher) is improved
        best_step = state.step if improved else best_step
        assert (state.best, state.best_step, state.stale) == (expected, best_step, since)
    assert not state.stopped
    assert state.lr_scale == 1.0  # of another schedule than the plateau's


def test_a_plateau_lowers_the_rate_each_time_it_has_lasted() -> None:
    state = make_state(make_model(), schedule="plateau", step_size=2, decay=0.5)
    scales = []
    for value in [1.0, *[0.0] * 5, 2.0, *[0.0] * 3]:
        state.judge(value, higher_is_better=True)
        scales.append(state.lr_scale)
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125, 0.125]


def test_patience_counts_evaluations_without_improvement() -> None:
    state = make_state(make_model(), patience=2)
    stopped = []
    for value in (1.0, 0.0, 2.0, 2.0, 1.0):
        state.judge(value, higher_is_better=True)
        stopped.append(state.stopped)
    assert stopped == [False, False, False, False, True]


def test_the_running_loss_is_the_sum_of_the_groups_means() -> None:
    state = make_state(make_model())
    assert math.isnan(state.train_loss)
    state.add_loss({"tags": (3.0, 2.0), "kind": (1.0, 0.0)})
    assert state.train_loss == 1.5 + 1.0
    state.add_loss({"tags": (5.0, 2.0), "kind": (0.5, 0.25)})
    assert state.running == {"tags": [8.0, 4.0], "kind": [1.5, 0.25]}
    assert state.train_loss == 2.0 + 1.5  # a denominator below one is a group without anything known, or nearly


def test_a_spike_is_told_from_the_steps_before_it() -> None:
    """Where all before are equal, it is what is more than twice as much; among fewer than twenty there is none."""
    for before, loss, expected in [(19, 9.0, False), (20, 2.0, False), (20, 2.125, True), (50, 2.125, True)]:
        state = make_state(make_model())
        state.recent = [1.0] * before
        assert state.is_spike(loss) is expected
        assert state.recent == ([1.0] * before + [loss])[-50:]
        assert state.spiked_at == (0 if expected else None)
        state.recent, state.spiked_at = [4.0] * before, None
        assert state.is_spike(4 * loss) is expected
    # Of those that scatter, what is further from their median, 4, than ten of their median deviations, 1.
    for loss, expected in [(14.0, False), (14.125, True)]:
        state = make_state(make_model())
        state.recent = [3.0, 5.0, 4.0, 4.0, 5.0, 3.0, 5.0] * 3
        assert state.is_spike(loss) is expected
    assert not state.is_spike(math.nan)


def test_of_spikes_in_a_row_the_first_is_news() -> None:
    state = make_state(make_model())
    news = []
    for step in (100, 101, 150, 151, 152, 202):
        state.recent, state.step = [1.0] * 50, step
        news.append(state.is_spike(99.0))
    assert news == [True, False, False, True, False, True]
    assert state.spiked_at == 202


def test_what_follows_from_the_counters_and_the_model() -> None:
    state = make_state(make_model())
    state.step, state.skipped = 9, 2
    assert state.updates == 7
    assert state.device == torch.device("cpu")
    state.optimizer.param_groups[0].update(lr=0.5, lr_scale=0.25)
    assert state.learning_rate == 2.0
    del state.optimizer.param_groups[0]["lr_scale"]
    assert state.learning_rate == 0.5
    whole = sum(parameter.numel() for parameter in state.model.parameters())
    assert state.trained == whole
    state.model.backbone.conv.bias.requires_grad_(False)
    assert state.trained == whole - 8


def test_an_event_says_where_the_training_is() -> None:
    state = filled()
    event = Event.of("step", state)
    assert (event.kind, event.epoch, event.step, event.trained) == ("step", 2, 7, state.trained)
    assert math.isnan(event.loss)
    assert (event.metrics, event.notes, event.images, event.seconds) == ({}, (), 0, 0.0)
    assert event.state is state
    given: dict[str, Any] = {"loss": 1.0, "metrics": {"a": 1}, "notes": ("n",), "images": 4, "seconds": 0.5}
    told = Event.of("eval", state, **given)
    assert {name: getattr(told, name) for name in given} == given
