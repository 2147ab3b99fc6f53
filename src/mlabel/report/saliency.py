"""What a label looks at in an image: Grad-CAM, and attention rollout for vision transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mlabel._checks import resolve, suggest
from mlabel.labels import LabelSpace
from mlabel.models import Classifier
from mlabel.report._transformers import Transformer, find_transformer, recorded_attention

METHODS = ("auto", "grad_cam", "attention_rollout")


def explain(model: Classifier, images: Any, labels: Any, *, method: str = "auto") -> torch.Tensor:
    """Return for each image and label a map in [0, 1] of where the model looked, float32 (N, K, H, W).

    Grad-CAM: the channels of the last feature map with more than one place, each weighed by the mean gradient of the
    label's logit over the places, are added up; what is negative becomes 0. It shows what speaks for the label, and is
    0 everywhere where nothing does. Attention rollout: the attention of all layers, the mean of their heads and half
    the identity added, multiplied; it shows where the network looked, and is the same for every label. Maps are
    resized to the images' size and divided by their maximum.

    The model is left as it was: mode, gradients and hooks.

    Args:
        model: On any device.
        images: As the model takes them: uint8, or floating in [0, 1], (N, C, H, W).
        labels: Names or columns, K of them, the same for every image; or for each image its own columns, (N, K).
        method: `grad_cam`; `attention_rollout`, for the vision transformers of torchvision and timm; `auto`: the latter
            for these, the former for all others.

    Raises:
        ValueError: an unknown label or method, a shape that does not fit, or rollout of another network.
        TypeError: a backbone in which no module returns a map (N, M, H, W).

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> explain(model, torch.rand(3, 3, 32, 32), ["dog"]).shape
        torch.Size([3, 1, 32, 32])

    Reference: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: Visual Explanations from Deep Networks
    via Gradient-based Localization", ICCV 2017; Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL
    2020.
    """
    resolve(method, dict.fromkeys(METHODS), "method")
    device = next(model.parameters()).device
    images = torch.as_tensor(images).to(device)
    columns = _as_columns(labels, model.space, len(images)).to(device)
    transformer = find_transformer(model.backbone)
    if method == "attention_rollout" and transformer is None:
        raise ValueError(
            "attention_rollout is for the vision transformers of torchvision and timm only; "
            f"{type(model.backbone).__name__} wants grad_cam"
        )
    if not len(images):
        return torch.zeros((0, columns.shape[1], *images.shape[2:]), device=device)
    with _evaluating(model):
        # What was made in inference mode cannot be recorded, its copy can.
        images, columns = images.clone(), columns.clone()
        if transformer is not None and method != "grad_cam":
            maps = _roll_out(model, transformer, images)[:, None].expand(-1, columns.shape[1], -1, -1)
        else:
            maps = _grad_cam(model, images, columns)
    maps = nn.functional.interpolate(maps.float(), size=images.shape[2:], mode="bilinear", align_corners=False)
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _as_columns(labels: Any, space: LabelSpace, count: int) -> torch.Tensor:
    """Return the columns that are asked for, int64 (N, K)."""
    if isinstance(labels, Sequence) and not isinstance(labels, str) and all(isinstance(each, str) for each in labels):
        for name in labels:
            if name not in space.names:
                raise ValueError(f"there is no label {name!r}; {suggest(name, space.names)}")
        labels = [space.index(name) for name in labels]
    columns = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if columns.size == 0 or columns.dtype.kind not in "iu" or columns.ndim not in (1, 2):
        raise ValueError(f"labels must be names or columns (K,), or columns (N, K); got {labels!r}")
    if columns.min() < 0 or columns.max() >= space.num_labels:
        raise ValueError(f"columns must be from 0 to {space.num_labels - 1}; got {columns.min()} to {columns.max()}")
    if columns.ndim == 1:
        columns = np.broadcast_to(columns, (count, len(columns)))
    if len(columns) != count:
        raise ValueError(f"labels of {len(columns)} images were given, and {count} images")
    return torch.from_numpy(columns.astype(np.int64))


@contextmanager
def _evaluating(model: Classifier) -> Iterator[None]:
    """Put every module into evaluation mode, looking at plain images, and back; torch records gradients in between."""
    training, views = [module for module in model.modules() if module.training], model.views
    model.eval()
    model.views = "plain"
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.views = views
        for module in training:
            module.training = True


def _grad_cam(model: Classifier, images: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the positive part of the weighed feature map for each column, (N, K, h, w)."""
    tap = _Tap(_find_map(model, images))
    with tap:
        logits = model(images).float()
    held = tap.value
    maps = []
    for place in range(columns.shape[1]):
        chosen = logits.gather(1, columns[:, place : place + 1]).sum()
        gradient, feature_map = torch.autograd.grad(chosen, held, retain_graph=True)[0], held.detach()
        gradient, feature_map = (_as_map(model, each) for each in (gradient, feature_map))
        weights = gradient.float().mean(dim=(2, 3), keepdim=True)
        maps.append((weights * feature_map.float()).sum(dim=1).relu())
    return torch.stack(maps, dim=1)


def _as_map(model: Classifier, values: torch.Tensor) -> torch.Tensor:
    """Return what the tapped module gave as (N, M, h, w)."""
    transformer = find_transformer(model.backbone)
    if transformer is not None:
        return transformer.as_map(values)
    # Networks of timm that have the channels last say so.
    last = getattr(model.backbone, "output_fmt", "NCHW") == "NHWC"
    return values.permute(0, 3, 1, 2) if last else values


@dataclass(frozen=True)
class _Place:
    """A call of a module: which module, and which of its calls in one forward pass."""

    module: nn.Module
    call: int


def _find_map(model: Classifier, images: torch.Tensor) -> _Place:
    """Return the last call in the backbone that gives a map of more than one place.

    In a vision transformer: what the last layer attends to. Its patches after that do not reach the class token.
    """
    transformer = find_transformer(model.backbone)
    if transformer is not None:
        return _Place(transformer.last_norm, 1)
    calls: dict[nn.Module, int] = {}
    found: list[_Place] = []

    def note(module: nn.Module, inputs: Any, value: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[2] * value.shape[3] > 1:
            found.append(_Place(module, calls[module]))

    hooks = [module.register_forward_hook(note) for module in model.backbone.modules() if module is not model.backbone]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise TypeError(
            f"no module of the backbone {type(model.backbone).__name__} returns a map (N, M, H, W) of more than one "
            "place for these images, so there is nothing to draw; larger images may help"
        )
    return found[-1]


@dataclass
class _Tap:
    """Cuts the graph at a call of a module: what it gave is kept in `value`, and gradients end there."""

    place: _Place
    calls: int = 0
    hooks: list[Any] = field(default_factory=list)
    held: torch.Tensor | None = None

    @property
    def value(self) -> torch.Tensor:
        assert self.held is not None
        return self.held

    def __enter__(self) -> _Tap:
        self.hooks = [self.place.module.register_forward_hook(self._take)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _take(self, module: nn.Module, inputs: Any, value: torch.Tensor) -> torch.Tensor | None:
        self.calls += 1
        if self.calls != self.place.call:
            return None
        # A copy, for what comes next may write into it (an in-place ReLU), which a leaf would refuse.
        self.held = value.detach().requires_grad_().clone()
        return self.held


def _roll_out(model: Classifier, transformer: Transformer, images: torch.Tensor) -> torch.Tensor:
    """Return the attention rollout of a vision transformer's patches, (N, h, w)."""
    with recorded_attention(transformer) as attention, torch.no_grad():
        model(images)
    identity = torch.eye(attention[0].shape[1], device=images.device)
    rolled = identity.expand_as(attention[0])
    for each in attention:
        rolled = (each + identity) / 2 @ rolled
    rolled = rolled[:, :, transformer.prefix :]
    if transformer.class_token and not model.head.takes_map:
        seen = rolled[:, 0]
    else:  # every patch is used
        seen = rolled[:, transformer.prefix :].mean(dim=1)
    return seen.unflatten(1, transformer.grid)
