"""Decisions: thresholds that turn scores into yes or no, fitted to what is wanted."""

from mlabel.decisions.thresholds import (
    OBJECTIVES,
    SCOPES,
    Thresholds,
    cross_fit_thresholds,
    fit_thresholds,
)

__all__ = ["OBJECTIVES", "SCOPES", "Thresholds", "cross_fit_thresholds", "fit_thresholds"]
