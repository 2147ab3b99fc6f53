"""Optimisers by name, and which parameters get which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlabel._checks import resolve
from mlabel.models import Classifier
from mlabel.models.stages import list_stages, norm_parameters, stages_until
from mlabel.training.config import TrainConfig
from mlabel.training.parts import is_part

Builder = Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]


def _fused(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the option of one kernel for all parameters, where the device has it."""
    first = groups[0]["params"][0]
    return {"fused": True} if first.device.type in ("cpu", "cuda") and not is_part(first) else {}


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

    What `config.freeze` never lets train is not among them. Each of the optimiser's groups has parameters of one
    learning rate and one weight decay; its `lr_scale` is what the training's learning rate is multiplied with.

    Raises:
        ValueError: no parameter wants a gradient, or no stage has the name that `config.freeze` gives.
    """
    groups = _group_parameters(model, config)
    if not groups:
        raise ValueError("the model has no parameter that wants a gradient; unfreeze one")
    return resolve(config.optimizer, _BUILDERS, "optimizer")(groups, config)


def _group_parameters(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters that are to train as groups, in the order in which the model has the first of each."""
    scale_of = _learning_rate_scales(model, config)
    spared = norm_parameters(model) if config.weight_decay_on == "weights" else set()
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        scale = scale_of(name)
        if scale is None or not parameter.requires_grad:
            continue
        decays = config.weight_decay_on == "all" or (parameter.ndim > 1 and parameter not in spared)
        settings = {"params": [], "lr_scale": scale, **({} if decays else {"weight_decay": 0.0})}
        groups.setdefault((scale, decays), settings)["params"].append(parameter)
    return list(groups.values())


def _learning_rate_scales(model: nn.Module, config: TrainConfig) -> Callable[[str], float | None]:
    """Return a function from a parameter's name to the factor of its learning rate; None: it never trains."""
    head = 1.0 if config.head_lr is None else config.head_lr / config.lr
    if not isinstance(model, Classifier):
        return lambda name: 1.0
    stages = list_stages(model)
    never = 0 if config.freeze is None or config.unfreeze_epoch else stages_until(model, config.freeze)
    scales = [config.layer_decay ** (len(stages) - number) for number in range(len(stages))]

    def scale_of(name: str) -> float | None:
        if not name.startswith("backbone."):
            return head
        own = name.removeprefix("backbone.")
        number = next(number for number, stage in enumerate(stages) if stage.holds(own))
        return None if number < never else scales[number]

    return scale_of
