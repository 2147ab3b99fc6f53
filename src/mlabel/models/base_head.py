"""What all heads share: a label space, a bias a label, and how they read a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from mlabel.labels import LabelSpace


class Head(nn.Module):
    """What turns an image's features into logits (N, L).

    Args:
        space: The labels; column i of the logits is `space.names[i]`.

    Attributes:
        takes_map: Whether it wants the backbone's feature map (every place of the image) or its features (N, D).
    """

    takes_map: ClassVar[bool] = False

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


def as_places(features: torch.Tensor) -> torch.Tensor:
    """Return features as places (N, T, D).

    Args:
        features: A feature map (N, D, H, W), of which every position is a place; tokens (N, T, D), as they are; or
            pooled features (N, D), which are one place.

    Raises:
        ValueError: another number of dimensions.
    """
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    if features.ndim == 3:
        return features
    if features.ndim == 2:
        return features[:, None]
    raise ValueError(f"features must be (N, D, H, W), (N, T, D) or (N, D); got {tuple(features.shape)}")
