"""Readers of MIRFLICKR, FashionDataset, CelebA and CSV: what they give, what they refuse, and the real data sets."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError, Group, LabelSpace, data
from mlabel.data.readers import (
    READERS,
    _lines,
    read_celeba,
    read_csv,
    read_danbooru,
    read_fashion,
    read_mirflickr,
    write_submission,
)

REAL = os.environ.get("MLABEL_DATA", "")
realdata = [pytest.mark.realdata, pytest.mark.skipif(not REAL, reason="MLABEL_DATA names no folder")]


def write(path: Path, text: str, newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace("\n", newline).encode())
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name, "")


def refused(error, words, call, *args, **options) -> str:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(caught.value)
    return str(caught.value)


def label_names(table) -> list[list[str]]:
    return table.space.decode(table.targets)


# ---------------------------------------------------------------------------------------------------- mirflickr


def mirflickr(root: Path, *, images=(1, 2, 10, 3), **labels: str) -> Path:
    touch(root / "images", *(f"im{number}.jpg" for number in images), "Thumbs.db")
    for name, text in (labels or {"cat": "1\n10\n", "dog": "2\n1\n"}).items():
        write(root / "annotations" / f"{name}.txt", text)
    return root


def test_mirflickr_lists_the_images_on_disk_in_numeric_order(tmp_path):
    table = read_mirflickr(mirflickr(tmp_path))
    assert table.ids.tolist() == ["im1", "im2", "im3", "im10"]
    assert table.paths[3] == str(tmp_path / "images" / "im10.jpg")
    assert label_names(table) == [["cat", "dog"], ["dog"], [], ["cat"]]
    assert table.unknown is None
    assert table.partition is None
    assert table.notes == ()


@given(st.lists(st.sets(st.sampled_from(["a", "b", "c"])), min_size=1, max_size=8))
@settings(deadline=None, max_examples=20)
@pytest.mark.fault(16)
def test_mirflickr_reads_what_was_written(tmp_path_factory, samples):
    numbers = range(3, 3 + len(samples))
    files = {
        name: "".join(f"{k}\r\n" for k, sample in zip(numbers, samples, strict=True) if name in sample)
        for name in "abc"
    }
    table = read_mirflickr(mirflickr(tmp_path_factory.mktemp("m"), images=numbers, **files))
    assert [set(row) for row in label_names(table)] == samples


def test_mirflickr_takes_the_folder_above_chosen_labels_and_relevant_ones(tmp_path):
    root = mirflickr(tmp_path / "deep", cat="1\n99\n7\n", dog="2\n", cat_r1="2\n", README="Hello\n")
    table = read_mirflickr(tmp_path)
    assert label_names(table) == [["cat"], ["dog"], [], []]
    assert table.notes == ("2 annotations name an image that is not on disk and were left out",)
    assert read_mirflickr(root, labels=["dog", "cat"]).space.names == ("dog", "cat")
    relevant = read_mirflickr(root, relevant=True)
    assert (relevant.space.names, relevant.counts.tolist()) == (("cat",), [1])
    refused(ValueError, "did you mean 'cat'", read_mirflickr, root, labels=["cta"])
    mirflickr(tmp_path / "other")
    refused(DataError, "deep, other", read_mirflickr, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\nim2.jpg\n", ["cat.txt, line 2", "'im2.jpg'"]),
        ("1\n0\n", ["line 2", "'0'"]),
        ("1\n-2\n", ["line 2", "'-2'"]),
        ("3\n1\n3\n", ["line 3", "image 3 was given before, in line 1"]),
        ("1\n٣\n", ["line 2"]),
        ("9" * 5000 + "\n", ["line 1"]),
    ],
)
@pytest.mark.fault(11)
def test_mirflickr_names_the_bad_line(tmp_path, text, words):
    refused(DataError, words, read_mirflickr, mirflickr(tmp_path, cat=text))


def test_mirflickr_says_what_is_not_there(tmp_path):
    refused(FileNotFoundError, "no such folder", read_mirflickr, tmp_path / "nowhere")
    refused(FileNotFoundError, "neither this folder nor one in it", read_mirflickr, tmp_path)
    root = mirflickr(tmp_path, cat_r1="1\n")
    refused(FileNotFoundError, "relevant=True", read_mirflickr, root)
    touch(root / "images", "im1.png")
    refused(DataError, "im1.jpg and im1.png are both image 1", read_mirflickr, root, relevant=True)


# ------------------------------------------------------------------------------------------------------ fashion


def fashion(root: Path, *, header=True, newline="\n", **files: str) -> Path:
    heads = ("picture_filename\n", " ".join(f"category{k}" for k in range(1, 7)) + "\n") if header else ("", "")
    texts = {
        "train": heads[0] + "img/0.jpg\nimg/1.jpg\n",
        "train_attr": heads[1] + "5 0 2 0 2 2\n6 2 0 3 5 0\n",
        "val": heads[0] + "img/2.jpg\n",
        "val_attr": heads[1] + "0 1 1 1 0 1",
        "test": heads[0] + "img/3.jpg\nimg/4.jpg\n\n",
    }
    for name, text in (texts | files).items():
        write(root / "split" / f"{name}.txt", text, newline)
    touch(root / "img", *(f"{k}.jpg" for k in range(5)))
    return root


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_fashion_reads_parts_and_classes(tmp_path, header, newline):
    table = read_fashion(fashion(tmp_path, header=header, newline=newline))
    assert table.partition.tolist() == ["train", "train", "val", "test", "test"]
    assert table.ids.tolist() == ["0", "1", "2", "3", "4"]
    assert label_names(table) == [
        ["solid", "long_sleeve", "no_dress", "crew_neckline", "cotton", "conventional"],
        ["lattice", "sleeveless", "maxi_length", "no_neckline", "knit", "tight"],
        ["floral", "short_sleeve", "mini_length", "v_neckline", "denim", "loose"],
        [],
        [],
    ]
    assert [len(group) for group in table.space.exclusive_groups] == [7, 3, 3, 4, 6, 3]
    assert table.unknown.sum(axis=1).tolist() == [0, 0, 0, 26, 26]


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"train_attr": "5 0 2 0 2 2\n7 0 2 0 2 2\n"}, DataError, ["train_attr.txt, line 2", "0 to 6; found 7"]),
        ({"train_attr": "5 0 2 0 2 2\n5 0 2 0 2\n"}, DataError, ["line 2", "6 class numbers"]),
        ({"train_attr": "5 0 2 0 2 2\n5 0 2 0 -2 1\n"}, DataError, ["line 2"]),
        ({"train_attr": "5 0 2 0 2 2\n"}, DataError, ["has 1 rows of classes", "2 images"]),
        ({"train": "img/0.jpg\n\nimg/1.jpg\n"}, DataError, ["train.txt, line 2", "blank"]),
        ({"train": "img/0.jpg\nimg/9.jpg\n"}, FileNotFoundError, ["1 of 5 images", "9.jpg", "train.txt, line 2"]),
        ({"test": "img/1.jpg\n"}, DataError, ["test.txt, line 1", "train.txt, line 3"]),
        ({"test": "img/../../secret.jpg\n"}, DataError, ["test.txt, line 1", "outside"]),
        ({"test": "/etc/passwd\n"}, DataError, ["test.txt, line 1", "such as img/00000.jpg"]),
        ({"test": ""}, DataError, ["test.txt", "empty"]),
        ({"list_attr_cloth": "2\nname type\nfloral 1\ndotted 1\n"}, DataError, ["line 4", "'graphic 1'", "'dotted 1'"]),
        ({"list_attr_cloth": "1\nname type\nfloral 1\n"}, DataError, ["26 classes were wanted; found 1"]),
    ],
)
@pytest.mark.fault(11)
@pytest.mark.fault(22)
def test_fashion_names_the_bad_line(tmp_path, files, error, words):
    refused(error, words, read_fashion, fashion(tmp_path, **files))


def test_fashion_submission_round_trips(tmp_path):
    table = read_fashion(fashion(tmp_path, test_attr="1 2 0 0 3 1\n6 0 2 3 5 2\n"))
    target = tmp_path / "submission.txt"
    write_submission(target, table.part("test").targets.toarray(), space=table.space)
    assert target.read_text() == "1 2 0 0 3 1\n6 0 2 3 5 2\n"
    refused(ValueError, "26 columns; got 3", write_submission, target, np.zeros((2, 3)), space=table.space)


# ------------------------------------------------------------------------------------------------------- celeba

FACES = {"000001.jpg": (-1, 1, 1), "000002.jpg": (1, -1, -1), "000004.jpg": (-1, -1, -1)}
ATTRIBUTES = ["Bald", "Male", "Young"]


def celeba(root: Path, *, kind="txt", count="3\n", newline="\n", faces=FACES) -> Path:
    if kind == "txt":
        rows = "".join(f"{name} {'  '.join(f'{v:2}' for v in values)} \n" for name, values in faces.items())
        text = f"{count}{' '.join(ATTRIBUTES)} \n{rows}"
    else:
        rows = [",".join([name, *map(str, values)]) for name, values in faces.items()]
        text = "\n".join([",".join(["image_id", *ATTRIBUTES]), *rows])
    write(root / f"list_attr_celeba.{kind}", text, newline)
    touch(root / "img_align_celeba", *FACES)
    return root


@pytest.mark.parametrize("options", [{}, {"count": ""}, {"kind": "csv"}, {"kind": "csv", "newline": "\r\n"}])
def test_celeba_reads_text_and_csv(tmp_path, options):
    table = read_celeba(celeba(tmp_path, **options))
    assert table.space.names == tuple(ATTRIBUTES)
    assert label_names(table) == [["Male", "Young"], ["Bald"], []]
    assert table.ids.tolist() == ["000001", "000002", "000004"]
    assert table.partition is None
    assert table.groups is None
    assert table.unknown is None
    assert read_celeba(tmp_path, labels=["Young", "Bald"]).space.names == ("Bald", "Young")


def test_celeba_prefers_text_and_reads_parts_and_people(tmp_path):
    celeba(tmp_path, kind="csv", faces={"000001.jpg": (1, 1, 1)})
    root = celeba(tmp_path)
    write(root / "Eval" / "list_eval_partition.txt", "000004.jpg 2\n000001.jpg 0\n000002.jpg 1\n000009.jpg 1")
    write(root / "Anno" / "identity_CelebA.txt", "000001.jpg 2880\n000002.jpg 12\n000004.jpg 2880\n")
    table = read_celeba(root)
    assert table.partition.tolist() == ["train", "val", "test"]
    assert table.groups.tolist() == [2880, 12, 2880]
    write(root / "list_eval_partition.csv", "image_id,partition\n000001.jpg,1", "\r\n")
    (root / "Eval" / "list_eval_partition.txt").unlink()
    refused(DataError, ["2 images of the attribute file", "'000002.jpg'"], read_celeba, root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2\nBald Male\n1.jpg 1 1\n2.jpg 1\n", ["line 4", "2 values were wanted; found 1"]),
        ("Bald Male\n1.jpg 1 0\n", ["line 2", "1 or -1; found '0'"]),
        ("3\nBald Male\n1.jpg 1 1\n2.jpg 1 1\n", ["promises 3 images; found 2"]),
        ("1.jpg 1 1\n2.jpg 1 1\n", ["line 1", "names of the attributes"]),
        ("Bald Male\n1.jpg 1 1\n1.jpg 1 1\n", ["line 3", "was given before, in", "line 2"]),
        ("Bald Male\n", ["no images"]),
        ("", ["line 1"]),
        ("Bald Male\n../list_attr_celeba.txt 1 1\n", ["line 2", "outside"]),
    ],
)
@pytest.mark.fault(11)
@pytest.mark.fault(22)
def test_celeba_names_the_bad_line(tmp_path, text, words):
    touch(tmp_path / "img_align_celeba", "1.jpg", "2.jpg")
    write(tmp_path / "list_attr_celeba.txt", text)
    refused(DataError, words, read_celeba, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("000001.jpg 3\n", ["line 1", "0 (train), 1 (val) or 2 (test)"]),
        ("000001.jpg 0\n000001.jpg 1\n", ["line 2", "before, in line 1"]),
        ("000001.jpg\n", ["line 1"]),
    ],
)
def test_celeba_names_the_bad_line_of_the_partition(tmp_path, text, words):
    write(celeba(tmp_path) / "list_eval_partition.txt", text)
    refused(DataError, words, read_celeba, tmp_path)


def sorted_celeba(root: Path, *, inside=".", **parts: list[str]) -> Path:
    celeba(root)
    for path in (root / "img_align_celeba").iterdir():
        path.unlink()
    (root / "img_align_celeba").rmdir()
    for part, names in parts.items():
        touch(root / inside / part, *names, "notes.txt")
    return root


@pytest.mark.parametrize("inside", [".", "img_align_celeba"])
def test_celeba_takes_folders_of_parts_as_the_partition(tmp_path, inside):
    root = sorted_celeba(tmp_path, inside=inside, train=["000002.jpg"], val=["000004.jpg"], test=[])
    write(root / "list_eval_partition.txt", "000001.jpg 1\n000002.jpg 1\n000004.jpg 1\n")
    write(root / "identity_CelebA.txt", "000001.jpg 7\n000002.jpg 8\n000004.jpg 9\n")
    table = read_celeba(root)
    assert table.ids.tolist() == ["000002", "000004"]
    assert table.partition.tolist() == ["train", "val"]
    assert label_names(table) == [["Bald"], []]
    assert table.groups.tolist() == [8, 9]
    assert Path(table.paths[0]) == root / inside / "train" / "000002.jpg"
    assert [note[:28] for note in table.notes] == ["1 images of the attribute fi", "1 images are in the folder o"]


def test_celeba_refuses_folders_that_do_not_fit(tmp_path):
    root = sorted_celeba(tmp_path / "twice", train=["000001.jpg"], test=["000001.jpg"])
    refused(DataError, ["000001.jpg is in train and in test"], read_celeba, root)
    root = sorted_celeba(tmp_path / "strange", train=["000001.jpg", "9.jpg"])
    refused(DataError, ["train/9.jpg", "does not have this image"], read_celeba, root)
    root = sorted_celeba(tmp_path / "empty", train=[])
    refused(FileNotFoundError, "no images in the folders train", read_celeba, root)
    refused(FileNotFoundError, "nor train, val and test", read_celeba, sorted_celeba(tmp_path / "none"))


def test_celeba_wants_its_images(tmp_path):
    root = celeba(tmp_path)
    (root / "img_align_celeba" / "000002.jpg").unlink()
    refused(FileNotFoundError, ["1 of 3 images", "000002.jpg", "line 4"], read_celeba, root)


# ---------------------------------------------------------------------------------------------------------- csv


def table_file(tmp_path: Path, text: str, *, name="list.csv", images=("a.jpg", "b.jpg", "c.jpg"), newline="\n") -> Path:
    touch(tmp_path, *images)
    return write(tmp_path / name, text, newline)


def test_csv_reads_tags_the_most_frequent_first(tmp_path):
    path = table_file(tmp_path, 'image,tags\na.jpg,"cat, dog"\nb.jpg,dog\nc.jpg,\n')
    table = read_csv(path, tags_column="tags")
    assert table.space.names == ("dog", "cat")
    assert label_names(table) == [["dog", "cat"], ["dog"], []]
    assert table.unknown is None
    assert read_csv(path, tags_column="tags", min_count=2).space.names == ("dog",)
    refused(DataError, ["on 3 images or more", "is on 2"], read_csv, path, tags_column="tags", min_count=3)


@pytest.mark.fault(17)
def test_csv_reads_label_columns_with_declared_unknowns(tmp_path):
    path = table_file(tmp_path, "\ufeffimage\tcat\tdog\na.jpg\t1\t-1\nb.jpg\t0\t\nc.jpg\t1\t1\n", name="list.TSV")
    table = read_csv(path, unknown=["-1", ""])
    assert table.targets.toarray().tolist() == [[1, 0], [0, 0], [1, 1]]
    assert table.unknown.toarray().tolist() == [[False, True], [False, True], [False, False]]
    refused(DataError, ["line 2", "column 'dog' must hold 0 or 1; found '-1'", "unknown="], read_csv, path)
    refused(DataError, ["line 3", "found ''"], read_csv, path, unknown="-1")
    assert read_csv(path, label_columns=["cat"]).counts.tolist() == [2]


def test_csv_reads_classes_parts_ids_and_groups_together(tmp_path):
    text = (
        "id,file,rating,size,part,owner,tags\n"
        "x,a.jpg,safe,big,Train,ann,t|safe\n"
        "y,b.jpg,,small,valid,bob,t\n"
        "z,c.jpg,other,big,test,ann,\n"
    )
    options = {"image_column": "file", "id_column": "id", "partition_column": "part", "group_column": "owner"}
    path = table_file(tmp_path, text, newline="\r\n")
    table = read_csv(path, tags_column="tags", separator="|", exclusive=["rating", "size"], **options)
    assert table.space.names == ("t", "safe", "rating:other", "rating:safe", "big", "small")
    assert [group.name for group in table.space.exclusive_groups] == ["rating", "size"]
    assert label_names(table) == [["t", "safe", "rating:safe", "big"], ["t", "small"], ["rating:other", "big"]]
    assert table.unknown.toarray()[1].tolist() == [False, False, True, True, False, False]
    assert table.partition.tolist() == ["train", "val", "test"]
    assert table.ids.tolist() == ["x", "y", "z"]
    assert table.groups.tolist() == ["ann", "bob", "ann"]


words = st.text(st.characters(codec="utf-8", exclude_characters="|\r\n\0", exclude_categories=["C"]), min_size=1)


@given(st.lists(st.sets(words.map(str.strip).filter(bool), max_size=4), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
@pytest.mark.fault(14)
def test_csv_tags_round_trip_whatever_they_hold(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("c")
    normal = [{_nfc(tag) for tag in sample} for sample in samples]
    touch(folder, *(f"{k}.jpg" for k in range(len(samples))))
    with open(folder / "list.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "tags"])
        writer.writerows([f"{k}.jpg", "|".join(sorted(sample))] for k, sample in enumerate(normal))
    if not any(samples):
        refused(
            DataError, "the most frequent is on 0", read_csv, folder / "list.csv", tags_column="tags", separator="|"
        )
        return
    table = read_csv(folder / "list.csv", tags_column="tags", separator="|")
    assert [set(row) for row in label_names(table)] == normal


def _nfc(text: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "options", "error", "expected"),
    [
        ("image,tags\na.jpg\n", {"tags_column": "tags"}, DataError, ["line 2", "2 cells", "found 1"]),
        ("image,tags\n", {"tags_column": "tags"}, DataError, ["no rows below"]),
        ("", {}, DataError, ["empty"]),
        ("image,cat,cat\na.jpg,1,1\n", {}, DataError, ["line 1", "'cat' occurs twice"]),
        ("picture,cat\na.jpg,1\n", {}, ValueError, ["no column 'image'", "cat, picture"]),
        ("image,tags\na.jpg,x\n", {"tags_column": "tag"}, ValueError, ["did you mean 'tags'"]),
        ("image,cat\na.jpg,2\n", {}, DataError, ["line 2", "'cat'", "'2'"]),
        ("image,cat\na.jpg,1\nb.jpg,0\na.jpg,1\n", {}, DataError, ["line 4", "before, in", "line 2"]),
        ("image,cat\na.jpg,1\nb.jpg,0\n./a.jpg,1\n", {}, DataError, ["line 4", "before, in", "line 2"]),
        ("image,cat,k\na.jpg,1,i\nb.jpg,0,i\n", {"id_column": "k"}, DataError, ["line 3", "the id 'i'", "line 2"]),
        ("image,cat,p\na.jpg,1,9\n", {"partition_column": "p"}, DataError, ["line 2", "train", "'9'"]),
        ("image,k\na.jpg,x\nb.jpg,x\n", {"exclusive": ["k"]}, DataError, ["'k' needs two classes", "['x']"]),
        ("image\na.jpg\n", {}, DataError, ["no label columns"]),
        ("image,cat\nz.jpg,1\n", {}, FileNotFoundError, ["1 of 1 images", "z.jpg", "line 2"]),
        ("image,cat\nz/z.jpg,1\n", {}, FileNotFoundError, ["1 of 1 images"]),
        ('image,cat\na.jpg,"1\n', {}, DataError, ["line 2", "unexpected end"]),
        ("image,cat\n../a.jpg,1\n", {}, DataError, ["line 2", "outside"]),
        ("image,cat\n/etc/passwd,1\n", {}, DataError, ["line 2", "outside"]),
        ("image,cat\nC:/a.jpg,1\n", {}, DataError, ["line 2", "drive letter"]),
        ("image,cat\nx\\..\\a.jpg,1\n", {}, DataError, ["line 2", "backslash"]),
        ("image,cat\nout/secret.jpg,1\n", {}, DataError, ["line 2", "outside"]),
        ("image,cat\nlink.jpg,1\n", {}, DataError, ["line 2", "outside"]),
        (
            "image,tags\na.jpg,é\nb.jpg,é\nc.jpg," + "x" * 200_000,
            {"tags_column": "tags"},
            DataError,
            ["line 4", "limit"],
        ),
    ],
)
@pytest.mark.fault(11)
@pytest.mark.fault(17)
@pytest.mark.fault(22)
def test_csv_names_the_bad_line(tmp_path, text, options, error, expected):
    inside, outside = tmp_path / "in", tmp_path / "outside"
    path = table_file(inside, text)
    touch(outside, "secret.jpg")
    (inside / "out").symlink_to(outside)
    (inside / "link.jpg").symlink_to(outside / "secret.jpg")
    refused(error, expected, read_csv, path, **options)


@pytest.mark.fault(13)
def test_csv_takes_the_tags_of_a_list_and_counts_the_others(tmp_path):
    text = "image,tags,mood\na.jpg,cat sky cat,good\nb.jpg,sky,bad\nc.jpg,dog cafe\u0301,good\n"
    path = table_file(tmp_path, text)
    options = {"tags_column": "tags", "separator": " ", "exclusive": ["mood"], "min_count": 5}
    table = read_csv(path, vocabulary=["owl", "caf\u00e9", "cat"], **options)
    assert [(group.name, group.labels) for group in table.space.groups] == [
        ("tags", ("owl", "café", "cat")),
        ("mood", ("bad", "good")),
    ]
    assert label_names(table) == [["cat", "good"], ["bad"], ["café", "good"]]
    assert table.notes == ("2 tags are not in the vocabulary and were left out (3 uses)",)
    refused(DataError, "none of its 4 tags", read_csv, path, vocabulary=["dgo"], **options)
    refused(ValueError, "needs tags_column=", read_csv, path, vocabulary=["cat"], exclusive=["mood"])


def test_csv_places_every_column_in_a_given_space(tmp_path):
    space = LabelSpace(
        [
            Group("tags", ["owl", "dog", "cat", "new"]),
            Group("mood", ["mood:good", "bad"], exclusive=True),
            Group("other", ["x", "y"], exclusive=True),
        ]
    )
    text = "image,tags,mood,cat,new,old\na.jpg,dog sky,good,1,,1\nb.jpg,cat,odd,0,1,0\nc.jpg,new y,bad,0,,0\n"
    path = table_file(tmp_path, text)
    options = {"exclusive": ["mood"], "unknown": "", "vocabulary": space}
    with_tags = read_csv(path, tags_column="tags", separator=" ", label_columns=["cat", "new", "old"], **options)
    assert with_tags.space == space
    assert label_names(with_tags) == [["dog", "cat", "mood:good"], ["cat", "new"], ["new", "bad", "y"]]
    assert np.argwhere(with_tags.unknown.toarray()).tolist() == [
        [0, 3],
        [0, 6],
        [0, 7],
        *([1, column] for column in (4, 5, 6, 7)),
    ]
    assert with_tags.notes == (
        "1 columns are not in the vocabulary and were left out",
        "1 tags are not in the vocabulary and were left out (1 uses)",
        "1 classes of 'mood' are not in the vocabulary and were left out (1 uses)",
    )
    alone = read_csv(path, **options)
    assert label_names(alone) == [["cat", "mood:good"], ["new"], ["bad"]]
    # No column tells of owl and dog, and the column of tags, not read, is none of the labels.
    assert alone.known_counts[:4].tolist() == [0, 0, 3, 1]
    assert alone.notes[0] == "2 columns are not in the vocabulary and were left out"
    assert alone.notes[-1] == "no column tells of 2 labels of the vocabulary, which are unknown"
    refused(ValueError, "no exclusive group 'old'", read_csv, path, **(options | {"exclusive": ["old"]}))
    stranger = LabelSpace([Group("tags", ["zebra"])])
    refused(DataError, "no column is a label", read_csv, path, vocabulary=stranger)


@given(st.lists(st.sets(st.sampled_from("abcdef")), min_size=1, max_size=6).filter(any), st.permutations("abcdefg"))
@settings(deadline=None, max_examples=30)
def test_csv_with_its_own_labels_in_another_order_is_the_same_table(tmp_path_factory, samples, order):
    lines = [f"{k}.jpg,{' '.join(sorted(sample))}\n" for k, sample in enumerate(samples)]
    folder = tmp_path_factory.mktemp("v")
    path = table_file(folder, "image,t\n" + "".join(lines), images=[f"{k}.jpg" for k in range(len(samples))])
    table = read_csv(path, tags_column="t", separator=" ", vocabulary=LabelSpace([Group("any", order)]))
    assert table.space.names == tuple(order)
    assert [set(names) for names in label_names(table)] == samples
    assert table.unknown is None
    assert table.notes == ()


@pytest.mark.fault(14)
def test_csv_refuses_two_spellings_of_one_tag(tmp_path):
    path = table_file(tmp_path, "image,tags\na.jpg,caf\u00e9\nb.jpg,cafe\u0301\n")
    refused(DataError, ["line 3", "'caf\\xe9'", "one name in Unicode form NFC"], read_csv, path, tags_column="tags")


def test_every_reader_has_a_name_and_is_exported():
    names = ["celeba", "coco", "csv", "danbooru", "fashion", "hf", "mirflickr", "shards", "sidecar"]
    assert sorted(READERS) == names
    for name, reader in READERS.items():
        assert reader.__name__ == f"read_{name}"
        assert getattr(data, reader.__name__) is reader


def test_csv_takes_names_that_only_look_odd(tmp_path):
    touch(tmp_path / "img", "..a.jpg", "b c.jpg", "ä.jpg")
    (tmp_path / "img" / "same.jpg").symlink_to(tmp_path / "img" / "ä.jpg")
    names = ["..a.jpg", "./b c.jpg", str(tmp_path / "img" / "ä.jpg"), "x/../same.jpg"]
    path = write(tmp_path / "list.csv", "image,cat\n" + "".join(f"{name},1\n" for name in names))
    table = read_csv(path, root=tmp_path / "img")
    assert table.paths.tolist() == [
        str(tmp_path / "img" / name) for name in ("..a.jpg", "b c.jpg", "ä.jpg", "same.jpg")
    ]


@pytest.mark.fault(20)
def test_lines_are_bounded_and_in_utf_8(tmp_path, monkeypatch):
    monkeypatch.setattr(_lines, "MAX_LINE_BYTES", 40)
    path = table_file(tmp_path, "image,cat\na.jpg,1\n" + "b" * 50 + ",1\n")
    refused(DataError, ["line 3", "longer than 40 bytes"], read_csv, path)
    path.write_bytes(b"image,cat\na.jpg,1\n\xff.jpg,1\n")
    refused(DataError, ["line 3", "not UTF-8"], read_csv, path)
    refused(FileNotFoundError, "nothing.csv", read_csv, tmp_path / "nothing.csv")


# ---------------------------------------------------------------------------------------------------- real data


class TestRealData:
    """The four data sets; counts were taken by other means."""

    pytestmark = realdata

    def test_mirflickr(self):
        table = read_mirflickr(REAL)
        assert (len(table), table.space.num_labels, table.notes) == (17_000, 14, ())
        assert table.counts[[0, 9, 11]].tolist() == [89, 5439, 93]

    def test_fashion(self):
        table = read_fashion(REAL)
        assert [len(part) for part in table.parts().values()] == [5000, 1000, 1000]
        assert table.part("train").counts.sum() == 30_000
        assert table.part("test").known_counts.sum() == 0

    def test_celeba(self):
        table = read_celeba(REAL)
        assert (len(table), table.space.num_labels) == (16_535, 40)
        assert {name: len(part) for name, part in table.parts().items()} == {"train": 12_000, "val": 4535}

    def test_celeba_as_sorted_folders_is_the_same_data(self, tmp_path):
        table = read_celeba(REAL)
        for part in ("train", "val"):
            (tmp_path / part).mkdir()
            for path in table.part(part).paths[:50]:
                (tmp_path / part / Path(path).name).symlink_to(path)
        source = Path(table.paths[0]).parent.parent
        for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
            (tmp_path / name).write_bytes((source / name).read_bytes())
        refused(DataError, "outside", read_celeba, tmp_path)
        for part in ("train", "val"):
            for path in (tmp_path / part).iterdir():
                path.unlink()
                path.touch()
        found = read_celeba(tmp_path)
        official = table[np.isin(table.ids, found.ids)]
        assert (found.fingerprint, found.partition.tolist()) == (official.fingerprint, official.partition.tolist())
        assert found.notes[0].startswith(
            f"{len(table) - 100:,} images of the attribute file are in none of the folders"
        )

    def test_danbooru_with_the_vocabulary_of_a_part_of_it(self):
        table = read_danbooru(REAL, min_count=50)
        names = table.space.names[::-2]
        chosen = read_danbooru(REAL, vocabulary=names)
        assert chosen.space.names == names
        columns = [table.space.index(name) for name in names]
        assert (chosen.targets != table.targets[:, columns]).nnz == 0
        texts = [file.read_text(encoding="utf-8") for file in Path(REAL).glob("danbooru/metadata/posts*")]
        lines = [line for text in texts for line in text.split("\n") if line]
        tags = [tag for line in lines for tag in set(json.loads(line)["tag_string"].split()) - set(names)]
        left = f"{len(set(tags)):,} tags are not in the vocabulary and were left out ({len(tags):,} uses)"
        assert chosen.notes == (left,)

    def test_danbooru(self):
        table = read_danbooru(REAL, min_count=50)
        assert (len(table), table.space.num_labels, len(np.unique(table.groups))) == (8002, 81, 6699)
        assert [group.name for group in table.space.groups] == ["general"]
