"""What describes a model's architecture, checked, so that it can be written as JSON and built again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from mlabel._checks import DataError, resolve, suggest
from mlabel.models.backbones import check_backbone
from mlabel.models.heads import HEADS, check_head_options

FORMAT = "mlabel.model/1"
# What an evaluated model looks at: the image as it is, or its mirror image too.
VIEWS = ("plain", "mirrored")

# Above these, a description is a slip or an attempt to use up the memory of whoever opens it.
_MAX_HIDDEN = 65_536
_MAX_SIDE = 4_096


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a `Classifier`; its label space is kept apart.

    Args:
        backbone: A name of `list_models()` or `timm/NAME`, or None for a module of the user's.
        head: A name of the table of heads, or None for a head of the user's.
        dropout: The chance that a feature is dropped before the last linear layer, 0 <= dropout < 1.
        hidden: Hidden units, width or rank of the head; `linear` and `csra` do not use it.
        in_channels: 3 for RGB, 1 for greyscale.
        image_size: Height and width in pixels to which images are resized before they come.
        mean: One number a channel, of images scaled to [0, 1].
        std: One number a channel, likewise.
        head_options: Names and values of the options of the head's own that are not its defaults.
        views: `plain` or `mirrored`; see `Classifier.views`.

    Raises:
        ValueError: a value out of its range, or a name that is not in its table.
        TypeError: a value of another type.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> from mlabel.models import create_model
        >>> config = ModelConfig.from_dict(create_model("small_cnn", space, image_size=32).config)
        >>> config.backbone, config.image_size
        ('small_cnn', (32, 32))
    """

    backbone: str | None
    head: str | None
    dropout: float
    hidden: int
    in_channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Later than version 1, so with a default. Pairs and not a dictionary, so that the description stays immutable.
    head_options: tuple[tuple[str, int | float], ...] = ()
    views: str = VIEWS[0]

    def __post_init__(self) -> None:
        if self.backbone is not None:
            _check_text(self.backbone, "backbone")
            check_backbone(self.backbone)
        self._check_head()
        _check_number(self.dropout, "dropout", 0.0, 1.0)
        if self.dropout >= 1:
            raise ValueError(f"dropout must be below 1; got {self.dropout!r}")
        _check_whole(self.hidden, "hidden", 1, _MAX_HIDDEN)
        _check_whole(self.in_channels, "in_channels", 1, 3)
        if self.in_channels == 2:
            raise ValueError("in_channels must be 1 (greyscale) or 3 (RGB); got 2")
        _check_length(self.image_size, "image_size", 2)
        for side in self.image_size:
            _check_whole(side, "each side of image_size", 1, _MAX_SIDE)
        _check_text(self.views, "views")
        resolve(self.views, dict.fromkeys(VIEWS), "views")
        _check_length(self.mean, "mean", self.in_channels)
        _check_length(self.std, "std", self.in_channels)
        for mean, std in zip(self.mean, self.std, strict=True):
            _check_number(mean, "mean (of images in [0, 1])", -10.0, 10.0)
            _check_number(std, "std (of images in [0, 1])", 1e-4, 10.0)

    def _check_head(self) -> None:
        if self.head is None:
            if self.head_options:
                raise ValueError("head_options are for heads by name; a head of your own has its own arguments")
            return
        _check_text(self.head, "head")
        resolve(self.head, HEADS, "head")
        for value in check_head_options(self.head, dict(self.head_options)).values():
            _check_number(value, "an option of the head", -1e9, 1e9)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain numbers, texts and lists, for JSON; `from_dict` reads it."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.views == VIEWS[0]:
            del values["views"]  # so that readers of version 1 know every key
        return {"format": FORMAT, **values, "head_options": dict(self.head_options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Return the description that `to_dict` wrote as `data`; everything in it is checked, as it may come from a
        stranger.

        Raises:
            DataError: another format, a missing or unknown key, or a value that is not allowed.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"a model's description must be a mapping; got {type(data).__name__}")
        if data.get("format") != FORMAT:
            raise DataError(f"a model's description of format {FORMAT!r} was wanted; got {data.get('format')!r}")
        known = [field.name for field in fields(cls)]
        given = [str(key) for key in data if key != "format"]
        strange = [key for key in given if key not in known]
        if strange:
            raise DataError(f"unknown key {strange[0][:80]!r} in a model's description; {suggest(strange[0], known)}")
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in given]
        if missing:
            raise DataError(f"a model's description lacks {', '.join(missing)}")
        try:
            values: dict[str, Any] = {
                key: tuple(data[key]) if isinstance(data[key], list) else data[key] for key in given
            }
            values["head_options"] = _as_pairs(data.get("head_options", {}))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise DataError(f"not a model's description: {error}") from error


def as_image_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a side or of a pair."""
    if not isinstance(image_size, Sequence):
        return image_size, image_size
    sides = tuple(image_size)
    _check_length(sides, "image_size", 2)
    return sides[0], sides[1]


def as_channels(
    values: float | Sequence[float] | None, default: Sequence[float], in_channels: int
) -> tuple[float, ...]:
    """Return one number a channel.

    Args:
        values: A number for all channels, one number a channel, or None for the default.
        default: The RGB values. A greyscale image stands for three equal channels, so it gets their mean.
        in_channels: How many channels there are.
    """
    if values is None:
        return tuple(default) if in_channels == len(default) else (round(sum(default) / len(default), 6),) * in_channels
    if isinstance(values, (int, float)):
        return (float(values),) * in_channels
    return tuple(float(value) for value in values)


def _as_pairs(options: object) -> tuple[tuple[str, Any], ...]:
    if not isinstance(options, Mapping):
        raise TypeError(f"head_options must be a mapping; got {options!r:.80}")
    return tuple(sorted(options.items()))


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a name; got {value!r:.80}")


def _check_whole(value: object, what: str, low: int, high: int) -> None:
    # bool is an int to Python, but `true` in a description is a mistake.
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be a whole number; got {value!r:.80}")
    if not low <= value <= high:
        raise ValueError(f"{what} must be from {low} to {high}; got {value}")


def _check_number(value: object, what: str, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number; got {value!r:.80}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{what} must be from {low} to {high}; got {value!r}")


def _check_length(values: object, what: str, length: int) -> None:
    if not isinstance(values, tuple):
        raise TypeError(f"{what} must be a list of {length}; got {values!r:.80}")
    if len(values) != length:
        raise ValueError(f"{what} must hold {length} values; got {len(values)}")
