"""Images a second of `mlabel.train` beside a bare PyTorch loop, and of the default settings beside plain float32.

Ours reads batches from a cache on the disk, checks every step and could be stopped and resumed after any; the bare loop
has all its images in memory and does what people write: forward, loss, backward, optimiser. Both have the same network,
batch, optimiser, precision and layout, and take turns, a few steps each; the ratio is the median over the pairs. Run

    python -m benchmarks.training [--quick]

With `--accuracy DATA`, the folder of MIRFLICKR, two trainings are compared instead, plain float32 and the default
settings, by their mean AP on the validation part, over three seeds. On a GPU the networks and batches are larger.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import headline
from benchmarks.models import Bare, interleaved
from mlabel import fit
from mlabel.data import ImageTable, build_cache, read_mirflickr
from mlabel.labels import Group, LabelSpace
from mlabel.losses import create
from mlabel.models import Classifier, create_model
from mlabel.training import TrainConfig, train
from mlabel.training.precision import resolve_precision

LABELS = 40
SPACE = LabelSpace([Group("tags", [f"tag{number}" for number in range(LABELS)])])
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Backbone, side of the image, batch, steps of a turn.
CPU_CASES = (("resnet18", 64, 64, 2), ("resnet50", 128, 16, 2))
GPU_CASES = (("resnet18", 224, 256, 10), ("resnet50", 224, 256, 10))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN = TrainConfig(precision="fp32", memory_format="contiguous")


def make_table(folder: Path, side: int, count: int) -> ImageTable:
    """Return images of noise with random labels, in a cache in `folder`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    paths = [folder / "images" / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    targets = (rng.random((count, LABELS)) < 0.1).astype(np.uint8)
    table = ImageTable(paths=paths, targets=targets, space=SPACE)
    build_cache(table, folder / "cache", image_size=side)
    return table.cached(folder / "cache")


def make_model(backbone: str, side: int) -> Classifier:
    """Return a classifier with its first weights."""
    torch.manual_seed(0)
    return create_model(backbone, SPACE, image_size=side)


class OurLoop:
    """Training by `mlabel.train`, some steps at a time."""

    def __init__(self, backbone: str, table: ImageTable, side: int, config: TrainConfig) -> None:
        loss = create("binary_cross_entropy", space=SPACE)
        self.steps = self._steps(make_model(backbone, side), loss, table, config)

    def _steps(self, model: Classifier, loss: nn.Module, table: ImageTable, config: TrainConfig) -> Iterator[None]:
        for event in train(model, loss, table, config=config, device=DEVICE):
            if event.kind == "step":
                yield

    def run(self, count: int) -> None:
        """Do some steps."""
        for _ in range(count):
            next(self.steps)
        _wait()


class BareLoop:
    """What people write, some steps at a time, fed from memory."""

    def __init__(self, backbone: str, table: ImageTable, side: int, config: TrainConfig) -> None:
        torch.manual_seed(0)
        self.precision = DTYPES[resolve_precision(config.precision, DEVICE)]
        self.layout = torch.channels_last if config.memory_format == "channels_last" else torch.contiguous_format
        self.network = Bare(backbone).to(DEVICE).to(memory_format=self.layout).train()
        self.model = self.network if config.compile == "none" else torch.compile(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        images = np.stack([np.asarray(Image.open(path)) for path in table.paths]).transpose(0, 3, 1, 2)
        self.images = torch.from_numpy(images).to(DEVICE)
        self.targets = torch.from_numpy(table.targets.toarray()).float().to(DEVICE)
        self.batch = config.batch_size

    def run(self, count: int) -> None:
        """Do some steps."""
        for _ in range(count):
            rows = torch.randint(len(self.images), (self.batch,), device=DEVICE)
            images = self.images[rows].contiguous(memory_format=self.layout)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, self.precision, enabled=self.precision != torch.float32):
                logits = self.model(images)
            nn.functional.binary_cross_entropy_with_logits(logits.float(), self.targets[rows]).backward()
            self.optimizer.step()
        _wait()


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def compare(quick: bool = False) -> list[dict[str, Any]]:
    """Measure; return dictionaries of name, peer, ours (images/s) and ratio."""
    cases = (("resnet18", 32, 16, 2),) if quick else GPU_CASES if DEVICE.type == "cuda" else CPU_CASES
    results = []
    for backbone, side, batch, steps in cases:
        with tempfile.TemporaryDirectory() as folder:
            table = make_table(Path(folder), side, 4 * batch)
            config = TrainConfig(epochs=10**6, batch_size=batch, schedule="constant")
            plain = replace(config, precision=PLAIN.precision, memory_format=PLAIN.memory_format)
            auto = resolve_precision("auto", DEVICE)
            pairs = {
                f"{auto}, channels last, beside the bare loop": (BareLoop, config, config),
                "float32, channels last, beside the bare loop": (BareLoop, *[replace(config, precision="fp32")] * 2),
                "the default settings beside a plain float32 loop": (BareLoop, plain, config),
            }
            if DEVICE.type == "cuda" and not quick:
                pairs["compiled, beside the compiled bare loop"] = (BareLoop, *[replace(config, compile="default")] * 2)
            for name, (peer, peers, ours) in pairs.items():
                loops = {"peer": peer(backbone, table, side, peers), "ours": OurLoop(backbone, table, side, ours)}
                calls = {which: partial(loop.run, steps) for which, loop in loops.items()}
                found = interleaved(calls, steps * batch, 3 if quick else 20)
                results.append({"name": f"{backbone} {side} px, batch {batch}: {name}", **found})
                print(_line(results[-1]), flush=True)
                what, beside = results[-1]["name"].rsplit(" beside ", 1)
                headline(f"training {what.rstrip(',')}", results[-1]["ratio"], beside)
    return results


def _line(result: dict[str, Any]) -> str:
    return f"{result['name']:82} {result['peer']:8.1f} {result['ours']:8.1f} images/s  x{result['ratio']:.3f}"


def accuracy(data: Path, *, seeds: int = 3, limit: int = 2_000, side: int = 64) -> dict[str, list[float]]:
    """Print and return the mean AP on the validation part, by settings, one for each seed."""
    parts = read_mirflickr(data).limit(limit * 5 // 4).parts()
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, base in (("plain float32", PLAIN), ("default", TrainConfig())):
            torch.manual_seed(seed)
            model = create_model("resnet18", parts["train"].space, image_size=side)
            loss = create("asymmetric", space=parts["train"].space)
            config = replace(base, epochs=5, batch_size=64, seed=seed, augment="flip")
            begun = time.perf_counter()
            history = fit(model, loss, parts["train"], parts["val"], config=config, progress="none", device=DEVICE)
            found.setdefault(name, []).append(history[-1]["val_map"])
            print(f"seed {seed} {name:14} mAP {found[name][-1]:.4f} {time.perf_counter() - begun:6.0f} s", flush=True)
    for name, values in found.items():
        print(f"{name:14} mean {statistics.mean(values):.4f}, from {min(values):.4f} to {max(values):.4f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network, few pairs")
    parser.add_argument("--accuracy", type=Path, metavar="DATA", help="compare what is learned from this MIRFLICKR")
    options = parser.parse_args()
    if options.accuracy:
        accuracy(options.accuracy)
    else:
        compare(options.quick)
