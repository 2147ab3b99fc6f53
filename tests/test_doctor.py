"""The doctor and its survey: every planted fault is found and nothing else; duplicates are sets."""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel.cli import main
from mlabel.data import ImageDataset, ImageTable, Loader, read_danbooru
from mlabel.data.doctor import Diagnosis, examine
from mlabel.data.facts import hash_look
from mlabel.data.survey import Survey, _near_pairs, survey_images
from mlabel.labels import Group, LabelSpace
from mlabel.report import plot_augmented, plot_sheet, write_diagnosis
from mlabel.taxonomy import Taxonomy

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """Smooth blobs, as photographs have: they survive being re-encoded and resized."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def make_table(paths: list[Path], targets: np.ndarray | None = None) -> ImageTable:
    held = np.tile([1, 0, 0, 1, 0], (len(paths), 1)) if targets is None else targets
    return ImageTable(paths=paths, ids=[f"{path.parent.name}/{path.name}" for path in paths], targets=held, space=SPACE)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, ImageTable]:
    """Clean parts of 6, 3 and 3 pictures, and the folder they lie in."""
    tables = {}
    for number, (name, size) in enumerate({"train": 6, "val": 3, "test": 3}.items()):
        (tmp_path / name).mkdir()
        paths = [tmp_path / name / f"{row}.png" for row in range(size)]
        for row, path in enumerate(paths):
            picture(100 * number + row).save(path)
        rows = np.arange(size)
        targets = np.stack([rows % 3 == 0, rows % 3 == 1, rows % 3 == 2, rows % 2 == 0, rows % 2 == 1], axis=1)
        tables[name] = make_table(paths, targets.astype(np.uint8))
    return tables


def diagnose(parts: dict[str, ImageTable], **options: object) -> Diagnosis:
    surveys = {name: survey_images(table) for name, table in parts.items()}
    return examine(parts, surveys, **{"min_positives": 1, **options})  # type: ignore[arg-type]


def data_of(diagnosis: Diagnosis) -> dict:
    return json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))


def kinds(diagnosis: Diagnosis) -> dict[str, int]:
    return {finding.kind: finding.count for finding in diagnosis.findings}


def test_clean_parts_have_no_finding(parts: dict[str, ImageTable]) -> None:
    diagnosis = diagnose(parts, expected_size=(48, 64))
    assert diagnosis.findings == ()
    assert diagnosis.worst() is None
    assert diagnosis.num_images == {"train": 6, "val": 3, "test": 3}
    assert diagnosis.counts["a"] == {"train": 2, "val": 1, "test": 1}
    assert diagnosis.labels_per_image.tolist() == [0, 12]


@pytest.mark.fault(3)
def test_planted_faults_of_images_are_found_and_named(parts: dict[str, ImageTable], tmp_path: Path) -> None:
    (tmp_path / "train" / "0.png").write_bytes(b"")
    (tmp_path / "train" / "1.png").unlink()
    (tmp_path / "train" / "2.png").write_text("<html>")
    Image.new("RGB", (300, 20)).save(tmp_path / "val" / "0.png")
    diagnosis = diagnose(parts, expected_size=(48, 64))
    unreadable = [finding for finding in diagnosis.findings if finding.kind == "unreadable"]
    assert {finding.examples for finding in unreadable} == {("train/0.png",), ("train/1.png",), ("train/2.png",)}
    assert len({finding.message for finding in unreadable}) == 3, "a distinct reason each"
    assert diagnosis.worst() == "error"
    assert kinds(diagnosis)["odd shape"] == 1
    assert kinds(diagnosis)["other size"] == 1


@pytest.mark.fault(12)
def test_pictures_in_two_parts_are_counted(parts: dict[str, ImageTable], tmp_path: Path) -> None:
    copy = Image.open(tmp_path / "train" / "3.png")
    copy.save(tmp_path / "val" / "1.png", compress_level=1)  # other bytes, the same picture
    again = Image.open(tmp_path / "train" / "4.png")
    again.resize((80, 60)).save(tmp_path / "test" / "2.png")  # near it
    again.save(tmp_path / "train" / "5.png")  # a copy inside a part leaks nothing
    diagnosis = diagnose(parts)
    found = {finding.kind: finding for finding in diagnosis.findings}
    assert found["same picture across parts"].examples == ("val/1.png",)
    assert found["near-duplicate across parts"].examples == ("test/2.png",)
    assert found["same picture"].count == 4
    assert found["same picture across parts"].level == "warning"
    assert "near-duplicate across parts" not in kinds(diagnose(parts, distance=0))


def test_findings_of_labels_by_hand() -> None:
    train = make_table([Path(f"t/{k}") for k in range(4)], np.array([[1, 1, 0, 1, 0]] * 2 + [[1, 0, 0, 0, 1]] * 2))
    val = make_table([Path(f"v/{k}") for k in range(2)], np.array([[1, 0, 0, 1, 0], [1, 0, 0, 1, 0]]))
    unlabelled = ImageTable(paths=["w"], targets=np.zeros((1, 5)), unknown=np.zeros((1, 5), dtype=bool), space=SPACE)
    diagnosis = examine({"train": train, "val": val, "test": unlabelled}, min_positives=2)
    found = {(finding.kind, finding.examples) for finding in diagnosis.findings}
    assert found == {
        ("never present", ("c",)),
        ("always present", ("a",)),
        ("one part only", ("b", "y")),
        ("few positives", ("b", "y")),
        ("no labels", ()),
    }
    assert diagnosis.labels_per_image.tolist() == [0, 4, 2]
    assert examine({"train": train[:1]}, min_positives=1).worst() == "warning"


def test_relations_are_numpys_correlation_and_honour_unknowns() -> None:
    rng = np.random.default_rng(0)
    tags = rng.random((200, 3)) < [0.5, 0.3, 0.2]
    tags[:, 1] |= tags[:, 0] & (rng.random(200) < 0.5)
    kind = np.eye(2)[rng.integers(0, 2, 200)]
    paths = [f"{row}" for row in range(200)]
    table = ImageTable(paths=paths, targets=np.hstack([tags, kind]), space=SPACE)
    diagnosis = examine({"train": table[:150], "val": table[150:]})
    order = [SPACE.index(name) for name in diagnosis.names]
    dense = table.targets.toarray()[:, order].astype(float)
    np.testing.assert_allclose(diagnosis.correlation, np.corrcoef(dense.T), atol=1e-12)
    assert np.array_equal(diagnosis.together, (dense.T @ dense).astype(int))
    mask = np.ones((200, 5), dtype=bool)
    mask[rng.random((200, 5)) < 0.3] = False
    mask[:, 3:] = True
    hidden = ImageTable(
        paths=paths, targets=np.hstack([tags & mask[:, :3], kind]), unknown=sp.csr_array(~mask), space=SPACE
    )
    diagnosis = examine({"train": hidden})
    i, j = diagnosis.names.index("a"), diagnosis.names.index("b")
    both = mask[:, 0] & mask[:, 1]
    assert diagnosis.correlation[i, j] == pytest.approx(np.corrcoef(tags[both, 0], tags[both, 1])[0, 1])


def test_implications_that_the_labels_break_are_counted_and_named() -> None:
    # a implies b, b implies c; y implies a. Rows: what holds of a b c | x y, and what is unknown.
    rows = {
        "whole": [1, 1, 1, 1, 0],
        "no b": [1, 0, 1, 1, 0],
        "no c": [0, 1, 0, 1, 0],
        "neither": [1, 0, 0, 1, 0],
        "who knows": [1, 0, 0, 1, 0],
        "by y": [0, 1, 1, 0, 1],
    }
    mask = np.ones((6, 5), dtype=bool)
    mask[4, 1:3] = False
    table = ImageTable(
        paths=list(rows), ids=list(rows), targets=np.array(list(rows.values())), unknown=mask, space=SPACE
    )
    taxonomy = Taxonomy(SPACE, implications=[("a", "b"), ("b", "c"), ("y", "a")], exclusive_hints=[("x", "{c}", "c")])
    diagnosis = examine({"train": table[:3], "val": table[3:]}, min_positives=1, taxonomy=taxonomy)
    found = {(each.child, each.parent): (each.count, each.examples) for each in diagnosis.implications}
    assert found == {
        ("a", "b"): (2, ("no b", "neither")),
        ("a", "c"): (1, ("neither",)),
        ("b", "c"): (1, ("no c",)),
        ("y", "a"): (1, ("by y",)),
    }
    assert [each.count for each in diagnosis.implications] == [2, 1, 1, 1], "the most frequent first"
    findings = {each.message: each for each in diagnosis.findings if each.kind == "implied missing"}
    whole = "4 images have labels that imply others which are absent, 5 in all"
    assert findings[whole].count == 4
    assert findings["'a' implies 'b': missing in 2 images"].examples == ("no b", "neither")
    assert findings["'y' implies 'a': missing in 1 image"].level == "warning"
    together = next(each for each in diagnosis.findings if each.kind == "exclusive together")
    assert together.message == "of 'x', '{c}', 'c', which exclude each other, two or more hold in 2 images"
    assert together.examples == ("whole", "no b")
    assert diagnosis.to_dict()["implications"][0]["child"] == "a"
    closed, unknown = taxonomy.close_targets(table.targets, table.unknown)
    made = ImageTable(paths=list(rows), ids=list(rows), targets=closed, unknown=unknown, space=SPACE)
    assert examine({"train": made}, taxonomy=taxonomy).implications == ()
    with pytest.raises(ValueError, match="label space of the taxonomy is another one"):
        examine({"train": table}, taxonomy=Taxonomy(LabelSpace([Group("tags", ["a", "b"])])))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_broken_implications_are_those_of_all_rows_and_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = LabelSpace([Group("tags", list("abcdef"))])
    names = space.names
    pairs = [(names[i], names[j]) for i in range(6) for j in range(i) if rng.random() < 0.3]
    taxonomy = Taxonomy(space, implications=pairs)
    targets, mask = rng.random((12, 6)) < 0.4, rng.random((12, 6)) < 0.8
    table = ImageTable(paths=[str(row) for row in range(12)], targets=targets & mask, unknown=mask, space=space)
    expected = {}
    for child, parent in zip(*np.nonzero(taxonomy.closure.toarray()), strict=True):
        rows = np.flatnonzero((targets & mask)[:, child] & mask[:, parent] & ~targets[:, parent])
        if len(rows):
            expected[names[child], names[parent]] = (len(rows), tuple(map(str, rows[:5])))
    diagnosis = examine({"train": table[:5], "val": table[5:]}, taxonomy=taxonomy)
    assert {(e.child, e.parent): (e.count, e.examples) for e in diagnosis.implications} == expected


def test_pairs_leave_out_what_an_exclusive_group_forbids() -> None:
    rng = np.random.default_rng(3)
    kind = np.eye(2)[rng.integers(0, 2, 100)]
    first = rng.random(100) < 0.5
    tags = np.stack([first, first ^ (rng.random(100) < 0.1), ~first], axis=1)
    table = ImageTable(paths=[str(row) for row in range(100)], targets=np.hstack([tags, kind]), space=SPACE)
    diagnosis = examine({"train": table})
    pairs = {frozenset((pair.one, pair.other)): pair for pair in diagnosis.pairs}
    assert len(pairs) == 9, "ten pairs of five labels, less x with y"
    assert frozenset("xy") not in pairs
    assert {diagnosis.pairs[0].one, diagnosis.pairs[0].other} == {"a", "c"}
    assert diagnosis.pairs[0].correlation == pytest.approx(-1)
    assert pairs[frozenset("ab")].together == int((tags[:, 0] & tags[:, 1]).sum())
    lines = dict(line.split(": ", 1) for line in diagnosis.text().splitlines())
    assert lines["opposed"].startswith(("a + c -1.00", "c + a -1.00"))
    assert "+0." in lines["correlated"]
    assert lines["positives of labels"].count(",") == 4


def test_text_and_json(parts: dict[str, ImageTable]) -> None:
    diagnosis = diagnose(parts, expected_size=(9, 9))
    assert diagnosis.sizes == {(48, 64): 12}
    assert data_of(diagnosis)["sizes"] == [[48, 64, 12]]
    text = diagnosis.text()
    assert "image sizes, height x width: 48 x 64 (12)" in text.splitlines()
    assert "warning: 6 images of part train are not 9 x 9: train/0.png" in text
    assert text.splitlines()[-1] == "found: 0 errors, 3 warnings, 0 notes"
    data = data_of(diagnosis)
    assert data["findings"][0]["kind"] == "other size"
    with pytest.raises(ValueError, match="a survey of the 6 images of part 'train'"):
        examine(parts, {})
    with pytest.raises(ValueError, match="no part"):
        examine({})


def test_the_page_says_what_the_text_says(parts: dict[str, ImageTable], tmp_path: Path) -> None:
    diagnosis = diagnose(parts, expected_size=(9, 9))
    page = write_diagnosis(tmp_path / "a", diagnosis, title="Doctor").read_text(encoding="utf-8")
    for line in diagnosis.text().splitlines()[1:-1]:
        assert html.escape(line) in page
    assert page.count("<figure>") == 3
    kind = LabelSpace([SPACE.groups[1]])
    exclusive = ImageTable(paths=["a", "b"], targets=np.eye(2), space=kind)
    diagnosis = examine({"train": exclusive})
    assert "labels per image" not in diagnosis.text()
    assert "Labels per image" not in write_diagnosis(tmp_path / "b", diagnosis, title="Doctor").read_text()


def brute_sets(values: list[int], distance: int) -> list[set[int]]:
    sets = [{row} for row in range(len(values))]
    for one in range(len(values)):
        for other in range(one):
            if (values[one] ^ values[other]).bit_count() <= distance:
                first = next(each for each in sets if one in each)
                second = next(each for each in sets if other in each)
                if first is not second:
                    sets.remove(second)
                    first |= second
    return sorted(sets, key=min)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60)
def test_near_duplicates_are_those_of_all_pairs(seed: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(1, 2**64, 4, dtype=np.uint64)
    looks = centres[rng.integers(0, 4, 14)]
    for _ in range(5):
        looks ^= np.uint64(1) << rng.integers(0, 64, 14).astype(np.uint64)
    ones = np.ones(14, dtype=np.int32)
    pixels = np.stack([np.arange(14), np.arange(14)], axis=1).astype(np.uint64)
    sets = Survey(ones, ones, pixels, looks, {}, None).duplicates(distance)  # type: ignore[arg-type]
    expected = brute_sets([int(look) for look in looks], distance)
    assert [set(np.flatnonzero(sets == leader).tolist()) for leader in np.unique(sets)] == expected
    pairs = list(_near_pairs(np.unique(looks), distance))
    assert all(((each >= 0) & (each < 14)).all() for each in pairs)


def test_looks_survive_encoding_and_size_but_tell_pictures_apart() -> None:
    looks = []
    for seed in range(30):
        held = picture(seed, (192, 256))
        look = hash_look(np.asarray(held))
        smaller = hash_look(np.asarray(held.resize((200, 150))))
        assert (look ^ smaller).bit_count() <= 4
        looks.append(look)
    apart = [(one ^ other).bit_count() for k, one in enumerate(looks) for other in looks[:k]]
    assert min(apart) > 8
    assert hash_look(np.full((9, 9, 3), 200, dtype=np.uint8)) == 0


def test_flat_and_unreadable_pictures_are_no_near_duplicates(tmp_path: Path) -> None:
    for name, level in (("a", 10), ("b", 240), ("c", 10)):
        Image.new("L", (20, 20), level).save(tmp_path / f"{name}.png")
    survey = survey_images(make_table([tmp_path / f"{name}.png" for name in "abcd"] + [tmp_path / "e.png"]))
    assert survey.duplicates(4).tolist() == [0, 1, 0, 3, 4]


def test_workers_do_not_change_a_survey(parts: dict[str, ImageTable]) -> None:
    one, two = survey_images(parts["train"]), survey_images(parts["train"], num_workers=1)
    for field in ("heights", "widths", "pixels", "looks"):
        assert np.array_equal(getattr(one, field), getattr(two, field))


@pytest.fixture
def on_disk(tmp_path: Path) -> list[str]:
    """Pictures with a CSV file of tags; the options that read them."""
    tags = ["a", "a", "", "b", "a b"] + ["b"] * 15
    for row in range(20):
        picture(row).save(tmp_path / f"{row}.png")
    lines = [f"{row}.png,{held}" for row, held in enumerate(tags)]
    (tmp_path / "tags.csv").write_text("\n".join(["image,tags", *lines]))
    options = ["tags_column=tags", 'separator=" "']
    return [
        *("--reader", "csv", "--data", str(tmp_path / "tags.csv")),
        *(word for option in options for word in ("--reader-option", option)),
    ]


@pytest.mark.parametrize("augment", ["standard", "crop+rand_augment"])
def test_a_sample_is_shown_as_the_loader_gives_it(
    on_disk: list[str], tmp_path: Path, augment: str, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / "sheet.png"
    size = ["--image-size", "100", "--augment", augment, "--seed", "3", "--show-epochs", "2-4"]
    assert main(["doctor", *on_disk, "--show-augmented", "4", *size, "--to", str(target)]) == 0
    assert capsys.readouterr().out == "4: b, a\n"
    sheet = np.asarray(Image.open(target))
    table = ImageTable(paths=[tmp_path / f"{row}.png" for row in range(5)], targets=np.zeros((5, 5)), space=SPACE)
    with Loader(table, batch_size=2, image_size=100, augment=augment, seed=3, sampler="shuffle") as loader:
        for place, epoch in enumerate((2, 3, 4)):
            image = next(b.images[b.index == 4][0] for b in loader.epoch(epoch) if (b.index == 4).any())
            left = 8 + place * 108
            assert np.array_equal(sheet[8:108, left : left + 100], image.permute(1, 2, 0).numpy()), epoch
    assert len(np.unique(sheet[8:108].reshape(100, -1), axis=0)) > 1


def test_a_sample_that_is_not_there_and_epochs_that_are_none(on_disk: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", *on_disk, "--show-augmented", "33"]) == 2
    assert "none of the 20 images has the id '33'; the nearest are 3" in capsys.readouterr().err
    for epochs in ("7-3", "a", "-1", "1-"):
        assert main(["doctor", *on_disk, "--show-augmented", "3", f"--show-epochs={epochs}"]) == 2
        assert "--show-epochs wants a number or FIRST-LAST" in capsys.readouterr().err


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 30, 40), dtype=np.uint8)
    sheet = np.asarray(Image.open(plot_sheet([image] * 11, tmp_path / "s.png", captions=["x"] * 11)))
    shown = np.repeat(np.repeat(image[0], 4, axis=0), 4, axis=1)
    for top, left in ((8, 8), (8 + 120 + 26, 8 + 168)):
        assert np.array_equal(sheet[top : top + 120, left : left + 160], np.stack([shown] * 3, axis=2))
    assert sheet.shape == (8 + 2 * 146, 8 + 6 * 168, 3), "six in a row, and five"
    with pytest.raises(ValueError, match="images of one shape"):
        plot_sheet([], tmp_path / "s.png", captions=[])
    with pytest.raises(ValueError, match="captions must be one an image"):
        plot_sheet([image], tmp_path / "s.png", captions=[])
    with pytest.raises(ValueError, match="uint8"):
        plot_sheet([image / 255], tmp_path / "s.png", captions=["x"])


def test_a_sheet_of_no_epochs_is_refused(parts: dict[str, ImageTable], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images of one shape were wanted"):
        plot_augmented(ImageDataset(parts["train"], image_size=8), 0, epochs=[], path=tmp_path / "s.png")


def test_the_command_takes_a_taxonomy(on_disk: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    relations = {"format": "mlabel.taxonomy/1", "implications": [["a", "b"]]}
    (tmp_path / "relations.json").write_text(json.dumps(relations))
    command = ["doctor", *on_disk, "--no-images"]
    assert main([*command, "--taxonomy", str(tmp_path / "relations.json"), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(each["child"], each["parent"], each["count"]) for each in data["implications"]] == [("a", "b", 2)]
    assert set(data["implications"][0]["examples"]) == {"0", "1"}
    assert main([*command, "--taxonomy", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_command_reads_danboorus_implications_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "metadata").mkdir()
    posts = [{"id": str(k), "md5": "m", "rating": "s", "tag_string": "cat_ears"} for k in range(10)]
    posts += [{"id": str(k), "md5": "m", "rating": "q", "tag_string": "animal_ears cat_ears"} for k in range(10, 20)]
    (tmp_path / "metadata" / "posts0.json").write_text("\n".join(map(json.dumps, posts)))
    for number in range(20):
        folder = tmp_path / "512px" / f"{number:04d}"
        folder.mkdir(parents=True)
        picture(number).save(folder / f"{number}.jpg")
    command = ["doctor", "--reader", "danbooru", "--data", str(tmp_path), "--min-count", "1", "--no-images"]
    assert main(command) == 0
    assert "implies" not in capsys.readouterr().out
    relation = {"antecedent_name": "cat_ears", "consequent_name": "animal_ears", "status": "active"}
    (tmp_path / "metadata" / "tag_implications0.json").write_text(json.dumps(relation))
    assert main(command) == 0
    assert "'cat_ears' implies 'animal_ears': missing in 10 images" in capsys.readouterr().out
    assert main([*command, "--reader-option", "close_implications=true"]) == 0
    assert "implies" not in capsys.readouterr().out


@pytest.mark.realdata
def test_the_same_pictures_of_openclipart_have_one_parent(real_data: Path) -> None:
    table = read_danbooru(real_data / "danbooru", min_count=50)
    sets = survey_images(table).duplicates()
    parents = {
        leader: set(table.groups[sets == leader].tolist()) for leader in np.unique(sets[sets != np.arange(len(sets))])
    }
    assert len(parents) > 300
    assert sum(len(held) > 1 for held in parents.values()) <= 2
