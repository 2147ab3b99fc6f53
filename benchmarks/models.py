"""Images a second of a `Classifier` beside the bare torchvision network with the same normalisation around it.

Training steps and predictions in turn, from uint8 images, with the same weights, layout and precision; the ratio is
the median over the pairs. Run `python -m benchmarks.models`, or with `--quick` for one small network and few pairs.
With `--ways` the `Classifier` stands beside itself instead, in other layouts and precisions, with a fused optimiser and
compiled: what is worth choosing on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks import headline
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model

LABELS = 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Backbone, side of the image, batch: those of torchvision that the reports use.
CASES = (("resnet18", 64, 64), ("resnet50", 128, 16), ("densenet121", 128, 16))


@dataclass(frozen=True)
class Way:
    """A way to run a network."""

    name: str
    layout: torch.memory_format = torch.channels_last
    precision: torch.dtype = torch.bfloat16
    fused: bool = True
    compiled: bool = False


WAYS = (
    Way("float32", torch.contiguous_format, torch.float32, fused=False),
    Way("channels_last", precision=torch.float32, fused=False),
    Way("bf16", torch.contiguous_format, fused=False),
    Way("bf16, channels_last", fused=False),
    Way("the same, fused"),
    Way("the same, compiled", compiled=True),
)


class Bare(nn.Module):
    """What people write: scale, normalise, and torchvision's network with another last layer."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.network = torchvision.models.get_model(backbone, weights=None, num_classes=LABELS)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images.float() / 255 - self.mean) / self.std)


def make_pair(backbone: str, side: int) -> dict[str, nn.Module]:
    """Return the peer and ours, the weights of one backbone in both, channels last."""
    space = LabelSpace([Group("tags", [f"tag{number}" for number in range(LABELS)])])
    peer, ours = Bare(backbone), create_model(backbone, space, image_size=side)
    ours.backbone.load_state_dict(peer.network.state_dict(), strict=False)
    return {"peer": peer.to(memory_format=torch.channels_last), "ours": ours.to(memory_format=torch.channels_last)}


def training_step(
    model: nn.Module, images: torch.Tensor, precision: torch.dtype, *, fused: bool = False
) -> Callable[[], None]:
    """Return a function that takes one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=fused)
    targets = torch.zeros(len(images), LABELS)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits = model(images)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction(model: nn.Module, images: torch.Tensor, precision: torch.dtype) -> Callable[[], None]:
    """Return a function that computes the logits of one batch."""
    model.eval()

    def predict() -> None:
        with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            model(images)

    return predict


def interleaved(ways: dict[str, Callable[[], None]], count: int, pairs: int) -> dict[str, float]:
    """Return the median images a second of each way, and the median of the pairs' ratios."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(pairs + 1):
        # Who goes first alternates, since the second finds a warmer or a hotter machine.
        for name in sorted(ways, reverse=bool(number % 2)):
            rates[name].append(_rate(ways[name], count))
    kept = {name: values[1:] for name, values in rates.items()}  # the first of each warms up
    ratios = [ours / peer for ours, peer in zip(kept["ours"], kept["peer"], strict=True)]
    return {**{name: statistics.median(values) for name, values in kept.items()}, "ratio": statistics.median(ratios)}


def compare_ways(quick: bool = False) -> None:
    """Print images a second of each way, train and predict, as the median over rounds in which all take turns."""
    cases, rounds = ((("resnet18", 32, 16),), 2) if quick else (CASES, 10)
    for backbone, side, batch in cases:
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        rates: dict[tuple[str, str], list[float]] = {}
        models = {way: make_pair(backbone, side)["ours"].to(memory_format=way.layout) for way in WAYS}
        for what in ("train", "predict"):  # one after the other: each has its mode
            calls = {way.name: _call(what, way, model, images) for way, model in models.items()}
            for _ in range(rounds + 1):
                for name, call in calls.items():
                    rates.setdefault((what, name), []).append(_rate(call, batch))
        print(f"\n| {backbone}, {side} px, batch {batch} | train | predict |\n|---|---|---|")
        for way in WAYS:
            shown = [statistics.median(rates[what, way.name][1:]) for what in ("train", "predict")]
            print(f"| {way.name} | " + " | ".join(f"{rate:.0f}" for rate in shown) + " |")


def _call(what: str, way: Way, model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    images = images.contiguous(memory_format=way.layout)
    network = torch.compile(model) if way.compiled else model
    if what == "train":
        return training_step(network, images, way.precision, fused=way.fused)
    return prediction(network, images, way.precision)


def _rate(call: Callable[[], None], count: int) -> float:
    begun = time.perf_counter()
    call()
    return count / (time.perf_counter() - begun)


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Measure; print one line a result; return them as dictionaries of name, peer, ours (images/s) and ratio."""
    cases, pairs = ((("resnet18", 32, 16),), 3) if quick else (CASES, 20)
    results = []
    for backbone, side, batch in cases:
        models = make_pair(backbone, side)
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        images = images.contiguous(memory_format=torch.channels_last)
        for precision in (torch.float32, torch.bfloat16):
            for what, make in (("train", training_step), ("predict", prediction)):
                ways = {name: make(model, images, precision) for name, model in models.items()}
                name = f"{what} {backbone} {side} px, batch {batch}, {str(precision).removeprefix('torch.')}"
                results.append({"name": name, **interleaved(ways, batch, pairs)})
    for result in results:
        print(f"{result['name']:52s} {result['peer']:8.1f} {result['ours']:8.1f} images/s  x{result['ratio']:.3f}")
        headline(result["name"], result["ratio"], "the bare torchvision module")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small network, few pairs")
    parser.add_argument("--ways", action="store_true", help="layouts, precisions, optimiser and compiler, ours only")
    options = parser.parse_args()
    (compare_ways if options.ways else main)(options.quick)
