"""What a whole run is told: one frozen, checked, JSON-able value, and the presets."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlabel._checks import check_between, check_positive, resolve, suggest
from mlabel.data import READERS, SPLIT_METHODS
from mlabel.decisions import CALIBRATION_METHODS, CALIBRATION_SCOPES, check_objective
from mlabel.models import VIEWS
from mlabel.training import TrainConfig

INIT_BIASES = ("default", "prior")
CALIBRATIONS = ("none", "loss", *CALIBRATION_METHODS)


@dataclass(frozen=True)
class Recipe:
    """A run from annotation file to report.

    Args:
        reader: Name of the reader of the annotations, from `mlabel.data.READERS`.
        data: The folder or file that it reads.
        reader_options: Further arguments of the reader, such as `{"min_count": 50}`.
        labels: Names of the labels to learn; None: all that the reader gives.
        split: Shares of the training, validation and (if there are three) test part, such as 0.64,0.16,0.2, whatever
            the official partition is; None: the official one, or else 0.8,0.1,0.1.
        split_method: How images are split: `stratified` by the labels, or `random`.
        split_seed: Which of the many such splits.
        hold_out: The share of the official training part on which checkpoints are chosen and thresholds fitted in the
            place of the official validation part, which is the test part then if there is no labelled one; None: the
            parts are as they are. See `ImageTable.parts`.
        limit: Use this many images only, of each official part in proportion; None: all.
        cache: Folder of the decoded images that `mlabel cache` made; None: images are decoded as they are needed.
        duplicates: Keep pictures whose perceptual hashes differ in at most so many of 64 bits (0: the same pictures) in
            one part, for which every image is read once; None: do not look. Only for data that is split here.
        backbone: Name of the backbone, from `mlabel.models.list_models`.
        head: Name of the head, from `mlabel.models.HEADS`.
        head_options: Further arguments of that head, such as `{"heads": 4}` of `csra`.
        weights: Pretrained weights: a name of torchvision or timm, such as `DEFAULT`, `pip` for networks whose weights
            are a package (see `mlabel.create_model`), or a local file; None: none.
        dropout: Dropout before the last linear layer.
        hidden: Hidden units of the `mlp` head and of the layers of `multi`, width of `ml_decoder`, rank of `embedding`.
        in_channels: 3 for colour, 1 for greyscale.
        image_size: Pixels of a side; images are resized to this square.
        views: What the trained model looks at: the image, `plain`, or its mirror image too, `mirrored`, with the mean
            of their logits, for twice the time.
        loss: Name of the loss of the any-of groups, from `mlabel.losses`.
        exclusive_loss: Name of the loss of the exclusive groups, from `mlabel.losses`; None: cross-entropy.
        loss_options: Further arguments of the losses, such as `{"gamma_neg": 2.0}`.
        reduction: `mean` over known entries; `batchmean`: a sum over labels, so that a group of many any-of labels
            weighs more than an exclusive one; or `sum`.
        weighting: Class weights from the training counts: a scheme of `mlabel.weights`; None: none.
        logit_adjustment: How far training is told how often each label occurs, by adding so many times its log prior
            (any-of labels: log odds) to the logits in the loss; prediction uses the logits without it, in which rare
            labels weigh more. 0: not at all; 1: as if all were equally frequent. See `mlabel.losses.LogitAdjusted`.
        init_bias: How the bias of the head begins: `default`, near 0; or `prior`, at the labels' shares in training.
        calibration: What makes the model's scores probabilities, before thresholds are fitted: `none`; `loss`, which
            undoes the bias of the loss; or a method of `mlabel.fit_calibration`, fitted on the validation part.
        calibration_scope: What has a map of its own: `label`, `group` or `global`.
        objective: What the thresholds are fitted for: a name of `mlabel.decisions.OBJECTIVES`.
        objective_options: Options of the objective, such as `{"floor": 0.9}`; see `mlabel.fit_thresholds`.
        scope: What has a threshold of its own: `label`, `group` or `global`; None: `label`, and `global` of objectives
            that decide by row.
        train: The settings of the training.

    Raises:
        ValueError: an unknown reader, an option that it does not have, shares that are none, `duplicates` or
            `logit_adjustment` out of range, `logit_adjustment` with label
            smoothing, an unknown `init_bias` or calibration, an objective with a scope or option
            that it does not have, or no name in `labels`.
        TypeError: `labels` that are not texts.

    Example:
        >>> Recipe("mirflickr", "photographs", backbone="resnet18").image_size
        128
    """

    reader: str
    data: str
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    split: tuple[float, ...] | None = None
    split_method: str = "stratified"
    split_seed: int = 0
    hold_out: float | None = None
    limit: int | None = None
    cache: str | None = None
    duplicates: int | None = None
    backbone: str = "resnet18"
    head: str = "linear"
    head_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    dropout: float = 0.0
    hidden: int = 512
    in_channels: int = 3
    image_size: int = 128
    views: str = "plain"
    loss: str = "binary_cross_entropy"
    exclusive_loss: str | None = None
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    reduction: str = "mean"
    weighting: str | None = None
    logit_adjustment: float = 0.0
    init_bias: str = "default"
    calibration: str = "none"
    calibration_scope: str = "label"
    objective: str = "f1"
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    scope: str | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        reader = resolve(self.reader, READERS, "reader")
        known = [name for name, each in inspect.signature(reader).parameters.items() if each.kind is each.KEYWORD_ONLY]
        for name in self.reader_options:
            if name not in known:
                raise ValueError(f"reader {self.reader!r} has no option {name!r}; {suggest(name, known)}")
        resolve(self.calibration, dict.fromkeys(CALIBRATIONS), "calibration")
        resolve(self.calibration_scope, CALIBRATION_SCOPES, "calibration scope")
        check_objective(self.objective, self.scope, self.objective_options)
        check_between(self.logit_adjustment, 0, 10, "logit_adjustment")
        if self.logit_adjustment and self.train.label_smoothing:
            raise ValueError(
                "label_smoothing gives each label the same share of doubt, which logit_adjustment then divides by how "
                "rare the label is, so that rare ones win everywhere; use one of the two"
            )
        resolve(self.init_bias, dict.fromkeys(INIT_BIASES), "init_bias")
        resolve(self.views, dict.fromkeys(VIEWS), "views")
        resolve(self.split_method, dict.fromkeys(SPLIT_METHODS), "split_method")
        self._check_split()
        if self.duplicates is not None:
            check_between(self.duplicates, 0, 16, "duplicates")
        if self.labels is not None:
            object.__setattr__(self, "labels", _as_names(self.labels))

    def _check_split(self) -> None:
        if self.split is not None:
            object.__setattr__(self, "split", tuple(self.split))  # JSON knows lists only
            if (
                len(self.split) not in (2, 3)
                or not all(each > 0 for each in self.split)
                or abs(sum(self.split) - 1) > 1e-6
            ):
                raise ValueError(f"split must be two or three positive shares with sum 1; got {self.split}")
        if self.hold_out is not None:
            check_positive(self.hold_out, "hold_out")
            check_between(self.hold_out, 0, 0.9, "hold_out")
            if self.split is not None:
                raise ValueError(
                    "hold_out is a share of the official training part, and split sets that aside; give one"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a dictionary for JSON; `from_dict` reads it."""
        return dataclasses.asdict(self) | {"labels": None if self.labels is None else list(self.labels)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` described as `data`.

        Raises:
            ValueError: an unknown name, or a value out of its range.
        """
        for name in data:
            resolve(name, cls.__dataclass_fields__, "recipe setting")
        return cls(**{**data, "train": TrainConfig.from_dict(data["train"])})


def _as_names(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(isinstance(name, str) for name in labels):
        raise TypeError(f"labels must be a sequence of names; got {labels!r}")
    if not labels:
        raise ValueError("labels names no label; None stands for all of them")
    return tuple(labels)
