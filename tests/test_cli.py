"""The command line and the recipes behind it: a whole run on small images, and errors in one line."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlabel.cli import main
from mlabel.data import stratified_split
from mlabel.decisions import Calibration, Thresholds, cross_fit_calibration, logits_of, undo_loss
from mlabel.inference import Tagger, load_bundle
from mlabel.metrics import bootstrap, evaluate
from mlabel.recipes import Recipe, Run, RunEvaluation, find_run_issues
from mlabel.recipes.calibration import undo_recipe_loss
from mlabel.recipes.evaluation import describe_intervals
from mlabel.report import cross_fit_scores
from mlabel.training import TrainConfig
from mlabel.weights import class_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are bright in the channels of their tags, dark or light by their kind; no test part."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["image,tags,kind,part"]
    for number in range(80):
        held = rng.random(3) < 0.4
        light = bool(rng.integers(2))
        pixels = rng.integers(0, 60, (16, 16, 3)) + 120 * held + 60 * light
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        tags = " ".join(name for name, is_held in zip(("red", "green", "blue"), held, strict=True) if is_held)
        lines.append(f"{number}.png,{tags},{'light' if light else 'dark'},{'val' if number % 4 == 0 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(data: Path, run: Path, *more: str) -> list[str]:
    reader = ["--reader", "csv", "--data", str(data / "labels.csv")]
    for option in ("tags_column=tags", 'separator=" "', 'exclusive=["kind"]', "partition_column=part"):
        reader += ["--reader-option", option]
    model = ["--backbone", "small_cnn", "--image-size", "16", "--batch-size", "16", "--epochs", "2", "--lr", "0.01"]
    return ["train", *reader, *model, "--precision", "fp32", "--run", str(run), *more]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a"
    assert main(command(data, run)) == 0
    return run


def test_a_run_folder_holds_what_the_design_says(trained: Path) -> None:
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert names >= {
        "config.json",
        "labels.json",
        "history.csv",
        "thresholds.json",
        "best",
        "report/index.html",
        "report/metrics-val.json",
        "bundle/config.json",
        "bundle/model.safetensors",
        "bundle/selected_tags.csv",
        "bundle/thresholds.json",
    }
    config = json.loads((trained / "config.json").read_text())
    assert set(config) >= {"recipe", "train", "model"}
    assert Recipe.from_dict(config["recipe"]).to_dict() == config["recipe"]


def test_the_same_command_trains_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what came before must not matter
    assert main(command(data, tmp_path / "again")) == 0
    names = [path.relative_to(trained) for path in (trained / "checkpoints").rglob("model.safetensors")]
    assert names
    for name in [*names, Path("history.csv")]:
        assert (trained / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_evaluate_says_the_part_and_prints_one_metric_a_line(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--run", str(trained), "--threshold", "0.3", "--verbose"]) == 0
    printed = capsys.readouterr().out
    assert "the test part is missing: these figures are of the validation part" in printed
    assert "cross-fitted" in printed
    assert re.search(r"^metric +prior +at 0\.3 +calibrated$", printed, re.M)
    assert re.search(r"^macro_f1( +[01]\.\d+| +nan){3}$", printed, re.M)
    assert re.search(r"^kind\.accuracy( +[01]\.\d+){3}$", printed, re.M)
    assert re.search(r"^green +\d+ ", printed, re.M), "the table of labels"
    rows = dict(re.findall(r"^(category|tags|kind) +(.*)$", printed.partition("Labels by group")[2], re.M))
    assert rows["category"].split() == ["num_labels", "num_averaged", "support", "precision", "recall", "f1", "ap"]
    assert [rows[name].split()[0] for name in ("tags", "kind")] == ["3", "2"]
    assert "Labels by frequency" not in printed, "five labels are no deciles"


def test_metrics_beyond_the_usual_are_asked_for_by_name(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--run", str(trained), "--include", "macro_mcc, micro_ece,mcc"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^macro_mcc( +-?[01]\.\d+| +nan){3}$", printed, re.M)
    assert re.search(r"^micro_ece( +[01]\.\d+){3}$", printed, re.M)
    columns = json.loads((trained / "report" / "metrics-val.json").read_text())["columns"]
    assert len(columns["calibrated"]["per_label"]["mcc"]) == 5
    assert main(["evaluate", "--run", str(trained), "--include", "macro_mc"]) == 2
    assert "unknown metric 'macro_mc'; did you mean 'macro_mcc'" in capsys.readouterr().err


def test_intervals_are_of_the_last_column(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "--run", str(trained), "--intervals", "50", "--include", "macro_mcc,mcc"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^metric +prior +at 0\.5 +calibrated +low +high$", printed, re.M)
    held = json.loads((trained / "report" / "metrics-val.json").read_text())
    names = [*held["columns"]["calibrated"]["metrics"], "kind.accuracy", "kind.mean_class_accuracy"]
    assert list(held["intervals"]["metrics"]) == names
    for name in ("micro_f1", "macro_mcc", "kind.accuracy"):
        row = re.search(rf"^{name} +(.*)$", printed, re.M)
        assert row is not None
        assert row[1].split()[2:] == [
            f"{held['intervals']['metrics'][name][key]:.4f}" for key in ("value", "low", "high")
        ]
    images = held["intervals"]["num_samples"]
    assert f"low and high: of calibrated, the 95% interval from 50 resamples of {images} images" in printed
    assert len(held["intervals"]["per_label"]["mcc"]["low"]) == 5
    assert main(["evaluate", "--run", str(trained)]) == 0
    assert "low" not in capsys.readouterr().out
    assert "intervals" not in json.loads((trained / "report" / "metrics-val.json").read_text())


def test_report_writes_the_whole_page(visit, trained: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    words = ["report", str(run), "--intervals", "20", "--labels", "green,dark", "--tiles", "2"]
    assert main(words) == 0
    page = run / "report" / "index.html"
    assert re.search(rf"^wrote {page}; beside it \d+ pictures and \d+ tables$", capsys.readouterr().out, re.M)
    opened = visit(page)
    assert (opened.errors, opened.requests) == ([], [])
    titles = opened.page.locator("h2").all_inner_texts()
    assert titles[:5] == ["Metrics", "Labels", "Training", "Groups", "Confusion"]
    assert {"Precision and recall", "Reliability", "Data", "Examples", "Pictures", "Next"} <= set(titles)
    row = opened.page.locator("#metrics tr", has_text="micro_f1").locator("td").all_inner_texts()
    assert len(row) == 3
    assert [len(cell.split()) for cell in row] == [1, 2, 2], "intervals of both, and not of the prior"
    held = json.loads((run / "report" / "metrics-val.json").read_text())
    for name in ("intervals", "fixed_intervals"):
        assert held[name]["metrics"]["micro_f1"]["low"] <= held[name]["metrics"]["micro_f1"]["value"]
    assert held["fixed_intervals"]["metrics"]["micro_f1"]["value"] == held["columns"]["at 0.5"]["metrics"]["micro_f1"]
    with open(run / "report" / "metrics.csv", newline="") as file:
        rows = {each["metric"]: each for each in csv.DictReader(file)}
    # What no threshold changes has one interval.
    assert rows["map"]["at 0.5 low"] == rows["map"]["calibrated low"] != ""
    for option in ("--intervals", "--tiles"):
        capsys.readouterr()
        assert main(["report", str(run), option, "0"]) == 2
        assert option.removeprefix("--") in capsys.readouterr().err
    assert main(["report"]) == 2
    assert main(["report", str(run), "--run", "b"]) == 2
    assert "the folder of one run is wanted" in capsys.readouterr().err
    assert main(["report", "--run", str(run), "--labels", "gren"]) == 2
    assert "did you mean 'green'" in capsys.readouterr().err


def test_intervals_say_what_was_drawn() -> None:
    data = [[0.9], [0.1], [0.4], [0.8]], [[1], [0], [1], [0]]
    alone = bootstrap(*data, metrics=["macro_f1"], resamples=3, level=0.9)
    assert describe_intervals(alone, 3) == "the 90% interval from 3 resamples of 4 images"
    together = bootstrap(*data, metrics=["macro_f1"], resamples=2000, groups=["a", "a", "b", "c"])
    assert describe_intervals(together, 2000) == "the 95% interval from 2,000 resamples of 3 groups of 4 images"


def test_labels_are_put_together_by_how_frequent_they_are_in_training() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.random((30, 20)), rng.random((30, 20)) < 0.4
    counts, groups = np.arange(20)[::-1], ("a",) * 15 + ("b",) * 5
    result = RunEvaluation(
        part="test",
        columns={"prior": evaluate(scores * 0, targets), "at 0.5": evaluate(scores, targets)},
        notes=(),
        scores=scores,
        rows=np.arange(30),
        counts=counts,
        label_groups=groups,
    )
    head, middle, tail = result.by_frequency()
    assert [row["tier"] for row in (head, middle, tail)] == ["head", "middle", "tail"]
    assert (head["least"], head["most"], middle["num_labels"], tail["most"]) == (14, 19, 8, 5)
    recall = result.best.per_label["recall"]
    assert head["recall"] == pytest.approx(recall[:6].mean())
    assert list(result.label_parts()) == ["Labels by frequency", "Labels by group"]
    assert [row["recall"] for row in result.by_group()] == pytest.approx([recall[:15].mean(), recall[15:].mean()])
    plain = json.loads(json.dumps(result.to_dict()))
    assert [row["decile"] for row in plain["by_frequency"]] == list(range(1, 11))
    assert plain["by_group"] == result.by_group()


def test_calibrate_changes_run_and_bundle(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["calibrate", "--run", str(trained), "--scope", "global"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = dict(line.split("\t") for line in lines)
    assert values["dark"] == values["light"] == ""
    assert len({values[name] for name in ("red", "green", "blue")}) == 1
    in_bundle = json.loads((trained / "bundle" / "thresholds.json").read_text())
    assert in_bundle == json.loads((trained / "thresholds.json").read_text())
    assert in_bundle["scope"] == "global"
    assert main(["calibrate", "--run", str(trained), "--scope", "label"]) == 0


def test_calibrated_scores_are_what_prediction_gives(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, image = tmp_path / "run", str(data / "0.png")
    shutil.copytree(trained, run)
    bundle = run / "bundle"

    def predict() -> np.ndarray:
        assert main(["predict", "--bundle", str(bundle), image, "--format", "jsonl"]) == 0
        return np.array([list(json.loads(capsys.readouterr().out.splitlines()[-1])["scores"].values())])

    work = Run.open(run, device="cpu")
    space = work.model.space
    before, scores = predict(), work.score("val").probabilities
    assert main(["calibrate", "--run", str(run), "--calibration", "platt"]) == 0
    calibration = Calibration.load(bundle / "calibration.json", space)
    assert (calibration.method, (run / "calibration.json").is_file()) == ("platt", True)
    capsys.readouterr()
    np.testing.assert_allclose(predict(), calibration.apply(logits_of(before, space)), atol=1e-4)
    # The thresholds are for calibrated scores; those of other programs' file for the model's own.
    levels = Thresholds.load(bundle / "thresholds.json", space)
    decisions = levels.decide(calibration.apply(logits_of(scores, space)))
    with open(bundle / "selected_tags.csv", encoding="utf-8", newline="") as file:
        raw = [row["best_threshold"] for row in csv.DictReader(file)]
    for column in np.flatnonzero(space.any_of):
        assert np.array_equal(scores[:, column] >= float(raw[column]), decisions[:, column])
    assert main(["evaluate", "--run", str(run), "--part", "val", "--include", "micro_brier"]) == 0
    printed = capsys.readouterr().out
    assert "note: scores are calibrated: platt" in printed
    again = Tagger.load(bundle, device="cpu")
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "calibration.json").read_bytes() == (bundle / "calibration.json").read_bytes()
    assert main(["evaluate", "--run", str(run), "--part", "train"]) == 0
    assert main(["calibrate", "--run", str(run), "--calibration", "loss"]) == 0
    assert main(["evaluate", "--run", str(run), "--part", "val"]) == 0
    capsys.readouterr()
    np.testing.assert_allclose(predict(), before, atol=1e-5)  # cross-entropy needs no undoing
    assert main(["calibrate", "--run", str(run), "--calibration", "none"]) == 0
    assert not (run / "calibration.json").exists()
    assert not (bundle / "calibration.json").exists()
    assert load_bundle(bundle).calibration is None


def test_a_run_is_judged_by_maps_that_have_not_seen_the_image(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    work = Run.open(tmp_path / "run", device="cpu")
    val = work.parts["val"]
    logits = logits_of(work.score("val").probabilities, val.space)
    work.calibrate(calibration="isotonic")
    work = Run.open(tmp_path / "run", device="cpu")
    fifths = stratified_split(val.targets, (0.2,) * 5, unknown=val.unknown)
    wanted, _ = cross_fit_calibration(logits, val.targets, "isotonic", folds=fifths, mask=val.unknown, space=val.space)
    np.testing.assert_allclose(work.evaluate(part="val").scores, wanted, atol=1e-5)


def test_a_recipes_loss_is_undone_with_its_weights_and_its_adjustment(trained: Path) -> None:
    work = Run.open(trained, device="cpu")
    train = work.parts["train"]
    told = {"loss": "focal", "loss_options": {"gamma": 1.0}, "weighting": "inverse_frequency", "logit_adjustment": 0.5}
    recipe = dataclasses.replace(work.recipe, **told)
    weight = class_weights(train.counts, train.known_counts, scheme="inverse_frequency", space=train.space)
    offset = 0.5 * train.space.prior_logits(train.counts, train.known_counts)
    logits = np.random.default_rng(0).normal(0, 2, (5, 5))
    wanted = undo_loss("focal", train.space, options={"gamma": 1.0}).apply(logits + offset)
    odds = logits_of(wanted, train.space) - np.log(weight)
    wanted = Calibration(5, space=train.space).apply(odds)
    np.testing.assert_allclose(undo_recipe_loss(recipe, train).apply(logits), wanted, atol=1e-9)
    with pytest.raises(ValueError, match="unknown calibration 'plat'"):
        dataclasses.replace(work.recipe, calibration="plat")
    with pytest.raises(ValueError, match="unknown calibration scope 'all'"):
        dataclasses.replace(work.recipe, calibration_scope="all")


def test_calibrate_offers_every_objective(trained: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    run = ["calibrate", "--run", str(trained)]
    assert main([*run, "--objective", "precision_floor", "--objective-option", "floor=0.9", "--scope", "group"]) == 0
    saved = json.loads((trained / "thresholds.json").read_text())
    assert (saved["objective"], saved["options"]) == ("precision_floor", {"floor": 0.9})
    recipe = json.loads((trained / "config.json").read_text())["recipe"]
    assert (recipe["objective"], recipe["objective_options"]) == ("precision_floor", {"floor": 0.9})
    assert main(["evaluate", "--run", str(trained), "--part", "val"]) == 0
    assert re.search(r"precision_floor by group: in sample macro_recall \d\.\d+, held out", capsys.readouterr().out)
    assert main([*run, "--objective", "top_k", "--objective-option", "k=2", "--scope", "global"]) == 0
    assert capsys.readouterr().out.startswith("TopK(k=2, scope='global')\nblue\t\n")
    image = str(data / "0.png")
    assert main(["predict", "--bundle", str(trained / "bundle"), image, "--format", "jsonl"]) == 0
    assert len(json.loads(capsys.readouterr().out)["labels"]) == 3  # two, and one of the exclusive group
    assert main([*run, "--objective", "recall_floor"]) == 2
    assert "needs floor=, the least recall wanted" in capsys.readouterr().err
    assert main([*run, "--objective", "f1", "--objective-option", "flor=1"]) == 2
    assert "did you mean 'floor'?" in capsys.readouterr().err
    assert main([*run, "--objective", "f1", "--scope", "label"]) == 0


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
def test_predict_writes_every_image_once(
    trained: Path, data: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture
) -> None:
    bundle = str(trained / "bundle")
    target = tmp_path / "predictions"
    assert main(["predict", "--bundle", bundle, str(data), "--format", format, "--to", str(target)]) == 0
    assert "80 images expected, 80 labelled, 0 skipped" in capsys.readouterr().err
    text = target.read_text()
    if format == "jsonl":
        images = [json.loads(line)["image"] for line in text.splitlines()]
    else:
        rows = list(csv.reader(text.splitlines(), delimiter="\t" if format == "tsv" else ","))
        assert set(rows[0]) == {"image", "red", "green", "blue", "dark", "light"}
        assert {cell for row in rows[1:] for cell in row[1:]} == {"0", "1"}
        images = [row[0] for row in rows[1:]]
    assert images == sorted(str(path) for path in data.glob("*.png"))
    capsys.readouterr()
    assert main(["predict", "--bundle", bundle, images[0], "--format", format]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[0 if format == "jsonl" else 1]


def test_the_doctor_finds_what_was_planted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reader = command(data, tmp_path / "unused")[1 : 1 + 2 * 6]
    assert main(["doctor", *reader, "--min-positives", "1", "--page", str(tmp_path / "page")]) == 0
    assert "found: 0 errors" in capsys.readouterr().out
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Labels per image" in page
    assert "green" in page
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "7.png").write_text("<html>")
    reader[3] = str(broken / "labels.csv")
    assert main(["doctor", *reader, "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(each["kind"], each["examples"]) for each in found if each["level"] == "error"] == [("unreadable", ["7"])]
    assert main(["doctor", *reader, "--no-images"]) == 0


def test_a_second_training_needs_resume(trained: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    before = (trained / "config.json").read_text()
    assert main(command(data, trained)) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert (trained / "config.json").read_text() == before
    assert main(command(data, trained, "--resume", "auto")) == 0


def test_the_opened_run_is_the_trained_one(trained: Path) -> None:
    first, second = Run.open(trained, device="cpu"), Run.open(trained, device="cpu")
    assert np.array_equal(first.score("val").probabilities, second.score("val").probabilities)
    assert len(first.limited(4).parts["val"]) == 4
    with pytest.raises(ValueError, match="no labelled part 'test'"):
        first.part_to_evaluate("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--run", "nowhere"], "nowhere is not a run"),
        (["predict", "--bundle", "nowhere", "a.jpg"], "nowhere is not a bundle"),
        (["train", "--reader", "csv", "--data", "nowhere.csv", "--run", "r"], "nowhere.csv"),
        (
            ["train", "--reader", "csv", "--data", "x", "--run", "r", "--min-count", "0", "--max-labels", "3"],
            "max_labels",
        ),
        (["train", "--reader", "csv", "--data", "x", "--run", "r", "--loss-option", "gamma"], "NAME=VALUE"),
        (["train", "--reader", "csv", "--data", "x", "--run", "r", "--lr", "-1"], "lr must be"),
        (["train", "--reader", "csv", "--data", "x", "--run", "r", "--labels", "no.txt"], "no such file no.txt"),
        (["train", "--reader", "csv", "--data", "x", "--run", "r", "--labels", " ,"], "labels names no label"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir()), "nothing is left behind by a command that could not begin"


@pytest.mark.parametrize("name", ["config.json", "thresholds.json"])
def test_a_broken_file_is_one_line_that_names_it(
    name: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trained / "bundle", bundle)
    whole = json.loads((bundle / name).read_text())
    documents = [[], 3, {}, *({**whole, key: [{"x": 1}]} for key in whole)]
    documents += [{other: whole[other] for other in whole if other != key} for key in whole]
    refused = 0
    for document in documents:
        (bundle / name).write_text(json.dumps(document))
        code = main(["predict", "--bundle", str(bundle), str(data / "0.png")])
        said = capsys.readouterr().err
        if code == 0:
            continue  # of what nothing depends on, such as notes
        refused += 1
        assert (code, said.strip().count("\n")) == (2, 0), document
        assert said.startswith("mlabel: error: ")
        assert str(bundle) in said, said
    assert refused > 5


def test_an_interrupt_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(path: str, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlabel.inference.Tagger.load", interrupted)
    assert main(["predict", "--bundle", "b", "a.jpg"]) == 130
    assert capsys.readouterr().err == "mlabel: interrupted\n"


def test_labels_are_chosen_by_a_list_or_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffdark\nred\n\nlight \r\n", encoding="utf-8")
    runs = [tmp_path / "list", tmp_path / "file"]
    for run, labels in zip(runs, ["light, red,dark", str(names)], strict=True):
        assert main(command(data, run, "--labels", labels, "--epochs", "1")) == 0
        capsys.readouterr()
        assert main(["evaluate", "--run", str(run), "--verbose"]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^red ", shown, re.M)
        assert not re.search(r"^(green|blue) ", shown, re.M)
        assert main(["calibrate", "--run", str(run)]) == 0
        assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["red", "dark", "light"]
        opened = Run.open(run, device="cpu")
        assert opened.model.space.names == opened.parts["train"].space.names == ("red", "dark", "light")
        assert len(opened.parts["train"]) == 60, "images without any of the labels stay"
        assert Recipe.from_dict(opened.recipe.to_dict()) == opened.recipe
    histories = [(run / "history.csv").read_text() for run in runs]
    assert histories[0] == histories[1]
    assert main(command(data, tmp_path / "none", "--labels", "red,gren")) == 2
    assert "unknown label 'gren'; did you mean 'green'" in capsys.readouterr().err
    # Other labels are another model, whatever the checkpoint says.
    assert main(command(data, runs[0], "--labels", "red", "--epochs", "1", "--resume", "auto")) == 2
    assert "the label space of" in capsys.readouterr().err


def test_the_doctor_looks_at_the_chosen_labels(data: Path, capsys: pytest.CaptureFixture) -> None:
    reader = command(data, Path("unused"))[1:-1]
    options = reader[: reader.index("--backbone")]
    assert main(["doctor", *options, "--labels", "red,blue", "--no-images", "--format", "json"]) in (0, 1)
    printed = capsys.readouterr().out
    assert "green" not in printed
    split = json.loads(printed)["split"]
    assert set(split["names"]) == {"red", "blue"}
    assert main(["doctor", *options, "--no-images", "--verbose"]) in (0, 1)
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["label", "positives", "train", "%", "val", "%"]
    assert {line.split()[0] for line in table[1:]} >= {"red", "green", "blue"}


def test_training_takes_sampler_mixing_and_smoothing(data: Path, tmp_path: Path) -> None:
    options = ["--sampler", "instance_aware", "--repeat-threshold", "0.9", "--mix", "mixup", "--label-smoothing", "0.1"]
    assert main(command(data, tmp_path / "a", *options, "--mix-alpha", "0.5", "--augment", "trivial_augment")) == 0
    train = Recipe.from_dict(json.loads((tmp_path / "a" / "config.json").read_text())["recipe"]).train
    assert (train.sampler, train.repeat_threshold, train.mix) == ("instance_aware", 0.9, "mixup")
    assert (train.mix_alpha, train.label_smoothing, train.augment) == (0.5, 0.1, "trivial_augment")


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture) -> None:
    for name in ("demo", "doctor", "train", "evaluate", "calibrate", "predict", "export", "index", "search"):
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        assert f"example: mlabel {name}" in capsys.readouterr().out


def test_the_module_is_the_command_and_imports_lazily() -> None:
    code = "import sys, mlabel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "mlabel", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in shown.stdout


def test_a_recipe_is_checked() -> None:
    with pytest.raises(ValueError, match="unknown reader 'cvs'; did you mean 'csv'"):
        Recipe("cvs", "x")
    with pytest.raises(ValueError, match=r"reader 'csv' has no option 'tag_column'; did you mean 'tags_column'"):
        Recipe("csv", "x", reader_options={"tag_column": "tags"})
    with pytest.raises(TypeError, match="labels must be a sequence of names; got 'cat'"):
        Recipe("csv", "x", labels="cat")
    recipe = Recipe("mirflickr", "x", train=TrainConfig(epochs=3))
    with pytest.raises(ValueError, match="unknown recipe setting 'bakbone'; did you mean 'backbone'"):
        Recipe.from_dict({**recipe.to_dict(), "bakbone": "resnet18"})


def test_a_run_goes_to_the_hub_with_its_card(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    to = tmp_path / "hub"
    assert main(["evaluate", "--run", str(trained), "--intervals", "50"]) == 0
    capsys.readouterr()
    assert main(["export", "--run", str(trained), "--format", "hub", "--to", str(to)]) == 0
    assert f"wrote {to / 'README.md'}" in capsys.readouterr().out
    names = {path.name for path in to.iterdir()}
    assert names == {path.name for path in (trained / "bundle").iterdir()} | {"README.md"}
    card = (to / "README.md").read_text()
    figures = json.loads((trained / "report" / "metrics-val.json").read_text())
    assert re.search(r"\| map \|.*\(0\.\d{4} to [01]\.\d{4}\) \|", card)
    assert f"{figures['columns']['calibrated']['metrics']['macro_f1']:.4f}" in card
    assert "20 of 20 images" in card
    report = trained / "report" / "metrics-val.json"
    held = report.read_text()
    try:
        report.write_text("{}")
        assert main(["export", "--run", str(trained), "--format", "hub", "--to", str(to)]) == 2
        assert "measure the run again" in capsys.readouterr().err
    finally:
        report.write_text(held)


@pytest.mark.parametrize(("part", "images"), [("val", 20), ("train", 60)])
def test_probable_label_errors_are_written_beside_the_report(trained: Path, part: str, images: int, capsys) -> None:
    capsys.readouterr()
    assert main(["label-issues", "--run", str(trained), "--part", part, "--rank", "margin", "--top", "1"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{part} part, ")
    assert f"on {images} images" in said.err
    assert ("cross-fitted in 5 folds" in said.err) == (part == "train")
    with open(trained / "report" / f"label-issues-{part}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert f"{part} part, {len(rows)} labels to look at" in said.out
    margins = [float(row["margin"]) for row in rows]
    assert margins == sorted(margins)
    page = (trained / "report" / f"label-issues-{part}" / "index.html").read_text(encoding="utf-8")
    assert f"Probable label errors, {part} part" in page
    assert page.count("data:image/jpeg") == len({row["kind"] for row in rows})


def test_label_issues_skip_what_cannot_be_read_and_keep_groups_together(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Run.open(trained)
    table = work.parts["train"]
    paths = table.paths.copy()
    paths[3] = str(tmp_path / "gone.png")
    table = dataclasses.replace(table, paths=paths, groups=np.arange(len(table)) // 2)
    train = dataclasses.replace(work.recipe.train, on_bad="skip", max_bad=0.5)
    recipe = dataclasses.replace(work.recipe, train=train)
    work = dataclasses.replace(work, recipe=recipe, parts={**work.parts, "train": table}, folder=tmp_path)
    dealt: list[np.ndarray] = []

    def note(*given: Any, folds: np.ndarray, **known: Any) -> np.ndarray:
        dealt.append(folds)
        return cross_fit_scores(*given, folds=folds, **known)

    monkeypatch.setattr("mlabel.recipes.label_issues.cross_fit_scores", note)
    found = find_run_issues(work, "train", folds=4)
    assert found.table.ids.tolist() == np.delete(table.ids, 3).tolist()
    assert len(found.scores) == len(table) - 1
    folds = dict(zip(found.table.ids.tolist(), dealt[0].tolist(), strict=True))
    pairs = table.ids.reshape(-1, 2)
    assert all(folds[first] == folds[second] for first, second in pairs.tolist() if first in folds and second in folds)
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "no such file"
    with pytest.raises(ValueError, match="folds must be between 2 and 59"):
        find_run_issues(work, "train", folds=1)
