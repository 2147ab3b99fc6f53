"""The classifier: preprocessing, backbone and head in one module, from images to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from mlabel.labels import LabelSpace
from mlabel.models.backbones import has_fixed_size
from mlabel.models.base_head import Head
from mlabel.models.config import ModelConfig
from mlabel.models.feature_maps import compute_feature_map, count_map_features
from mlabel.models.heads import HEADS, HeadOptions, create_head
from mlabel.models.pretrained import LoadReport


class Preprocess(nn.Module):
    """The first layer: images as they lie on disk to float32, normalised a channel at a time.

    `(images / 255 - mean) / std` for uint8 images and `(images - mean) / std` for floating ones, which are taken to
    be in [0, 1] already; both as one multiplication and one addition. The numbers are part of the architecture, not
    of the weights: they stay float32 when the model is cast, and are not in its state dict.

    Args:
        mean: One number a channel, of images in [0, 1].
        std: One number a channel, likewise.

    Example:
        >>> Preprocess(mean=[0.5], std=[0.25])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-2.,  2.]]]])
    """

    scale: torch.Tensor
    byte_scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self._fill(None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 images (N, C, H, W), normalised, of `images` uint8 or floating in [0, 1].

        Raises:
            ValueError: another shape.
            TypeError: images neither uint8 nor floating.
        """
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images must be of shape (N, {channels}, H, W), as the model has in_channels={channels}; "
                f"got {tuple(images.shape)}"
            )
        if images.dtype == torch.uint8:
            return _multiply_add(images.to(torch.float32), self.byte_scale, self.shift)
        if images.dtype.is_floating_point:
            # A copy where the dtype is the same, since the next step writes into it, and an input is never modified.
            return _multiply_add(images.to(torch.float32, copy=True), self.scale, self.shift)
        raise TypeError(f"images must be uint8, or floating in [0, 1]; got {images.dtype}")

    def extra_repr(self) -> str:
        """Return what `repr` shows of the layer."""
        return f"mean={self.mean}, std={self.std}"

    def _fill(self, device: torch.device | None) -> None:
        for name, values in (
            ("scale", [1 / std for std in self.std]),
            ("byte_scale", [1 / (255 * std) for std in self.std]),
            ("shift", [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device=device), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # `half()`, `to(device)` and `to_empty` all come through here: move with the model, but keep the values.
        super()._apply(fn, recurse)
        self._fill(self.scale.device)
        return self


def _multiply_add(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return `images * scale + shift` by channel, written into `images`."""
    if images.is_contiguous():
        return images.mul_(scale[:, None, None]).add_(shift[:, None, None])
    if images.is_contiguous(memory_format=torch.channels_last):
        # Channels vary fastest here, and a broadcast over three of them is slow (5 times at 64 pixels): whole rows
        # of the image, with the numbers repeated along them, are not.
        width = images.shape[3]
        rows = images.permute(0, 2, 3, 1).view(images.shape[0], images.shape[2], -1)
        rows.mul_(scale.repeat(width)).add_(shift.repeat(width))
        return images
    return images.mul_(scale[:, None, None]).add_(shift[:, None, None])


class Classifier(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], to logits (N, L): preprocess, backbone, head.

    `create_model` is the usual way to make one.

    Args:
        backbone: A module from images (N, C, H, W) to features (N, D), with D as its `num_features`.
        space: The labels; column i of the logits is `space.names[i]`.
        config: The architecture around the backbone.
        head: A head of your own, made for `space`; None: the one that `config` describes.

    Raises:
        TypeError: the backbone is no module, its `num_features` no whole number, or the head no `Head`.
        ValueError: `num_features` is missing or below 1, or the head is of another space.

    Attributes:
        preprocess, backbone, head: The three layers.
        space: The label space.
        image_size: (H, W) to which images are resized before they come.
        in_channels: C.
        num_features: D.
        load_report: What became of the pretrained weights' entries; None where none were asked for.
        views: What is looked at in evaluation mode, to be set at any time: `plain`, the image as it is; `mirrored`, its
            mirror image too, whose logits are averaged with those of the image, for twice the time.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> from mlabel.models import create_model
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> model(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([4, 2])
    """

    def __init__(self, backbone: nn.Module, space: LabelSpace, config: ModelConfig, head: Head | None = None) -> None:
        super().__init__()
        self.num_features = _read_num_features(backbone)
        self.preprocess = Preprocess(config.mean, config.std)
        self.backbone = backbone
        self.head = _create_head(backbone, self.num_features, space, config) if head is None else _own_head(head, space)
        self.space = space
        self.image_size = config.image_size
        self.in_channels = config.in_channels
        self.load_report: LoadReport | None = None
        self._config = config
        self._fixed_size = has_fixed_size(config.backbone)

    @property
    def config(self) -> dict[str, Any]:
        """The architecture as a dictionary for JSON, without the label space; `from_config` builds it again."""
        return self._config.to_dict()

    @property
    def views(self) -> str:
        """What is looked at in evaluation mode: `plain` or `mirrored`."""
        return self._config.views

    @views.setter
    def views(self, views: str) -> None:
        self._config = replace(self._config, views=views)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the backbone makes of `images` (N, C, H, W): features (N, D).

        Raises:
            ValueError: another number of channels than the model's; another size, for networks that take one size
                only; or a user's backbone that returned another shape.
            TypeError: images neither uint8 nor floating.
        """
        features = self.backbone(self._prepare(images))
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"the backbone must return features of shape (N, {self.num_features}), as its num_features says; "
                f"got {tuple(features.shape)}"
            )
        return features

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Return the backbone's last feature map (N, M, H, W) of `images` (N, C, H, W), or its tokens (N, T, M).

        M is D for most networks; the tokens come from backbones whose places lie on no grid. See
        `mlabel.models.feature_maps.compute_feature_map`.

        Raises:
            ValueError: as `features`.
            TypeError: images neither uint8 nor floating, or a user's backbone without a method `feature_map`.
        """
        return compute_feature_map(self.backbone, self._prepare(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) float of `images` (N, C, H, W).

        Raises:
            ValueError: as `features`.
            TypeError: images neither uint8 nor floating.
        """
        if self.training or self._config.views == "plain":
            return self._logits(images)
        return (self._logits(images) + self._logits(images.flip(-1))) / 2

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.feature_map(images) if self.head.takes_map else self.features(images))

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        normalised = self.preprocess(images)
        if self._fixed_size and tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"{self._config.backbone} takes images of {self.image_size} (height, width) only; "
                f"got {tuple(images.shape[2:])}. Resize them, or create the model with that image_size"
            )
        return normalised.to(self._weight_dtype())

    def init_bias(self, counts: Any, known: Any, *, logit_adjustment: float = 0.0) -> None:
        """Set the bias of each label so that the first logits stand for the labels' shares; for a head that is new.

        Args:
            counts, known, logit_adjustment: See `mlabel.models.heads.Head.init_bias`.

        Example:
            >>> from mlabel.labels import Group, LabelSpace
            >>> from mlabel.models import create_model
            >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
            >>> model.init_bias([50, 1], 100)
            >>> model.head.linear.bias.sigmoid()
            tensor([0.5000, 0.0100], grad_fn=<SigmoidBackward0>)
        """
        self.head.init_bias(counts, known, logit_adjustment=logit_adjustment)

    def _weight_dtype(self) -> torch.dtype:
        # Not float32 only where the whole model was cast, as by `model.bfloat16()`.
        for parameter in self.parameters():
            if parameter.dtype.is_floating_point:
                return parameter.dtype
        return torch.float32


def replace_head(
    model: Classifier,
    space: LabelSpace,
    *,
    head: str | Head = "linear",
    dropout: float = 0.0,
    hidden: int = 512,
    head_options: HeadOptions | None = None,
) -> Classifier:
    """Return a classifier for another space or with another head, on the same backbone.

    The backbone is shared, not copied: training one model changes the other. The head is new.

    Args:
        model: The classifier whose backbone, with its weights, and preprocessing are kept.
        space: The labels of the new head.
        head: A name of `HEADS`, or a `Head` of your own.
        dropout: As in `create_model`.
        hidden: As in `create_model`.
        head_options: As in `create_model`.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> colours = LabelSpace([Group("colour", ["red", "green", "blue"], exclusive=True)])
        >>> replace_head(model, colours, head="mlp")(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 3])
    """
    options = tuple(sorted((head_options or {}).items()))
    name, own = (head, None) if isinstance(head, str) else (None, head)
    config = replace(model._config, head=name, dropout=dropout, hidden=hidden, head_options=options)
    other = Classifier(model.backbone, space, config, own)
    other.load_report = model.load_report
    parameter = next(model.parameters(), None)
    if parameter is not None:
        other.head.to(device=parameter.device, dtype=parameter.dtype)
        other.preprocess.to(parameter.device)
    return other.train(model.training)


def _own_head(head: Head, space: LabelSpace) -> Head:
    if not isinstance(head, Head):
        raise TypeError(f"head must be a name or a mlabel.models.Head; got {type(head).__name__}")
    space.check_same(head.space, "the head")
    return head


def _create_head(backbone: nn.Module, num_features: int, space: LabelSpace, config: ModelConfig) -> Head:
    if config.head is None:
        raise ValueError("the model was made with a head of its user's; pass such a head as head=")
    if HEADS[config.head].takes_map:
        num_features = count_map_features(backbone, config.in_channels, config.image_size)
    options = dict(config.head_options)
    return create_head(config.head, num_features, space, dropout=config.dropout, hidden=config.hidden, options=options)


def _read_num_features(backbone: nn.Module) -> int:
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be a name or a torch.nn.Module; got {type(backbone).__name__}")
    num_features = getattr(backbone, "num_features", None)
    if num_features is None:
        raise ValueError(
            f"backbone {type(backbone).__name__} must say how many features it returns an image: set its "
            "attribute num_features to D, where it maps (N, C, H, W) to (N, D)"
        )
    if not isinstance(num_features, int) or isinstance(num_features, bool):
        raise TypeError(f"num_features of the backbone must be a whole number; got {num_features!r}")
    if num_features < 1:
        raise ValueError(f"num_features of the backbone must be at least 1; got {num_features}")
    return num_features
