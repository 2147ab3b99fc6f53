"""The tag list of taggers: random spaces there and back, odd names, categories in pieces, and a real list."""

from __future__ import annotations

import csv
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError, Group, LabelSpace
from mlabel.data.readers import read_selected_tags
from mlabel.data.readers.selected_tags import CATEGORIES
from mlabel.inference.bundle import selected_tags

HEADER = "tag_id,name,category,count\n"


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


name = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1).map(
    lambda text: unicodedata.normalize("NFC", text)
)


@st.composite
def vocabularies(draw):
    names = draw(
        st.lists(name | st.sampled_from(["nan", "null", "", '"', ",", " x "]), min_size=3, max_size=9, unique=True)
    )
    names = [each for each in names if each]
    cut = draw(st.integers(0, len(names)))
    groups = draw(st.permutations(sorted(set(CATEGORIES) - {"rating"})))
    parts = [(groups[0], names[:cut], False), (groups[1], names[cut:], False)]
    if cut >= 2:
        parts = [("rating", names[:cut], True), parts[1]]
    return LabelSpace([Group(group, labels, exclusive) for group, labels, exclusive in parts if labels])


@given(vocabularies(), st.data(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_reads_what_a_bundle_writes(tmp_path_factory, space, data, windows):
    counts = np.array(data.draw(st.lists(st.integers(0, 10**18 - 1), min_size=len(space), max_size=len(space))))
    values = np.where(space.any_of, np.linspace(0.1, 0.9, len(space)), np.nan)
    text = selected_tags(space, counts, values)
    path = tmp_path_factory.mktemp("t") / "selected_tags.csv"
    path.write_bytes((text.replace("\n", "\r\n") if windows else text).encode())
    found = read_selected_tags(path)
    assert found.space == space
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.best_thresholds, values)


@pytest.mark.fault(14)
def test_names_are_taken_as_they_are(tmp_path):
    rows = ["nan", "null", "NA", "None", "", "true", "1.0", "a,b", 'say_"hi"', "=cmd", " x ", "ünder", "^_^"]
    path = tmp_path / "tags.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(["name", "extra", "category"])
        writer.writerows([each, "?", 0] for each in rows if each)
    found = read_selected_tags(path)
    assert found.space.names == tuple(each for each in rows if each)
    assert found.counts is None
    assert found.best_thresholds is None


def test_categories_become_groups_in_the_order_of_the_rows(tmp_path):
    text = (
        "tag_id,name,category,count,best_threshold\n9,g,9,5,\n8,s,9,4,\n1,cat,0,3,0.25\n2,ann,1,2,0.5\n3,miku,4,1,1\n"
    )
    found = read_selected_tags(write(tmp_path / "a.csv", text))
    assert [(group.name, group.labels, group.exclusive) for group in found.space.groups] == [
        ("rating", ("g", "s"), True),
        ("general", ("cat",), False),
        ("artist", ("ann",), False),
        ("character", ("miku",), False),
    ]
    assert found.counts.tolist() == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(found.best_thresholds, [np.nan, np.nan, 0.25, 0.5, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "1,a,0,1\n2,b,4,1\n3,c,0,1\n", ["line 4", "0 (general) comes again", "line 2", "stand together"]),
        (HEADER + "1,a,0,1\n2,b,2,1\n", ["line 3", "9 rating", "'2'"]),
        (HEADER + "1,a,0,1\n2,a,4,1\n", ["line 3", "'a' was given before, in", "line 2"]),
        (HEADER + "1,caf\u00e9,0,1\n2,cafe\u0301,0,1\n", ["line 3", "line 2"]),
        (HEADER + "1,,0,1\n", ["line 2", "name of a tag"]),
        (HEADER + '1,"a\nb",0,1\n', ["line 3", "name of a tag"]),
        (HEADER + "1,a,0,many\n", ["line 2", "a count", "'many'"]),
        (HEADER + "1,a,0,-1\n", ["line 2", "a count"]),
        (HEADER + "1,a,0\n", ["line 2", "4 cells", "found 3"]),
        (HEADER + "1,only,9,1\n", ["'rating' needs at least two"]),
        (HEADER, ["no tags below"]),
        ("", ["empty"]),
        ("tag_id,tag,category\n1,a,0\n", ["no column 'name'", "category, tag, tag_id"]),
        ("name,category,best_threshold\na,0,x\n", ["line 2", "a number or nothing", "'x'"]),
    ],
)
def test_names_the_bad_line(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        read_selected_tags(write(tmp_path / "tags.csv", text))
    for word in ["tags.csv", *words]:
        assert word in str(caught.value)


@pytest.mark.realdata
@pytest.mark.skipif("MLABEL_DATA" not in os.environ, reason="MLABEL_DATA names no folder")
def test_a_real_list():
    path = Path(os.environ["MLABEL_DATA"]) / "tag_counts.csv"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    found = read_selected_tags(path)
    assert [(group.name, len(group)) for group in found.space.groups] == [("rating", 4), ("general", 6909)]
    assert (found.counts.min(), found.counts.max()) == (618, 4_225_150)
    assert 'don\'t_say_"lazy"' in found.space
