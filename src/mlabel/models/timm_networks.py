"""The networks of timm as backbones, by `timm/NAME`, and their weights by timm's tags. timm is needed for these only.

Nothing here resolves names outside timm's own list: no address, no repository, no code from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mlabel._checks import resolve

PREFIX = "timm/"
# Networks whose first layer computes with red, green and blue, and that layer.
_RGB_STEMS = {"csatv2": "stem_dct", "csatv2_21m": "stem_dct"}


@dataclass(frozen=True)
class TimmWeights:
    """An entry of timm's table of pretrained weights.

    Attributes:
        name: Of the network, without `timm/`.
        tag: Of the weights, such as `fb_in1k`.
        mean: Of images in [0, 1], one number a channel.
        std: Likewise.
    """

    name: str
    tag: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{PREFIX}{self.name} {self.tag}"


def is_timm(name: str | None) -> bool:
    """Return whether `name` stands for a network of timm."""
    return name is not None and name.startswith(PREFIX)


def list_timm_models() -> list[str]:
    """Return the names `timm/NAME` of all networks of timm.

    Raises:
        ImportError: timm is not installed.

    Example:
        >>> "timm/resnet50" in list_timm_models()
        True
    """
    return list(_names())


def check_timm_name(name: str) -> str:
    """Return the name without `timm/`.

    Raises:
        ValueError: timm has no such network; or the name holds a tag of weights, which are given as `weights=`.
        ImportError: timm is not installed.
    """
    names = _names()
    bare, dot, tag = name.partition(".")
    if dot and bare in names:
        raise ValueError(f"{name!r} names weights too; give backbone={bare!r} and weights={tag!r}")
    return resolve(name, names, "backbone")


def build_timm(name: str, *, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return a network of timm without its classification layer; `num_features` is set by `create_backbone`."""
    bare = check_timm_name(name)
    stem = _RGB_STEMS.get(bare) if in_channels == 1 else None
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": 3 if stem else in_channels}
    network = _create(bare, {"img_size": image_size} if takes_one_size(name) else {}, options)
    if stem is not None:
        network.get_submodule(stem).register_forward_pre_hook(_repeat_channel)
    return network


def pool_places(network: nn.Module, features: torch.Tensor) -> int:
    """Return D, having seen to it that the network returns features (N, D).

    Encoders made for something else than classification return a map (N, D, H, W) or tokens (N, T, D) where others
    return features. From now on they return the mean over the places. Their feature map stays as it is.

    Args:
        network: A network of `build_timm`.
        features: What it returned, of which the shape counts.
    """
    if features.ndim > 2:
        # A hook, not a module around it: so the names of its weights stay timm's.
        network.register_forward_hook(_mean_of_places)
        features = _mean_of_places(network, (), features)
    return features.shape[1]


def takes_one_size(name: str) -> bool:
    """Return whether a network of timm takes only images of the size that it was made for."""
    entry = _timm().get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)
    return entry is not None and bool(entry.fixed_input_size)


def usual_size(name: str) -> tuple[int, int] | None:
    """Return the height and width of the images that a network of timm was made for; None where timm does not say."""
    entry = _timm().get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)
    return None if entry is None else tuple(entry.input_size[1:])


def timm_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the images that a network of timm is usually trained on."""
    entry = _timm().get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)
    return (0.485, 0.456, 0.406) if entry is None else entry.mean, (0.229, 0.224, 0.225) if entry is None else entry.std


def timm_weights(name: str) -> dict[str, TimmWeights]:
    """Return timm's weights of a network by tag; `DEFAULT` is the one that timm itself would take."""
    bare = check_timm_name(name)
    entries = _timm().models.get_arch_pretrained_cfgs(bare)
    table = {
        tag: TimmWeights(bare, tag, tuple(entry.mean), tuple(entry.std))
        for tag, entry in ((full.partition(".")[2], entry) for full, entry in entries.items())
        if tag and entry.has_weights
    }
    usual = getattr(_timm().get_pretrained_cfg(bare, allow_unregistered=True), "tag", None)
    return {"DEFAULT": table[usual], **table} if usual in table else table


def fetch_timm_state(weights: TimmWeights) -> dict[str, torch.Tensor]:
    """Return the tensors of weights of timm, which loads them: from its cache, or from where it keeps them.

    Raises:
        FileNotFoundError: they are not there and cannot be downloaded.
    """
    try:
        network = _timm().create_model(f"{weights.name}.{weights.tag}", pretrained=True)
    except Exception as error:  # timm, huggingface_hub and the network below them each have errors of their own
        raise FileNotFoundError(
            f"weights {weights} are not in timm's cache and could not be loaded ({str(error)[:300]}). Where there is a "
            "network, run it once to fill the cache; or give weights= the path of a file or folder"
        ) from error
    return network.state_dict()


def _create(bare: str, size: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Return a network made for a size, where its maker asks for one at all."""
    try:
        return _timm().create_model(bare, **size, **options)
    except TypeError as error:
        if not size or "img_size" not in str(error):
            raise
    return _timm().create_model(bare, **options)


def _repeat_channel(stem: nn.Module, given: tuple[torch.Tensor]) -> torch.Tensor:
    return given[0].expand(-1, 3, -1, -1)


def _mean_of_places(network: nn.Module, given: tuple[torch.Tensor, ...], found: torch.Tensor) -> torch.Tensor:
    if found.ndim == 3:
        return found.mean(dim=1)
    return found.mean((1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else (2, 3))


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbones timm/NAME need timm: pip install mlabel[timm]") from error
    return timm


@cache
def _names() -> dict[str, str]:
    return {PREFIX + name: name for name in _timm().list_models()}
