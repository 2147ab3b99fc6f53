"""The average of the weights: right by hand, judged in the weights' place, and in nobody's way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_cases import BASE, SPACE, assert_same, make_batch, make_loss, make_model, make_state, make_table, own_loss
from training_cases import weights as weights_of

from mlabel.data import ImageTable
from mlabel.losses import as_loss
from mlabel.training import (
    TrainConfig,
    WeightAverage,
    best_checkpoint,
    fit,
    load_weights,
    newest_checkpoint,
    score_table,
    train,
    train_step,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    return make_table(tmp_path_factory.mktemp("images"))


def test_an_average_by_hand() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.15)
    expected = 1.0
    for number, decay in enumerate([1 / 10, 0.15, 0.15]):  # 2 / 11 and 3 / 12 are more than 0.15
        with torch.no_grad():
            model.weight.fill_(number + 3.0)
            model.running_var.fill_(number + 3.0)
            model.num_batches_tracked.fill_(number + 3)
        average.update(model, number)
        expected = decay * expected + (1 - decay) * (number + 3.0)
        assert float(average.tensors["weight"]) == pytest.approx(expected, rel=1e-6)
        assert float(average.tensors["running_var"]) == pytest.approx(expected, rel=1e-6)
        assert int(average.tensors["num_batches_tracked"]) == number + 3


def test_without_warm_up_it_is_torchs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    # Below a tenth the warm-up has no say.
    average, reference = (
        WeightAverage(model, decay=0.08),
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.08)),
    )
    reference.update_parameters(model)  # its first update copies
    for number in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model, number)
        reference.update_parameters(model)
    torch.testing.assert_close(average.tensors, dict(reference.module.state_dict()))


def test_half_precision_is_averaged_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).half()
    average = WeightAverage(model, decay=0.9999)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.add_(0.25)
    for _ in range(50):
        average.update(model, 10**6)
    assert float(average.tensors["weight"]) == pytest.approx(start + 0.25 * (1 - 0.9999**50), abs=1e-5)


def test_in_place_of_gives_the_own_weights_back() -> None:
    model = make_model()
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.mul_(3)
    own = weights_of(model)

    def fail() -> None:
        with average.in_place_of(model):
            assert_same(weights_of(model), average.tensors)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_same(weights_of(model), own)


@pytest.mark.fault(35)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_leaves_the_average(table: ImageTable, precision: str) -> None:
    model = make_model()
    state = make_state(model, ema=0.9, precision=precision)
    batch = make_batch(table, slice(0, 8))
    train_step(state, own_loss(), [batch], precision=precision, learning_rate=0.1)
    before = {name: tensor.clone() for name, tensor in state.average.tensors.items()}
    broken = as_loss(lambda logits, targets: (logits - logits).abs().sqrt(), SPACE)
    assert not train_step(state, broken, [batch], precision=precision, learning_rate=0.1).finite
    assert_same(before, state.average.tensors)
    # Nor does it count in the warm-up: the next is update 1, whose decay is 2 / 11.
    train_step(state, own_loss(), [batch], precision=precision, learning_rate=0.1)
    name = "head.linear.weight" if "head.linear.weight" in before else next(n for n in before if n.startswith("head"))
    expected = 2 / 11 * before[name] + 9 / 11 * model.state_dict()[name]
    torch.testing.assert_close(state.average.tensors[name], expected)


def test_the_average_is_judged_and_kept_and_training_is_the_same(table: ImageTable, tmp_path: Path) -> None:
    settings = BASE | {"schedule": "constant", "eval_every": 4}
    plain = make_model()
    fit(plain, make_loss(), table, table, config=TrainConfig(**settings), progress="none")
    model = make_model()
    with_average = TrainConfig(**settings | {"ema": 0.9})
    trained = None
    for event in train(model, make_loss(), table, table, config=with_average, run_dir=tmp_path):
        trained, history = event.state, event.state.history
    assert trained is not None
    assert_same(weights_of(model), weights_of(plain))  # in `train`, the model has its own weights
    best, newest = best_checkpoint(tmp_path), newest_checkpoint(tmp_path)
    assert best is not None
    load_weights(best, model)
    judged = next(entry for entry in history if entry["step"] == int(best.name[5:]))
    assert score_table(model, table, own_loss(), batch_size=4, precision="fp32").loss == judged["val_loss"]
    load_weights(newest, model)
    assert_same(weights_of(model), trained.average.tensors)
    load_weights(newest, model, weights="last")
    assert_same(weights_of(model), weights_of(plain))
    with pytest.raises(ValueError, match="unknown weights 'lst'; did you mean 'last'"):
        load_weights(newest, model, weights="lst")
    # `fit` leaves what was judged in the model.
    fit(model, make_loss(), table, table, config=with_average, run_dir=tmp_path, resume="auto", progress="none")
    assert_same(weights_of(model), trained.average.tensors)


def test_the_decay_is_checked() -> None:
    for value in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="ema must be from 0 to below 1"):
            TrainConfig(ema=value)
