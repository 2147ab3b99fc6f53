"""Several processes train one model: the same script, started by `torchrun`, with nothing in it about processes.

    python examples/distributed.py                                        # one process
    torchrun --nproc-per-node 2 examples/distributed.py                   # two, on CPUs by gloo, on GPUs by NCCL
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29500 --rdzv-backend c10d examples/distributed.py

`batch_size` is that of a step, of all processes together, so that learning rate and number of steps do not change with
their number. Images are shared out without padding, gradients are added with the weight of what is known, the first
process alone writes and prints, and a checkpoint goes on with any number of processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import mlabel
from mlabel.data import read_csv
from mlabel.recipes import write_scenes
from mlabel.training import join_ranks, leave_ranks

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/distributed")
ranks = join_ranks()  # who we are; `mlabel.fit` would do it too, but the data is to be written once

with ranks.first_before_others():
    labels = write_scenes(folder / "scenes", num_scenes=3000)
table = read_csv(labels, tags_column="digits", separator=" ", exclusive=["count"], partition_column="partition")
train, val = table.part("train"), table.part("val")

torch.manual_seed(0)  # every process makes the same first weights, which is checked
model = mlabel.create_model("small_cnn", table.space, in_channels=1, image_size=32)
loss = mlabel.losses.create("asymmetric", space=table.space, reduction="batchmean")
config = mlabel.TrainConfig(epochs=3, batch_size=64, lr=8e-3, warmup_steps=50, monitor="macro_f1")
history = mlabel.fit(model, loss, train, val, config=config, run_dir=folder / "run", resume="auto")

if ranks.first:
    print(
        f"{ranks.size} process{'es' * (ranks.size > 1)}: macro F1 {history[-1]['val_macro_f1']:.4f} in {folder / 'run'}"
    )
leave_ranks()
