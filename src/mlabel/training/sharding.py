"""A model in training of which each rank holds a part: weights, gradients and the state of the optimiser.

Torch's `fully_shard` (FSDP2) does it: the weights of a unit, such as a stage of the backbone, are gathered as a pass
comes to it and let go of after it, and its gradients are added up over the ranks as the backward pass leaves it. What
is trained is a copy of the model, which itself stays as it is and is given the weights where they are needed whole: to
be evaluated, and when training ends.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mlabel.models import Classifier
from mlabel.training.checkpoint import SavedTensors
from mlabel.training.config import TrainConfig
from mlabel.training.distributed import Ranks, explained
from mlabel.training.ema import WeightAverage
from mlabel.training.gradients import GradientSum, share_batch_norms
from mlabel.training.parts import is_part, put, whole
from mlabel.training.state import TrainState

_log = logging.getLogger(__name__)

# A unit is gathered at once. It has the weights of some layers, since each gathering takes a time of its own, ...
UNIT_BYTES = 64 * 2**20
# ... and what is smaller than this is not worth one: it belongs to the unit of the whole model.
SMALL_BYTES = 2**20


class TrainedModel:
    """The model that is trained for the one that was given: itself, or where it is sharded a copy in parts.

    Called by all ranks, in the same order.

    Args:
        given: On the device that is to compute. Where it is sharded, it waits in main memory.
        config: `shard` and `memory_format` are used.
        ranks: Those that train together; of one that is alone nothing is sharded.

    Attributes:
        model: What is trained.
        sharded: Whether each rank has only a part of it.
        gradients: What adds up those of all ranks.
    """

    def __init__(self, given: Classifier, config: TrainConfig, ranks: Ranks) -> None:
        self.sharded = config.shard == "weights" and ranks.size > 1
        self.model = given
        self.gradients = GradientSum(ranks)
        self._given = given
        self._ranks = ranks
        if self.sharded:
            self.gradients = GradientsOfParts(ranks)
            self.model = _shard(given, config, ranks)
        elif config.shard == "weights":
            _log.warning("shard='weights': a process alone has nothing to share out, and trains the whole model")

    def check(self, precision: str) -> None:
        """Raise ValueError where a sharded model cannot be trained in `precision`."""
        if self.sharded and precision == "fp16":
            raise ValueError(
                "shard='weights' cannot go together with precision 'fp16' (which 'auto' may stand for): each process "
                "would see the overflows of its own part only; use precision='bf16' or 'fp32', or shard='none'"
            )

    def share(self, average: WeightAverage | None) -> None:
        """Give all ranks the first one's weights; of a sharded model they have them from the beginning."""
        if not self.sharded:
            self._ranks.share([*self.model.state_dict().values(), *(average.tensors.values() if average else ())])

    @contextmanager
    def as_whole(self) -> Iterator[Classifier]:
        """Give the whole model with the weights of this moment, to be evaluated."""
        self.bring_back()
        try:
            yield self._given
        finally:
            if self.sharded:
                self._given.to("cpu")

    def bring_back(self) -> None:
        """Put the weights of this moment into the model that was given."""
        if not self.sharded:
            return
        self._given.to(next(self.model.parameters()).device)
        self._given.train(self.model.training)
        trained = self.model.state_dict()
        with torch.no_grad(), explained():
            for name, tensor in self._given.state_dict().items():
                put(tensor, trained[name])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say what to do where another rank has gone while the network computes, which gathers its weights."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
            if not self.sharded or not lost or isinstance(error.__cause__, RuntimeError):
                raise
            with explained():
                raise


def gather_tensors(state: TrainState, ranks: Ranks) -> SavedTensors | None:
    """Return on the first rank what a checkpoint saves of `state`, made whole; elsewhere None.

    All ranks call it. Of a model that is not sharded the tensors are those of the state, and no time is needed.

    Args:
        state: The training.
        ranks: Those that train together.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, join_ranks, make_optimizer
        >>> space, config = LabelSpace([Group("tags", ["cat"])]), TrainConfig()
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> state = TrainState(model, make_optimizer(model, config), torch.amp.GradScaler("cpu", enabled=False), config)
        >>> tensors = gather_tensors(state, join_ranks("cpu"))  # `save_checkpoint` takes them
        >>> tensors.model["head.linear.bias"].shape
        torch.Size([1])
    """
    held = SavedTensors.of(state)
    if any(map(is_part, held.model.values())):
        with torch.no_grad(), explained():
            held = SavedTensors(*(_gather(each, ranks) for each in (held.model, held.optimizer, held.average)))
    return held if ranks.first else None


def _gather(held: Any, ranks: Ranks) -> Any:
    """Return what holds tensors, at any depth, with whole ones in main memory, but on the first rank only."""
    if torch.is_tensor(held):
        full = whole(held.detach())
        return full.cpu() if ranks.first else None
    return {name: _gather(value, ranks) for name, value in held.items()} if isinstance(held, dict) else held


class GradientsOfParts(GradientSum):
    """The gradients of a sharded model, which are added up in each backward pass as its units are left."""

    every_rank_passes = True

    def watch(self, model: nn.Module) -> None:
        """Do nothing: every backward pass adds up its own."""

    def finish(self) -> None:
        """Do nothing: each rank has the sums of its part."""


def _shard(given: Classifier, config: TrainConfig, ranks: Ranks) -> Classifier:
    """Return a copy of the model in parts, with the first rank's weights; `given` has gone to main memory."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(given.parameters()).device
    ranks.share(given.state_dict().values())
    given.to("cpu")
    # Torch shards contiguous weights only. Convolutions follow the images, too, so that those alone are laid out.
    model = copy.deepcopy(given).to(device).to(memory_format=torch.contiguous_format)
    share_batch_norms(model, ranks)  # before, as a norm that takes another's place would not be known later
    mesh = init_device_mesh(device.type, (ranks.size,))
    for unit in _list_units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A sum, and no mean: each rank has divided by what all ranks know already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if config.memory_format == "channels_last":
        model.register_forward_pre_hook(_lay_channels_last, prepend=True)
    return model


def _lay_channels_last(model: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(images.contiguous(memory_format=torch.channels_last) for images in given)


def _list_units(model: Classifier) -> list[nn.Module]:
    """Return the modules whose weights are gathered together: the outermost that are not too large.

    Only what a pass calls, once, can be gathered by itself, and only what shares no weight with others. All else
    belongs to the unit of the whole model, which is gathered from the beginning to the end of a pass.
    """
    calls = _count_calls(model)
    named = model.named_parameters(remove_duplicate=False)
    tied = {each for each, times in Counter(parameter for _, parameter in named).items() if times > 1}

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            size = sum(each.numel() * each.element_size() for each in child.parameters())
            if size < SMALL_BYTES:
                continue
            fits = size <= UNIT_BYTES or not any(True for _ in child.children())
            if fits and calls[child] == 1 and tied.isdisjoint(child.parameters()):
                yield child
            else:
                yield from walk(child)

    return list(walk(model))


def _count_calls(model: Classifier) -> Counter[nn.Module]:
    """Return how often a pass calls each module, which an image of zeros tells."""
    calls: Counter[nn.Module] = Counter()
    hooks = [each.register_forward_pre_hook(lambda module, _: calls.update([module])) for each in model.modules()]
    was_training = model.training
    image = torch.zeros(1, model.in_channels, *model.image_size, device=next(model.parameters()).device)
    with torch.no_grad():
        model.eval()(image)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return calls
