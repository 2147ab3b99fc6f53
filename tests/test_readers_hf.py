"""The reader of Hugging Face data sets, on rows and features of the same shape: `datasets` itself is not needed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel import DataError, Group, LabelSpace
from mlabel.data import read_image
from mlabel.data.readers import READERS, read_hf


def picture(value: int, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, kind)
    return file.getvalue()


class Decoding(SimpleNamespace):
    """What `datasets.Image` is to the reader: a class whose `decode` says whether rows hold pictures or bytes."""

    def __init__(self, decode: bool = True) -> None:
        super().__init__(decode=decode)


class Rows:
    """What `datasets.Dataset` is to the reader."""

    def __init__(self, columns: dict[str, list], features: dict) -> None:
        self.columns, self.features = columns, features

    def select_columns(self, names):
        return Rows({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        return Rows(self.columns, self.features | {name: feature})

    def __iter__(self):
        assert not self.features["image"].decode, "pictures would be decoded only to be written again"
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, row, strict=True))


def classes(*names: str) -> SimpleNamespace:
    return SimpleNamespace(names=list(names))


def label_names(table) -> list[set[str]]:
    return [set(names) for names in table.space.decode(table.targets)]


def refused(error, words, call, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in words:
        assert word in str(caught.value)


def test_reads_features_as_their_names(tmp_path):
    columns = {
        "image": [{"bytes": picture(k), "path": None} for k in range(4)],
        "kind": [0, 1, -1, None],
        "tags": [[0, 2], [], [2], [1]],
        "new": [True, False, None, 1],
        "who": ["ann", "bob", "ann", "eve"],
        "size": [1, 2, 3, 4],
    }
    features = dict.fromkeys(columns) | {"image": Decoding(), "kind": classes("day", "night")}
    features["tags"] = SimpleNamespace(feature=classes("a", "b", "c"))
    options = {"tags_column": "tags", "label_columns": ["new"], "exclusive": ["kind"], "group_column": "who"}
    table = read_hf(Rows(columns, features), root=tmp_path, **options)
    assert table.space.names == ("c", "a", "b", "new", "day", "night")
    assert label_names(table) == [{"a", "c", "new", "day"}, {"night"}, {"c"}, {"b", "new"}]
    assert np.argwhere(table.unknown.toarray()).tolist() == [[2, 3], [2, 4], [2, 5], [3, 4], [3, 5]]
    assert table.groups.tolist() == ["ann", "bob", "ann", "eve"]
    assert table.ids.tolist() == ["0", "1", "2", "3"]
    assert [int(read_image(path)[..., 0].max()) for path in table.paths] == [0, 1, 2, 3]
    assert Path(table.paths[3]).name == "00000003.png"
    features["tags"] = [classes("a", "b", "c")]
    assert read_hf(Rows(columns, features), root=tmp_path, **options).fingerprint == table.fingerprint
    chosen = LabelSpace([Group("kind", ["night", "day"], exclusive=True), Group("tags", ["b", "new", "owl"])])
    table = read_hf(Rows(columns, features), root=tmp_path, vocabulary=chosen, **options)
    assert table.space == chosen
    assert label_names(table) == [{"day", "new"}, {"night"}, set(), {"b", "new"}]
    features["kind"] = classes("day")
    refused(DataError, ["row 1:", "-1 to 0", "1"], read_hf, Rows(columns, features), root=tmp_path, **options)
    refused(ValueError, ["'kid'", "size"], read_hf, Rows(columns, features), root=tmp_path, exclusive=["kid"])


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).map(str.strip).filter(bool)


@given(
    st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.lists(st.sets(texts), min_size=1), min_size=1)
)
@settings(deadline=None, max_examples=25)
def test_reads_the_tags_and_parts_given(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("h")
    tags = [sorted(_nfc(tag) for tag in sample) for samples in parts.values() for sample in samples]
    dataset = {
        name: [{"image": {"bytes": picture(7, "JPEG"), "path": "x"}, "tags": [_nfc(tag) for tag in s]} for s in samples]
        for name, samples in parts.items()
    }
    if not any(tags):
        refused(DataError, ["the data set", "is on 0"], read_hf, dataset, root=folder, tags_column="tags")
        return
    table = read_hf(dataset, root=folder, tags_column="tags")
    assert label_names(table) == [set(sample) for sample in tags]
    names = {"train": "train", "validation": "val", "test": "test"}
    assert table.partition.tolist() == [names[name] for name, samples in parts.items() for _ in samples]
    assert [Path(path).relative_to(folder).as_posix() for path in table.paths] == [
        f"{names[name]}/{k:08d}.jpg" for name, samples in parts.items() for k in range(len(samples))
    ]


def _nfc(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


@pytest.mark.fault(22)
def test_takes_images_by_path_inside_the_root(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "in/b.png", "out.png"):
        (tmp_path / name).write_bytes(picture(1))
    rows = [{"image": "a.png", "tags": "x; y"}, {"image": {"path": str(tmp_path / "in" / "b.png")}, "tags": "x"}]
    options = {"root": tmp_path / "in", "tags_column": "tags", "separator": ";"}
    table = read_hf(rows, **options)
    assert label_names(table) == [{"x", "y"}, {"x"}]
    assert table.paths.tolist() == [str(tmp_path / "in" / name) for name in ("a.png", "b.png")]
    for path in ("../out.png", str(tmp_path / "out.png")):
        refused(DataError, ["row 0", "outside"], read_hf, [{"image": path, "tags": "x"}], **options)


def test_never_writes_over_another_image(tmp_path):
    def rows(value):
        return [{"image": {"bytes": picture(value)}, "tags": ["x"]}]

    first = read_hf(rows(1), root=tmp_path, tags_column="tags")
    assert read_hf(rows(1), root=tmp_path, tags_column="tags").fingerprint == first.fingerprint
    refused(DataError, ["row 0", "another image"], read_hf, rows(2), root=tmp_path, tags_column="tags")
    assert Path(first.paths[0]).read_bytes() == picture(1)
    assert [path.name for path in tmp_path.iterdir()] == ["00000000.png"]


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ({"image": {"bytes": b"x"}, "tags": None}, DataError, ["row 0", "[]", "None"]),
        ({"image": {"bytes": b"x"}, "tags": [None]}, DataError, ["row 0", "list of texts"]),
        ({"image": {"bytes": b"x"}, "tags": ["a\0b"]}, DataError, ["row 0", "NUL"]),
        ({"image": {"bytes": b"x"}, "tags": ["a\nb"]}, DataError, ["row 0", "newline"]),
        ({"image": Image.new("L", (1, 1)), "tags": []}, DataError, ["row 0", "decode=False"]),
        ({"image": None, "tags": []}, DataError, ["row 0", "a path"]),
        ({"picture": 1, "tags": []}, ValueError, ["'image'", "picture, tags"]),
    ],
)
@pytest.mark.fault(14)
def test_names_the_bad_row(tmp_path, row, error, words):
    refused(error, words, read_hf, [row], root=tmp_path, tags_column="tags")


def test_refuses_parts_it_does_not_know_and_no_labels(tmp_path):
    refused(ValueError, ["'all'", "train, validation and test"], read_hf, {"all": []}, root=tmp_path)
    refused(ValueError, ["one each"], read_hf, {"val": [], "validation": []}, root=tmp_path)
    refused(ValueError, ["no label columns"], read_hf, [{"image": {"bytes": b"x"}}], root=tmp_path)


def real_set(amount: int):
    """Return a data set of the library itself, with an image, classes, tags as class numbers, and a number."""
    library = pytest.importorskip("datasets")
    listed = getattr(library, "List", library.Sequence)
    features = library.Features(
        {
            "image": library.Image(),
            "kind": library.ClassLabel(names=["day", "night"]),
            "tags": listed(library.ClassLabel(names=["a", "b", "c"])),
            "words": listed(library.Value("string")),
            "new": library.Value("bool"),
            "who": library.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": picture(k), "path": None} for k in range(amount)],
        "kind": [[0, 1, -1, None][k % 4] for k in range(amount)],
        "tags": [[[0, 2], [], [2], [1]][k % 4] for k in range(amount)],
        "words": [["x", "y"][: k % 3] for k in range(amount)],
        "new": [[True, False, None, True][k % 4] for k in range(amount)],
        "who": [f"p{k // 2}" for k in range(amount)],
    }
    return library, library.Dataset.from_dict(rows, features=features)


def test_reads_what_the_library_itself_makes(tmp_path):
    library, rows = real_set(8)
    options = {"tags_column": "tags", "label_columns": ["new"], "exclusive": ["kind"], "group_column": "who"}
    table = read_hf(rows, root=tmp_path / "a", **options)
    assert table.space.names == ("c", "a", "b", "new", "day", "night")
    assert label_names(table) == [{"a", "c", "new", "day"}, {"night"}, {"c"}, {"b", "new"}] * 2
    assert np.argwhere(table.unknown[:4].toarray()).tolist() == [[2, 3], [2, 4], [2, 5], [3, 4], [3, 5]]
    assert [int(read_image(path)[..., 0].max()) for path in table.paths] == list(range(8))
    words = read_hf(rows.select([1, 2, 5]), root=tmp_path / "w", tags_column="words")
    assert label_names(words) == [{"x"}, {"x", "y"}, {"x", "y"}]
    parts = library.DatasetDict({"train": rows.select(range(5)), "test": rows.select(range(5, 8))})
    official = read_hf(parts, root=tmp_path / "b", **options)
    assert official.partition.tolist() == ["train"] * 5 + ["test"] * 3
    assert (official.targets != table.targets).nnz == 0
    parts.save_to_disk(tmp_path / "saved")
    assert read_hf(tmp_path / "saved", root=tmp_path / "b", **options).fingerprint == official.fingerprint
    assert READERS["hf"](str(tmp_path / "saved"), root=str(tmp_path / "b"), **options).paths.tolist() == list(
        official.paths
    )


def test_reads_a_folder_of_images_as_the_library_loads_it(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for part, kind, number in (("train", "cat", 1), ("train", "dog", 2), ("test", "cat", 3), ("test", "dog", 4)):
        path = tmp_path / "pictures" / part / kind / f"{number}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(number))
    loaded = library.load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"))
    table = read_hf(loaded, root=tmp_path, exclusive=["label"])
    assert table.space.names == ("cat", "dog")
    assert sorted(
        (int(read_image(p)[..., 0].max()), *held) for p, held in zip(table.paths, label_names(table), strict=True)
    ) == [
        (1, "cat"),
        (2, "dog"),
        (3, "cat"),
        (4, "dog"),
    ]
