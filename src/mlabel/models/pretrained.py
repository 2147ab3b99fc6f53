"""Pretrained weights: found by torchvision's or timm's names or in a file, and put into a backbone with a report.

Nothing here runs code from a file: safetensors, or state dicts through PyTorch's reader of tensors only.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import WeightsEnum

from mlabel._checks import DataError, suggest
from mlabel.models.backbones import HALF_NORMALISED
from mlabel.models.packaged_weights import PackagedWeights, packaged_weights
from mlabel.models.positions import resize_positions, resize_windows
from mlabel.models.timm_networks import TimmWeights, is_timm, timm_statistics, timm_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

logger = logging.getLogger("mlabel.models")

_FILE_ENDINGS = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"})

# Where training scripts keep the state dict inside what they save, and what wrappers put before its keys.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("", "module.", "backbone.", "_orig_mod.", "module.backbone.", "_orig_mod.backbone.", "model.")

# Names of classification layers, auxiliary ones too, which belong to the file's own classes.
_CLASSIFIERS = (
    "fc.", "_fc.", "classifier.", "head.", "head_dist.", "heads.", "last_linear.", "aux1.", "aux2.", "AuxLogits.",
)  # fmt: skip

# torchvision's DenseNet files are from a time when module names could hold dots.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


@dataclass(frozen=True)
class LoadReport:
    """What became of every entry of a weights file, and of every weight of the network.

    Attributes:
        source: The file.
        loaded: Keys taken over, those of `adapted` too.
        adapted: Keys taken over in another shape: RGB weights added up to one channel, position tables resized.
        missing: Keys of the network that the file lacks; they keep their random start.
        reshaped: Keys whose shape in the file is another one; they keep their random start.
        unexpected: Keys of the file that the network lacks.
        skipped: Keys of the file's own classification layer, which a new head stands in for.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unexpected: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every weight of the network came from the file, and nothing in the file was left over."""
        return not (self.missing or self.reshaped or self.unexpected)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} entries loaded from {self.source}"]
        for what in ("adapted", "missing", "reshaped", "unexpected", "skipped"):
            keys = getattr(self, what)
            if keys:
                parts.append(f"{len(keys)} {what} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})")
        return "; ".join(parts)


def find_weights(
    weights: str | Path | WeightsEnum, backbone: str | None
) -> Path | WeightsEnum | TimmWeights | PackagedWeights:
    """Return what `weights` stands for: a file, or an entry of torchvision's or timm's table for `backbone`.

    Args:
        weights: A name such as "DEFAULT" or "IMAGENET1K_V2", or the path of a file or of a folder that holds one.
        backbone: The backbone's name; None for a module of the user's, which has files only.

    Raises:
        ValueError: neither a name of that table nor a path.
        FileNotFoundError: a path at which there is no file, or a folder without or with several.
    """
    table = _weights_table(backbone)
    if isinstance(weights, WeightsEnum):
        if weights not in table.values():
            raise ValueError(f"{weights!r} is not for backbone {backbone!r}; {suggest(weights.name, table)}")
        return weights
    if isinstance(weights, str) and weights in table:
        return table[weights]
    path = Path(weights)
    if path.is_dir():
        return _file_in(path)
    if path.exists():
        return path
    if isinstance(weights, Path) or len(path.parts) > 1 or path.suffix.lower() in _FILE_ENDINGS:
        raise FileNotFoundError(f"weights: there is no file {path}")
    raise ValueError(
        f"unknown weights {weights!r} for backbone {backbone or 'of your own'!r}, and no file of that name; "
        f"{suggest(weights, table) if table else 'give the path of a file'}"
    )


def _file_in(folder: Path) -> Path:
    """Return the weights in a folder: of the usual name, or the only one."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _FILE_ENDINGS and file.is_file())
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:5]) or "no file of weights"
        raise FileNotFoundError(f"weights: the folder {folder} holds {found}; give the path of one file")
    return files[0]


def usual_statistics(
    backbone: str | None, weights: Path | WeightsEnum | TimmWeights | PackagedWeights | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and std of RGB images in [0, 1] for a backbone: its weights' own, its own, or else ImageNet's."""
    if backbone in HALF_NORMALISED:
        # torchvision renormalises inside these two networks when they are pretrained (`transform_input`, left off
        # here), so that what its table says for them is not what their first convolution was trained with.
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if isinstance(weights, WeightsEnum):
        transforms = weights.transforms()
        return transforms.mean, transforms.std
    if isinstance(weights, TimmWeights | PackagedWeights):
        return weights.mean, weights.std
    if backbone is not None and is_timm(backbone):
        return timm_statistics(backbone)
    return IMAGENET_MEAN, IMAGENET_STD


def fetch_weights(entry: WeightsEnum) -> Path:
    """Return the file of torchvision's weights `entry`, in the cache of torch.hub, downloaded if it is not there.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded; the message says where it belongs.
        DataError: the SHA-256 of the file does not begin as its name says.
    """
    url = entry.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    hash_start = _hash_start(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_start or None, progress=True)
        except RuntimeError as error:
            raise DataError(f"{url}: what was downloaded is not what its name promises: {error}") from error
        except OSError as error:
            raise FileNotFoundError(
                f"weights {entry.name} of {type(entry).__name__} are not at {path} and could not be downloaded from "
                f"{url} ({error}). Download that address where there is a network and put the file at {path}, or give "
                "weights= the path of a file"
            ) from error
    elif not _sha256(path).startswith(hash_start):
        raise DataError(f"{path}: its SHA-256 does not begin with {hash_start}; delete it and download {url} again")
    return path


def load_weights(module: nn.Module, path: str | Path) -> LoadReport:
    """Put the weights of a file into `module`, and return what became of each entry.

    The file's own classification layer is skipped. Where the first convolution of `module` takes one channel and the
    file's three, its weights are added up; a position table of another size is resized. The report is logged too, as
    a warning where it is not complete.

    Args:
        module: A backbone; changed in place, whole or not at all.
        path: A safetensors file, or a state dict written with `torch.save`.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is damaged, holds something else than tensors, weights that are not finite or of another
            kind of number, or nothing that fits.
        ValueError: the module is on the meta device, where there is nothing to put weights into.

    Example:
        >>> import tempfile
        >>> from mlabel.models import create_backbone
        >>> backbone, path = create_backbone("small_cnn", image_size=(32, 32)), Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save(backbone.state_dict(), path)
        >>> report = load_weights(backbone, path)
        >>> report.complete, len(report.missing)
        (True, 0)
    """
    path = Path(path)
    _check_not_meta(module)
    return load_state(module, read_state_dict(path), str(path))


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> LoadReport:
    """Do what `load_weights` does with tensors by name; `source` says in the report where they are from."""
    _check_not_meta(module)
    report = _copy_state(module, state, source)
    logger.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return report


def _check_not_meta(module: nn.Module) -> None:
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ValueError("the module is on the meta device and holds no weights; move it with to_empty(device=) first")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file by name, on the CPU; no code from the file is run.

    Raises:
        FileNotFoundError: no such file.
        DataError: not a regular file, damaged, or holding Python objects.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"weights: there is no file {path}")
    if not path.is_file():
        raise DataError(f"{path}: weights must be a regular file")
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    return _unwrap(_read_pickled(path), path)


def _read_pickled(path: Path) -> Any:
    with path.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    try:
        with warnings.catch_warnings():
            # PyTorch remarks on files of a newer pickle protocol; whether it can read them is told by the error below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            # Only the zip layout can be memory-mapped, which keeps a large file from being held twice.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: not a file of tensors. Files with other Python objects are refused, since reading those can run "
            f"code. Save the model's state_dict() alone, best as safetensors. ({str(error).splitlines()[0][:200]})"
        ) from error
    except Exception as error:  # a damaged file can fail anywhere inside the reader
        raise DataError(f"{path}: not a state dict, or a damaged one: {error}") from error


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: a state dict (names to tensors) was wanted; got {type(content).__name__}")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise DataError(f"{path}: no tensors in it; its keys are {[str(key) for key in content][:5]}")
    return tensors


def _copy_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> LoadReport:
    own = module.state_dict()
    state = _match_names(own, state)
    fitted = {key: _fit(module, key, state[key], own[key]) for key in own if key in state}
    good = {key: tensor for key, tensor in fitted.items() if tensor is not None}
    if not any(own[key].ndim for key in good):
        raise DataError(
            f"{source}: nothing in it fits the network. The file has {_sample(state)}; the network has {_sample(own)}"
        )
    for key, tensor in good.items():
        _check_values(key, tensor, own[key], source)
    with torch.no_grad():
        for key, tensor in good.items():
            own[key].copy_(tensor)
    extra = [key for key in state if key not in own]
    return LoadReport(
        source=source,
        loaded=tuple(good),
        adapted=tuple(key for key, tensor in good.items() if tensor.shape != state[key].shape),
        # Files from before batch norms counted their batches lack the counter, which nothing here uses.
        missing=tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked")),
        reshaped=tuple(key for key, tensor in fitted.items() if tensor is None),
        unexpected=tuple(key for key in extra if not key.startswith(_CLASSIFIERS)),
        skipped=tuple(key for key in extra if key.startswith(_CLASSIFIERS)),
    )


def _match_names(own: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `state` without the prefix that hides most names of the network, old names made new."""

    def strip(prefix: str) -> dict[str, torch.Tensor]:
        return {_OLD_DENSENET.sub(r"\1\2", key.removeprefix(prefix)): tensor for key, tensor in state.items()}

    return max((strip(prefix) for prefix in _PREFIXES), key=lambda names: sum(key in own for key in names))


def _fit(module: nn.Module, key: str, tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """Return `tensor` in the shape of `own`, or None where it cannot be brought into it."""
    if tensor.shape == own.shape:
        return tensor
    if key.endswith(("pos_embedding", "pos_embed")):
        return resize_positions(tensor, own, *_token_grid(module))
    if key.endswith("relative_position_bias_table"):
        return resize_windows(tensor, own)
    if tensor.ndim == 4 and tensor.shape == (own.shape[0], 3, *own.shape[2:]) and own.shape[1] == 1:
        layer = module.get_submodule(key.rpartition(".")[0])
        # A depthwise convolution has weights of one channel too; but it takes more than one.
        if getattr(layer, "in_channels", None) == 1:
            return tensor.float().sum(dim=1, keepdim=True)
    return None


def _token_grid(module: nn.Module) -> tuple[tuple[int, int] | None, int]:
    """Return the grid (height, width) of a transformer's patches where it tells, and the tokens before them."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    return grid, getattr(module, "num_prefix_tokens", 1)


def _check_values(key: str, tensor: torch.Tensor, own: torch.Tensor, source: str) -> None:
    if tensor.is_floating_point() != own.is_floating_point():
        raise DataError(f"{source}: {key} is {tensor.dtype}; the network wants {own.dtype}")
    # torchvision itself offers a file of which one half is NaN (VGG16 IMAGENET1K_FEATURES).
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DataError(f"{source}: {key} holds values that are not finite; choose other weights")


def _weights_table(backbone: str | None) -> Mapping[str, WeightsEnum | TimmWeights | PackagedWeights]:
    if backbone is not None and is_timm(backbone):
        return {**timm_weights(backbone), **packaged_weights(backbone)}
    if backbone is None or backbone not in torchvision.models.list_models(module=torchvision.models):
        return {}
    return dict(torchvision.models.get_model_weights(backbone).__members__)


def _hash_start(path: Path) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return found.group(1) if found else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sample(state: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in list(state.items())[:3])


def list_differences(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return in words how `tensors` differ in names, shapes and types from the state of `module`; nothing if not."""
    own = module.state_dict()
    differ = [f"{name} is missing" for name in own if name not in tensors]
    differ += [f"{name} is not in the model" for name in tensors if name not in own]
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            differ.append(f"{name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} in the model")
        elif name in own and own[name].dtype != tensor.dtype:
            differ.append(f"{name} is {tensor.dtype} there and {own[name].dtype} in the model")
    return differ
