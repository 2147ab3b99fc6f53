"""Weights and bundles of a stranger: files that lie about themselves are refused, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mlabel._checks import DataError
from mlabel._files import digest, read_json, to_json
from mlabel.inference.bundle import load_bundle, save_bundle
from mlabel.labels import Group, LabelSpace
from mlabel.models import Classifier, create_model
from mlabel.models.pretrained import read_state_dict
from mlabel.training import TrainConfig, load_weights, make_optimizer, save_checkpoint
from mlabel.training.state import TrainState

SPACE = LabelSpace([Group("tags", ["cat", "dog"])])
Tensors = dict[str, torch.Tensor]


class Trap:
    """What a pickle of a stranger would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


def make_model() -> Classifier:
    torch.manual_seed(0)
    return create_model("small_cnn", SPACE, image_size=16)


def with_header(tensors: Tensors, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a file of tensors whose header was changed afterwards."""
    whole = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def first_two(header: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    return header[names[0]], header[names[1]]


def overlap(header: dict[str, Any]) -> None:
    first, second = first_two(header)
    second["data_offsets"] = first["data_offsets"]


def beyond_the_end(header: dict[str, Any]) -> None:
    first, _ = first_two(header)
    first["data_offsets"] = [0, 1 << 40]


def larger_than_its_data(header: dict[str, Any]) -> None:
    first, _ = first_two(header)
    first["shape"] = [1 << 31, 1 << 31]


def another_type_than_its_data(header: dict[str, Any]) -> None:
    next(entry for entry in header.values() if entry.get("dtype") == "F32")["dtype"] = "F64"


def type_of_nothing(header: dict[str, Any]) -> None:
    first_two(header)[0]["dtype"] = "OBJECT"


def reshaped(tensors: Tensors) -> bytes:
    name = next(iter(tensors))
    return safetensors.torch.save({**tensors, name: tensors[name].flatten()})


def half(tensors: Tensors) -> bytes:
    return safetensors.torch.save({name: tensor.half() for name, tensor in tensors.items()})


# Of tensors and the place of a trap, the bytes of a file that is not what it says.
LIES: dict[str, Callable[[Tensors, Path], bytes]] = {
    "pickle": lambda tensors, trap: pickle.dumps(Trap(trap)),
    "header beyond the end": lambda tensors, trap: struct.pack("<Q", 1 << 50) + safetensors.torch.save(tensors)[8:],
    "header that is no JSON": lambda tensors, trap: struct.pack("<Q", 5) + b"{{{{{" + bytes(100),
    "overlap": lambda tensors, trap: with_header(tensors, overlap),
    "beyond the end": lambda tensors, trap: with_header(tensors, beyond_the_end),
    "larger than its data": lambda tensors, trap: with_header(tensors, larger_than_its_data),
    "another type than its data": lambda tensors, trap: with_header(tensors, another_type_than_its_data),
    "type of nothing": lambda tensors, trap: with_header(tensors, type_of_nothing),
    "cut": lambda tensors, trap: safetensors.torch.save(tensors)[:-7],
}
MISFITS: dict[str, Callable[[Tensors], bytes]] = {"another shape": reshaped, "another type": half}


def refused(read: Callable[[], Any], trap: Path, match: str) -> None:
    """Check that reading is refused with words, runs nothing, and takes no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((DataError, ValueError), match=match):
        read()
    assert not trap.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return save_bundle(tmp_path / "bundle", make_model())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model, config = make_model(), TrainConfig(optimizer="sgd")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    (tmp_path / "run").mkdir()
    state = TrainState(model=model, optimizer=make_optimizer(model, config), scaler=scaler, config=config)
    return save_checkpoint(state, tmp_path / "run")


def put_into_checkpoint(checkpoint: Path, content: bytes) -> None:
    """Put a file of weights into a checkpoint, whose hashes then are those of the lie."""
    path, manifest = checkpoint / "model.safetensors", checkpoint / "manifest.json"
    path.write_bytes(content)
    held = read_json(manifest)
    held["files"][path.name] = digest(path)
    manifest.write_text(to_json(held))


@pytest.mark.fault(24)
@pytest.mark.fault(25)
@pytest.mark.parametrize("lie", LIES)
def test_weights_that_lie_are_refused(lie: str, bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    content = LIES[lie](make_model().state_dict(), trap)
    (bundle / "model.safetensors").write_bytes(content)
    refused(lambda: load_bundle(bundle), trap, r"model\.safetensors: not a safetensors file")
    put_into_checkpoint(checkpoint, content)
    refused(lambda: load_weights(checkpoint, make_model()), trap, r"model\.safetensors: not a safetensors file")
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(lambda: read_state_dict(tmp_path / "w.safetensors"), trap, r"w\.safetensors")


@pytest.mark.fault(25)
@pytest.mark.parametrize(("misfit", "words"), [("another shape", "there and"), ("another type", "float16 there and")])
def test_weights_of_another_form_are_refused(
    misfit: str, words: str, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    content = MISFITS[misfit](make_model().state_dict())
    (bundle / "model.safetensors").write_bytes(content)
    refused(lambda: load_bundle(bundle), tmp_path / "none", f"do not fit the architecture.*{words}")
    put_into_checkpoint(checkpoint, content)
    refused(lambda: load_weights(checkpoint, make_model()), tmp_path / "none", f"holds another model.*{words}")


@pytest.mark.fault(24)
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_pickle_in_the_place_of_json_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (checkpoint / name).write_bytes(pickle.dumps(Trap(trap)))
    refused(lambda: load_weights(checkpoint, make_model()), trap, name)


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "mlabel.bundle/2"}, "'mlabel.bundle/1' was wanted; got 'mlabel.bundle/2'"),
        (
            {"space": LabelSpace([Group("tags", ["cat", "owl"])]).to_dict()},
            r"selected_tags\.csv: its names are not those of config\.json",
        ),
    ],
)
def test_a_bundle_of_another_format_or_space_is_refused(
    change: dict[str, Any], words: str, bundle: Path, tmp_path: Path
) -> None:
    (bundle / "config.json").write_text(to_json({**read_json(bundle / "config.json"), **change}))
    refused(lambda: load_bundle(bundle), tmp_path / "none", words)


@pytest.mark.fault(26)
def test_a_checkpoint_of_a_newer_format_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(to_json({**read_json(path), "format": "mlabel.checkpoint/9"}))
    words = "its format is 'mlabel.checkpoint/9', and this version reads"
    refused(lambda: load_weights(checkpoint, make_model()), tmp_path / "none", words)
