"""Heads: what turns an image's features (N, D) into logits (N, L), one column a label of the space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import nn

from mlabel._checks import resolve
from mlabel.labels import LabelSpace


class HeadFactory(Protocol):
    """What builds a head; every entry of `HEADS` is called this way and uses the options that concern it."""

    def __call__(self, num_features: int, space: LabelSpace, *, dropout: float, hidden: int) -> Head: ...


class Head(nn.Module):
    """What all heads share: a label space, and a bias a label in their last layers.

    Args:
        space: The labels; column i of the logits is `space.names[i]`.
    """

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        self.space = space

    def last_layers(self) -> Sequence[nn.Linear]:
        """Return the layers that give the logits, in the order of their columns."""
        raise NotImplementedError

    def init_bias(self, counts: Any, known: Any, *, logit_adjustment: float = 0.0) -> None:
        """Set the bias of each label so that a new head begins with the labels' shares, not with one half of each.

        Without it the first steps of a training do little but learn that most labels are rare. See
        `LabelSpace.prior_logits` for the bias, also of labels that never occur.

        Args:
            counts: Positives of the training part (L,), as `mlabel.weights.count_labels` gives them.
            known: Known samples: (L,), or one number.
            logit_adjustment: The tau by which the loss adjusts the logits (`mlabel.losses.LogitAdjusted`), so that the
                adjusted logits begin at the shares: the bias is (1 - tau) times what it would be.

        Raises:
            ValueError: counts of another number of labels, negative, or above the known samples.

        Reference: Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.
        """
        bias = (1.0 - logit_adjustment) * torch.from_numpy(self.space.prior_logits(counts, known))
        layers = self.last_layers()
        with torch.no_grad():
            for layer, values in zip(layers, bias.split([layer.out_features for layer in layers]), strict=True):
                layer.bias.copy_(values)


class LinearHead(Head):
    """Dropout, then one linear layer for all labels.

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
        return self.linear(self.dropout(features))

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]


class MLPHead(Head):
    """A linear layer to `hidden` units, ReLU, dropout, and a linear layer for all labels."""

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__(space)
        self.hidden = nn.Linear(num_features, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(self.activation(self.hidden(features))))

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.linear]


class MultiHead(Head):
    """For each group its own batch norm over the features, dropout and linear layer.

    Groups of one space often want features of different scale; the batch norms give each its own, so that a group
    with few labels is not drowned by the others in the first epochs.
    """

    def __init__(self, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> None:
        super().__init__(space)
        # A list and not a dictionary by group name: names may hold dots, which parameter names may not.
        self.groups = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(num_features), nn.Dropout(dropout), nn.Linear(num_features, len(group)))
            for group in space.groups
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([group(features) for group in self.groups], dim=1)

    def last_layers(self) -> Sequence[nn.Linear]:
        return [cast(nn.Linear, cast(nn.Sequential, group)[-1]) for group in self.groups]


HEADS: Mapping[str, HeadFactory] = {"linear": LinearHead, "mlp": MLPHead, "multi": MultiHead}


def create_head(name: str, num_features: int, space: LabelSpace, *, dropout: float = 0.0, hidden: int = 512) -> Head:
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
