"""ImageTable: what it accepts and refuses, selecting, parts, splitting, the fingerprint."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.data.split import random_split
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

TAGS = LabelSpace([Group("tags", ["cat", "dog", "owl"])])
MIXED = LabelSpace([Group("tags", ["cat", "dog"]), Group("rating", ["s", "q", "e"], exclusive=True)])


def table_of(n=12, *, space=MIXED, seed=0, **changes):
    rng = np.random.default_rng(seed)
    targets = np.zeros((n, space.num_labels), dtype=np.uint8)
    targets[:, space.any_of] = rng.integers(0, 2, (n, int(space.any_of.sum())))
    for group in space.exclusive_groups:
        targets[np.arange(n), space.slices[group.name].start + rng.integers(0, len(group), n)] = 1
    fields = {"paths": [f"img/{row:03d}.jpg" for row in range(n)], "targets": targets, "space": space}
    return ImageTable(**(fields | changes))


def same(a: ImageTable, b: ImageTable) -> bool:
    pairs = [(a.partition, b.partition), (a.groups, b.groups)]
    return (
        a.fingerprint == b.fingerprint
        and a.paths.tolist() == b.paths.tolist()
        and all((x is None) == (y is None) and (x is None or x.tolist() == y.tolist()) for x, y in pairs)
    )


rows_of_12 = st.lists(st.integers(-12, 11), max_size=12, unique_by=lambda row: row % 12)


@given(rows_of_12, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_selecting_equals_selecting_from_the_dense_arrays(rows, seed):
    known = np.random.default_rng(seed).random((12, 5)) < 0.8
    known[:, 2:] = True
    base = table_of(seed=seed).targets.toarray() * known
    table = table_of(targets=base, unknown=known, partition=["train", "val"] * 6, groups=np.arange(12) // 2)
    taken = table[rows]
    assert len(taken) == len(rows)
    assert np.array_equal(taken.targets.toarray(), base[rows])
    unknown = np.zeros((len(rows), 5), bool) if taken.unknown is None else taken.unknown.toarray()
    assert np.array_equal(unknown, ~known[rows])
    assert taken.paths.tolist() == table.paths[rows].tolist()
    assert taken.ids.tolist() == table.ids[rows].tolist()
    assert taken.partition.tolist() == table.partition[rows].tolist()
    assert taken.groups.tolist() == table.groups[rows].tolist()
    assert taken.counts.tolist() == base[rows].sum(axis=0).tolist()
    assert taken.known_counts.tolist() == known[rows].sum(axis=0).tolist()


def test_slices_bool_arrays_and_rows_agree():
    table = table_of()
    even = np.arange(12) % 2 == 0
    assert same(table[::2], table[even])
    assert same(table[::2], table[np.flatnonzero(even)])
    assert same(table[:], table)
    assert len(table[[]]) == 0
    assert len(table[:0].summary()) > 0


def test_fields_are_compact_arrays_and_inputs_stay_as_they_are():
    dense = np.array([[1, 0, 1], [0, 0, 0]])
    unknown = sp.csr_array(np.array([[False, True, False], [True, False, False]]))
    before = unknown.toarray().copy()
    table = ImageTable(paths=[Path("a/x.jpg"), "b/y.tar.png"], targets=dense, space=TAGS, unknown=unknown)
    assert isinstance(table.paths.dtype, np.dtypes.StringDType)
    assert isinstance(table.ids.dtype, np.dtypes.StringDType)
    assert table.targets.dtype == np.uint8
    assert table.unknown.dtype == bool
    assert table.ids.tolist() == ["x", "y.tar"]
    assert np.array_equal(unknown.toarray(), before)
    assert same(pickle.loads(pickle.dumps(table)), table)  # noqa: S301 - worker processes do this


def test_ids_are_paths_where_file_names_repeat():
    table = ImageTable(paths=["a/x.jpg", "b/x.jpg"], targets=np.zeros((2, 3)), space=TAGS)
    assert table.ids.tolist() == ["a/x.jpg", "b/x.jpg"]


@pytest.mark.fault(16)
def test_a_group_without_a_class_is_unknown_and_its_any_of_neighbour_is_not():
    table = ImageTable(paths=["a", "b"], targets=[[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]], space=MIXED)
    assert table.unknown.toarray().tolist() == [[False] * 5, [False, False, True, True, True]]
    assert table.known_counts.tolist() == [2, 2, 1, 1, 1]
    half = sp.csr_array(np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=bool))
    table = ImageTable(paths=["a", "b"], targets=[[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]], space=MIXED, unknown=half)
    assert table.unknown.toarray().tolist() == [[False, True, False, False, False], [False, False, True, True, True]]
    assert table.unknown.has_canonical_format


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ids": ["x", "y", "z", "y"]}, ValueError, "'y' is the id of rows 1 and 3"),
        ({"ids": ["x", "y"]}, ValueError, "ids must have one entry an image (4); got 2"),
        ({"ids": [1, 2, 3, 4]}, TypeError, "row 0 is 1 of type int"),
        ({"paths": "abcd"}, TypeError, "got the single str 'abcd'"),
        ({"paths": ["a", "b"]}, ValueError, "targets must be of shape (2, 5)"),
        ({"space": TAGS, "targets": np.zeros((4, 5))}, ValueError, "targets must be of shape (4, 3)"),
        ({"targets": np.full((4, 5), 2)}, ValueError, "got 2 at row 0, column 0"),
        ({"targets": np.eye(4, 5) + np.eye(4, 5, 1)}, ValueError, "row 2 (id '002')"),
        ({"targets": [[0, 0, 1, 0, 1]] * 4}, ValueError, "group 'rating' is exclusive, but ['s', 'e'] are present"),
        ({"partition": ["train", "test", "val", "Val"]}, ValueError, "row 3 is 'Val'"),
        ({"partition": ["train"]}, ValueError, "partition must have one entry an image (4); got 1"),
        ({"groups": [1, 2]}, ValueError, "groups must have one entry an image (4); got 2"),
        ({"groups": [0.5] * 4}, TypeError, "groups must be integers or texts"),
        ({"groups": [[1]] * 4}, ValueError, "got shape (4, 1)"),
        ({"unknown": np.zeros((4, 5))}, TypeError, "bool (True = known)"),
        ({"unknown": np.zeros((4, 2), bool)}, ValueError, "of shape (4, 5)"),
    ],
)
@pytest.mark.fault(11)
@pytest.mark.fault(17)
def test_what_does_not_fit_is_refused_with_its_place(changes, error, words):
    with pytest.raises(error) as caught:
        table_of(4, **changes)
    assert words in str(caught.value)


def test_a_present_label_cannot_be_unknown():
    targets = sp.csr_array(np.array([[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]))
    unknown = sp.csr_array(np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool))
    with pytest.raises(ValueError, match=r"row 1 \(id 'b'\): 'cat' is both present and unknown"):
        ImageTable(paths=["a", "b"], targets=targets, space=MIXED, unknown=unknown)
    unknown = sp.csr_array(np.array([[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=bool))
    with pytest.raises(ValueError, match=r"row 0 .* group 'rating' one label is present, so no other"):
        ImageTable(paths=["a", "b"], targets=targets, space=MIXED, unknown=unknown)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (3, TypeError, r"\[\[3\]\]"),
        ([0, 12], IndexError, "0 to 11; got 12"),
        ([1, -11], ValueError, "row 1 is asked for twice"),
        (np.ones(3, bool), ValueError, "one entry an image"),
        ([0.5], TypeError, "integers or bool"),
    ],
)
def test_rows_that_there_are_not_are_refused(rows, error, words):
    with pytest.raises(error, match=words):
        table_of()[rows]


def test_the_fingerprint_sees_every_label_and_id_but_not_the_place():
    table = table_of()
    moved = table_of(paths=[f"elsewhere/{row:03d}.jpg" for row in range(12)])
    assert moved.fingerprint == table.fingerprint
    flipped = table.targets.toarray()
    flipped[5, 1] ^= 1
    known = np.ones((12, 5), dtype=bool)
    known[tuple(np.argwhere(table.targets.toarray()[:, :2] == 0)[0])] = False
    others = [
        table_of(targets=flipped),
        table_of(unknown=known),
        table_of(ids=[f"{row}" for row in range(12)]),
        table[::-1],
        table[:-1],
        table_of(space=LabelSpace([Group("tags", ["cat", "dgo"]), MIXED.groups[1]])),
    ]
    prints = {table.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == len(others) + 1
    joined = [
        ImageTable(paths=ids, ids=ids, targets=np.zeros((2, 3)), space=TAGS) for ids in (["ab", "c"], ["a", "bc"])
    ]
    assert joined[0].fingerprint != joined[1].fingerprint


def test_parts_are_the_official_ones_and_cover_the_table():
    names = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    table = table_of(partition=names)
    parts = table.parts()
    assert list(parts) == ["train", "val", "test"]
    assert [len(part) for part in parts.values()] == [6, 2, 4]
    assert parts["test"].ids.tolist() == table.part("test").ids.tolist() == table.ids[8:].tolist()
    with pytest.raises(ValueError, match=r"did you mean 'test'\?"):
        table.part("tset")
    with pytest.raises(ValueError, match="no official partition"):
        table_of().part("train")


def test_a_missing_validation_part_comes_off_training_and_is_said():
    table = table_of(100, partition=["train"] * 80 + ["test"] * 20, notes=["two posts were skipped"])
    parts = table.parts()
    assert [len(parts[name]) for name in ("train", "val", "test")] == [72, 8, 20]
    assert set(parts["train"].ids.tolist()) | set(parts["val"].ids.tolist()) == set(table.ids[:80].tolist())
    assert parts["val"].notes[0] == "two posts were skipped"
    assert "a tenth of the training part" in parts["val"].notes[1]
    assert parts["train"].ids.tolist() == table.parts()["train"].ids.tolist()
    without_test = table[:80].parts()
    assert list(without_test) == ["train", "val"]


def test_without_a_partition_parts_are_80_10_10_and_keep_groups_together():
    table = table_of(200, groups=[f"person {row // 2}" for row in range(200)])
    parts = table.parts()
    assert sum(len(part) for part in parts.values()) == 200
    assert abs(len(parts["train"]) - 160) <= 2
    people = [set(part.groups.tolist()) for part in parts.values()]
    assert sum(map(len, people)) == len(set().union(*people)) == 100
    assert [len(part) for part in table_of(200).split((0.5, 0.25, 0.25), seed=3)] == [100, 50, 50]
    halves = table_of(8, partition=["train", "test"] * 4).split((0.5, 0.5))
    assert [half.partition for half in halves] == [None, None]  # the official parts say nothing about the new ones
    by_row = table_of(200).split((0.5, 0.5), groups=np.arange(200) // 4)
    assert {int(i) // 4 for i in by_row[0].ids}.isdisjoint({int(i) // 4 for i in by_row[1].ids})


def test_parts_of_given_shares_do_not_look_at_the_official_ones():
    table = table_of(100, partition=["train"] * 80 + ["test"] * 20)
    for method in ("stratified", "random"):
        parts = table.parts(3, fractions=(0.64, 0.16, 0.2), method=method)
        assert {name: len(part) for name, part in parts.items()} == {"train": 64, "val": 16, "test": 20}
        assert sorted(int(i) for part in parts.values() for i in part.ids) == list(range(100))
        assert set(parts["test"].ids.tolist()) & set(table.ids[:80].tolist())
        other = table.parts(4, fractions=(0.64, 0.16, 0.2), method=method)
        assert other["test"].ids.tolist() != parts["test"].ids.tolist()
    assert {name: len(part) for name, part in table.parts(fractions=(0.85, 0.15)).items()} == {"train": 85, "val": 15}
    with pytest.raises(ValueError, match=r"two \(train, val\) or three"):
        table.parts(fractions=(0.25,) * 4)
    with pytest.raises(ValueError, match="did you mean 'random'"):
        table.parts(fractions=(0.5, 0.5), method="randm")


@given(st.integers(0, 5), st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_random_parts_keep_groups_together_near_their_sizes(seed, largest):
    group = np.random.default_rng(seed).integers(0, 400 // largest, 400)
    part = random_split(400, (0.6, 0.4), seed=seed, groups=group)
    assert all(len(set(part[group == each].tolist())) == 1 for each in np.unique(group))
    assert abs((part == 0).sum() - 240) <= np.bincount(group).max() / 2 + 1
    assert np.array_equal(part, random_split(400, (0.6, 0.4), seed=seed, groups=group))
    assert np.bincount(random_split(400, (0.6, 0.4), seed=seed)).tolist() == [240, 160]


def test_a_held_out_share_leaves_the_official_validation_part_to_be_reported():
    names = ["train"] * 60 + ["val"] * 20
    parts = table_of(80, partition=names).parts(hold_out=0.2)
    assert {name: len(part) for name, part in parts.items()} == {"train": 48, "val": 12, "test": 20}
    assert parts["test"].ids.tolist() == [f"{row:03d}" for row in range(60, 80)]
    assert "0.2 of the training part became the validation part (seed 0)" in parts["val"].notes
    assert "the official validation part is the test part" in parts["test"].notes
    labelled = table_of(100, partition=[*names, *["test"] * 20]).parts(hold_out=0.1)
    assert labelled["test"].ids.tolist() == [f"{row:03d}" for row in range(80, 100)]
    assert len(labelled["val"]) == 6  # the official one is left out
    known = np.ones((100, 5), dtype=bool)
    known[80:] = False
    hidden = table_of(100, partition=[*names, *["test"] * 20], targets=np.zeros((100, 5)), unknown=known)
    assert hidden.parts(hold_out=0.1)["test"].ids.tolist() == [f"{row:03d}" for row in range(60, 80)]
    for wrong in ({"fractions": (0.5, 0.5)}, {}):
        with pytest.raises(ValueError, match="hold_out is a share of the official training part"):
            table_of(80).parts(hold_out=0.1, **wrong)


@given(st.integers(1, 130), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_limit_keeps_order_size_and_parts(n, seed):
    table = table_of(120, partition=["train"] * 100 + ["val"] * 15 + ["test"] * 5)
    limited = table.limit(n, seed)
    rows = [int(i) for i in limited.ids]
    assert rows == sorted(set(rows))
    assert len(rows) == min(n, 120)
    if n >= 3:
        assert list(limited.parts()) == ["train", "val", "test"]
    assert abs((limited.partition == "train").sum() - n * 100 / 120) <= 2 or n > 120
    assert limited.ids.tolist() == table.limit(n, seed).ids.tolist()
    assert len(table_of(120).limit(n, seed)) == min(n, 120)


def test_limit_draws_by_seed():
    table = table_of(120)
    assert table.limit(20).ids.tolist() != table.limit(20, seed=1).ids.tolist()
    with pytest.raises(ValueError, match="1 image or more"):
        table.limit(0)


def test_select_labels_keeps_columns_and_their_unknowns():
    known = np.ones((12, 5), dtype=bool)
    base = table_of()
    row = int(np.flatnonzero(base.targets.toarray()[:, 0] == 0)[0])
    known[row, 0] = False
    table = table_of(unknown=known)
    one = table.select_labels(["dog"])
    assert one.space.names == ("dog",)
    assert one.targets.toarray()[:, 0].tolist() == table.targets.toarray()[:, 1].tolist()
    assert one.unknown is None
    both = table.select_labels(["e", "q", "s", "cat"])
    assert both.space.names == ("cat", "s", "q", "e")
    assert both.space.groups[1].exclusive
    assert both.unknown.toarray()[row].tolist() == [True, False, False, False]
    assert both.counts.tolist() == table.counts[[0, 2, 3, 4]].tolist()
    with pytest.raises(ValueError, match="kept whole or left out"):
        table.select_labels(["s"])
    with pytest.raises(ValueError, match="did you mean 'cat'"):
        table.select_labels(["cta"])
    with pytest.raises(ValueError, match="at least one group"):
        table.select_labels([])


def test_the_summary_says_what_there_is():
    table = ImageTable(
        paths=["a", "b", "c", "d"],
        targets=[[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]],
        space=MIXED,
        partition=["train", "train", "train", "test"],
        groups=[1, 1, 2, 3],
        notes=["1 post was skipped"],
    )
    assert table.summary().splitlines() == [
        "4 images, 5 labels",
        "group 'tags': 2 any-of labels; positives 0 (dog) to 2 (cat), median 1; 1 never present; 0.50 an image, "
        "50.0% of the images have none",
        "group 'rating': 3 exclusive labels; positives 0 (e) to 2 (s), median 1; 1 never present",
        "unknown: 3 entries (15.0%)",
        "official parts: train 3, test 1",
        "kept together: 3 groups of images",
        "note: 1 post was skipped",
    ]


def test_a_table_cannot_be_changed():
    with pytest.raises(AttributeError):
        table_of().paths = []
