"""How a search goes about it: which settings are tried next, which trials are given up, and how many there are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlabel._checks import check_positive, require, resolve
from mlabel.tuning.parameters import Parameter

STRATEGIES = ("grid", "random", "tpe", "gp")
PRUNERS = ("none", "median", "halving", "hyperband")
DEFAULT_TRIALS = 20
_STARTUP = 4  # trials that the median is of before any is given up


@dataclass(frozen=True)
class SearchConfig:
    """The settings of a search; what tries and what gives up is Optuna's.

    Args:
        strategy: What is tried next: `grid`, every combination; `random`; `tpe`, where the good ones so far lie denser
            than the others (Bergstra et al., 2011); `gp`, where a Gaussian process expects to improve.
        pruning: Which trials are given up early, by their value at the end of an epoch: `none`; `median`, those below
            the median of others at that epoch, from the fifth trial on; `halving`, all but the best third at epochs 1,
            3, 9, ... (asynchronous successive halving, Li et al., 2020); `hyperband`, the same with some trials left
            alone for longer (Li et al., 2018).
        trials: How many, those that fail or are given up counted; None: the whole grid, 20 of other strategies.
        minutes: After so many no trial begins; None: never.
        higher_is_better: Of the objective.
        steps: The last step that a trial reports, for `hyperband`.
        seed: Of what is tried.

    Raises:
        ValueError: an unknown name, or a number that cannot be.

    Example:
        >>> from mlabel.tuning import Choice
        >>> parameters = {"loss": Choice(("focal", "asymmetric")), "lr": Choice((0.1, 0.01, 0.001))}
        >>> SearchConfig(strategy="grid").count(parameters)
        6
    """

    strategy: str = "tpe"
    pruning: str = "none"
    trials: int | None = None
    minutes: float | None = None
    higher_is_better: bool = True
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        resolve(self.strategy, dict.fromkeys(STRATEGIES), "strategy")
        resolve(self.pruning, dict.fromkeys(PRUNERS), "pruning")
        for name in ("trials", "steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.minutes is not None:
            check_positive(self.minutes, "minutes")

    def count(self, parameters: Mapping[str, Parameter]) -> int:
        """Return how many trials of `parameters` there are in all; of a grid at most its points."""
        if self.strategy != "grid":
            return self.trials or DEFAULT_TRIALS
        points = math.prod(len(each.points()) for each in parameters.values())
        return min(self.trials or points, points)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for JSON."""
        return dataclasses.asdict(self)


def make_sampler(config: SearchConfig, parameters: Mapping[str, Parameter], number: int) -> Any:
    """Return Optuna's sampler that suggests the settings of trial `number`.

    Its seed follows from that number, so that neither stops nor the number of processes change what is tried at random.
    """
    samplers = require("optuna", "tune").samplers
    seed = (config.seed * 1_000_003 + number) % 2**32
    if config.strategy == "grid":
        sampler = samplers.GridSampler({name: each.points() for name, each in parameters.items()}, seed=config.seed)
        # It would stop Optuna's own loop, which is not used here, when the grid is done.
        sampler.after_trial = lambda *_: None
        return sampler
    makers = {"random": samplers.RandomSampler, "tpe": samplers.TPESampler, "gp": samplers.GPSampler}
    return makers[config.strategy](seed=seed)


def make_pruner(config: SearchConfig) -> Any:
    """Return Optuna's pruner."""
    pruners = require("optuna", "tune").pruners
    if config.pruning == "median":
        return pruners.MedianPruner(n_startup_trials=_STARTUP)
    if config.pruning == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if config.pruning == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=config.steps, reduction_factor=3)
    return pruners.NopPruner()
