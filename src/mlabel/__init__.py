"""mlabel: learning which of many labels hold for an image.

The way of the data::

    annotation files -- readers --> ImageTable -- split --> train / val / test tables
    image files -- images --> ImageDataset -- loader --> Batch(images uint8, targets, mask, index)
    Batch --> Classifier: preprocess -> backbone -> head --> logits (N, L)
    logits + targets + mask --> Loss --> train step --> TrainState --> checkpoint
    logits -- space.probabilities or a calibration --> scores --> metrics, thresholds --> decisions
    decisions -- space.decode --> label names --> report, predictions file
    model + space + preprocessing + thresholds --> bundle --> Tagger (any machine, any day)

Names are imported when they are first used, so that ``import mlabel`` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module it lives in.
_NAMES = {
    "Calibration": "mlabel.decisions",
    "Classifier": "mlabel.models",
    "DataError": "mlabel._checks",
    "Evaluation": "mlabel.metrics",
    "Event": "mlabel.training",
    "Group": "mlabel.labels",
    "ImageTable": "mlabel.data",
    "LabelSpace": "mlabel.labels",
    "MultiHeadEncoder": "mlabel.encoders",
    "MultiHotEncoder": "mlabel.encoders",
    "ScoreHistogram": "mlabel.metrics",
    "Tagger": "mlabel.inference",
    "Taxonomy": "mlabel.taxonomy",
    "Thresholds": "mlabel.decisions",
    "TrainConfig": "mlabel.training",
    "TrainState": "mlabel.training",
    "control_risk": "mlabel.decisions",
    "create_model": "mlabel.models",
    "evaluate": "mlabel.metrics",
    "explain": "mlabel.report",
    "fit": "mlabel.training",
    "fit_calibration": "mlabel.decisions",
    "fit_conformal_sets": "mlabel.decisions",
    "fit_thresholds": "mlabel.decisions",
    "train": "mlabel.training",
}
_MODULES = frozenset(
    {
        "data",
        "decisions",
        "encoders",
        "inference",
        "labels",
        "losses",
        "metrics",
        "models",
        "recipes",
        "report",
        "taxonomy",
        "training",
        "tuning",
        "weights",
    }
)

__all__ = ["__version__", *sorted(_NAMES), *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"mlabel.{name}")
    raise AttributeError(f"module 'mlabel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
