"""Search over settings: what may vary, trials that go on after any stop, several processes at once::

    parameters (Choice, Range) + objective(trial) --> search --> Study: records of trials, the best, importances

The searching is Optuna's; here are the folder, what is kept of each trial, and who works on it.
"""

from mlabel.tuning.config import PRUNERS, STRATEGIES, SearchConfig
from mlabel.tuning.parameters import Choice, Range, parse_parameters
from mlabel.tuning.records import Study, TrialRecord, load_study
from mlabel.tuning.searching import search
from mlabel.tuning.trial import Pruned, Trial

__all__ = [
    "PRUNERS",
    "STRATEGIES",
    "Choice",
    "Pruned",
    "Range",
    "SearchConfig",
    "Study",
    "Trial",
    "TrialRecord",
    "load_study",
    "parse_parameters",
    "search",
]
