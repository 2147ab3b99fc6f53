"""The average of the weights over the steps, which is judged and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from mlabel.training.parts import is_part, put


class WeightAverage:
    """An exponential moving average of a model's weights, and of its buffers of fractions (batch-norm statistics).

    After each step `average = d * average + (1 - d) * weights`. So that the first, random weights are soon forgotten,
    d begins small: it is `min(decay, (1 + n) / (10 + n))` at update n, counted from 0. Averages are kept in the
    tensors' own precision, but of half precision in float32; buffers of whole numbers are copied.

    Args:
        model: Whose weights are averaged; its state now is where the average begins. It is not changed.
        decay: From 0 (the last weights) to below 1.

    Attributes:
        tensors: Name, as in the model's state dict, to average.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> average = WeightAverage(model, decay=0.999)
        >>> _ = nn.init.zeros_(model.weight)
        >>> average.update(model, 0)
        >>> average.tensors["weight"]  # a tenth of the old, nine tenths of the new
        tensor([[0.1000]])

    Reference: Polyak and Juditsky (1992); with a decay and its warm-up as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: _wide(tensor).clone() for name, tensor in _state(model).items()}

    def update(self, model: nn.Module, number: int) -> None:
        """Take in the weights after an update of `model`; `number` is that of the update, counted from 0."""
        share = 1.0 - min(self.decay, (1 + number) / (10 + number))
        # By whether it is sharded, as buffers are not: one kernel takes the ones or the others.
        averages: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        values: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        with torch.no_grad():
            for name, tensor in _state(model).items():
                if tensor.dtype.is_floating_point:
                    averages[is_part(tensor)].append(self.tensors[name])
                    values[is_part(tensor)].append(_wide(tensor))
                else:
                    self.tensors[name].copy_(tensor)
            for kind in (True, False):
                if values[kind]:
                    torch._foreach_lerp_(averages[kind], values[kind], share)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from the averages `tensors`, of the same names and shapes."""
        for name, tensor in tensors.items():
            put(self.tensors[name], tensor)

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into `model`."""
        with torch.no_grad():
            for name, tensor in _state(model).items():
                put(tensor, self.tensors[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let `model` have the average as its weights for a while, and then its own again, bit for bit."""
        own = {name: tensor.clone() for name, tensor in _state(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _state(model).items():
                    tensor.copy_(own[name])


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, in float32 where it has half precision, in which small shares would be lost."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
