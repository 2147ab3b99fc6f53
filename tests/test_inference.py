"""Prediction: a bundle gives back exactly what was saved, files have the promised form, strangers' files do nothing."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mlabel import DataError, Tagger
from mlabel.data import ImageTable
from mlabel.decisions import fit_thresholds
from mlabel.inference import find_images, load_bundle, save_bundle, write_predictions
from mlabel.labels import Group, LabelSpace, decide
from mlabel.models import Classifier, Head, create_model, from_config, replace_head
from mlabel.training import score_table

SPACE = LabelSpace([Group("general", ["cat", "a,b", 'say "x"']), Group("rating", ["safe", "other"], exclusive=True)])


def make_model() -> Classifier:
    torch.manual_seed(3)
    return create_model("small_cnn", SPACE, image_size=16).eval()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ImageTable:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    targets = np.hstack([rng.random((12, 3)) < 0.5, np.eye(2)[rng.integers(0, 2, 12)]]).astype(np.uint8)
    return ImageTable(paths=sorted(folder.glob("*.png")), targets=targets, space=SPACE)


@pytest.fixture(scope="module")
def tagger(table: ImageTable) -> Tagger:
    model = make_model()
    scores = score_table(model, table, precision="fp32").probabilities
    return Tagger(model, fit_thresholds(scores, table.targets, space=SPACE), counts=table.counts)


def test_a_saved_tagger_says_the_same(tagger: Tagger, table: ImageTable, tmp_path: Path) -> None:
    again = Tagger.load(tagger.save(tmp_path / "bundle"))
    first, second = tagger.predict(table.paths), again.predict(table.paths)
    for mine, theirs in zip(first, second, strict=True):
        assert np.array_equal(mine.scores, theirs.scores)
        assert np.array_equal(mine.decisions, theirs.decisions)
        assert mine.labels == theirs.labels
    again.save(tmp_path / "copy")
    for path in (tmp_path / "bundle").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def test_predictions_follow_the_rule_and_the_order_given(tagger: Tagger, table: ImageTable) -> None:
    paths = [str(table.paths[row]) for row in (5, 0, 5)]
    predictions = tagger.predict(paths, batch_size=2)
    assert [each.path for each in predictions] == paths
    scores = np.stack([each.scores for each in predictions])
    expected = decide(scores, tagger.thresholds, SPACE)
    assert np.array_equal(np.stack([each.decisions for each in predictions]), expected)
    for each, names in zip(predictions, SPACE.decode(expected), strict=True):
        assert set(each.labels) == set(names)
        assert list(each.labels.values()) == sorted(each.labels.values(), reverse=True)
    everything = tagger.predict(paths[0], threshold=0.0)[0]
    assert everything.decisions[:3].all()
    assert everything.decisions[3:].sum() == 1


def test_scores_do_not_depend_on_the_batch(tagger: Tagger, table: ImageTable) -> None:
    together = tagger.stream(table.paths, batch_size=12, precision="fp32")
    alone = tagger.stream(table.paths, batch_size=1, precision="fp32")
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-6)


def test_selected_tags_is_what_tagger_programs_read(tagger: Tagger, table: ImageTable, tmp_path: Path) -> None:
    tagger.save(tmp_path / "bundle")
    with open(tmp_path / "bundle" / "selected_tags.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["tag_id", "name", "category", "count", "best_threshold"]
    assert [row["name"] for row in rows] == list(SPACE.names)
    assert [row["category"] for row in rows] == ["0", "0", "0", "9", "9"]
    assert [int(row["count"]) for row in rows] == table.counts.tolist()
    assert [row["best_threshold"] for row in rows[3:]] == ["", ""]
    assert [float(row["best_threshold"]) for row in rows[:3]] == tagger.thresholds.values[:3].tolist()


def test_a_module_of_the_users_must_be_given_again(table: ImageTable, tmp_path: Path) -> None:
    class Own(nn.Module):
        num_features = 3

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * self.scale

    torch.manual_seed(0)
    tagger = Tagger(create_model(Own(), SPACE, image_size=16))
    tagger.save(tmp_path / "bundle")
    again = Tagger.load(tmp_path / "bundle", backbone=Own())
    assert np.array_equal(tagger.predict(table.paths)[0].scores, again.predict(table.paths)[0].scores)
    with pytest.raises(ValueError, match="backbone"):
        Tagger.load(tmp_path / "bundle")


class Halves(Head):
    """A head of a user's."""

    def __init__(self, num_features: int, space: LabelSpace) -> None:
        super().__init__(space)
        self.last = nn.Linear(num_features, space.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last(features / 2)

    def last_layers(self) -> list[nn.Linear]:
        return [self.last]


def test_a_head_of_the_users_must_be_given_again(table: ImageTable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("small_cnn", SPACE, head=Halves(384, SPACE), image_size=32).eval()
    model.init_bias(table.counts, len(table))
    assert model.config["head"] is None
    Tagger(model).save(tmp_path / "bundle")
    again = Tagger.load(tmp_path / "bundle", head=Halves(384, SPACE))
    assert np.array_equal(Tagger(model).predict(table.paths)[0].scores, again.predict(table.paths)[0].scores)
    images = torch.zeros(1, 3, 32, 32)
    assert torch.equal(model(images), model.head.last(model.features(images) / 2))
    other = replace_head(create_model("small_cnn", SPACE, image_size=32), SPACE, head=model.head)
    assert other.head is model.head
    with pytest.raises(ValueError, match="pass such a head as head="):
        Tagger.load(tmp_path / "bundle")
    with pytest.raises(ValueError, match="the model's head is 'linear'; head= is for"):
        from_config(create_model("small_cnn", SPACE).config, SPACE, head=model.head)
    with pytest.raises(TypeError, match=r"head must be a name or a mlabel\.models\.Head; got Linear"):
        create_model("small_cnn", SPACE, head=nn.Linear(384, 5))
    with pytest.raises(ValueError, match="head_options are for heads by name"):
        create_model("small_cnn", SPACE, head=model.head, head_options={"heads": 2})
    with pytest.raises(ValueError, match="the head"):
        create_model("small_cnn", LabelSpace([Group("tags", ["a"])]), head=model.head)


def test_files_have_one_column_a_label(tagger: Tagger, table: ImageTable) -> None:
    predictions = tagger.predict(table.paths[:3])
    for format, delimiter in (("tsv", "\t"), ("csv", ",")):
        text = io.StringIO()
        assert write_predictions(text, predictions, space=SPACE, format=format) == 3
        rows = list(csv.reader(io.StringIO(text.getvalue()), delimiter=delimiter))
        assert rows[0] == ["image", *SPACE.names]
        assert [row[0] for row in rows[1:]] == [each.path for each in predictions]
        assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == [
            each.decisions.astype(int).tolist() for each in predictions
        ]
    text = io.StringIO()
    write_predictions(text, predictions, space=SPACE, format="jsonl")
    lines = [json.loads(line) for line in text.getvalue().splitlines()]
    assert [set(line["labels"]) for line in lines] == [set(each.labels) for each in predictions]
    assert list(lines[0]["scores"]) == list(SPACE.names)
    with pytest.raises(ValueError, match="unknown format 'tvs'; did you mean 'tsv'"):
        write_predictions(text, predictions, space=SPACE, format="tvs")


def test_find_images_walks_folders_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == ["a.jpg", "b.PNG", "deep/c.webp"]
    assert find_images([tmp_path / "notes.txt"]) == [str(tmp_path / "notes.txt")]  # asked for by name
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_images([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image file"):
        find_images([tmp_path / "empty"])


def test_unreadable_images_stop_or_are_skipped_and_named(tagger: Tagger, table: ImageTable, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("<html>")
    paths = [str(table.paths[0]), str(broken), str(table.paths[1])]
    with pytest.raises(DataError, match=r"broken\.jpg"):
        tagger.predict(paths)
    bad: list[tuple[str, str]] = []
    kept = list(tagger.stream(paths, on_bad="skip", max_bad=0.5, bad=bad))
    assert [each.path for each in kept] == [paths[0], paths[2]]
    assert [path for path, _ in bad] == [str(broken)]
    assert bad[0][1]
    with pytest.raises(DataError):
        list(tagger.stream(paths, on_bad="skip", max_bad=0.001))


class Bomb:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "thresholds.json", "selected_tags.csv"])
def test_files_of_a_stranger_are_refused_and_run_nothing(
    tagger: Tagger, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tagger.save(tmp_path / "bundle")
    for content in (pickle.dumps(Bomb()), b"", b"{}", b"[]", b"null"):
        (folder / name).write_bytes(content)
        with pytest.raises((DataError, ValueError)):
            load_bundle(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.fault(19)
def test_a_bundle_with_changed_names_or_weights_is_refused(tagger: Tagger, tmp_path: Path) -> None:
    folder = tagger.save(tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    config["space"]["groups"][0]["labels"][0] = "dog"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="dog"):
        load_bundle(folder)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_bundle(tmp_path)
    folder = tagger.save(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["head"] = "mlp"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="do not fit the architecture"):
        load_bundle(folder)


def test_a_folder_that_is_no_bundle_is_not_replaced(tagger: Tagger, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(FileExistsError, match="not a bundle"):
        tagger.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").exists()
    with pytest.raises(ValueError, match="counts must be"):
        save_bundle(tmp_path / "b", tagger.model, counts=np.zeros(2))
    with pytest.raises(TypeError, match="fit_thresholds"):
        Tagger(tagger.model, 0.3).save(tmp_path / "c")
