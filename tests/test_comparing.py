"""Runs side by side: the figures are those of each run, paired and of the same images, or an error says why not."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlabel.cli import main
from mlabel.labels import Group, LabelSpace
from mlabel.metrics import Comparison, Difference, adjust_p_values, compare
from mlabel.models import create_model
from mlabel.recipes import Recipe, Run, RunComparison, compare_runs, make_loss, measure_costs, write_run_comparison
from mlabel.recipes.comparing import _common_space
from mlabel.recipes.run import describe_run
from mlabel.report import plot_differences
from mlabel.training import TrainConfig, fit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,tags,kind,part"]
    for number in range(90):
        held = rng.random(3) < 0.4
        light = bool(rng.integers(2))
        pixels = rng.integers(0, 60, (12, 12, 3)) + 120 * held + 60 * light
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        tags = " ".join(name for name, is_held in zip(("red", "green", "blue"), held, strict=True) if is_held)
        part = ("test", "val", "train")[min(number % 5, 2)]
        lines.append(f"{number}.png,{tags},{'light' if light else 'dark'},{part}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def recipe_of(data: Path, file: str = "labels.csv", **changes: object) -> Recipe:
    options = {"tags_column": "tags", "separator": " ", "exclusive": ["kind"], "partition_column": "part"}
    train = TrainConfig(epochs=1, batch_size=16, lr=0.01, precision="fp32", log="none", seed=changes.pop("seed", 0))
    made = {"reader_options": options, "backbone": "small_cnn", "image_size": 12, "train": train, **changes}
    return Recipe("csv", str(data / file), **made)


def quiet(_: str) -> None:
    pass


def train(recipe: Recipe, folder: Path) -> None:
    """Do a run without its report, which takes the most time here."""
    work = Run.begin(recipe, folder, say=quiet)
    describe_run(work)
    loss, parts = make_loss(work.recipe, work.parts["train"]), work.parts
    fit(work.model, loss, parts["train"], parts["val"], config=recipe.train, run_dir=folder, progress="none")
    work.load_best()
    work.calibrate()


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, seed, dropout in (("a", 0, 0.0), ("b", 1, 0.5), ("c", 2, 0.2)):
        train(recipe_of(data, seed=seed, dropout=dropout), folder / name)
    return folder


@pytest.fixture(scope="module")
def found(runs: Path) -> RunComparison:
    return compare_runs([runs / "a", runs / "b"], resamples=200, device="cpu", seconds=0.01)


@pytest.mark.parametrize("part", ["test", "val"])
def test_each_runs_metrics_are_those_of_its_own_evaluation(runs: Path, part: str) -> None:
    found = compare_runs([runs / "a", runs / "b"], part=part, resamples=10, device="cpu", seconds=0)
    for name in "ab":
        own = Run.open(runs / name, device="cpu").evaluate(part=part).columns["calibrated"]
        assert set(own) <= set(found.metrics[name]) | {"kind.num_samples"}
        for key, value in found.metrics[name].items():
            assert value == pytest.approx(own[key], nan_ok=True), (name, key)
    assert found.costs == {}
    assert ("cross-fitted" in " ".join(found.notes)) == (part == "val")


def test_the_difference_and_its_interval_are_those_of_compare(runs: Path, found: RunComparison) -> None:
    opened = [Run.open(runs / name, device="cpu") for name in "ab"]
    table = opened[0].parts["test"]
    scores = [each.score("test").probabilities for each in opened]
    wanted = compare(*scores, table.targets, space=table.space, metrics=["map", "micro_ap", "ap"], resamples=200)
    pair = found.pairs["a", "b"]
    assert pair["map"] == pytest.approx(wanted["map"])
    np.testing.assert_allclose(pair.per_label["ap"], wanted.per_label["ap"])


def test_the_other_order_turns_the_difference_and_leaves_the_winners(runs: Path, found: RunComparison) -> None:
    turned = compare_runs([runs / "b", runs / "a"], resamples=200, device="cpu", seconds=0)
    for key, held in found.pairs["a", "b"].items():
        assert held.difference == pytest.approx(-turned.pairs["b", "a"][key].difference, nan_ok=True)
        assert held.low == pytest.approx(-turned.pairs["b", "a"][key].high, nan_ok=True)
    ours, theirs = found.label_rows(), turned.label_rows()
    keys = ("label", "support", "winner", "lead", "low", "high", "adjusted_p", "sure")
    for mine, other in zip(ours, theirs, strict=True):
        assert {k: mine[k] for k in keys} == pytest.approx({k: other[k] for k in keys})


def test_a_run_does_not_differ_from_its_copy(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    found = compare_runs([runs / "a", tmp_path / "a"], resamples=20, device="cpu", seconds=0)
    assert found.names == (str(runs / "a"), str(tmp_path / "a")), "folders of one name are told apart by their paths"
    assert all(held.difference == 0 for key, held in found.pairs[found.names].items() if not math.isnan(held.first))
    assert [row["winner"] for row in found.label_rows()] == [None] * 5
    assert found.settings == {name: {} for name in found.names}


def test_settings_that_differ_are_listed(found: RunComparison) -> None:
    assert found.settings == {"a": {"dropout": 0.0, "train.seed": 0}, "b": {"dropout": 0.5, "train.seed": 1}}


def by_hand(values: dict[str, float], p: dict[tuple[str, str], float]) -> RunComparison:
    """A comparison of one label."""
    arrays = {name: np.array([value]) for name, value in values.items()}
    pairs = {}
    for (first, second), each in p.items():
        gap = arrays[first] - arrays[second]
        held = Difference(arrays[first], arrays[second], gap, gap - 0.1, gap + 0.2, np.array([each]))
        pairs[first, second] = Comparison({}, {"ap": held}, None, {}, ("cat",), {}, 0.95, 9, 9)
    names = tuple(values)
    space = LabelSpace([Group("tags", ["cat"])])
    parts = {"costs": {}, "by": "ap", "correction": "holm", "settings": {}, "notes": ()}
    return RunComparison(names, tuple(map(Path, names)), "test", space, np.array([4]), pairs, **parts)


def test_a_winner_is_sure_where_it_differs_from_every_other() -> None:
    p = {("x", "y"): 0.01, ("x", "z"): 0.001, ("y", "z"): 0.9}
    (row,) = by_hand({"x": 0.4, "y": 0.9, "z": 0.8}, p).label_rows()
    assert (row["winner"], row["sure"]) == ("y", False), "it is not told from z"
    assert row["adjusted_p"] == pytest.approx(adjust_p_values([0.01, 0.001, 0.9], "holm").max())
    assert (row["lead"], row["low"], row["high"]) == pytest.approx((0.1, 0.0, 0.3))
    (row,) = by_hand({"x": 0.95, "y": 0.9, "z": 0.8}, p).label_rows()
    assert (row["winner"], row["sure"], row["support"]) == ("x", True, 4)
    assert row["adjusted_p"] == pytest.approx(0.02), "Holm: the larger of 3 x 0.001 and 2 x 0.01"
    (row,) = by_hand({"x": 0.8, "y": 0.9, "z": 0.2}, p).label_rows()
    assert (row["low"], row["high"]) == pytest.approx((-0.1, 0.2)), "the interval of y less x, turned"
    for values in ({"x": 0.9, "y": 0.9, "z": 0.1}, {"x": 0.9, "y": math.nan, "z": 0.1}):
        assert by_hand(values, p).label_rows()[0]["winner"] is None


def test_the_labels_that_all_have_are_compared(data: Path, runs: Path, tmp_path: Path) -> None:
    train(recipe_of(data, labels=["red", "blue"], seed=4), tmp_path / "few")
    names = [runs / "a", tmp_path / "few", runs / "b"]
    found = compare_runs(names, resamples=10, device="cpu", seconds=0)
    assert found.space.names == ("blue", "red")
    assert "only the 2 labels that all runs have are compared: a has 3 more, few has 0 more" in found.notes[1]
    assert list(found.pairs) == [("a", "few"), ("a", "b"), ("few", "b")]
    assert len(found.difference_rows()) == 3 * len(found.metrics["a"])
    assert sum(row["labels_won"] for row in found.win_rows()) <= 2
    others = [LabelSpace([Group("tags", ["cow"])]), LabelSpace([Group("tags", ["horse"])])]
    opened = Run.open(runs / "a", device="cpu")
    strangers = [dataclasses.replace(opened, model=create_model("small_cnn", each, image_size=12)) for each in others]
    with pytest.raises(ValueError, match="no label in common"):
        _common_space(dict(zip("xy", strangers, strict=True)))


def test_what_cannot_be_compared_is_said(data: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two runs or more are wanted, each once; got .*a$"):
        compare_runs([runs / "a"])
    with pytest.raises(ValueError, match="each once"):
        compare_runs([runs / "a", runs / "a"])
    with pytest.raises(ValueError, match="unknown statistic of labels 'app'; did you mean 'ap'"):
        compare_runs([runs / "a", runs / "b"], by="app")
    text = (data / "labels.csv").read_text()
    (data / "other.csv").write_text(re.sub("^(0|5).png.*\n", "", text, flags=re.MULTILINE))
    train(recipe_of(data, "other.csv"), tmp_path / "fewer")
    with pytest.raises(ValueError, match="a and fewer are not of the same images: their test parts have 18 and 16, of"):
        compare_runs([runs / "a", tmp_path / "fewer"], device="cpu")
    # The annotations of one run's file change after it was trained.
    lines = text.splitlines()
    lines[1] = "0.png,,dark,test" if "," in lines[1].split(",")[1] or lines[1].split(",")[1] else "0.png,red,dark,test"
    (data / "other.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="a and fewer have other annotations of the same test images"):
        compare_runs([runs / "a", tmp_path / "fewer"], device="cpu")
    (data / "other.csv").write_text(text.replace(",test", ",val"))
    with pytest.raises(ValueError, match=r"different parts .a on test, fewer on val.; name one"):
        compare_runs([runs / "a", tmp_path / "fewer"], device="cpu")


def test_images_in_another_order_are_brought_into_one(data: Path, runs: Path, tmp_path: Path) -> None:
    head, *lines = (data / "labels.csv").read_text().splitlines()
    shutil.copytree(runs / "b", tmp_path / "b")
    (data / "turned.csv").write_text("\n".join([head, *lines[::-1]]) + "\n")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["recipe"]["data"] = str(data / "turned.csv")
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    straight, turned = (
        compare_runs([runs / "a", b], resamples=10, device="cpu", seconds=0) for b in (runs / "b", tmp_path / "b")
    )
    assert turned.metrics["b"] == pytest.approx(straight.metrics["b"], nan_ok=True)


class Slow(torch.nn.Module):
    num_features = 2

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return images.mean((2, 3))[:, :2]


def test_speed_is_measured_in_turns() -> None:
    space = LabelSpace([Group("tags", ["cat"])])
    models = {str(s): create_model(Slow(s), space, image_size=8) for s in (0.004, 0.016)}
    costs = measure_costs(models, batch_size=4, seconds=0.05)
    assert [cost.parameters for cost in costs.values()] == [3, 3]
    assert costs["0.004"].relative_speed == 1
    assert 0.2 < costs["0.016"].relative_low <= costs["0.016"].relative_speed <= costs["0.016"].relative_high < 0.6
    assert 100 < costs["0.016"].images_per_second <= 250
    assert all(model.training for model in models.values())


def test_the_command_prints_and_writes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page"
    words = ["compare", *(str(runs / name) for name in "abc"), "--intervals", "20", "--seconds", "0.01"]
    assert main([*words, "--device", "cpu", "--page", str(page), "--by", "f1"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^metric +a +b +c$", printed.out, re.M)
    assert re.search(r"^map +a +b( +-?[01]\.\d+){6}$", printed.out, re.M)
    assert "takes 600 (--intervals)" in printed.out, "five labels, three pairs"
    assert re.search(r"^b +12 x 12 +0\.\d\d M +\S+ G +\S+ +\S+ \(\S+ to \S+\)$", printed.out, re.M)
    assert f"wrote {page / 'index.html'}" in printed.err
    held = json.loads((page / "comparison.json").read_text())
    assert [each["runs"] for each in held["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    with open(page / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["blue", "green", "red", "dark", "light"]
    assert main([*words[:3], "--format", "json", "--intervals", "5", "--seconds", "0", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "mlabel.run_comparison/1"
    assert main(["compare", str(runs / "a")]) == 2


def test_the_page_opens_and_its_labels_are_sorted_by_winner(visit, found: RunComparison, tmp_path: Path) -> None:
    opened = visit(write_run_comparison(found, tmp_path))
    assert (opened.errors, opened.requests) == ([], [])
    place = list(found.label_rows()[0]).index("winner")
    opened.page.locator("#labels thead button").nth(place).click()
    shown = opened.page.locator(f"#labels tbody tr td:nth-child({place + 1})").all_inner_texts()
    assert sorted(shown) == shown


def test_a_picture_of_differences(tmp_path: Path) -> None:
    rows = [{"name": f"${n}$", "difference": n - 3, "low": n - 3.5, "high": n - 2.5} for n in range(7)]
    with Image.open(plot_differences(rows, tmp_path / "a.png", first="_x", second="y")) as all_of_them:
        size = all_of_them.size
    with Image.open(plot_differences(rows, tmp_path / "b.png", most=3)) as few:
        assert few.size[1] < size[1]
    with pytest.raises(ValueError, match="no differences to draw"):
        plot_differences([{"name": "x", "difference": math.nan, "low": None, "high": 1.0}], tmp_path / "c.png")
