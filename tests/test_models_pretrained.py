"""Weights from files and by torchvision's names: what is loaded, what is reported, what is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import Weights, WeightsEnum

from mlabel._checks import DataError
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_backbone, create_model, load_weights
from mlabel.models.pretrained import fetch_weights, find_weights, read_state_dict, usual_statistics

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"])])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    return torchvision.models.mobilenet_v3_small(weights=None).eval()


def mobile(**options):
    return create_model("mobilenet_v3_small", SPACE, image_size=64, **options).eval()


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", ["plain", "safetensors", "state_dict", "module.", "backbone.", "legacy"])
def test_files_of_every_form_give_torchvisions_features(network, wrap, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="mlabel.models")
    state = network.state_dict()
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif wrap == "state_dict":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({(wrap if wrap.endswith(".") else "") + key: value for key, value in state.items()}, path)
    model = mobile(weights=str(path))
    report = model.load_report
    assert report is not None
    assert report.complete
    assert sorted(report.skipped) == ["classifier.3.bias", "classifier.3.weight"]
    assert len(report.loaded) == len(model.backbone.state_dict())
    assert str(report) in caplog.text
    network.classifier[3], last = nn.Identity(), network.classifier[3]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.backbone(images), network(images))
    network.classifier[3] = last


def test_the_backbone_of_a_whole_model_is_taken(tmp_path):
    model = mobile(head="mlp")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = mobile(weights=tmp_path / "model.safetensors")
    assert other.load_report.complete
    assert set(other.load_report.skipped) == {key for key in model.state_dict() if key.startswith("head.")}
    images = torch.zeros(1, 3, 64, 64)
    assert torch.equal(model.features(images), other.features(images))


def test_what_does_not_fit_is_reported(network, tmp_path, caplog):
    state = dict(network.state_dict())
    del state["features.0.1.weight"], state["features.0.1.num_batches_tracked"]
    state["features.1.block.0.0.weight"] = torch.zeros(1, 2, 3, 3)
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING, logger="mlabel.models"):
        report = mobile(weights=tmp_path / "w.pth").load_report
    assert not report.complete
    assert report.missing == ("features.0.1.weight",)
    assert report.reshaped == ("features.1.block.0.0.weight",)
    assert report.unexpected == ("extra.weight",)
    assert "1 missing (features.0.1.weight); 1 reshaped" in caplog.text


def test_one_channel_adds_up_rgb_weights(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    colour, grey = mobile(weights=tmp_path / "w.pth"), mobile(weights=tmp_path / "w.pth", in_channels=1)
    assert grey.load_report.adapted == ("features.0.0.weight",)
    assert grey.load_report.complete
    images = torch.randn(2, 1, 64, 64)
    # The first layer alone: further down, a network at a random start hardly depends on its input.
    with torch.no_grad():
        wanted = colour.backbone.features[0][0](images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.backbone.features[0][0](images), wanted, atol=1e-5, rtol=1e-4)


def test_positions_are_resized_to_another_image_size(tmp_path):
    source = create_backbone("vit_b_32", image_size=(64, 64))
    table = source.encoder.pos_embedding
    with torch.no_grad():  # a table that rises evenly from row to row stays so when it is resized
        table[0, 1:] = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None]
    torch.save(source.state_dict(), tmp_path / "w.pth")
    target = create_backbone("vit_b_32", image_size=(96, 96))
    report = load_weights(target, tmp_path / "w.pth")
    assert report.adapted == ("encoder.pos_embedding",)
    assert report.complete
    resized = target.encoder.pos_embedding
    assert torch.equal(resized[:, 0], table[:, 0])
    grid = resized[0, 1:, 0].reshape(3, 3)
    torch.testing.assert_close(grid, torch.tensor([0.0, 0.5, 1.0])[:, None].expand(3, 3), atol=0.1, rtol=0)


def test_old_densenet_names_are_understood(tmp_path):
    network = create_backbone("densenet121")
    state = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in network.state_dict().items()
    }
    assert any("norm.1." in key for key in state)
    torch.save(state, tmp_path / "w.pth")
    assert load_weights(create_backbone("densenet121"), tmp_path / "w.pth").complete


def test_nothing_that_fits_is_an_error_and_changes_nothing(network, tmp_path):
    torch.save({"a.weight": torch.zeros(3), "fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"nothing in it fits the network. The file has a.weight \(3,\)"):
        mobile(weights=tmp_path / "w.pth")
    bad = {key: value.clone() for key, value in network.state_dict().items()}
    bad["features.12.0.weight"][0] = float("nan")
    torch.save(bad, tmp_path / "nan.pth")
    model = mobile()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    with pytest.raises(DataError, match=r"features\.12\.0\.weight holds values that are not finite"):
        load_weights(model.backbone, tmp_path / "nan.pth")
    bad["features.12.0.weight"] = torch.zeros(bad["features.12.0.weight"].shape, dtype=torch.int64)
    torch.save(bad, tmp_path / "whole.pth")
    with pytest.raises(DataError, match=r"features\.12\.0\.weight is torch\.int64; the network wants torch\.float32"):
        load_weights(model.backbone, tmp_path / "whole.pth")
    assert all(torch.equal(before[key], value) for key, value in model.backbone.state_dict().items())


def test_meta_modules_hold_no_weights(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        backbone = create_backbone("mobilenet_v3_small")
    with pytest.raises(ValueError, match="meta device"):
        load_weights(backbone, tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_files_that_would_run_code_are_refused(legacy, tmp_path):
    path, trap = tmp_path / "w.pth", tmp_path / "sprung"
    if legacy:
        path.write_bytes(pickle.dumps({"weight": Trap(trap)}))
    else:
        torch.save({"weight": Trap(trap)}, path)
    with pytest.raises(DataError, match=r"Python objects are refused.*state_dict\(\) alone"):
        mobile(weights=path)
    assert not trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(DataError, match="Python objects are refused"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "header"])
def test_damaged_files_are_data_errors(ending, damage, tmp_path):
    path = tmp_path / f"w.{ending}"
    state = {"weight": torch.arange(1000.0)}
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    good = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "text": b"<html>not found</html>",
        "header": b"\xff" * 40 + good,
    }
    path.write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"w\."):
        read_state_dict(path)


def test_files_that_are_no_state_dict_are_named(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"names to tensors.*got list"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(DataError, match=r"no tensors in it; its keys are \['epoch'\]"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(DataError, match="regular file"):
        read_state_dict(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_state_dict(tmp_path / "none.safetensors")


# By name


def test_names_resolve_in_the_backbones_own_table(tmp_path, monkeypatch):
    table = torchvision.models.ResNet50_Weights
    assert find_weights("IMAGENET1K_V2", "resnet50") is table.IMAGENET1K_V2
    assert find_weights("DEFAULT", "resnet50") is table.DEFAULT
    assert find_weights(table.IMAGENET1K_V1, "resnet50") is table.IMAGENET1K_V1
    with pytest.raises(ValueError, match=r"unknown weights 'IMAGENET1K_V3'.*did you mean 'IMAGENET1K_V\d'"):
        find_weights("IMAGENET1K_V3", "resnet50")
    with pytest.raises(ValueError, match="is not for backbone 'resnet18'"):
        find_weights(table.DEFAULT, "resnet18")
    with pytest.raises(ValueError, match="'small_cnn', and no file of that name; give the path of a file"):
        find_weights("DEFAULT", "small_cnn")
    for missing in ("nowhere/w", "w.safetensors", tmp_path / "w"):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            find_weights(missing, "resnet50")


def test_statistics_are_those_of_the_weights():
    assert usual_statistics(None, None)[0] == (0.485, 0.456, 0.406)
    vit = torchvision.models.ViT_H_14_Weights.DEFAULT
    assert tuple(usual_statistics("vit_h_14", vit)[1]) == tuple(vit.transforms().std)
    vgg = torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES
    assert tuple(usual_statistics("vgg16", vgg)[1]) == (1 / 255,) * 3


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_renormalise_inside_get_the_same_numbers(name):
    """torchvision's `transform_input` after ImageNet's normalisation is our preprocessing alone."""
    network = torchvision.models.get_model(
        name, weights=None, init_weights=False, transform_input=True, aux_logits=False
    )
    model = create_model(name, SPACE, image_size=96)
    images = torch.rand(1, 3, 96, 96)
    mean, std = (torch.tensor(values)[:, None, None] for values in usual_statistics(None, None))
    torch.testing.assert_close(
        model.preprocess(images), network._transform_input((images - mean) / std), atol=1e-5, rtol=0
    )


class _Table(WeightsEnum):
    """Stands for one of torchvision's tables; the address is put in by the tests."""

    DEFAULT = Weights(url="", transforms=lambda: None, meta={})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a file to download under the name that its hash gives it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = tmp_path / "source"
    source.mkdir()
    torch.save({"weight": torch.zeros(3)}, source / "w")
    digest = hashlib.sha256((source / "w").read_bytes()).hexdigest()
    (source / "w").rename(source / f"net-{digest[:8]}.pth")
    monkeypatch.setattr(_Table.DEFAULT.value, "url", (source / f"net-{digest[:8]}.pth").as_uri())
    return tmp_path / "hub" / "checkpoints" / f"net-{digest[:8]}.pth"


def test_weights_are_downloaded_once(cache, tmp_path):
    assert fetch_weights(_Table.DEFAULT) == cache
    assert read_state_dict(cache)["weight"].shape == (3,)
    for file in (tmp_path / "source").iterdir():
        file.unlink()
    assert fetch_weights(_Table.DEFAULT) == cache


def test_no_network_says_what_belongs_where(cache, tmp_path):
    for file in (tmp_path / "source").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights DEFAULT of _Table.*put the file at.*net-") as caught:
        fetch_weights(_Table.DEFAULT)
    assert str(cache) in str(caught.value)
    assert not cache.exists()


def test_files_of_another_hash_are_refused(cache, tmp_path):
    file = next((tmp_path / "source").iterdir())
    file.write_bytes(file.read_bytes() + b"0")
    with pytest.raises(DataError, match="not what its name promises"):
        fetch_weights(_Table.DEFAULT)
    assert not cache.exists()
    cache.write_bytes(b"something else")
    with pytest.raises(DataError, match="SHA-256 does not begin with"):
        fetch_weights(_Table.DEFAULT)


def test_create_model_takes_a_name(monkeypatch, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr("mlabel.models.factory.fetch_weights", lambda entry: tmp_path / "w.pth")
    model = mobile(weights="IMAGENET1K_V1")
    assert model.load_report.complete
    assert torch.equal(model.backbone.features[0][0].weight, network.features[0][0].weight)
