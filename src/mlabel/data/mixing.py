"""Batches whose samples are mixed in pairs, and softened targets: MixUp, CutMix and label smoothing, for training only.

Images and labels are mixed alike, in any-of and exclusive groups, and what is not known of either partner is not known
of the mixture. Who is mixed with whom, and by how much, follows from (seed, epoch, batch number), and from the rank
where several processes share a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlabel._checks import check_between, check_positive, resolve
from mlabel.data.loader import Batch
from mlabel.data.transforms import sample_key
from mlabel.labels import LabelSpace


def mixup(batch: Batch, partner: Tensor, weight: Tensor, *, space: LabelSpace) -> Batch:
    """Return the batch with each sample blended with its partner: w x + (1 - w) x', of images and of targets.

    uint8 images stay uint8, rounded to the nearest whole number.

    Args:
        batch: Its images (N, C, H, W), targets (N, L) and mask. It is not changed.
        partner: The row of the batch with which each is mixed, int64 (N,).
        weight: The share w of the sample itself, (N,), in [0, 1].
        space: The columns' meaning.

    Returns:
        A batch with float32 targets in [0, 1]. An exclusive group becomes a probability over its classes. An entry is
        known where both partners know it, or where the one who does not has no share; in an exclusive group that goes
        for the group as a whole. What is unknown has target 0.

    Example:
        >>> from mlabel.labels import Group
        >>> images = torch.tensor([0, 100], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> targets = torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8)
        >>> batch = Batch(images, targets, None, torch.arange(2))
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> mixed = mixup(batch, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]), space=space)
        >>> mixed.images.flatten(), mixed.targets
        (tensor([ 25, 100], dtype=torch.uint8), tensor([[1.0000, 0.2500],
                [1.0000, 1.0000]]))

    Reference: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    weight = weight.to(batch.images.device, torch.float32)
    images = batch.images.float()
    mixed = images[partner].lerp_(images, weight[:, None, None, None])
    mixed = mixed if batch.images.is_floating_point() else mixed.round_()
    targets, mask = _mix_labels(batch, partner, weight, space=space)
    return replace(batch, images=mixed.to(batch.images.dtype), targets=targets, mask=mask)


def cutmix(batch: Batch, partner: Tensor, boxes: Tensor, *, space: LabelSpace) -> Batch:
    """Return the batch with a box of each image cut out and filled with that of its partner.

    The share w of a sample's own labels is the share of the picture that stayed its own.

    Args:
        batch: Its images (N, C, H, W), targets (N, L) and mask. It is not changed; images keep their type.
        partner: The row of the batch with which each is mixed, int64 (N,).
        boxes: Top, bottom, left and right of each box, integers (N, 4) within the picture; bottom and right are the
            first row and column that are outside.
        space: The columns' meaning.

    Returns:
        A batch with targets and mask as `mixup` gives them.

    Reference: Yun, Han, Oh, Chun, Choe and Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", ICCV 2019.

    Example:
        >>> from mlabel.labels import Group
        >>> images = torch.tensor([0, 100], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
        >>> batch = Batch(images, torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8), None, torch.arange(2))
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> boxes = torch.tensor([[0, 1, 0, 2], [0, 0, 0, 0]])  # the upper half of the first, nothing of the second
        >>> mixed = cutmix(batch, torch.tensor([1, 0]), boxes, space=space)
        >>> mixed.images[0, 0].tolist(), mixed.targets.tolist()
        ([[100, 100], [0, 0]], [[0.5, 0.5], [0.0, 1.0]])
    """
    images, boxes = batch.images, boxes.to(batch.images.device)
    height, width = images.shape[-2:]
    top, bottom, left, right = boxes.unbind(dim=1)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    weight = 1 - ((bottom - top) * (right - left)).float() / (height * width)
    targets, mask = _mix_labels(batch, partner, weight, space=space)
    return replace(batch, images=torch.where(inside, images[partner], images), targets=targets, mask=mask)


class _Mix(NamedTuple):
    """A way to mix: what is drawn from weights, and the parameter that its paper has for ImageNet."""

    run: Callable[..., Batch]
    draw: Callable[[np.random.Generator, np.ndarray, tuple[int, int]], np.ndarray]
    alpha: float


def _draw_weights(generator: np.random.Generator, weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return weights.astype(np.float32)


def _draw_boxes(generator: np.random.Generator, weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes (N, 4) of the share 1 - w of the picture about a uniform centre, cut off at its edges."""
    edges: list[np.ndarray] = []
    for side in size:
        length = side * np.sqrt(1 - weights)
        start = generator.integers(0, side, len(weights)) - length / 2
        edges += [np.clip(np.rint(edge), 0, side) for edge in (start, start + length)]
    return np.stack(edges, axis=1).astype(np.int64)


_MIXES: dict[str, _Mix | None] = {
    "none": None,
    "mixup": _Mix(mixup, _draw_weights, 0.2),
    "cutmix": _Mix(cutmix, _draw_boxes, 1.0),
}
MIXES: tuple[str, ...] = tuple(_MIXES)


def mix_batch(
    batch: Batch,
    space: LabelSpace,
    *,
    mix: str,
    alpha: float | None = None,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
) -> Batch:
    """Return the batch with its samples mixed in pairs, the same ones whenever seed, epoch and batch number are.

    Partners are a random permutation of the batch, so that each sample has one part of its own and one in another (by
    chance the same one). The share w of a sample itself is drawn from Beta(alpha, alpha), for each pair anew.

    Reference: Zhang, Cisse, Dauphin and Lopez-Paz (2018) for mixup, Yun et al. (2019) for cutmix.

    Args:
        batch: On any device; it is not changed.
        space: The columns' meaning.
        mix: "mixup", "cutmix", or "none", which gives the batch as it is.
        alpha: Above 0: small values leave most pairs nearly unmixed, 1 takes all shares alike. None: 0.2 for mixup, 1
            for cutmix, which their papers have.
        seed: Of the draws.
        epoch: Which one.
        rank: Whose share of a batch it is, where several processes train together.

    Raises:
        ValueError: an unknown way to mix, or an alpha that is not above 0.

    Example:
        >>> from mlabel.labels import Group
        >>> images = torch.tensor([0, 100], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
        >>> batch = Batch(images, torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8), None, torch.arange(2))
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> mixed, again = (mix_batch(batch, space, mix="mixup", alpha=1.0, seed=3) for _ in range(2))
        >>> mixed.targets.dtype, bool((mixed.targets == again.targets).all())
        (torch.float32, True)
    """
    chosen = resolve(mix, _MIXES, "mix")
    alpha = alpha if alpha is not None or chosen is None else chosen.alpha
    if alpha is not None:
        check_positive(alpha, "alpha")
    if chosen is None or alpha is None:
        return batch
    # Drawn on the CPU, so that a training that moves to another device goes on with the same draws.
    key = sample_key(seed, epoch, f"mix of batch {batch.number}" + (f" on rank {rank}" if rank else ""))
    generator = np.random.Generator(np.random.Philox(key=key))
    partner = torch.from_numpy(generator.permutation(len(batch))).to(batch.images.device)
    height, width = batch.images.shape[-2:]
    drawn = chosen.draw(generator, generator.beta(alpha, alpha, len(batch)), (height, width))
    return chosen.run(batch, partner, torch.from_numpy(drawn), space=space)


def smooth_targets(targets: Any, space: LabelSpace, amount: float) -> Tensor:
    """Return targets moved towards "undecided": 0.5 for any-of labels, the uniform distribution for exclusive groups.

    t (1 - a) + a / 2 for a label of an any-of group, t (1 - a) + a / K for one of K classes. An exclusive group of
    which a row has no class is not known there, and stays 0.

    Args:
        targets: (N, L) in [0, 1], torch or NumPy.
        space: The columns' meaning.
        amount: The share a, in [0, 1].

    Returns:
        float32 (N, L), on the device of the targets.

    Raises:
        ValueError: another number of columns than the space has, or an amount outside [0, 1].

    Example:
        >>> from mlabel.labels import Group
        >>> space = LabelSpace([Group("tags", ["cat"]), Group("rating", list("abcd"), exclusive=True)])
        >>> smooth_targets([[1, 0, 1, 0, 0]], space, 0.2)
        tensor([[0.9000, 0.0500, 0.8500, 0.0500, 0.0500]])

    Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016.
    """
    check_between(amount, 0.0, 1.0, "amount")
    values = torch.as_tensor(targets).float()
    if values.ndim != 2 or values.shape[1] != space.num_labels:
        raise ValueError(f"targets must be of shape (N, {space.num_labels}); got {tuple(values.shape)}")
    parts = []
    for group in space.groups:
        part = values[:, space.slices[group.name]]
        smoothed = part * (1 - amount) + amount / (len(group) if group.exclusive else 2)
        parts.append(torch.where(_has_class(part), smoothed, part) if group.exclusive else smoothed)
    return torch.cat(parts, dim=1)


def _mix_labels(batch: Batch, partner: Tensor, weight: Tensor, *, space: LabelSpace) -> tuple[Tensor, Tensor | None]:
    """Return mixed targets, float32 (N, L), and mask; see `mixup`."""
    partner, share = partner.to(batch.targets.device), weight[:, None]
    targets, known = batch.targets.float(), _known(batch, space)
    if known is None:
        return targets * share + targets[partner] * (1 - share), None
    targets = targets.masked_fill(~known, 0.0)
    mixed = targets * share + targets[partner] * (1 - share)
    both = (known | (share == 0)) & (known[partner] | (share == 1))
    return mixed.masked_fill(~both, 0.0), both


def _known(batch: Batch, space: LabelSpace) -> Tensor | None:
    """Return what is known, bool (N, L), each exclusive group as a whole; None where all is."""
    if not space.exclusive_groups:
        return batch.mask
    known = torch.ones_like(batch.targets, dtype=torch.bool) if batch.mask is None else batch.mask.clone()
    for group in space.exclusive_groups:
        span = space.slices[group.name]
        known[:, span] = known[:, span].all(dim=1, keepdim=True) & _has_class(batch.targets[:, span])
    return known


def _has_class(targets: Tensor) -> Tensor:
    """Return which rows of an exclusive group have a class, bool (N, 1)."""
    return (targets != 0).any(dim=1, keepdim=True)
