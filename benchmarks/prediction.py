"""Images a second of `predict_all` beside the bare model that answers from memory.

Ours takes the images from a uint8 cache on the disk, computes scores and decisions, and writes the 20 highest scores of
each image as JSON Lines into part files, synced. The bare model is the same network, weights, precision and layout, fed
with batches that lie in memory; it computes logits and nothing else. Both take turns; the ratio is the median. Run

    python -m benchmarks.prediction [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.models import interleaved
from benchmarks.training import DEVICE, make_model, make_table
from mlabel.inference import Tagger, predict_all
from mlabel.training.precision import autocast, resolve_precision

# Backbone, side of the image, batch, images of a turn, pairs.
QUICK = ("resnet18", 32, 16, 64, 3)
FULL = ("resnet50", 128, 32, 1024, 7) if DEVICE.type == "cpu" else ("resnet50", 224, 256, 16_384, 20)


def compare(quick: bool = False) -> dict[str, Any]:
    """Measure, print and return images/s of both and the ratio."""
    backbone, side, batch, count, pairs = QUICK if quick else FULL
    model = make_model(backbone, side).to(DEVICE).to(memory_format=torch.channels_last).eval()
    precision = resolve_precision("auto", DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        table = make_table(Path(folder), side, count)
        images = np.stack([np.asarray(Image.open(path)) for path in table.paths]).transpose(0, 3, 1, 2)
        resident = torch.from_numpy(images).to(DEVICE).contiguous(memory_format=torch.channels_last)
        turns = iter(range(10**6))

        def ours() -> None:
            to = Path(folder) / f"to{next(turns)}"
            predict_all(Tagger(model), table, to, top=20, batch_size=batch, part_size=count)

        @torch.inference_mode()
        def bare() -> None:
            for rows in resident.split(batch):
                with autocast(DEVICE, precision):
                    model(rows)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        found = interleaved({"ours": partial(ours), "peer": partial(bare)}, count, pairs)
    title = f"{backbone} {side} px, batch {batch}, {precision}"
    print(f"{title}: {found['ours']:.1f} images/s, bare {found['peer']:.1f}, x{found['ratio']:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few images")
    compare(parser.parse_args().quick)
