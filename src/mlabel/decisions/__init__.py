"""Decisions: thresholds that turn scores into yes or no, fitted to what is wanted, and rules that decide by row."""

from mlabel.decisions._goal import OBJECTIVES, SCOPES, check_objective
from mlabel.decisions.cross_fitting import CrossFit, cross_fit_thresholds
from mlabel.decisions.fitting import fit_thresholds
from mlabel.decisions.rules import MCut, TopK
from mlabel.decisions.thresholds import Thresholds, best_thresholds

__all__ = [
    "OBJECTIVES",
    "SCOPES",
    "CrossFit",
    "MCut",
    "Thresholds",
    "TopK",
    "best_thresholds",
    "check_objective",
    "cross_fit_thresholds",
    "fit_thresholds",
]
