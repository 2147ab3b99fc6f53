"""Logit adjustment: any loss, computed on logits to which an offset for each label was added."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlabel._checks import to_numpy
from mlabel.losses.batch import BatchLoss, Parts, as_matrix


class LogitAdjusted(nn.Module):
    """A loss of logits + offset, in training only: what predicts goes on with the logits as the model gives them.

    With offset = tau x `space.prior_logits(counts, known)` this is logit adjustment: log prior for the classes of an
    exclusive group, log(prior / (1 - prior)) for any-of labels. The model then learns what the image says beyond how
    often the label occurs. With tau = 1 the highest unadjusted logit of an exclusive group is the decision with the
    least error averaged over classes, and an unadjusted logit of 0 that with the least error averaged over a label's
    positives and negatives; probabilities computed of unadjusted logits are those of a world in which all are equally
    frequent.

    An offset moves all logits of an any-of label alike. It therefore changes how labels compare with one another and
    what a threshold of 0.5 means, but neither a label's average precision nor its decisions at a threshold of its
    own, other than by where training begins, and that a bias that begins at the prior does, too.

    Args:
        loss: What computes the loss, such as a `Loss` or a `PerGroup` (`as_loss` makes one of any other).
        offset: Finite numbers (L,).

    Raises:
        TypeError: a loss without `parts` and `denominators`.
        ValueError: an offset that is not (L,) or not finite.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.losses import create
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> loss = LogitAdjusted(create("focal", space=space), space.prior_logits([50, 1], 100))
        >>> loss(torch.zeros(1, 2), torch.tensor([[0, 0]]))
        tensor(0.0866)

    Reference: Menon, Jayasumana, Rawat, Jain, Veit and Kumar, "Long-Tail Learning via Logit Adjustment", ICLR 2021.
    """

    offset: Tensor

    def __init__(self, loss: BatchLoss, offset: Any) -> None:
        super().__init__()
        if not isinstance(loss, BatchLoss):
            raise TypeError(
                f"loss must merge batches by `parts`, as Loss and PerGroup do; got {type(loss).__name__}. "
                "Make it so with as_loss(loss, space)"
            )
        array = to_numpy(offset).astype(np.float32)  # not every accelerator has float64
        if array.ndim != 1 or not np.isfinite(array).all():
            raise ValueError(f"offset must be finite numbers (L,); got {offset!r}")
        self.loss = loss
        self.register_buffer("offset", torch.from_numpy(array))

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss of the adjusted `logits` (N, L); `targets` and `mask` are those of the loss inside."""
        return self.loss(self._adjusted(logits), targets, mask)

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return the parts of the loss of the adjusted `logits` (N, L); `targets` and `mask` are those of the loss
        inside.
        """
        return self.loss.parts(self._adjusted(logits), targets, mask)

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return the denominators that the loss inside has for `targets` and `mask`."""
        return self.loss.denominators(as_matrix(targets, len(self.offset)), mask)

    def _adjusted(self, logits: Tensor) -> Tensor:
        if logits.ndim != 2 or logits.shape[1] != len(self.offset):
            raise ValueError(f"logits must be of shape (N, {len(self.offset)}); got {tuple(logits.shape)}")
        # The sum of half-precision logits and a float32 offset is float32, in which losses are computed anyway.
        return logits + self.offset.to(logits.device)
