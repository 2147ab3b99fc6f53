"""The sidecar reader: random folders there and back, images without text, texts that do not fit, vocabularies."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError, Group, LabelSpace
from mlabel.data.readers import read_sidecar


def folder(root: Path, samples: dict[str, str | bytes | None]) -> Path:
    for name, text in samples.items():
        image = root / name
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        if text is not None:
            image.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def label_names(table) -> list[set[str]]:
    return [set(names) for names in table.space.decode(table.targets)]


def refused(error, words, call, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in words:
        assert word in str(caught.value)


tag = (
    st.text(st.characters(codec="utf-8", exclude_characters=",|\r\n\0", exclude_categories=["C"]), min_size=1)
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(bool)
)
places = st.sampled_from(["", "b/", "a/", "a/b c/", "ä/"])


@given(
    st.dictionaries(st.tuples(places, st.integers(0, 99)), st.sets(tag, max_size=4), min_size=1, max_size=6),
    st.sampled_from([",", "|", ", ", "\n"]),
    st.sampled_from([".jpg", ".PNG", ".webp"]),
)
@settings(deadline=None, max_examples=50)
def test_reads_what_was_written(tmp_path_factory, samples, separator, suffix):
    named = {f"{place}{number}{suffix}": tags for (place, number), tags in samples.items()}
    root = folder(tmp_path_factory.mktemp("s"), {name: separator.join(sorted(tags)) for name, tags in named.items()})
    if not any(named.values()):
        refused(DataError, ["the most frequent is on 0"], read_sidecar, root, separator=separator)
        return
    table = read_sidecar(root, separator=separator)
    found = {os.path.relpath(path, root): tags for path, tags in zip(table.paths, label_names(table), strict=True)}
    assert found == named
    assert table.ids.tolist() == [os.path.splitext(os.path.relpath(path, root))[0] for path in table.paths]
    assert list(table.counts) == sorted(table.counts, reverse=True)


def test_walks_in_order_and_takes_labels_by_count(tmp_path):
    texts = {"z.jpg": "cat, dog ,cat,,", "b/1.png": "dog\r\nsky\r\n", "a/2.gif": "\ufeffdog", "a/1.jpeg": " "}
    root = folder(tmp_path, texts | {".hidden/x.jpg": "no", "._z.jpg": "no"})
    (root / "notes.txt").write_text("dog")
    table = read_sidecar(root)
    assert table.ids.tolist() == ["z", "a/1", "a/2", "b/1"]
    assert table.space.names == ("dog", "cat", "sky")
    assert label_names(table) == [{"cat", "dog"}, set(), {"dog"}, {"dog", "sky"}]
    assert table.notes == ("1 .txt files have no image beside them and were not read",)
    assert read_sidecar(root, min_count=2).space.names == ("dog",)
    (root / "z.caption").write_text("owl")
    table = read_sidecar(root, suffix=".caption", missing="skip")
    assert (label_names(table), table.notes) == ([{"owl"}], ("3 images without a .caption file were left out",))


@pytest.mark.fault(16)
def test_an_image_without_text_is_an_error_left_out_or_unknown(tmp_path):
    root = folder(tmp_path, {"a.jpg": "x, y", "b.jpg": None, "c.jpg": "x", "d.jpg": None})
    refused(FileNotFoundError, ["2 of 4 images", "b.jpg", "missing='skip'"], read_sidecar, root)
    table = read_sidecar(root, missing="skip")
    assert (table.ids.tolist(), table.notes) == (["a", "c"], ("2 images without a .txt file were left out",))
    assert table.unknown is None
    table = read_sidecar(root, missing="unknown")
    assert table.ids.tolist() == ["a", "b", "c", "d"]
    assert table.unknown.toarray().tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]
    assert label_names(table) == [{"x", "y"}, set(), {"x"}, set()]
    only = folder(tmp_path / "only", {"a.jpg": None})
    refused(FileNotFoundError, ["none of the 1 images"], read_sidecar, only, missing="skip")


def test_a_vocabulary_gives_labels_and_order(tmp_path):
    root = folder(tmp_path, {"a.jpg": "cat, dog, safe, rain", "b.jpg": "rain, sun", "c.jpg": "cafe\u0301, other"})
    table = read_sidecar(root, vocabulary=["owl", "dog", "caf\u00e9", "cat"], min_count=9)
    assert table.space == LabelSpace([Group("tags", ["owl", "dog", "café", "cat"])])
    assert label_names(table) == [{"dog", "cat"}, set(), {"café"}]
    assert table.notes == ("4 tags are not in the vocabulary and were left out (5 uses)",)
    space = LabelSpace([Group("rating", ["safe", "other"], exclusive=True), Group("tags", ["cat"])])
    table = read_sidecar(root, vocabulary=space)
    assert table.space == space
    assert label_names(table) == [{"safe", "cat"}, set(), {"other"}]
    assert table.unknown.toarray().tolist() == [[False] * 3, [True, True, False], [False] * 3]
    space.save(root / "labels.json")
    assert read_sidecar(root, vocabulary=str(root / "labels.json")).fingerprint == table.fingerprint
    (root / "tags.csv").write_text("tag_id,name,category\n1,safe,9\n2,other,9\n3,cat,0\n")
    assert label_names(read_sidecar(root, vocabulary=root / "tags.csv")) == label_names(table)
    refused(DataError, ["none of its 7 tags", "'cat'"], read_sidecar, root, vocabulary=["nothing"])


@pytest.mark.parametrize(
    ("samples", "options", "error", "words"),
    [
        ({"a.jpg": b"ok\n\xff"}, {}, DataError, ["a.txt, line 2", "UTF-8"]),
        ({"a.jpg": "x\0y"}, {}, DataError, ["a.jpg", "NUL"]),
        ({"a.jpg": "x\ry"}, {}, DataError, ["a.jpg", "newline"]),
        ({"a.jpg": "caf\u00e9", "b.jpg": "cafe\u0301"}, {}, DataError, ["b.jpg", "one name in Unicode form NFC"]),
        ({"a.jpg": "x", "a.png": "x"}, {}, DataError, ["a.jpg and a.png", "one text file"]),
        ({"a.jpg": "x"}, {"min_count": 2}, DataError, ["on 2 images or more", "is on 1"]),
        ({"a.jpg": "x"}, {"min_count": 0}, ValueError, ["min_count", "0"]),
        ({"a.jpg": "x"}, {"separator": ""}, ValueError, ["separator"]),
        ({"a.jpg": "x"}, {"missing": "skipp"}, ValueError, ["did you mean 'skip'"]),
        ({}, {}, FileNotFoundError, ["no images"]),
    ],
)
@pytest.mark.fault(14)
def test_says_what_does_not_fit(tmp_path, samples, options, error, words):
    refused(error, words, read_sidecar, folder(tmp_path, samples), **options)


@pytest.mark.fault(22)
def test_nothing_is_read_from_outside(tmp_path):
    outside = folder(tmp_path / "outside", {"secret.jpg": "secret", "far/b.jpg": "far"})
    root = folder(tmp_path / "in", {"a.jpg": "x"})
    (root / "linked").symlink_to(outside / "far")
    assert read_sidecar(root).ids.tolist() == ["a"]
    (root / "b.jpg").symlink_to(outside / "secret.jpg")
    (root / "b.txt").write_text("x")
    refused(DataError, ["outside"], read_sidecar, root)
    (root / "b.jpg").unlink()
    (root / "b.jpg").touch()
    (root / "b.txt").unlink()
    (root / "b.txt").symlink_to(outside / "secret.txt")
    refused(DataError, ["b.txt", "leads out"], read_sidecar, root)
    (root / "b.txt").unlink()
    os.mkfifo(root / "b.txt")
    refused(FileNotFoundError, ["b.txt"], read_sidecar, root)
    refused(FileNotFoundError, ["no such folder"], read_sidecar, root / "nothing")
