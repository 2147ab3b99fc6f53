"""A step by itself: what plain torch does, seeded by its place, and the same whatever lies how in memory."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import SPACE, assert_same, make_batch, make_model, make_state, make_table, own_loss, weights

from mlabel.data import Batch, ImageTable
from mlabel.losses import as_loss, total
from mlabel.training import train_step
from mlabel.training.distributed import Ranks
from mlabel.training.gradients import GradientSum
from mlabel.training.optimisers import in_memory_order
from mlabel.training.state import TrainState
from mlabel.training.step import StepResult, forward

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


def step(state: TrainState, *batches: Batch, rate: float = 0.5, **options: Any) -> StepResult:
    return train_step(state, own_loss(), batches, precision=state.precision, learning_rate=rate, **options)


@pytest.mark.parametrize("clip", [None, 0.01, 100.0])
@pytest.mark.parametrize("rows", [8, 1])
def test_a_step_is_what_a_plain_loop_does(table: ImageTable, clip: float | None, rows: int) -> None:
    batch = make_batch(table, slice(0, rows))
    known = torch.ones(rows, 5, dtype=torch.bool)
    known[0, :2] = False
    batch = replace(batch, mask=known)
    model, plain = make_model(norm=rows > 1), make_model(norm=rows > 1)
    model.backbone.drop.p = plain.backbone.drop.p = 0.0
    state = make_state(model, **SGD | {"momentum": 0.9, "weight_decay": 0.1}, clip_norm=clip)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1)
    for rate in (0.5, 0.25, 0.125):
        optimizer.param_groups[0]["lr"] = rate
        parts = own_loss().parts(plain(batch.images), batch.targets, batch.mask)
        loss = total(parts)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        result = step(state, batch, rate=rate)
        assert result.finite
        assert (result.bad_parameters, result.bad_gradients) == ((), ())
        assert result.loss == pytest.approx(loss.item(), rel=1e-6)
        for name, (value, denominator) in parts.items():
            assert result.parts[name] == pytest.approx((value.item(), denominator.item()), rel=1e-6)
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (state.step, state.skipped, state.updates) == (3, 0, 3)
    assert state.train_loss > 0


def test_a_loss_is_that_of_all_its_batches(table: ImageTable) -> None:
    found = []
    for cuts in ([0, 4, 5, 12], [0, 12]):
        state = make_state(make_model(norm=False))
        state.model.backbone.drop.p = 0.0
        batches = [make_batch(table, slice(*rows)) for rows in itertools.pairwise(cuts)]
        result = step(state, *batches)
        assert result.parts["tags"][1] == 36.0
        assert result.parts["kind"][1] == 11.0  # of one it is not known
        assert result.loss == pytest.approx(sum(value / number for value, number in result.parts.values()))
        found.append(result.parts)
    for name, part in found[0].items():
        assert part == pytest.approx(found[1][name], rel=1e-6)


def test_the_network_that_computes_may_be_another(table: ImageTable) -> None:
    state, sizes = make_state(make_model()), []

    def network(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return state.model(images)

    state.network = network
    step(state, make_batch(table, slice(0, 8)), make_batch(table, slice(8, 12)))
    assert sizes == [8, 4]


def test_gradients_leave_from_the_last_backward_pass_on(table: ImageTable) -> None:
    passes, told = [], []

    class Told(GradientSum):
        def watch(self, model: nn.Module) -> None:
            told.append(("watch", model, len(passes)))

        def finish(self) -> None:
            told.append(("finish", len(passes)))

    state = make_state(make_model())
    state.model.head.linear.bias.register_hook(lambda gradient: passes.append(1))
    step(state, *(make_batch(table, slice(row, row + 4)) for row in (0, 4, 8)), gradients=Told(Ranks()))
    assert told == [("watch", state.model, 2), ("finish", 3)]


def test_the_rate_of_a_group_has_its_factor_and_the_states(table: ImageTable) -> None:
    state = make_state(make_model(), **SGD)
    bias = state.optimizer.param_groups[0]["params"].pop()
    state.optimizer.add_param_group({"params": [bias], "lr_scale": 0.25})
    del state.optimizer.param_groups[0]["lr_scale"]
    state.lr_scale = 0.5
    step(state, make_batch(table, slice(0, 8)), rate=0.8)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.4, 0.1]


class Rank(GradientSum):
    """Of one rank among others, without the others."""

    def __init__(self, rank: int) -> None:
        super().__init__(Ranks(rank=rank))


def test_both_passes_of_sam_have_the_dropout_of_their_rank(table: ImageTable) -> None:
    ends = []
    for method in ("none", "sam"):
        state = make_state(make_model(), **SGD, sharpness=method, rho=1e-9)
        step(state, make_batch(table, slice(0, 8)), gradients=Rank(1))
        ends.append(weights(state.model))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-5, atol=1e-6)


def test_dropout_follows_from_seed_step_and_rank_alone(table: ImageTable) -> None:
    def drawn(seed: int = 0, at: int = 0, gradients: GradientSum | None = None) -> tuple[int, float]:
        torch.manual_seed(int(torch.randint(10**6, ())))  # whatever was drawn before has no say
        state = make_state(make_model(), seed=seed)
        state.step = at
        result = step(state, make_batch(table, slice(0, 8)), gradients=gradients)
        return torch.initial_seed(), result.loss

    found = [drawn(), drawn(seed=1), drawn(at=1), drawn(gradients=Rank(1)), drawn(gradients=Rank(2))]
    assert len(set(found)) == len({seed for seed, _ in found}) == len({loss for _, loss in found}) == 5
    assert drawn() == found[0] == drawn(gradients=Rank(0))
    assert drawn(gradients=Rank(2)) == found[4]
    # Trainings of earlier versions go on with the dropout that they would have had.
    assert [hex(seed) for seed, _ in found[:4]] == [
        "0x49248ebd04b84fb5",
        "0x8e3d3541f9b9a4a5",
        "0xb1dab70f0c8056b6",
        "0xc6a40971cf0afdc7",
    ]


class EveryRankPasses(GradientSum):
    """Of ranks that wait for one another in each forward pass."""

    every_rank_passes = True


def empty_batch(table: ImageTable) -> Batch:
    """Return what a rank has where the others have the images."""
    batch = make_batch(table, slice(0, 1))
    return replace(batch, images=batch.images[:0], targets=batch.targets[:0], mask=None, index=batch.index[:0])


def test_batches_that_are_empty_change_nothing(table: ImageTable) -> None:
    batch, empty = make_batch(table, slice(0, 8)), empty_batch(table)
    ends = []
    for batches, gradients in (
        ([batch], None),
        ([batch, empty], None),
        ([empty, batch], None),
        ([empty, batch], EveryRankPasses(Ranks())),
    ):
        state = make_state(make_model(), **SGD)
        state.model.backbone.drop.p = 0.0
        result = step(state, *batches, gradients=gradients)
        ends.append((weights(state.model), result.loss))
    for end, loss in ends[1:]:
        assert loss == ends[0][1]
        assert_same(ends[0][0], end)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("waits", ["not", "in each pass", "in shared norms"])
def test_a_step_of_nothing_changes_no_weight(
    table: ImageTable, monkeypatch: pytest.MonkeyPatch, precision: str, waits: str
) -> None:
    state = make_state(make_model(norm=waits != "in shared norms"), **SGD, precision=precision)
    before, seen = weights(state.model), []
    state.model.backbone.conv.register_forward_hook(lambda _, given, found: seen.append((len(given[0]), found.dtype)))
    monkeypatch.setattr("mlabel.training.step.has_shared_norms", lambda model: waits == "in shared norms")
    gradients = EveryRankPasses(Ranks()) if waits == "in each pass" else None
    result = step(state, empty_batch(table), gradients=gradients)
    assert (result.finite, result.loss) == (True, 0.0)
    assert_same(before, weights(state.model))
    # Two images, of which a batch norm has statistics; shared ones have those of other ranks.
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen == {"not": [], "in each pass": [(2, dtype)], "in shared norms": [(0, dtype)]}[waits]
    assert state.scaler.get_scale() == (65536.0 if precision == "fp16" else 1.0)


def test_what_is_not_finite_is_named(table: ImageTable) -> None:
    state = make_state(make_model(), **SGD)
    with torch.no_grad():
        state.model.head.linear.bias[1] = math.nan
    result = step(state, make_batch(table, slice(0, 8)))
    assert not result.finite
    assert result.bad_parameters == ("head.linear.bias",)
    assert "head.linear.weight" in result.bad_gradients
    assert math.isnan(result.loss)
    assert (state.step, state.skipped, state.skipped_in_a_row, state.running) == (1, 1, 1, {})
    step(state, make_batch(table, slice(0, 8)))
    assert (state.step, state.skipped, state.skipped_in_a_row, state.running) == (2, 2, 2, {})
    with torch.no_grad():
        state.model.head.linear.bias[1] = 0.0
    result = step(state, make_batch(table, slice(0, 8)))
    assert (result.finite, result.bad_parameters, result.bad_gradients) == (True, (), ())
    assert (state.step, state.skipped, state.skipped_in_a_row) == (3, 2, 0)


def test_of_gradients_the_ones_that_are_not_finite_are_named(table: ImageTable) -> None:
    state = make_state(make_model(), **SGD)
    state.model.backbone.conv.bias.register_hook(lambda gradient: gradient * math.inf)
    state.model.backbone.norm.bias.requires_grad_(False)  # which has none
    result = step(state, make_batch(table, slice(0, 8)))
    assert (result.finite, result.bad_parameters, result.bad_gradients) == (False, (), ("backbone.conv.bias",))


def test_buffers_of_a_bad_step_are_put_back_whatever_their_type(table: ImageTable) -> None:
    model = make_model()
    model.backbone.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
    model.backbone.register_forward_pre_hook(lambda module, _: setattr(module, "seen", module.seen.add_(1)))
    state = make_state(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    held = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    broken = as_loss(lambda logits, targets: logits * math.nan, SPACE)
    train_step(state, broken, [make_batch(table, slice(0, 8))], precision="fp32", learning_rate=0.1)
    assert_same(before, dict(model.named_buffers()))
    assert held == {name: buffer.data_ptr() for name, buffer in model.named_buffers()}


# Forward


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_forward_computes_in_its_precision_by_what_it_is_given(table: ImageTable, precision: str) -> None:
    model, batch = make_model().eval(), make_batch(table, slice(0, 4))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    logits = forward(model, batch, precision)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), model(batch.images), rtol=0.02, atol=0.02)
    doubled = forward(model, batch, precision, network=lambda images: 2 * model(images))
    torch.testing.assert_close(doubled, 2 * logits)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_images_get_the_layout_of_the_weights(table: ImageTable, layout: torch.memory_format) -> None:
    model, batch = make_model().to(memory_format=layout), make_batch(table, slice(0, 4))
    seen: list[torch.Tensor] = []
    forward(model, batch, "fp32", network=lambda images: seen.append(images) or model(images))
    assert seen[0].is_contiguous(memory_format=layout)
    assert torch.equal(seen[0], batch.images)
    model.backbone.more = nn.Conv2d(4, 4, 3).to(memory_format=torch.contiguous_format)
    forward(model, batch, "fp32", network=lambda images: seen.append(images) or model(images))
    assert seen[1].is_contiguous()  # of those that differ, the ones that lie otherwise decide


# Memory order


def lies_as(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.shape == other.shape and tensor.stride() == other.stride()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adamax"])
@pytest.mark.parametrize("mixed", [False, True])
def test_how_weights_lie_in_memory_does_not_change_the_step(optimizer: str, mixed: bool) -> None:
    torch.manual_seed(0)
    gradients = [[torch.randn(8, 3, 3, 3), torch.randn(5, 8), None] for _ in range(3)]
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = make_model().to(memory_format=layout)
        state = make_state(model, optimizer=optimizer)
        for given in gradients:
            parameters = (model.backbone.conv.weight, model.head.linear.weight, model.backbone.conv.bias)
            for parameter, gradient in zip(parameters, given, strict=True):
                if gradient is not None and gradient.ndim == 4:
                    gradient = gradient.contiguous(memory_format=torch.contiguous_format if mixed else layout)
                parameter.grad = gradient
            before = {name: (tensor, tensor.data_ptr()) for name, tensor in model.named_parameters()}
            with in_memory_order(state.optimizer):
                state.optimizer.step()
            for name, tensor in model.named_parameters():
                assert tensor is before[name][0]
                assert tensor.data_ptr() == before[name][1]
        weight = model.backbone.conv.weight
        assert weight.is_contiguous(memory_format=layout)
        assert weight.grad.shape == weight.shape
        for held in state.optimizer.state[weight].values():
            assert held.ndim == 0 or lies_as(held, weight)
        ends.append(weights(model))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-6, atol=1e-7)


def test_what_fails_in_a_step_leaves_weights_as_they_lay() -> None:
    model = make_model().to(memory_format=torch.channels_last)
    state, weight = make_state(model), model.backbone.conv.weight
    weight.grad = torch.randn_like(weight)
    state.optimizer.step()
    expected, gradient, before = weight.detach().clone(), weight.grad, copy.deepcopy(state.optimizer.state_dict())

    def fail() -> None:
        with in_memory_order(state.optimizer):
            assert weight.shape == (8, 3, 3, 3)
            assert weight.is_contiguous()
            assert weight.grad.is_contiguous()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert lies_as(weight, expected)
    assert torch.equal(weight, expected)
    assert torch.equal(weight.grad, gradient)
    torch.testing.assert_close(state.optimizer.state_dict(), before)
