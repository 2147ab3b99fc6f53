"""The demonstration: the whole way on scenes of handwritten digits, on a CPU, in less than a minute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mlabel.recipes.evaluation import RunEvaluation
from mlabel.recipes.recipe import Recipe
from mlabel.recipes.run import Say, run
from mlabel.recipes.scenes import write_scenes
from mlabel.training import TrainConfig, join_ranks
from mlabel.training.scoring import Progress, no_progress

# What the demo runs; `data` is put in when the scenes are written.
DEMO = Recipe(
    reader="csv",
    data="scenes/labels.csv",
    reader_options={
        "tags_column": "digits",
        "separator": " ",
        "exclusive": ["count"],
        "partition_column": "partition",
    },
    backbone="small_cnn",
    in_channels=1,
    image_size=32,
    loss="asymmetric",
    # With the mean over entries the count would drown the digits, of which most are absent.
    reduction="batchmean",
    train=TrainConfig(epochs=5, batch_size=64, lr=8e-3, schedule="cosine", warmup_steps=50, monitor="macro_f1"),
)


def demo(
    run_dir: str | Path = "runs/demo",
    *,
    seed: int = 0,
    limit: int | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    say: Say = print,
) -> RunEvaluation:
    """Do the whole way on scenes composed from real handwritten digits, and return the evaluation of the test part.

    A run that was interrupted goes on; one that is finished is evaluated again.

    Args:
        run_dir: The run's folder; the scenes go into its folder `scenes`.
        seed: Of the scenes and of the training.
        limit: Use this many scenes only; None: all.
        device: None: a GPU if there is one, else the CPU.
        progress: See `run`.
        say: Takes what a person should read on the way.

    Raises:
        ValueError: it was started by `torchrun` as several processes.
    """
    if join_ranks().size > 1:
        raise ValueError("the demo is for one process; start it without torchrun")
    labels = write_scenes(Path(run_dir) / "scenes", seed=seed)
    train = dataclasses.replace(DEMO.train, seed=seed)
    recipe = dataclasses.replace(DEMO, data=str(labels), limit=limit, train=train)
    with _one_thread():
        result = run(recipe, run_dir, resume="auto", device=device, progress=progress, say=say)
    assert result is not None, "only one of several processes gets None"
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: in a network this small, several wait for one another half of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
