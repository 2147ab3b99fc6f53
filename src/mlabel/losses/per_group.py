"""A loss for each group of a label space, and any loss in the shape that training calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlabel._checks import resolve
from mlabel.labels import Group, LabelSpace
from mlabel.losses.batch import ALL, BatchLoss, Parts, as_known, as_matrix, as_targets, shape_of, total
from mlabel.losses.foreign import ForeignLoss
from mlabel.losses.module import Loss, is_own, name_of


class PerGroup(nn.Module):
    """The sum of the reduced losses of a space's groups, each computed on its own columns.

    A group's loss may be

    - a `Loss`, or one of this package's functions, of a kind for groups such as this: elementwise or per sample for an
      any-of group, such as `cross_entropy` for an exclusive one;
    - any other module or callable. Of an exclusive group it gets the known rows only, logits (n, K) and int64 classes
      (probabilities (n, K) where targets are soft), and returns a scalar or a value a row; with no known row it is not
      called, and the loss is 0. Of an any-of group it gets logits and dense floating-point targets (N, K). A result
      (N, K) is masked and averaged over known entries; a scalar or a value a row is taken where all is known, and is
      an error where something is unknown. Its `parts` count it as a mean over known rows or entries.

    Args:
        space: The columns' meaning.
        losses: For each group name its loss.
        scale: Factors of the groups' losses, by name; 1 where not given. `parts` has it in the sums already.

    Raises:
        ValueError: a group without a loss, an unknown group, a loss of the wrong kind for its group, one with
            reduction "none", or a scale that is negative or not finite.

    Example:
        >>> from mlabel.labels import Group
        >>> from mlabel.losses import focal
        >>> space = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
        >>> loss = PerGroup(space, {"tags": Loss(focal), "rating": nn.CrossEntropyLoss()}, scale={"rating": 0.5})
        >>> loss(torch.zeros(1, 4), torch.tensor([[1, 0, 0, 1]]))
        tensor(0.5199)
    """

    def __init__(
        self, space: LabelSpace, losses: Mapping[str, Any], *, scale: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        for name in [*losses, *(scale or {})]:
            resolve(name, space.slices, "group")
        missing = [group.name for group in space.groups if group.name not in losses]
        if missing:
            raise ValueError(f"every group needs a loss; {missing} have none")
        self.space = space
        self.losses = nn.ModuleList(_group_loss(losses[group.name], group) for group in space.groups)
        self.scale = {
            group.name: _check_scale((scale or {}).get(group.name, 1.0), group.name) for group in space.groups
        }

    def forward(self, logits: Tensor, targets: Any, mask: Any = None) -> Tensor:
        """Return the loss, a scalar: the groups' reduced losses times their scales, added.

        Args:
            logits: Real numbers (N, L).
            targets: (N, L) in [0, 1], dense or SciPy CSR; or index lists, the labels of each row.
            mask: None (all known), dense bool (True = known), or SciPy sparse bool (True = unknown).
        """
        return total(self.parts(logits, targets, mask))

    def parts(self, logits: Tensor, targets: Any, mask: Any = None) -> Parts:
        """Return for each group its scale times its summed loss, and its denominator; see `total`.

        A group whose loss has several parts has a key for each, such as "tags/samples" and "tags/labels".

        Args:
            logits: (N, L), any floating point.
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        """
        self._check_columns(logits)
        mask = as_known(mask, tuple(logits.shape), logits.device)
        targets = as_targets(targets, logits, mask)
        # One split, whose gradient is one concatenation; a slice a group would each cost a whole gradient.
        columns = logits.split([len(group) for group in self.space.groups], dim=1)
        parts = {}
        for (name, loss, span), x in zip(self._each(), columns, strict=True):
            found = loss.parts(x, targets[:, span], None if mask is None else mask[:, span])
            for part, (value, denominator) in found.items():
                parts[_key(name, part)] = (value * self.scale[name], denominator)
        return parts

    def denominators(self, targets: Any, mask: Any = None) -> dict[str, Tensor]:
        """Return each group's denominator, int64: the second half of `parts`, which needs no logits.

        Args:
            targets: (N, L) in [0, 1]: torch, NumPy or SciPy sparse.
            mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        """
        targets = as_matrix(targets, self.space.num_labels)
        self._check_columns(targets)
        device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
        mask = as_known(mask, shape_of(targets), device)
        found = {}
        for name, loss, span in self._each():
            known = None if mask is None else mask[:, span]
            for part, denominator in loss.denominators(targets[:, span], known).items():
                found[_key(name, part)] = denominator
        return found

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return f"{self.space!r}, scale={self.scale}"

    def _each(self) -> Iterator[tuple[str, Any, slice]]:
        """Yield each group's name, loss and columns."""
        for (name, span), loss in zip(self.space.slices.items(), self.losses, strict=True):
            yield name, loss, span

    def _check_columns(self, values: Any) -> None:
        if len(values.shape) != 2 or values.shape[1] != self.space.num_labels:
            raise ValueError(f"the space has {self.space.num_labels} labels; got shape {tuple(values.shape)}")


def _key(group: str, part: str) -> str:
    """Return the name of a part of a group's loss: the group's, where the loss has one part only."""
    return group if part == ALL else f"{group}/{part}"


def _check_scale(value: float, name: str) -> float:
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"the scale of group {name!r} must be a finite number of at least 0; got {value!r}")
    return float(value)


def _group_loss(loss: Any, group: Group) -> nn.Module:
    """Return what computes the loss of `group`: a `Loss`, or a foreign one in our shape."""
    loss = Loss(loss) if is_own(loss) else loss
    if not isinstance(loss, Loss):
        return ForeignLoss(loss, exclusive=group.exclusive)
    if loss.reduction == "none":
        raise ValueError(f"the loss of group {group.name!r} must be reduced; its reduction is 'none'")
    if loss.over_classes != group.exclusive:
        wanted = (
            "exclusive: use cross_entropy, focal_cross_entropy or seesaw"
            if group.exclusive
            else f"any-of: use an elementwise loss or one per sample, not {name_of(loss.formula)}"
        )
        raise ValueError(f"group {group.name!r} is {wanted}, or a callable of your own outside Loss")
    return loss


def as_loss(loss: Any, space: LabelSpace) -> BatchLoss:
    """Return `loss` as what training calls: an object with `parts` and `denominators`, over the columns of `space`.

    A `Loss` or `PerGroup` comes back as it is. Any other module or callable is given the logits (N, L) and dense
    floating-point targets (N, L); a result (N, L) is masked and averaged over known entries, a scalar or a value a row
    is an error while something is unknown. In a space of one group it is that group's loss, as in `PerGroup`: if the
    group is exclusive, it gets the known rows with int64 classes.

    Args:
        loss: A loss of this package, or a module or function of logits and targets.
        space: The columns' meaning.

    Raises:
        TypeError: not a loss.
        ValueError: a `Loss` with reduction "none", or of a kind that does not fit the space's groups; a `PerGroup` of
            another space.

    Example:
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> as_loss(nn.BCEWithLogitsLoss(), space)(torch.zeros(2, 2), torch.tensor([[0, 1], [1, 0]]))
        tensor(0.6931)
    """
    if isinstance(loss, PerGroup):
        space.check_same(loss.space, "the loss")
        return loss
    if isinstance(loss, str):
        raise TypeError(
            f"a loss must be an object; got the name {loss!r}. Make it with losses.create({loss!r}, space=space)"
        )
    if isinstance(loss, BatchLoss) and not isinstance(loss, Loss):
        return loss
    if len(space.groups) == 1:
        return PerGroup(space, {space.groups[0].name: loss})
    loss = Loss(loss) if is_own(loss) else loss
    if not isinstance(loss, Loss):
        return ForeignLoss(loss)
    exclusive = [group.name for group in space.exclusive_groups]
    if exclusive or loss.over_classes:
        raise ValueError(
            f"one Loss cannot serve all groups of {space!r}: give each its own with PerGroup, or use losses.create"
        )
    if loss.reduction == "none":
        raise ValueError("training needs a reduced loss; its reduction is 'none'")
    return loss
