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
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": in_channels}
    if takes_one_size(name):
        try:
            return _timm().create_model(bare, img_size=image_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return _timm().create_model(bare, **options)


def takes_one_size(name: str) -> bool:
    """Return whether a network of timm takes only images of the size that it was made for."""
    entry = _timm().get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)
    return entry is not None and bool(entry.fixed_input_size)


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


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbones timm/NAME need timm: pip install mlabel[timm]") from error
    return timm


@cache
def _names() -> dict[str, str]:
    return {PREFIX + name: name for name in _timm().list_models()}
