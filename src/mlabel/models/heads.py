"""Heads: what turns an image's features (N, D) into logits (N, L), one column a label of the space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from mlabel._checks import resolve
from mlabel.labels import LabelSpace


class HeadFactory(Protocol):
    """What builds a head; every entry of `HEADS` is called this way and uses the options that concern it."""

    def __call__(self, num_features: int, space: LabelSpace, *, dropout: float, hidden: int) -> nn.Module: ...


class LinearHead(nn.Module):
    """Dropout, then one linear layer for all labels.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> LinearHead(512, space)(torch.zeros(4, 512)).shape
        torch.Size([4, 2])
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(features))


class MLPHead(nn.Module):
    """A linear layer to `hidden` units, ReLU, dropout, and a linear layer for all labels."""

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(self.activation(self.hidden(features))))


class MultiHead(nn.Module):
    """For each group its own batch norm over the features, dropout and linear layer.

    Groups of one space often want features of different scale; the batch norms give each its own, so that a group
    with few labels is not drowned by the others in the first epochs.
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__()
        # A list and not a dictionary by group name: names may hold dots, which parameter names may not.
        self.groups = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(num_features), nn.Dropout(dropout), nn.Linear(num_features, len(group)))
            for group in space.groups
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([group(features) for group in self.groups], dim=1)


HEADS: Mapping[str, HeadFactory] = {"linear": LinearHead, "mlp": MLPHead, "multi": MultiHead}


def create_head(
    name: str, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512
) -> nn.Module:
    """Return a new head that maps features (N, `num_features`) to logits (N, L).

    Args:
        name: `linear`, `mlp` or `multi`.
        num_features: D.
        space: The labels; `multi` gives each of its groups its own layers.
        dropout: The chance that a feature (in `mlp`, a hidden unit) is dropped in training.
        hidden: Hidden units of `mlp`.

    Raises:
        ValueError: there is no such head; the nearest is named.
    """
    return resolve(name, HEADS, "head")(num_features, space, dropout=dropout, hidden=hidden)
