"""Feature maps: what a backbone knows of every place of the image, before it is pooled into features (N, D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torchvision import models as tv


def compute_feature_map(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the last feature map (N, M, H, W) of normalised images, or tokens (N, T, M) that lie on no grid.

    The patches of transformers are a map too; class tokens are left out. Layers that follow the pooling (the hidden
    layers of AlexNet, VGG and MobileNetV3, the last norm of ConvNeXt) have no part in it.

    Args:
        backbone: A network of `create_backbone`, or a module with a method `feature_map`.
        images: (N, C, H, W).

    Raises:
        TypeError: a module without such a method.
    """
    own = getattr(backbone, "feature_map", None)
    if own is not None:
        return own(images)
    for kind, compute in _TORCHVISION.items():
        if isinstance(backbone, kind):
            return compute(backbone, images)
    if hasattr(backbone, "forward_features"):
        return _timm(backbone, images)
    raise TypeError(
        f"backbone {type(backbone).__name__} has no feature map, which this head wants: give it a method "
        "feature_map(images) that returns (N, M, H, W) or (N, T, M), or choose a head such as linear"
    )


def count_map_features(backbone: nn.Module, in_channels: int, image_size: tuple[int, int]) -> int:
    """Return M, the channels of the feature map of a backbone; see `compute_feature_map`.

    Its attribute `num_map_features` says so, or else its `num_features`, where it has a `feature_map` of its own.
    Any other network is run on the meta device, which computes shapes only.
    """
    stated = getattr(backbone, "num_map_features", None)
    if stated is None and hasattr(backbone, "feature_map"):
        stated = backbone.num_features
    if stated is not None:
        return int(stated)
    feature_map = run_on_meta(_MapOf(backbone), in_channels, image_size)
    return feature_map.shape[1] if feature_map.ndim == 4 else feature_map.shape[2]


def run_on_meta(module: nn.Module, in_channels: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Return what a module makes of one image, as a shape without values: nothing is computed."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    images = torch.empty(1, in_channels, *image_size, device="meta")
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return functional_call(module, shapes, (images,))
    finally:
        for part, training in modes:
            part.training = training


class _MapOf(nn.Module):
    """The feature map as a module's forward."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return compute_feature_map(self.backbone, images)


# The networks of torchvision, by class. `Any` below: each function reads the layers of one class.


def _features_layer(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.features(images)


def _densenet(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.features(images).relu()


def _in_order(network: Any, images: torch.Tensor, *names: str) -> torch.Tensor:
    for name in names:
        images = getattr(network, name)(images)
    return images


def _resnet(network: Any, images: torch.Tensor) -> torch.Tensor:
    return _in_order(network, images, "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _shufflenet(network: Any, images: torch.Tensor) -> torch.Tensor:
    return _in_order(network, images, "conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")


def _regnet(network: Any, images: torch.Tensor) -> torch.Tensor:
    return _in_order(network, images, "stem", "trunk_output")


def _mnasnet(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.layers(images)


def _maxvit(network: Any, images: torch.Tensor) -> torch.Tensor:
    images = network.stem(images)
    for block in network.blocks:
        images = block(images)
    return images


def _swin(network: Any, images: torch.Tensor) -> torch.Tensor:
    return _in_order(network, images, "features", "norm", "permute")


def _vit(network: Any, images: torch.Tensor) -> torch.Tensor:
    patches = network._process_input(images)
    tokens = torch.cat([network.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
    grid = (images.shape[2] // network.patch_size, images.shape[3] // network.patch_size)
    return network.encoder(tokens)[:, 1:].transpose(1, 2).unflatten(2, grid)


def _googlenet(network: Any, images: torch.Tensor) -> torch.Tensor:
    first = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3")
    second = ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4")
    return _in_order(network, images, *first, *second, "inception5a", "inception5b")


def _inception(network: Any, images: torch.Tensor) -> torch.Tensor:
    first = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    blocks = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    return _in_order(network, images, *first, "maxpool2", *(f"Mixed_{block}" for block in blocks))


_TORCHVISION: Mapping[type[nn.Module], Callable[[Any, torch.Tensor], torch.Tensor]] = {
    tv.AlexNet: _features_layer,
    tv.ConvNeXt: _features_layer,
    tv.DenseNet: _densenet,
    tv.EfficientNet: _features_layer,
    tv.GoogLeNet: _googlenet,
    tv.Inception3: _inception,
    tv.MNASNet: _mnasnet,
    tv.MaxVit: _maxvit,
    tv.MobileNetV2: _features_layer,
    tv.MobileNetV3: _features_layer,
    tv.RegNet: _regnet,
    tv.ResNet: _resnet,
    tv.ShuffleNetV2: _shufflenet,
    tv.SqueezeNet: _features_layer,
    tv.SwinTransformer: _swin,
    tv.VGG: _features_layer,
    tv.VisionTransformer: _vit,
}


def _timm(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Return what timm's `forward_features` gives, brought to (N, M, H, W) where its tokens lie on a grid."""
    found = network.forward_features(images)
    if isinstance(found, (tuple, list)):
        found = found[-1]
    if found.ndim == 4:
        return found.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else found
    patches = found[:, getattr(network, "num_prefix_tokens", 0) :]
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or patches.shape[1] != grid[0] * grid[1]:
        return patches
    return patches.transpose(1, 2).unflatten(2, tuple(grid))
