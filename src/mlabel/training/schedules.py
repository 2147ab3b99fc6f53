"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from mlabel.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimiser step `step` (from 0), before the plateau's factor.

    A function of the step alone, so that a resumed training needs no state for it.

    Args:
        config: `lr`, `schedule`, `warmup_steps`, `step_size`, `decay` and `epochs` are used.
        step: Optimiser steps done so far.
        steps_per_epoch: Optimiser steps of one epoch.

    Example:
        >>> config = TrainConfig(lr=1.0, schedule="cosine", warmup_steps=2, epochs=1)
        >>> [round(learning_rate(config, step, 6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        length = max(1, config.epochs * steps_per_epoch - config.warmup_steps)
        progress = min(1.0, (step - config.warmup_steps) / length)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "step":
        return config.lr * config.decay ** (step // steps_per_epoch // config.step_size)
    return config.lr  # constant; the plateau's factor is state, kept in TrainState.lr_scale
