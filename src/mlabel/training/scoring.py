"""Scores of a whole table, with the loss and the metrics they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from mlabel._checks import DataError
from mlabel.data import BadImage, Batch, ImageTable, Loader
from mlabel.losses import BatchLoss
from mlabel.models import Classifier
from mlabel.training.precision import resolve_precision
from mlabel.training.step import forward

Progress = Callable[[Iterable[Batch], int, str], Iterable[Batch]]


def no_progress(batches: Iterable[Batch], total: int, title: str) -> Iterable[Batch]:
    """Return `batches` as they are; what is used where no progress bar is wanted."""
    return batches


@dataclass(frozen=True)
class TableScores:
    """What a model says of a table.

    Attributes:
        probabilities: (N, L) float32, in the table's order; NaN in the rows of images that were skipped.
        loss: The loss over the images that were scored; NaN where no loss was given.
        rows: The rows that were scored, int64 (M,), in order.
        bad: The images that were skipped, with the reason.
        notes: Oddity that was passed over, such as damaged EXIF data, to how often it was.
    """

    probabilities: np.ndarray
    loss: float
    rows: np.ndarray
    bad: tuple[BadImage, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    def of_scored(self, table: ImageTable) -> tuple[np.ndarray, ImageTable]:
        """Return the probabilities (M, L) of the images that were scored, and of `table` those images."""
        if len(self.rows) == len(table):
            return self.probabilities, table
        return self.probabilities[self.rows], table[self.rows]


def score_table(
    model: Classifier,
    table: ImageTable,
    loss: BatchLoss | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "auto",
    on_bad: str = "error",
    max_bad: float = 0.001,
    bad: list[BadImage] | None = None,
    progress: Progress = no_progress,
) -> TableScores:
    """Return the model's probabilities for every image of `table`, and their loss.

    Each image is scored exactly once, or, with `on_bad="skip"`, not at all where it cannot be read. The model is left
    in the mode it was in.

    Args:
        model: On the device that is to compute.
        table: Of the model's label space.
        loss: Any loss that merges batches exactly (see `mlabel.losses.as_loss`), or None.
        batch_size: Images of one forward pass.
        num_workers: Processes that decode images.
        precision: fp32, bf16, fp16 or auto.
        on_bad: `error`: an image that cannot be read is an error; `skip`: its row is NaN, and not in `rows`.
        max_bad: With `skip`, the share of the table that may be bad; beyond it is an error all the same.
        bad: A list that gets the images left out, also where there are too many of them and this is an error.
        progress: Wraps the batches; gets them, their number and a title.

    Raises:
        ValueError: the table has another label space than the model.
        DataError: an image cannot be read, or with `skip` too many cannot, or none can.
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
        on_bad=on_bad,
        max_bad=max_bad,
    )
    probabilities = np.full((len(table), model.space.num_labels), np.nan, dtype=np.float32)
    scored = np.zeros(len(table), dtype=bool)
    sums: dict[str, list[float]] = {}
    precision = resolve_precision(precision, device)
    try:
        with eval_mode(model):
            for batch in progress(loader.epoch(), len(loader), "scoring"):
                moved = batch.to(device)
                logits = forward(model, moved, precision).float()
                rows = batch.index.numpy()
                probabilities[rows] = model.space.probabilities(logits).cpu().numpy()
                scored[rows] = True
                _merge(sums, loss, logits, moved)
    finally:
        if bad is not None:
            bad.extend(loader.bad)
        loader.close()
    value = sum(total / max(denominator, 1.0) for total, denominator in sums.values())
    if not scored.any():
        raise DataError(f"none of the {len(table)} images can be read; the last is {loader.bad[-1].reason}")
    return TableScores(
        probabilities,
        float(value) if sums else math.nan,
        rows=np.flatnonzero(scored),
        bad=tuple(loader.bad),
        notes=dict(loader.notes),
    )


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
