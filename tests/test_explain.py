"""What a label looks at: closed forms, independence of the batch, and a model that is left as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer

from mlabel.labels import Group, LabelSpace
from mlabel.models import Classifier, create_model
from mlabel.report import explain, plot_explanations

SPACE = LabelSpace([Group("tags", ["cat", "dog", "bird"])])


class Channels(nn.Module):
    """The channels as they come, averaged: of this network Grad-CAM is known."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.same(images).mean((2, 3))


class Patches(VisionTransformer):
    """A small vision transformer: sixteen patches of 8 pixels, two layers of two heads."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
        self.heads = nn.Identity()


def make_channels() -> Classifier:
    return create_model(Channels(), SPACE, image_size=8, mean=0.0, std=1.0)


def make_patches() -> Classifier:
    torch.manual_seed(3)
    model = create_model(Patches(), SPACE, image_size=32)
    with torch.no_grad():
        for layer in model.backbone.encoder.layers:
            layer.self_attention.in_proj_weight.mul_(5)  # attention that differs from place to place
    return model


def make(name: str) -> Classifier:
    if name == "patches":
        return make_patches()
    torch.manual_seed(3)
    return make_channels() if name == "channels" else create_model(name, SPACE, image_size=64)


NAMES = ["small_cnn", "channels", "resnet18", "densenet121", "vgg11", "swin_t", "patches"]


def pictures(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_in_range_and_do_not_depend_on_the_other_images(name: str) -> None:
    model = make(name).train()
    images = pictures(4, 32 if name == "patches" else 64)
    maps = explain(model, images, ["bird", "cat"])
    assert maps.shape == (4, 2, *images.shape[2:])
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    top = maps.amax((2, 3))
    assert (((top - 1).abs() < 1e-6) | (top == 0)).all()
    assert (top > 0).any()
    alone = torch.cat([explain(model, images[[row]], [2, 0]) for row in (2, 0)])
    torch.testing.assert_close(alone, maps[[2, 0]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["small_cnn", "patches"])
def test_of_a_model_with_two_views_the_image_itself_is_explained(name: str) -> None:
    model, images = make(name).eval(), pictures(2, 32 if name == "patches" else 64)
    expected = explain(model, images, ["bird"])
    model.views = "mirrored"
    assert torch.equal(explain(model, images, ["bird"]), expected)
    assert model.views == "mirrored"


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = make(name).train()
    model.head.eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    explain(model, pictures(2, 32 if name == "patches" else 64), ["dog"])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(each.grad, torch.ones_like(each)) for each in parameters[1:])
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_and_modes_put_back_after_an_error() -> None:
    model = make("small_cnn").train()
    with pytest.raises(ValueError, match="images must be of shape"):
        explain(model, torch.zeros(1, 1, 32, 32), ["dog"])
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_map_of_a_network_of_which_it_is_known() -> None:
    """A logit is the mean over the places of w . image, so that the map is w . image where that is positive."""
    model = make_channels()
    rows = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, -0.5], [-1.0, -1.0, -1.0]])
    with torch.no_grad():
        model.head.linear.weight.copy_(rows)
    images = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = explain(model, images, [0, 1, 2])
    expected = torch.einsum("kc,nchw->nkhw", rows, images.float() / 255).relu()
    assert expected[:, :2].amax((2, 3)).min() > 0
    torch.testing.assert_close(got[:, :2], expected[:, :2] / expected[:, :2].amax((2, 3), keepdim=True))
    assert (got[:, 2] == 0).all(), "nothing speaks for it, and the map is not divided by nothing"


def test_each_image_may_have_labels_of_its_own() -> None:
    model = make("resnet18")
    images = pictures(3, 64)
    every = explain(model, images, [0, 1, 2])
    own = torch.tensor([[2, 0], [1, 1], [0, 2]])
    got = explain(model, images, own)
    for row in range(3):
        torch.testing.assert_close(got[row], every[row, own[row]], rtol=1e-4, atol=1e-5)


def test_in_place_layers_after_the_map_are_no_obstacle() -> None:
    """DenseNet applies a ReLU in place to what its last module gave: the map is of what came out of that."""
    model = make("densenet121").eval()
    images = pictures(2, 64)
    with torch.no_grad():
        model.head.linear.weight.abs_()
        expected = torch.einsum("c,nchw->nhw", model.head.linear.weight[1], model.feature_map(images))[:, None]
    expected = nn.functional.interpolate(expected, size=(64, 64), mode="bilinear")
    expected = expected / expected.amax((2, 3), keepdim=True)
    torch.testing.assert_close(explain(model, images, ["dog"]), expected, rtol=1e-3, atol=1e-4)


def roll_out_by_hand(model: Classifier, images: torch.Tensor) -> np.ndarray:
    """Return the rollout with attention computed from the weights, in float64."""
    vit = copy.deepcopy(model.backbone).double().eval()
    with torch.no_grad():
        patches = vit._process_input(model.preprocess(images).double())
        tokens = torch.cat([vit.class_token.expand(len(patches), -1, -1), patches], dim=1) + vit.encoder.pos_embedding
        rolled = torch.eye(17, dtype=torch.float64)
        for layer in vit.encoder.layers:
            held = layer.self_attention
            query, key, _ = nn.functional.linear(layer.ln_1(tokens), held.in_proj_weight, held.in_proj_bias).chunk(
                3, -1
            )
            query, key = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (query, key))
            attention = (query @ key.transpose(-1, -2) / math.sqrt(8)).softmax(-1).mean(1)
            rolled = (0.5 * attention + 0.5 * torch.eye(17)) @ rolled
            tokens = layer(tokens)
    torch.testing.assert_close(rolled.sum(-1), torch.ones_like(rolled.sum(-1)))
    return rolled[:, 0, 1:].reshape(-1, 4, 4).numpy()


def test_rollout_against_attention_computed_from_the_weights() -> None:
    model = make_patches()
    images = pictures(3, 32)
    got = explain(model, images, ["cat", "dog"])
    assert torch.equal(got[:, 0], got[:, 1]), "attention knows no labels"
    expected = torch.from_numpy(roll_out_by_hand(model, images))[:, None]
    assert float((expected.amax((2, 3)) / expected.amin((2, 3))).min()) > 1.2, "the case must not be a flat one"
    expected = nn.functional.interpolate(expected, size=(32, 32), mode="bilinear")
    expected = expected / expected.amax((2, 3), keepdim=True)
    torch.testing.assert_close(got[:, :1], expected.float(), rtol=1e-4, atol=1e-5)


def make_timm(name: str, **options: Any) -> Classifier:
    pytest.importorskip("timm")
    torch.manual_seed(3)
    model = create_model(name, SPACE, image_size=64, **options)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight.mul_(20)  # attention that differs from place to place
    return model


def test_rollout_of_timms_transformers_against_attention_computed_from_the_weights() -> None:
    model, images = make_timm("timm/test_vit"), pictures(3, 64)
    vit = copy.deepcopy(model.backbone).double().eval()
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(model.preprocess(images).double()))
        rolled = torch.eye(17, dtype=torch.float64)
        for block in vit.blocks:
            query, key, _ = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
            heads = block.attn.num_heads
            query, key = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key))
            attention = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1).mean(1)
            rolled = (0.5 * attention + 0.5 * torch.eye(17)) @ rolled
            tokens = block(tokens)
    expected = rolled[:, 0, 1:].reshape(-1, 1, 4, 4)
    assert float((expected.amax((2, 3)) / expected.amin((2, 3))).min()) > 1.2, "the case must not be a flat one"
    expected = nn.functional.interpolate(expected, size=(64, 64), mode="bilinear")
    expected = expected / expected.amax((2, 3), keepdim=True)
    got = explain(model, images, ["cat"])
    torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-4)
    every_patch = explain(make_timm("timm/test_vit", head="csra"), images, ["cat"])
    assert not torch.allclose(every_patch, got, atol=0.01)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_vit2", "timm/test_vit4", "timm/eva02_tiny_patch14_224"])
def test_transformers_of_timm_are_explained_and_left_as_they_were(name: str) -> None:
    timm = pytest.importorskip("timm")
    side = 56 if "eva" in name else 64
    assert timm.is_model(name[5:])
    torch.manual_seed(3)
    model = create_model(name, SPACE, image_size=side)
    images = pictures(2, side)
    rolled = explain(model, images, ["cat", "dog"])
    assert torch.equal(rolled[:, 0], rolled[:, 1])
    maps = explain(model, images, ["cat", "dog"], method="grad_cam")
    assert maps.amax((2, 3)).max() == 1
    assert not torch.allclose(maps[:, 0], maps[:, 1], atol=0.1)
    assert all(block.attn.fused_attn for block in model.backbone.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_to_everything_alike_is_flat() -> None:
    model = make_patches()
    with torch.no_grad():
        for layer in model.backbone.encoder.layers:
            layer.self_attention.in_proj_weight[:32] = 0
            layer.self_attention.in_proj_bias[:32] = 0
    torch.testing.assert_close(explain(model, pictures(2, 32), ["cat"]), torch.ones(2, 1, 32, 32))


def test_grad_cam_of_a_transformer_knows_labels() -> None:
    maps = explain(make_patches(), pictures(3, 32), ["cat", "dog"], method="grad_cam")
    assert maps.amax((2, 3)).max() == 1
    assert not torch.allclose(maps[:, 0], maps[:, 1], atol=0.1)


def test_grad_cam_of_a_transformer_against_the_last_layer_written_out() -> None:
    model, images = make_patches().eval(), pictures(2, 32)
    vit = model.backbone
    with torch.no_grad():
        patches = vit._process_input(model.preprocess(images))
        tokens = torch.cat([vit.class_token.expand(2, -1, -1), patches], dim=1) + vit.encoder.pos_embedding
        tokens = vit.encoder.layers[0](tokens)
    last = vit.encoder.layers[1]
    seen = last.ln_1(tokens).detach().requires_grad_()
    after = tokens + last.self_attention(seen, seen, seen, need_weights=False)[0]
    after = vit.encoder.ln(after + last.mlp(last.ln_2(after)))
    slope = torch.autograd.grad(model.head(after[:, 0])[:, 2].sum(), seen)[0][:, 1:]
    expected = (slope.mean(1, keepdim=True) * seen[:, 1:]).sum(2).relu().reshape(2, 1, 4, 4).detach()
    assert expected.amax((1, 2, 3)).min() > 0
    expected = nn.functional.interpolate(expected, size=(32, 32), mode="bilinear")
    expected = expected / expected.amax((2, 3), keepdim=True)
    got = explain(model, images, ["bird"], method="grad_cam")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_heads_on_feature_maps_and_the_patches_of_a_transformer() -> None:
    torch.manual_seed(0)
    for backbone in ("small_cnn", "vit_b_32"):
        model = create_model(backbone, SPACE, head="csra", image_size=64)
        maps = explain(model, pictures(2, 64), ["cat"])
        assert maps.shape == (2, 1, 64, 64)
        assert maps.max() == pytest.approx(1)


def test_it_works_within_inference_mode_and_for_numpy_and_no_images() -> None:
    model = make("small_cnn")
    images = pictures(2, 32)
    expected = explain(model, images, [1])
    with torch.inference_mode():
        torch.testing.assert_close(explain(model, images * 1.0, [1]), expected)
    torch.testing.assert_close(explain(model, images.numpy(), np.array([1])), expected)
    assert explain(model, images[:0], [1, 2]).shape == (0, 2, 32, 32)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["brid"], {}, "no label 'brid'; did you mean 'bird'"),
        ([3], {}, "columns must be from 0 to 2; got 3 to 3"),
        ([[0], [1], [2]], {}, "labels of 3 images were given, and 2 images"),
        ([], {}, "labels must be names or columns"),
        ([0.5], {}, "labels must be names or columns"),
        ([0], {"method": "gradcam"}, "did you mean 'grad_cam'"),
        ([0], {"method": "attention_rollout"}, r"transformers of torchvision and timm only; SmallCNN wants grad_cam"),
    ],
)
def test_messages(labels: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        explain(make("small_cnn"), pictures(2, 32), labels, **options)


def test_a_backbone_without_a_map_is_refused() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    backbone.num_features = 5
    model = create_model(backbone, SPACE, image_size=8)
    with pytest.raises(TypeError, match="no module of the backbone Sequential returns a map"):
        explain(model, pictures(1, 8), ["cat"])


def test_the_picture_is_lit_where_the_map_is(tmp_path: Path) -> None:
    images = np.full((2, 3, 96, 100), 200, np.uint8)
    maps = np.zeros((2, 2, 96, 100), np.float32)
    maps[0, 1, :48] = 1
    path = plot_explanations(images, maps, tmp_path / "seen.png", captions=[["a", "x", "y"], ["b", "x", "y"]])
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (8 + 96 + 18 + 8, 6 * 108 + 8, 3)
    assert pixels[8 + 10, 8].tolist() == [200] * 3  # the image itself
    assert pixels[8 + 10, 8 + 108].tolist() == [30] * 3  # nothing speaks for x
    assert pixels[8 + 10, 8 + 2 * 108].tolist() == [200] * 3
    assert pixels[8 + 60, 8 + 2 * 108].tolist() == [30] * 3


def test_a_picture_of_many_keeps_an_image_and_its_maps_together(tmp_path: Path) -> None:
    images = np.zeros((7, 1, 500, 500), np.uint8)  # three in a row of 1600 pixels
    captions = [["image", "map"]] * 7
    path = plot_explanations(images, np.ones((7, 1, 500, 500)), tmp_path / "a.png", captions=captions)
    with Image.open(path) as sheet:
        assert sheet.size == (2 * 508 + 8, 7 * (500 + 18 + 8) + 8)


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="maps"):
        plot_explanations(images, np.zeros((2, 1, 4, 8)), tmp_path / "a.png", captions=[["a", "b"]] * 2)
    with pytest.raises(ValueError, match="captions must be 2 an image"):
        plot_explanations(images, np.zeros((2, 1, 8, 8)), tmp_path / "a.png", captions=[["a"]] * 2)
