"""A search over settings: every trial is told once, goes on after any stop, and is judged by the validation part."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel._checks import DataError
from mlabel.cli import main
from mlabel.recipes import Recipe, Run, best_recipe, retrain, tune, write_study
from mlabel.recipes import tuning as recipe_tuning
from mlabel.recipes.tuning import check_parameters, with_settings
from mlabel.training import TrainConfig, list_checkpoints
from mlabel.tuning import (
    STRATEGIES,
    Choice,
    Range,
    SearchConfig,
    Study,
    Trial,
    load_study,
    parse_parameters,
    search,
    searching,
)
from mlabel.tuning.records import NAME, open_storage

GRID = SearchConfig(strategy="grid")


def quiet(_: str) -> None:
    pass


# What may vary.


@given(
    low=st.integers(-50, 50),
    count=st.integers(1, 30),
    step=st.sampled_from([1, 2, 5, 0.1, 0.25, 0.3]),
)
@settings(max_examples=40)
def test_a_range_with_a_step_has_its_ends_among_the_points(low: int, count: int, step: float) -> None:
    high = low + count * step if isinstance(step, int) else round(low + count * step, 6)
    parameter = Range(low if isinstance(step, int) else float(low), high, step=step)
    points = parameter.points()
    assert (points[0], points[-1], len(points)) == (low, high, count + 1)
    assert parse_parameters({"x": parameter.to_json()}) == {"x": parameter}


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ([], "x: values to choose from must be one or more, each once"),
        ([1, 1], "each once"),
        ([[64, 96]], r"x: values to choose from must be texts, numbers, true or false; got \[64, 96\]"),
        ({"low": 1}, "x: a range wants low and high"),
        ({"low": 1, "high": 3, "lug": True}, "unknown part of a range 'lug'; did you mean 'log'"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "from above 0"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "a whole number of steps"),
        ({"low": 1, "high": 2, "step": 0.5}, "must be whole"),
        ({"low": "a", "high": 2}, "must be numbers"),
        ("abc", "x: a list of values, or a table with low and high"),
    ],
)
def test_what_cannot_vary_is_said(given_: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        parse_parameters({"x": given_})


def test_a_grid_needs_points() -> None:
    with pytest.raises(ValueError, match="a grid has no points in a range without a step"):
        GRID.count(parse_parameters({"x": {"low": 0.1, "high": 1.0}}))
    space = parse_parameters({"x": {"low": 1, "high": 4}, "y": ["a", "b"]})
    assert GRID.count(space) == 8
    assert dataclasses.replace(GRID, trials=3).count(space) == 3
    assert SearchConfig().count(space) == 20


# The search.


def bowl(trial: Trial) -> float:
    (trial.folder / "seen").write_text("once")
    return -abs(float(trial.values["x"]) - 2.2)


def test_a_grid_is_every_point_once_and_the_best_is_the_best(tmp_path: Path) -> None:
    lines: list[str] = []
    study = search(bowl, {"x": [1, 2, 3], "y": ["a", "b"]}, tmp_path, config=GRID, say=lines.append)
    assert Counter((t.values["x"], t.values["y"]) for t in study.trials) == dict.fromkeys(
        [(x, y) for x in (1, 2, 3) for y in "ab"], 1
    )
    assert study.best is not None
    assert study.best.values["x"] == 2
    assert study.best.number == min(t.number for t in study.trials if t.values["x"] == 2), "the first of equal ones"
    assert [row["value"] for row in study.rows()] == sorted((t.value for t in study.trials), reverse=True)
    assert len(lines) == 6
    assert "best -0.2, trial " in lines[-1]
    assert study.importances["x"] > 0.9
    again = search(bowl, {"x": [1, 2, 3], "y": ["a", "b"]}, tmp_path, config=GRID, say=lines.append)
    assert again == study, "nothing is left to do"
    assert len(lines) == 6


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("grid", "random")])
def test_the_lower_may_be_the_better(strategy: str, tmp_path: Path) -> None:
    config = SearchConfig(strategy=strategy, trials=3, higher_is_better=False)
    study = search(lambda t: t.values["x"], {"x": {"low": 0.01, "high": 1.0, "log": True}}, tmp_path, config=config)
    assert study.best is not None
    assert study.best.value == min(t.value for t in study.trials)
    assert all(0.01 <= t.values["x"] <= 1 for t in study.trials)


def unlucky(trial: Trial) -> float:
    if trial.values["x"] == 1:
        raise RuntimeError("out of luck")
    return math.nan if trial.values["x"] == 2 else 1.0


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    study = search(unlucky, {"x": [1, 2, 3]}, tmp_path, config=GRID, say=quiet)
    by_x = {t.values["x"]: t for t in study.trials}
    assert {x: t.state for x, t in by_x.items()} == {1: "failed", 2: "failed", 3: "done"}
    assert by_x[1].error == "RuntimeError: out of luck"
    assert "in unlucky" in (by_x[1].folder / "error.txt").read_text()
    assert "the objective gave nan" in by_x[2].error
    assert by_x[1].value is None
    assert study.counts() == {"done": 1, "failed": 2}
    assert "out of luck" in study.table()


def climb(trial: Trial) -> float:
    for step in range(1, 10):
        trial.report(step, trial.values["x"] * step)
        trial.report(step, -1.0)  # what was said of a step stays
    return trial.values["x"]


@pytest.mark.parametrize("pruning", ["median", "hyperband"])
def test_poor_trials_are_given_up(pruning: str, tmp_path: Path) -> None:
    config = SearchConfig(strategy="grid", pruning=pruning, steps=9)
    study = search(climb, {"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}, tmp_path, config=config, say=quiet)
    assert {"done", "pruned"} == set(study.counts())
    for trial in study.trials:
        assert trial.steps == {step: trial.values["x"] * step for step in range(1, len(trial.steps) + 1)}
        assert (len(trial.steps) == 9) == (trial.state == "done")
    assert study.best is not None
    assert study.best.value == 7 or pruning != "median"


class Stopped:
    """An objective whose process is stopped in one of its trials."""

    def __init__(self, number: int, times: int = 1) -> None:
        self.number, self.left = number, times

    def __call__(self, trial: Trial) -> float:
        with open(trial.folder / "starts", "a") as file:
            file.write("x")
        trial.report(1, 0.5)
        if trial.number == self.number and self.left:
            self.left -= 1
            raise KeyboardInterrupt
        return float(trial.values["x"])


def test_a_stopped_search_tries_what_an_unbroken_one_would(tmp_path: Path) -> None:
    config = SearchConfig(strategy="random", trials=4, seed=3)
    space = {"x": {"low": 0.0, "high": 1.0}}
    whole = search(Stopped(-1), space, tmp_path / "whole", config=config, say=quiet)
    broken = Stopped(2)
    with pytest.raises(KeyboardInterrupt):
        search(broken, space, tmp_path / "broken", config=config, say=quiet)
    assert load_study(tmp_path / "broken").counts() == {"done": 2, "running": 1}
    lines: list[str] = []
    study = search(broken, space, tmp_path / "broken", config=config, say=lines.append)
    assert lines[0] == "trial 2: goes on, its process was ended"
    assert [t.values for t in study.trials] == [t.values for t in whole.trials]
    assert [(t.folder / "starts").read_text() for t in study.trials] == ["x", "x", "xx", "x"]
    more = search(broken, space, tmp_path / "broken", config=dataclasses.replace(config, trials=5), say=quiet)
    assert more.counts() == {"done": 5}


class Killed(BaseException):
    """What ends a process without anybody having wanted it."""


def test_a_trial_whose_process_is_ended_each_time_fails(tmp_path: Path) -> None:
    def deadly(trial: Trial) -> float:
        if trial.values["x"] == 1:
            raise Killed
        return 1.0

    stopped = 0
    while stopped < 9:
        try:
            study = search(deadly, {"x": [1, 2]}, tmp_path, config=GRID, say=quiet)
            break
        except Killed:
            stopped += 1
    assert stopped == 3
    (failed,) = [t for t in study.trials if t.state == "failed"]
    assert failed.error.startswith("its process was ended 3 times at one place")
    assert study.counts() == {"done": 1, "failed": 1}


def test_a_trial_that_gets_further_each_time_does_not_fail(tmp_path: Path) -> None:
    def slow(trial: Trial) -> float:
        for step in range(1, 6):
            path = trial.folder / str(step)
            known = path.exists()
            path.touch()
            trial.report(step, 0.5)
            if not known:
                raise Killed
        return 1.0

    for _ in range(5):
        with pytest.raises(Killed):
            search(slow, {"x": [1]}, tmp_path, config=GRID, say=quiet)
    study = search(slow, {"x": [1]}, tmp_path, config=GRID, say=quiet)
    assert study.counts() == {"done": 1}
    assert list(study.trials[0].steps) == [1, 2, 3, 4, 5]


def test_a_trial_that_ends_while_it_is_looked_at_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(_: Trial) -> float:
        raise Killed

    with pytest.raises(Killed):
        search(deadly, {"x": [1]}, tmp_path, config=GRID, say=quiet)
    try_lock = searching._try_lock

    @contextmanager
    def late(path: Path) -> Iterator[bool]:
        """As if another process ended the trial after it was listed, before its lock was tried."""
        with open_storage(tmp_path) as storage:
            study = optuna.load_study(study_name=NAME, storage=storage)
            if study.trials[0].state.name == "RUNNING":
                study.tell(0, 7.0)
        with try_lock(path) as had:
            yield had

    monkeypatch.setattr(searching, "_try_lock", late)
    study = search(deadly, {"x": [1]}, tmp_path, config=GRID, say=quiet)
    assert [(t.state, t.value) for t in study.trials] == [("done", 7.0)]


def test_searches_side_by_side_share_the_trials(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=60)

    def meet(trial: Trial) -> float:
        if trial.number < 2:
            barrier.wait()  # each of the two has one of the first trials
        return float(trial.values["x"])

    def work() -> None:
        search(meet, {"x": list(range(5))}, tmp_path, config=GRID, say=quiet)

    helper = threading.Thread(target=work)
    helper.start()
    work()
    helper.join()
    study = load_study(tmp_path)
    assert study.counts() == {"done": 5}
    assert Counter(t.values["x"] for t in study.trials) == dict.fromkeys(range(5), 1)


def deadly_in_a_helper(trial: Trial) -> float:
    """End the second process, as a kill does, in the first trial that it begins."""
    helped = trial.folder.parent / "helped"
    with open(trial.folder / "worker", "a") as file:
        file.write(f"{trial.worker} ")
    if trial.worker == 1:
        helped.touch()
        os._exit(9)
    end = time.monotonic() + 60
    while not helped.exists():  # the first process leaves one for the second
        if time.monotonic() > end:
            raise RuntimeError("the second process did not begin")
        time.sleep(0.02)
    return 1.0


@pytest.mark.slow
def test_processes_share_the_trials_and_take_over_from_one_that_is_killed(tmp_path: Path) -> None:
    study = search(deadly_in_a_helper, {"x": [1, 2, 3, 4]}, tmp_path, config=GRID, processes=2, say=quiet)
    assert study.counts() == {"done": 4}
    assert Counter(t.values["x"] for t in study.trials) == dict.fromkeys([1, 2, 3, 4], 1)
    workers = sorted((t.folder / "worker").read_text() for t in study.trials)
    assert workers == ["0 ", "0 ", "0 ", "1 0 "]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    config = SearchConfig(strategy="tpe", pruning="median", trials=3)
    study = search(climb, {"x": {"low": 0.0, "high": 1.0}}, tmp_path, config=config, say=quiet)
    assert len(study.trials) == 3


def test_another_search_or_folder_is_left_alone(tmp_path: Path) -> None:
    search(bowl, {"x": [1]}, tmp_path / "a", config=GRID, about={"data": "d", "train": {"lr": 1}}, say=quiet)
    with pytest.raises(ValueError, match=r"told otherwise \(what varies.x: \[1\] then, \[2\] now\)"):
        search(bowl, {"x": [2]}, tmp_path / "a", config=GRID, about={"data": "d", "train": {"lr": 1}})
    with pytest.raises(ValueError, match=r"\(train.lr: 1 then, 2 now\)"):
        search(bowl, {"x": [1]}, tmp_path / "a", config=GRID, about={"data": "d", "train": {"lr": 2}})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="is not a study"):
        search(bowl, {"x": [2]}, tmp_path / "b", config=GRID)
    with pytest.raises(FileNotFoundError, match="is not a study"):
        load_study(tmp_path / "b")
    with pytest.raises(ValueError, match="processes must be at least 1"):
        search(bowl, {"x": [2]}, tmp_path / "c", processes=0)
    (tmp_path / "a" / "study.json").write_text('{"format": "mlabel.study/1", "config": {"strategy": "exec"}}')
    with pytest.raises(DataError, match="not the settings of a search: unknown strategy 'exec'"):
        load_study(tmp_path / "a")


# Trials that are runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of their tags' colours; those of the test part are empty files, so that nothing can look at them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,tags,part"]
    for number in range(60):
        held = rng.random(3) < 0.5
        part = ("test", "val", "train")[min(number % 5, 2)]
        pixels = rng.integers(0, 90, (8, 8, 3)) + 100 * held
        (folder / f"{number}.png").touch()
        if part != "test":
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        tags = " ".join(name for name, is_held in zip(("red", "green", "blue"), held, strict=True) if is_held)
        lines.append(f"{number}.png,{tags},{part}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def recipe_of(data: Path, **train: object) -> Recipe:
    options = {"tags_column": "tags", "separator": " ", "partition_column": "part"}
    config = TrainConfig(**{"epochs": 2, "batch_size": 8, "precision": "fp32", "log": "none", **train})
    made = {"reader_options": options, "backbone": "small_cnn", "image_size": 8, "train": config}
    return Recipe("csv", str(data / "labels.csv"), **made)


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("studies") / "a"
    space = {"lr": [0.01, 0.0001], "dropout": [0.0]}
    return tune(recipe_of(data), space, folder, config=GRID, device="cpu", say=quiet)


def test_a_trial_is_a_run_judged_by_its_best_epoch(study: Study, data: Path) -> None:
    assert study.counts() == {"done": 2}
    for trial in study.trials:
        lines = (trial.folder / "history.csv").read_text().splitlines()
        place = lines[0].split(",").index("val_map")
        values = [float(line.split(",")[place]) for line in lines[1:]]
        assert trial.steps == {1: values[0], 2: values[1]}
        assert trial.value == max(values)
        assert len(list_checkpoints(trial.folder)) == 1
        opened = Run.open(trial.folder, device="cpu")
        assert opened.recipe == with_settings(
            dataclasses.replace(recipe_of(data), data=str((data / "labels.csv").resolve())), trial.values
        )
        measured = opened.evaluate(part="val").columns["at 0.5"]
        assert measured["map"] == pytest.approx(trial.value)
    assert study.best is not None
    assert best_recipe(study).train.lr == study.best.values["lr"] == 0.01


def test_a_trial_goes_on_from_its_checkpoint(
    study: Study, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = recipe_tuning._report
    starts: list[int] = []

    def stop(trial: Trial, history: list[dict[str, float]], name: str) -> None:
        starts.append(len(history))
        report(trial, history, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_tuning, "_report", stop)
    space = {"lr": [0.01, 0.0001], "dropout": [0.0]}
    with pytest.raises(KeyboardInterrupt):
        tune(recipe_of(data), space, tmp_path / "b", config=GRID, device="cpu", say=quiet)

    def watch(trial: Trial, history: list[dict[str, float]], name: str) -> None:
        starts.append(len(history))
        report(trial, history, name)

    monkeypatch.setattr(recipe_tuning, "_report", watch)
    found = tune(recipe_of(data), space, tmp_path / "b", config=GRID, device="cpu", keep="best", say=quiet)
    assert starts[:2] == [1, 2], "the second epoch follows the first"
    assert [t.value for t in found.trials] == [t.value for t in study.trials]
    assert [len(list_checkpoints(t.folder)) for t in found.trials] == [int(t == found.best) for t in found.trials]


def test_what_is_reported_is_of_the_end_of_each_epoch(tmp_path: Path) -> None:
    class Told(list):
        def report(self, step: int, value: float) -> None:
            self.append((step, value))

    # Two evaluations an epoch: of those that count an epoch as over, the first is at its end.
    history = [{"epoch": e, "val_map": v} for e, v in ((0, 0.1), (1, 0.2), (1, 0.3), (2, 0.4), (2, 0.5))]
    told = Told()
    recipe_tuning._report(told, history, "val_map")
    assert told == [(1, 0.2), (2, 0.4)]


def test_a_run_that_is_given_up_is_a_run_all_the_same(data: Path, tmp_path: Path) -> None:
    config = SearchConfig(strategy="grid", pruning="halving", seed=4)  # the highest rate first
    found = tune(recipe_of(data), {"lr": [0.01, 1e-4, 1e-6, 1e-8]}, tmp_path / "p", config=config, say=quiet)
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned
    assert all(len(t.steps) == 1 and len(list_checkpoints(t.folder)) == 1 for t in pruned)
    assert Run.open(pruned[0].folder, device="cpu").recipe.train.lr == pruned[0].values["lr"]


def test_settings_that_cannot_be_searched_are_said(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data)
    for space, message in (
        ({"limit": [3]}, "'limit' is no setting to search over: it changes what trials are measured on"),
        ({"monitor": ["map"]}, "'monitor' is no setting"),
        ({"lrr": [3]}, "there is none; did you mean 'lr'"),
        ({"optimizer": ["adam", "sgdd"]}, "optimizer cannot be 'sgdd': unknown optimizer"),
        ({"lr": Range(-1.0, 1.0)}, "lr cannot be -1.0"),
        ({"reader_options.min_count": [3]}, "is no setting"),
    ):
        with pytest.raises(ValueError, match=message):
            check_parameters(recipe, parse_parameters(space))
    check_parameters(recipe, parse_parameters({"loss": ["focal"], "loss_options.gamma": [1.0]}))
    by_loss = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, monitor="loss"))
    for name, value in (("loss", "focal"), ("loss_options.gamma", 1.0), ("label_smoothing", 0.1)):
        with pytest.raises(ValueError, match="changes the loss by which trials are judged"):
            check_parameters(by_loss, {name: Choice((value,))})
    changed = with_settings(recipe, {"loss_options.gamma": 2.0, "epochs": 7, "hidden": 9})
    assert (dict(changed.loss_options), changed.train.epochs, changed.hidden) == ({"gamma": 2.0}, 7, 9)
    with pytest.raises(ValueError, match="unknown choice of trials to keep"):
        tune(recipe, {"lr": [0.1]}, tmp_path, keep="none")
    (data / "untried.csv").write_text((data / "labels.csv").read_text().replace(",val", ",test"))
    unjudged = dataclasses.replace(recipe, data=str(data / "untried.csv"))
    (tmp_path / "none").mkdir()
    held_out = tune(dataclasses.replace(unjudged, hold_out=0.3), {"lr": [0.1]}, tmp_path / "h", config=GRID, say=quiet)
    assert held_out.counts() == {"done": 1}


def test_the_best_settings_are_trained_anew_as_whole_runs(study: Study, data: Path) -> None:
    with pytest.raises(ValueError, match="a seed or more"):
        retrain(study, seeds=0)
    found = retrain(study, part="val", device="cpu", say=quiet)
    assert list(found) == [str(study.folder / "best" / "seed-0")]
    first = found[str(study.folder / "best" / "seed-0")]
    assert study.best is not None
    assert first.columns["at 0.5"]["map"] == pytest.approx(study.best.value), "the same seed is the same training"
    assert "the settings were chosen on this part, so that these figures are too good" in first.notes
    assert (study.folder / "best" / "seed-0" / "report" / "index.html").exists()


def test_the_page_opens_and_has_the_trials(study: Study, visit) -> None:
    opened = visit(write_study(study))
    assert (opened.errors, opened.requests) == ([], [])
    text = opened.page.inner_text("body")
    assert "the test part was not looked at" in text
    assert "0.0001" in text
    assert opened.page.locator("figure img").count() >= 3
    assert json.loads((study.folder / "report" / "study.json").read_text())["best"] == study.best.number
    assert (study.folder / "report" / "trials.csv").read_text().startswith("trial,state,value,")


# The command.


def toml_of(data: Path, folder: Path) -> Path:
    path = folder / "search.toml"
    path.write_text(f"""
reader = "csv"
data = {json.dumps(str(data / "labels.csv"))}
backbone = "small_cnn"
image_size = 8
batch_size = 8
epochs = 1
precision = "fp32"
device = "cpu"

[reader_options]
tags_column = "tags"
separator = " "
partition_column = "part"

[tune]
strategy = "grid"

[tune.vary]
lr = [0.01]
optimizer = ["adam", "sgd"]
""")
    return path


def test_the_command_takes_one_file_and_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["tune", "--config", str(toml_of(data, tmp_path)), "--study", str(tmp_path / "s")]
    assert main([*words, "--trials", "1"]) == 0
    assert main([*words, "--retrain", "2", "--part", "val"]) == 0
    printed = capsys.readouterr()
    assert len(printed.err.split(" of 2 done")) == 2, "one trial is new"
    assert "best: trial" in printed.out
    assert "seed-0  seed-1    mean" in printed.out
    assert main([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "mlabel.study/1"
    assert main(["train", *words[1:3], "--run", str(tmp_path / "r"), "--dry-run"]) == 0, "the file is for others too"


def test_the_command_runs_a_program_where_one_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    program = tmp_path / "search.py"
    program.write_text(f"""
from mlabel.recipes import Recipe
from mlabel.training import TrainConfig

options = {{"tags_column": "tags", "separator": " ", "partition_column": "part"}}
train = TrainConfig(epochs=1, batch_size=8, precision="fp32")
recipe = Recipe({"csv"!r}, {str(data / "labels.csv")!r}, reader_options=options, backbone="small_cnn", image_size=8,
                train=train)
vary = {{"lr": [10.0**-k for k in (2, 3)]}}
""")
    words = ["--study", str(tmp_path / "s"), "--device", "cpu"]
    assert main(["tune", str(program), *words, "--trials", "1", "--strategy", "random"]) == 0
    assert main(["tune", str(program), *words, "--lr", "0.1"]) == 2
    assert "--lr is said by the recipe of" in capsys.readouterr().err
    (tmp_path / "evil.toml").write_text(f'program = "{program}"')
    for given_ in (["--config", str(tmp_path / "evil.toml")], ["--set", f"program={program}"]):
        assert main(["tune", *given_, *words]) == 2
        assert "has no such option" in capsys.readouterr().err
    program.write_text("recipe = 3\nvary = {}")
    assert main(["tune", str(program), *words]) == 2
    assert (
        "`recipe`, an mlabel.recipes.Recipe, and `vary`, a dictionary, were wanted; got int" in capsys.readouterr().err
    )


def test_a_search_of_which_every_trial_fails_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["tune", "--config", str(toml_of(data, tmp_path)), "--study", str(tmp_path / "s")]
    assert main([*words, "--vary", 'weights=["missing.safetensors"]']) == 2
    printed = capsys.readouterr().err
    assert "of 2 trials none came to its end; the last error: " in printed
    assert "missing.safetensors" in printed
    assert main(["tune", "--study", str(tmp_path / "t"), "--vary", "lr=[1]"]) == 2
    assert "--reader is wanted" in capsys.readouterr().err
