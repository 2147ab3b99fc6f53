"""A network computed by code that torch compiled for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class CompiledNetwork:
    """A model that is computed by compiled code on batches of one size, and as it is on others.

    Code is compiled for one shape only, for two reasons: a smaller last batch of an epoch is not worth the time, and
    which code computes a batch follows from the batch alone, so that a resumed training gets the same numbers.

    Args:
        model: It is not changed; its parameters are shared.
        mode: What torch.compile should take pains with: `default`, `reduce-overhead` or `max-autotune`.
        batch_size: Of the batches for which the code is.
    """

    def __init__(self, model: nn.Module, mode: str, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self._compiled = torch.compile(model, mode=None if mode == "default" else mode, dynamic=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, L) of `images` (N, C, H, W)."""
        if len(images) != self.batch_size:
            return self.model(images)
        # Left alone, torch would go on uncompiled, and say so only in a log that few read.
        with torch._dynamo.config.patch(suppress_errors=False, fail_on_recompile_limit_hit=True):
            return self._compiled(images)


@contextmanager
def explain_compiler(mode: str) -> Iterator[None]:
    """Name the setting where the compiler fails; nothing goes on uncompiled in silence."""
    if mode == "none":
        yield
        return
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise RuntimeError(
            f"compile={mode!r} failed: {type(error).__name__}: {first}; train with compile='none' (--compile none), or "
            "see the error above for what torch.compile wants"
        ) from error
