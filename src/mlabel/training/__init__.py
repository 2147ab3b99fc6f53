"""Training: configuration, one exact step, the loop, and checkpoints that resume bit for bit."""

from mlabel.training.bad_images import BadLog
from mlabel.training.checkpoint import (
    SavedTensors,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    read_description,
    save_checkpoint,
)
from mlabel.training.config import (
    BATCH_NORM,
    COMPILE,
    LOGS,
    MEMORY_FORMATS,
    ON_BAD,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    SHARD,
    SHARPNESS,
    TF32,
    UNFREEZE,
    WEIGHT_DECAY_ON,
    TrainConfig,
)
from mlabel.training.distributed import Ranks, join_ranks, leave_ranks
from mlabel.training.ema import WeightAverage
from mlabel.training.fitting import Interrupted, fit
from mlabel.training.folder import refuse_used, write_history, write_run_config
from mlabel.training.gradients import GradientSum
from mlabel.training.logs import RunLog
from mlabel.training.loop import train
from mlabel.training.optimisers import make_optimizer
from mlabel.training.precision import autocast, resolve_precision, tensor_float32
from mlabel.training.progress import ProgressLine
from mlabel.training.resizing import resize_batch, training_size
from mlabel.training.sam import sharpen_gradient
from mlabel.training.schedules import learning_rate
from mlabel.training.scoring import TableScores, score_table
from mlabel.training.sharding import gather_tensors
from mlabel.training.state import Event, TrainState
from mlabel.training.step import StepResult, train_step

__all__ = [
    "BATCH_NORM",
    "COMPILE",
    "LOGS",
    "MEMORY_FORMATS",
    "ON_BAD",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "SHARD",
    "SHARPNESS",
    "TF32",
    "UNFREEZE",
    "WEIGHT_DECAY_ON",
    "BadLog",
    "Event",
    "GradientSum",
    "Interrupted",
    "ProgressLine",
    "Ranks",
    "RunLog",
    "SavedTensors",
    "StepResult",
    "TableScores",
    "TrainConfig",
    "TrainState",
    "WeightAverage",
    "autocast",
    "best_checkpoint",
    "fit",
    "gather_tensors",
    "join_ranks",
    "learning_rate",
    "leave_ranks",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "make_optimizer",
    "newest_checkpoint",
    "read_description",
    "refuse_used",
    "resize_batch",
    "resolve_precision",
    "save_checkpoint",
    "score_table",
    "sharpen_gradient",
    "tensor_float32",
    "train",
    "train_step",
    "training_size",
    "write_history",
    "write_run_config",
]
