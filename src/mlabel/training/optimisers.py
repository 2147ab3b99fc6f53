"""Optimisers by name, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlabel._checks import resolve
from mlabel.training.config import TrainConfig

Builder = Callable[[list[nn.Parameter], TrainConfig], torch.optim.Optimizer]


def _fused(parameters: list[nn.Parameter]) -> dict[str, Any]:
    """Return the option of one kernel for all parameters, where the device has it."""
    return {"fused": True} if parameters[0].device.type in ("cpu", "cuda") else {}


_BUILDERS: dict[str, Builder] = {
    "adam": lambda p, c: torch.optim.Adam(p, lr=c.lr, weight_decay=c.weight_decay, **_fused(p)),
    "adamw": lambda p, c: torch.optim.AdamW(p, lr=c.lr, weight_decay=c.weight_decay, **_fused(p)),
    "sgd": lambda p, c: torch.optim.SGD(
        p, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, nesterov=False, **_fused(p)
    ),
    "adamax": lambda p, c: torch.optim.Adamax(p, lr=c.lr, weight_decay=c.weight_decay),
    "adadelta": lambda p, c: torch.optim.Adadelta(p, lr=c.lr, weight_decay=c.weight_decay),
}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names, over the parameters of `model` that want a gradient.

    Raises:
        ValueError: no parameter wants a gradient.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that wants a gradient; unfreeze one")
    return resolve(config.optimizer, _BUILDERS, "optimizer")(parameters, config)


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


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `precision`, or, for `auto`, the fastest one that `device` computes in: bf16, fp16 or fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Emulated bf16 is slower than float32, so the CPU must have the instructions.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bf16" if device.type == "cpu" and native else "fp32"
