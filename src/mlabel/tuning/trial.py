"""One trial, as an objective sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlabel.tuning.parameters import Value


class Pruned(Exception):  # noqa: N818 - it is no error
    """A trial is given up: it does not look as if it became the best.

    Example:
        >>> import tempfile
        >>> from mlabel.tuning import SearchConfig, search
        >>> folder, config = tempfile.mkdtemp(), SearchConfig(strategy="grid")
        >>> def objective(trial):
        ...     raise Pruned("it will come to nothing")
        >>> search(objective, {"x": [1]}, folder, config=config, say=lambda line: None).counts()
        {'pruned': 1}
    """


class Trial:
    """What an objective is given: the settings to try, a folder of the trial's own, and whom to report to; `search`
    makes it.

    Args:
        held: What Optuna knows of the trial.
        values: Name to the value to try.
        folder: The trial's own.
        worker: Which of the processes of this search runs it, from 0.
        reported: The steps reported before the trial's process was stopped.

    Attributes:
        number: Of the trial, from 0.
        values: Name to the value to try.
        folder: Its own. Where the trial goes on after its process was stopped, it holds what was written before.
        worker: Which of the processes of this search runs it, from 0.

    Example:
        >>> import tempfile
        >>> from mlabel.tuning import SearchConfig, search
        >>> folder, config = tempfile.mkdtemp(), SearchConfig(strategy="grid")
        >>> def objective(trial):
        ...     trial.report(1, value=trial.values["x"] / 2)
        ...     return trial.values["x"]
        >>> search(objective, {"x": [1, 2]}, folder, config=config, say=lambda line: None).best.steps
        {1: 1.0}
    """

    def __init__(
        self, held: Any, values: Mapping[str, Value], folder: Path, *, worker: int, reported: frozenset[int]
    ) -> None:
        self.number: int = held.number
        self.values = dict(values)
        self.folder = folder
        self.worker = worker
        self._held = held
        self._reported = set(reported)

    def report(self, step: int, value: float) -> None:
        """Say how good the trial is at a step; what was said of a step before does not change.

        Args:
            step: Such as the number of an epoch.
            value: How good it is there.

        Raises:
            Pruned: the trial is given up; let it pass.
        """
        if step in self._reported:
            return
        self._reported.add(step)
        self._held.report(value, step)
        self._held.set_user_attr("starts", 0)  # it got further, so that whatever ends it next is no fault of its own
        if self._held.should_prune():
            raise Pruned(f"trial {self.number} is given up at step {step}, with {value:.4g}")
