"""Scores of a whole table, with the loss and the metrics they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mlabel.data import Batch, ImageTable, Loader
from mlabel.losses import BatchLoss
from mlabel.models import Classifier
from mlabel.training.optimisers import resolve_precision
from mlabel.training.step import forward

Progress = Callable[[Iterable[Batch], int, str], Iterable[Batch]]


def no_progress(batches: Iterable[Batch], total: int, title: str) -> Iterable[Batch]:
    """Return `batches` as they are; what is used where no progress bar is wanted."""
    return batches


@dataclass(frozen=True)
class TableScores:
    """What a model says of a table.

    Attributes:
        probabilities: (N, L) float32, in the table's order.
        loss: The loss over the whole table; NaN where no loss was given.
    """

    probabilities: np.ndarray
    loss: float


def score_table(
    model: Classifier,
    table: ImageTable,
    loss: BatchLoss | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "auto",
    progress: Progress = no_progress,
) -> TableScores:
    """Return the model's probabilities for every image of `table`, and their loss.

    Each image is scored exactly once; an unreadable one is an error. The model is left in the mode it was in.

    Args:
        model: On the device that is to compute.
        table: Of the model's label space.
        loss: Any loss that merges batches exactly (see `mlabel.losses.as_loss`), or None.
        batch_size: Images of one forward pass.
        num_workers: Processes that decode images.
        precision: fp32, bf16, fp16 or auto.
        progress: Wraps the batches; gets them, their number and a title.

    Raises:
        ValueError: the table has another label space than the model.
        DataError: an image cannot be read.
    """
    model.space.check_same(table.space, "the table")
    device = next(model.parameters()).device
    loader = Loader(
        table,
        batch_size=batch_size,
        image_size=model.image_size,
        channels=model.in_channels,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    probabilities = np.empty((len(table), model.space.num_labels), dtype=np.float32)
    sums: dict[str, list[float]] = {}
    precision = resolve_precision(precision, device)
    try:
        with eval_mode(model):
            for batch in progress(loader.epoch(), len(loader), "scoring"):
                moved = batch.to(device)
                logits = forward(model, moved, precision).float()
                probabilities[batch.index.numpy()] = model.space.probabilities(logits).cpu().numpy()
                _merge(sums, loss, logits, moved)
    finally:
        loader.close()
    value = sum(total / max(denominator, 1.0) for total, denominator in sums.values())
    return TableScores(probabilities, float(value) if sums else math.nan)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode without gradients, and back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _merge(sums: dict[str, list[float]], loss: BatchLoss | None, logits: torch.Tensor, batch: Batch) -> None:
    if loss is None:
        return
    for group, (total, denominator) in loss.parts(logits, batch.targets, batch.mask).items():
        held = sums.setdefault(group, [0.0, 0.0])
        held[0] += float(total)
        held[1] += float(denominator)
