"""Prediction: the bundle that carries a trained model anywhere, the `Tagger`, and prediction files."""

from mlabel.inference.bulk import BulkPrediction, predict_all
from mlabel.inference.bundle import Bundle, load_bundle, save_bundle
from mlabel.inference.export import EXPORT_FORMATS, TOLERANCE, Exported, export_tagger
from mlabel.inference.hub import from_pretrained, push_to_hub, write_model_card
from mlabel.inference.index import Hit, SearchIndex
from mlabel.inference.index_build import build_index
from mlabel.inference.predictions import (
    FORMATS,
    escape_cell,
    open_for_predictions,
    unescape_cell,
    write_predictions,
)
from mlabel.inference.query import parse_query
from mlabel.inference.sources import find_images, read_list, read_predictions
from mlabel.inference.tagger import Prediction, Scored, Tagger

__all__ = [
    "EXPORT_FORMATS",
    "FORMATS",
    "TOLERANCE",
    "BulkPrediction",
    "Bundle",
    "Exported",
    "Hit",
    "Prediction",
    "Scored",
    "SearchIndex",
    "Tagger",
    "build_index",
    "escape_cell",
    "export_tagger",
    "find_images",
    "from_pretrained",
    "load_bundle",
    "open_for_predictions",
    "parse_query",
    "predict_all",
    "push_to_hub",
    "read_list",
    "read_predictions",
    "save_bundle",
    "unescape_cell",
    "write_model_card",
    "write_predictions",
]
