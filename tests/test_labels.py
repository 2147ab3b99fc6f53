"""The label space: round trips, order, errors that name the place, and the one decision rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError, Group, LabelSpace
from mlabel.labels import decide, threshold_values

SPACE = LabelSpace([Group("tags", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"], exclusive=True)])

texts = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def spaces(draw: st.DrawFn) -> LabelSpace:
    from unicodedata import normalize

    names = draw(st.lists(texts, min_size=2, max_size=12, unique_by=lambda text: normalize("NFC", text)))
    cut = draw(st.integers(0, len(names) - 2))
    groups = [Group("any", names[:cut])] if cut else []
    return LabelSpace([*groups, Group("one", names[cut:], exclusive=draw(st.booleans()))])


@given(spaces())
@settings(deadline=None)
def test_json_round_trip_keeps_space_and_fingerprint(space: LabelSpace) -> None:
    again = LabelSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.fingerprint == space.fingerprint
    assert hash(again) == hash(space)
    assert [again.index(name) for name in space.names] == list(range(space.num_labels))


@given(spaces(), st.data())
@settings(deadline=None)
def test_decode_inverts_encode(space: LabelSpace, data: st.DataObject) -> None:
    samples = []
    for _ in range(data.draw(st.integers(0, 4))):
        sample: list[str] = []
        for group in space.groups:
            most = 1 if group.exclusive else len(group)
            sample += data.draw(st.lists(st.sampled_from(group.labels), unique=True, max_size=most))
        samples.append(sample)
    targets, unknown = space.encode(samples)
    assert targets.shape == (len(samples), space.num_labels)
    assert [set(names) for names in space.decode(targets)] == [set(sample) for sample in samples]
    missing = np.zeros(targets.shape, dtype=bool)
    for group in space.exclusive_groups:
        span = space.slices[group.name]
        missing[:, span] = ~targets[:, span].toarray().any(axis=1, keepdims=True)
    assert np.array_equal(missing, np.zeros_like(missing) if unknown is None else unknown.toarray())


def test_columns_follow_the_order_given() -> None:
    assert SPACE.names == ("cat", "dog", "owl", "safe", "other")
    assert SPACE.slices == {"tags": slice(0, 3), "rating": slice(3, 5)}
    assert SPACE.any_of.tolist() == [True, True, True, False, False]
    assert "dog" in SPACE
    assert "cow" not in SPACE
    assert len(SPACE) == SPACE.num_labels == 5


@pytest.mark.parametrize(
    "other",
    [
        [Group("tags", ["dog", "cat", "owl"]), Group("rating", ["safe", "other"], exclusive=True)],
        [Group("tags", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"])],
        [Group("tag", ["cat", "dog", "owl"]), Group("rating", ["safe", "other"], exclusive=True)],
        [Group("tags", ["cat", "dog"]), Group("rating", ["owl", "safe", "other"], exclusive=True)],
        [Group("tags", ["cat", "dog", "owl", "safe"]), Group("rating", ["other", "x"], exclusive=True)],
    ],
)
@pytest.mark.fault(19)
def test_any_change_of_order_name_or_kind_changes_the_fingerprint(other: list[Group]) -> None:
    changed = LabelSpace(other)
    assert changed.fingerprint != SPACE.fingerprint
    with pytest.raises(ValueError, match="the table is another one"):
        SPACE.check_same(changed, "the table")


@pytest.mark.fault(19)
def test_check_same_shows_the_first_difference() -> None:
    swapped = LabelSpace([Group("tags", ["cat", "owl", "dog"]), Group("rating", ["safe", "other"], exclusive=True)])
    with pytest.raises(ValueError, match="column 1 is 'dog' here and 'owl' there"):
        SPACE.check_same(swapped, "the checkpoint")
    SPACE.check_same(SPACE, "itself")


def test_probabilities_are_sigmoid_and_softmax() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64)
    found = SPACE.probabilities(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, :3], logits[:, :3].float().sigmoid())
    torch.testing.assert_close(found[:, 3:], logits[:, 3:].float().softmax(1))
    assert SPACE.probabilities(torch.full((1, 5), 60_000.0)).isfinite().all()


def test_uncertain_names_become_unknown() -> None:
    targets, unknown = SPACE.encode([["cat", "safe"], ["safe"]], uncertain=[["dog"], []])
    assert targets.toarray().tolist() == [[1, 0, 0, 1, 0], [0, 0, 0, 1, 0]]
    assert unknown is not None
    assert unknown.toarray().tolist() == [[False, True, False, False, False], [False] * 5]
    with pytest.raises(ValueError, match="sample 0: label 'cat' is both present and uncertain"):
        SPACE.encode([["cat", "safe"]], uncertain=[["cat"]])
    with pytest.raises(ValueError, match="one entry a sample"):
        SPACE.encode([["cat", "safe"]], uncertain=[])


@pytest.mark.fault(14)
def test_unicode_forms_are_one_name() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    space = LabelSpace([Group("g", [decomposed])])
    assert space.names == (composed,)
    assert space.index(composed) == space.index(decomposed) == 0
    with pytest.raises(ValueError, match="occurs twice"):
        Group("g", [composed, decomposed])


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\0b"])
@pytest.mark.fault(14)
def test_names_that_would_break_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="newline or NUL"):
        Group("g", [name])


@pytest.mark.parametrize("name", ["nan", "null", "a,b", 'say "x"', "=cmd", "\U0001f431", "x" * 10_000, "&eacute"])
@pytest.mark.fault(14)
def test_odd_names_are_names(name: str, tmp_path) -> None:
    space = LabelSpace([Group("g", [name])])
    space.save(tmp_path / "labels.json")
    assert LabelSpace.load(tmp_path / "labels.json").names == (name,)


@pytest.mark.fault(13)
def test_messages_name_the_place() -> None:
    with pytest.raises(ValueError, match=r"sample 1: unknown label 'dgo'; did you mean 'dog'"):
        SPACE.encode([["cat"], ["dgo"]])
    with pytest.raises(ValueError, match=r"sample 0: group 'rating' is exclusive, but \['safe', 'other'\]"):
        SPACE.encode([["safe", "other"]])
    with pytest.raises(TypeError, match="sample 0 must be a list"):
        SPACE.encode(["cat"])
    with pytest.raises(ValueError, match="at least one group"):
        LabelSpace([])
    with pytest.raises(ValueError, match="at least one label"):
        Group("g", [])
    with pytest.raises(ValueError, match="at least two labels"):
        Group("g", ["a"], exclusive=True)
    with pytest.raises(ValueError, match="label name 'a' occurs twice"):
        LabelSpace([Group("g", ["a"]), Group("h", ["a"])])
    with pytest.raises(ValueError, match="group name 'g' occurs twice"):
        LabelSpace([Group("g", ["a"]), Group("g", ["b"])])
    with pytest.raises(TypeError, match="the string 'abc'"):
        Group("g", "abc")
    with pytest.raises(ValueError, match="5 columns"):
        SPACE.decode(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"\(N, 5\)"):
        SPACE.probabilities(torch.zeros(2, 4))


@pytest.mark.parametrize("content", ["[]", '{"format": "x"}', '{"format": "mlabel.labels/1"}', "{", "\xff"])
def test_a_file_that_is_no_label_space_is_refused(content: str, tmp_path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError):
        LabelSpace.load(path)


def test_decide_is_at_or_above_and_argmax() -> None:
    scores = np.array([[0.5, 0.4, 0.6, 0.2, 0.8], [0.1, 0.9, 0.5, 0.5, 0.5]], dtype=np.float32)
    expected = [[True, False, True, False, True], [False, True, True, True, False]]
    assert decide(scores, 0.5, SPACE).tolist() == expected
    assert decide(torch.from_numpy(scores), np.array([0.5, 0.5, 0.5, np.nan, np.nan]), SPACE).tolist() == expected
    assert decide(scores, 0.5).tolist() == (scores >= 0.5).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_an_exclusive_group_always_gets_exactly_one_label(seed: int, rows: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, (rows, 5)) / 2
    decisions = decide(scores, 0.5, SPACE)
    assert (decisions[:, 3:].sum(axis=1) == 1).all()
    assert (scores[:, 3:][decisions[:, 3:]] == scores[:, 3:].max(axis=1)).all()


def test_thresholds_of_wrong_shape_or_missing_are_refused() -> None:
    assert np.isnan(threshold_values(0.3, 5, SPACE)[3:]).all()
    with pytest.raises(ValueError, match="threshold of column 1 is NaN"):
        threshold_values([0.1, np.nan, 0.1, 0.1, 0.1], 5, SPACE)
    with pytest.raises(ValueError, match=r"of shape \(5,\)"):
        threshold_values([0.1, 0.2], 5)
    with pytest.raises(ValueError, match="the space has 5 labels"):
        decide(np.zeros((2, 4)), 0.5, SPACE)
    with pytest.raises(ValueError, match=r"1 entries are not, the first at row 1, column 2"):
        decide(np.where(np.eye(2, 5, k=1) * [[0], [1]] > 0, np.nan, 0.0), 0.5, SPACE)


def test_thresholds_of_each_sample() -> None:
    scores, levels = np.full((2, 5), 0.5), np.array([[0.4] * 5, [0.6] * 5])
    assert decide(scores, levels).tolist() == [[True] * 5, [False] * 5]
    assert decide(scores, levels, SPACE).tolist() == [
        [True, True, True, True, False],
        [False, False, False, True, False],
    ]
    with pytest.raises(ValueError, match=r"each sample must be of shape \(2, 5\); got \(1, 5\)"):
        decide(scores, levels[:1])


def test_decode_takes_csr_and_torch() -> None:
    dense = np.array([[0, 1, 1, 0, 1]])
    for form in (dense, torch.from_numpy(dense), sp.csr_array(dense), sp.csr_matrix(dense)):
        assert SPACE.decode(form) == [["dog", "owl", "other"]]


@pytest.mark.parametrize("data", [3, [], "mlabel.labels/1 ", None, {}, {"format": 3}])
def test_what_is_no_space_is_refused(data: object) -> None:
    with pytest.raises(DataError, match=r"a label space of format 'mlabel.labels/1' was wanted"):
        LabelSpace.from_dict(data)


def test_a_file_of_labels_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    for groups in (3, [3], [{}], [{"name": "a", "labels": [], "exclusive": False}]):
        path.write_text(json.dumps({"format": "mlabel.labels/1", "groups": groups}))
        with pytest.raises(DataError, match=r"labels\.json: (not a label space: its groups|group 'a' needs)"):
            LabelSpace.load(path)
