"""Bulk prediction: parts by any number of processes, each image once whatever is killed, formats that read back."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel import DataError, Tagger
from mlabel.cli import main
from mlabel.data import ImageTable, build_cache, read_shards, write_shards
from mlabel.inference import Prediction, build_index, predict_all, read_predictions, write_predictions
from mlabel.inference.predictions import Kept
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model
from mlabel.taxonomy import Taxonomy

SPACE = LabelSpace([Group("tags", ["cat", "dog", "=sum"]), Group("rating", ["safe", "other"], exclusive=True)])
COUNT = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, one of them empty, and a bundle."""
    folder = tmp_path_factory.mktemp("bulk")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03d}.png")
    (folder / "images" / "017.png").write_bytes(b"")
    torch.manual_seed(3)
    Tagger(create_model("small_cnn", SPACE, image_size=8)).save(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Tagger:
    return Tagger.load(folder / "bundle", device="cpu")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "images").iterdir())


OPTIONS: dict[str, Any] = {"part_size": 8, "batch_size": 4, "on_bad": "skip", "max_bad": 0.5}


def lines_of(folder: Path) -> list[str]:
    files = sorted(path for path in folder.glob("part-*.jsonl") if not path.name.endswith(".bad.jsonl"))
    return [line for path in files for line in path.read_text().splitlines()]


def work(bundle: Path, paths: list[str], to: Path, worker: tuple[int, int], delay: float) -> None:
    """Do a worker's share, slowly; this runs in a process of its own, to be killed."""

    def slowly(predictions: Iterable[Prediction], total: int, title: str) -> Iterable[Prediction]:
        for prediction in predictions:
            time.sleep(delay)
            yield prediction

    torch.set_num_threads(1)
    predict_all(Tagger.load(bundle, device="cpu"), paths, to, worker=worker, progress=slowly, **OPTIONS)


def kill_and_go_on(folder: Path, paths: list[str], to: Path, *, kills: int, seed: int) -> None:
    """Keep three workers at work, kill them at random times, then let them finish."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "mlabel.inference.bulk"])
    rng = random.Random(seed)

    def start(number: int, delay: float) -> Any:
        process = context.Process(target=work, args=(folder / "bundle", paths, to, (number, 3), delay))
        process.start()
        return process

    workers = [start(number, 0.02) for number in range(3)]
    killed = 0
    while killed < kills:
        time.sleep(rng.uniform(0.1, 0.7))
        number = rng.randrange(3)
        if workers[number].is_alive():
            os.kill(workers[number].pid, signal.SIGKILL)
            killed += 1
        workers[number].join()
        for part in to.glob("part-*.jsonl"):  # so that there is always something to do
            if rng.random() < 0.05:
                part.unlink()
        workers[number] = start(number, 0.02)
    for worker in workers:
        worker.join()
    for worker in [start(number, 0.0) for number in range(3)]:
        worker.join()
        assert worker.exitcode == 0


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_every_image_is_predicted_once_whatever_is_killed(
    folder: Path, tagger: Tagger, paths: list[str], tmp_path: Path, kills: int
) -> None:
    predict_all(tagger, paths, tmp_path / "whole", **OPTIONS)
    kill_and_go_on(folder, paths, tmp_path / "killed", kills=kills, seed=kills)
    expected = lines_of(tmp_path / "whole")
    assert len(expected) == COUNT - 1
    assert sorted(lines_of(tmp_path / "killed")) == sorted(expected)
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


@settings(max_examples=8, deadline=None)
@given(
    workers=st.integers(1, 5),
    part_size=st.integers(1, 60),
    batch_size=st.sampled_from([4, 7]),
    order=st.randoms(use_true_random=False),
)
def test_the_number_of_processes_changes_no_byte(
    tagger: Tagger,
    paths: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    workers: int,
    part_size: int,
    batch_size: int,
    order: random.Random,
) -> None:
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    options = {**OPTIONS, "part_size": part_size, "batch_size": batch_size}
    assert predict_all(tagger, paths, one, **options).missing == ()
    numbers = list(range(workers))
    order.shuffle(numbers)
    for number in numbers:
        result = predict_all(tagger, paths, many, worker=(number, workers), **options)
    assert (result.missing, result.skipped, result.images) == ((), 1, COUNT)
    assert {path.name: path.read_bytes() for path in many.iterdir()} == {p.name: p.read_bytes() for p in one.iterdir()}
    assert result.parts == len([path for path in one.glob("part-*.jsonl") if "bad" not in path.name])


def test_parts_hold_what_the_tagger_says(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    result = predict_all(tagger, paths, tmp_path, top=2, worker=(1, 3), **OPTIONS)
    assert result.missing == (0, 2, 3, 5, 6)
    readable = [path for path in paths if not path.endswith("017.png")]
    expected = {each.path: each for each in tagger.predict(readable)}
    found = [json.loads(line) for line in lines_of(tmp_path)]
    assert [each["image"] for each in found] == paths[8:16] + paths[32:40]
    for each in found:
        known = expected[each["image"]]
        assert each["labels"] == list(known.labels)
        best = np.argsort(-known.scores)[:2]
        assert list(each["scores"]) == [SPACE.names[column] for column in best]
        assert list(each["scores"].values()) == pytest.approx(known.scores[best].tolist(), rel=1e-5)
    predict_all(tagger, paths, tmp_path, top=2, worker=(2, 3), **OPTIONS)
    ledger = [json.loads(line) for line in (tmp_path / "part-00002.bad.jsonl").read_text().splitlines()]
    assert [each["image"] for each in ledger] == [paths[17]]
    assert "empty" in ledger[0]["reason"]


def test_a_part_of_bad_images_alone_is_written(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    for place in (0, 1, 2, 3, 8, 9, 10, 11):
        (tmp_path / f"{place}.png").write_bytes(b"")
    bad = [str(tmp_path / f"{place}.png") for place in (0, 1, 2, 3, 8, 9, 10, 11)]
    images = [*bad[:4], *paths[:4], *bad[4:]]
    result = predict_all(tagger, images, tmp_path / "to", **{**OPTIONS, "part_size": 4, "max_bad": 0.9})
    assert (result.parts, result.missing, result.skipped) == (3, (), 8)
    assert [json.loads(line)["image"] for line in lines_of(tmp_path / "to")] == paths[:4]
    assert (tmp_path / "to" / "part-00002.jsonl").read_text() == ""


def test_another_question_is_refused(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    predict_all(tagger, paths[:8], tmp_path, **OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match="something else: images was 8, now 9"):
        predict_all(tagger, paths[:9], tmp_path, **OPTIONS)
    with pytest.raises(DataError, match="names was"):
        predict_all(tagger, paths[1:9], tmp_path, **OPTIONS)
    with pytest.raises(DataError, match="top was None, now 3"):
        predict_all(tagger, paths[:8], tmp_path, top=3, **OPTIONS)
    with pytest.raises(DataError, match="part_size was 8, now 12"):
        predict_all(tagger, paths[:8], tmp_path, **{**OPTIONS, "part_size": 9})
    with pytest.raises(DataError, match="model was"):
        predict_all(Tagger(tagger.model, 0.4), paths[:8], tmp_path, **OPTIONS)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(DataError, match=r"plan\.json.*not an object"):
        predict_all(tagger, paths[:8], tmp_path, **OPTIONS)
    (tmp_path / "plan.json").write_bytes(before["plan.json"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrong_use_is_said(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"worker must be from \(0, 3\) to \(2, 3\); got \(3, 3\)"):
        predict_all(tagger, paths, tmp_path / "a", worker=(3, 3))
    with pytest.raises(ValueError, match="000"):
        predict_all(tagger, [paths[0], paths[1], paths[0]], tmp_path / "a")
    with pytest.raises(ValueError, match="no images"):
        predict_all(tagger, [], tmp_path / "a")
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        predict_all(tagger, paths, tmp_path / "a", format="xml")
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError, match="empty"):
        predict_all(tagger, paths, tmp_path / "b", part_size=8, batch_size=4)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "part-00000.jsonl",
        "part-00001.jsonl",
        "plan.json",
    ]


def test_cache_shards_and_files_give_the_same_scores(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    good = [path for path in paths if not path.endswith("017.png")][:20]
    table = ImageTable(paths=good, targets=np.zeros((20, SPACE.num_labels)), space=SPACE)
    build_cache(table, tmp_path / "cache", image_size=8)
    write_shards(table, tmp_path / "shards")
    tables = {
        "files": table,
        "cache": table.cached(tmp_path / "cache"),
        "shards": read_shards(tmp_path / "shards"),
    }
    for name, each in tables.items():
        predict_all(tagger, each, tmp_path / name / "to", **OPTIONS)
    expected = lines_of(tmp_path / "files" / "to")
    assert [json.loads(line)["image"] for line in expected] == table.ids.tolist()
    assert lines_of(tmp_path / "cache" / "to") == expected
    assert lines_of(tmp_path / "shards" / "to") == expected


def make_prediction(scores: list[float], path: str = "a.jpg") -> Prediction:
    row = np.array(scores, dtype=np.float32)
    held = row >= 0.5
    return Prediction(path, {SPACE.names[c]: float(row[c]) for c in np.flatnonzero(held)}, row, held)


PREDICTIONS = [make_prediction([0.9, 0.2, 0.5, 0.25, 0.75]), make_prediction([0.1, 0.0, 1.0, 0.5, 0.5], "=b.jpg")]


def test_long_tables_have_a_line_a_score() -> None:
    text = io.StringIO()
    assert write_predictions(text, PREDICTIONS, space=SPACE, format="csv", above=0.5, for_spreadsheet=True) == 2
    assert list(csv.reader(text.getvalue().splitlines())) == [
        ["image", "label", "score"],
        ["a.jpg", "cat", "0.9"],
        ["a.jpg", "other", "0.75"],
        ["a.jpg", "'=sum", "0.5"],
        ["'=b.jpg", "'=sum", "1"],
        ["'=b.jpg", "safe", "0.5"],
        ["'=b.jpg", "other", "0.5"],
    ]


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12),
    top=st.none() | st.integers(1, 14),
    above=st.none() | st.floats(0, 1),
)
def test_what_is_kept_are_the_highest_from_the_bound_on(
    scores: list[float], top: int | None, above: float | None
) -> None:
    row = np.array(scores, dtype=np.float32)
    kept = Kept(top, above).columns(row)
    if top is None and above is None:
        assert kept.tolist() == list(range(len(row)))
        return
    ranked = sorted(range(len(row)), key=lambda column: (-row[column], column))
    allowed = [column for column in ranked if above is None or row[column] >= np.float32(above)]
    assert kept.tolist() == allowed[:top]


@pytest.mark.parametrize("kept", [{}, {"top": 2}, {"above": 0.3}])
def test_parquet_reads_back(tmp_path: Path, kept: dict[str, Any]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "part-00000.parquet"
    with open(path, "wb") as file:
        assert write_predictions(file, PREDICTIONS, space=SPACE, format="parquet", **kept) == 2
    rows = parquet.read_table(path).to_pylist()
    assert [row["image"] for row in rows] == ["a.jpg", "=b.jpg"]
    for row, prediction in zip(rows, PREDICTIONS, strict=True):
        columns = Kept(**kept).columns(prediction.scores)
        assert row["labels"] == list(prediction.labels)
        assert row["scored"] == [SPACE.names[column] for column in columns]
        assert row["scores"] == prediction.scores[columns].tolist()
    text = tmp_path / "lines.jsonl"
    with open(text, "w") as file:
        write_predictions(file, PREDICTIONS, space=SPACE, format="jsonl", **kept)
    (space, batches), (same, lines) = read_predictions(tmp_path), read_predictions(text)
    assert space == same
    for (names, scores, _), (others, expected, _) in zip(batches, lines, strict=True):
        assert names == others
        assert np.allclose(scores.toarray(), expected.toarray(), rtol=1e-6)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        read_predictions(tmp_path)


def test_parts_become_an_index(tagger: Tagger, paths: list[str], tmp_path: Path) -> None:
    predict_all(tagger, paths, tmp_path / "to", **OPTIONS)
    space, batches = read_predictions(tmp_path / "to")
    assert set(space.names) == set(SPACE.names)
    index = build_index(tmp_path / "index", space, batches)
    assert len(index) == COUNT - 1
    with pytest.raises(FileNotFoundError, match="holds no parts"):
        read_predictions(tmp_path)


def test_a_taxonomy_makes_scores_and_decisions_agree(tagger: Tagger, paths: list[str]) -> None:
    taxonomy = Taxonomy(SPACE, implications=[("cat", "dog"), ("dog", "=sum")])
    plain = tagger.predict(paths[:9])
    levels = np.array([0.0, 1.0, 1.0, np.nan, np.nan])
    agreeing = Tagger(tagger.model, levels, taxonomy=taxonomy).predict(paths[:9])
    for before, after in zip(plain, agreeing, strict=True):
        expected = taxonomy.consistent_scores(before.scores[None])[0]
        assert np.array_equal(after.scores, expected)
        assert after.decisions[:3].tolist() == [True] * 3
        assert {"cat", "dog", "=sum"} <= set(after.labels)
    other = Taxonomy(LabelSpace([Group("tags", ["cat", "dog"])]), implications=[("cat", "dog")])
    with pytest.raises(ValueError, match="taxonomy"):
        Tagger(tagger.model, taxonomy=other)


def test_the_command_writes_parts_and_goes_on(
    folder: Path, tagger: Tagger, paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(paths) + "\n")
    command = ["predict", "--bundle", str(folder / "bundle"), "--list", str(tmp_path / "list.txt"), "--format", "jsonl"]
    command += ["--to", str(tmp_path / "to"), "--part-size", "8", "--batch-size", "4", "--on-bad", "skip"]
    command += ["--max-bad", "0.5", "--device", "cpu"]
    assert main([*command, "--worker", "0/2"]) == 0
    assert "50 images, 4 of 7 parts written, 1 images skipped" in capsys.readouterr().err
    assert main(command) == 0
    assert "50 images, 7 of 7 parts written, 1 images skipped" in capsys.readouterr().err
    predict_all(tagger, paths, tmp_path / "whole", **OPTIONS)
    assert lines_of(tmp_path / "to") == lines_of(tmp_path / "whole")


def test_processes_of_torchrun_share_the_work(
    folder: Path, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["predict", "--bundle", str(folder / "bundle"), *paths[:12], "--format", "jsonl", "--part-size", "4"]
    assert main([*command, "--batch-size", "4", "--to", str(tmp_path), "--device", "cpu"]) == 0
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00001.jsonl"]


def test_an_image_comes_on_stdin(folder: Path, tagger: Tagger, paths: list[str]) -> None:
    command = [sys.executable, "-m", "mlabel", "predict", "--bundle", str(folder / "bundle"), "-", "--format", "jsonl"]
    done = subprocess.run(command, input=Path(paths[3]).read_bytes(), capture_output=True, check=True)
    found = json.loads(done.stdout)
    known = tagger.predict(paths[3])[0]
    assert found["image"] == "-"
    assert list(found["scores"].values()) == pytest.approx(known.scores.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "images, --list or --reader with --data are wanted"),
        (["a.jpg", "--list", "x"], "one of the three"),
        (["--reader", "csv"], "--reader wants --data"),
        (["IMAGE", "--worker", "0/2"], "--worker wants --part-size"),
        (["IMAGE", "--part-size", "4"], "--part-size wants --to"),
        (["IMAGE", "--format", "parquet"], "--format parquet wants --to"),
        (["IMAGE", "--top", "0"], "top must be"),
        (["--list", "nowhere"], "nowhere"),
    ],
)
def test_wrong_commands_are_one_line(
    arguments: list[str], message: str, folder: Path, paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [paths[0] if each == "IMAGE" else each for each in arguments]
    assert main(["predict", "--bundle", str(folder / "bundle"), "--device", "cpu", *given]) == 2
    assert message in capsys.readouterr().err
