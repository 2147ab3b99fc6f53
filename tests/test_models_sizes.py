"""Parameters and multiply-adds, and the command that lists them."""

from __future__ import annotations

import json

import pytest
import torchvision

from mlabel.cli import main
from mlabel.models import HEADS, create_backbone, list_models, measure_backbone, measure_heads

FEW = ("alexnet", "convnext_tiny", "googlenet", "mobilenet_v3_small", "regnet_x_400mf", "resnet50", "swin_t")
# torchvision counts layers here that are no part of a backbone: an auxiliary classifier; classes by a convolution;
# no bias.
OTHERS = {"inception_v3", "squeezenet1_0", "squeezenet1_1", "maxvit_t"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in torchvision.models.list_models(module=torchvision.models)
        if name not in OTHERS
    ],
)
def test_counts_are_those_of_torchvisions_table(name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    size = measure_backbone(name, image_size=weights.transforms().crop_size[0])
    assert size.parameters + 1000 * (size.num_features + 1) == weights.meta["num_params"]
    # Given there in thousands of millions with three decimals, batch norms and poolings not counted.
    assert (size.multiply_adds + 1000 * size.num_features) / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.002)


@pytest.mark.parametrize(
    "name", ["small_cnn", "prior", "cnn5_avgpool", "se_resnet22", "timm/resnet10t", "timm/test_vit"]
)
def test_counting_agrees_with_what_is_made(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = create_backbone(name, image_size=(64, 64), in_channels=1)
    size = measure_backbone(name, image_size=64, in_channels=1)
    assert size.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert size.num_features == backbone.num_features
    assert (size.multiply_adds > 0) == (name != "prior")


def test_a_convolution_by_hand():
    # 9 x 3 x 32 products for each of 64 x 64 pixels; each pooling leaves a quarter of them.
    layers = [(3, 32), (32, 64), (64, 128), (128, 256)]
    convolutions = sum(9 * before * after * (64 // 2**number) ** 2 for number, (before, after) in enumerate(layers))
    assert measure_backbone("cnn4_maxpool", image_size=64).multiply_adds == convolutions + 4096 * 512


def test_heads_by_hand():
    sizes = {size.name: size for size in measure_heads(70_000, 2048, hidden=256)}
    assert list(sizes) == list(HEADS)
    assert sizes["linear"].parameters == 70_000 * 2049
    assert sizes["embedding"].parameters == 256 * (2048 + 70_000) + 70_000
    assert sizes["embedding"].weights_bytes == 4 * sizes["embedding"].parameters
    assert sizes["embedding"].training_bytes == 16 * sizes["embedding"].parameters


# The command


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mlabel" / "sizes-torchvision.json"


def test_the_command_lists_and_keeps_its_counts(cache, capsys, monkeypatch):
    assert main(["models", "cnn*"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["cnn4_maxpool", "cnn3_batchnorm", "cnn5_avgpool"]
    assert "2.49 M" in table
    assert "224 x 224 pixels" in table
    kept = json.loads(cache.read_text())["sizes"]
    assert kept["cnn4_maxpool 224"] == [512, 2486080, 739082240]
    monkeypatch.setattr("mlabel.cli.models.measure_backbone", lambda *args, **named: pytest.fail("counted again"))
    assert main(["models", "4_max", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "cnn4_maxpool",
            "image_size": [224, 224],
            "num_features": 512,
            "parameters": 2486080,
            "multiply_adds": 739082240,
        }
    ]


@pytest.mark.parametrize("damage", ["{", "[]", '{"versions": {}, "sizes": {}}', '{"sizes": 3}'])
def test_a_damaged_or_old_cache_is_counted_anew(damage, cache, capsys):
    cache.parent.mkdir()
    cache.write_text(damage)
    assert main(["models", "prior"]) == 0
    assert "0.00 M" in capsys.readouterr().out
    assert json.loads(cache.read_text())["sizes"] == {"prior 224": [1, 0, 0]}


def test_slips_are_answered(cache, capsys):
    assert main(["models", "resmet"]) == 2
    assert "no backbone fits 'resmet'; did you mean 'resnet" in capsys.readouterr().err
    assert main(["models", "vit_b_32", "--image-size", "100"]) == 0
    assert "left out: backbone 'vit_b_32' cannot take images of 100 x 100" in capsys.readouterr().err


def test_heads_and_timm_are_listed(cache, capsys):
    assert main(["models", "--heads", "--num-labels", "50"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:7]] == list(HEADS)
    assert main(["models", "--heads", "--format", "json"]) == 0
    assert [head["name"] for head in json.loads(capsys.readouterr().out)] == list(HEADS)
    pytest.importorskip("timm")
    assert main(["models", "timm/resnet10t"]) == 0
    assert "timm/resnet10t" in capsys.readouterr().out
    assert "small_cnn" in list_models()
