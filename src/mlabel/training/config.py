"""What a training is told: one frozen, checked, JSON-able value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlabel._checks import check_between, check_positive, resolve
from mlabel.data import MIXES, REPEAT_THRESHOLD, SAMPLERS

OPTIMIZERS = ("adam", "adamw", "sgd", "adamax", "adadelta")
SCHEDULES = ("constant", "linear", "cosine", "step", "plateau", "one_cycle")
# Those that depend on how many epochs there will be.
STRETCHED = ("linear", "cosine", "one_cycle")
LOGS = ("none", "jsonl", "tensorboard")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
ON_BAD = ("error", "skip")
UNFREEZE = ("together", "gradual")
WEIGHT_DECAY_ON = ("all", "weights")
BATCH_NORM = ("batch", "frozen")
COMPILE = ("none", "default", "reduce-overhead", "max-autotune")
MEMORY_FORMATS = ("channels_last", "contiguous")
TF32 = ("default", "on", "off")
SHARPNESS = ("none", "sam", "gsam")
SHARD = ("none", "weights")
_OPTIONS = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "sampler": SAMPLERS,
    "mix": MIXES,
    "on_bad": ON_BAD,
    "unfreeze": UNFREEZE,
    "weight_decay_on": WEIGHT_DECAY_ON,
    "batch_norm": BATCH_NORM,
    "sharpness": SHARPNESS,
    "shard": SHARD,
    "compile": COMPILE,
    "memory_format": MEMORY_FORMATS,
    "tf32": TF32,
    "log": LOGS,
}

# What may differ between a checkpoint and the training that goes on from it, without changing any number that was
# reached before. A training that a bad image stopped can thus go on without it.
FREE_TO_CHANGE = frozenset({"num_workers", "keep", "save_every", "on_bad", "max_bad", "log", "log_every", "shard"})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training.

    Args:
        epochs: How many times the training images are gone through.
        batch_size: Samples of one forward pass, those of all processes together where several train.
        optimizer: `adam`, `adamw`, `sgd`, `adamax` or `adadelta`.
        lr: Learning rate after the warm-up.
        weight_decay: As the optimiser defines it.
        momentum: Of `sgd`; the others do not use it.
        schedule: `constant`; `linear` or `cosine` (to 0 at the last step); `step` (times `decay` every `step_size`
            epochs); `plateau` (times `decay` after `step_size` evaluations in which `monitor` did not improve);
            `one_cycle` (from `lr` / 25 up to `lr`, and down to next to nothing, each along half a cosine).
        warmup_steps: Steps over which the learning rate rises linearly from 0, before the schedule begins; with
            `one_cycle`, in which it rises at all, and 0 stands for three tenths of them.
        step_size: See `schedule`.
        decay: See `schedule`.
        precision: `fp32`; `bf16` or `fp16` (autocast, the latter with a loss scaler); `auto`: bf16 where the device
            computes in it, else fp16 on a GPU and fp32 on a CPU. What was chosen is said, and kept by a training that
            goes on elsewhere.
        tf32: Whether a GPU computes float32 products with ten bits of fraction: `on`, `off`, or `default`, as torch is
            set (convolutions do).
        memory_format: How the network's images and weights lie in memory: `channels_last`, which is the faster one for
            convolutions, or `contiguous`.
        compile: What `torch.compile` should take pains with, for the training steps of full batches: `default`,
            `reduce-overhead` or `max-autotune`; `none`: nothing is compiled. Where it fails, training stops and says
            so.
        accumulate: Batches of one optimiser step. They are weighed by what is known in each, so that the step equals
            that of one large batch (but for batch statistics).
        clip_norm: The largest gradient norm; None: not clipped.
        patience: Evaluations without improvement after which training stops; None: never.
        monitor: What is best: `loss` (of validation) or a key of `Evaluation`, such as `map` or `macro_f1`.
        eval_every: Steps between evaluations; None: at the end of each epoch only. The end of an epoch always is one.
        save_every: Steps between checkpoints; None: at the end of each epoch only. The end of an epoch always is one.
        log: What is written of steps and evaluations beside `history.csv`: `none`; `jsonl`: a line each in `log.jsonl`;
            `tensorboard`: that, and curves for TensorBoard.
        log_every: Steps between those that are logged. Evaluations and odd steps always are.
        keep: How many of the newest checkpoints stay on disk, at least 2. The best one always stays.
        num_workers: Processes that decode images, for each that trains; 0: none but itself. Does not change any result.
        progressive_resize: Sizes in pixels (of the longer side), such as 64,96, that the training images have one
            after the other, before that of the model; all get equally many epochs. Evaluation is at the model's size.
        augment: Augmentation of the training images: `none`, `light`, `standard`, `strong`, or steps with their
            strength, such as `crop:0.5+flip` or `crop+rand_augment`; see `mlabel.data.augmentation`.
        sampler: Which images an epoch has: `shuffle` (each once); `repeat_factor` or `instance_aware` (those of rare
            labels more often, an epoch being longer for it); `sequential` (each once, in the table's order).
        repeat_threshold: Share of the images below which a label is rare, for the samplers that repeat: a label in a
            quarter of that share comes twice as often.
        mix: How the samples of a batch are mixed in pairs, labels and all: `none`, `mixup` or `cutmix`.
        mix_alpha: How evenly they are mixed, the parameter of a Beta distribution; None: 0.2 for `mixup`, 1 for
            `cutmix`.
        label_smoothing: How far training targets are moved towards 0.5 (any-of labels) or the uniform distribution
            (exclusive groups); from 0, not at all, to 1.
        ema: Decay of an average of the weights over the steps, such as 0.999, which is evaluated, kept as the best
            and loaded for prediction in the place of the weights; it begins smaller, so that the first weights are
            soon forgotten (see `mlabel.training.WeightAverage`); None: no average.
        sharpness: What keeps the training away from sharp minima, for twice the time of a step: `none`; `sam`: the
            gradient is taken where the loss is highest near by (Foret et al., 2021); `gsam`: and less of what the two
            gradients do not share (Zhuang et al., 2022).
        rho: With `sharpness`, how far away the second gradient is taken.
        rho_min: With `sharpness`, what `rho` shrinks to as the schedule lowers the learning rate to 0; None: it stays.
        gsam_alpha: With `gsam`, how much of the part of the plain gradient that is orthogonal to the other is taken
            away.
        seed: Of order, augmentation, mixing and dropout.
        on_bad: What an image that cannot be read does, in training and when a part is scored: `error` stops and names
            it; `skip` goes on without it, nothing taking its place, and lists it in `bad.jsonl` of the run.
        max_bad: With `skip`, the share of a part that may be bad; beyond it training or scoring stops.
        freeze: The last stage, counted from the image, that does not train, such as `layer3`; `backbone`: none of them
            does, only the head; None: all do. See `mlabel.models.list_stages`. Frozen stages have no dropout, and
            their batch norms use the running statistics and leave them as they are.
        unfreeze_epoch: With `freeze`, the epochs after which frozen stages train too; None: they never do.
        unfreeze: How they come to train from then on: `together`, or `gradual`, one more each epoch, the one nearest to
            the head first.
        layer_decay: What the learning rate of each stage is multiplied with, against the next one towards the head;
            the stage nearest to the head has `layer_decay` times `lr`.
        head_lr: Learning rate of the head, which follows the schedule as `lr` does; None: `lr`.
        weight_decay_on: What `weight_decay` shrinks: `all` parameters; or `weights` only, not biases, normalisations
            and other parameters of one dimension.
        batch_norm: `batch`: the backbone's batch norms use the statistics of each batch in training; `frozen`: their
            running ones, which then stay those of the pretrained weights, as suits small batches. Their scales and
            shifts train either way. The head's always use the batch.
        shard: What several processes share out, so that each needs less memory: `none`: each has the whole model;
            `weights`: each has its part of the weights, the gradients and the state of the optimiser, and the weights
            of a layer are gathered as it is computed. Not with `compile`, `freeze` or fp16.

    Raises:
        ValueError: a value out of its range, or an unknown name.

    Example:
        >>> config = TrainConfig(epochs=3, optimizer="sgd", lr=0.1)
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
        >>> TrainConfig(schedule="cosin")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: unknown schedule 'cosin'; did you mean 'cosine'? Known: ...
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_steps: int = 0
    step_size: int = 5
    decay: float = 0.1
    precision: str = "auto"
    tf32: str = "default"
    memory_format: str = "channels_last"
    compile: str = "none"
    accumulate: int = 1
    clip_norm: float | None = None
    patience: int | None = None
    monitor: str = "map"
    eval_every: int | None = None
    save_every: int | None = None
    log: str = "jsonl"
    log_every: int = 10
    keep: int = 2
    num_workers: int = 0
    progressive_resize: tuple[int, ...] | None = None
    augment: str = "none"
    sampler: str = "shuffle"
    repeat_threshold: float = REPEAT_THRESHOLD
    mix: str = "none"
    mix_alpha: float | None = None
    label_smoothing: float = 0.0
    ema: float | None = None
    sharpness: str = "none"
    rho: float = 0.05
    rho_min: float | None = None
    gsam_alpha: float = 0.1
    seed: int = 0
    on_bad: str = "error"
    max_bad: float = 0.001
    freeze: str | None = None
    unfreeze_epoch: int | None = None
    unfreeze: str = "together"
    layer_decay: float = 1.0
    head_lr: float | None = None
    weight_decay_on: str = "all"
    batch_norm: str = "batch"
    shard: str = "none"

    def __post_init__(self) -> None:
        for name, options in _OPTIONS.items():
            resolve(getattr(self, name), dict.fromkeys(options), name)
        for name in ("epochs", "batch_size", "accumulate", "step_size", "log_every"):
            _check_count(getattr(self, name), 1, name)
        for name in ("patience", "eval_every", "save_every", "unfreeze_epoch"):
            if getattr(self, name) is not None:
                _check_count(getattr(self, name), 1, name)
        if self.progressive_resize is not None:
            object.__setattr__(self, "progressive_resize", tuple(self.progressive_resize))  # JSON knows lists only
            for side in self.progressive_resize:
                _check_count(side, 1, "each of progressive_resize")
        _check_count(self.warmup_steps, 0, "warmup_steps")
        _check_count(self.num_workers, 0, "num_workers")
        _check_count(self.seed, 0, "seed")
        _check_count(self.keep, 2, "keep")
        check_positive(self.lr, "lr")
        check_between(self.weight_decay, 0, 1e6, "weight_decay")
        check_between(self.momentum, 0, 1, "momentum")
        check_between(self.decay, 0, 1, "decay")
        check_positive(self.repeat_threshold, "repeat_threshold")
        check_between(self.repeat_threshold, 0, 1, "repeat_threshold")
        check_between(self.label_smoothing, 0, 1, "label_smoothing")
        check_between(self.max_bad, 0, 1, "max_bad")
        check_positive(self.layer_decay, "layer_decay")
        check_between(self.layer_decay, 0, 1, "layer_decay")
        for name in ("clip_norm", "mix_alpha", "head_lr"):
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), name)
        check_positive(self.rho, "rho")
        check_between(self.gsam_alpha, 0, 1, "gsam_alpha")
        if self.rho_min is not None:
            check_between(self.rho_min, 0, self.rho, "rho_min")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must be from 0 to below 1, or None; got {self.ema!r}")
        if self.unfreeze_epoch is not None and self.freeze is None:
            raise ValueError("unfreeze_epoch needs freeze, the last stage that is frozen until then")
        if self.shard != "none":
            self._check_shardable()

    def _check_shardable(self) -> None:
        for name, wanted in (("compile", "none"), ("freeze", None)):
            if getattr(self, name) != wanted:
                raise ValueError(
                    f"shard={self.shard!r} cannot go together with {name}={getattr(self, name)!r}; use "
                    f"{name}={wanted!r}, or shard='none'"
                )
        if self.precision == "fp16":
            raise ValueError(
                f"shard={self.shard!r} cannot go together with precision='fp16'; use precision='bf16' or 'fp32', or "
                "shard='none'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary for JSON; `from_dict` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Return the settings that `to_dict` described as `data`.

        Raises:
            ValueError: an unknown name, or a value out of its range.
        """
        for name in data:
            resolve(name, cls.__dataclass_fields__, "training setting")
        return cls(**data)

    def check_continues(self, saved: TrainConfig) -> None:
        """Refuse to go on from `saved` where that would not give the same numbers.

        More or fewer `epochs` are the same training unless the schedule is stretched over them.

        Raises:
            ValueError: settings differ; the differences are listed.
        """
        stretched = self.schedule in STRETCHED or self.progressive_resize is not None
        free = FREE_TO_CHANGE | (set() if stretched else {"epochs"})
        mine, theirs = self.to_dict(), saved.to_dict()
        differ = [f"{k}: {theirs[k]!r} saved, {mine[k]!r} now" for k in mine if k not in free and mine[k] != theirs[k]]
        if differ:
            raise ValueError(
                f"the checkpoint was trained with other settings ({'; '.join(differ)}); go on with the saved ones, or "
                "start in another run folder"
            )


def _check_count(value: object, least: int, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}; got {value!r}")
