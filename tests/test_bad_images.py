"""Bad images in training, scoring and prediction: named or skipped and listed; nothing invented in their place."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mlabel._checks import DataError
from mlabel.cli import main
from mlabel.data import BadImage, ImageTable
from mlabel.inference import Prediction, escape_cell, unescape_cell, write_predictions
from mlabel.labels import Group, LabelSpace
from mlabel.losses import as_loss, create
from mlabel.models import Classifier, create_model
from mlabel.recipes import Run
from mlabel.training import BadLog, TrainConfig, fit, save_checkpoint, score_table, train

SPACE = LabelSpace([Group("tags", ["red", "green", "blue"])])
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.01, "precision": "fp32"}
SKIP: dict[str, Any] = {"on_bad": "skip", "max_bad": 0.5}


class Tiny(nn.Module):
    """A convolution with batch statistics, whose last feature map has `side` pixels a side."""

    num_features = 8

    def __init__(self, side: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.pool(self.conv(images))).relu().mean((2, 3))


def make_model(side: int = 5) -> Classifier:
    torch.manual_seed(7)
    return create_model(Tiny(side), SPACE, image_size=12)


def make_loss() -> nn.Module:
    return create("binary_cross_entropy", space=SPACE)


def write_images(folder: Path, number: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{k:03d}.png" for k in range(number)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    return paths


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    """Of 20 images the rows 2, 11 and 17 cannot be read."""
    (tmp_path / "images").mkdir()
    paths = write_images(tmp_path / "images", 20)
    for row in (2, 11, 17):
        damage(paths[row])
    targets = np.random.default_rng(1).random((20, 3)) < 0.4
    return ImageTable(paths=paths, targets=targets.astype(np.uint8), space=SPACE)


def lines(path: Path) -> list[tuple[str, str]]:
    """The place and id of each line, of which each must be whole."""
    read = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert all(set(each) == {"id", "path", "reason", "where"} and each["reason"] for each in read)
    assert not [each for each in read if each["path"] in each["reason"]], "the reason need not say what is said beside"
    return [(each["where"], each["id"]) for each in read]


def test_scores_are_of_the_images_that_can_be_read_and_of_no_other(table: ImageTable) -> None:
    model, loss = make_model(), as_loss(make_loss(), SPACE)
    kept = [row for row in range(20) if row not in (2, 11, 17)]
    scores = score_table(model, table, loss, batch_size=4, precision="fp32", on_bad="skip", max_bad=0.2)
    alone = score_table(model, table[kept], loss, batch_size=4, precision="fp32")
    assert scores.rows.tolist() == kept
    assert [(image.id, Path(image.path).name) for image in scores.bad] == [
        ("002", "002.png"),
        ("011", "011.png"),
        ("017", "017.png"),
    ]
    assert np.isnan(scores.probabilities[[2, 11, 17]]).all()
    np.testing.assert_allclose(scores.probabilities[kept], alone.probabilities, atol=1e-6)
    assert scores.loss == pytest.approx(alone.loss, abs=1e-6)
    probabilities, scored = scores.of_scored(table)
    assert np.isfinite(probabilities).all()
    assert scored.ids.tolist() == table[kept].ids.tolist()
    with pytest.raises(DataError, match=r"sample '002'.*002\.png"):
        score_table(model, table)
    bad: list[BadImage] = []
    with pytest.raises(DataError, match=r"2 of 20 images cannot be read, more than max_bad \(5\.00%\)"):
        score_table(model, table, batch_size=4, on_bad="skip", max_bad=0.05, bad=bad)
    assert [image.id for image in bad] == ["002", "011"]
    with pytest.raises(DataError, match="none of the 3 images can be read"):
        score_table(model, table[[2, 11, 17]], on_bad="skip", max_bad=1.0)


def test_training_goes_on_without_them_and_lists_each_once(
    table: ImageTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = table[[row for row in range(20) if row != 11]]
    run_dir = tmp_path / "run"
    history = fit(
        make_model(), make_loss(), table, kept, config=TrainConfig(**SETTINGS, **SKIP), run_dir=run_dir, progress="none"
    )
    listed = lines(run_dir / "bad.jsonl")
    assert len(listed) == len(set(listed)) == 5
    assert set(listed) == {("train", "002"), ("train", "011"), ("train", "017"), ("val", "002"), ("val", "017")}
    assert "3 of 20 train images skipped" in caplog.text
    assert "2 of 19 val images skipped" in caplog.text
    assert all(np.isfinite(entry["val_loss"]) for entry in history)


def test_training_stops_at_the_first_or_where_there_are_too_many(table: ImageTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample '0(02|11|17)'.*\.png"):
        fit(make_model(), make_loss(), table, config=TrainConfig(**SETTINGS), progress="none")
    config = TrainConfig(**SETTINGS, on_bad="skip", max_bad=0.1)
    with pytest.raises(DataError, match=r"3 of 20 images cannot be read, more than max_bad \(10\.00%\)"):
        fit(make_model(), make_loss(), table, config=config, run_dir=tmp_path / "run", progress="none")
    assert len(lines(tmp_path / "run" / "bad.jsonl")) == 3, "what was too much is listed too"


def test_what_is_skipped_is_on_the_disk_before_the_next_step(table: ImageTable, tmp_path: Path) -> None:
    config = TrainConfig(**SETTINGS | {"sampler": "sequential", "batch_size": 3}, **SKIP)
    seen = []
    for event in train(make_model(), make_loss(), table, config=config, run_dir=tmp_path / "run"):
        if event.kind == "step" and event.epoch == 0:
            path = tmp_path / "run" / "bad.jsonl"
            seen.append([name for _, name in lines(path)] if path.exists() else [])
    assert seen == [["002"]] * 3 + [["002", "011"]] * 2 + [["002", "011", "017"]] * 2


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_training_that_skips_goes_on_exactly(table: ImageTable, tmp_path: Path, stop: int) -> None:
    config = TrainConfig(**SETTINGS | {"accumulate": 2, "epochs": 3}, **SKIP)
    whole = make_model()
    expected = fit(whole, make_loss(), table, table, config=config, progress="none")
    run_dir = tmp_path / "run"
    events = train(make_model(), make_loss(), table, table, config=config, run_dir=run_dir)
    for event in events:
        if event.kind == "step" and event.step == stop:
            save_checkpoint(event.state, run_dir, data={"train": table.fingerprint, "val": table.fingerprint})
            break
    events.close()
    with open(run_dir / "bad.jsonl", "a") as file:
        file.write('{"id": "002", "pa')  # cut short by a kill
    model = make_model()
    history = fit(model, make_loss(), table, table, config=config, run_dir=run_dir, resume="auto", progress="none")
    assert history == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    listed = lines(run_dir / "bad.jsonl")
    assert sorted(listed) == [(place, name) for place in ("train", "val") for name in ("002", "011", "017")]


def test_a_training_that_a_bad_image_stopped_goes_on_without_it(table: ImageTable, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    content = Path(table.paths[2]).read_bytes()
    for row in (2, 11, 17):
        shutil.copy(str(table.paths[0]), str(table.paths[row]))
    first = TrainConfig(**SETTINGS)
    events = train(make_model(), make_loss(), table, config=first, run_dir=run_dir)
    assert any(event.kind == "checkpoint" for event in events)
    events.close()
    Path(table.paths[2]).write_bytes(content)
    with pytest.raises(DataError, match="sample '002'"):
        fit(make_model(), make_loss(), table, config=first, run_dir=run_dir, resume="auto", progress="none")
    config = TrainConfig(**SETTINGS, **SKIP)
    fit(make_model(), make_loss(), table, config=config, run_dir=run_dir, resume="auto", progress="none")
    assert lines(run_dir / "bad.jsonl") == [("train", "002")]


def test_a_training_begun_anew_does_not_keep_an_older_list(table: ImageTable, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "bad.jsonl").write_text('{"id": "x", "path": "x", "reason": "x", "where": "train"}\n')
    config = TrainConfig(**SETTINGS, **SKIP)
    fit(make_model(), make_loss(), table, config=config, run_dir=run_dir, progress="none")
    assert {name for _, name in lines(run_dir / "bad.jsonl")} == {"002", "011", "017"}


def test_the_list_keeps_places_apart_and_refuses_what_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    images = [BadImage(name, f"{name}.jpg", "cut\nshort \u2028") for name in "abc"]
    log = BadLog(path)
    assert not path.exists()
    log.add("train", images[:2])
    log.add("train", images[1:])
    log.add("val", images[:1])
    assert lines(path) == [("train", "a"), ("train", "b"), ("train", "c"), ("val", "a")]
    again = BadLog(path)
    assert again.of("train") == images
    again.replace("train", images[2:])
    assert lines(path) == [("val", "a"), ("train", "c")]
    again.replace("train", [])
    again.replace("val", [])
    assert not path.exists()
    path.write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 1: an object with id, path, reason, where"):
        BadLog(path)


def test_settings_of_bad_images_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown on_bad 'skp'; did you mean 'skip'"):
        TrainConfig(on_bad="skp")
    with pytest.raises(ValueError, match="max_bad"):
        TrainConfig(max_bad=1.5)


def test_oddities_are_said_once_at_the_end(table: ImageTable, caplog: pytest.LogCaptureFixture) -> None:
    good = table[[row for row in range(20) if row not in (2, 11, 17)]]
    for row in (0, 5):
        Image.new("RGB", (12, 12)).save(str(good.paths[row]), "JPEG", exif=b"Exif\0\0nonsense")
    fit(make_model(), make_loss(), good, config=TrainConfig(**SETTINGS), progress="none")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert re.fullmatch(r"passed over in training: .*EXIF.* \(4 times\)", said[0]), said
    notes = score_table(make_model(), good).notes
    assert list(notes.values()) == [2]


# The command line.


def write_data(folder: Path, number: int = 40) -> Path:
    """Write images and their annotations: of ten images seven are to train, two to validate and one to test on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,tags,part"]
    for path in write_images(folder, number):
        row = int(path.stem)
        tags = " ".join(name for name in SPACE.names if rng.random() < 0.5)
        rows.append(f"{path.name},{tags},{'train' if row % 10 < 7 else 'val' if row % 10 < 9 else 'test'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def command(data: Path, run: Path, *more: str) -> list[str]:
    reader = ["--reader", "csv", "--data", str(data / "labels.csv")]
    for option in ("tags_column=tags", 'separator=" "', "partition_column=part"):
        reader += ["--reader-option", option]
    model = ["--backbone", "small_cnn", "--image-size", "16", "--batch-size", "8", "--epochs", "1"]
    return ["train", *reader, *model, "--precision", "fp32", "--run", str(run), *more]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of which an image to train on (3), two to validate on (7, 8) and one to test on (29) are damaged."""
    data = write_data(tmp_path_factory.mktemp("broken") / "data")
    for row in (3, 7, 8, 29):
        damage(data / f"{row:03d}.png")
    return data


@pytest.fixture(scope="module")
def trained(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a"
    assert main(command(broken, run, "--on-bad", "skip", "--max-bad", "0.3")) == 0
    return run


def test_by_default_a_bad_image_stops_the_command_and_is_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(broken, tmp_path / "run")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"mlabel: error: sample '003': .*003\.png: ", error), error


def test_a_run_says_what_it_skipped(trained: Path, capsys: pytest.CaptureFixture) -> None:
    listed = lines(trained / "bad.jsonl")
    assert sorted(listed) == [("test", "029"), ("train", "003"), ("val", "007"), ("val", "008")]
    measured = json.loads((trained / "report" / "metrics-test.json").read_text())
    assert (measured["expected"], measured["scored"]) == (4, 3)
    assert measured["columns"]["prior"]["num_samples"] == 3
    page = (trained / "report" / "index.html").read_text()
    assert "scored 3 of 4 images" in page
    assert "images that training skipped, as they cannot be read: 1; see bad.jsonl" in page
    for part, scored in (("test", "3 of 4"), ("val", "6 of 8"), ("train", "27 of 28")):
        assert main(["evaluate", "--run", str(trained), "--part", part]) == 0
        printed = capsys.readouterr()
        assert f"{part} part, scored {scored} images" in printed.out
    assert sorted(lines(trained / "bad.jsonl")) == sorted(listed)
    assert main(["calibrate", "--run", str(trained)]) == 0
    assert main(["calibrate", "--run", str(trained), "--limit", "3"]) == 0
    counts = [
        row["count"] for row in csv.DictReader((trained / "bundle" / "selected_tags.csv").read_text().splitlines())
    ]
    assert counts == [str(count) for count in Run.open(trained, device="cpu").parts["train"].counts]


def test_the_figures_are_those_of_the_readable_images_alone(trained: Path, broken: Path) -> None:
    run = Run.open(trained, device="cpu")
    result = run.evaluate(part="val")
    assert (result.expected, result.scored) == (8, 6)
    assert np.isnan(result.scores).any(axis=1).sum() == 2
    kept = run.parts["val"][result.rows]
    assert not {"007", "008"} & set(kept.ids.tolist())
    alone = Run(run.folder, run.recipe, {**run.parts, "val": kept}, run.model).evaluate(part="val")
    assert alone.best.to_dict() == result.best.to_dict()


def test_predict_lists_what_it_skips(
    trained: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["predict", "--bundle", str(trained / "bundle"), str(broken), "--format", "csv"]
    target = tmp_path / "predictions.csv"
    assert main([*given, "--to", str(target)]) == 2
    assert re.search(r"sample '3': .*003\.png", capsys.readouterr().err)
    assert not target.exists()
    skip = [*given, "--on-bad", "skip", "--to", str(target)]
    assert main(skip) == 2
    assert "more than max_bad (0.10%)" in capsys.readouterr().err
    assert len(lines(tmp_path / "bad.jsonl")) == 4, "those of the first batch"
    assert main([*skip, "--max-bad", "0.2"]) == 0
    assert "40 images expected, 36 labelled, 4 skipped" in capsys.readouterr().err
    listed = lines(tmp_path / "bad.jsonl")
    assert [(place, Path(name).name) for place, name in listed] == [
        ("predictions.csv", f"{row:03d}.png") for row in (3, 7, 8, 29)
    ]
    assert len(target.read_text().splitlines()) == 37
    assert main([*given, "--on-bad", "skip", "--max-bad", "0.2"]) == 0
    printed = capsys.readouterr()
    assert len(re.findall(r"skipped \S+\.png: ", printed.err)) == 4
    assert main([*skip, "--limit", "3"]) == 0
    assert not (tmp_path / "bad.jsonl").exists(), "nothing was skipped in the newer predictions"
    assert main([*given, "--limit", "0"]) == 2


@pytest.mark.fault(33)
def test_changed_data_is_refused_unless_told_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    assert main(command(data, run, "--schedule", "constant")) == 0
    with open(data / "labels.csv", "a") as file:
        file.write("040.png,red,train\n")
    shutil.copy(data / "000.png", data / "040.png")
    capsys.readouterr()
    more = ["--schedule", "constant", "--epochs", "2", "--resume", "auto"]
    assert main(command(data, run, *more)) == 2
    error = capsys.readouterr().err
    assert re.search(r"data has changed .* train: ([0-9a-f]{64}) saved, (?!\1)[0-9a-f]{64} now", error)
    assert "--allow-changed-data" in error
    assert main(command(data, run, *more, "--allow-changed-data")) == 0
    assert len((run / "history.csv").read_text().splitlines()) == 3


@pytest.mark.fault(33)
def test_a_smaller_table_may_end_the_epoch_under_way(tmp_path: Path) -> None:
    targets = np.eye(3, dtype=np.uint8)[np.arange(20) % 3]
    (tmp_path / "images").mkdir()
    table = ImageTable(paths=write_images(tmp_path / "images", 20), targets=targets, space=SPACE)
    config = TrainConfig(**SETTINGS | {"save_every": 4, "schedule": "constant"})
    events = train(make_model(), make_loss(), table, config=config, run_dir=tmp_path / "run")
    assert any(event.kind == "checkpoint" for event in events)
    events.close()
    again = {"config": config, "run_dir": tmp_path / "run", "resume": "auto", "progress": "none"}
    history = fit(make_model(), make_loss(), table[:8], allow_changed_data=True, **again)
    assert [entry["epoch"] for entry in history] == [1, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "labels.csv"),
        (["000.png,red,train"], r"part 1 \(fraction 0\.1\) of 1 samples would be empty"),
        (["000.png,red,train", "001.png,,val"], r"an epoch has 1 image\(s\), fewer than a batch must have at least"),
        (["000.png,red,val", "001.png,,val"], "there is no training part"),
    ],
)
@pytest.mark.fault(34)
def test_too_few_images_are_an_error_of_one_line(
    tmp_path: Path, rows: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    data = write_data(tmp_path / "data", 4)
    (data / "labels.csv").write_text("\n".join(["image,tags,part", *rows]) + "\n")
    assert main(command(data, tmp_path / "run")) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert re.search(message, error[0]), error[0]


@pytest.mark.fault(34)
def test_a_batch_larger_than_the_table_is_the_whole_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_data(tmp_path / "data", 10)
    assert main(command(data, tmp_path / "run", "--batch-size", "500")) == 0
    assert "test part, scored 1 of 1 images" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run" / "history.csv").read_text().splitlines()))
    assert rows[0]["step"] == "1"


def test_without_labels_to_evaluate_on_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_data(tmp_path / "data", 10)
    assert main(command(data, tmp_path / "run", "--part", "tset")) == 2
    assert "there is no labelled part 'tset'; did you mean 'test'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.fault(34)
def test_a_last_batch_of_one_is_merged_and_a_batch_of_one_explained(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    targets = np.eye(3, dtype=np.uint8)
    table = ImageTable(paths=write_images(tmp_path / "images", 3), targets=targets, space=SPACE)
    events = list(train(make_model(1), make_loss(), table, config=TrainConfig(**SETTINGS | {"batch_size": 2})))
    assert [event.step for event in events if event.kind == "step"] == [1, 2], "one step an epoch, of all three"
    config = TrainConfig(**SETTINGS | {"batch_size": 1})
    assert len(fit(make_model(2), make_loss(), table, config=config, progress="none")) == 2
    with pytest.raises(ValueError, match=r"batch_size=1 .* batch normalisation.*batch_size=2 or more"):
        fit(make_model(1), make_loss(), table, config=config, progress="none")


@pytest.mark.fault(34)
def test_an_empty_table_is_refused(table: ImageTable) -> None:
    with pytest.raises(ValueError, match="the training table is empty"):
        fit(make_model(), make_loss(), table[:0], progress="none")
    with pytest.raises(ValueError, match="the validation table is empty"):
        fit(make_model(), make_loss(), table, table[:0], progress="none")


def test_the_demo_takes_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def noted(run_dir: str, **options: Any) -> None:
        told.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("mlabel.cli.runs.demo", noted)
    assert main(["demo", "--limit", "30"]) == 2
    assert told["limit"] == 30


# Cells that a spreadsheet would take for formulas.


@given(st.text(st.sampled_from("'=+-@\t\r\n\uff1da b"), max_size=5) | st.text())
@pytest.mark.fault(21)
def test_an_escaped_cell_is_no_formula_and_comes_back(text: str) -> None:
    escaped = escape_cell(text)
    assert escaped[:1] not in tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
    assert unescape_cell(escaped) == text
    assert escaped in (text, "'" + text)


@pytest.mark.parametrize("format", ["csv", "tsv"])
@pytest.mark.fault(21)
def test_predictions_for_a_spreadsheet_hold_no_formula(tmp_path: Path, format: str) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@sum", "cat", "'tis", "a,b\tc"]
    space = LabelSpace([Group("tags", names)])
    prediction = Prediction("=a.jpg", {}, np.zeros(7, np.float32), np.arange(7) % 2 == 0)
    rows = []
    for risky in (False, True):
        path = tmp_path / f"{risky}"
        with open(path, "w", newline="", encoding="utf-8") as file:
            write_predictions(file, [prediction], space=space, format=format, for_spreadsheet=not risky)
        with open(path, newline="", encoding="utf-8") as file:
            rows.append(list(csv.reader(file, delimiter="," if format == "csv" else "\t")))
    safe, plain = rows
    assert not [cell for row in safe for cell in row if cell[0] in "=+-@"]
    assert plain == [["image", *names], ["=a.jpg", "1", "0", "1", "0", "1", "0", "1"]]
    assert [[unescape_cell(cell) for cell in row] for row in safe] == plain


def test_lines_are_not_for_spreadsheets(tmp_path: Path, trained: Path, broken: Path) -> None:
    with open(tmp_path / "a", "w") as file, pytest.raises(ValueError, match="formats tsv and csv; got format 'jsonl'"):
        write_predictions(file, [], space=SPACE, format="jsonl", for_spreadsheet=True)
    target = tmp_path / "p.csv"
    image = str(broken / "000.png")
    options = ["--format", "csv", "--for-spreadsheet", "--to", str(target)]
    assert main(["predict", "--bundle", str(trained / "bundle"), image, *options]) == 0
    assert target.read_text().startswith("image,")
