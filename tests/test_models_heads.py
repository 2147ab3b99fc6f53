"""The heads: every one on maps, tokens and features; those of papers against their formulas; options; bundles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlabel.inference.bundle import load_bundle, save_bundle
from mlabel.labels import Group, LabelSpace
from mlabel.models import HEADS, create_head, create_model, replace_head
from mlabel.models.base_head import as_places

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"], exclusive=True)])
OPTIONS = [
    *((name, {}) for name in HEADS),
    ("multi", {"layers": 2}),
    ("csra", {"heads": 4, "attention": 0.3}),
    ("ml_decoder", {"queries": 2, "feed_forward": 12}),
]


def tags(count: int) -> LabelSpace:
    return LabelSpace([Group("tags", [f"tag {number}" for number in range(count)])])


def make(
    name: str, space: LabelSpace = SPACE, *, num_features: int = 6, hidden: int = 8, **options: float
) -> nn.Module:
    torch.manual_seed(0)
    return create_head(name, num_features, space, hidden=hidden, options=options).eval()


def random_map(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Every head


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_head_survives_a_bundle_and_takes_the_place_of_another(name, options, tmp_path):
    torch.manual_seed(0)
    first = create_model("small_cnn", SPACE, image_size=32)
    model = replace_head(first, SPACE, head=name, hidden=8, dropout=0.1, head_options=options).eval()
    assert model.backbone is first.backbone
    model.init_bias([3, 1, 0, 7, 3], 10)
    save_bundle(tmp_path / "bundle", model)
    again = load_bundle(tmp_path / "bundle").model
    assert again.config == model.config
    assert again.config["head_options"] == options
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    back = replace_head(again, tags(2))
    assert back.config == {**first.config}
    assert back(images).shape == (3, 2)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_head_learns_in_every_weight(name, options):
    head = make(name, **options).train()
    features = random_map(4, 6, 3, 5) if HEADS[name].takes_map else random_map(4, 6)
    head(features).square().sum().backward()
    assert not [key for key, parameter in head.named_parameters() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize(("name", "options"), [case for case in OPTIONS if HEADS[case[0]].takes_map])
@pytest.mark.parametrize("count", [1, 5, 101])
def test_places_have_no_order_and_tokens_are_a_map(name, options, count):
    head = make(name, tags(count), **options)
    feature_map = random_map(2, 6, 3, 4)
    tokens = feature_map.flatten(2).transpose(1, 2)
    assert torch.equal(as_places(feature_map), tokens)
    wanted = head(feature_map)
    assert wanted.shape == (2, count)
    torch.testing.assert_close(head(tokens[:, torch.randperm(12)]), wanted, atol=1e-5, rtol=1e-5)
    # A map that is the same everywhere says no more than one place, which pooled features are.
    torch.testing.assert_close(
        head(feature_map[:, :, :1, :1].expand(-1, -1, 3, 4)), head(feature_map[:, :, 0, 0]), atol=1e-5, rtol=1e-5
    )


def test_features_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"\(N, D, H, W\), \(N, T, D\) or \(N, D\); got \(3,\)"):
        make("csra")(torch.zeros(3))


# Multi


def test_deeper_stacks_are_of_each_group_alone():
    head = make("multi", layers=2)
    kinds = [type(part).__name__ for part in head.groups[0]]
    assert kinds == [
        "BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear",
    ]  # fmt: skip
    features = random_map(4, 6)
    before = head(features).detach()
    with torch.no_grad():
        head.groups[1][1].bias.add_(1.0)
    assert torch.equal(head(features)[:, :3], before[:, :3])
    assert not torch.equal(head(features)[:, 3:], before[:, 3:])


# CSRA


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4, 6, 8]), st.floats(0, 2), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_csra_is_the_formula_of_its_paper(heads, attention, height, width, seed):
    """Class-specific features first, as the paper writes it, where ours attends over logits."""
    torch.manual_seed(seed)
    head = create_head("csra", 6, SPACE, options={"heads": heads, "attention": attention}).double()
    feature_map = torch.randn(2, 6, height, width).double()
    temperatures = {1: [1], 2: [1, 99], 4: [1, 2, 4, 99], 6: [1, 2, 3, 4, 5, 99], 8: [1, 2, 3, 4, 5, 6, 7, 99]}[heads]
    weights = [head.linear.weight, *(other.weight for other in head.others)]
    wanted = head.linear.bias.expand(2, -1).clone()
    for weight, temperature in zip(weights, temperatures, strict=True):
        for sample, places in enumerate(feature_map.flatten(2)):
            for label, row in enumerate(weight):
                scores = row @ places
                if temperature == 99:  # stands for the maximum
                    shares = (scores == scores.max()).double()
                else:
                    shares = torch.exp(temperature * scores) / torch.exp(temperature * scores).sum()
                attended = places @ shares
                wanted[sample, label] = wanted[sample, label] + row @ (places.mean(dim=1) + attention * attended)
    torch.testing.assert_close(head(feature_map), wanted)


def test_csra_without_attention_is_the_linear_head_of_the_mean():
    csra, feature_map = make("csra", attention=0), random_map(3, 6, 4, 4)
    torch.testing.assert_close(csra(feature_map), csra.linear(feature_map.mean(dim=(2, 3))))


def test_csra_sees_a_small_object():
    """One place among 49 that shows the label: the attention raises its logit well above the mean's."""
    feature_map = torch.zeros(1, 1, 7, 7)
    feature_map[0, 0, 3, 3] = 10.0
    logits = []
    for attention in (0, 0.5):
        head = create_head("csra", 1, tags(1), options={"attention": attention})
        nn.init.ones_(head.linear.weight)
        nn.init.zeros_(head.linear.bias)
        logits.append(head(feature_map).item())
    assert logits[0] == pytest.approx(10 / 49)
    assert logits[1] == pytest.approx(10 / 49 + 0.5 * 10 / (1 + 48 * math.exp(-10)), rel=1e-4)


# ML-Decoder


@pytest.mark.parametrize(("count", "queries"), [(5, 100), (8, 4), (10, 4), (7, 1)])
def test_ml_decoder_is_a_decoder_of_torch_without_attention_to_itself(count, queries):
    head = make("ml_decoder", tags(count), queries=queries, feed_forward=16).double()
    attention = nn.MultiheadAttention(8, head.attention_heads, batch_first=True).double()
    with torch.no_grad():
        for part, layer in zip(range(3), (head.to_query, head.to_key, head.to_value), strict=True):
            attention.in_proj_weight[8 * part : 8 * part + 8] = layer.weight
            attention.in_proj_bias[8 * part : 8 * part + 8] = layer.bias
        attention.out_proj.load_state_dict(head.attended.state_dict())
    places = random_map(3, 10, 6).double()
    memory = head.embed(places).relu()
    first = head.query_norm(head.queries).expand(3, -1, -1)
    second = head.attention_norm(first + attention(first, memory, memory, need_weights=False)[0])
    seen = head.feed_forward_norm(second + head.feed_forward(second))
    wanted = torch.stack(
        [
            seen[:, label // head.labels_per_query] @ head.linear.weight[label] + head.linear.bias[label]
            for label in range(count)
        ],
        dim=1,
    )
    torch.testing.assert_close(head(places), wanted)
    assert len(head.queries) == math.ceil(count / math.ceil(count / queries))


def test_ml_decoder_queries_are_fixed_and_saved():
    head = make("ml_decoder")
    assert "queries" in head.state_dict()
    assert "queries" not in dict(head.named_parameters())
    # Where 8 does not divide the width there are fewer heads.
    assert [make("ml_decoder", hidden=width).attention_heads for width in (64, 12, 7)] == [8, 4, 1]


# Embedding


def test_embedding_is_a_linear_head_of_low_rank():
    head = make("embedding", tags(40), num_features=20, hidden=3)
    features = random_map(30, 20)
    whole = nn.Linear(20, 40)
    with torch.no_grad():
        whole.weight.copy_(head.embeddings @ head.projection.weight)
        whole.bias.copy_(head.linear.bias)
    torch.testing.assert_close(head(features), whole(features), atol=1e-5, rtol=1e-5)
    assert np.linalg.matrix_rank(whole.weight.detach().numpy()) == 3
    vectors = random_map(40, 3)
    head.set_embeddings(vectors)
    assert torch.equal(head.embeddings, vectors)
    assert head.embeddings.requires_grad
    with pytest.raises(ValueError, match=r"vectors must be of shape \(40, 3\); got \(3, 40\)"):
        head.set_embeddings(vectors.T)


def test_the_memory_that_the_embedding_head_states():
    space = tags(70_000)
    with torch.device("meta"):
        head = create_head("embedding", 2048, space, hidden=256)
        linear = create_head("linear", 2048, space)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (head, linear)]
    assert counts == [256 * (2048 + 70_000) + 70_000, 70_000 * 2049]
    assert [round(4 * count / 1e6) for count in counts] == [74, 574]


# Options and backbones without a map


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("csra", {"head": 1}, ValueError, "head 'csra' has no option 'head'; did you mean 'heads'"),
        ("mlp", {"layers": 1}, ValueError, "head 'mlp' has no option 'layers'; It has none"),
        ("csra", {"heads": 5}, ValueError, "heads must be one of 1, 2, 4, 6, 8; got 5"),
        ("csra", {"attention": -1}, ValueError, "attention must be from 0"),
        ("csra", {"attention": "a"}, TypeError, "'attention' of head 'csra' must be a number; got 'a'"),
        ("multi", {"layers": 1.5}, TypeError, "'layers' of head 'multi' must be a whole number; got 1.5"),
        ("multi", {"layers": -1}, ValueError, "layers must be from 0"),
        ("ml_decoder", {"queries": 0}, ValueError, "queries must be from 1"),
        ("ml_decoder", {"feed_forward": 0}, ValueError, "feed_forward must be from 1"),
    ],
)
def test_slips_in_options_are_named(name, options, error, message):
    with pytest.raises(error, match=message):
        create_model("small_cnn", SPACE, image_size=32, head=name, head_options=options)


class Halves(nn.Module):
    """A user's backbone: colours of each half of the image."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


class HalvesWithTokens(Halves):
    """The same, which also says what the halves are."""

    num_map_features = 4

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        halves = torch.stack([half.mean(dim=(2, 3)) for half in images.chunk(2, dim=3)], dim=1)
        return nn.functional.pad(halves, (0, 1))


def test_a_module_of_the_users_may_have_a_map():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    model = create_model(HalvesWithTokens(), SPACE, head="ml_decoder")
    assert model.feature_map(images).shape == (2, 2, 4)
    assert model(images).shape == (2, 5)
    assert replace_head(model, SPACE, head="mlp")(images).shape == (2, 5)
    with pytest.raises(TypeError, match=r"Halves has no feature map, which this head wants.*feature_map"):
        create_model(Halves(), SPACE, head="csra")
    assert create_model(Halves(), SPACE)(images).shape == (2, 5)
