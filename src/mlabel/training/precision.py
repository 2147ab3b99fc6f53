"""In which numbers a network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_TF32 = {"on": "tf32", "off": "ieee"}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which `precision` (fp32, bf16 or fp16) holds on `device`.

    Args:
        device: What computes.
        precision: fp32, bf16 or fp16.

    Example:
        >>> with autocast(torch.device("cpu"), "bf16"):
        ...     (torch.ones(1, 2) @ torch.ones(2, 1)).dtype
        torch.bfloat16
    """
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `precision`, or, for `auto`, the fastest one that `device` computes in: bf16, fp16 or fp32.

    Args:
        precision: fp32, bf16, fp16 or auto.
        device: What computes.

    Example:
        >>> resolve_precision("fp32", torch.device("cpu"))
        'fp32'
        >>> resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
        True
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Emulated bf16 is slower than float32, so the CPU must have the instructions.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bf16" if device.type == "cpu" and native else "fp32"


@contextmanager
def tensor_float32(setting: str) -> Iterator[None]:
    """Let a GPU compute float32 products in TF32 (`on`) or not (`off`) for a while; `default`: as torch is set.

    TF32 has the range of float32 and ten bits of fraction. As torch comes, convolutions use it and products of matrices
    do not.

    Args:
        setting: `on`, `off` or `default`.

    Example:
        >>> with tensor_float32("on"):
        ...     torch.backends.cuda.matmul.fp32_precision
        'tf32'
    """
    if setting == "default":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = _TF32[setting]
    try:
        yield
    finally:
        for backend, held in zip(backends, before, strict=True):
            backend.fp32_precision = held
