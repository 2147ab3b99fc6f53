"""What a run writes down as it goes: `log.jsonl`, TensorBoard's files, and the first batch that went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlabel._files import read_json, to_json, write_atomically
from mlabel.training.config import TrainConfig
from mlabel.training.state import Event, TrainState
from mlabel.training.step import StepResult

NAME = "log.jsonl"
ANOMALY_NAME = "anomaly.json"
BOARD_NAME = "tensorboard"
# How many names of parameters an anomaly's record lists.
_SHOWN = 50


class RunLog:
    """The log of a training in its run's folder; without a folder nothing is written.

    `log.jsonl` has a line for each evaluation and, every `config.log_every` steps and where something is odd, for a
    step: `{"kind": "step", "step": 20, "epoch": 0, "loss": 0.51, "lr": 0.001, "images_per_second": 331.0}`, with
    `"finite": false` where the step changed nothing and `"spike": true` where its loss stood out. `epoch` counts the
    epochs finished; what is not a number is null.

    A training that goes on takes away what was written after the checkpoint, so that no step is in the log twice.

    Args:
        run_dir: The run's folder; None: nothing is written.
        config: `log` and `log_every` are used.
        state: Where the training is; None: it begins.

    Raises:
        ImportError: `config.log` is `tensorboard`, and the package is not installed.

    Example:
        >>> import tempfile
        >>> from mlabel.training import TrainConfig
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = RunLog(folder, TrainConfig())
        >>> log.evaluation({"epoch": 1, "step": 10, "val_map": 0.5})
        >>> log.close()
        >>> print((folder / "log.jsonl").read_text(), end="")
        {"kind": "eval", "epoch": 1, "step": 10, "val_map": 0.5}
    """

    def __init__(self, run_dir: Path | None, config: TrainConfig, state: TrainState | None = None) -> None:
        self._config = config
        self._folder = run_dir
        self._file = None
        self._board = None
        if run_dir is None:
            return
        _cut(run_dir / NAME, state)
        _drop_anomaly(run_dir / ANOMALY_NAME, state)
        if config.log == "tensorboard":
            # What TensorBoard was given of later steps, it hides.
            self._board = _open_board(run_dir / BOARD_NAME, 0 if state is None else state.step + 1)
        if config.log != "none":
            self._file = open(run_dir / NAME, "a", encoding="utf-8")  # noqa: SIM115 (`close` closes it)

    def step(self, event: Event, *, finite: bool, spike: bool) -> None:
        """Write down a step.

        Args:
            event: Of the kind `step`.
            finite: False where the step changed nothing.
            spike: Whether its loss stood out.
        """
        if finite and not spike and event.step % self._config.log_every:
            return
        rate = event.images / event.seconds if event.seconds > 0 else math.nan
        values = {"loss": event.loss, "lr": event.state.learning_rate, "images_per_second": round(rate, 1)}
        oddities = ({} if finite else {"finite": False}) | ({"spike": True} if spike else {})
        self._write({"kind": "step", "step": event.step, "epoch": event.epoch, **values, **oddities})
        self._draw("train", values, event.step)

    def evaluation(self, entry: Mapping[str, Any]) -> None:
        """Write down an evaluation, `entry` of the history."""
        self._write({"kind": "eval", **entry})
        metrics = {name.removeprefix("val_"): value for name, value in entry.items() if name.startswith("val_")}
        self._draw("val", metrics, entry["step"])

    def anomaly(self, state: TrainState, result: StepResult, ids: Sequence[str]) -> None:
        """Write down a batch whose loss or gradient was not finite, where it is the first one of the run.

        Args:
            state: Where the training is.
            result: What the step did.
            ids: Of the batch's images.
        """
        if self._folder is None or (self._folder / ANOMALY_NAME).exists():
            return
        record = {
            "step": state.step,
            "epoch": state.epoch,
            "ids": list(ids),
            "loss": result.loss,
            "parts": {name: list(values) for name, values in result.parts.items()},
            "lr": state.learning_rate,
            "precision": state.precision,
            "scale": state.scaler.get_scale(),
            "parameters_not_finite": list(result.bad_parameters[:_SHOWN]),
            "gradients_not_finite": list(result.bad_gradients[:_SHOWN]),
        }
        write_atomically(self._folder / ANOMALY_NAME, to_json(_plain(record)))

    def close(self) -> None:
        """Write what is still held back, and let go of the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()

    def _draw(self, group: str, values: Mapping[str, Any], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def _cut(path: Path, state: TrainState | None) -> None:
    """Take away what the log has of after `state`; all of it where there is none."""
    if not path.exists():
        return
    if state is None:
        path.unlink()
        return
    evaluated = {entry["step"] for entry in state.history}
    kept = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # the last one is empty, or was cut short by a kill
        values = _read_line(line)
        if values["step"] <= state.step and (values["kind"] != "eval" or values["step"] in evaluated):
            kept.append(line + b"\n")
    write_atomically(path, b"".join(kept))


def _read_line(line: bytes) -> dict[str, Any]:
    """Return the object of a line; one that is beyond reading counts as of after everything."""
    try:
        values = json.loads(line)
        return {"step": int(values["step"]), "kind": values["kind"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"step": math.inf, "kind": ""}


def _drop_anomaly(path: Path, state: TrainState | None) -> None:
    if path.exists() and (state is None or read_json(path)["step"] > state.step):
        path.unlink()


def _plain(value: Any) -> Any:
    """Return `value` with None for what is not a finite number, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_board(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("log='tensorboard' needs the package tensorboard: pip install mlabel[tensorboard]") from error
    return SummaryWriter(str(folder), purge_step=purge_step or None)
