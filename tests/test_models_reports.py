"""The networks of the reports: layers, parameters and bundles as described."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from mlabel.inference.bundle import load_bundle, save_bundle
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model
from mlabel.models.report_networks import SEBasicBlock

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"], exclusive=True)])
NAMES = ("prior", "cnn4_maxpool", "cnn3_batchnorm", "cnn5_avgpool", "se_resnet22")


def make(name: str, *, space: LabelSpace = SPACE, **options):
    torch.manual_seed(0)
    return create_model(name, space, image_size=64, **options).eval()


def kinds(module: nn.Module) -> list[str]:
    """Names of the layers in order, without those that have no part in the description."""
    skipped = ("ReLU", "Flatten", "AdaptiveMaxPool2d", "AdaptiveAvgPool2d")
    leaves = [type(part).__name__ for part in module.modules() if not list(part.children())]
    return [name for name in leaves if name not in skipped]


def test_the_plain_networks_have_the_layers_of_the_report():
    conv, norm, drop, linear = "Conv2d", "BatchNorm2d", "Dropout", "Linear"
    four = make("cnn4_maxpool", dropout=0.5)
    assert kinds(nn.Sequential(four.backbone, four.head)) == [conv, "MaxPool2d"] * 4 + [drop, linear] * 2
    three = make("cnn3_batchnorm")
    assert kinds(three.backbone) == [conv, norm, "MaxPool2d"] * 3
    assert kinds(three.head)[1:] == [linear]
    block = [conv, norm, "AvgPool2d"]
    five = [*block, drop, *block, *block, drop, *block, *block, drop, linear, "BatchNorm1d", drop]
    assert kinds(make("cnn5_avgpool").backbone) == five


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # 9 weights and a bias for each pair of channels; then 4 x 4 x 256 features to 512.
        ("cnn4_maxpool", 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 480 + (4096 + 1) * 512),
        ("cnn3_batchnorm", 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * 224),
        ("cnn5_avgpool", 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 256) + 2 * 736 + 4096 * 512 + 2 * 512),
        ("prior", 0),
    ],
)
def test_parameters_are_those_of_the_description(name, count):
    assert sum(parameter.numel() for parameter in make(name).backbone.parameters()) == count


def test_se_resnet_is_of_the_reports_size(tmp_path):
    space = LabelSpace([Group("tags", [f"tag {number}" for number in range(100)])])
    model = create_model("se_resnet22", space, image_size=256, dropout=0.5)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 17_259_980
    blocks = [[type(block) for block in getattr(model.backbone, f"layer{stage}")] for stage in range(1, 5)]
    assert blocks == [[SEBasicBlock] * count for count in (2, 2, 3, 3)]
    folder = save_bundle(tmp_path / "bundle", model)
    assert 4 * count < sum(file.stat().st_size for file in folder.iterdir()) < 200e6
    with torch.no_grad():
        assert model.eval().feature_map(torch.zeros(1, 3, 256, 256)).shape == (1, 512, 8, 8)


def test_open_excitation_is_a_plain_residual_network():
    """With every channel weighed by 1 it is torchvision's ResNet of the same stages."""
    network = make("se_resnet22").backbone
    for block in network.modules():
        if isinstance(block, SEBasicBlock):
            nn.init.zeros_(block.excitation.fc2.weight)
            nn.init.constant_(block.excitation.fc2.bias, 100.0)
    plain = ResNet(BasicBlock, [2, 2, 3, 3]).eval()
    state = {key: value for key, value in network.state_dict().items() if "excitation" not in key}
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    plain.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(images))


def test_shut_excitation_leaves_the_shortcut():
    block = make("se_resnet22").backbone.layer1[0]
    nn.init.zeros_(block.excitation.fc2.weight)
    nn.init.constant_(block.excitation.fc2.bias, -200.0)
    images = torch.randn(2, 64, 5, 5)
    assert torch.equal(block(images), images.relu())


@pytest.mark.parametrize("head", ["linear", "mlp", "csra", "ml_decoder", "embedding"])
def test_the_prior_does_not_look(head):
    model = make("prior", head=head, hidden=8)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    logits = model(images)
    assert torch.equal(logits[0], logits[3])
    cast = model.bfloat16()(images)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), logits, atol=0.05, rtol=0.05)


def test_the_prior_gives_the_shares_and_training_finds_them():
    counts, known = np.array([30, 10, 1, 60, 40]), 100
    images = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)
    model = make("prior")
    model.init_bias(counts, known)
    with torch.no_grad():
        np.testing.assert_allclose(SPACE.probabilities(model(images))[7], counts / known, rtol=1e-5)
    targets = (torch.arange(100)[:, None] < torch.tensor([30, 10, 1])).float()
    tags = make("prior", space=LabelSpace([SPACE.groups[0]]))
    optimiser = torch.optim.LBFGS(tags.parameters(), max_iter=50)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(tags(images), targets)
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(tags(images[:1])[0].sigmoid(), torch.tensor([0.3, 0.1, 0.01]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_bundles_hold_them(name, in_channels, tmp_path):
    model = make(name, in_channels=in_channels)
    save_bundle(tmp_path / "bundle", model)
    again = load_bundle(tmp_path / "bundle").model
    assert again.config == model.config
    for size in (64, 80):
        images = torch.randint(0, 256, (2, in_channels, size, size), dtype=torch.uint8)
        with torch.no_grad():
            assert torch.equal(again(images), model(images))
