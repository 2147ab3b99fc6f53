"""The description of a model: round trip through JSON, and refusal of everything else."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlabel._checks import DataError
from mlabel.labels import Group, LabelSpace
from mlabel.models import HEADS, VIEWS, ModelConfig, create_model, from_config

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"])])
GOOD = {
    "format": "mlabel.model/1",
    "backbone": "small_cnn",
    "head": "linear",
    "dropout": 0.1,
    "hidden": 8,
    "in_channels": 3,
    "image_size": [32, 48],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "head_options": {},
}
OPTIONS = {
    "multi": st.dictionaries(st.just("layers"), st.integers(0, 2)),
    "csra": st.fixed_dictionaries(
        {}, optional={"heads": st.sampled_from([1, 2, 4]), "attention": st.floats(0, 1) | st.integers(0, 1)}
    ),
    "ml_decoder": st.fixed_dictionaries({}, optional={"queries": st.integers(1, 5), "feed_forward": st.integers(1, 9)}),
}

descriptions = st.tuples(st.integers(0, 1), st.sampled_from(sorted(HEADS))).flatmap(lambda drawn: _descriptions(*drawn))


def _descriptions(grey, head):
    return st.builds(
        ModelConfig,
        backbone=st.sampled_from(["small_cnn", "resnet18", None]),
        head=st.just(head),
        head_options=OPTIONS.get(head, st.just({})).map(lambda options: tuple(sorted(options.items()))),
        dropout=st.floats(0, 0.99),
        hidden=st.integers(1, 64),
        in_channels=st.just(1 if grey else 3),
        image_size=st.tuples(st.integers(8, 64), st.integers(8, 64)),
        mean=st.tuples(*[st.floats(0, 1)] * (1 if grey else 3)),
        std=st.tuples(*[st.floats(0.01, 1)] * (1 if grey else 3)),
        views=st.sampled_from(VIEWS),
    )


@given(descriptions)
def test_description_round_trip_through_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(max_examples=10)
@given(descriptions.filter(lambda config: config.backbone == "small_cnn"))
def test_models_are_built_again(config):
    model = from_config(config.to_dict(), SPACE)
    assert model.config == config.to_dict()
    images = torch.zeros(2, model.in_channels, *model.image_size, dtype=torch.uint8)
    assert model.eval()(images).shape == (2, 3)
    from_config(json.loads(json.dumps(model.config)), SPACE).load_state_dict(model.state_dict())


def test_description_holds_what_was_asked_for():
    model = create_model("small_cnn", SPACE, head="mlp", hidden=8, dropout=0.1, image_size=(32, 48), mean=0.5, std=0.25)
    assert model.config == {**GOOD, "head": "mlp"}
    assert (model.image_size, model.in_channels) == ((32, 48), 3)


def test_descriptions_from_before_heads_had_options_are_read():
    old = {key: value for key, value in GOOD.items() if key != "head_options"}
    assert from_config(old, SPACE).config == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "mlabel.model/2"}, "'mlabel.model/1' was wanted; got 'mlabel.model/2'"),
        ({"weights": "DEFAULT"}, "unknown key 'weights'"),
        ({"backbone": "os.system"}, "unknown backbone 'os.system'"),
        ({"backbone": ["small_cnn"]}, "backbone must be a name"),
        ({"backbone": 3}, "backbone must be a name; got 3"),
        ({"head": "eval"}, "unknown head 'eval'"),
        ({"head": 3}, "head must be a name"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"dropout": -0.1}, "dropout must be from"),
        ({"dropout": float("nan")}, "dropout must be from"),
        ({"dropout": "0.1"}, "dropout must be a number"),
        ({"dropout": True}, "dropout must be a number; got True"),
        ({"hidden": 10**9}, "hidden must be from 1 to 65536; got 1000000000"),
        ({"hidden": 0}, "hidden must be from 1"),
        ({"hidden": 8.0}, "hidden must be a whole number; got 8.0"),
        ({"in_channels": 2}, "1 .* or 3"),
        ({"in_channels": True}, "whole number; got True"),
        ({"in_channels": 1}, "mean must hold 1 values; got 3"),
        ({"image_size": 32}, "image_size must be a list of 2"),
        ({"image_size": [32]}, "image_size must hold 2 values; got 1"),
        ({"image_size": [32, 10**6]}, "from 1 to 4096; got 1000000"),
        ({"image_size": [32, -1]}, "from 1 to 4096; got -1"),
        ({"image_size": [4, 4]}, "cannot take images of 4 x 4"),
        ({"mean": [0.5, 0.5]}, "mean must hold 3 values; got 2"),
        ({"mean": [0.5, 0.5, float("inf")]}, "mean .* must be from"),
        ({"std": [0.25, 0.25, 0.0]}, "std .* must be from"),
        ({"std": [0.25, 0.25, "1"]}, "std .* must be a number"),
        ({"std": {"0": 1}}, "std must be a list"),
        ({"views": "both"}, "unknown views 'both'"),
        ({"views": 2}, "views must be a name; got 2"),
        ({"head_options": []}, "head_options must be a mapping"),
        ({"head_options": {"heads": 2}}, "head 'linear' has no option 'heads'; It has none"),
        ({"head": "csra", "head_options": {"head": 2}}, "no option 'head'; did you mean 'heads'"),
        ({"head": "csra", "head_options": {"space": 2}}, "no option 'space'"),
        ({"head": "csra", "head_options": {"heads": 3}}, "heads must be one of 1, 2, 4, 6, 8; got 3"),
        ({"head": "csra", "head_options": {"heads": True}}, "must be a whole number; got True"),
        ({"head": "csra", "head_options": {"heads": 2.0}}, "must be a whole number; got 2.0"),
        ({"head": "csra", "head_options": {"attention": "1"}}, "must be a number; got '1'"),
        ({"head": "csra", "head_options": {"attention": float("nan")}}, "option of the head must be from"),
        ({"head": "ml_decoder", "head_options": {"feed_forward": 10**8}}, "feed_forward must be from 1 to 65536"),
        ({"head": "ml_decoder", "head_options": {"queries": 0}}, "queries must be from 1"),
        ({"head": "multi", "head_options": {"layers": 1000}}, "layers must be from 0 to 16"),
    ],
)
def test_hostile_descriptions_are_refused(change, message):
    from_config(GOOD, SPACE)
    with pytest.raises(DataError, match=message):
        from_config({**GOOD, **change}, SPACE)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(GOOD)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_json_is_a_description_or_a_data_error(key, value):
    with contextlib.suppress(DataError):
        ModelConfig.from_dict({**GOOD, key: value})


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"head_options"}))
def test_a_missing_key_is_named(key):
    with pytest.raises(DataError, match="format" if key == "format" else f"lacks {key}"):
        from_config({name: value for name, value in GOOD.items() if name != key}, SPACE)


def test_a_description_is_a_mapping():
    with pytest.raises(DataError, match="must be a mapping; got list"):
        from_config([GOOD], SPACE)


def test_a_users_module_is_passed_again():
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone.num_features = 3
    model = create_model(backbone, SPACE)
    again = from_config(model.config, SPACE, backbone=backbone)
    assert again.config == model.config
    with pytest.raises(ValueError, match="pass such a module as backbone="):
        from_config(model.config, SPACE)
    with pytest.raises(ValueError, match="backbone is 'small_cnn'; backbone= is for"):
        from_config(GOOD, SPACE, backbone=backbone)
    with pytest.raises(TypeError, match=r"must be a name or a torch\.nn\.Module; got str"):
        from_config(model.config, SPACE, backbone="resnet18")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_size": "224"}, ValueError, "image_size"),
        ({"image_size": 22.5}, TypeError, "whole number; got 22.5"),
        ({"image_size": (1, 2, 3)}, ValueError, "must hold 2 values; got 3"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"in_channels": 4}, ValueError, "in_channels"),
        ({"mean": (0.5,)}, ValueError, "mean must hold 3 values; got 1"),
        ({"std": 0}, ValueError, "std"),
    ],
)
def test_slips_of_callers_are_refused(options, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model("small_cnn", SPACE, **{"image_size": 32, **options})
    assert not isinstance(caught.value, DataError)
