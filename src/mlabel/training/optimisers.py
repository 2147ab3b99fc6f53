"""Optimisers by name, and which parameters get which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    References: Kingma and Ba (2015) for Adam and Adamax, Loshchilov and Hutter (2019) for AdamW, Zeiler (2012) for
    Adadelta.

    Args:
        model: What is trained.
        config: Its `optimizer`, `lr`, `weight_decay`, `momentum`, `freeze` and what else says how fast a part learns.

    Raises:
        ValueError: no parameter wants a gradient, or no stage has the name that `config.freeze` gives.

    Example:
        >>> from mlabel.training import TrainConfig
        >>> optimizer = make_optimizer(nn.Linear(2, 1), TrainConfig(optimizer="sgd", weight_decay=0.1))
        >>> type(optimizer).__name__, sorted(group["weight_decay"] for group in optimizer.param_groups)
        ('SGD', [0.1])
    """
    groups = _group_parameters(model, config)
    if not groups:
        raise ValueError("the model has no parameter that wants a gradient; unfreeze one")
    return resolve(config.optimizer, _BUILDERS, "optimizer")(groups, config)


@contextmanager
def in_memory_order(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a step on the CPU see weights that lie with the channels last as (N, H, W, C): the same memory, in its order.

    The fused kernels of the CPU go through the memory of a weight, its gradient and its state side by side, whatever
    the strides of each; and of a gradient that is not contiguous torch (2.15) makes a copy, of no use, at every step.
    """
    seen = [p for group in optimizer.param_groups if group.get("fused") for p in group["params"] if _is_permuted(p)]
    changed: list[nn.Parameter] = []
    try:
        for parameter in seen:
            changed.append(parameter)
            _permute(optimizer, parameter, (0, 2, 3, 1))
            parameter.grad = parameter.grad.contiguous()  # in the weight's order, as autograd leaves it
        yield
    finally:
        for parameter in changed:
            _permute(optimizer, parameter, (0, 3, 1, 2))


def _is_permuted(parameter: nn.Parameter) -> bool:
    if parameter.grad is None or parameter.ndim != 4 or parameter.device.type != "cpu" or parameter.is_contiguous():
        return False
    return parameter.is_contiguous(memory_format=torch.channels_last)


def _permute(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, axes: tuple[int, ...]) -> None:
    gradient, parameter.grad = parameter.grad, None  # it would have to be of the weight's shape all the while
    parameter.data = parameter.data.permute(axes)
    parameter.grad = None if gradient is None else gradient.permute(axes)
    held = optimizer.state.get(parameter, {})
    for name, value in held.items():
        if torch.is_tensor(value) and value.ndim == 4:
            held[name] = value.permute(axes)


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
