"""The COCO reader: random tables there and back, crowd and difficult, parts, and files that do not hold together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError
from mlabel.data.readers import _json_stream, read_coco

CATEGORIES = {"cat": (17, "animal"), "dog": (18, "animal"), "car": (3, "vehicle"), "cup": (100, "kitchen")}


def content(samples: dict[str, list], **changes) -> dict:
    """A file of COCO instances; a label is a name, or a name with the flags of its annotation."""
    pairs = [(k, label) for k, labels in enumerate(samples.values()) for label in labels]
    pairs = [(k, label if isinstance(label, tuple) else (label, {})) for k, label in pairs]
    annotations = [
        {"id": n, "image_id": 40 + k, "category_id": CATEGORIES[name][0], "iscrowd": 0, "bbox": [0.5, 1, 2, 3], **flags}
        for n, (k, (name, flags)) in enumerate(pairs)
    ]
    made = {
        "info": {"year": 2017, "licenses": [[], {}]},
        "images": [{"id": 40 + k, "file_name": name, "width": 3} for k, name in enumerate(samples)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name, "supercategory": s} for name, (k, s) in CATEGORIES.items()],
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def write(path: Path, value, images=()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode())
    for name in images:
        (path.parent / name).touch()
    return path


def label_names(table) -> list[set[str]]:
    return [set(names) for names in table.space.decode(table.targets)]


def refused(error, words, call, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in words:
        assert word in str(caught.value)


flags = st.fixed_dictionaries({"iscrowd": st.integers(0, 1)}, optional={"difficult": st.booleans()})
annotation = st.tuples(st.sampled_from(sorted(CATEGORIES)), flags)
MEANING = {"ignore": 0, "unknown": 1, "present": 2}


@given(
    st.lists(st.lists(annotation, max_size=5), min_size=1, max_size=6),
    st.sampled_from(sorted(MEANING)),
    st.sampled_from(sorted(MEANING)),
    st.permutations(["info", "images", "annotations", "categories"]),
    st.sampled_from([7, 30, 1 << 20]),
)
@settings(deadline=None, max_examples=60)
def test_reads_what_was_written_whatever_the_order_and_the_window(
    tmp_path_factory, samples, crowd, difficult, order, window
):
    named = {f"{k}.jpg": sample for k, sample in enumerate(samples)}
    made = content(named)
    path = write(tmp_path_factory.mktemp("c") / "a.json", {key: made[key] for key in order}, named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_json_stream, "_CHUNK", window)
        table = read_coco(path, crowd=crowd, difficult=difficult)
    # The plain rule: the strongest word of the annotations of a category.
    wanted = np.zeros((len(samples), 4), dtype=int)
    for row, sample in enumerate(samples):
        for name, given_flags in sample:
            words = [2]
            words += [MEANING[crowd]] if given_flags["iscrowd"] else []
            words += [MEANING[difficult]] if given_flags.get("difficult") else []
            column = table.space.index(name)
            wanted[row, column] = max(wanted[row, column], min(words))
    np.testing.assert_array_equal(table.targets.toarray(), wanted == 2)
    unknown = np.zeros_like(wanted) if table.unknown is None else table.unknown.toarray()
    np.testing.assert_array_equal(unknown, wanted == 1)
    assert table.space.names == ("car", "cat", "dog", "cup")
    assert table.ids.tolist() == [str(40 + k) for k in range(len(samples))]


def test_supercategories_are_groups_where_asked_for(tmp_path):
    path = write(tmp_path / "a.json", content({"a.jpg": ["cat", "cup"], "b.jpg": []}), ["a.jpg", "b.jpg"])
    table = read_coco(path, group_by="supercategory")
    groups = [(group.name, group.labels) for group in table.space.groups]
    assert groups == [("vehicle", ("car",)), ("animal", ("cat", "dog")), ("kitchen", ("cup",))]
    assert label_names(table) == [{"cat", "cup"}, set()]
    assert [group.name for group in read_coco(path).space.groups] == ["categories"]
    bare = content({"a.jpg": []}, categories=[{"id": 1, "name": "cat"}])
    write(path, bare)
    assert read_coco(path).space.names == ("cat",)
    refused(DataError, ["categories[0]", "supercategory", "None"], read_coco, path, group_by="supercategory")


def test_ignored_annotations_and_lacking_ones_are_said(tmp_path):
    path = write(tmp_path / "a.json", content({"a.jpg": [("cat", {"ignore": 1}), "dog"]}), ["a.jpg"])
    table = read_coco(path, difficult="ignore")
    assert (label_names(table), table.notes) == ([{"dog"}], ("1 annotations of a.json were ignored, as asked for",))
    write(path, content({"a.jpg": []}, annotations=None))
    table = read_coco(path)
    assert table.known_counts.tolist() == [0, 0, 0, 0]
    assert "nothing is known" in table.notes[0]
    write(path, content({"a.jpg": []}))
    assert read_coco(path).unknown is None


@pytest.mark.parametrize("layout", ["beside", "below images", "exported"])
def test_a_folder_with_a_file_for_each_part(tmp_path, layout):
    samples = {"train": {"a.jpg": ["cat"]}, "val": {"a.jpg": ["dog"], "b.jpg": []}}
    for part, named in samples.items():
        images = {
            "beside": f"{part}2017",
            "below images": f"images/{part}2017",
            "exported": {"val": "valid"}.get(part, part),
        }
        folder = tmp_path / images[layout]
        folder.mkdir(parents=True)
        for name in named:
            (folder / name).touch()
        file = folder / "_annotations.coco.json"
        write(file if layout == "exported" else tmp_path / f"annotations/instances_{part}2017.json", content(named))
    table = read_coco(tmp_path)
    assert table.partition.tolist() == ["train", "val", "val"]
    assert table.ids.tolist() == ["train/40", "val/40", "val/41"]
    assert label_names(table) == [{"cat"}, {"dog"}, set()]
    assert all(Path(path).is_file() for path in table.paths)
    other = content(samples["val"], categories=[{"id": 17, "name": "kitten"}], annotations=[])
    write(file if layout == "exported" else tmp_path / "annotations/instances_val2017.json", other)
    refused(DataError, ["different categories", "id "], read_coco, tmp_path)


def test_a_folder_must_have_files_and_one_a_part(tmp_path):
    refused(FileNotFoundError, ["annotations/instances_train*.json"], read_coco, tmp_path)
    for year in (2014, 2017):
        write(tmp_path / f"annotations/instances_train{year}.json", content({}))
    refused(DataError, ["several files", "train2014", "train2017"], read_coco, tmp_path)


ONE = {"a.jpg": ["cat"]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (content(ONE, images=[{"id": 1, "file_name": "a.jpg"}] * 2), ["images[1]", "id '1'", "images[0]"]),
        (content(ONE, categories=[{"id": 17, "name": "x"}, {"id": 17, "name": "y"}]), ["categories[1]", "'17'"]),
        (
            content(ONE, categories=[{"id": 17, "name": "x"}, {"id": 2, "name": "x"}]),
            ["categories", "'x' occurs twice"],
        ),
        (content({"a.jpg": ["cat", ("dog", {"id": 0})]}), ["annotations[1]", "id '0'", "annotations[0]"]),
        (content({"a.jpg": [("cat", {"image_id": 9})]}), ["annotations[0]", "no image has the id 9"]),
        (content({"a.jpg": [("cat", {"category_id": 9})]}), ["annotations[0]", "no category has the id 9"]),
        (content({"a.jpg": [("cat", {"category_id": None})]}), ["annotations[0]", "'category_id'"]),
        (content({"a.jpg": [("cat", {"iscrowd": 2})]}), ["annotations[0]", "'iscrowd' must be 0 or 1; found 2"]),
        (content({"a.jpg": [("cat", {"id": 1.5})]}), ["annotations[0]", "1.5"]),
        (content({"a.jpg": [("cat", {"image_id": True})]}), ["annotations[0]", "True"]),
        (content(ONE, images=[{"file_name": "a.jpg"}]), ["images[0]", "no 'id'"]),
        (content(ONE, images=[{"id": 40}]), ["images[0]", "no 'file_name'"]),
        (content(ONE, images=[{"id": 40, "file_name": "../a.jpg"}]), ["images[0]", "outside"]),
        (content(ONE, images=[{"id": 40, "file_name": "\\ud800.jpg"}]), ["images[0]"]),
        (content(ONE, images=[7]), ["images[0]", "object", "7"]),
        (content(ONE, images={}), ["'images' must be a list"]),
        (content(ONE, images=[]), ["0 images"]),
        (content(ONE, images=None), ["no list 'images'"]),
        (content(ONE, categories=None), ["no list 'categories'"]),
        ([], ["'{' was wanted; found '['"]),
        (b"", ["'{' was wanted; found the end"]),
        (b'{"images": [', ["images[0]", "not JSON"]),
        (b'{"images": [{"id": 1, "file_name": "a"}} ', ["images[0]", "',' was wanted; found '}'"]),
        (b'{"images": [{"id": NaN}]}', ["images[0]", "NaN is not JSON"]),
        (b'{"images": [{"id": 1' + b"1" * 5000 + b"}]}", ["images[0]"]),
        (b'{"a": ' + b"[" * 200_000, ["a[0]", "nested too deeply"]),
        (b'{"a": ' + b'{"b":' * 200_000, ["nested too deeply"]),
        (b'{"a": 1, "a": 2}', ["a key", "'a'"]),
        (b'{"a": "\xff"}', ["not UTF-8"]),
        (b'{"a": 1} x', ["the end", "'x'"]),
        (b'{"a": 1,}', ["a key", "not JSON"]),
        (b"{1: 1}", ["a key", "found 1"]),
    ],
)
@pytest.mark.fault(11)
@pytest.mark.fault(20)
@pytest.mark.fault(22)
def test_names_the_bad_place(tmp_path, value, words):
    if isinstance(value, dict):
        value = json.dumps(value).replace("\\\\ud800", "\\ud800").encode()
    path = write(tmp_path / "a.json", value, ["a.jpg"])
    refused(DataError, ["a.json", *words], read_coco, path)


def test_refuses_options_and_files_that_are_not_there(tmp_path):
    refused(FileNotFoundError, ["nothing.json"], read_coco, tmp_path / "nothing.json")
    path = write(tmp_path / "a.json", content(ONE))
    refused(FileNotFoundError, ["1 of 1 images", "images[0]"], read_coco, path)
    refused(ValueError, ["did you mean 'unknown'"], read_coco, path, crowd="unknwon")
    refused(ValueError, ["group_by", "supercategory"], read_coco, path, group_by="super")


@pytest.mark.fault(20)
def test_a_member_that_never_ends_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(_json_stream, "MAX_LINE_BYTES", 5000)
    monkeypatch.setattr(_json_stream, "_CHUNK", 100)
    path = write(tmp_path / "a.json", b'{"images": [{"id": "' + b"x" * 100_000 + b'"}]}')
    refused(DataError, ["images[0]", "longer than 5,000"], read_coco, path)
    # Lists nobody asked for may be as long as they like.
    path = write(tmp_path / "b.json", content({"a.jpg": ["dog"]}, segments=[[1.5, 2]] * 20_000), ["a.jpg"])
    assert label_names(read_coco(path)) == [{"dog"}]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda e: st.lists(e) | st.dictionaries(st.text(), e)
    )
)
@settings(deadline=None, max_examples=60)
def test_the_stream_reads_what_json_reads(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("j")
    path = write(folder / "a.json", json.dumps({"k": value, "z": 1}, indent=1).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_json_stream, "_CHUNK", 3)
        found = list(_json_stream.read_object(path))
    members = list(enumerate(value)) or [(-1, None)] if isinstance(value, list) else [(None, value)]
    assert found == [*(("k", place, member) for place, member in members), ("z", None, 1)]
