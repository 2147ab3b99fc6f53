"""The bundle: one folder that carries model, labels, preprocessing and thresholds to any machine, on any day.

It holds `config.json` (architecture, space, preprocessing, versions), `model.safetensors`, `thresholds.json`,
`calibration.json` where scores are calibrated, and `selected_tags.csv`, which taggers that read the wd-tagger files can
read. Nothing in it can name code to run.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from mlabel._checks import DataError
from mlabel._files import MAX_JSON, new_folder, own_file, read_json, to_json, write_synced
from mlabel.data.readers.selected_tags import CATEGORIES, read_tag_lines
from mlabel.decisions import Calibration, Thresholds
from mlabel.labels import LabelSpace
from mlabel.models import Classifier, Head, from_config
from mlabel.models.pretrained import list_differences

FORMAT = "mlabel.bundle/1"
# All that may lie in the folder of one.
BUNDLE_FILES = ("config.json", "model.safetensors", "thresholds.json", "calibration.json", "selected_tags.csv")


@dataclass(frozen=True)
class Bundle:
    """What a bundle's folder holds.

    Attributes:
        model: In evaluation mode, on the CPU.
        thresholds: The calibrated thresholds, or None where none were saved.
        counts: Positives of each label in the training part (L,) int64; zeros where not known.
        notes: What whoever saved it wanted remembered, such as metrics; plain JSON values.
        calibration: What makes the model's logits the probabilities that the thresholds are for; None: the space's own.
    """

    model: Classifier
    thresholds: Thresholds | None
    counts: np.ndarray
    notes: dict[str, Any]
    calibration: Calibration | None = None


def save_bundle(
    folder: str | Path,
    model: Classifier,
    thresholds: Thresholds | None = None,
    *,
    calibration: Calibration | None = None,
    counts: np.ndarray | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle to `folder`, in the place of one that is there, and return the folder.

    Args:
        folder: Where to; its parent is made.
        model: The model; where its backbone is a module of yours, whoever loads the bundle must pass that again.
        thresholds: Of the same label space, for calibrated probabilities where there is a calibration; None: 0.5.
        calibration: Of the same label space; None: probabilities are those that the model says.
        counts: Positives of each label in the training part (L,), for `selected_tags.csv`; None: written as 0.
        notes: JSON values to keep beside it.

    Raises:
        ValueError: thresholds, calibration or counts of another number of labels.
        FileExistsError: `folder` exists and is not a bundle.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> path = save_bundle(folder + "/bundle", model, counts=np.array([7, 3]))
        >>> sorted(each.name for each in path.iterdir())
        ['config.json', 'model.safetensors', 'selected_tags.csv']
    """
    folder, space = Path(folder), model.space
    held = np.zeros(space.num_labels, dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
    if held.shape != (space.num_labels,):
        raise ValueError(f"counts must be of shape ({space.num_labels},); got {held.shape}")
    if thresholds is not None and len(thresholds.values) != space.num_labels:
        raise ValueError(f"thresholds must be of {space.num_labels} labels; got {len(thresholds.values)}")
    if calibration is not None and calibration.num_labels != space.num_labels:
        raise ValueError(f"calibration must be of {space.num_labels} labels; got {calibration.num_labels}")
    with new_folder(folder, "config.json", "a bundle") as temporary:
        _write(temporary, model, thresholds, calibration, counts=held, notes=dict(notes or {}))
    return folder


def _write(
    folder: Path,
    model: Classifier,
    thresholds: Thresholds | None,
    calibration: Calibration | None,
    *,
    counts: np.ndarray,
    notes: dict[str, Any],
) -> None:
    config = {
        "format": FORMAT,
        "model": model.config,
        "space": model.space.to_dict(),
        "versions": {"torch": torch.__version__},
        "notes": notes,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_synced(folder / "config.json", to_json(config).encode())
    write_synced(folder / "model.safetensors", safetensors.torch.save(tensors))
    levels = np.full(model.space.num_labels, 0.5) if thresholds is None else thresholds.values
    if calibration is not None:
        levels = calibration.raw_thresholds(levels)  # who reads this file knows the model's own scores only
        calibration.save(folder / "calibration.json")
    write_synced(folder / "selected_tags.csv", selected_tags(model.space, counts, levels).encode())
    if thresholds is not None:
        thresholds.save(folder / "thresholds.json")


def selected_tags(space: LabelSpace, counts: np.ndarray, values: np.ndarray) -> str:
    """Return the text of `selected_tags.csv`, in which the row is the column, for thresholds (L,)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["tag_id", "name", "category", "count", "best_threshold"])
    for group in space.groups:
        # A group of any other name is general.
        category = CATEGORIES.get(group.name, CATEGORIES["general"])
        for column, name in enumerate(group.labels, start=space.slices[group.name].start):
            level = "" if group.exclusive or np.isnan(values[column]) else repr(float(values[column]))
            writer.writerow([column, name, category, int(counts[column]), level])
    return text.getvalue()


def load_bundle(folder: str | Path, *, backbone: nn.Module | None = None, head: Head | None = None) -> Bundle:
    """Return what a bundle holds. Nothing in it is run.

    Args:
        folder: The bundle's.
        backbone: The module that the model was built on, where that was one of yours.
        head: The model's head, likewise.

    Raises:
        FileNotFoundError: there is no bundle.
        DataError: a file is not what its name says, or the weights do not fit the architecture.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> bundle = load_bundle(save_bundle(folder + "/bundle", model, notes={"macro_f1": 0.5}))
        >>> bundle.model.space.names, bundle.notes
        (('cat', 'dog'), {'macro_f1': 0.5})
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a bundle: there is no config.json in it")
    path = own_file(folder, "config.json")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise DataError(f"{path}: format {FORMAT!r} was wanted; got {found!r:.80}")
    if "space" not in config or "model" not in config:
        raise DataError(f"{path}: 'space' and 'model' were wanted in it")
    weights = own_file(folder, "model.safetensors")
    try:
        space = LabelSpace.from_dict(config["space"])
        model = _load_model(weights, config["model"], space, backbone, head)
    except DataError as error:
        raise error if str(weights) in str(error) else DataError(f"{path}: {error}") from error
    thresholds = calibration = None
    if (folder / "thresholds.json").exists():
        thresholds = Thresholds.load(own_file(folder, "thresholds.json"), space)
    if (folder / "calibration.json").exists():
        calibration = Calibration.load(own_file(folder, "calibration.json"), space)
    counts = _read_counts(own_file(folder, "selected_tags.csv", most=MAX_JSON), space)
    return Bundle(model.eval(), thresholds, counts, config.get("notes", {}), calibration)


def _load_model(
    path: Path, config: Any, space: LabelSpace, backbone: nn.Module | None, head: Head | None
) -> Classifier:
    """Return the model with its weights; no memory is taken for weights that are not in the file."""
    _check_memory(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if backbone is None and head is None:
            with torch.device("meta"):
                planned = from_config(config, space)
            own = {name: tuple(tensor.shape) for name, tensor in planned.state_dict().items()}
            if own != shapes:
                raise _misfit(path, _shape_differences(own, shapes))
        model = from_config(config, space, backbone=backbone, head=head)
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file: {error}") from error
    differ = list_differences(model, tensors)
    if differ:
        raise _misfit(path, differ)
    model.load_state_dict(tensors)
    return model


def _check_memory(path: Path) -> None:
    """Refuse weights that this machine cannot hold."""
    size, memory = path.stat().st_size, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory // 2:
        raise DataError(f"{path}: {size:,} bytes of weights, more than half of this machine's memory ({memory:,})")


def _shape_differences(own: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    differ = [f"{name} is missing" for name in own if name not in shapes]
    differ += [f"{name} is not in the model" for name in shapes if name not in own]
    both = [name for name in shapes if name in own and own[name] != shapes[name]]
    return differ + [f"{name} is {shapes[name]} there and {own[name]} in the model" for name in both]


def _misfit(path: Path, differ: Sequence[str]) -> DataError:
    more = f"; and {len(differ) - 8} more" if len(differ) > 8 else ""
    shown = "; ".join(differ[:8]) + more
    return DataError(f"{path}: the weights do not fit the architecture of config.json: {shown}")


def _read_counts(path: Path, space: LabelSpace) -> np.ndarray:
    rows = read_tag_lines(path)
    if tuple(rows.names) != space.names:
        raise DataError(f"{path}: its names are not those of config.json, in that order")
    if rows.counts is None:
        raise DataError(f"{path} has no column 'count'")
    return rows.counts
