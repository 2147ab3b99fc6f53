"""The table of backbones: every name builds, gives (N, D), takes one or three channels."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import regnet

from mlabel.labels import Group, LabelSpace
from mlabel.models import HEADS, SmallCNN, create_backbone, create_model, list_models, replace_head
from mlabel.models.backbones import find_first_convolution, has_fixed_size

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"])])
FAMILIES = (
    "alexnet", "cnn3_batchnorm", "cnn4_maxpool", "cnn5_avgpool", "convnext_tiny", "densenet121",
    "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "prior", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "se_resnet22", "shufflenet_v2_x0_5", "small_cnn", "squeezenet1_1", "swin_t", "swin_v2_t",
    "vgg11_bn", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
TRAINED = (
    "cnn3_batchnorm",
    "cnn4_maxpool",
    "cnn5_avgpool",
    "se_resnet22",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "small_cnn",
    "squeezenet1_1",
)


@pytest.fixture
def meta(monkeypatch):
    """Modules are made on the meta device: shapes without memory or arithmetic."""
    rule = regnet.BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):  # RegNet computes its widths with tensors, and reads their values
            return rule(cls, *args, **kwargs)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


def test_the_table_is_torchvisions_and_ours():
    ours = ["small_cnn", "prior", "cnn4_maxpool", "cnn3_batchnorm", "cnn5_avgpool", "se_resnet22"]
    assert list_models() == [*ours, *torchvision.models.list_models(module=torchvision.models)]
    assert len(list_models()) >= 86
    assert {name.rstrip("0123456789_") for name in FAMILIES} <= {name.rstrip("0123456789_") for name in list_models()}


# One of each family each time, its larger siblings with `-m slow`; a new network of ours each time.
SIBLINGS = set(torchvision.models.list_models(module=torchvision.models)) - set(FAMILIES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SIBLINGS else ()) for name in list_models()]
)
def test_every_name_builds(name, meta):
    # One channel: that is the harder half. Making it already runs it on one image of 224 pixels.
    backbone = create_backbone(name, in_channels=1)
    if name != "prior":
        _, first = find_first_convolution(backbone)
        assert first.weight.shape[1] == first.in_channels == 1
    assert backbone.training
    model = create_model(backbone, SPACE, in_channels=1, head="csra")
    assert model.num_features >= 256 or name == "prior"
    assert model.state_dict()
    # The head is as wide as the feature map, for which that was made.
    assert model.head.linear.in_features >= 128 or name == "prior"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_two_sizes_and_new_heads(name, meta):
    other_size = 448 if has_fixed_size(name) else 160
    model = create_model(name, SPACE)
    assert model(torch.empty(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 3)
    if has_fixed_size(name):
        with pytest.raises(ValueError, match=r"takes images of \(224, 224\) \(height, width\) only"):
            model.features(torch.empty(2, 3, other_size, other_size))
        model = create_model(name, SPACE, image_size=other_size)
    images = torch.empty(2, 3, other_size, other_size)
    features, feature_map = model.features(images), model.feature_map(images)
    assert features.shape == (2, model.num_features)
    assert feature_map.ndim == 4
    assert feature_map.shape[2] == feature_map.shape[3] >= 3 or name == "prior"
    space = LabelSpace([Group("a", ["x", "y"]), Group("b", ["z"])])
    for head in HEADS:
        other = replace_head(model, space, head=head, hidden=8).eval()
        assert other.head(feature_map if other.head.takes_map else features).shape == (2, 3)
        assert other.backbone is model.backbone
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    # Only the hidden layers of AlexNet and VGG, the report's CNNs and the blocks of the transformers keep their own.
    own = {"alexnet", "vgg11_bn", "vit_b_32", "maxvit_t", "swin_t", "swin_v2_t", "cnn4_maxpool", "cnn5_avgpool"}
    assert len(dropouts) == 1 or name in own


# What follows the pooling, where more than nothing does.
AFTER_POOLING = {"alexnet", "cnn4_maxpool", "cnn3_batchnorm", "cnn5_avgpool", "convnext_tiny", "maxvit_t"}
AFTER_POOLING |= {"mobilenet_v3_small", "small_cnn", "vgg11_bn", "vit_b_32"}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in AFTER_POOLING])
def test_features_are_the_mean_of_the_map(name):
    torch.manual_seed(0)
    size = 224 if has_fixed_size(name) else 96
    model = create_model(name, SPACE, image_size=size).eval()
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        wanted = model.feature_map(images).mean(dim=(2, 3))
        torch.testing.assert_close(model.features(images), wanted, atol=1e-4, rtol=1e-4)


def test_the_map_of_a_vision_transformer_is_its_patches():
    torch.manual_seed(0)
    model = create_model("vit_b_32", SPACE, image_size=64, head="csra").eval()
    nn.init.normal_(model.backbone.encoder.pos_embedding)
    found = []
    model.backbone.encoder.register_forward_hook(lambda module, inputs, tokens: found.append(tokens))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        model.features(images)
        feature_map = model.feature_map(images)
    torch.testing.assert_close(feature_map[:, :, 0, 1], found[0][:, 2])
    torch.testing.assert_close(feature_map[:, :, 1, 0], found[0][:, 3])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["small_cnn", "prior", "cnn4_maxpool"])
def test_small_models_are_exported(name, head):
    _check_export(name, head)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_exported(name):
    _check_export(name, "linear", size=224 if has_fixed_size(name) or name == "inception_v3" else 64)
    _check_export(name, "csra", size=224 if has_fixed_size(name) or name == "inception_v3" else 64)


def _check_export(name, head, *, size=32):
    torch.manual_seed(0)
    model = create_model(name, SPACE, head=head, hidden=8, image_size=size).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    more = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_training_reaches_every_weight(name, in_channels):
    torch.manual_seed(0)
    model = create_model(name, SPACE, in_channels=in_channels, image_size=64)
    images = torch.randint(0, 256, (4, in_channels, 64, 64), dtype=torch.uint8)
    model(images).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    for size in (64, 80):
        assert torch.isfinite(model.eval()(torch.zeros(1, in_channels, size, size))).all()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_features_are_what_torchvisions_last_layer_is_given(name):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None).eval()
    given = []
    last = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    last.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    backbone = create_backbone(name).eval()
    left = backbone.load_state_dict(network.state_dict(), strict=False)
    assert not left.missing_keys
    assert len(left.unexpected_keys) == 2
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(images)
        wanted = given[0].mean(dim=(2, 3)) if given[0].ndim == 4 else given[0]
        torch.testing.assert_close(backbone(images), wanted)


def test_one_channel_sees_grey_as_three_channels_do():
    torch.manual_seed(0)
    colour = create_backbone("resnet18").eval()
    torch.manual_seed(0)
    grey = create_backbone("resnet18", in_channels=1).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_small_cnn_is_small():
    network = SmallCNN()
    assert 200_000 < sum(parameter.numel() for parameter in network.parameters()) < 400_000
    for size in (8, 32, 33, 64):
        assert network.eval()(torch.zeros(1, 3, size, size + 3)).shape == (1, network.num_features)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", 16, "'alexnet' cannot take images of 16 x 16 pixels"),
        ("vit_b_16", (224, 192), "224 x 192 pixels.*square"),
        ("vit_b_16", 100, "100 x 100 pixels.*patch size"),
        ("maxvit_t", 200, "200 x 200 pixels"),
        ("small_cnn", 4, "4 x 4 pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, size, message, meta):
    with pytest.raises(ValueError, match=message):
        create_model(name, SPACE, image_size=size)


def test_a_network_without_convolution_is_named():
    with pytest.raises(ValueError, match="Sequential has no two-dimensional convolution"):
        find_first_convolution(nn.Sequential(nn.Linear(1, 1)))
