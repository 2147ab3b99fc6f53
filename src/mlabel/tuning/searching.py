"""A search: trials that are begun, gone on with and told of, by one process or several on the same folder.

Who works on a trial holds the lock of its folder, which the system lets go of when the process ends, however it ends.
A trial that is said to run and whose lock is free was thus left by a process that is gone: another takes it over, in
the same folder.
"""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from mlabel._checks import require
from mlabel._files import to_json, write_atomically
from mlabel.tuning.config import SearchConfig, make_pruner, make_sampler
from mlabel.tuning.parameters import Parameter, Value, parse_parameters
from mlabel.tuning.records import (
    FORMAT,
    NAME,
    Study,
    TrialRecord,
    as_record,
    best_of,
    load_study,
    open_storage,
    read_told,
    trial_folder,
)
from mlabel.tuning.trial import Pruned, Trial

MOST_STARTS = 3  # of a trial whose process was killed each time before a further step was reported
_POLL = 0.5  # seconds between looks at whether other processes are done
_FREE = ("trials", "minutes")  # what may differ from when the study was begun

Objective = Callable[[Trial], float]
Say = Callable[[str], None]
After = Callable[[tuple[TrialRecord, ...]], None]


def search(
    objective: Objective,
    parameters: Mapping[str, Any],
    folder: str | Path,
    *,
    config: SearchConfig | None = None,
    processes: int = 1,
    about: Mapping[str, Any] | None = None,
    after: After | None = None,
    say: Say = print,
) -> Study:
    """Try settings until the trials are used up, and return what was found.

    The folder has `study.json`, what the search was told, `study.db`, Optuna's SQLite file, and a folder of each trial
    in `trials`. Where it holds this search already, it goes on: trials that are over stay, and one whose process was
    stopped is begun again in its folder. Several calls may work on one folder at the same time.

    A trial whose objective raises is recorded as failed, with the error, and the search goes on.

    Args:
        objective: Takes a `Trial` and returns its value. With several processes it must be picklable: a function or an
            object of a module.
        parameters: Name to what it may be: see `parse_parameters`.
        folder: Of the study.
        config: How to search; None: the defaults.
        processes: How many run trials at a time, this one included.
        about: What the objective is about, kept in `study.json`, and compared when the search goes on.
        after: Takes the records of all trials after each that this process ends, picklable as the objective.
        say: Takes a line on each trial that ends, picklable as the objective.

    Raises:
        ValueError: parameters or settings that cannot be, or the folder holds another search.
        ImportError: Optuna is not installed.
        FileExistsError: the folder holds something else than a study.

    Example:
        >>> import tempfile
        >>> from mlabel.tuning import SearchConfig, search
        >>> folder, config = tempfile.mkdtemp(), SearchConfig(strategy="grid")
        >>> def objective(trial):
        ...     return -(trial.values["x"] ** 2)
        >>> study = search(objective, {"x": [-1, 0, 2]}, folder, config=config, say=lambda line: None)
        >>> study.best.values
        {'x': 0}
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    space, config = parse_parameters(parameters), config or SearchConfig()
    folder = Path(folder)
    _begin(folder, config, space, dict(about or {}))
    work = _Work(folder, config, space, objective, after, say)
    threads = torch.get_num_threads()
    with _helpers(work, processes - 1, max(1, threads // processes)):
        torch.set_num_threads(max(1, threads // processes))
        try:
            work.run(worker=0)
        finally:
            torch.set_num_threads(threads)
    return load_study(folder)


def _begin(folder: Path, config: SearchConfig, parameters: Mapping[str, Parameter], about: dict[str, Any]) -> None:
    """Write what the search is told, or see that the folder was told the same."""
    config.count(parameters)  # a grid without points is refused before anything is written
    make_sampler(config, parameters, 0)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "format": FORMAT,
        "config": config.to_dict(),
        "parameters": {name: each.to_json() for name, each in parameters.items()},
        "about": about,
    }
    text = to_json(told)
    with _lock(folder / ".lock"):
        if (folder / "study.json").exists():
            _refuse_other(folder, config, parameters, about)
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            raise FileExistsError(f"{folder} is not a study, and is left as it is; choose another folder")
        write_atomically(folder / "study.json", text)
        with open_storage(folder) as storage:
            require("optuna", "tune").create_study(
                study_name=NAME,
                storage=storage,
                direction="maximize" if config.higher_is_better else "minimize",
                load_if_exists=True,
            )


def _refuse_other(
    folder: Path, config: SearchConfig, parameters: Mapping[str, Parameter], about: Mapping[str, Any]
) -> None:
    held = read_told(folder)
    then = _all_told(held["config"], held["about"], held["parameters"])
    now = _all_told(config, about, parameters)
    differ = [
        f"{name}: {then.get(name)!r} then, {now.get(name)!r} now"
        for name in dict.fromkeys([*then, *now])
        if name not in _FREE and then.get(name) != now.get(name)
    ]
    if differ:
        raise ValueError(
            f"{folder} holds a search that was told otherwise ({'; '.join(differ)}); go on with the same settings, or "
            "choose another folder"
        )


def _all_told(config: SearchConfig, about: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return all that a search is told as dotted names to values."""
    varies = {name: each.to_json() for name, each in parameters.items()}
    return dict(_flatten({**config.to_dict(), **about, "what varies": varies}))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested settings, as JSON gives them back, in which tuples are lists."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class _Held:
    """A trial that this process works on."""

    trial: Any  # Optuna's
    values: dict[str, Value]
    reported: frozenset[int]


@dataclass(frozen=True)
class _Work:
    """What each of the processes of a search does; it is sent to them."""

    folder: Path
    config: SearchConfig
    parameters: dict[str, Parameter]
    objective: Objective
    after: After | None
    say: Say

    def run(self, worker: int) -> None:
        """Run trials until none is left to begin or to take over."""
        end = math.inf if self.config.minutes is None else time.monotonic() + 60 * self.config.minutes
        with open_storage(self.folder) as storage:
            while True:
                with ExitStack() as held:
                    found = self._next(storage, held, begin=time.monotonic() < end)
                    if found is None:
                        return
                    if isinstance(found, _Held):
                        self._run_trial(found, worker)
                if found is _OTHERS:
                    time.sleep(_POLL)

    def _next(self, storage: Any, held: ExitStack, *, begin: bool) -> _Held | object | None:
        """Return the next trial, whose lock `held` then has; `_OTHERS` where only others have any; None: all is done.

        One process at a time is here, so that no two take the same trial, nor the same point of a grid.
        """
        if not begin:
            return None
        with _lock(self.folder / ".lock"):
            study = self._study(storage)
            trials = study.get_trials(deepcopy=False)
            running = [each for each in trials if each.state.name == "RUNNING"]
            for each in running:
                if held.enter_context(_try_lock(self._lock_of(each.number))):
                    # Since it was listed, whoever had the lock may have ended the trial; nobody can do so now.
                    left = study.get_trials(deepcopy=False)[each.number]
                    found = self._take_over(study, left) if left.state.name == "RUNNING" else None
                    return _OTHERS if found is None else found
            if len(trials) < self.config.count(self.parameters):
                trial = study.ask()
                held.enter_context(_try_lock(self._lock_of(trial.number)))
                trial.set_user_attr("starts", 1)
                return _Held(trial, self._suggest(trial), frozenset())
        return _OTHERS if running else None

    def _study(self, storage: Any) -> Any:
        optuna = require("optuna", "tune")
        number = len(optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False))
        sampler = make_sampler(self.config, self.parameters, number)
        return optuna.load_study(study_name=NAME, storage=storage, sampler=sampler, pruner=make_pruner(self.config))

    def _lock_of(self, number: int) -> Path:
        folder = trial_folder(self.folder, number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ".trial"

    def _take_over(self, study: Any, left: Any) -> _Held | None:
        """Return a trial that was left by a process that is gone; None where that happened too often: it has failed."""
        starts = left.user_attrs.get("starts", 1)
        optuna = require("optuna", "tune")
        trial = optuna.trial.Trial(study, left._trial_id)
        if starts >= MOST_STARTS:
            trial.set_user_attr(
                "error", f"its process was ended {starts} times at one place, such as for want of memory"
            )
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        trial.set_user_attr("starts", starts + 1)
        self.say(f"trial {left.number}: goes on, its process was ended")
        return _Held(trial, self._suggest(trial), frozenset(left.intermediate_values))

    def _suggest(self, trial: Any) -> dict[str, Value]:
        return {name: each.suggest(trial, name) for name, each in self.parameters.items()}

    def _run_trial(self, held: _Held, worker: int) -> None:
        """Run the objective and tell what came of it."""
        states = require("optuna", "tune").trial.TrialState
        folder = trial_folder(self.folder, held.trial.number)
        trial = Trial(held.trial, held.values, folder, worker=worker, reported=held.reported)
        begun, value, state = time.monotonic(), None, states.COMPLETE
        try:
            value = float(self.objective(trial))
            if not math.isfinite(value):
                raise ValueError(f"the objective gave {value}, and a finite number was wanted")
        except Pruned:
            value, state = None, states.PRUNED
        except (KeyboardInterrupt, SystemExit):  # somebody wanted it, which says nothing of the trial
            held.trial.set_user_attr("starts", 0)
            raise
        except Exception as error:
            value, state = None, states.FAIL
            held.trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            write_atomically(folder / "error.txt", traceback.format_exc())
        held.trial.set_user_attr("seconds", time.monotonic() - begun)
        study = held.trial.study
        study.tell(held.trial, value, state=state)
        records = tuple(as_record(each, self.folder) for each in study.get_trials(deepcopy=False))
        self.say(self._describe(records, held.trial.number))
        if self.after is not None:
            self.after(records)

    def _describe(self, records: Sequence[TrialRecord], number: int) -> str:
        record = records[number]
        best = best_of(tuple(records), self.config)
        settings = ", ".join(f"{name} {_short(value)}" for name, value in record.values.items())
        said = record.error.splitlines()[0][:200] if record.error else _short(record.value)
        known = "" if best is None else f"; best {_short(best.value)}, trial {best.number}"
        total = self.config.count(self.parameters)
        return f"trial {number} of {total} {record.state}: {said} ({settings}){known}"


_OTHERS = object()


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _helpers(work: _Work, number: int, threads: int) -> Iterator[None]:
    """Have further processes do the same work; they end with it, or with this process."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_help, args=(work, place + 1, threads)) for place in range(number)]
    for process in started:
        process.start()
    try:
        yield
        for process in started:
            process.join()
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
            process.join()
            process.close()


def _help(work: _Work, worker: int, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    work.run(worker)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock file, having waited for it."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file, and say whether it could be had."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
