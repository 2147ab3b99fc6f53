"""The one mutable thing of training: exactly what a checkpoint saves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mlabel.models import Classifier
from mlabel.models.stages import count_trained
from mlabel.training.config import TrainConfig
from mlabel.training.ema import WeightAverage

# The counters of a TrainState, which a checkpoint keeps as JSON.
_COUNTERS = (
    "step",
    "epoch",
    "batch",
    "skipped",
    "skipped_in_a_row",
    "lr_scale",
    "best",
    "best_step",
    "stale",
    "stopped",
    "precision",
    "recent",
    "spiked_at",
)


@dataclass
class TrainState:
    """Where a training is.

    Attributes:
        model: The model in training.
        optimizer: Its optimiser.
        scaler: The loss scaler of fp16; switched off in other precisions.
        config: The settings.
        precision: In which it computes: fp32, bf16 or fp16; what `auto` stands for where the training began.
        network: What computes the logits in training, such as compiled code; None: the model. It is not saved.
        average: The average of the weights, which is judged in their place; None without `config.ema`.
        steps_per_epoch: Optimiser steps of one epoch; not saved, for it follows from table and settings.
        step: Optimiser steps tried, counting those that were skipped.
        epoch: Epochs finished.
        batch: Batches used of the epoch under way.
        skipped: Steps that changed nothing because the loss or a gradient was not finite.
        skipped_in_a_row: The last of them, uninterrupted.
        lr_scale: A factor on the learning rate: the plateau's, and yours to change.
        best: The best value of the monitored metric so far, or None.
        best_step: The step that had it, or None.
        stale: Evaluations since then.
        stopped: Whether training ended by `patience`.
        running: Group name to [sum, denominator] of the training loss since the last evaluation.
        recent: The losses of the last steps, against which a loss is seen to stand out.
        spiked_at: The last step whose loss stood out and was warned of, or None.
        history: One dictionary an evaluation.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, make_optimizer
        >>> space, config = LabelSpace([Group("tags", ["cat"])]), TrainConfig()
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> state = TrainState(model, make_optimizer(model, config), torch.amp.GradScaler("cpu", enabled=False), config)
        >>> state.step, state.best, state.judge(0.5, higher_is_better=True), state.best
        (0, None, True, 0.5)
    """

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: TrainConfig
    average: WeightAverage | None = None
    precision: str = "fp32"
    network: Callable[[torch.Tensor], torch.Tensor] | None = None
    steps_per_epoch: int = 0
    step: int = 0
    epoch: int = 0
    batch: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    lr_scale: float = 1.0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped: bool = False
    running: dict[str, list[float]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    spiked_at: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    @property
    def updates(self) -> int:
        """How many steps changed the weights."""
        return self.step - self.skipped

    @property
    def train_loss(self) -> float:
        """The mean training loss since the last evaluation; NaN before the first step."""
        terms = [total / max(denominator, 1.0) for total, denominator in self.running.values()]
        return float(sum(terms)) if terms else math.nan

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, before the factors of stages and head."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))

    @property
    def trained(self) -> int:
        """How many numbers of the model are being trained."""
        return count_trained(self.model)

    def add_loss(self, parts: dict[str, tuple[float, float]]) -> None:
        """Add a step's loss, `parts` as sums and denominators of each group, to the running one."""
        for group, (total, denominator) in parts.items():
            held = self.running.setdefault(group, [0.0, 0.0])
            held[0] += total
            held[1] += denominator

    def is_spike(self, loss: float) -> bool:
        """Take the `loss` of a step, and return whether it stands out among those before it, and is the first to do so.

        It stands out where it is more than twice their median and further from it than ten times the median deviation.
        Of the steps that follow a spike, as many as are remembered are no news.
        """
        remembered, enough, far = 50, 20, 10.0
        middle = statistics.median(self.recent) if len(self.recent) >= enough else math.inf
        deviation = statistics.median(abs(each - middle) for each in self.recent) if self.recent else 0.0
        self.recent = [*self.recent, loss][-remembered:]
        if not loss > max(2 * middle, middle + far * deviation):
            return False
        news = self.spiked_at is None or self.step - self.spiked_at > remembered
        self.spiked_at = self.step if news else self.spiked_at
        return news

    def judge(self, value: float, *, higher_is_better: bool) -> bool:
        """Take the monitored metric `value` of an evaluation, and return whether it is the best so far.

        A value that is not a number is never the best. On a plateau the learning rate is lowered.

        Args:
            value: The metric.
            higher_is_better: What is best; False of a loss.
        """
        sign = 1 if higher_is_better else -1
        improved = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        if improved:
            self.best, self.best_step, self.stale = value, self.step, 0
            return True
        self.stale += 1
        if self.config.schedule == "plateau" and self.stale % self.config.step_size == 0:
            self.lr_scale *= self.config.decay
        if self.config.patience is not None and self.stale >= self.config.patience:
            self.stopped = True
        return False

    def counters(self) -> dict[str, Any]:
        """Return all but the model, the optimiser and the settings, as plain values for JSON."""
        history = [{name: _number_or_none(value) for name, value in row.items()} for row in self.history]
        values = {name: getattr(self, name) for name in (*_COUNTERS, "running")}
        return {**values, "history": history, "scaler": self.scaler.state_dict()}

    def restore_counters(self, values: dict[str, Any]) -> None:
        """Set `values`, what `counters` returned."""
        for name in (*_COUNTERS, "running"):
            # What an older version did not count stays as it begins.
            setattr(self, name, values.get(name, getattr(self, name)))
        self.history = [
            {name: math.nan if value is None else value for name, value in row.items()} for row in values["history"]
        ]
        if self.scaler.is_enabled() != (self.precision == "fp16"):  # another machine chose what `auto` stands for
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.scaler.load_state_dict(values["scaler"])


@dataclass(frozen=True)
class Event:
    """What just happened in a training.

    Attributes:
        kind: `step`, `eval`, `checkpoint` or `end`.
        epoch: Epochs finished.
        step: Optimiser steps tried.
        loss: Of the step, or the mean training loss since the evaluation before; NaN where there was none.
        metrics: The new history entry of an `eval`; empty otherwise.
        state: The training itself, to look at or to steer, such as by `state.lr_scale`.
        images: Of a `step`, how many images it had.
        seconds: Of a `step`, how long it took, waiting for its images included.
        trained: How many numbers of the model are being trained; fewer than it has where stages are frozen.
        notes: Of an `end`, sentences on what was skipped or passed over, such as bad images; empty otherwise.
    """

    kind: str
    epoch: int
    step: int
    loss: float
    metrics: dict[str, Any]
    state: TrainState
    trained: int = 0
    notes: tuple[str, ...] = ()
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        kind: str,
        state: TrainState,
        *,
        loss: float = math.nan,
        metrics: dict[str, Any] | None = None,
        notes: tuple[str, ...] = (),
        images: int = 0,
        seconds: float = 0.0,
    ) -> Event:
        """Return an event of `kind` at the place where `state` is.

        Args:
            kind: step, eval, checkpoint or end.
            state: The training.
            loss: The loss of the step, or since the last evaluation.
            metrics: Of an evaluation.
            notes: What is worth saying.
            images: Images of the step.
            seconds: How many of them the step took.
        """
        place = (kind, state.epoch, state.step)
        return cls(*place, loss, metrics or {}, state, state.trained, notes, images, seconds)


def _number_or_none(value: Any) -> Any:
    """Return None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
