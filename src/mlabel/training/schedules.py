"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from mlabel.training.config import TrainConfig

# Where one-cycle begins and ends, as parts of `lr`, and the share of the steps in which it rises (Smith and Topin,
# 2019, with the numbers of torch's OneCycleLR).
_CYCLE_START = 1 / 25
_CYCLE_END = 1 / 250_000
_CYCLE_RISE = 0.3


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimiser step `step` (from 0), before the plateau's factor.

    A function of the step alone, so that a resumed training needs no state for it.

    References: Loshchilov and Hutter (2017) for the cosine, Goyal et al. (2017) for the warm-up, Smith and Topin (2019)
    for one cycle.

    Args:
        config: `lr`, `schedule`, `warmup_steps`, `step_size`, `decay` and `epochs` are used.
        step: Optimiser steps done so far.
        steps_per_epoch: Optimiser steps of one epoch.

    Example:
        >>> config = TrainConfig(lr=1.0, schedule="cosine", warmup_steps=2, epochs=1)
        >>> [round(learning_rate(config, step, 6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if config.schedule == "one_cycle":
        return config.lr * _one_cycle(step, config.warmup_steps, config.epochs * steps_per_epoch)
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return config.lr * config.decay ** (step // steps_per_epoch // config.step_size)
    length = max(1, config.epochs * steps_per_epoch - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / length)
    return config.lr * _FALLS[config.schedule](done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


# The part of `lr` after a part of the steps that follow the warm-up.
_FALLS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "plateau": lambda done: 1.0,  # its factor is state, kept in TrainState.lr_scale
    "cosine": _cosine,
    "linear": lambda done: 1 - done,
}


def _one_cycle(step: int, warmup_steps: int, steps: int) -> float:
    """Return the part of `lr`: up by half a cosine, and down by the other half to next to nothing."""
    top = (warmup_steps or _CYCLE_RISE * steps) - 1
    if step < top:
        return 1 + (_CYCLE_START - 1) * _cosine(step / top)
    done = min(1.0, (step - top) / max(1.0, steps - 1 - top))
    return _CYCLE_END + (1 - _CYCLE_END) * _cosine(done)
