"""`fit`: the training loop run to the end, with a progress bar, and saved when a signal ends it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from mlabel.data import ImageTable
from mlabel.models import Classifier
from mlabel.training.checkpoint import save_checkpoint
from mlabel.training.checks import fingerprints
from mlabel.training.config import TrainConfig
from mlabel.training.distributed import Ranks, join_ranks
from mlabel.training.loop import train
from mlabel.training.progress import ProgressLine
from mlabel.training.sharding import gather_tensors
from mlabel.training.state import TrainState

_log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """Training was stopped by a signal after a checkpoint was saved; the exit code is 128 + the signal's number.

    Example:
        >>> import signal
        >>> Interrupted(128 + signal.SIGTERM).code
        143
    """


def fit(
    model: Classifier,
    loss: nn.Module | Any,
    train_table: ImageTable,
    val_table: ImageTable | None = None,
    *,
    config: TrainConfig | None = None,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    allow_changed_data: bool = False,
    device: str | torch.device | None = None,
    progress: str = "bar",
) -> list[dict[str, Any]]:
    """Train `model` to the end and return the history, one dictionary an evaluation.

    The model is left with its last weights, or with their average where there is one (`TrainConfig.ema`); the best are
    in the checkpoint that the file `best` of the run names (`mlabel.training.load_weights(best_checkpoint(run_dir),
    model)`). SIGINT and SIGTERM save a checkpoint after the step under way and end the process with code 130 or 143; a
    second signal ends it at once.

    Args:
        model: Changed in place.
        loss: A loss of `mlabel.losses`, or any callable of (logits, targets).
        train_table: What is learned from.
        val_table: What `config.monitor` is measured on; None: nothing is measured, and no checkpoint is the best.
        config: The settings; None: the defaults.
        run_dir: Folder of checkpoints and history; None: nothing is written.
        resume: `"auto"`, a checkpoint's folder or None: see `train`.
        allow_changed_data: Go on although a table is not the one the checkpoint was trained on.
        device: None: a GPU if there is one, else the CPU.
        progress: `bar`: a line on stderr with loss, metric, images a second, memory and time left; `none`: nothing is
            shown.

    Raises:
        Interrupted: a signal came; a checkpoint was saved where there is a `run_dir`.
        ValueError, FileExistsError, RuntimeError: see `train`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data import ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.losses import Loss, binary_cross_entropy
        >>> from mlabel.models import create_model
        >>> path, space = tempfile.mkdtemp() + "/a.png", LabelSpace([Group("tags", ["cat"])])
        >>> Image.new("RGB", (32, 32)).save(path)
        >>> table = ImageTable(paths=[path, path], ids=["a", "b"], targets=[[1], [0]], space=space)
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> history = fit(model, Loss(binary_cross_entropy), table, config=TrainConfig(epochs=2), progress="none")
        >>> [entry["epoch"] for entry in history]
        [1, 2]
    """
    if progress not in ("bar", "none"):
        raise ValueError(f"progress must be 'bar' or 'none'; got {progress!r}")
    config = config or TrainConfig()
    events = train(
        model,
        loss,
        train_table,
        val_table,
        config=config,
        run_dir=run_dir,
        resume=resume,
        allow_changed_data=allow_changed_data,
        device=device,
    )
    ranks = join_ranks(device)
    hidden = progress == "none" or not ranks.first
    history: list[dict[str, Any]] = []
    line = ProgressLine()
    with _signals() as received, closing(events), closing(line):
        for event in events:
            if not hidden:
                line.show(event)
            history = event.state.history
            # A signal to one rank stops all, after the same step.
            number = 0 if event.kind == "end" else ranks.largest(received[0] if received else 0)
            if number:
                line.close()
                _stop(event.state, run_dir, number, data=fingerprints(train_table, val_table), ranks=ranks)
    average = event.state.average
    if average is not None:
        average.copy_to(model)
    for note in event.notes if ranks.first else ():
        _log.warning("%s", note)
    return history


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is given; the second one acts as it always does."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread gets signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(state: TrainState, run_dir: str | Path | None, number: int, *, data: Mapping[str, str], ranks: Ranks) -> None:
    name, said = signal.Signals(number).name, ""
    if run_dir is None:
        said = f"{name}: stopped after step {state.step}; nothing was saved, as there is no run folder"
    elif (tensors := gather_tensors(state, ranks)) is not None:
        saved = save_checkpoint(state, run_dir, data=data, tensors=tensors)
        said = f"{name}: saved {saved}; go on with resume='auto' (--resume auto)"
    if ranks.first:
        print(said, file=sys.stderr)
    ranks.wait()  # where one process ends, the others may be ended: not before all is saved
    raise Interrupted(128 + number)
