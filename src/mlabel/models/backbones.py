"""Backbones: networks that map images (N, C, H, W) to features (N, D).

Each torchvision classification network becomes one by taking its classification layer away; `small_cnn` and the
networks of `report_networks` are made as such. `BACKBONES` is the fixed table in which names resolve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision.models
from torch import nn

from mlabel._checks import resolve
from mlabel.models.feature_maps import run_on_meta
from mlabel.models.report_networks import CNN3BatchNorm, CNN4MaxPool, CNN5AvgPool, Prior, SEResNet22
from mlabel.models.small_cnn import SmallCNN
from mlabel.models.timm_networks import (
    build_timm,
    check_timm_name,
    is_timm,
    pool_places,
    takes_one_size,
    usual_size,
)

# The networks that torchvision makes with auxiliary classifiers, and with an input normalisation of their own.
HALF_NORMALISED = frozenset({"googlenet", "inception_v3"})

# Networks whose weights hold a position table, or whose windows must tile the image: they take one size only.
_FIXED_SIZE = ("vit_", "maxvit_")


def list_models() -> list[str]:
    """Return the names that `create_model` knows, ours first; those of timm, `timm/NAME`, are in `list_timm_models`.

    Example:
        >>> names = list_models()
        >>> names[0], "resnet18" in names, "vit_b_16" in names
        ('small_cnn', True, True)
    """
    return list(BACKBONES)


def has_fixed_size(name: str | None) -> bool:
    """Return whether backbone `name` takes only images of the size that it was made for."""
    if name is not None and is_timm(name):
        return takes_one_size(name)
    return name is not None and name.startswith(_FIXED_SIZE)


def check_backbone(name: str) -> None:
    """Check that there is a backbone of that name.

    Raises:
        ValueError: there is none; the nearest is named.
        ImportError: a network of timm, and timm is not installed.
    """
    if is_timm(name):
        check_timm_name(name)
    else:
        resolve(name, BACKBONES, "backbone")


def create_backbone(name: str, *, in_channels: int = 3, image_size: tuple[int, int] = (224, 224)) -> nn.Module:
    """Return a new network from images (N, C, H, W) to features (N, D), with D as its `num_features`.

    Args:
        name: A name of `list_models()`, or `timm/NAME` for a network of timm.
        in_channels: C, 1 or 3. A first convolution made for RGB gets one channel by adding up its weights over the
            three, so that the network sees a greyscale image as it would see the same image in RGB.
        image_size: Height and width. Most networks take other sizes later too, transformers of the `vit` and
            `maxvit` families do not.

    Raises:
        ValueError: no such name, or the network cannot take images of that size.
        ImportError: a network of timm, and timm is not installed.

    Example:
        >>> import torch
        >>> backbone = create_backbone("small_cnn", image_size=(32, 32))
        >>> backbone(torch.zeros(4, 3, 32, 32)).shape == (4, backbone.num_features)
        True
    """
    build = partial(build_timm, name) if is_timm(name) else resolve(name, BACKBONES, "backbone")
    try:
        backbone = build(in_channels=in_channels, image_size=image_size)
    except (ValueError, AssertionError) as error:
        raise _size_error(name, image_size, error) from error
    try:
        # On the meta device, so that a size that is too small fails here.
        features = run_on_meta(backbone, in_channels, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _size_error(name, image_size, error) from error
    if is_timm(name):
        # With timm that may be the width of the map, before a hidden layer that follows the pooling.
        setattr(backbone, "num_features", pool_places(backbone, features))  # noqa: B010
    return backbone


def find_first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the name and the module of the first convolution, the one that sees the image.

    Raises:
        ValueError: there is none.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            return name, child
    raise ValueError(f"{type(module).__name__} has no two-dimensional convolution")


def _build_torchvision(name: str, *, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    options = _torchvision_options(name, image_size)
    # One class, so that the layer that is thrown away costs nothing.
    network = torchvision.models.get_model(name, weights=None, num_classes=1, **options)
    num_features = _remove_classification_layer(network)
    if in_channels != 3:
        _add_up_channels(find_first_convolution(network)[1])
    network.num_features = num_features
    return network


def _build_own(network: Callable[[int], nn.Module], *, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return network(in_channels)


def _torchvision_options(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ValueError("the image must be square")
        return {"image_size": image_size[0]}
    if name.startswith("maxvit_"):
        return {"input_size": image_size}
    if name in HALF_NORMALISED:
        # The auxiliary classifiers have layers for torchvision's classes, and change what forward returns.
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    return {}


def _remove_classification_layer(network: nn.Module) -> int:
    """Put an identity in the place of the classification layer; return how many features went into it.

    In all of torchvision's networks that layer is the last linear layer or convolution in order of definition. A
    dropout just before it goes too: it is the head that decides about dropout.
    """
    name, last = [(n, m) for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    parent_name, _, own_name = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    setattr(parent, own_name, nn.Identity())
    if isinstance(parent, nn.Sequential):
        place = list(dict(parent.named_children())).index(own_name)
        if place and isinstance(parent[place - 1], nn.Dropout):
            parent[place - 1] = nn.Identity()
    elif isinstance(getattr(parent, "dropout", None), nn.Dropout):
        parent.dropout = nn.Identity()
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels


def _add_up_channels(convolution: nn.Conv2d) -> None:
    with torch.no_grad():
        convolution.weight = nn.Parameter(convolution.weight.sum(dim=1, keepdim=True))
    convolution.in_channels = 1


def _size_error(name: str, image_size: tuple[int, int], error: Exception) -> ValueError:
    height, width = image_size
    size = usual_size(name) if is_timm(name) else None
    hint = "224 suits all" if not is_timm(name) else f"it was made for {size}" if size else "a larger one, or 224"
    return ValueError(
        f"backbone {name!r} cannot take images of {height} x {width} pixels; try another image_size ({hint}). "
        f"It said: {error}"
    )


BackboneFactory = Callable[..., nn.Module]

BACKBONES: Mapping[str, BackboneFactory] = {
    "small_cnn": partial(_build_own, SmallCNN),
    # Of the reports, which name none of them; so these say what they are.
    "prior": partial(_build_own, Prior),
    "cnn4_maxpool": partial(_build_own, CNN4MaxPool),
    "cnn3_batchnorm": partial(_build_own, CNN3BatchNorm),
    "cnn5_avgpool": partial(_build_own, CNN5AvgPool),
    "se_resnet22": partial(_build_own, SEResNet22),
    **{name: partial(_build_torchvision, name) for name in torchvision.models.list_models(module=torchvision.models)},
}
