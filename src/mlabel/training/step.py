"""One optimiser step: the only place where weights change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from mlabel.data import Batch
from mlabel.losses import BatchLoss
from mlabel.training.distributed import ALONE
from mlabel.training.gradients import GradientSum, has_shared_norms, mean_of_batch_norms
from mlabel.training.optimisers import in_memory_order
from mlabel.training.parts import whole
from mlabel.training.precision import autocast
from mlabel.training.sam import sharpen_gradient
from mlabel.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: The loss of all its batches together.
        parts: Group name to (sum, denominator) of that loss.
        finite: False where the loss or a gradient was not finite, and the step therefore changed nothing.
        bad_parameters: Of such a step, the names of parameters that are not finite themselves.
        bad_gradients: Of such a step, the names of parameters whose gradient is not finite.
    """

    loss: float
    parts: dict[str, tuple[float, float]]
    finite: bool
    bad_parameters: tuple[str, ...] = ()
    bad_gradients: tuple[str, ...] = ()


def train_step(
    state: TrainState,
    loss: BatchLoss,
    batches: Sequence[Batch],
    *,
    precision: str,
    learning_rate: float,
    gradients: GradientSum | None = None,
) -> StepResult:
    """Do one optimiser step over `batches`, weighed as if they were one batch, and return its loss.

    Dropout follows from (seed, step, rank) alone: torch's global generator is seeded here. With `config.sharpness` the
    gradient is that of SAM or GSAM, and the loss that of its first pass. Where a loss or gradient is not finite,
    weights, their average, optimiser and buffers (batch-norm statistics) stay as they were.

    References: Foret et al. (2021) for SAM, Zhuang et al. (2022) for GSAM.

    Args:
        state: The training; its model, optimiser, scaler and counters change.
        loss: What to lower.
        batches: Those of this step, on any device.
        precision: fp32, bf16 or fp16.
        learning_rate: Of this step, before `state.lr_scale` and the `lr_scale` of each of the optimiser's groups.
        gradients: What adds up those of all ranks, where several train together; each calls this with its shares of
            the same batches, which may be empty.

    Example:
        >>> from mlabel.data import Batch
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.losses import Loss, binary_cross_entropy
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, make_optimizer
        >>> space, config = LabelSpace([Group("tags", ["cat"])]), TrainConfig()
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> state = TrainState(model, make_optimizer(model, config), torch.amp.GradScaler("cpu", enabled=False), config)
        >>> batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([[0], [1]]), None, torch.arange(2))
        >>> result = train_step(state, Loss(binary_cross_entropy), [batch], precision="fp32", learning_rate=0.1)
        >>> result.finite, state.step
        (True, 1)
    """
    gradients = gradients or GradientSum(ALONE)
    _seed_generator(state, gradients.ranks.rank)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * state.lr_scale * group.get("lr_scale", 1.0)
    restore_buffers = _remember_buffers(state.model)
    moved = [batch.to(state.device) for batch in batches]
    parts = _backward(state, loss, moved, precision, gradients)
    value = _value(parts)
    finite = math.isfinite(value)
    if finite and state.config.sharpness != "none":

        def pass_again() -> float:
            _seed_generator(state, gradients.ranks.rank)
            return _value(_backward(state, loss, moved, precision, gradients))

        finite = math.isfinite(_sharpen(state, pass_again, learning_rate))
    finite = finite and _apply(state)
    bad = ((), ()) if finite else _name_bad(state.model)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if finite:
        state.skipped_in_a_row = 0
        state.add_loss(parts)
        if state.average is not None:
            state.average.update(state.model, state.updates - 1)
    else:
        restore_buffers()
        state.skipped += 1
        state.skipped_in_a_row += 1
    return StepResult(value, parts, finite, *bad)


def forward(
    model: nn.Module, batch: Batch, precision: str, *, network: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the logits (N, L) of a batch that is on the model's device.

    Args:
        model: The images are laid out in memory as its weights are.
        batch: The images.
        precision: fp32, bf16 or fp16.
        network: What computes them; None: the model.
    """
    images = batch.images.contiguous(memory_format=_layout(model))
    with autocast(images.device, precision):
        return (network or model)(images)


def _layout(model: nn.Module) -> torch.memory_format:
    last = all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)
    return torch.channels_last if last else torch.contiguous_format


def _backward(
    state: TrainState, loss: BatchLoss, batches: Sequence[Batch], precision: str, gradients: GradientSum
) -> dict[str, tuple[float, float]]:
    """Leave the gradient of the batches' common loss in the parameters; return its sums and denominators."""
    ranks = gradients.ranks
    whole = ranks.add(_denominators(loss, batches))
    sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0.0)
    for number, batch in enumerate(batches, 1):
        if number == len(batches):
            gradients.watch(state.model)
        if not len(batch):
            _backward_of_nothing(state, batch, precision, gradients)
            continue
        logits = forward(state.model, batch, precision, network=state.network)
        parts = loss.parts(logits, batch.targets, batch.mask)
        terms = [value / max(whole[group], 1.0) for group, (value, _) in parts.items()]
        state.scaler.scale(torch.stack(terms).sum()).backward()
        for group, (value, denominator) in parts.items():
            sums[group] += float(value.detach())
            counts[group] += float(denominator)
    gradients.finish()
    mean_of_batch_norms(state.model, ranks, took_part=any(len(batch) for batch in batches))
    sums, counts = ranks.add(sums), ranks.add(counts)
    return {group: (sums[group], counts[group]) for group in whole}


def _backward_of_nothing(state: TrainState, batch: Batch, precision: str, gradients: GradientSum) -> None:
    """Do what the other ranks wait for where this one has no sample of a batch."""
    state.scaler.scale(torch.zeros((), device=state.device))  # it is made by its first use
    if has_shared_norms(state.model):
        forward(state.model, batch, precision).float().sum().backward()
    elif gradients.every_rank_passes:
        # Some networks cannot compute no image at all, and batch norms none alone; these two weigh nothing.
        restore_buffers = _remember_buffers(state.model)
        blank = replace(batch, images=batch.images.new_zeros(2, *batch.images.shape[1:]))
        logits = forward(state.model, blank, precision)
        logits.backward(torch.zeros_like(logits))
        restore_buffers()


def _value(parts: dict[str, tuple[float, float]]) -> float:
    return float(sum(total / max(denominator, 1.0) for total, denominator in parts.values()))


def _sharpen(state: TrainState, pass_again: Callable[[], float], learning_rate: float) -> float:
    """Make the gradient that of SAM or GSAM, and return the loss where it was taken.

    The second pass has the dropout of the first, and leaves no trace in buffers: the statistics of batch norm are
    those of the weights that the model keeps.
    """
    config = state.config
    restore_buffers = _remember_buffers(state.model)
    rho = config.rho
    if config.rho_min is not None:
        share = min(1.0, learning_rate * state.lr_scale / config.lr)
        rho = config.rho_min + (config.rho - config.rho_min) * share

    alpha = config.gsam_alpha if config.sharpness == "gsam" else 0.0
    loss = sharpen_gradient(_with_gradient(state), pass_again, rho=rho, alpha=alpha)
    restore_buffers()
    return loss


def _with_gradient(state: TrainState) -> list[nn.Parameter]:
    return [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]


def _denominators(loss: BatchLoss, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the denominator of each group over all batches."""
    whole: dict[str, float] = {}
    for batch in batches:
        for group, denominator in loss.denominators(batch.targets, batch.mask).items():
            whole[group] = whole.get(group, 0.0) + float(denominator)
    return whole


def _apply(state: TrainState) -> bool:
    """Update the weights and return True, or return False where a gradient is not finite."""
    parameters = _with_gradient(state)
    if not parameters:
        return True
    state.scaler.unscale_(state.optimizer)
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    finite = bool(torch.isfinite(norm))
    if finite and state.config.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, state.config.clip_norm, norm)
    if finite:
        with in_memory_order(state.optimizer):
            state.scaler.step(state.optimizer)
    state.scaler.update()
    return finite


def _name_bad(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the parameters that are not finite, and of those whose gradient is not."""
    named = list(model.named_parameters())
    values = tuple(name for name, p in named if not torch.isfinite(whole(p)).all())
    return values, tuple(name for name, p in named if p.grad is not None and not torch.isfinite(whole(p.grad)).all())


def _remember_buffers(model: nn.Module) -> Callable[[], None]:
    """Return a function that puts the model's buffers back to what they are now."""
    buffers = list(model.buffers())
    copies = [buffer.clone() for buffer in buffers]

    def restore() -> None:
        with torch.no_grad():
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)

    return restore


def _seed_generator(state: TrainState, rank: int) -> None:
    name = f"step {state.config.seed} {state.step}" + (f" rank {rank}" if rank else "")
    key = hashlib.blake2b(name.encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(key, "little"))
