"""Heads: what turns an image's features into logits (N, L), one column a label of the space.

The heads of this file take features (N, D), those of `map_heads` every place of the image. `HEADS` is the table of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from mlabel._checks import resolve, suggest
from mlabel.labels import LabelSpace
from mlabel.models.base_head import Head
from mlabel.models.map_heads import CSRAHead, MLDecoderHead

HeadOptions = Mapping[str, int | float]

# What every head is called with; further keyword arguments of its own are its options.
_COMMON = ("num_features", "space", "dropout", "hidden")


class LinearHead(Head):
    """Dropout, then one linear layer for all labels.

    Args:
        num_features: D.
        space: The labels.
        dropout: The chance that a feature is dropped before the last layer.
        hidden: Not used.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> LinearHead(512, space)(torch.zeros(4, 512)).shape
        torch.Size([4, 2])
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__(space)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features` (N, D)."""
        return self.linear(self.dropout(features))

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]


class MLPHead(Head):
    """A linear layer to `hidden` units, ReLU, dropout, and a linear layer for all labels.

    Args:
        num_features: D.
        space: The labels.
        dropout: The chance that a feature is dropped before the last layer.
        hidden: Units of the hidden layer.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> MLPHead(512, space, hidden=64)(torch.zeros(4, 512)).shape
        torch.Size([4, 2])
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__(space)
        self.hidden = nn.Linear(num_features, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features` (N, D)."""
        return self.linear(self.dropout(self.activation(self.hidden(features))))

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]


class MultiHead(Head):
    """For each group its own batch norm over the features, dropout and linear layer.

    Groups of one space often want features of different scale; the batch norms give each its own, so that a group
    with few labels is not drowned by the others in the first epochs.

    Args:
        num_features: D.
        space: The labels; each of its groups gets its own layers.
        dropout: The chance that a feature is dropped before a group's last layer.
        hidden: Units of each hidden layer.
        layers: Hidden layers of each group, each a linear layer, ReLU and batch norm, before the dropout; 0 for none.

    Raises:
        ValueError: layers that are not from 0 to 16.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
        >>> head = MultiHead(512, space)
        >>> head(torch.zeros(4, 512)).shape, len(head.last_layers())
        (torch.Size([4, 4]), 2)
    """

    def __init__(
        self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512, layers: int = 0
    ) -> None:
        super().__init__(space)
        if not 0 <= layers <= 16:
            raise ValueError(f"layers must be from 0 to 16; got {layers}")
        widths = [num_features] + [hidden] * layers

        def stack(num_labels: int) -> nn.Sequential:
            between = [
                part
                for before, after in pairwise(widths)
                for part in (nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after))
            ]
            last = nn.Linear(widths[-1], num_labels)
            return nn.Sequential(nn.BatchNorm1d(num_features), *between, nn.Dropout(dropout), last)

        # A list and not a dictionary by group name: names may hold dots, which parameter names may not.
        self.groups = nn.ModuleList(stack(len(group)) for group in space.groups)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features` (N, D)."""
        return torch.cat([group(features) for group in self.groups], dim=1)

    def last_layers(self) -> Sequence[nn.Linear]:
        return [cast(nn.Linear, cast(nn.Sequential, group)[-1]) for group in self.groups]


class EmbeddingHead(Head):
    """An embedding of R numbers for each label, and one projection of images to the same R: for very many labels.

    The logit is the product of the two and a bias. Labels share the D x R weights of the projection, and own only R
    each: R (D + L) + L weights, where the linear head has L (D + 1). At 70,000 labels, D = 2048 and R = 256 those are
    18.5 M weights of 74 MB instead of 143 M of 574 MB; training with Adam holds four times that (gradient and two
    moments), and N x L logits with their gradient (36 MB at N = 64). Unlike the hidden layer of `mlp` the projection
    has no activation: the head is a linear one of rank R, and its rows can be compared as vectors of labels.

    Args:
        num_features: D.
        space: The labels.
        dropout: The chance that one of the R numbers of an image is dropped.
        hidden: R; worth it where it is well below D.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> head = EmbeddingHead(512, LabelSpace([Group("tags", ["cat", "dog"])]), hidden=64)
        >>> head(torch.zeros(4, 512)).shape, head.embeddings.shape
        (torch.Size([4, 2]), torch.Size([2, 64]))
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__(space)
        self.projection = nn.Linear(num_features, hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, space.num_labels)

    @property
    def embeddings(self) -> torch.Tensor:
        """The labels' vectors (L, R), those that are learned, in the order of the space."""
        return self.linear.weight

    def set_embeddings(self, vectors: torch.Tensor) -> None:
        """Begin with given vectors of the labels, such as those of their names or of what they occur with.

        Args:
            vectors: (L, R), in the order of the space.

        Raises:
            ValueError: another shape.
        """
        if tuple(vectors.shape) != tuple(self.embeddings.shape):
            raise ValueError(f"vectors must be of shape {tuple(self.embeddings.shape)}; got {tuple(vectors.shape)}")
        with torch.no_grad():
            self.embeddings.copy_(vectors)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, L) of `features` (N, D)."""
        return self.linear(self.dropout(self.projection(features)))

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]


HEADS: Mapping[str, type[Head]] = {
    "linear": LinearHead,
    "mlp": MLPHead,
    "multi": MultiHead,
    "csra": CSRAHead,
    "ml_decoder": MLDecoderHead,
    "embedding": EmbeddingHead,
}


def create_head(
    name: str,
    num_features: int,
    space: LabelSpace,
    *,
    dropout: float = 0.0,
    hidden: int = 512,
    options: HeadOptions | None = None,
) -> Head:
    """Return a new head that maps features (N, `num_features`) to logits (N, L).

    `csra` and `ml_decoder` take a feature map (N, `num_features`, H, W) or tokens (N, T, `num_features`) too.

    Args:
        name: A name of `HEADS`.
        num_features: D.
        space: The labels; `multi` gives each of its groups its own layers.
        dropout: The chance that a feature (in `mlp`, a hidden unit) is dropped in training.
        hidden: Hidden units of `mlp` and of the layers of `multi`, width of `ml_decoder`, rank of `embedding`.
        options: Arguments of that head's own, such as `{"heads": 4, "attention": 0.2}` of `csra`; None: its defaults.

    Raises:
        ValueError: there is no such head or option; the nearest is named. Or a value out of its range.
        TypeError: a value that is no number, or not a whole one where that is wanted.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> head = create_head("multi", 512, space, hidden=64, options={"layers": 1})
        >>> [layer.in_features for layer in head.last_layers()]
        [64]
    """
    factory: Any = resolve(name, HEADS, "head")
    checked = check_head_options(name, options or {})
    return factory(num_features, space, dropout=dropout, hidden=hidden, **checked)


def check_head_options(name: str, options: HeadOptions) -> dict[str, int | float]:
    """Return the options of head `name`, of the right names and types; their ranges are checked by the head.

    Raises:
        ValueError: the head has no such option.
        TypeError: a value that is no number, or not a whole one where that is wanted.
    """
    parameters = inspect.signature(resolve(name, HEADS, "head")).parameters
    known = {key: parameter.annotation for key, parameter in parameters.items() if key not in _COMMON}
    for key, value in options.items():
        if key not in known:
            tail = suggest(str(key)[:80], known) if known else "It has none"
            raise ValueError(f"head {name!r} has no option {str(key)[:80]!r}; {tail}")
        wanted = int if known[key] == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            kind = "whole number" if wanted is int else "number"
            raise TypeError(f"option {key!r} of head {name!r} must be a {kind}; got {value!r:.80}")
    return dict(options)
