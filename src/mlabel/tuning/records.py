"""What a search found: the records of its trials, as tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlabel._checks import DataError, require
from mlabel._files import read_json
from mlabel.metrics import rows_table
from mlabel.tuning.config import SearchConfig
from mlabel.tuning.parameters import Parameter, Value, parse_parameters

FORMAT = "mlabel.study/1"
NAME = "mlabel"  # of Optuna's study in the database, of which there is one
# What Optuna calls a trial, and what it is called here.
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial.

    Attributes:
        number: From 0.
        state: `done`, `pruned`, `failed` or `running`.
        value: What the objective gave; of one that is pruned or runs, what it reported last; None: there is none.
        values: Name to the value that was tried.
        steps: Step to what was reported.
        seconds: How many it took; None: it is not over.
        error: Why it failed; empty otherwise.
        folder: Its own.

    Example:
        >>> record = TrialRecord(0, "done", 0.5, {"lr": 0.1}, {1: 0.25, 2: 0.5}, 12.34, "", Path("trials/0"))
        >>> record.row()["seconds"], record.row()["steps"]
        (12.3, 2)
    """

    number: int
    state: str
    value: float | None
    values: dict[str, Value]
    steps: dict[int, float]
    seconds: float | None
    error: str
    folder: Path

    def row(self) -> dict[str, Any]:
        """Return it as a row of a table."""
        seconds = None if self.seconds is None else round(self.seconds, 1)
        head = {"trial": self.number, "state": self.state, "value": self.value, **self.values}
        return {**head, "steps": len(self.steps), "seconds": seconds, "error": self.error}


@dataclass(frozen=True)
class Study:
    """What a search found so far.

    Attributes:
        folder: Of the study.
        config: How it searches.
        parameters: What varies.
        about: What the objective is about, such as a recipe.
        trials: In the order in which they began.
        importances: Name to the share of the spread of values that the setting explains; empty where there are too few
            trials to tell.
    """

    folder: Path
    config: SearchConfig
    parameters: dict[str, Parameter]
    about: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    importances: dict[str, float]

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that is done, the first of equal ones; None: none is done."""
        return best_of(self.trials, self.config)

    def ranked(self) -> list[TrialRecord]:
        """Return the trials, the best first; those that are not done, or have no value, come last."""
        sign = -1 if self.config.higher_is_better else 1
        order = list(STATES.values())
        return sorted(
            self.trials,
            key=lambda each: (order.index(each.state), 0.0 if each.value is None else sign * each.value, each.number),
        )

    def counts(self) -> dict[str, int]:
        """Return state to how many trials are in it, those states that there are."""
        counted = {state: sum(each.state == state for each in self.trials) for state in STATES.values()}
        return {state: number for state, number in counted.items() if number}

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary a trial, the best first."""
        return [each.row() for each in self.ranked()]

    def table(self) -> str:
        """Return the trials as text, one a line, the best first."""
        return rows_table([{key: _text(value) for key, value in row.items()} for row in self.rows()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        best = self.best
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "parameters": {name: each.to_json() for name, each in self.parameters.items()},
            "about": self.about,
            "trials": [{**each.row(), "values": each.values, "reported": each.steps} for each in self.trials],
            "best": None if best is None else best.number,
            "importances": self.importances,
        }


def best_of(trials: tuple[TrialRecord, ...], config: SearchConfig) -> TrialRecord | None:
    """Return the best trial that is done, the first of equal ones."""
    sign = 1 if config.higher_is_better else -1
    done = [(each.value, each) for each in trials if each.state == "done" and each.value is not None]
    return max(done, key=lambda pair: (sign * pair[0], -pair[1].number))[1] if done else None


def load_study(folder: str | Path) -> Study:
    """Return what the search in a folder found so far, whether or not it still goes on.

    Args:
        folder: Of the study.

    Raises:
        FileNotFoundError: there is no study.
        DataError: `study.json` is not what a search writes.
        ImportError: Optuna is not installed.

    Example:
        >>> import tempfile
        >>> from mlabel.tuning import SearchConfig, search
        >>> folder, config = tempfile.mkdtemp(), SearchConfig(strategy="grid")
        >>> found = search(lambda trial: trial.values["x"], {"x": [1, 2]}, folder, config=config, say=lambda line: None)
        >>> load_study(folder).best.value
        2.0
    """
    folder = Path(folder)
    if not (folder / "study.json").is_file() or not (folder / "study.db").is_file():
        raise FileNotFoundError(f"{folder} is not a study: there is no study.json and study.db in it")
    told = read_told(folder)
    with open_storage(folder) as storage:
        study = require("optuna", "tune").load_study(study_name=NAME, storage=storage)
        trials = study.get_trials(deepcopy=False)
        records = tuple(as_record(each, folder) for each in trials)
        importances = _importances(study, told["parameters"])
    return Study(folder, trials=records, importances=importances, **told)


def read_told(folder: Path) -> dict[str, Any]:
    """Return what `study.json` says that the search was told: config, parameters, about."""
    path = folder / "study.json"
    found = read_json(path)
    try:
        if found["format"] != FORMAT:
            raise ValueError(f"the format is {found['format']!r}; {FORMAT!r} was wanted")
        return {
            "config": SearchConfig(**found["config"]),
            "parameters": parse_parameters(found["parameters"]),
            "about": dict(found["about"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the settings of a search: {error}") from error


class _Connection(sqlite3.Connection):
    """A connection that waits for the disk at checkpoints of the log alone: a commit then takes a tenth of the time.

    What a process has committed outlives it all the same. Of a computer that loses its power the last trials may be
    forgotten, which are then begun again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def open_storage(folder: Path) -> Iterator[Any]:
    """Give Optuna's storage of a study, an SQLite file, which several processes may have open."""
    optuna = require("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{(folder / 'study.db').absolute()}"
    connect = {"timeout": 60, "factory": _Connection}
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect})
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / "trials" / f"{number:05d}"


def as_record(trial: Any, folder: Path) -> TrialRecord:
    """Return what is known of one of Optuna's trials."""
    value = trial.value if trial.values else None
    if trial.state.name in ("PRUNED", "RUNNING") and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return TrialRecord(
        number=trial.number,
        state=STATES[trial.state.name],
        value=value,
        values=dict(trial.params),
        steps=dict(sorted(trial.intermediate_values.items())),
        seconds=trial.user_attrs.get("seconds"),
        error=trial.user_attrs.get("error", ""),
        folder=trial_folder(folder, trial.number),
    )


def _importances(study: Any, parameters: Mapping[str, Parameter]) -> dict[str, float]:
    """Return name to importance by functional analysis of variance; nothing where there is too little to go by."""
    optuna = require("optuna", "tune")
    done = [each for each in study.get_trials(deepcopy=False) if each.state.name == "COMPLETE"]
    if len(done) < 2 * len(parameters) or len({each.value for each in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # such as values that hardly differ
        return {}
    return {name: float(share) for name, share in found.items()}


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value in (None, "") else value if isinstance(value, str) else str(value)
