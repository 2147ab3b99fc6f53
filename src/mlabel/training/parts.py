"""Tensors of which each rank holds a part, as those of a sharded model, made whole and taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:  # importing it takes a while, and few trainings need it
    from torch.distributed.tensor import DTensor


def is_part(tensor: torch.Tensor) -> bool:
    """Return whether the ranks have only parts of `tensor` each, so that looking at all of it takes all of them."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` with the parts of all ranks, which then all call this; one that is whole as it is.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    return cast("DTensor", tensor).full_tensor() if is_part(tensor) else tensor


def part_like(tensor: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Return of a whole tensor, which all ranks have, the part of this rank, as it is in `held`.

    Where `held` is whole, or of another shape, such as a counter beside the state of a parameter, so is the result.
    """
    if not is_part(held) or tensor.shape != held.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like = cast("DTensor", held)
    moved = tensor.to(held.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy `value` into `tensor`, each of which may be whole or the part of this rank."""
    value = part_like(value, tensor) if is_part(tensor) and not is_part(value) else value
    tensor.copy_(value if is_part(tensor) else whole(value))
