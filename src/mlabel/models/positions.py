"""Position tables of transformers, brought to other image sizes."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def resize_positions(
    table: torch.Tensor, own: torch.Tensor, grid: tuple[int, int] | None, prefix: int
) -> torch.Tensor | None:
    """Return a position table in the shape of a network's own, bicubic; None where it is no such table.

    Args:
        table: (1, P + h x w, D) of a square grid, with P tokens before the patches; or (1, h, w, D) or (1, D, h, w).
        own: The network's table, of the same kind.
        grid: (height, width) of the network's patches; None: square.
        prefix: The network's tokens before the patches; some tables leave those out.
    """
    if table.ndim != own.ndim or not table.is_floating_point() or table.shape[0] != own.shape[0]:
        return None
    if table.ndim == 4 and table.shape[3] == own.shape[3]:
        return _resize(table.permute(0, 3, 1, 2), tuple(own.shape[1:3])).permute(0, 2, 3, 1)
    if table.ndim == 4 and table.shape[1] == own.shape[1]:
        return _resize(table, tuple(own.shape[2:]))
    if table.ndim != 3 or table.shape[2] != own.shape[2]:
        return None
    for before in dict.fromkeys((prefix, 0)):
        side, own_side = (math.isqrt(max(each.shape[1] - before, 0)) for each in (table, own))
        height, width = grid if grid is not None else (own_side, own_side)
        if side and side**2 == table.shape[1] - before and height * width == own.shape[1] - before:
            patches = table[:, before:].transpose(1, 2).unflatten(2, (side, side))
            resized = _resize(patches, (height, width)).flatten(2).transpose(1, 2)
            return torch.cat([table[:, :before].float(), resized], dim=1)
    return None


def resize_windows(table: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """Return a table of relative positions ((2 h - 1) (2 w - 1) + E, heads) of square windows for other windows.

    E is 0, or 3 entries for a class token, which stay as they are. None where it is no such table.
    """
    if table.ndim != 2 or own.ndim != 2 or table.shape[1] != own.shape[1] or not table.is_floating_point():
        return None
    for extra in (0, 3):
        side, own_side = (math.isqrt(max(each.shape[0] - extra, 0)) for each in (table, own))
        if side and own_side and side**2 + extra == table.shape[0] and own_side**2 + extra == own.shape[0]:
            places, rest = table[: side**2], table[side**2 :]
            resized = _resize(places.T.unflatten(1, (side, side))[None], (own_side, own_side))
            return torch.cat([resized[0].flatten(1).T, rest.float()])
    return None


def _resize(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return F.interpolate(images.float(), size=list(size), mode="bicubic", align_corners=True)
