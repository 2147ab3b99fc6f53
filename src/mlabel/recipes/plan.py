"""What a run would do and cost, found out without writing anything."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from mlabel._checks import DataError
from mlabel.data import ImageTable
from mlabel.labels import LabelSpace
from mlabel.models import Classifier, count_kept_bytes, count_multiply_adds
from mlabel.recipes.imbalance import make_loss
from mlabel.recipes.recipe import Recipe
from mlabel.recipes.run import make_model, read_table, split_table
from mlabel.training import TrainState, list_checkpoints, newest_checkpoint, refuse_used, train

_log = logging.getLogger(__name__)

STEPS = 6  # that are measured at most, after a first one
SECONDS = 10.0  # after which no further step is measured


@dataclass(frozen=True)
class RunPlan:
    """What a run would do and cost; `text` tells it.

    Attributes:
        run_dir: Where it would write.
        recipe: What it is told.
        parts: Part name to its number of images.
        space: The labels.
        image_size: (H, W) of the images.
        backbone_parameters: Numbers that the backbone learns.
        head_parameters: Numbers that the head learns.
        multiply_adds: Of the model for one image; None: they cannot be counted.
        device: Where it would train.
        precision: In which it would compute.
        steps_per_epoch: Steps of the optimiser.
        step_seconds: How many seconds a step takes, the median of those measured; None: none was.
        steps_measured: Of how many.
        weights_bytes: Bytes of parameters and buffers.
        gradient_bytes: Bytes of the gradients of what trains.
        optimizer_bytes: Bytes of the state of the optimiser.
        average_bytes: Bytes of the average of the weights; 0: there is none.
        activation_bytes: Bytes kept of a batch for its gradient, in float32; None: they cannot be counted.
        free_bytes: Bytes free on the disk that it would write to.
        exists: What is in `run_dir` already.
        notes: What the figures leave out.
    """

    run_dir: Path
    recipe: Recipe
    parts: dict[str, int]
    space: LabelSpace
    image_size: tuple[int, int]
    backbone_parameters: int
    head_parameters: int
    multiply_adds: int | None
    device: str
    precision: str
    steps_per_epoch: int
    step_seconds: float | None
    steps_measured: int
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    average_bytes: int
    activation_bytes: int | None
    free_bytes: int
    exists: str
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps of the optimiser in all."""
        return self.steps_per_epoch * self.recipe.train.epochs

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients, optimiser, average and activations together."""
        held = self.weights_bytes + self.gradient_bytes + self.optimizer_bytes + self.average_bytes
        return held + (self.activation_bytes or 0)

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        return self.weights_bytes + self.optimizer_bytes + self.average_bytes

    @property
    def disk_bytes(self) -> int:
        """Of all checkpoints that are there at once, and of the bundle; the report is small."""
        return (self.recipe.train.keep + 2) * self.checkpoint_bytes + self.weights_bytes

    def text(self) -> str:
        """Return the plan for a person, a topic a line."""
        rows = {
            "images": ", ".join(f"{name} {number:,}" for name, number in self.parts.items()),
            "labels": self._labels(),
            "network": self._network(),
            "training": self._training(),
            "memory": self._memory(),
            "time": self._time(),
            "disk": self._disk(),
            "written": f"into {self.run_dir}: config, history, checkpoints, bundle, report; {self.exists}",
        }
        lines = [f"{topic:<10}{line}" for topic, line in rows.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _labels(self) -> str:
        kinds = (f"{len(g):,} in {g.name} ({'one of' if g.exclusive else 'any of'})" for g in self.space.groups)
        return f"{self.space.num_labels:,}: {', '.join(kinds)}"

    def _network(self) -> str:
        height, width = self.image_size
        counted = "multiply-adds are not known"
        if self.multiply_adds is not None:
            counted = f"{self.multiply_adds / 1e9:,.3f} G multiply-adds"
        return (
            f"{self.recipe.backbone} {self.backbone_parameters / 1e6:,.2f} M parameters, head {self.recipe.head} "
            f"{self.head_parameters / 1e6:,.2f} M; {counted} for an image of {height} x {width}"
        )

    def _training(self) -> str:
        config = self.recipe.train
        images = config.batch_size * config.accumulate
        return (
            f"{config.epochs:,} epochs of {self.steps_per_epoch:,} steps = {self.steps:,} steps of {images:,} images, "
            f"{config.optimizer}, on {self.device} in {self.precision}"
        )

    def _memory(self) -> str:
        parts = {"weights": self.weights_bytes, "gradients": self.gradient_bytes, "optimiser": self.optimizer_bytes}
        if self.average_bytes:
            parts["average"] = self.average_bytes
        said = ", ".join(f"{name} {_size(number)}" for name, number in parts.items())
        if self.activation_bytes is None:
            return f"{said}; activations are not known for this network"
        return (
            f"{said}, activations {_size(self.activation_bytes)}: about {_size(self.memory_bytes)} (activations: "
            f"what the network keeps of {self.recipe.train.batch_size:,} images for the gradient, counted in float32)"
        )

    def _time(self) -> str:
        if self.step_seconds is None:
            return "not known: no step was measured"
        whole, number = _duration(self.step_seconds * self.steps), self.steps_measured
        return (
            f"about {whole} of training: {self.step_seconds:.3g} s a step, the median of {number} measured "
            "here, images read; evaluations, checkpoints and the report come on top"
        )

    def _disk(self) -> str:
        return (
            f"checkpoints of {_size(self.checkpoint_bytes)}, at most {self.recipe.train.keep + 2} at once, and the "
            f"bundle: about {_size(self.disk_bytes)}; {_size(self.free_bytes)} are free"
        )


def plan_run(
    recipe: Recipe,
    run_dir: str | Path,
    *,
    resume: str | None = None,
    device: str | None = None,
    seconds: float = SECONDS,
) -> RunPlan:
    """Return what `run` would do and cost. Nothing is written or downloaded; a few steps are trained and thrown away.

    Args:
        recipe: What would be done.
        run_dir: Where.
        resume: As for `run`.
        device: None: a GPU if there is one, else the CPU.
        seconds: No step begins after so many, of those that are measured after the first.

    Raises:
        DataError, FileNotFoundError, FileExistsError, ValueError: as `run` would.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> plan = plan_run(recipe, folder + "/a", seconds=0)
        >>> plan.parts, plan.steps
        ({'train': 42, 'val': 7, 'test': 11}, 1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a plan is made by one process; start it without torchrun")
    refuse_used(run_dir, resume)
    parts = split_table(recipe, read_table(recipe))
    if "train" not in parts:
        raise DataError(f"{recipe.data}: there is no training part, only {sorted(parts)}")
    model = make_model(dataclasses.replace(recipe, weights=None), parts["train"])
    kept = _or_none(lambda: count_kept_bytes(model, recipe.train.batch_size))
    counted = _or_none(lambda: count_multiply_adds(model))
    learned = [sum(each.numel() for each in part.parameters()) for part in (model.backbone, model)]
    state, times = _measure(recipe, model, parts["train"], device, seconds)
    return RunPlan(
        run_dir=Path(run_dir),
        recipe=recipe,
        parts={name: len(part) for name, part in parts.items()},
        space=model.space,
        image_size=model.image_size,
        backbone_parameters=learned[0],
        head_parameters=learned[1] - learned[0],
        multiply_adds=counted,
        device=str(state.device),
        precision=state.precision,
        steps_per_epoch=state.steps_per_epoch,
        step_seconds=statistics.median(times) if times else None,
        steps_measured=len(times),
        weights_bytes=_bytes(state.model.state_dict()),
        gradient_bytes=_bytes([each for group in state.optimizer.param_groups for each in group["params"]]),
        optimizer_bytes=_bytes(state.optimizer.state_dict()["state"]),
        average_bytes=0 if state.average is None else _bytes(state.average.tensors),
        activation_bytes=kept,
        free_bytes=shutil.disk_usage(_nearest(Path(run_dir))).free,
        exists=_what_exists(Path(run_dir)),
        notes=_notes(recipe),
    )


def _measure(
    recipe: Recipe, model: Classifier, table: ImageTable, device: str | None, seconds: float
) -> tuple[TrainState, list[float]]:
    """Train a few steps; return the state and what each took, but for the first where there are others."""
    config = dataclasses.replace(
        recipe.train, compile="none", eval_every=None, log="none", epochs=max(2, recipe.train.epochs)
    )
    times: list[float] = []
    with closing(train(model, make_loss(recipe, table), table, config=config, device=device)) as events:
        begun = 0.0
        for event in events:
            if event.kind != "step":
                continue
            times.append(event.seconds)
            begun = begun or time.perf_counter()  # the first one's time is not counted
            if len(times) > STEPS or time.perf_counter() - begun > seconds:
                break
        state = event.state
    return state, times[1:] or times


def _notes(recipe: Recipe) -> tuple[str, ...]:
    train = recipe.train
    said = {
        f"the weights {recipe.weights!r} were not loaded, and would be downloaded if they are not here": recipe.weights,
        "near-duplicates were not looked for; with them the parts may be a little different": recipe.duplicates
        is not None,
        "the images grow from epoch to epoch; steps were measured at the first size": train.progressive_resize,
        "steps were measured without torch.compile": train.compile != "none",
        f"training may stop earlier, after {train.patience} evaluations without improvement": train.patience,
        "every activation counts four bytes; in 16 bits most take half": train.precision in ("bf16", "fp16"),
    }
    return tuple(note for note, holds in said.items() if holds)


def _what_exists(run_dir: Path) -> str:
    if not run_dir.exists():
        return "the folder is not there yet"
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        return "the folder is there" + ("" if any(run_dir.iterdir()) else ", and empty")
    newest = newest_checkpoint(run_dir)
    return f"{len(checkpoints)} checkpoints are there" + ("" if newest is None else f"; it goes on from {newest.name}")


def _or_none(count: Callable[[], int]) -> int | None:
    try:
        return count()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # a network that needs values
        _log.info("not counted: %s", error)
        return None


def _bytes(held: object) -> int:
    """Return the bytes of all tensors in nested dictionaries and lists."""
    if isinstance(held, torch.Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, dict):
        return sum(map(_bytes, held.values()))
    return sum(map(_bytes, held)) if isinstance(held, list | tuple) else 0


def _nearest(path: Path) -> Path:
    """Return the nearest folder at or above `path` that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _size(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
