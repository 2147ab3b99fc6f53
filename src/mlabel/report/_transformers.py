"""The parts of a vision transformer that say what it looked at, those of torchvision and of timm alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

# Classes of timm, by name, since timm may not be there; their layers must be of the kinds below, which attend to
# what their first normalisation gives, as torchvision's do. Others are left to Grad-CAM.
_TIMM_NETWORKS = frozenset({("timm.models.vision_transformer", "VisionTransformer"), ("timm.models.eva", "Eva")})
_TIMM_LAYERS = frozenset({"Block", "EvaBlock"})


@dataclass(frozen=True)
class Transformer:
    """What is known of a vision transformer.

    Attributes:
        attentions: The attention module of each layer, the one nearest to the image first.
        last_norm: What it gives is what the last layer attends to: tokens (N, T, M).
        grid: Rows and columns of patches.
        prefix: How many of the tokens come before the patches.
        class_token: Whether the features are those of the first token, and not of all patches.
    """

    attentions: tuple[nn.Module, ...]
    last_norm: nn.Module
    grid: tuple[int, int]
    prefix: int
    class_token: bool

    def as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the patches among tokens (N, T, M) as a map (N, M, h, w)."""
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)


def find_transformer(backbone: nn.Module) -> Transformer | None:
    """Return what is known of a vision transformer, None for any other network."""
    if isinstance(backbone, VisionTransformer):
        side = backbone.image_size // backbone.patch_size
        layers: list[Any] = list(backbone.encoder.layers)
        attentions = tuple(layer.self_attention for layer in layers)
        return Transformer(attentions, layers[-1].ln_1, (side, side), prefix=1, class_token=True)
    names = {(kind.__module__, kind.__name__) for kind in type(backbone).__mro__}
    return _find_timm(backbone) if names & _TIMM_NETWORKS else None


def _find_timm(network: Any) -> Transformer | None:
    blocks = list(network.blocks)
    if any(type(block).__name__ not in _TIMM_LAYERS or not hasattr(block.attn, "fused_attn") for block in blocks):
        return None
    height, width = network.patch_embed.grid_size
    prefix = int(network.num_prefix_tokens)
    attentions = tuple(block.attn for block in blocks)
    return Transformer(attentions, blocks[-1].norm1, (height, width), prefix, network.global_pool == "token")


@contextmanager
def recorded_attention(transformer: Transformer) -> Iterator[list[torch.Tensor]]:
    """Yield a list in which the attention (N, T, T) of each layer stands after a forward pass, heads averaged."""
    attention: list[torch.Tensor] = []

    def ask(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, "need_weights": True, "average_attn_weights": True}

    def note_value(module: nn.Module, inputs: Any, value: Any) -> None:
        attention.append(value[1].float())

    def note_input(module: nn.Module, inputs: Any, value: Any) -> None:
        attention.append(inputs[0].float().mean(dim=1))

    hooks: list[Any] = []
    fused: list[Any] = []
    try:
        for module in transformer.attentions:
            if isinstance(module, nn.MultiheadAttention):
                hooks.append(module.register_forward_pre_hook(ask, with_kwargs=True))
                hooks.append(module.register_forward_hook(note_value))
            else:  # timm's, which hands its attention through a dropout where it is not fused
                hooks.append(module.get_submodule("attn_drop").register_forward_hook(note_input))
                fused.append((module, module.fused_attn))
                setattr(module, "fused_attn", False)  # noqa: B010
        yield attention
    finally:
        for hook in hooks:
            hook.remove()
        for module, value in fused:
            module.fused_attn = value
