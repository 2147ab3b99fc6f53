"""What models cost to use: numbers that they learned, multiply-adds, and images a second, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlabel.models import Classifier, count_multiply_adds
from mlabel.training import autocast, resolve_precision

SECONDS = 3.0  # that each model is measured
_LEAST, _MOST = 5, 200  # rounds


@dataclass(frozen=True)
class ModelCost:
    """What a model costs to use.

    Attributes:
        parameters: Numbers that it learned.
        multiply_adds: Of convolutions, linear layers and attention for one image; None: they cannot be counted.
        image_size: (H, W) of its images.
        images_per_second: Through the network, images being there already: the median of the rounds.
        relative_speed: Images a second over those of the first model, in the same round: the median of the rounds.
        relative_low: The lower quartile of that.
        relative_high: The upper one.
    """

    parameters: int
    multiply_adds: int | None
    image_size: tuple[int, int]
    images_per_second: float
    relative_speed: float
    relative_low: float
    relative_high: float


def measure_costs(
    models: Mapping[str, Classifier],
    *,
    batch_size: int = 32,
    precisions: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> dict[str, ModelCost]:
    """Return name to cost of models, their speed being measured side by side.

    In each round each model has one batch of its own image size, the order of the models being turned from round to
    round, so that whatever else the computer does falls on all of them; a round before the first is not counted.

    Args:
        models: Name to model, on the device that computes.
        batch_size: Images of a batch.
        precisions: Name to fp32, bf16, fp16 or auto; None: fp32.
        seconds: How many of them for each model; there are at least five rounds.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> models = {head: create_model("small_cnn", space, head=head, image_size=32) for head in ("linear", "mlp")}
        >>> costs = measure_costs(models, batch_size=2, seconds=0.01)
        >>> costs["linear"].relative_speed, costs["mlp"].parameters > costs["linear"].parameters
        (1.0, True)
    """
    passes = [_Pass(model, batch_size, (precisions or {}).get(name, "fp32")) for name, model in models.items()]
    times = _rounds(passes, seconds * len(passes))
    ratios = times[:, :1] / times
    return {
        name: ModelCost(
            parameters=sum(each.numel() for each in model.parameters()),
            multiply_adds=_multiply_adds(model),
            image_size=model.image_size,
            images_per_second=batch_size / float(np.median(times[:, place])),
            relative_speed=float(np.median(ratios[:, place])),
            relative_low=float(np.quantile(ratios[:, place], 0.25)),
            relative_high=float(np.quantile(ratios[:, place], 0.75)),
        )
        for place, (name, model) in enumerate(models.items())
    }


class _Pass:
    """A batch through a model, timed."""

    def __init__(self, model: Classifier, batch_size: int, precision: str) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(precision, self.device)
        shape = (batch_size, model.in_channels, *model.image_size)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def seconds(self) -> float:
        self._wait()
        begun = time.perf_counter()
        with torch.inference_mode(), autocast(self.device, self.precision):
            self.model(self.images)
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _rounds(passes: Sequence[_Pass], seconds: float) -> np.ndarray:
    """Return the seconds of each model in each round (R, M), float64."""
    was_training = [each.model.training for each in passes]
    for each in passes:
        each.model.eval()
        each.seconds()
    rounds: list[list[float]] = []
    begun = time.perf_counter()
    while len(rounds) < _LEAST or (len(rounds) < _MOST and time.perf_counter() - begun < seconds):
        held = [0.0] * len(passes)
        for place in range(len(passes)):
            turned = (place + len(rounds)) % len(passes)
            held[turned] = passes[turned].seconds()
        rounds.append(held)
    for each, mode in zip(passes, was_training, strict=True):
        each.model.train(mode)
    return np.array(rounds)


def _multiply_adds(model: Classifier) -> int | None:
    try:
        return count_multiply_adds(model)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # a network that needs values
        return None
