"""Several processes train as one does: the same weights, metrics and history, and each image once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import end_of_ranks, on_ranks
from torch import nn

from mlabel.data import ImageTable, RepeatSampler
from mlabel.labels import Group, LabelSpace
from mlabel.losses import as_loss, create
from mlabel.models import Classifier, create_model
from mlabel.training import GradientSum, TrainConfig, distributed, fit, join_ranks, list_checkpoints, score_table, train
from mlabel.training.distributed import Ranks, leave_ranks

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 97, 101)
BASE: dict[str, Any] = {"epochs": 2, "batch_size": 7, "lr": 0.05, "precision": "fp32", "optimizer": "sgd"}


class Tiny(nn.Module):
    """One convolution, without batch statistics unless asked for, and a layer that nothing flows through."""

    num_features = 8

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.unused = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)).relu().mean((2, 3))


def make_model(norm: bool = False, seed: int = 7) -> Classifier:
    torch.manual_seed(seed)
    return create_model(Tiny(norm), SPACE, image_size=12)


def make_table(folder: Path, size: int = 101) -> ImageTable:
    """Return a table of `size` images, of some of which not everything is known."""
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = [folder / "images" / f"{number:03d}.png" for number in range(size)]
    for path in paths:
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        pixels[0, 0, 0] = int(path.stem)
        if not path.exists():
            Image.fromarray(pixels).save(path)
    rng = np.random.default_rng(1)
    tags = rng.random((101, 3)) < 0.4
    kind = np.eye(2)[rng.integers(0, 2, 101)]
    kind[3::4] = 0  # of these the kind is not known
    return ImageTable(paths=paths, targets=np.hstack([tags, kind]).astype(np.uint8)[:size], space=SPACE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_table(folder)
    return folder


def note_images(model: Classifier, seen: list[int]) -> None:
    """Note every image that goes through the model, which its first pixel tells."""
    model.register_forward_pre_hook(lambda _, given: seen.extend(given[0][:, 0, 0, 0].tolist()))


CASES: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.9},
    "accumulated": {"optimizer": "adamw", "clip_norm": 0.5, "accumulate": 3, "lr": 0.01},
    "repeats": {"sampler": "repeat_factor", "repeat_threshold": 0.9, "augment": "flip", "eval_every": 3},
    "plateau": {"schedule": "plateau", "step_size": 1, "patience": 2, "lr": 1e-9, "epochs": 6},
    "frozen": {"batch_norm": "frozen", "batch_size": 2},
    "one row": {"batch_size": 1, "epochs": 1},
    "layers": {"freeze": "conv", "unfreeze_epoch": 1, "layer_decay": 0.5, "monitor": "loss"},
    "averaged": {"ema": 0.9, "sharpness": "gsam", "accumulate": 2},
    "resized": {"progressive_resize": (8,), "batch_size": 2},
    "workers": {"num_workers": 1, "sampler": "sequential"},
}


def train_in_many_ways(folder: Path) -> dict[str, Any]:
    """Train in each way of CASES, and on tables of each of SIZES; return what came of it."""
    given: dict[str, Any] = {}
    for name, settings in CASES.items():
        # Each rank begins with weights of its own; those of the first must be taken.
        model = make_model(norm=name == "frozen", seed=7 + join_ranks("cpu").rank)
        table, config = make_table(folder, 23), TrainConfig(**BASE | settings)
        history = fit(model, create("asymmetric", space=SPACE), table, table, config=config, progress="none")
        given[name] = {"weights": dict(model.state_dict()), "history": history}
    given["sizes"] = {size: train_and_score(make_table(folder, size)) for size in SIZES}
    return given


def train_and_score(table: ImageTable) -> dict[str, Any]:
    """Train an epoch on a table and score it; return what was seen and what came of it."""
    trained: list[int] = []
    scored: list[int] = []
    model, loss, ranks = make_model(), create("binary_cross_entropy", space=SPACE), join_ranks("cpu")
    note_images(model, trained)
    config = TrainConfig(**BASE | {"epochs": 1, "batch_size": min(len(table), 4)})
    events = list(train(model, loss, table, config=config, device="cpu"))
    model._forward_pre_hooks.clear()
    note_images(model, scored)
    scores = score_table(model, table, as_loss(loss, SPACE), batch_size=3, precision="fp32", ranks=ranks)
    return {
        "trained": trained,
        "scored": scored,
        "steps": [event.loss for event in events if event.kind == "step"],
        "weights": dict(model.state_dict()),
        "loss": scores.loss,
        "rows": scores.rows.tolist(),
        "scores": torch.from_numpy(scores.probabilities.copy()),
    }


def assert_near(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=1e-6)


def assert_near_history(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6, nan_ok=True)


def do_all(folder: Path) -> dict[str, Any]:
    """Do all of it at once: that a process starts costs more than what it then does."""
    return {"many": train_in_many_ways(folder), "odd": do_odd_things(folder)}


@pytest.fixture(scope="module")
def of_one(folder: Path) -> dict[str, Any]:
    return train_in_many_ways(folder)


MANY = [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MANY)
def of_ranks(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    return on_ranks(do_all, request.param, folder)


@pytest.fixture
def of_many(of_ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [given["many"] for given in of_ranks]


@pytest.mark.fault(37)
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_as_one(of_one: dict[str, Any], of_many: list[dict[str, Any]], case: str) -> None:
    for given in of_many:
        assert_near(given[case]["weights"], of_one[case]["weights"])
        assert_near_history(given[case]["history"], of_one[case]["history"])
        assert given[case]["history"] == of_many[0][case]["history"]
        for name, tensor in given[case]["weights"].items():
            assert torch.equal(tensor, of_many[0][case]["weights"][name]), name


@pytest.mark.fault(37)
@pytest.mark.parametrize("size", SIZES)
def test_each_image_is_seen_once_and_scored_once(
    of_one: dict[str, Any], of_many: list[dict[str, Any]], size: int
) -> None:
    alone = of_one["sizes"][size]
    ranks = [given["sizes"][size] for given in of_many]
    for key in ("trained", "scored"):
        assert sorted(alone[key]) == sorted(number for rank in ranks for number in rank[key]) == list(range(size))
    for rank in ranks:
        assert rank["steps"] == pytest.approx(alone["steps"], rel=1e-6)
        assert_near(rank["weights"], alone["weights"])
        assert rank["rows"] == alone["rows"] == list(range(size))
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    torch.testing.assert_close(ranks[0]["scores"], alone["scores"], rtol=1e-6, atol=1e-6)
    assert all(rank["scores"].isnan().all() for rank in ranks[1:])


def do_odd_things(folder: Path) -> dict[str, Any]:
    """Return what becomes of batch norms, steps that are not finite, bad images, large arrays, other data."""
    return {
        "norms": _train_norms(folder, 11),
        "few": _train_norms(folder, 3),
        "not finite": _train_not_finite(folder),
        "bad": _train_bad(folder),
        "scores": _score_the_same(folder),
        "refused": _train_different(folder),
        "gradients": _add_gradients(),
        "arrays": _collect_arrays(),  # after it each process is alone
    }


def _train_norms(folder: Path, batch_size: int) -> dict[str, Any]:
    model, table = make_model(norm=True), make_table(folder, 22)
    seen: list[torch.Tensor] = []
    model.backbone.conv.register_forward_hook(lambda module, _, values: seen.append(values.detach()))
    config = TrainConfig(**BASE | {"epochs": 1, "batch_size": batch_size, "sampler": "sequential"})
    events = train(model, create("asymmetric", space=SPACE), table, config=config, device="cpu")
    next(events)
    events.close()
    return {
        "buffers": dict(model.named_buffers()),
        "maps": seen[0] if seen else None,
        "norm": type(model.backbone.norm).__name__,
    }


def _train_not_finite(folder: Path) -> dict[str, Any]:
    table, ranks, steps = make_table(folder, 23), join_ranks("cpu"), []

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        factor = float("nan") if len(steps) == 3 and ranks.rank == min(1, ranks.size - 1) else 1.0
        return logits.square() * factor

    model = make_model()
    *_, end = train(model, broken, table, config=TrainConfig(**BASE), device="cpu")
    never = torch.tensor(float("nan"))
    with pytest.raises(RuntimeError, match="10 steps in a row") as error:
        fit(make_model(), lambda x, t: x * never, table, config=TrainConfig(**BASE | {"epochs": 9}), progress="none")
    return {"weights": dict(model.state_dict()), "skipped": end.state.skipped, "error": str(error.value)}


def _train_bad(folder: Path) -> dict[str, Any]:
    ranks = join_ranks("cpu")
    run_dir = folder / f"bad-{ranks.size}"
    paths = [str(path) for path in make_table(folder, 23).paths]
    for row in (0, 5, 6, 20):
        paths[row] = str(folder / f"none-{row}.png")
    whole = make_table(folder, 23)
    table = ImageTable(paths=paths, ids=whole.ids, targets=whole.targets, unknown=whole.unknown, space=SPACE)
    given: dict[str, Any] = {}
    for batch_size in (3, 7):
        model, settings = make_model(), BASE | {"on_bad": "skip", "max_bad": 0.2, "batch_size": batch_size}
        config = TrainConfig(**settings)
        loss = create("asymmetric", space=SPACE)
        fit(model, loss, table, table, config=config, run_dir=run_dir / f"{batch_size}", progress="none")
        given[str(batch_size)] = dict(model.state_dict())
    with pytest.raises(ValueError, match=r"[34] of 23 images cannot be read, more than max_bad \(10\.00%\)"):
        fit(make_model(), loss, table, config=TrainConfig(**settings | {"max_bad": 0.1}), progress="none")
    bad: list[Any] = []
    options = {"batch_size": 4, "on_bad": "skip", "ranks": ranks}
    with pytest.raises(ValueError, match="of 23 images cannot be read, more than max_bad"):
        score_table(model, table, **options)
    score_table(model, table, **options, max_bad=0.2, bad=bad)
    given["scoring"] = [image.id for image in bad]
    return given


def _score_the_same(folder: Path) -> dict[str, Any]:
    """Score with the same weights: then not even the last bit may differ."""
    model, table, ranks = make_model(), make_table(folder), join_ranks("cpu")
    loss = as_loss(create("asymmetric", space=SPACE), SPACE)
    scores = score_table(model, table, loss, batch_size=8, precision="fp32", ranks=ranks)
    return {"loss": scores.loss, "probabilities": torch.from_numpy(scores.probabilities.copy())}


def _train_different(folder: Path) -> str:
    ranks = join_ranks("cpu")
    table = make_table(folder, 20 + ranks.rank)
    if ranks.size == 1:
        return ""
    with pytest.raises(ValueError, match=r"ranks 0 and 1 were not given the same \(the train table: ") as error:
        fit(make_model(), create("asymmetric", space=SPACE), table, config=TrainConfig(**BASE), progress="none")
    return str(error.value)


def _add_gradients() -> dict[str, Any]:
    """Add gradients in buckets of two parameters: of one that all have, one that the first has, one that nobody has."""
    ranks = join_ranks("cpu")
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.ones(2, 2)) for name in ("1 nobody", "2 first", "3 all", "4 late")}
    )
    model["frozen"] = nn.Parameter(torch.ones(3), requires_grad=False)
    gradients = GradientSum(ranks, bucket_bytes=32)
    given: dict[str, Any] = {}
    for turn in (1.0, 2.0):
        for parameter in model.parameters():
            parameter.grad = None
        gradients.watch(model)
        values = [model["4 late"] * 5, model["3 all"] * (ranks.rank + turn)]
        (sum(values) + (model["2 first"] * 3 if ranks.first else 0)).sum().backward()
        given["sent early"] = gradients._sent
        gradients.finish()
        given[str(turn)] = {name: None if p.grad is None else p.grad.clone() for name, p in model.items()}
    model["4 late"].requires_grad_(False)
    model["frozen"].requires_grad_(True)  # as many as before, but others
    gradients.watch(model)
    model["frozen"].sum().backward()
    gradients.finish()
    given["frozen"] = model["frozen"].grad
    gradients.close()
    (model["frozen"].sum() * 0).backward()
    return given


def _collect_arrays() -> list[torch.Tensor]:
    ranks = join_ranks("cpu")
    distributed._MESSAGE_BYTES = 64
    arrays = ranks.collect(np.full((5 * ranks.rank, 3), ranks.rank, dtype=np.float32))
    assert ranks.gather({"rank": ranks.rank}) == [{"rank": rank} for rank in range(ranks.size)]
    assert ranks.from_first([ranks.rank, float("inf")]) == [0, float("inf")]
    assert ranks.add({"a": 1.0, "b": float(ranks.rank)}) == {"a": ranks.size, "b": sum(range(ranks.size))}
    assert ranks.largest(ranks.rank) == ranks.size - 1
    with ranks.first_before_others():
        pass
    leave_ranks()
    assert join_ranks("cpu") == Ranks()
    return [torch.from_numpy(array) for array in arrays]


@pytest.fixture(scope="module")
def odd_of_one(folder: Path) -> dict[str, Any]:
    return do_odd_things(folder)


@pytest.fixture
def odd_of_many(of_ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [given["odd"] for given in of_ranks]


def test_batch_norms_use_their_own_share_and_keep_the_mean(odd_of_many: list[dict[str, Any]]) -> None:
    maps = [given["norms"]["maps"] for given in odd_of_many]
    assert sum(map(len, maps)) == 11
    mean = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
    variance = torch.stack([each.var((0, 2, 3)) for each in maps]).mean(0)
    for given in odd_of_many:
        held = given["norms"]["buffers"]
        torch.testing.assert_close(held["backbone.norm.running_mean"], 0.1 * mean)
        torch.testing.assert_close(held["backbone.norm.running_var"], 0.9 + 0.1 * variance)
        assert held["backbone.norm.num_batches_tracked"] == 1
        assert given["norms"]["norm"] == "BatchNorm2d"


def test_a_rank_without_images_has_no_say_in_the_statistics(
    odd_of_one: dict[str, Any], odd_of_many: list[dict[str, Any]]
) -> None:
    assert [given["few"]["maps"] is None for given in odd_of_many] == [False] + [True] * (len(odd_of_many) - 1)
    for given in odd_of_many:
        assert_near(given["few"]["buffers"], odd_of_one["few"]["buffers"])


@pytest.mark.fault(37)
def test_a_step_not_finite_on_one_rank_is_skipped_by_all(
    odd_of_one: dict[str, Any], odd_of_many: list[dict[str, Any]]
) -> None:
    alone = odd_of_one["not finite"]
    assert alone["skipped"] == 1
    for given in odd_of_many:
        assert given["not finite"]["skipped"] == 1
        assert_near(given["not finite"]["weights"], alone["weights"])
        named = given["not finite"]["error"].split("[")[1]
        assert sorted(named.split("]")[0].split(", ")) == sorted(alone["error"].split("[")[1].split("]")[0].split(", "))


@pytest.mark.fault(37)
def test_bad_images_of_all_ranks_are_listed_and_left_out(
    folder: Path, odd_of_one: dict[str, Any], odd_of_many: list[dict[str, Any]]
) -> None:
    size = len(odd_of_many)
    for batch_size in (3, 7):
        for given in odd_of_many:
            assert_near(given["bad"][str(batch_size)], odd_of_one["bad"][str(batch_size)])
        lists = [folder / f"bad-{each}" / f"{batch_size}" / "bad.jsonl" for each in (1, size)]
        one, many = ([json.loads(line) for line in path.read_text().splitlines()] for path in lists)
        assert sorted(map(str, one)) == sorted(map(str, many))
        assert len(one) >= 8
    assert all(given["bad"]["scoring"] == odd_of_one["bad"]["scoring"] for given in odd_of_many)


def test_gradients_are_added_and_stay_away_where_nobody_has_one(odd_of_many: list[dict[str, Any]]) -> None:
    size = len(odd_of_many)
    for given in (each["gradients"] for each in odd_of_many):
        for turn in (1.0, 2.0):
            found = given[str(turn)]
            assert torch.equal(found["3 all"], torch.full((2, 2), sum(range(size)) + size * turn))
            assert torch.equal(found["4 late"], torch.full((2, 2), 5.0 * size))
            assert torch.equal(found["2 first"], torch.full((2, 2), 3.0))
            assert found["1 nobody"] is None
            assert found["frozen"] is None
        assert torch.equal(given["frozen"], torch.full((3,), float(size)))
        assert given["sent early"] == 1  # of two buckets: the other one waits for what nobody has a gradient of


def test_scores_are_bit_for_bit_those_of_one_process(
    odd_of_one: dict[str, Any], odd_of_many: list[dict[str, Any]]
) -> None:
    assert torch.equal(odd_of_many[0]["scores"]["probabilities"], odd_of_one["scores"]["probabilities"])
    assert {given["scores"]["loss"] for given in odd_of_many} == {odd_of_one["scores"]["loss"]}


def test_ranks_with_other_data_are_refused_by_all(odd_of_many: list[dict[str, Any]]) -> None:
    assert len({given["refused"] for given in odd_of_many}) == 1
    assert "on the same data" in odd_of_many[0]["refused"]


def test_arrays_of_any_length_come_to_the_first(odd_of_many: list[dict[str, Any]]) -> None:
    arrays = odd_of_many[0]["arrays"]
    assert [array.shape for array in arrays] == [(5 * rank, 3) for rank in range(len(odd_of_many))]
    assert all((array == rank).all() for rank, array in enumerate(arrays))
    assert all(given["arrays"] == [] for given in odd_of_many[1:])


STOPPED = BASE | {"save_every": 2, "epochs": 3, "momentum": 0.9, "schedule": "constant"}


def train_until_signal(
    rank: int, folder: Path, run_dir: Path, signals: dict[int, int], settings: Mapping[str, Any] = {}
) -> None:
    """Train, each rank sending itself the signal that is meant for it in the fifth step."""
    calls: list[int] = []
    inner = create("asymmetric", space=SPACE)

    class Fatal(nn.Module):
        def parts(self, *given: Any) -> Any:
            return inner.parts(*given)

        def denominators(self, *given: Any) -> Any:  # of every batch, also where this rank has no sample of it
            calls.append(1)
            if len(calls) == 5 and rank in signals:
                os.kill(os.getpid(), signals[rank])
            return inner.denominators(*given)

        def forward(self, *given: Any) -> torch.Tensor:
            return inner(*given)

    table = make_table(folder, 23)
    try:
        config = TrainConfig(**STOPPED | settings)
        fit(make_model(), Fatal(), table, config=config, run_dir=run_dir, progress="none")
    except RuntimeError as error:
        (run_dir / f"said-{rank}").write_text(str(error))
        sys.exit(3)


def train_to_the_end(folder: Path, run_dir: str | None) -> dict[str, Any]:
    model, table, seen = make_model(seed=9 if run_dir else 7), make_table(folder, 23), []
    note_images(model, seen)
    events = train(
        model,
        create("asymmetric", space=SPACE),
        table,
        config=TrainConfig(**STOPPED),
        run_dir=None if run_dir is None else folder / run_dir,
        resume=None if run_dir is None else "auto",
    )
    seen_in = {}
    for event in events:
        if event.kind == "eval":
            seen_in[event.epoch], seen[:] = list(seen), []
    return {"weights": dict(model.state_dict()), "history": event.state.history, "seen": seen_in}


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> dict[str, Any]:
    return train_to_the_end(folder, None)


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("name", "size", "signals", "again"),
    [
        ("killed", 2, {1: signal.SIGKILL}, 1),
        pytest.param("terminated", 2, {1: signal.SIGTERM}, 1, marks=pytest.mark.slow),
        pytest.param("first-killed", 3, {0: signal.SIGKILL}, 2, marks=pytest.mark.slow),
        pytest.param("killed-of-four", 4, {2: signal.SIGKILL}, 3, marks=pytest.mark.slow),
        pytest.param("all-terminated", 3, dict.fromkeys(range(3), signal.SIGTERM), 4, marks=pytest.mark.slow),
        pytest.param("interrupted", 2, {0: signal.SIGINT}, 4, marks=pytest.mark.slow),
    ],
)
def test_ranks_that_are_stopped_go_on_as_any_number_of_others(
    folder: Path, unbroken: dict[str, Any], name: str, size: int, signals: dict[int, int], again: int
) -> None:
    codes = end_of_ranks(train_until_signal, size, folder, folder / name, signals)
    number = next(iter(signals.values()))
    newest = list_checkpoints(folder / name)[0].name
    if number == signal.SIGKILL:
        assert codes == [-9 if rank in signals else 3 for rank in range(size)]
        for rank in set(range(size)) - set(signals):
            said = (folder / name / f"said-{rank}").read_text()
            assert "another process of this training ended or did not answer" in said
            assert "--resume auto" in said
        assert newest == "step-00000004"
    else:
        assert codes == [128 + number] * size
        assert newest == "step-00000005"
    ranks = on_ranks(train_to_the_end, again, folder, name) if again > 1 else [train_to_the_end(folder, name)]
    for given in ranks:
        assert_near(given["weights"], unbroken["weights"])
        assert_near_history(given["history"], unbroken["history"])
    done = RepeatSampler(np.ones(23)).order(1)[: 0 if number == signal.SIGKILL else 7]
    second, third = (sorted(each for given in ranks for each in given["seen"][epoch]) for epoch in (2, 3))
    assert sorted([*done.tolist(), *second]) == third == list(range(23))
