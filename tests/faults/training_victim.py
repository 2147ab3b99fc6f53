"""A small training in a process of its own, which the tests of this folder stop in every way they know.

Processes are forked from one that has imported everything, so that hundreds of them can be stopped in minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from mlabel.data import ImageTable
from mlabel.labels import Group, LabelSpace
from mlabel.losses import create
from mlabel.models import Classifier, create_model
from mlabel.training import TrainConfig, fit, list_checkpoints
from mlabel.training import checkpoint as checkpoint_module
from mlabel.training.folder import lock_run

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])
# Twelve steps, each with a save, two evaluations, and everything that has a state of its own.
CONFIG = TrainConfig(
    epochs=2,
    batch_size=4,
    lr=0.01,
    precision="fp32",
    schedule="plateau",
    step_size=1,
    monitor="loss",
    warmup_steps=3,
    augment="flip",
    clip_norm=1.0,
    ema=0.9,
    sharpness="sam",
    save_every=1,
)
STEPS = 12


class Backbone(nn.Module):
    """A convolution with batch statistics and dropout."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.conv(images)).relu().mean((2, 3)))


@dataclass(frozen=True)
class Plan:
    """What happens to a training.

    Attributes:
        die_before: Number of the file operation in the run's folder before which the process kills itself.
        die_within: Name of a file of a checkpoint, of which only half is written before the process kills itself.
        size_limit: Bytes that no file may exceed, as on a full disk.
        user: Number of the user who trains.
        hold: Seconds for which the run's folder is held by a training that does nothing.
    """

    die_before: int | None = None
    die_within: str | None = None
    size_limit: int | None = None
    user: int | None = None
    hold: float = 0.0


def make_table(folder: Path) -> ImageTable:
    """Return 22 images with their labels, the same in every process; the images are written where they are not yet."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(22):
        path = folder / f"{number:03d}.png"
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        if not path.exists():
            Image.fromarray(pixels).save(path)
        paths.append(path)
    kind = np.eye(2)[rng.integers(0, 2, 22)]
    targets = np.hstack([rng.random((22, 3)) < 0.4, kind]).astype(np.uint8)
    return ImageTable(paths=paths, targets=targets, space=SPACE)


def make_model() -> Classifier:
    """Return the model with its first weights."""
    torch.manual_seed(7)
    return create_model(Backbone(), SPACE, image_size=12)


def train(images: Path, run_dir: Path, plan: Plan = Plan()) -> None:
    """Train to the end, or to what the plan says; operations on files, saves and the last weights are written down."""
    torch.set_num_threads(1)
    table, model = make_table(images), make_model()
    note = os.open(f"{run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _suffer(plan, run_dir, note)
    if plan.hold:
        with lock_run(run_dir):
            os.write(note, b"holding\n")
            time.sleep(plan.hold)
        return
    _note_saves(note)
    loss = create("asymmetric", space=SPACE)
    os.write(note, b"begun\n")
    fit(model, loss, table, table, config=CONFIG, run_dir=run_dir, resume="auto", progress="none", device="cpu")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, run_dir / "end.safetensors")


def _note_saves(note: int) -> None:
    """Write down each step that has been saved."""
    save, loop = checkpoint_module.save_checkpoint, sys.modules["mlabel.training.loop"]

    def noted(state: Any, *arguments: Any, **options: Any) -> Path:
        path = save(state, *arguments, **options)
        os.write(note, b"saved %d\n" % state.step)
        return path

    loop.save_checkpoint = noted  # type: ignore[attr-defined]


def _suffer(plan: Plan, run_dir: Path, note: int) -> None:
    if plan.size_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails instead of ending the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.size_limit, plan.size_limit))
    if plan.user is not None:
        os.setuid(plan.user)
    if plan.die_within is not None:
        _die_within(plan.die_within)
    _watch_operations(run_dir, note, plan.die_before)


def _die_within(name: str) -> None:
    write = checkpoint_module.write_synced

    def halfway(path: Path, content: bytes) -> None:
        # The second save, so that there is an earlier one to go back to.
        if path.name == name and len(list_checkpoints(path.parents[2])) > 1:
            path.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    checkpoint_module.write_synced = halfway


def _watch_operations(run_dir: Path, note: int, die_before: int | None) -> None:
    """Write down what is done to files of the run's folder, and die before the operation of a number."""
    done = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        named = _operation(event, arguments, str(run_dir))
        if named is None:
            return
        if done == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(note, f"{done} {named}\n".encode())
        done += 1

    sys.addaudithook(watch)


_CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"})


def _operation(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """Return an operation that changes files of a folder, such as `rename checkpoints/step-N`, None for any other."""
    if event == "open":
        if not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return None
    elif event not in _CHANGES:
        return None
    path = str(arguments[1] if event == "os.rename" else arguments[0])
    if os.path.isabs(path):
        if not path.startswith(folder + os.sep):
            return None
        path = path[len(folder) + 1 :]
    # Of a folder that is being removed, names come without it.
    return event.removeprefix("os.") + " " + re.sub(r"\d{8,}|\d+(?=\.tmp)", "N", path)


def start(images: Path, run_dir: Path, plan: Plan = Plan()) -> BaseProcess:
    """Start a training in a process of its own."""
    # Threads of the process that is forked would not be there in its children.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlabel.training", "mlabel.losses", "pytest"])
    process = context.Process(target=train, args=(images, run_dir, plan), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120.0) -> int:
    """Wait for a process and return its exit code, minus the signal's number where it was killed."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the training still ran after {seconds} seconds")
    code = process.exitcode
    process.close()
    return code


def notes(run_dir: Path) -> list[str]:
    """Return what the trainings in a run's folder wrote down."""
    path = Path(f"{run_dir}.log")
    return path.read_text().splitlines() if path.exists() else []


def last_saved(run_dir: Path) -> int:
    """Return the last step whose save was completed, 0 where none was."""
    return max((int(line.split()[1]) for line in notes(run_dir) if line.startswith("saved ")), default=0)
