"""Copies of a picture in one part: groups united, found once, the same parts whenever a run is opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel.cli import main
from mlabel.data import ImageTable, unite_groups
from mlabel.labels import Group, LabelSpace
from mlabel.recipes import Recipe, Run, copies
from mlabel.recipes.copies import keep_copies_together

SPACE = LabelSpace([Group("tags", ["a", "b"])])


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("pqrstuv")), min_size=1, max_size=15))
@settings(max_examples=80)
def test_united_groups_are_the_chains_of_both(pairs: list[tuple[int, str]]) -> None:
    first, second = [list(each) for each in zip(*pairs, strict=True)]
    expected = list(range(len(pairs)))
    for _ in pairs:  # the smallest number spreads by one link at a time
        for i in range(len(pairs)):
            for j in range(len(pairs)):
                if first[i] == first[j] or second[i] == second[j]:
                    expected[i] = min(expected[i], expected[j])
    assert unite_groups(first, second).tolist() == expected
    assert unite_groups(second, first).tolist() == expected
    alone = unite_groups(None, first)
    assert [alone.tolist().index(number) for number in alone.tolist()] == [first.index(each) for each in first]


def test_united_groups_want_one_length() -> None:
    with pytest.raises(ValueError, match=r"got lengths \[2, 3\]"):
        unite_groups([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"got lengths \[\]"):
        unite_groups(None, None)


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 images: numbers 0 to 29 each have a copy 30 higher, every third of them smaller or of other bytes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(30):
        held = picture(number)
        held.save(folder / f"{number}.png")
        held.resize((200, 150) if number % 3 == 0 else held.size).save(folder / f"{number + 30}.png", compress_level=1)
    # Persons link image k with image k + 1, for k = 0, 10, 20.
    lines = [f"{k}.png,{'a' if k % 2 else 'b'},{k // 10 if k % 10 < 2 and k < 30 else k + 100}" for k in range(60)]
    (folder / "tags.csv").write_text("\n".join(["image,tags,person", *lines]))
    return folder


def command(data: Path, run: Path, *more: str) -> list[str]:
    options = ["--reader-option", "tags_column=tags", "--reader-option", "group_column=person"]
    model = ["--backbone", "small_cnn", "--image-size", "16", "--epochs", "1", "--batch-size", "8"]
    return ["train", "--reader", "csv", "--data", str(data / "tags.csv"), *options, *model, "--run", str(run), *more]


def parts_of(run: Run) -> dict[str, list[str]]:
    return {name: table.ids.tolist() for name, table in run.parts.items()}


def test_a_run_keeps_copies_together_whenever_it_is_opened(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(command(data, run, "--duplicates", "4")) == 0
    said = "note: 60 images are copies of 30 pictures (hashes that differ in at most 4 of 64 bits); copies stay in one"
    printed = capsys.readouterr().out
    assert said in printed, printed
    opened = Run.open(run, device="cpu")
    part_of = {name: part for part, names in parts_of(opened).items() for name in names}
    assert set(part_of.values()) == {"train", "val", "test"}
    for number in range(30):
        assert part_of[str(number)] == part_of[str(number + 30)], number
    for number in (0, 10, 20):
        assert part_of[str(number)] == part_of[str(number + 1)] == part_of[str(number + 31)]
    assert len(np.unique(np.concatenate([table.groups for table in opened.parts.values()]))) == 27

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("images are not read again")

    monkeypatch.setattr(copies, "survey_images", refuse)
    assert parts_of(Run.open(run, device="cpu")) == parts_of(opened)
    assert main(["evaluate", "--run", str(run)]) == 0
    assert main(command(data, run, "--duplicates", "4", "--resume", "auto")) == 0
    (run / copies.FILE).write_text("[]")
    assert main(["evaluate", "--run", str(run)]) == 2
    assert "duplicates.json: not a file of duplicates" in capsys.readouterr().err


def test_without_the_setting_copies_are_torn_apart(data: Path, tmp_path: Path) -> None:
    """The test above could not fail otherwise."""
    recipe = Recipe("csv", str(data / "tags.csv"), reader_options={"tags_column": "tags"}, backbone="small_cnn")
    parts = parts_of(Run.begin(recipe, tmp_path / "run", say=lambda _: None))
    part_of = {name: part for part, names in parts.items() for name in names}
    assert any(part_of[str(number)] != part_of[str(number + 30)] for number in range(30))


def table_of(data: Path, partition: list[str] | None = None) -> ImageTable:
    paths = [data / f"{number}.png" for number in range(60)]
    return ImageTable(paths=paths, targets=np.zeros((60, 2)), space=SPACE, partition=partition)


def test_what_was_found_is_used_for_the_same_table_and_distance_only(data: Path, tmp_path: Path) -> None:
    table = table_of(data)
    near = keep_copies_together(table, 4, tmp_path)
    assert near.groups.tolist() == [*range(30)] * 2
    found = json.loads((tmp_path / copies.FILE).read_text())
    assert ["1", "31"] in found["sets"]
    exact = keep_copies_together(table, 0, tmp_path)
    assert exact.groups.tolist() == [*range(30), *(k + 30 if k % 3 == 0 else k for k in range(30))]
    assert exact.notes[-1].startswith("40 images are copies of 20 pictures (hashes that differ in at most 0 of")
    some = keep_copies_together(table[20:40], 4, tmp_path)
    assert some.groups.tolist() == [*range(20)]
    assert some.notes[-1].startswith("no image is a copy")


def test_official_parts_are_not_changed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = table_of(data, ["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    with pytest.raises(ValueError, match=r"official parts \(test, train, val\), which stay as they are"):
        keep_copies_together(whole, 4, tmp_path)
    assert not (tmp_path / copies.FILE).exists()
    # Off the training part of 40 a validation part is split: images 30 to 39 are copies of 0 to 9.
    partly = keep_copies_together(table_of(data, ["train"] * 40 + ["test"] * 20), 4, tmp_path)
    assert partly.groups.tolist() == [*range(30), *range(10), *range(40, 60)]
    parts = partly.parts()
    assert set(parts) == {"train", "val", "test"}
    for number in range(10):
        assert (str(number) in parts["val"].ids) == (str(number + 30) in parts["val"].ids)
    with pytest.raises(ValueError, match="duplicates must be between 0 and 16; got 17"):
        Recipe("csv", "x", duplicates=17)
