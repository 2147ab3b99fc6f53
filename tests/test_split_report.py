"""The report of a split: counts, the guarantee that a label is in every part or named with a reason, and the texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from mlabel.data import ImageTable, SplitReport, report_split, stratified_split
from mlabel.data.split import part_sizes
from mlabel.data.split_report import REASONS
from mlabel.labels import Group, LabelSpace

FRACTIONS = [(0.5, 0.5), (0.8, 0.2), (0.64, 0.16, 0.2), (0.25,) * 4, (0.1,) * 10]


@st.composite
def cases(draw):
    """Targets (N, L) of which many labels have about as many positives as there are parts, fractions, and groups."""
    fractions = draw(st.sampled_from(FRACTIONS))
    k = len(fractions)
    num_samples, num_labels = draw(st.integers(10 * k, 100)), draw(st.integers(1, 15))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    share = np.minimum(1, rng.integers(0, 3 * k, num_labels) / num_samples)
    targets = (rng.random((num_samples, num_labels)) < share).astype(np.uint8)
    groups = rng.integers(num_samples // 2, size=num_samples) if draw(st.booleans()) else None
    return targets, fractions, groups


def count_units(targets, groups) -> np.ndarray:
    """Of each label the number of groups in which it has a positive; of samples where there are no groups."""
    ids = np.arange(len(targets)) if groups is None else groups
    return np.array([len(np.unique(ids[column > 0])) for column in targets.T])


def can_be_split(targets, sizes) -> bool:
    """Whether some parts of these sizes hold every label that has enough positives, by integer programming."""
    num_samples, k = len(targets), len(sizes)
    wanted = targets[:, targets.sum(axis=0) >= k].T.astype(float)
    each, every = sp.eye_array(num_samples), sp.eye_array(k)
    rows = [sp.kron(each, np.ones((1, k))), sp.kron(np.ones((1, num_samples)), every), sp.kron(wanted, every)]
    low = np.concatenate([np.ones(num_samples), sizes, np.ones(len(wanted) * k)])
    high = np.concatenate([np.ones(num_samples), sizes, np.full(len(wanted) * k, np.inf)])
    found = milp(
        np.zeros(num_samples * k),
        constraints=LinearConstraint(sp.csr_array(sp.vstack(rows)), low, high),
        integrality=np.ones(num_samples * k),
        bounds=Bounds(0, 1),
    )
    return found.status == 0


@given(cases(), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_label_is_in_every_part_or_named_with_its_reason(case, seed):
    targets, fractions, groups = case
    k = len(fractions)
    part = stratified_split(targets, fractions, seed=seed, groups=groups)
    report = report_split(targets, part, fractions=fractions, groups=groups)
    counts = np.stack([targets[part == p].sum(axis=0, dtype=np.int64) for p in range(k)], axis=1)
    assert (report.counts == counts).all()
    assert report.sizes.tolist() == np.bincount(part, minlength=k).tolist()
    named = {int(label.name): label for label in report.missing}
    units, total = count_units(targets, groups), targets.sum(axis=0)
    for column in range(targets.shape[1]):
        assert (column in named) == (counts[column] == 0).any()
        if column not in named:
            continue
        label = named[column]
        assert label.parts == tuple(str(p) for p in range(k) if counts[column, p] == 0)
        if total[column] == 0:
            assert label.reason == "absent"
        elif total[column] < k:
            assert label.reason == "few_positives"
        else:
            assert label.reason == ("few_groups" if units[column] < k else "not_found")


def test_the_search_gives_up_only_where_there_is_no_such_split():
    """Hard ones: small parts, labels with hardly more positives than parts. An exact solver is the reference."""
    possible = gave_up = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        fractions = [(0.5, 0.5), (0.9, 0.1), (0.8, 0.1, 0.1), (0.2,) * 5][seed % 4]
        num_samples, num_labels = int(rng.integers(20, 50)), int(rng.integers(5, 20))
        share = (len(fractions) + rng.integers(0, 4, num_labels)) / num_samples
        targets = (rng.random((num_samples, num_labels)) < share).astype(np.uint8)
        report = report_split(targets, stratified_split(targets, fractions), fractions=fractions)
        if not any(label.reason == "not_found" for label in report.missing):
            possible += 1
        elif can_be_split(targets, part_sizes(num_samples, fractions)):
            possible, gave_up = possible + 1, gave_up + 1
    assert possible > 3
    assert gave_up == 0


def test_folds_of_a_cross_validation_are_reported():
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 8)) < 0.2).astype(np.uint8)
    fold = stratified_split(targets, (0.2,) * 5)
    report = report_split(targets, fold, fractions=(0.2,) * 5)
    assert report.sizes.tolist() == report.exact_sizes.tolist() == [100] * 5
    assert not report.missing
    nearest = abs(np.round(report.expected) / report.expected - 1)
    assert report.max_deviation < nearest.max() + 0.1


def test_any_form_of_targets_gives_the_same_report():
    rng = np.random.default_rng(1)
    dense = (rng.random((60, 5)) < 0.3).astype(np.uint8)
    part = rng.integers(3, size=60)
    one = report_split(dense, part).to_dict()
    for targets in (sp.csr_array(dense), torch.from_numpy(dense), sp.csc_array(dense)):
        assert report_split(targets, torch.from_numpy(part)).to_dict() == one


def test_large_matrices_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr("mlabel.data.split_report._CHUNK", 100)
    rng = np.random.default_rng(2)
    targets = sp.csr_array(rng.random((300, 20)) < 0.3, dtype=np.uint8)
    part = rng.integers(4, size=300)
    counts = report_split(targets, part).counts
    assert (counts == np.stack([targets.toarray()[part == p].sum(axis=0) for p in range(4)], axis=1)).all()


def test_a_report_by_hand():
    targets = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    part = [0, 0, 0, 0, 1, 1]
    report = report_split(targets, part, fractions=(0.5, 0.5), groups=["a", "a", "b", "c", "d", "e"])
    assert report.exact_sizes.tolist() == [3, 3]
    assert report.positives.tolist() == [4, 2, 1, 0]
    assert report.expected.tolist() == [[2, 2], [1, 1], [0.5, 0.5], [0, 0]]
    assert report.deviation[:3].tolist() == [[1, -1]] * 3
    assert np.isnan(report.deviation[3]).all()
    assert (report.mean_deviation, report.max_deviation) == (1, 1)
    found = [(label.name, label.positives, label.num_groups, label.reason) for label in report.missing]
    assert found == [
        ("0", 4, 3, "not_found"),
        ("1", 2, 1, "few_groups"),
        ("2", 1, 1, "few_positives"),
        ("3", 0, None, "absent"),
    ]
    assert report.text().splitlines()[:2] == [
        "0: 4 images (3 wanted); deviation of a label mean 100.00%, max 100.00%",
        "1: 2 images (3 wanted); deviation of a label mean 100.00%, max 100.00%",
    ]
    assert f"- 1 for {REASONS['few_groups']}: 1 (none in 1)" in report.text()
    assert str(report.missing[1]) == f"1 (2 positives in 1 groups): {REASONS['few_groups']}"
    assert report.table(limit=2).splitlines() == [
        "label  positives  0        %  1        %",
        "0              4  4  +100.0%  0  -100.0%",
        "1              2  2  +100.0%  0  -100.0%",
    ]
    assert [row["name"] for row in report.label_rows("positives", 2)] == ["0", "1"]
    assert report.label_rows()[3]["deviation"] == {"0": None, "1": None}


def make_table(targets, **more):
    space = LabelSpace([Group("tags", ["cat", "dog", "eel"])])
    paths = [f"{more.get('groups', 'x')}{row}.jpg" for row in range(len(targets))]
    return ImageTable(paths=paths, targets=targets, space=space, **more)


def test_given_parts_are_measured_by_what_is_known_in_them():
    """A part without labels has no share of them; one that lacks a label has none by whoever made it."""
    train = make_table([[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]])
    val = make_table([[1, 0, 0], [0, 0, 0]])
    test = make_table(np.zeros((2, 3)), unknown=sp.csr_array(np.ones((2, 3), dtype=bool)))
    report = SplitReport.of_parts({"train": train, "val": val, "test": test})
    assert report.parts == ("train", "val", "test")
    assert report.expected[:, 2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(report.expected[0], [4 * 4 / 6, 4 * 2 / 6, 0])
    assert [(label.name, label.parts, label.reason) for label in report.missing] == [
        ("cat", ("test",), "unknown"),
        ("dog", ("val", "test"), "few_positives"),
        ("eel", ("val", "test"), "few_positives"),
    ]
    assert report.text().splitlines()[2] == "test: 2 images; no labels"
    two = SplitReport.of_parts({"train": train, "val": val})
    assert [(label.name, label.reason) for label in two.missing] == [("dog", "few_positives"), ("eel", "as_given")]


def test_parts_of_a_table_have_the_report_of_their_split():
    rng = np.random.default_rng(3)
    table = make_table((rng.random((90, 3)) < 0.2).astype(np.uint8), groups=np.arange(90) // 2)
    fractions = (0.8, 0.2)
    parts = dict(zip(("train", "test"), table.split(fractions), strict=True))
    report = SplitReport.of_parts(parts, fractions=fractions)
    part = stratified_split(table.targets, fractions, groups=table.groups)
    other = report_split(table.targets, part, fractions=fractions, groups=table.groups, space=table.space)
    assert (report.counts == other.counts).all()
    assert report.missing == tuple(other.missing)
    assert report.names == other.names == ("cat", "dog", "eel")


def test_unknown_positives_do_not_count():
    targets = sp.csr_array(np.ones((4, 1), dtype=np.uint8))
    unknown = sp.csr_array(np.array([[True], [False], [False], [False]]))
    report = report_split(targets, [0, 0, 1, 1], unknown=unknown)
    assert report.counts.tolist() == [[1, 2]]
    assert report.expected.tolist() == [[1, 2]]
    mask = report_split(targets, [0, 0, 1, 1], unknown=~unknown.toarray())
    assert mask.counts.tolist() == [[1, 2]]


def test_json_has_none_for_nan():
    report = report_split(np.array([[1, 0], [1, 0]]), [0, 1])
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["deviation"] == {"0": [0.0, None], "1": [0.0, None]}
    assert values["missing"] == [
        {"name": "1", "positives": 0, "num_groups": None, "parts": ["0", "1"], "reason": "absent"}
    ]
    assert "mean deviation 0.00%" in repr(report)


def test_a_table_without_positives_has_a_report():
    report = report_split(np.zeros((4, 2)), [0, 0, 1, 1])
    assert np.isnan(report.mean_deviation)
    assert report.text().splitlines()[0] == "0: 2 images; no labels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": [0, 1]}, r"shape \(4,\)"),
        ({"part": [0, 1, 0, -1]}, "integers 0 .. k-1"),
        ({"part": [0.0, 1, 0, 1]}, "integers"),
        ({"part": [0, 1, 2, 0], "fractions": (0.5, 0.5)}, "part 2 is beyond the 2 fractions"),
        ({"part": [0, 1, 0, 1], "space": LabelSpace([Group("tags", ["a"])])}, "2 columns, the space 1"),
        ({"part": [0, 1, 1, 1], "groups": [1, 2]}, r"shape \(4,\)"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        report_split(np.array([[1, 1], [1, 0], [1, 0], [1, 0]]), **arguments)


def test_other_messages():
    with pytest.raises(ValueError, match="at least one part"):
        SplitReport.of_parts({})
    other = ImageTable(paths=["z.jpg"], targets=[[1]], space=LabelSpace([Group("tags", ["cat"])]))
    with pytest.raises(ValueError, match="that of 'val' is not that of 'train'"):
        SplitReport.of_parts({"train": make_table([[1, 0, 0]]), "val": other})
    with pytest.raises(ValueError, match="sort"):
        report_split(np.ones((2, 1)), [0, 1]).table("nmae")
