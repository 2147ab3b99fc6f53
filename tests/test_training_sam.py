"""SAM and GSAM: the papers' updates, together with everything else that a step does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from training_cases import SPACE, assert_same, make_batch, make_model, make_state, make_table, own_loss, weights

from mlabel.data import ImageTable
from mlabel.losses import BatchLoss, as_loss, total
from mlabel.training import TrainConfig, sharpen_gradient, train_step

PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5}
METHODS = ["sam", "gsam"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from([1.0, 1024.0]))
def test_the_papers_gradients_of_a_quadratic(seed: int, alpha: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    square, start = rng.normal(size=(5, 5)), rng.normal(size=5)
    square = square @ square.T
    one = nn.Parameter(torch.tensor(start[:2]))
    other = nn.Parameter(torch.tensor(start[2:]))

    def a_pass() -> float:
        for parameter in (one, other):
            parameter.grad = None
        w = torch.cat([one, other])
        value = 0.5 * w @ torch.tensor(square) @ w
        (scale * value).backward()  # as a loss scaler does
        return value.item()

    a_pass()
    loss = sharpen_gradient([one, other], a_pass, rho=0.3, alpha=alpha)
    here = square @ start
    place = start + 0.3 * here / np.linalg.norm(here)
    there = square @ place
    along = np.outer(there, there) / (there @ there)  # projects on the gradient there
    expected = there - alpha * (np.eye(5) - along) @ here
    assert loss == pytest.approx(0.5 * place @ there)
    np.testing.assert_allclose(np.concatenate([one.grad, other.grad]), scale * expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(np.concatenate([one.detach(), other.detach()]), start)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("halves", [False, True])
def test_a_step_is_the_papers_update(table: ImageTable, method: str, halves: bool) -> None:
    """Against derivatives of the whole batch's loss, taken by torch's own functions of the weights."""
    model = make_model(norm=False)
    model.backbone.drop.p = 0.0
    start, loss, whole = weights(model), own_loss(), make_batch(table, slice(0, 14))

    def gradient(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        held = {name: tensor.clone().requires_grad_() for name, tensor in at.items()}
        value = total(loss.parts(functional_call(model, held, (whole.images,)), whole.targets, whole.mask))
        return dict(zip(held, torch.autograd.grad(value, list(held.values())), strict=True))

    here = gradient(start)
    norm = math.sqrt(sum(float(each.square().sum()) for each in here.values()))
    there = gradient({name: tensor + 0.1 * here[name] / norm for name, tensor in start.items()})
    both = sum(float((here[name] * there[name]).sum()) for name in here)
    share = both / sum(float(each.square().sum()) for each in there.values())
    alpha = 0.3 if method == "gsam" else 0.0
    expected = {n: start[n] - 0.5 * (there[n] - alpha * (here[n] - share * there[n])) for n in start}

    batches = [make_batch(table, slice(0, 5)), make_batch(table, slice(5, 14))] if halves else [whole]
    state = make_state(model, **PLAIN, sharpness=method, rho=0.1, gsam_alpha=0.3)
    assert train_step(state, loss, batches, precision="fp32", learning_rate=0.5).finite
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    if method == "sam":  # and it is not what a plain step does
        assert not torch.allclose(
            model.head.linear.weight, start["head.linear.weight"] - 0.5 * here["head.linear.weight"]
        )


@pytest.mark.parametrize("method", METHODS)
def test_both_passes_have_the_same_dropout(table: ImageTable, method: str) -> None:
    """At no distance the second gradient is the first; with another dropout it were another one."""
    results = []
    for chosen in ("none", method):
        model = make_model()
        state = make_state(model, **PLAIN, sharpness=chosen, rho=1e-9)
        train_step(state, own_loss(), [make_batch(table, slice(0, 8))], precision="fp32", learning_rate=0.5)
        results.append(weights(model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_batch_statistics_are_of_the_first_pass_only(table: ImageTable, method: str) -> None:
    results = []
    for chosen in ("none", method):
        model = make_model()
        state = make_state(model, **PLAIN, sharpness=chosen, rho=5.0)
        train_step(state, own_loss(), [make_batch(table, slice(0, 8))], precision="fp32", learning_rate=0.5)
        results.append(dict(model.named_buffers()))
    assert_same(*results)


def failing(method: Callable[[torch.Tensor], torch.Tensor], at: int) -> BatchLoss:
    """Return a loss that is right but for its call number `at`."""
    calls = iter(range(100))

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        plain = (logits - targets).square()
        return method(plain) if next(calls) == at else plain

    return as_loss(loss, SPACE)


@pytest.mark.fault(35)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_not_finite_in_either_pass_changes_nothing(
    table: ImageTable, method: str, at: int, what: str, scaled: bool
) -> None:
    model = make_model()
    state = make_state(model, **PLAIN | {"momentum": 0.9}, sharpness=method, ema=0.5, clip_norm=1.0)
    state.scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
    batch = make_batch(table, slice(0, 8))
    train_step(state, own_loss(), [batch], precision="fp32", learning_rate=0.1)
    before, average = weights(model), {name: each.clone() for name, each in state.average.tensors.items()}
    velocity = [held["momentum_buffer"].clone() for held in state.optimizer.state.values()]

    # The slope of a square root at 0 is infinite, its value is not.
    broken = failing(lambda x: x * math.inf if what == "loss" else x + (x - x).abs().sqrt(), at)
    assert not train_step(state, broken, [batch], precision="fp32", learning_rate=0.1).finite
    assert_same(before, weights(model))
    assert_same(average, state.average.tensors)
    for held, expected in zip(state.optimizer.state.values(), velocity, strict=True):
        assert torch.equal(held["momentum_buffer"], expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    if scaled and what == "gradient":
        assert state.scaler.get_scale() == 512.0  # or the same overflow would come again


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_scaler_clipping_and_half_precision_change_little(table: ImageTable, method: str) -> None:
    results = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = make_model()
        state = make_state(model, **PLAIN, sharpness=method, rho=0.5, clip_norm=0.1, precision=precision)
        if precision == "fp16":
            state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        start = weights(model)
        batches = [make_batch(table, slice(0, 8)), make_batch(table, slice(8, 12))]
        assert train_step(state, own_loss(), batches, precision=precision, learning_rate=0.5).finite
        results[precision] = model.head.linear.weight.detach() - start["head.linear.weight"]
    assert 0 < float(results["fp32"].norm()) <= 0.5 * 0.1 + 1e-6  # clipped
    for precision in ("bf16", "fp16"):
        cosine = nn.functional.cosine_similarity(results["fp32"].flatten(), results[precision].flatten(), dim=0)
        assert float(cosine) > 0.99


def test_rho_shrinks_with_the_learning_rate(table: ImageTable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spy(parameters: Any, pass_there: Any, *, rho: float, alpha: float) -> float:
        seen.append(rho)
        return 0.0

    monkeypatch.setattr("mlabel.training.step.sharpen_gradient", spy)
    for rho_min in (None, 0.1):
        state = make_state(make_model(), **PLAIN, sharpness="sam", rho=0.5, rho_min=rho_min)
        for rate, scale in ((0.5, 1.0), (0.25, 1.0), (0.5, 0.25), (0.0, 1.0), (0.5, 3.0)):
            state.lr_scale = scale
            train_step(state, own_loss(), [make_batch(table, slice(0, 4))], precision="fp32", learning_rate=rate)
    assert seen == pytest.approx([0.5] * 5 + [0.5, 0.3, 0.2, 0.1, 0.5])  # of a raised rate it is no larger


def test_settings_are_checked() -> None:
    for name, value in [("sharpness", "sams"), ("rho", 0.0), ("rho_min", 0.06), ("gsam_alpha", 1.5)]:
        with pytest.raises(ValueError, match=name):
            TrainConfig(**{name: value})
