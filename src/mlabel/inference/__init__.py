"""Prediction: the bundle that carries a trained model anywhere, the `Tagger`, and prediction files."""

from mlabel.inference.bundle import Bundle, load_bundle, save_bundle
from mlabel.inference.predictions import FORMATS, escape_cell, find_images, unescape_cell, write_predictions
from mlabel.inference.tagger import Prediction, Tagger

__all__ = [
    "FORMATS",
    "Bundle",
    "Prediction",
    "Tagger",
    "escape_cell",
    "find_images",
    "load_bundle",
    "save_bundle",
    "unescape_cell",
    "write_predictions",
]
