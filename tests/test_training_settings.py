"""How a training computes: sizes, precision, layout and compiled code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._inductor.exc import InductorError
from training_cases import (
    BASE,
    SPACE,
    Tiny,
    assert_same,
    assert_same_history,
    make_batch,
    make_loss,
    make_model,
    make_table,
    weights,
    whole,
)

from mlabel.data import ImageTable
from mlabel.data.images import resize
from mlabel.models import create_model
from mlabel.training import TrainConfig, fit, resize_batch, tensor_float32, train, training_size


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


# Progressive resizing


@given(st.lists(st.integers(1, 64), max_size=4), st.integers(1, 20), st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_sizes_share_the_epochs_and_end_at_the_models(sides: list[int], epochs: int, size: tuple[int, int]) -> None:
    config = TrainConfig(epochs=epochs, progressive_resize=tuple(sides))
    sizes = [training_size(config, epoch, size) for epoch in range(epochs)]
    stages = [side for side in sides if side != max(size)] + [max(size)]
    longest = [stages[epoch * len(stages) // epochs] for epoch in range(epochs)]
    assert [max(each) for each in sizes] == longest
    assert training_size(config, epochs + 5, size) == size
    if epochs >= len(stages):
        assert sizes[-1] == size
        assert max(map(longest.count, longest)) <= -(-epochs // len(stages)) * len(stages)


def test_resized_images_are_those_of_the_reader(table: ImageTable) -> None:
    batch = make_batch(table, slice(0, 5))
    assert resize_batch(batch, (12, 12)) is batch
    small = resize_batch(batch, (7, 5))
    assert small.images.dtype == torch.uint8
    for before, after in zip(batch.images, small.images, strict=True):
        expected = torch.from_numpy(resize(before.permute(1, 2, 0).contiguous().numpy(), (7, 5))).permute(2, 0, 1)
        assert int((after.int() - expected.int()).abs().max()) <= 1
    assert torch.equal(small.targets, batch.targets)


def test_training_is_at_the_epochs_size_and_evaluation_at_the_models(table: ImageTable) -> None:
    model = make_model()
    seen: list[tuple[bool, tuple[int, ...]]] = []
    model.backbone.register_forward_pre_hook(lambda _, given: seen.append((model.training, tuple(given[0].shape[2:]))))
    config = TrainConfig(**BASE | {"epochs": 3, "progressive_resize": (6, 9)})
    for event in train(model, make_loss(), table, table, config=config):
        if event.kind == "eval":
            side = (6, 9, 12)[event.epoch - 1]
            assert set(seen) == {(True, (side, side)), (False, (12, 12))}
            seen.clear()


def test_sizes_that_cannot_be_are_refused(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"up to the model's own size, 12 pixels, and not beyond; got \(8, 16\)"):
        train(make_model(), make_loss(), table, config=TrainConfig(progressive_resize=(8, 16)))
    with pytest.raises(ValueError, match="each of progressive_resize must be a whole number of at least 1; got 0"):
        TrainConfig(progressive_resize=(0,))
    monkeypatch.setattr("mlabel.training.resizing.has_fixed_size", lambda name: True)
    with pytest.raises(ValueError, match="so that progressive_resize must be None"):
        train(make_model(), make_loss(), table, config=TrainConfig(progressive_resize=(8,)))
    # The sizes follow from the number of epochs, which therefore is no longer free to change.
    with pytest.raises(ValueError, match="epochs: 3 saved, 4 now"):
        TrainConfig(epochs=4, schedule="constant", progressive_resize=[8]).check_continues(
            TrainConfig(epochs=3, schedule="constant", progressive_resize=(8,))
        )


# Precision


@pytest.mark.parametrize(("here", "there"), [("bf16", "fp32"), ("fp32", "bf16"), ("fp16", "bf16"), ("bf16", "fp16")])
def test_a_training_goes_on_in_the_precision_that_it_began_in(
    table: ImageTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    here: str,
    there: str,
) -> None:
    expected, history = whole(table, TrainConfig(**BASE | {"precision": here}))
    auto = TrainConfig(**BASE | {"precision": "auto", "save_every": 3})
    monkeypatch.setattr("mlabel.training.loop.resolve_precision", lambda *_: here)
    events = train(make_model(), make_loss(), table, table, config=auto, run_dir=tmp_path)
    assert next(event.state.precision for event in events if event.kind == "checkpoint") == here
    events.close()
    monkeypatch.setattr("mlabel.training.loop.resolve_precision", lambda *_: there)
    model = make_model()
    with caplog.at_level(logging.WARNING):
        again = fit(model, make_loss(), table, table, config=auto, run_dir=tmp_path, resume="auto", progress="none")
    assert f"began in {here}, where this machine would compute in {there}; it goes on in {here}" in caplog.text
    assert_same(weights(model), expected)
    assert_same_history(again, history)


def test_tf32_is_set_for_a_while() -> None:
    held = torch.backends.cuda.matmul.fp32_precision
    for setting, expected in (("on", "tf32"), ("off", "ieee"), ("default", held)):
        with tensor_float32(setting):
            assert torch.backends.cuda.matmul.fp32_precision == expected
            if setting != "default":
                assert torch.backends.cudnn.conv.fp32_precision == expected
        assert torch.backends.cuda.matmul.fp32_precision == held
    with pytest.raises(ValueError, match="unknown tf32 'yes'"):
        TrainConfig(tf32="yes")


def test_steps_and_evaluations_have_the_tf32_of_the_settings(table: ImageTable) -> None:
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    fit(model, make_loss(), table, table, config=TrainConfig(**BASE | {"tf32": "on"}), progress="none")
    assert set(seen) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


def test_images_lie_as_the_weights_do(table: ImageTable) -> None:
    ends = []
    for name, layout in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        model = make_model()
        seen: list[bool] = []
        model.register_forward_pre_hook(
            lambda _, given, to=layout, by=seen: by.append(given[0].is_contiguous(memory_format=to))
        )
        config = TrainConfig(**BASE | {"epochs": 1, "optimizer": "sgd", "memory_format": name})
        fit(model, make_loss(), table, table, config=config, progress="none")
        assert all(seen)
        assert model.backbone.conv.weight.is_contiguous(memory_format=layout)
        ends.append(weights(model))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-3, atol=1e-4)


def test_what_was_chosen_is_shown(table: ImageTable, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_model(), make_loss(), table, config=TrainConfig(**BASE | {"epochs": 1, "precision": "auto"}))
    chosen = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    assert f"parameters in {chosen} (auto), channels_last, on cpu" in capsys.readouterr().err


# Compiled code


def test_full_batches_are_compiled_and_others_are_not(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    modes: list[Any] = []

    def fake(model: nn.Module, *, mode: str | None, dynamic: bool) -> Any:
        modes.append((mode, dynamic))

        def run(images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return model(images)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    expected, _ = whole(table, TrainConfig(**BASE))
    assert modes == []
    for mode, said in (("default", None), ("max-autotune", "max-autotune")):
        compiled, _ = whole(table, TrainConfig(**BASE | {"compile": mode}))
        assert_same(compiled, expected)
        assert modes.pop() == (said, False)
    assert sizes == [4] * 20  # 22 images are 5 full batches and one of 2, in 2 epochs, twice


@pytest.mark.parametrize("during", ["forward", "backward"])
def test_a_compiler_that_fails_is_named(table: ImageTable, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            if during == "forward":
                raise InductorError(RuntimeError("no C++ compiler"), None)
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            raise InductorError(RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda images: Fails.apply(model(images)))
    with pytest.raises(
        RuntimeError, match=r"compile='default' failed: InductorError: .*no C\+\+ compiler.*compile='none'"
    ):
        whole(table, TrainConfig(**BASE | {"compile": "default"}))


@pytest.mark.slow
def test_compiled_training_is_near_the_plain_one_and_resumes_exactly(table: ImageTable, tmp_path: Path) -> None:
    settings = BASE | {"compile": "default", "progressive_resize": (8,), "optimizer": "sgd"}

    def model() -> nn.Module:
        torch.manual_seed(7)
        made = create_model(Tiny(True), SPACE, image_size=12)
        made.backbone.drop.p = 0.0  # compiled code draws other masks
        return made

    ends = []
    for changes in ({}, {"compile": "none"}):
        each = model()
        fit(each, make_loss(), table, table, config=TrainConfig(**settings | changes), progress="none")
        ends.append(weights(each))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-2, atol=1e-3)
    config = TrainConfig(**settings | {"save_every": 4})
    events = train(model(), make_loss(), table, table, config=config, run_dir=tmp_path)
    assert next(event.step for event in events if event.kind == "checkpoint") == 4
    events.close()
    resumed = model()
    torch.compiler.reset()
    fit(resumed, make_loss(), table, table, config=config, run_dir=tmp_path, resume="auto", progress="none")
    assert_same(weights(resumed), ends[0])
