"""The demonstration's scenes: right labels, nothing shared between partitions, legible digits, safe writing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from mlabel.data import read_csv
from mlabel.recipes import scenes as module
from mlabel.recipes.scenes import COUNT_NAMES, DIGIT_NAMES, PARTITIONS, compose_scenes, split_scans, write_scenes

seeds = st.integers(0, 2**31)


def sorted_rows(scans):
    return np.array(sorted(scans.reshape(len(scans), -1).tolist()))


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_every_scan_is_in_exactly_one_partition(seed):
    parts = split_scans(seed)
    together = np.concatenate([scans for scans, _ in parts.values()])
    np.testing.assert_array_equal(sorted_rows(together), sorted_rows(load_digits().images / 16))
    assert list(parts) == list(PARTITIONS)


def test_no_scan_looks_the_same_in_two_partitions():
    parts = [{scan.tobytes() for scan in scans} for scans, _ in split_scans(0).values()]
    assert not parts[0] & parts[2]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]


def test_every_digit_is_divided_alike():
    amounts = np.bincount(load_digits().target)
    for (_, digits), share in zip(split_scans(3).values(), PARTITIONS.values(), strict=True):
        np.testing.assert_allclose(np.bincount(digits), share * amounts, atol=1)


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 40))
def test_labels_say_what_was_drawn(seed, num_scenes):
    scans, digits = split_scans(0)["val"]
    scenes = compose_scenes(scans, digits, num_scenes=num_scenes, seed=seed)
    assert scenes.images.shape == (num_scenes, 32, 32)
    assert scenes.images.dtype == np.uint8
    for present, count, chosen in zip(scenes.digits, scenes.counts, scenes.scans, strict=True):
        drawn = digits[chosen[chosen >= 0]]
        assert len(drawn) == count
        assert set(np.flatnonzero(present)) == set(drawn)


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_equal_seeds_give_equal_scenes(seed):
    scans, digits = split_scans(0)["val"]
    first, again, other = (
        compose_scenes(scans, digits, num_scenes=5, seed=value).images for value in (seed, seed, seed + 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_no_digit_touches_another_or_leaves_the_canvas(seed):
    scenes = compose_scenes(*split_scans(0)["val"], num_scenes=100, seed=seed)
    for centres, count in zip(scenes.centres, scenes.counts, strict=True):
        own = centres[:count]
        assert np.isnan(centres[count:]).all()
        assert ((own >= 7) & (own <= 25)).all()
        gaps = np.abs(own[:, None] - own[None]).max(axis=2)[~np.eye(count, dtype=bool)]
        assert (gaps >= 13.8).all()


def test_each_digit_stands_out_where_it_is_said_to_stand_and_nothing_else_does():
    """A digit's own scan, scaled to its place, agrees with the ink there; elsewhere there is only faint ink."""
    scans, digits = split_scans(0)["test"]
    scenes = compose_scenes(scans, digits, num_scenes=200, seed=5)
    likeness, elsewhere = [], []
    for image, chosen, centres in zip(scenes.images, scenes.scans, scenes.centres, strict=True):
        ink = 1 - image / np.percentile(image, 80)
        covered = np.zeros((32, 32), dtype=bool)
        for scan, (x, y) in zip(chosen[chosen >= 0], centres[chosen >= 0], strict=True):
            box = (x - 6.5, y - 6.5, x + 6.5, y + 6.5)
            seen = Image.fromarray(ink.astype(np.float32)).crop([round(side) for side in box]).resize((8, 8))
            likeness.append(np.corrcoef(np.asarray(seen).ravel(), scans[scan].ravel())[0, 1])
            covered[max(0, round(y) - 9) : round(y) + 9, max(0, round(x) - 9) : round(x) + 9] = True
        elsewhere.extend(ink[~covered])
    assert np.mean(likeness) > 0.8
    assert np.quantile(likeness, 0.02) > 0.5
    assert np.quantile(elsewhere, 0.999) < 0.6


def test_digits_have_a_long_tail_and_counts_do_not():
    scenes = compose_scenes(*split_scans(0)["train"], num_scenes=4000)
    shares = np.sort(scenes.digits.mean(axis=0))
    assert 0.012 < shares[0] < 0.03
    assert 0.55 < shares[-1] < 0.68
    np.testing.assert_allclose(np.bincount(scenes.counts)[1:] / 4000, 0.25, atol=0.03)


def test_what_is_written_is_what_the_reader_reads(tmp_path):
    labels = write_scenes(tmp_path / "scenes", num_scenes=120, seed=7)
    table = read_csv(labels, tags_column="digits", separator=" ", exclusive=["count"], partition_column="partition")
    assert table.unknown is None
    assert set(table.space.names) <= {*DIGIT_NAMES, *COUNT_NAMES}
    parts, start = split_scans(7), 0
    for part, (name, amount) in enumerate({"train": 84, "val": 14, "test": 22}.items()):
        own = table[np.flatnonzero(np.asarray(table.partition) == name)]
        scenes = compose_scenes(*parts[name], num_scenes=amount, seed=7 * 3 + part)
        names = [
            {*(DIGIT_NAMES[k] for k in np.flatnonzero(row)), COUNT_NAMES[count - 1]}
            for row, count in zip(scenes.digits, scenes.counts, strict=True)
        ]
        assert [set(row) for row in table.space.decode(own.targets)] == names
        for path, image in zip(own.paths, scenes.images, strict=True):
            with Image.open(path) as read:
                np.testing.assert_array_equal(np.asarray(read), image)
        start += amount
    assert start == len(table)


def contents(folder: Path):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_written_before_is_used_as_it_is(tmp_path):
    labels = write_scenes(tmp_path / "a", num_scenes=30)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert write_scenes(tmp_path / "a", num_scenes=30) == labels
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before


@pytest.mark.parametrize("damage", ["image lost", "labels edited", "labels lost", "other seed", "other amount"])
def test_anything_else_of_ours_is_written_anew(tmp_path, damage):
    folder = tmp_path / "a"
    other = {"other seed": {"seed": 1}, "other amount": {"num_scenes": 40}}.get(damage, {})
    write_scenes(folder, **{"num_scenes": 30, **other})
    if damage == "image lost":
        next((folder / "images" / "val").iterdir()).unlink()
    if damage == "labels edited":
        text = (folder / "labels.csv").read_text()
        (folder / "labels.csv").write_text(text.replace("train,", "test,", 1))
    if damage == "labels lost":
        (folder / "labels.csv").unlink()
    write_scenes(folder, num_scenes=30)
    write_scenes(tmp_path / "b", num_scenes=30)
    assert contents(folder) == contents(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_interrupted_writing_leaves_nothing_under_the_name_and_the_next_succeeds(tmp_path, monkeypatch):
    draw, calls = module.compose_scenes, []

    def fail_at_the_second(*args, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*args, **options)

    monkeypatch.setattr(module, "compose_scenes", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "a", num_scenes=30)
    assert not (tmp_path / "a").exists()
    assert any((tmp_path / ".a.partial").rglob("*.png"))
    write_scenes(tmp_path / "a", num_scenes=30)
    write_scenes(tmp_path / "b", num_scenes=30)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("record", [None, "{", "[]", json.dumps({"format": "another/1"})])
def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, record):
    (tmp_path / "thesis.tex").write_text("years of work")
    if record is not None:
        (tmp_path / "scenes.json").write_text(record)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="something else than scenes; name a new or an empty folder"):
        write_scenes(tmp_path, num_scenes=30)
    assert contents(tmp_path) == before


def test_messages():
    scans, digits = split_scans(0)["val"]
    with pytest.raises(ValueError, match="num_scenes must be at least 1; got 0"):
        compose_scenes(scans, digits, num_scenes=0)
    kept = ~np.isin(digits, [3, 7])
    with pytest.raises(ValueError, match=r"none came for \[3, 7\]"):
        compose_scenes(scans[kept], digits[kept], num_scenes=4)
    with pytest.raises(ValueError, match="num_scenes must be at least 20"):
        write_scenes("never", num_scenes=19)
