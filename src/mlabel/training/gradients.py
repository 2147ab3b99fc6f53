"""Gradients and batch statistics of several ranks made one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlabel.training.distributed import Ranks, explained

# As large as the buckets of DistributedDataParallel: small enough to leave while others are computed.
BUCKET_BYTES = 25 * 2**20
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    missing: int = 0  # gradients that the backward pass has not yet given
    flat: torch.Tensor | None = None  # all of them, and for each whether this rank has it
    work: Any = None


class GradientSum:
    """Adds up the gradients of all ranks, while the backward pass still computes the rest of them.

    Buckets are filled from the last parameter to the first, as the backward pass comes to them, and leave in that order
    on every rank. What a rank has no gradient of counts as 0; what no rank has stays without, so that the optimiser
    leaves it as it is.

    Args:
        ranks: Who adds up; of a process that is alone gradients stay as they are.
        bucket_bytes: Bytes that travel at once.

    Example:
        >>> from mlabel.training import join_ranks
        >>> model = nn.Linear(2, 1)
        >>> gradients = GradientSum(join_ranks("cpu"))
        >>> gradients.watch(model)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> gradients.finish()
        >>> model.weight.grad  # alone: as it was
        tensor([[1., 1.]])
    """

    # Whether a rank without samples must run the network all the same, as the others wait for it in every pass.
    every_rank_passes = False

    def __init__(self, ranks: Ranks, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.ranks = ranks
        self._limit = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._place: dict[nn.Parameter, _Bucket] = {}
        self._hooks: list[Any] = []
        self._arranged: list[int] = []  # the parameters in the buckets, as it was asked for
        self._sent = 0
        self._watching = False

    def watch(self, model: nn.Module) -> None:
        """Send each bucket of `model` as soon as it is full, from now on until `finish`: call it before the last
        backward pass.
        """
        if self.ranks.size == 1:
            return
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if [*map(id, wanted)] != self._arranged:
            self._arrange(wanted)
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._sent, self._watching = 0, True

    def finish(self) -> None:
        """Leave the sums of all ranks' gradients in the parameters."""
        if self.ranks.size == 1:
            return
        self._watching = False
        with explained():
            for bucket in self._buckets[self._sent :]:
                self._send(bucket)
            for bucket in self._buckets:
                bucket.work.wait()
            self._receive()

    def close(self) -> None:
        """Let go of the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._buckets, self._place, self._arranged = [], [], {}, []

    def _arrange(self, parameters: Sequence[nn.Parameter]) -> None:
        self.close()
        self._arranged = [*map(id, parameters)]
        room = 0
        for parameter in reversed(parameters):
            size = parameter.numel() * parameter.element_size()
            if not self._buckets or size > room or parameter.dtype != self._buckets[-1].parameters[0].dtype:
                self._buckets.append(_Bucket())
                room = self._limit
            room -= size
            self._buckets[-1].parameters.append(parameter)
            self._place[parameter] = self._buckets[-1]
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._note))

    def _note(self, parameter: torch.Tensor) -> None:
        if not self._watching:
            return
        self._place[parameter].missing -= 1  # type: ignore[index]
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])
            self._sent += 1

    def _send(self, bucket: _Bucket) -> None:
        parameters = bucket.parameters
        size = sum(parameter.numel() for parameter in parameters)
        flat = parameters[0].new_zeros(size + len(parameters))
        for number, (part, parameter) in enumerate(zip(_parts(flat, parameters), parameters, strict=True), size):
            if parameter.grad is not None:
                part.copy_(parameter.grad)
                flat[number].fill_(1.0)
        with explained():
            bucket.flat, bucket.work = flat, dist.all_reduce(flat, async_op=True)

    def _receive(self) -> None:
        """Put what came into the gradients."""
        flats = [bucket.flat for bucket in self._buckets if bucket.flat is not None]
        counts = [flat[-len(b.parameters) :].float() for flat, b in zip(flats, self._buckets, strict=True)]
        given = iter((torch.cat(counts) > 0).tolist() if counts else ())  # a GPU is waited for once
        for bucket, flat in zip(self._buckets, flats, strict=True):
            for part, parameter in zip(_parts(flat, bucket.parameters), bucket.parameters, strict=True):
                if next(given):
                    parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad.copy_(part)
            bucket.flat = bucket.work = None


def _parts(flat: torch.Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[torch.Tensor]:
    """Return for each parameter its place in a flat tensor, in its shape."""
    start = 0
    for parameter in parameters:
        yield flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()


@contextmanager
def batch_norms_of_all_ranks(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let the batch norms of a model on a GPU use the statistics of all ranks' samples.

    `SyncBatchNorm`, which has no kernel for a CPU, takes their place with the same parameters and buffers, and they
    come back at the end. Norms that are more than batch normalisation, such as those of timm that contain the
    activation, stay as they are.
    """
    replaced = share_batch_norms(model, ranks)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)


def share_batch_norms(model: nn.Module, ranks: Ranks) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put `SyncBatchNorm` in the place of batch norms as `batch_norms_of_all_ranks` does, and return those."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    if ranks.size == 1 or next(model.parameters()).device.type != "cuda":
        return replaced
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _PLAIN_NORMS:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                replaced.append((parent, name, child))
    return replaced


def has_shared_norms(model: nn.Module) -> bool:
    """Return whether a rank without samples must run the network all the same, as its batch norms wait for all."""
    return any(isinstance(module, nn.SyncBatchNorm) and module.training for module in model.modules())


def mean_of_batch_norms(model: nn.Module, ranks: Ranks, *, took_part: bool) -> None:
    """Give the batch norms of all ranks the mean of their running statistics.

    Args:
        model: Whose batch norms are looked at, but for those that are not in training, or are shared already.
        ranks: Whose statistics.
        took_part: Whether this rank had samples since the last time; else its statistics do not count.
    """
    if ranks.size == 1:
        return
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training
    ]
    tensors = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
    counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if not tensors:
        return
    share = torch.ones(1) if took_part else torch.zeros(1)
    flat = torch.cat([share.to(tensors[0]), *(tensor.flatten() for tensor in tensors)])
    with explained(), torch.no_grad():
        flat[1:].mul_(flat[0])
        dist.all_reduce(flat)
        flat[1:].div_(flat[0])
        for tensor, part in zip(tensors, flat[1:].split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part)
        if counts:
            tracked = torch.stack(counts)
            dist.all_reduce(tracked, dist.ReduceOp.MAX)
            torch._foreach_copy_(counts, list(tracked.unbind()))
