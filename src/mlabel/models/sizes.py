"""How large backbones and heads are: parameters and multiply-adds, counted without memory or arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mlabel.labels import Group, LabelSpace
from mlabel.models.backbones import create_backbone
from mlabel.models.classifier import Classifier
from mlabel.models.config import as_image_size
from mlabel.models.feature_maps import run_on_meta
from mlabel.models.heads import HEADS, create_head

_MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})


@dataclass(frozen=True)
class ModelSize:
    """What a backbone costs, without a head.

    Attributes:
        name: Its name.
        image_size: (H, W) of the images for which multiply-adds are counted.
        num_features: D.
        parameters: Numbers that are learned.
        multiply_adds: Of convolutions, linear layers and attention, for one image.
    """

    name: str
    image_size: tuple[int, int]
    num_features: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class HeadSize:
    """What a head costs.

    Attributes:
        name: Its name.
        parameters: Numbers that are learned.
        weights_bytes: Bytes of its parameters in float32.
        training_bytes: Bytes of parameters, gradient and Adam's two moments, which are held during training.
    """

    name: str
    parameters: int
    weights_bytes: int
    training_bytes: int


def measure_backbone(name: str, *, image_size: int | tuple[int, int] = 224, in_channels: int = 3) -> ModelSize:
    """Return what backbone `name` costs at that size of images.

    Args:
        name: A name of `list_models()`, or `timm/NAME`.
        image_size: Height and width in pixels, or one number for both.
        in_channels: 3 for RGB, 1 for grey.

    Raises:
        ValueError: no such name, or the network cannot take images of that size.
        ImportError: a network of timm, and timm is not installed.

    Example:
        >>> size = measure_backbone("resnet18")
        >>> size.parameters, size.multiply_adds
        (11176512, 1813561344)
    """
    sides = as_image_size(image_size)
    with _WithoutMemory():
        backbone = create_backbone(name, in_channels=in_channels, image_size=sides)
    counter = FlopCounterMode(display=False)
    with counter:
        run_on_meta(backbone, in_channels, sides)
    return ModelSize(
        name=name,
        image_size=sides,
        num_features=int(backbone.num_features),  # type: ignore[arg-type]
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
    )


def measure_heads(num_labels: int, num_features: int, *, hidden: int = 512) -> list[HeadSize]:
    """Return what each head costs for that many any-of labels.

    Args:
        num_labels: L.
        num_features: D.
        hidden: As in `create_model`.

    Example:
        >>> [head.parameters for head in measure_heads(100, 512) if head.name == "linear"]
        [51300]
    """
    space = LabelSpace([Group("labels", map(str, range(num_labels)))])
    sizes = []
    for name in HEADS:
        with torch.device("meta"):
            head = create_head(name, num_features, space, hidden=hidden)
        count = sum(parameter.numel() for parameter in head.parameters())
        sizes.append(HeadSize(name, count, 4 * count, 16 * count))
    return sizes


def count_multiply_adds(model: Classifier) -> int:
    """Return the multiply-adds of convolutions, linear layers and attention of a classifier for one image.

    Args:
        model: The classifier.

    Raises:
        RuntimeError: the network computes with values, which are not there when shapes alone are run through it.

    Example:
        >>> from mlabel.models import create_model
        >>> count_multiply_adds(create_model("resnet18", LabelSpace([Group("tags", ["cat", "dog"])])))
        1813562368
    """
    counter = FlopCounterMode(display=False)
    with counter:
        run_on_meta(model, model.in_channels, model.image_size)
    return counter.get_total_flops() // 2


def count_kept_bytes(model: Classifier, batch_size: int) -> int:
    """Return the bytes that a classifier keeps of a batch until its gradient is computed, in float32.

    Shapes are run through the network, and no values: what its operations keep is added up, each piece of memory once,
    its weights apart.

    Args:
        model: The classifier; it is given back in the mode it was in.
        batch_size: Images of a batch.

    Raises:
        RuntimeError: the network computes with values.

    Example:
        >>> from mlabel.models import create_model
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> held = [count_kept_bytes(model, size) for size in (4, 5, 8)]
        >>> held[2] - held[1] == 3 * (held[1] - held[0])
        True
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: _shape_of(tensor) for name, tensor in tensors.items()}
    own = {tensor.untyped_storage()._cdata for tensor in shapes.values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    images = torch.empty(batch_size, model.in_channels, *model.image_size, device="meta")
    was_training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = functional_call(model, shapes, (images,))
    finally:
        model.train(was_training)
    return sum(storage.nbytes() for storage in kept.values()) if logits.requires_grad else 0


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


class _WithoutMemory(TorchFunctionMode):
    """Makes the weights of layers on the meta device.

    `torch.device("meta")` would do so with every tensor, of which some networks read values while they are built.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _MAKERS and named.get("device") is None:
            named["device"] = "meta"
        return func(*args, **named)
