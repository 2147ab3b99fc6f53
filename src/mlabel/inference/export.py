"""A tagger as one file for other programs: ONNX, the layout of wd-taggers, or `torch.export`.

Normalising is inside, and so is the way from logits to probabilities; resizing to `image_size` is not. Whatever is
written is run at once on real images beside the tagger, and the largest difference is returned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mlabel._checks import require, resolve
from mlabel._files import new_folder
from mlabel.data.images import read_image
from mlabel.decisions._maps import SlopeMap
from mlabel.inference.bundle import selected_tags
from mlabel.inference.tagger import Tagger
from mlabel.labels import threshold_values

OPSET = 18
TOLERANCE = 1e-4
_MOST_BYTES = 2**31 - 2**24  # of an ONNX file, which is one protobuf message


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The model's file; `selected_tags.csv` lies beside it.
        difference: The largest difference of a probability from the tagger's.
        images: On how many images that was measured.
    """

    path: Path
    difference: float
    images: int


class _Slopes(nn.Module):
    """A step of a calibration, in torch; see `mlabel.decisions.Calibration`."""

    low: torch.Tensor
    high: torch.Tensor
    offset: torch.Tensor

    def __init__(self, step: SlopeMap) -> None:
        super().__init__()
        for name in ("low", "high", "offset"):
            self.register_buffer(name, torch.tensor(getattr(step, name), dtype=torch.float32))
        self.straight = bool((step.low == step.high).all())

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        straight = self.low * logits + self.offset
        if self.straight:
            return straight
        bent = self.low * F.logsigmoid(logits) - self.high * F.logsigmoid(-logits) + self.offset
        return torch.where(self.low == self.high, straight, bent)


class _Network(nn.Module):
    """Images to probabilities."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.model, self.space = tagger.model, tagger.space
        self.calibration = nn.Sequential(*map(_Slopes, _steps(tagger)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.space.probabilities(self.calibration(self.model(images).float()))


def _steps(tagger: Tagger) -> tuple[SlopeMap, ...]:
    """Return the steps of the calibration that are part of the file: all of them, if all are slopes, or none."""
    steps = () if tagger.calibration is None else tagger.calibration.steps
    slopes = tuple(step for step in steps if isinstance(step, SlopeMap))
    return slopes if len(slopes) == len(steps) else ()


def _levels(tagger: Tagger) -> np.ndarray:
    """Return the thresholds (L,) on the probabilities that the file gives."""
    if _steps(tagger):
        return threshold_values(tagger.thresholds, tagger.space.num_labels, tagger.space)
    return tagger.levels


class _WdNetwork(_Network):
    """The same of images (N, H, W, 3) float32 in 0..255, blue first, as programs for wd-taggers give them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.permute(0, 3, 1, 2).flip(1) / 255)


@dataclass(frozen=True)
class _Layout:
    network: Callable[[Tagger], _Network]
    of_pixels: Callable[[np.ndarray], np.ndarray]  # uint8 (N, C, H, W) to what the file takes
    input: str
    output: str


_PLAIN = _Layout(_Network, lambda pixels: pixels, "images", "probabilities")
_WD = _Layout(
    _WdNetwork,
    lambda pixels: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)[..., ::-1], np.float32),
    "input",
    "output",
)


def export_tagger(
    tagger: Tagger,
    folder: str | Path,
    images: Sequence[str | Path],
    *,
    format: str = "onnx",
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a tagger for other programs into `folder`, and check what was written on some images.

    - `onnx`: `model.onnx`, from `images` uint8 (N, C, H, W) to `probabilities` float32 (N, L), any N. Its metadata has
      `labels`, `thresholds` (null where an exclusive group is decided by the highest), `space`, `image_size` and
      `format`, as JSON.
    - `wd`: `model.onnx` as programs for wd-taggers want it, from `input` float32 (N, H, W, 3) in 0..255, blue first, to
      `output`. Such programs take every label for an any-of one.
    - `torch`: `model.pt2`, a `torch.export` program that takes and gives what `onnx` does.

    `selected_tags.csv` with names and thresholds lies beside it. Weights are inside the file, and so is a calibration
    by slopes (temperature, Platt, beta, vector scaling). Any other one is not: the probabilities are then the model's
    own, and the thresholds those under which any-of labels are decided as the tagger decides them.

    Args:
        tagger: The tagger. Its taxonomy is not part of what is written.
        folder: Where to, in the place of what was exported there before.
        images: Paths of images to check it on, at least one.
        format: `onnx`, `wd` or `torch`.
        tolerance: A larger difference of a probability is an error.

    Raises:
        ValueError: no images; an unknown format; with `wd` a model whose images are not square or not of 3 channels;
            or a model beyond the 2 GiB of an ONNX file.
        RuntimeError: what was written differs by more than `tolerance`. Nothing is left of it.
        ImportError: `onnx` or `wd` without the `onnx` extra.
        FileExistsError: `folder` holds something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (32, 32)).save(folder + "/a.png")
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> written = export_tagger(Tagger(model), folder + "/exported", [folder + "/a.png"], format="torch")
        >>> written.path.name, written.images, written.difference <= 1e-4
        ('model.pt2', 1, True)
    """
    write = resolve(format, EXPORT_FORMATS, "format")
    if not images:
        raise ValueError("at least one image is wanted, to check what was exported")
    height, width = tagger.model.image_size
    if format == "wd" and (height != width or tagger.model.in_channels != 3):
        shape = f"{height} x {width} and {tagger.model.in_channels} channels"
        raise ValueError(f"programs for wd-taggers give square RGB images; this model takes {shape}")
    pixels = np.stack([_read(tagger, path) for path in images])
    device = next(tagger.model.parameters()).device
    tagger.model.cpu()
    try:
        with torch.inference_mode():
            wanted = _Network(tagger).eval()(torch.from_numpy(pixels)).numpy()
        with new_folder(folder, "selected_tags.csv", "an export") as temporary:
            name, found = write(tagger, temporary, pixels)
            difference = float(np.abs(found - wanted).max())
            if not difference <= tolerance:
                raise RuntimeError(
                    f"what was exported differs from the tagger by {difference:.3g}, more than {tolerance:g}"
                )
            (temporary / "selected_tags.csv").write_text(_tag_lines(tagger), encoding="utf-8")
    finally:
        tagger.model.to(device)
    return Exported(Path(folder) / name, difference, len(images))


def _tag_lines(tagger: Tagger) -> str:
    counts = np.zeros(tagger.space.num_labels, dtype=np.int64) if tagger.counts is None else tagger.counts
    return selected_tags(tagger.space, counts, _levels(tagger))


def _read(tagger: Tagger, path: str | Path) -> np.ndarray:
    model = tagger.model
    return read_image(path, channels=model.in_channels, size=model.image_size).transpose(2, 0, 1)


def _write_onnx(tagger: Tagger, folder: Path, pixels: np.ndarray, layout: _Layout = _PLAIN) -> tuple[str, np.ndarray]:
    """Write `model.onnx`; return its name, and what it says of the images."""
    onnx, onnxruntime, _ = (require(name, "onnx") for name in ("onnx", "onnxruntime", "onnxscript"))
    size = sum(tensor.nbytes for tensor in tagger.model.state_dict().values())
    if size > _MOST_BYTES:
        raise ValueError(f"an ONNX file holds 2 GiB; the weights have {size:,} bytes. Export format 'torch' instead")
    given = layout.of_pixels(pixels)
    program = torch.onnx.export(
        layout.network(tagger).eval(),
        (torch.from_numpy(given[:2] if len(given) > 1 else np.concatenate([given, given])),),
        input_names=[layout.input],
        output_names=[layout.output],
        opset_version=OPSET,
        dynamic_shapes={"images": {0: torch.export.Dim("n")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # as it is of dynamo=True
    model = program.model_proto
    for name, value in _metadata(tagger).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    path = folder / "model.onnx"
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return path.name, np.concatenate([session.run(None, {layout.input: each[None]})[0] for each in given])


def _write_wd(tagger: Tagger, folder: Path, pixels: np.ndarray) -> tuple[str, np.ndarray]:
    return _write_onnx(tagger, folder, pixels, _WD)


def _write_torch(tagger: Tagger, folder: Path, pixels: np.ndarray) -> tuple[str, np.ndarray]:
    example = torch.from_numpy(pixels[:2] if len(pixels) > 1 else np.concatenate([pixels, pixels]))
    shapes = {"images": {0: torch.export.Dim("n")}}
    program = torch.export.export(_Network(tagger).eval(), (example,), dynamic_shapes=shapes)
    path = folder / "model.pt2"
    torch.export.save(program, path, extra_files=_metadata(tagger))
    with torch.inference_mode():
        return path.name, program.module()(torch.from_numpy(pixels)).numpy()


def _metadata(tagger: Tagger) -> dict[str, str]:
    space = tagger.space
    values: dict[str, Any] = {
        "format": "mlabel.export/1",
        "labels": list(space.names),
        "thresholds": [None if level != level else level for level in _levels(tagger).tolist()],
        "space": space.to_dict(),
        "image_size": list(tagger.model.image_size),
        "in_channels": tagger.model.in_channels,
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


EXPORT_FORMATS: dict[str, Callable[[Tagger, Path, np.ndarray], tuple[str, np.ndarray]]] = {
    "onnx": _write_onnx,
    "wd": _write_wd,
    "torch": _write_torch,
}
