"""Export: what other programs load says what the tagger says; the Hub gets the bundle and an honest card."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import expit

from mlabel import DataError, Tagger
from mlabel.cli import main
from mlabel.data import read_image
from mlabel.decisions import Calibration, Thresholds, fit_calibration
from mlabel.inference import export_tagger, from_pretrained, hub, push_to_hub, write_model_card
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model

SPACE = LabelSpace([Group("general", ["cat", "a|b", "<b>"]), Group("rating", ["safe", "other"], exclusive=True)])
LEVELS = np.array([0.2, 0.5, 0.7, np.nan, np.nan])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return sorted(str(path) for path in folder.iterdir())


def make_tagger(**options: Any) -> Tagger:
    torch.manual_seed(1)
    model = create_model("small_cnn", SPACE, image_size=options.pop("image_size", 16), **options)
    levels = Thresholds(LEVELS, ("label",) * 3 + ("exclusive",) * 2, SPACE)
    return Tagger(model, levels, counts=np.array([5, 4, 3, 2, 1]))


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return make_tagger()


def pixels_of(paths: list[str], size: int = 16) -> np.ndarray:
    """Read images in the plain way: Pillow's resizing, channels first."""
    images = [Image.open(path).resize((size, size), Image.Resampling.BILINEAR) for path in paths]
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    "options", [{"views": "mirrored"}, {"head": "csra"}, {"image_size": (16, 24)}, {"in_channels": 1}]
)
def test_onnx_says_what_the_tagger_says(options: dict[str, Any], paths: list[str], tmp_path: Path) -> None:
    tagger = make_tagger(**options)
    found = export_tagger(tagger, tmp_path / "to", paths)
    assert found.images == 5
    assert found.difference < 1e-5
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(5)
    for count in (1, 3, 8):
        images = rng.integers(0, 256, (count, tagger.model.in_channels, *tagger.model.image_size), dtype=np.uint8)
        with torch.inference_mode():
            expected = SPACE.probabilities(tagger.model(torch.from_numpy(images))).numpy()
        assert np.allclose(session.run(["probabilities"], {"images": images})[0], expected, atol=1e-5)


def test_onnx_carries_names_and_thresholds(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    found = export_tagger(tagger, tmp_path / "to", paths)
    assert sorted(path.name for path in found.path.parent.iterdir()) == ["model.onnx", "selected_tags.csv"]
    model = onnx.load(found.path, load_external_data=False)
    onnx.checker.check_model(model)
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["labels"] == list(SPACE.names)
    assert about["thresholds"] == [0.2, 0.5, 0.7, None, None]
    assert LabelSpace.from_dict(about["space"]) == SPACE
    assert about["image_size"] == [16, 16]
    rows = list(csv.DictReader((tmp_path / "to" / "selected_tags.csv").read_text().splitlines()))
    assert [(row["name"], row["count"], row["best_threshold"]) for row in rows[1:4]] == [
        ("a|b", "4", "0.5"),
        ("<b>", "3", "0.7"),
        ("safe", "2", ""),
    ]


def make_scored(tagger: Tagger, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and targets that fit them a little."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(200, 5)) * 2
    targets = (rng.random((200, 5)) < expit(logits / 2 + 0.5)).astype(np.uint8)
    targets[:, 3:] = np.eye(2, dtype=np.uint8)[rng.integers(0, 2, 200)]
    return logits, targets


@pytest.mark.parametrize("method", ["temperature", "platt", "beta", "isotonic"])
def test_a_calibrated_tagger_is_exported_with_its_slopes_or_else_with_thresholds_that_decide_the_same(
    tagger: Tagger, paths: list[str], tmp_path: Path, method: str
) -> None:
    maps = fit_calibration(*make_scored(tagger), method, exclusive="vector", space=SPACE)
    calibrated = Tagger(tagger.model, tagger.thresholds, calibration=maps)
    found = export_tagger(calibrated, tmp_path / "to", paths)
    about = {entry.key: entry.value for entry in onnx.load(found.path).metadata_props}
    levels = np.array(json.loads(about["thresholds"])[:3])
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    pixels = np.stack([read_image(path, size=(16, 16)).transpose(2, 0, 1) for path in paths])
    (scores,) = session.run(None, {"images": pixels})
    predictions = calibrated.predict(paths)
    decisions = np.stack([each.decisions for each in predictions])
    assert np.array_equal(scores[:, :3] >= levels, decisions[:, :3])
    expected = np.stack([each.scores for each in predictions])
    assert np.allclose(scores, expected, atol=2e-3) == (method != "isotonic")
    assert (levels.tolist() == LEVELS[:3].tolist()) == (method != "isotonic")


def test_programs_for_wd_taggers_get_what_they_want(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    found = export_tagger(tagger, tmp_path / "to", paths, format="wd")
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape[1:] == [16, 16, 3]
    assert given.type == "tensor(float)"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    # As such programs do it: red, green, blue to blue, green, red, floats in 0..255, channels last.
    blue_first = pixels.transpose(0, 2, 3, 1)[:, :, :, ::-1].astype(np.float32)
    with torch.inference_mode():
        expected = SPACE.probabilities(tagger.model(torch.from_numpy(pixels))).numpy()
    assert np.allclose(session.run(None, {given.name: blue_first})[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="square RGB images; this model takes 16 x 24 and 3 channels"):
        export_tagger(make_tagger(image_size=(16, 24)), tmp_path / "other", paths, format="wd")


def test_a_torch_program_says_the_same(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    found = export_tagger(tagger, tmp_path / "to", paths, format="torch")
    assert found.difference < 1e-6
    program = torch.export.load(found.path)
    pixels = torch.from_numpy(pixels_of(paths[:3]))
    with torch.inference_mode():
        expected = SPACE.probabilities(tagger.model(pixels))
    assert torch.allclose(program.module()(pixels), expected, atol=1e-6)


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tagger: Tagger, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="differs from the tagger by"):
        export_tagger(tagger, tmp_path / "to", paths, tolerance=-1.0)
    with pytest.raises(ValueError, match="at least one image"):
        export_tagger(tagger, tmp_path / "to", [])
    with pytest.raises(ValueError, match="unknown format 'tflite'"):
        export_tagger(tagger, tmp_path / "to", paths, format="tflite")
    monkeypatch.setattr("mlabel.inference.export._MOST_BYTES", 100)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GiB"):
        export_tagger(tagger, tmp_path / "to", paths)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an export"):
        export_tagger(tagger, tmp_path / "mine", paths, format="torch")


@pytest.mark.parametrize(("module", "extra"), [("onnxruntime", "onnx"), ("onnxscript", "onnx")])
def test_a_missing_extra_is_named(
    module: str, extra: str, tagger: Tagger, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is not installed; it comes with pip install 'mlabel\[{extra}\]'"):
        export_tagger(tagger, tmp_path / "to", paths)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_a_pretrained_tagger(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    folder = tagger.save(tmp_path / "bundle")
    again = from_pretrained(folder, device="cpu")
    for mine, theirs in zip(tagger.predict(paths), again.predict(paths), strict=True):
        assert np.array_equal(mine.scores, theirs.scores)
    with pytest.raises(ValueError, match="no revisions"):
        from_pretrained(folder, revision="main")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a name"):
        from_pretrained(tmp_path / "nowhere")


class FakeHub:
    """What mlabel asks of the Hub, done in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []

    def create_repo(self, name: str, **options: Any) -> None:
        self.asked.append(("create", name, options))
        (self.folder / name).mkdir(parents=True, exist_ok=options["exist_ok"])

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], **options: Any) -> str:
        self.asked.append(("upload", repo_id, options))
        for path in Path(folder_path).iterdir():
            if path.name in allow_patterns:
                (self.folder / repo_id / path.name).write_bytes(path.read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append(("download", name, revision))
        assert set(allow_patterns) <= set(hub.BUNDLE_FILES)
        return str(self.folder / name)


def test_the_hub_gets_the_bundle_and_nothing_else(
    tagger: Tagger, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "_hub", lambda: fake)
    folder = tagger.save(tmp_path / "bundle")
    (folder / "secret.txt").write_text("mine")
    (folder / "README.md").write_text("a card")
    assert push_to_hub(folder, "someone/cats", commit_message="first") == "https://hub/someone/cats"
    sent = {path.name for path in (tmp_path / "hub" / "someone" / "cats").iterdir()}
    assert sent == {"config.json", "model.safetensors", "thresholds.json", "selected_tags.csv", "README.md"}
    assert fake.asked[0] == ("create", "someone/cats", {"private": True, "exist_ok": True})
    again = from_pretrained("someone/cats", revision="v1", device="cpu")
    assert np.array_equal(again.predict(paths)[0].scores, tagger.predict(paths)[0].scores)
    assert fake.asked[-1] == ("download", "someone/cats", "v1")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        push_to_hub(folder, "someone/cats")


def test_the_hub_names_the_calls_that_mlabel_makes() -> None:
    import inspect

    import huggingface_hub

    for name, wanted in {
        "create_repo": {"private", "exist_ok"},
        "upload_folder": {"repo_id", "folder_path", "allow_patterns", "commit_message"},
        "snapshot_download": {"revision", "allow_patterns"},
    }.items():
        assert wanted <= set(inspect.signature(getattr(huggingface_hub, name)).parameters)


def test_a_card_says_labels_metrics_and_limits_and_obeys_nobody(tagger: Tagger, tmp_path: Path) -> None:
    columns = {"at 0.5": {"map": "0.5000"}, "calibrated": {"map": "0.5000 (0.4 to 0.6)", "macro_f1": "0.3"}}
    card = write_model_card(
        tmp_path, tagger, title="<script>", data=["12 images"], metrics=columns, limits=["Not of *faces*."]
    )
    text = card.read_text()
    maps = Calibration(5, space=SPACE).offset_by([3.0, 3.0, 3.0, 0.0, 0.0])
    moved = Tagger(tagger.model, tagger.thresholds, calibration=maps)
    write_model_card(tmp_path, moved, title="x", data=[], metrics=columns, limits=[])
    assert "| cat | general | 0.200 |" in card.read_text()  # on the scores that it gives
    assert "<script>" not in text
    assert "| map | 0.5000 | 0.5000 (0.4 to 0.6) |" in text
    assert "| macro_f1 |  | 0.3 |" in text
    assert "| a\\|b | general | 0.500 |" in text
    assert "| safe | rating | highest of its group |" in text
    assert "- Not of \\*faces\\*." in text


def test_the_command_checks_the_export(
    tagger: Tagger, paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tagger.save(tmp_path / "bundle"))
    assert main(["export", "--bundle", bundle, *paths, "--limit", "2", "--to", str(tmp_path / "onnx")]) == 0
    shown = capsys.readouterr().out
    assert "model.onnx" in shown
    assert "on 2 images" in shown
    for arguments, message in (
        ([], "--run or --bundle is wanted"),
        (["--bundle", bundle], "--bundle wants images"),
        (["--bundle", bundle, "--push", "a/b"], "--push wants --format hub"),
        (["--bundle", bundle, "--format", "hub"], "--format hub wants --run"),
    ):
        assert main(["export", "--to", str(tmp_path / "x"), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs_and_nowhere_else(tagger: Tagger, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(tagger.save(tmp_path / "bundle").iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert from_pretrained(snapshot, device="cpu").space == SPACE
    (snapshot / "thresholds.json").unlink()
    (snapshot / "thresholds.json").symlink_to(tmp_path / "models--a--b" / "elsewhere.json")
    (tmp_path / "models--a--b" / "elsewhere.json").write_text("{}")
    with pytest.raises(DataError, match=r"thresholds\.json: a link that leads out of its folder"):
        from_pretrained(snapshot, device="cpu")
