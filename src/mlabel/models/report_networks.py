"""The networks of the reports: three plain CNNs, an SE-ResNet for 256 x 256 pixels, and the constant model.

Widths, and dropout inside the CNNs, are not all told by the reports; what is chosen here is said in each class. The
last linear layer, and the dropout before it, belong to the head: `create_model("se_resnet22", space, dropout=0.5)`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import SqueezeExcitation

# Dropout inside the CNNs, of feature maps and before a hidden linear layer.
_MAP_DROPOUT = 0.25
_LINEAR_DROPOUT = 0.5

# Features are flattened from a grid of this side, so that their number does not depend on the image's size.
_GRID = 4


class _PlainCNN(nn.Module):
    """Blocks of convolutions, a last part that flattens, and the contract of a backbone."""

    def __init__(self, blocks: nn.Sequential, last: nn.Sequential, *, num_map_features: int, num_features: int) -> None:
        super().__init__()
        self.blocks, self.last = blocks, last
        self.num_map_features, self.num_features = num_map_features, num_features

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last feature map (N, M, H, W)."""
        return self.blocks(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.feature_map(images))


class CNN4MaxPool(_PlainCNN):
    """Four convolutions with ReLU and max pooling, and two linear layers with dropout, of which the head is one.

    32, 64, 128 and 256 channels; a grid of 4 x 4; dropout 0.5 and a linear layer to 512 features. With a linear head of
    `dropout=0.5` it is the report's.

    Args:
        in_channels: Channels of the images, which have 16 pixels at least.

    Example:
        >>> CNN4MaxPool()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """

    def __init__(self, in_channels: int = 3) -> None:
        widths = (in_channels, 32, 64, 128, 256)
        blocks = [
            part
            for before, after in pairwise(widths)
            for part in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        ]
        last = nn.Sequential(
            nn.AdaptiveMaxPool2d(_GRID),
            nn.Flatten(),
            nn.Dropout(_LINEAR_DROPOUT),
            nn.Linear(256 * _GRID**2, 512),
            nn.ReLU(inplace=True),
        )
        super().__init__(nn.Sequential(*blocks), last, num_map_features=256, num_features=512)


class CNN3BatchNorm(_PlainCNN):
    """Three convolutions with batch norm, ReLU and max pooling, and one linear layer, which is the head.

    32, 64 and 128 channels; a grid of 4 x 4, so 2,048 features.

    Args:
        in_channels: Channels of the images, which have 8 pixels at least.

    Example:
        >>> CNN3BatchNorm()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2048])
    """

    def __init__(self, in_channels: int = 3) -> None:
        widths = (in_channels, 32, 64, 128)
        blocks = [part for before, after in pairwise(widths) for part in (*_convolve(before, after), nn.MaxPool2d(2))]
        last = nn.Sequential(nn.AdaptiveMaxPool2d(_GRID), nn.Flatten())
        super().__init__(nn.Sequential(*blocks), last, num_map_features=128, num_features=128 * _GRID**2)


class CNN5AvgPool(_PlainCNN):
    """Five convolutions with batch norm and average pooling, dropout after the first, third and fifth; then linear.

    32, 64, 128, 256 and 256 channels, dropout 0.25; a grid of 4 x 4; a linear layer to 512 features with batch norm,
    ReLU and dropout 0.5. The head is the last linear layer.

    Args:
        in_channels: Channels of the images, which have 32 pixels at least.

    Example:
        >>> CNN5AvgPool()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])
    """

    def __init__(self, in_channels: int = 3) -> None:
        widths = (in_channels, 32, 64, 128, 256, 256)
        blocks: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            blocks += [*_convolve(before, after), nn.AvgPool2d(2)]
            if number % 2:
                blocks.append(nn.Dropout(_MAP_DROPOUT))
        last = nn.Sequential(
            nn.AdaptiveAvgPool2d(_GRID),
            nn.Flatten(),
            nn.Linear(256 * _GRID**2, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Dropout(_LINEAR_DROPOUT),
        )
        super().__init__(nn.Sequential(*blocks), last, num_map_features=256, num_features=512)


class SEBasicBlock(BasicBlock):
    """A residual block of two convolutions whose channels are weighed by what the whole image shows.

    Reference: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, inplanes: int, planes: int, *others: Any, **named: Any) -> None:
        super().__init__(inplanes, planes, *others, **named)
        self.excitation = SqueezeExcitation(planes, max(planes // 16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.excitation(changed) + shortcut)


class SEResNet22(ResNet):
    """A residual network of 22 layers with squeeze-and-excitation in each block, for about 256 x 256 pixels.

    Four stages of 2, 2, 3 and 3 blocks with 64, 128, 256 and 512 channels, then a mean over the image: 17.3 M
    parameters with 100 labels (69 MB on disk), as the report's have.

    References: He, Zhang, Ren and Sun (2016) for residual networks, Hu, Shen and Sun (2018) for squeeze-and-excitation.

    Args:
        in_channels: Channels of the images.

    Example:
        >>> SEResNet22()(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 512])
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(SEBasicBlock, [2, 2, 3, 3], num_classes=1)
        self.num_features = 512
        self.add_module("fc", nn.Identity())
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")


class Prior(nn.Module):
    """The constant model: it does not look at the image, so that the logits are the bias of the head.

    `Classifier.init_bias` makes that the prior of the labels; training finds the best constants for its loss. What
    another model is worth shows beside it.

    Args:
        in_channels: Not used.

    Example:
        >>> Prior()(torch.rand(2, 3, 64, 64))
        tensor([[0.],
                [0.]])
    """

    num_features = 1
    num_map_features = 1

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Return a zero (N, 1, 1, 1) for `images` (N, C, H, W)."""
        return self(images)[:, :, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return a zero (N, 1) for `images` (N, C, H, W)."""
        return images.new_zeros(images.shape[0], 1)  # len() would make the batch size a constant of an export


def _convolve(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    # The batch norm has its own shift, so that the convolution needs no bias.
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
