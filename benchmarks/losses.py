"""Losses forward and backward on the CPU: ours through `Loss` beside timm, torchvision and torch, in one process.

Every case is a mean over float32 logits (N, L) and targets of which one entry in 300 is positive. Times are medians
over rounds in which the cases take turns. The best of them would be no measure: whether the memory of so many buffers
is still there or has to be asked for anew doubles the time of a step from one to the next. Memory is the highest sum
of what torch holds beyond the inputs, the gradient included, in buffers of the logits' size.
Run `python -m benchmarks.losses`, or with `--quick` for the smallest shape.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import headline
from mlabel.losses import Loss, asymmetric, binary_cross_entropy, focal

TIMM_IS_THERE = importlib.util.find_spec("timm") is not None
SHAPES = [(16, 8_266), (64, 8_266), (256, 8_266), (16, 70_527), (64, 70_527)]
LossCall = Callable[[Tensor], Tensor]


def cases(rows: int, labels: int) -> dict[str, tuple[str, LossCall]]:
    """Return each case's name, with the peer it is compared to and a function of the logits."""
    from torchvision.ops import sigmoid_focal_loss

    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(rows, labels, generator=generator) < 1 / 300).to(torch.uint8)
    csr, floating = sp.csr_array(dense.numpy()), dense.float()
    lists = np.split(csr.indices, csr.indptr[1:-1])
    peers: dict[str, tuple[str, LossCall]] = {
        **_timm_cases(floating),
        "torchvision focal": ("torchvision focal", lambda x: sigmoid_focal_loss(x, floating, reduction="mean")),
        "torch bce": ("torch bce", lambda x: F.binary_cross_entropy_with_logits(x, floating)),
    }
    ours = {"asymmetric": asymmetric} if TIMM_IS_THERE else {}
    ours |= {"focal": focal, "bce": binary_cross_entropy}
    plain = [name for name in peers if not name.endswith("compiled")]
    for peer, name in zip(plain, ours, strict=True):
        for kind, targets in (("dense", dense), ("csr", csr), ("lists", lists)):
            peers[f"mlabel {name}, {kind}"] = (peer, partial(_call, Loss(ours[name]), targets))
    return peers


def _timm_cases(floating: Tensor) -> dict[str, tuple[str, LossCall]]:
    """Return timm's asymmetric loss as it is and compiled; nothing where timm is missing."""
    if not TIMM_IS_THERE:
        return {}
    from timm.loss import AsymmetricLossMultiLabel

    plain = AsymmetricLossMultiLabel()
    compiled = torch.compile(plain)
    return {
        "timm asymmetric": ("timm asymmetric", lambda x: plain(x, floating)),
        "timm asymmetric, compiled": ("timm asymmetric", lambda x: compiled(x, floating)),
    }


def _call(loss: Loss, targets: Any, logits: Tensor) -> Tensor:
    value: Tensor = loss(logits, targets)
    return value


def step(loss: LossCall, logits: Tensor) -> None:
    """Do one forward and one backward pass."""
    logits.grad = None
    loss(logits).backward()


def measure_times(losses: dict[str, LossCall], logits: Tensor, rounds: int) -> dict[str, float]:
    """Return the median time of a step of each case, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 1):
        for name, loss in losses.items():
            for _ in range(3):
                start = time.perf_counter()
                step(loss, logits)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found[3:]) for name, found in times.items()}  # the first round warms up


def measure_memory(loss: LossCall, logits: Tensor) -> float:
    """Return the highest sum of torch's allocations in a step, in buffers of the logits' size."""
    logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss(logits).backward()
    events: list[Any] = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / (logits.numel() * logits.element_size())


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row for each shape and case: milliseconds, times the speed of its peer, and memory."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler reports its own start and stop otherwise
    rows = []
    for shape in SHAPES[:1] if quick else SHAPES:
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        compared = cases(*shape)
        found = measure_times({name: loss for name, (_, loss) in compared.items()}, logits, 3 if quick else 8)
        for name, (peer, loss) in compared.items():
            row = {"shape": f"{shape[0]} x {shape[1]}", "case": name, "ms": round(found[name], 3)}
            row |= {"peer": peer, "speedup": round(found[peer] / found[name], 2)}
            rows.append(row | {"memory": round(measure_memory(loss, logits), 2)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape only, few repeats")
    print(f"{'shape':>12} {'case':24} {'ms':>8} {'times its peer':>15} {'memory':>7}")
    for line in main(parser.parse_args().quick):
        print(f"{line['shape']:>12} {line['case']:24} {line['ms']:8.2f} {line['speedup']:15.2f} {line['memory']:7.2f}")
        if line["case"].endswith("csr"):
            headline(
                f"{line['case'].split(',')[0].removeprefix('mlabel ')} loss, {line['shape']}",
                line["speedup"],
                line["peer"],
            )
    if not TIMM_IS_THERE:
        headline("asymmetric loss", None, "timm asymmetric")
