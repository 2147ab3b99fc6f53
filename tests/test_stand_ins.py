"""Stand-ins of the published data sets: the readers take them, and they say what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mlabel.data import READERS
from mlabel.recipes import REPORTS, STAND_INS, Recipe, write_stand_in
from mlabel.recipes.stand_ins import _COLOURS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("stand-ins")
    return {reader: write_stand_in(reader, root / reader, num_images=120, side=60, seed=3) for reader in STAND_INS}


def pixels_of(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def read(reader, folders):
    options = {"min_count": 1, "with_rating": False} if reader == "danbooru" else {}
    return READERS[reader](folders[reader], **options)


@pytest.mark.parametrize("reader", STAND_INS)
def test_the_readers_take_them_for_the_real_ones(reader, folders):
    table = read(reader, folders)
    real = {"celeba": 40, "danbooru": 40, "fashion": 26, "mirflickr": 14}
    assert table.space.num_labels == real[reader]
    assert len(table) == 120
    assert (table.counts > 0).all()
    parts = table.parts()
    assert list(parts) == ["train", "val", "test"]
    if reader == "fashion":  # as in the real one, which keeps those labels to itself
        assert not parts["test"].known_counts.any()
        assert parts["val"].known_counts.all()
    if reader == "mirflickr":
        assert 0.3 < (table.targets.sum(axis=1) == 0).mean() < 0.7
        assert 0 < sum(pixels_of(path).ndim == 2 for path in table.paths) < 40


def ink_of(path: str, colour: tuple[int, int, int]) -> int:
    """Return how many pixels are near a colour."""
    return int((np.abs(pixels_of(path) - colour).max(axis=2) < 40).sum())


def test_a_label_holds_where_its_colour_is_drawn(folders):
    table = read("danbooru", folders)
    for name in ("red", "blue"):
        columns = [column for column, label in enumerate(table.space.names) if label.startswith(f"{name}_")]
        marks = np.asarray(table.targets[:, columns].sum(axis=1)).ravel()
        ink = np.array([ink_of(path, _COLOURS[name]) for path in table.paths])
        assert np.median(ink[marks == 0]) < 0.3 * np.median(ink[marks >= 2])
        assert np.corrcoef(marks, ink)[0, 1] > 0.6


def test_equal_seeds_give_equal_files_and_what_is_there_is_used(tmp_path, folders):
    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    again = write_stand_in("fashion", tmp_path / "again", num_images=120, side=60, seed=3)
    assert contents(again) == contents(folders["fashion"])
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    assert write_stand_in("fashion", again, num_images=120, side=60, seed=3) == again
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before
    next((again / "img").iterdir()).unlink()
    write_stand_in("fashion", again, num_images=120, side=60, seed=3)
    assert contents(again) == contents(folders["fashion"])
    other = write_stand_in("fashion", again, num_images=120, side=60, seed=4)
    assert contents(other) != contents(folders["fashion"])


def test_messages(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'celeba'"):
        write_stand_in("celebs", tmp_path / "a")
    with pytest.raises(ValueError, match="num_images must be at least 50"):
        write_stand_in("celeba", tmp_path / "a", num_images=49)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="something else than a stand-in; name a new or an empty folder"):
        write_stand_in("celeba", tmp_path)


@pytest.mark.parametrize("name", REPORTS)
def test_the_settings_of_a_report_are_a_recipe_that_is_kept_as_json(name):
    report = REPORTS[name]
    assert Recipe.from_dict(report.recipe.to_dict()) == report.recipe
    assert all(0 < value < 1 for figures in report.figures.values() for value in figures.values())
    assert report.title
    assert report.untold
