"""Checkpoints: safetensors and JSON, complete or not there, checked by hash when read.

A checkpoint is a folder `checkpoints/step-00000120` with `model.safetensors`, `optimizer.safetensors`, `state.json` and
`manifest.json`, which holds the size and SHA-256 of the others; where the weights are averaged, also
`average.safetensors`. It is written under a temporary name, flushed to the disk and renamed; older ones are removed
only after that.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from mlabel._checks import DataError, resolve
from mlabel._files import digest, read_json, sync_folder, to_json, write_atomically, write_synced
from mlabel.labels import LabelSpace
from mlabel.models.pretrained import list_differences
from mlabel.training.config import TrainConfig
from mlabel.training.parts import is_part, part_like
from mlabel.training.state import TrainState

FORMAT = "mlabel.checkpoint/1"
_NAME = re.compile(r"step-(\d{8,})")
# What a checkpoint is called while another one of the same step takes its place.
_OLD = ".old"
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_AVERAGE = "average.safetensors"
WEIGHTS = ("judged", "last")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedTensors:
    """What a checkpoint saves besides numbers.

    Attributes:
        model: The model's state dict.
        optimizer: The optimiser's state dict.
        average: Name to average of the weights; None: there is none.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    average: dict[str, torch.Tensor] | None

    @classmethod
    def of(cls, state: TrainState) -> SavedTensors:
        """Return those of `state`, as they are."""
        average = None if state.average is None else state.average.tensors
        return cls(state.model.state_dict(), state.optimizer.state_dict(), average)


def save_checkpoint(
    state: TrainState,
    run_dir: str | Path,
    *,
    data: Mapping[str, str] | None = None,
    tensors: SavedTensors | None = None,
) -> Path:
    """Write `state` as a checkpoint of the run, remove those no longer kept, and return its folder.

    The `state.config.keep` newest stay, and so does the best. Where a sound checkpoint of this very step exists that
    says the same, it is kept as it is; where it says something else, having been saved before this step's evaluation,
    the new one takes its place.

    Args:
        state: What to save.
        run_dir: The run's folder.
        data: Names and fingerprints of the tables trained on, so that a changed table is noticed on resume.
        tensors: Those of the state; None: as they are in it, which must not be sharded (see
            `mlabel.training.gather_tensors`).

    Raises:
        ValueError: the state is sharded, and `tensors` are missing.
        OSError: the disk is full or refuses, or `run_dir` is not there (any more); earlier checkpoints are then
            untouched.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, TrainState, make_optimizer
        >>> folder, config = tempfile.mkdtemp(), TrainConfig()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> scaler = torch.amp.GradScaler("cpu", enabled=False)
        >>> state = TrainState(model, make_optimizer(model, config), scaler, config)
        >>> path = save_checkpoint(state, folder)
        >>> path.name, newest_checkpoint(folder) == path
        ('step-00000000', True)
    """
    tensors = tensors or SavedTensors.of(state)
    if any(map(is_part, tensors.model.values())):
        raise ValueError(
            "each process has only a part of this model (shard='weights'); call gather_tensors(state, ranks) on all of "
            "them, and save_checkpoint(state, run_dir, tensors=...) with what it gives on the first"
        )
    folder = Path(run_dir) / "checkpoints"
    folder.mkdir(exist_ok=True)
    target = folder / f"step-{state.step:08d}"
    if not (target.exists() and not problems(target) and _counts_the_same(target, state)):
        _write(state, target, dict(data or {}), saved=tensors)
    mark_best(state, run_dir)
    _prune(folder, state)
    return target


def mark_best(state: TrainState, run_dir: str | Path) -> None:
    """Let the file `best` of the run name the best checkpoint, which a process killed after saving it did not do."""
    name, pointer = f"step-{state.best_step or 0:08d}", Path(run_dir) / "best"
    content = f"{name}\n".encode()
    there = (Path(run_dir) / "checkpoints" / name).is_dir()
    if there and not (pointer.exists() and pointer.read_bytes() == content):
        write_atomically(pointer, content)


def _write(state: TrainState, target: Path, data: dict[str, str], *, saved: SavedTensors) -> None:
    for leftover in target.parent.glob(".tmp-*"):
        shutil.rmtree(leftover)
    temporary = target.parent / f".tmp-{target.name}"
    temporary.mkdir()
    try:
        tensors, settings = _split_optimizer(saved.optimizer)
        write_synced(temporary / "model.safetensors", safetensors.torch.save(_plain(saved.model)))
        write_synced(temporary / "optimizer.safetensors", safetensors.torch.save(tensors))
        write_synced(temporary / "state.json", to_json(_describe(state, settings, data)).encode())
        if saved.average is not None:
            write_synced(temporary / _AVERAGE, safetensors.torch.save(_plain(saved.average)))
        files = {path.name: digest(path) for path in sorted(temporary.iterdir())}
        write_synced(temporary / "manifest.json", to_json({"format": FORMAT, "files": files}).encode())
        sync_folder(temporary)
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; until that is done, what was there stays under a name that is read."""
    old = target.with_name(target.name + _OLD)
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)
    if old.exists():
        shutil.rmtree(old)


def _counts_the_same(checkpoint: Path, state: TrainState) -> bool:
    return bool(read_json(checkpoint / "state.json")["counters"] == json.loads(to_json(state.counters())))


def _describe(state: TrainState, optimizer: dict[str, Any], data: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "counters": state.counters(),
        "optimizer": optimizer,
        "config": state.config.to_dict(),
        "model": state.model.config,
        "space": state.model.space.to_dict(),
        "data": data,
        "versions": {"torch": torch.__version__},
    }


def problems(checkpoint: str | Path) -> str | None:
    """Return what is wrong with a checkpoint's files, in one line, or None where they are what was written."""
    checkpoint = Path(checkpoint)
    try:
        manifest = read_json(checkpoint / "manifest.json")
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']!r}, and this version reads {FORMAT!r}"
        if set(manifest["files"]) - {_AVERAGE} != set(_FILES):
            return f"manifest.json names {sorted(manifest['files'])}; {sorted(_FILES)} were wanted"
        for name, expected in manifest["files"].items():
            if digest(checkpoint / name) != expected:
                return f"{name} is not what was written (size or SHA-256 differ)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, sound or not.

    Args:
        run_dir: The run's folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (20, 40):
        ...     (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        >>> [path.name for path in list_checkpoints(folder)]
        ['step-00000040', 'step-00000020']
    """
    folder = Path(run_dir) / "checkpoints"
    paths = [path for path in folder.iterdir() if _step_of(path) is not None] if folder.is_dir() else []
    return sorted(paths, key=lambda path: (_step_of(path), not path.name.endswith(_OLD)), reverse=True)


def _step_of(path: Path) -> int | None:
    """Return the step that the name of a checkpoint says, or None where it is no checkpoint's."""
    match = _NAME.fullmatch(path.name.removesuffix(_OLD))
    return None if match is None else int(match[1])


def newest_checkpoint(run_dir: str | Path) -> Path | None:
    """Return the newest sound checkpoint of a run, or None; what is wrong with newer ones is logged as a warning.

    Args:
        run_dir: The run's folder.

    Example:
        >>> import tempfile
        >>> newest_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    for path in list_checkpoints(run_dir):
        fault = problems(path)
        if fault is None:
            return path
        _log.warning("%s is passed over: %s", path, fault)
    return None


def best_checkpoint(run_dir: str | Path) -> Path | None:
    """Return the best checkpoint of a run: the one that `best` names, or the newest where nothing was judged.

    Args:
        run_dir: The run's folder.

    Raises:
        DataError: `best` does not name a sound checkpoint of the run.

    Example:
        >>> import tempfile
        >>> best_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    pointer = Path(run_dir) / "best"
    if not pointer.exists():
        return newest_checkpoint(run_dir)
    name = pointer.read_text(encoding="utf-8").strip()
    if not _NAME.fullmatch(name):
        raise DataError(f"{pointer}: the name of a checkpoint was wanted; got {name[:80]!r}")
    path = Path(run_dir) / "checkpoints" / name
    if not path.exists() and path.with_name(name + _OLD).exists():  # killed while another took its place
        path = path.with_name(name + _OLD)
    fault = problems(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    return path


def load_weights(checkpoint: str | Path, model: nn.Module, *, weights: str = "judged") -> None:
    """Put the weights of a checkpoint into `model`.

    Args:
        checkpoint: Its folder.
        model: Changed in place.
        weights: `judged`: those that were evaluated, which are the average (`TrainConfig.ema`) where there is one;
            `last`: those of the last step.

    Raises:
        DataError: the checkpoint is damaged.
        ValueError: its weights do not fit the model; the differences are listed.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, TrainState, make_optimizer
        >>> folder, config = tempfile.mkdtemp(), TrainConfig()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> scaler = torch.amp.GradScaler("cpu", enabled=False)
        >>> state = TrainState(model, make_optimizer(model, config), scaler, config)
        >>> path = save_checkpoint(state, folder)
        >>> _ = torch.nn.init.zeros_(model.head.linear.bias)
        >>> load_weights(path, model)
        >>> bool(model.head.linear.bias.any())
        True
    """
    resolve(weights, dict.fromkeys(WEIGHTS), "weights")
    _refuse_damaged(checkpoint)
    average = Path(checkpoint) / _AVERAGE
    tensors = _read_tensors(
        average if weights == "judged" and average.exists() else Path(checkpoint) / "model.safetensors"
    )
    _check_weights(model, tensors, str(checkpoint))
    model.load_state_dict(tensors)


def read_description(checkpoint: str | Path) -> dict[str, Any]:
    """Return what a sound checkpoint says of itself: settings, model, space, data, counters.

    Args:
        checkpoint: Its folder.

    Raises:
        DataError: the checkpoint is damaged.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, TrainState, make_optimizer
        >>> folder, config = tempfile.mkdtemp(), TrainConfig()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> scaler = torch.amp.GradScaler("cpu", enabled=False)
        >>> state = TrainState(model, make_optimizer(model, config), scaler, config)
        >>> read_description(save_checkpoint(state, folder))["config"]["batch_size"]
        64
    """
    _refuse_damaged(checkpoint)
    return read_json(Path(checkpoint) / "state.json")


def load_checkpoint(
    checkpoint: str | Path,
    state: TrainState,
    *,
    data: Mapping[str, str] | None = None,
    allow_changed_data: bool = False,
) -> None:
    """Put a checkpoint into `state`, after which training goes on as if it had never stopped.

    Args:
        checkpoint: Its folder.
        state: A state of the same model, optimiser and settings.
        data: Names and fingerprints of the tables of this training.
        allow_changed_data: Go on where a table has changed since.

    Raises:
        DataError: the checkpoint is damaged.
        ValueError: another space, model, setting or table; the differences are listed. `state` is then unchanged.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.training import TrainConfig, TrainState, make_optimizer
        >>> folder, config = tempfile.mkdtemp(), TrainConfig()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> scaler = torch.amp.GradScaler("cpu", enabled=False)
        >>> state = TrainState(model, make_optimizer(model, config), scaler, config)
        >>> path = save_checkpoint(state, folder)
        >>> state.step = 7
        >>> load_checkpoint(path, state)
        >>> state.step
        0
    """
    described = read_description(checkpoint)
    state.model.space.check_same(LabelSpace.from_dict(described["space"]), str(checkpoint))
    state.config.check_continues(TrainConfig.from_dict(described["config"]))
    _check_architecture(described["model"], state.model.config, str(checkpoint))
    if not allow_changed_data:
        _check_data(described["data"], dict(data or {}))
    weights = _read_tensors(Path(checkpoint) / "model.safetensors")
    _check_weights(state.model, weights, str(checkpoint))
    average = None if state.average is None else _read_tensors(Path(checkpoint) / _AVERAGE)
    tensors = _read_tensors(Path(checkpoint) / "optimizer.safetensors")
    state.optimizer.load_state_dict(_join_optimizer(tensors, described["optimizer"], state.optimizer))
    _match_layout(state.optimizer)
    held = state.model.state_dict()
    state.model.load_state_dict({name: part_like(tensor, held[name]) for name, tensor in weights.items()})
    if state.average is not None and average is not None:
        state.average.load(average)
    state.restore_counters(described["counters"])


def _check_architecture(saved: dict[str, Any], now: dict[str, Any], source: str) -> None:
    # Preprocessing is among it: another mean or size has the same weights and means something else.
    saved, now = json.loads(to_json(saved)), json.loads(to_json(now))
    differ = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differ:
        shown = "; ".join(f"{name}: {saved.get(name)!r} saved, {now.get(name)!r} now" for name in differ)
        raise ValueError(f"{source} holds another model ({shown})")


def _check_data(saved: dict[str, str], now: dict[str, str]) -> None:
    differ = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differ:
        shown = "; ".join(f"{name}: {saved.get(name)} saved, {now.get(name)} now" for name in differ)
        raise ValueError(
            f"the data has changed since the checkpoint was saved (fingerprints of {shown}); give the data it was "
            "trained on, start in another run folder, or go on by allow_changed_data=True (--allow-changed-data)"
        )


def _check_weights(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    differ = list_differences(model, tensors)
    if differ:
        more = f", and {len(differ) - 8} more" if len(differ) > 8 else ""
        raise ValueError(f"{source} holds another model: {'; '.join(differ[:8])}{more}")


def _split_optimizer(saved: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an optimiser's state as tensors by name and the rest as plain values."""
    tensors = {f"{i}.{name}": v for i, held in saved["state"].items() for name, v in held.items() if torch.is_tensor(v)}
    numbers = {
        str(i): {name: v for name, v in held.items() if not torch.is_tensor(v)} for i, held in saved["state"].items()
    }
    return _plain(tensors), {"numbers": numbers, "param_groups": saved["param_groups"]}


def _join_optimizer(
    tensors: dict[str, torch.Tensor], settings: dict[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return the optimiser state dictionary that `_split_optimizer` took apart."""
    groups = settings["param_groups"]
    wanted = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in groups] != wanted:
        raise ValueError(f"the checkpoint's optimiser has other parameter groups; {wanted} parameters were wanted")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Any]] = {int(i): dict(held) for i, held in settings["numbers"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = part_like(tensor, parameters[int(index)])
    # JSON knows no tuples, and the optimisers compare and unpack them.
    groups = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in groups]
    # Which kernel computes is no setting of the training: a sharded one has none for all parameters at once.
    kernels = [{"fused": group["fused"]} if "fused" in group else {} for group in optimizer.param_groups]
    groups = [saved | kernel for saved, kernel in zip(groups, kernels, strict=True)]
    return {"state": state, "param_groups": groups}


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give each state tensor the strides of its parameter, which fused kernels rely on."""
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies in main memory that share nothing, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file: {error}") from error


def _refuse_damaged(checkpoint: str | Path) -> None:
    fault = problems(checkpoint)
    if fault is not None:
        raise DataError(f"{checkpoint}: {fault}")


def _prune(folder: Path, state: TrainState) -> None:
    for position, path in enumerate(list_checkpoints(folder.parent)):
        if position >= state.config.keep and _step_of(path) != state.best_step:
            shutil.rmtree(path)
