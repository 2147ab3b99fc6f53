"""The stages of a backbone, from the image to the features: what is frozen, or learns more slowly, goes by them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mlabel._checks import suggest
from mlabel.models.classifier import Classifier

ALL = "backbone"  # stands for the last stage, and with it for all of them

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_FEWEST = 4  # stages, where the network has so many parts
_MOST = 0.75  # of the layers, which one stage should not exceed


@dataclass(frozen=True)
class Stage:
    """A part of a backbone.

    Attributes:
        name: Of its first module, as the backbone names it.
        modules: Names of its modules.
        loose: Names of parameters that lie in no such module, such as a class token.
    """

    name: str
    modules: tuple[str, ...]
    loose: tuple[str, ...] = ()

    def holds(self, parameter: str) -> bool:
        """Return whether `parameter`, named as in the backbone, is one of this stage."""
        return parameter in self.loose or any(_lies_in(parameter, module) for module in self.modules)


def list_stages(model: Classifier) -> tuple[Stage, ...]:
    """Return the stages of a model's backbone, the one nearest to the image first.

    They are the backbone's own parts in the order of definition, those opened that hold over three quarters of the
    layers, and the largest opened while there are fewer than four. A normalisation belongs to the part before it;
    class tokens and position tables belong to the first stage.

    Args:
        model: The classifier.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> model = create_model("resnet18", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=64)
        >>> [stage.name for stage in list_stages(model)]
        ['conv1', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    backbone = model.backbone
    parts, loose = _children(backbone, ""), _own(backbone, "")
    while True:
        sizes = {name: _count_layers(backbone.get_submodule(name)) for name in parts}
        large = [name for name in parts if _children(backbone.get_submodule(name), name)]
        if not large:
            break
        largest = max(large, key=lambda name: sizes[name])
        if len(parts) >= _FEWEST and sizes[largest] <= _MOST * sum(sizes.values()):
            break
        inside = backbone.get_submodule(largest)
        place = parts.index(largest)
        parts[place : place + 1] = _children(inside, largest)
        loose += _own(inside, largest)
    return _as_stages(backbone, parts, loose)


def stages_until(model: Classifier, until: str) -> int:
    """Return how many stages there are from the image up to and including `until`.

    Args:
        model: The classifier.
        until: Name of a stage, of a normalisation that belongs to one, of a module that holds some, or `backbone`.

    Raises:
        ValueError: there is no such stage; the nearest is named.
    """
    stages = list_stages(model)
    if until == ALL:
        return len(stages)
    for number in range(len(stages), 0, -1):
        modules = stages[number - 1].modules
        if any(_lies_in(module, until) for module in modules):
            return number
    raise ValueError(f"there is no stage {until!r}; {suggest(until, [*(stage.name for stage in stages), ALL])}")


def freeze(model: Classifier, until: str = ALL) -> int:
    """Freeze the stages up to and including `until`, and return how many parameters still train.

    Their parameters want no gradient, and they are put into evaluation mode: no dropout, and batch norms use their
    running statistics and leave them as they are. `model.train()` ends the latter; in a training by `mlabel.fit` use
    `TrainConfig(freeze=...)`, which sees to it at every step.

    Args:
        model: Changed in place.
        until: Name of a stage, as `list_stages` gives them, or `backbone` for all: only the head trains then.

    Raises:
        ValueError: there is no such stage; the nearest is named.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> model = create_model("resnet18", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=64)
        >>> freeze(model), freeze(model, "layer2"), unfreeze(model)
        (1026, 1026, 11177538)
    """
    for stage in list_stages(model)[: stages_until(model, until)]:
        for name, parameter in model.backbone.named_parameters():
            if stage.holds(name):
                parameter.requires_grad_(False)
        for module in stage.modules:
            model.backbone.get_submodule(module).eval()
    return count_trained(model)


def unfreeze(model: nn.Module) -> int:
    """Let every parameter of `model` train, put it into training mode, and return how many parameters there are.

    Args:
        model: The classifier, or any module.

    Example:
        >>> layer = nn.Linear(2, 3).requires_grad_(False)
        >>> unfreeze(layer)
        9
    """
    model.requires_grad_(True).train()
    return count_trained(model)


def count_trained(model: nn.Module) -> int:
    """Return how many numbers of `model` want a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the scales and shifts of the normalisation layers."""
    return {
        each for module in model.modules() if isinstance(module, _NORMS) for each in module.parameters(recurse=False)
    }


def _as_stages(backbone: nn.Module, parts: list[str], loose: list[str]) -> tuple[Stage, ...]:
    """Return stages of those parts, each normalisation with the part before it, what is loose with the first."""
    joined: list[list[str]] = []
    for name in parts:
        if joined and isinstance(backbone.get_submodule(name), _NORMS):
            joined[-1].append(name)
        else:
            joined.append([name])
    if not joined:
        return (Stage(ALL, (), tuple(loose)),) if loose else ()
    first, *others = (tuple(modules) for modules in joined)
    return (Stage(first[0], first, tuple(loose)), *(Stage(modules[0], modules) for modules in others))


def _children(module: nn.Module, name: str) -> list[str]:
    """Return the full names of the parts of `module` that have parameters."""
    prefix = f"{name}." if name else ""
    return [prefix + own for own, child in module.named_children() if next(child.parameters(), None) is not None]


def _own(module: nn.Module, name: str) -> list[str]:
    """Return the full names of the parameters of `module` that lie in none of its parts."""
    return [f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False)]


def _count_layers(module: nn.Module) -> int:
    return sum(next(each.parameters(recurse=False), None) is not None for each in module.modules())


def _lies_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
