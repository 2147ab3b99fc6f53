"""What a training is given: whether it goes together, and what it is known by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlabel._checks import resolve
from mlabel.data import ImageTable
from mlabel.metrics.evaluation import EXTRA_METRICS, METRICS
from mlabel.models import Classifier


def check_tables(model: Classifier, train_table: ImageTable, val_table: ImageTable | None) -> None:
    """Raise ValueError where a table is empty or has other labels than the model."""
    for name, table in (("training", train_table), ("validation", val_table)):
        if table is None:
            continue
        if not len(table):
            raise ValueError(f"the {name} table is empty")
        model.space.check_same(table.space, f"the {name} table")


def check_monitor(monitor: str, model: Classifier) -> None:
    """Raise ValueError where no evaluation measures `monitor`."""
    groups = model.space.exclusive_groups
    of_groups = [f"{group.name}.{key}" for group in groups for key in ("accuracy", "mean_class_accuracy")]
    resolve(monitor, dict.fromkeys(["loss", *METRICS, *EXTRA_METRICS, *of_groups]), "monitor")


def fingerprints(train_table: ImageTable, val_table: ImageTable | None) -> dict[str, str]:
    """Return the fingerprint of each table of a training, by the name of its part."""
    tables = {"train": train_table} if val_table is None else {"train": train_table, "val": val_table}
    return {name: table.fingerprint for name, table in tables.items()}


@contextmanager
def explain_small_batch() -> Iterator[None]:
    """Say what to do where torch finds a batch too small for batch normalisation."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise ValueError(
            "batch_size=1 is too small for the batch normalisation of this network, whose last feature map is a single "
            "pixel at this image_size; use batch_size=2 or more"
        ) from error
