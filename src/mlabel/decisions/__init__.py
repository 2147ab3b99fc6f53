"""Decisions: what a score means, and what follows from it.

The ways, each from arrays alone::

    logits, targets --> fit_calibration, undo_loss --> Calibration: probabilities that are as often right as they say
    scores, targets --> fit_thresholds --> Thresholds: yes or no, fitted to what is wanted; TopK, MCut decide by row
    probabilities, targets --> control_risk, fit_conformal_sets: yes or no, and sets of classes, with a guarantee
"""

from mlabel.decisions._goal import OBJECTIVES, SCOPES, check_objective
from mlabel.decisions.calibration import (
    CALIBRATION_METHODS,
    CALIBRATION_SCOPES,
    EXCLUSIVE_METHODS,
    Calibration,
    cross_fit_calibration,
    fit_calibration,
    logits_of,
)
from mlabel.decisions.conformal import (
    SET_METHODS,
    SET_SCOPES,
    ConformalSets,
    fit_conformal_sets,
)
from mlabel.decisions.cross_fitting import CrossFit, cross_fit_thresholds
from mlabel.decisions.fitting import fit_thresholds
from mlabel.decisions.priors import estimate_priors
from mlabel.decisions.risk_control import (
    RISK_SCOPES,
    RISKS,
    RiskControl,
    control_risk,
    hoeffding_bentkus,
)
from mlabel.decisions.rules import MCut, TopK
from mlabel.decisions.thresholds import Thresholds, best_thresholds
from mlabel.decisions.undoing import undo_loss

__all__ = [
    "CALIBRATION_METHODS",
    "CALIBRATION_SCOPES",
    "EXCLUSIVE_METHODS",
    "OBJECTIVES",
    "RISKS",
    "RISK_SCOPES",
    "SCOPES",
    "SET_METHODS",
    "SET_SCOPES",
    "Calibration",
    "ConformalSets",
    "CrossFit",
    "MCut",
    "RiskControl",
    "Thresholds",
    "TopK",
    "best_thresholds",
    "check_objective",
    "control_risk",
    "cross_fit_calibration",
    "cross_fit_thresholds",
    "estimate_priors",
    "fit_calibration",
    "fit_conformal_sets",
    "fit_thresholds",
    "hoeffding_bentkus",
    "logits_of",
    "undo_loss",
]
