"""Taxonomies: closures against networkx, targets and scores made to agree, cycles shown, files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import networkx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlabel import DataError
from mlabel.labels import Group, LabelSpace
from mlabel.taxonomy import Taxonomy, resolve_aliases

NAMES = [f"n{k}" for k in range(9)]
PETS = LabelSpace(
    [Group("tags", ["kitten", "cat", "animal", "tree"]), Group("rating", ["safe", "other"], exclusive=True)]
)
modest = settings(deadline=None, max_examples=60)


@st.composite
def taxonomies(draw: st.DrawFn) -> Taxonomy:
    """A space of some of nine names and a rating, implications among all of them, and aliases of some."""
    order = draw(st.permutations(NAMES))
    pairs = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=14))
    implications = [(order[max(pair)], order[min(pair)]) for pair in pairs if pair[0] != pair[1]]
    targets = draw(st.lists(st.sampled_from(NAMES), max_size=3))
    aliases = {f"a{k}": name for k, name in enumerate(targets)}
    labels = draw(st.lists(st.sampled_from([*NAMES, *aliases]), min_size=1, unique=True))
    groups = [Group("tags", labels), Group("rating", ["safe", "other"], exclusive=True)]
    of_ratings = st.tuples(st.sampled_from(["safe", "other"]), st.sampled_from(NAMES))
    implications += draw(st.lists(of_ratings, max_size=2))
    return Taxonomy(LabelSpace(groups), aliases=aliases, implications=implications)


def graph(taxonomy: Taxonomy) -> networkx.DiGraph:
    edges = [*taxonomy.implications, *((a, name) for a, name in taxonomy.aliases.items() if a in taxonomy.space)]
    made = networkx.DiGraph(edges)
    made.add_nodes_from(taxonomy.space.names)
    return made


def draw_rows(data: st.DataObject, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    shape = (data.draw(st.integers(0, 5)), taxonomy.space.num_labels)
    return data.draw(arrays(bool, shape)), data.draw(arrays(bool, shape))


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray().astype(bool)


@given(taxonomies())
@modest
def test_the_closure_is_transitive_irreflexive_and_that_of_networkx(taxonomy):
    closure = dense(taxonomy.closure)
    assert not closure.diagonal().any()
    assert not (((closure.astype(int) @ closure) > 0) & ~closure).any()
    reference = networkx.transitive_closure_dag(graph(taxonomy))
    names = taxonomy.space.names
    assert closure.tolist() == [[reference.has_edge(child, parent) for parent in names] for child in names]
    for name in [*names, *reference.nodes]:
        above = networkx.descendants(graph(taxonomy), name)
        assert taxonomy.ancestors(name) == tuple(label for label in names if label in above)
    assert taxonomy.closure.has_canonical_format


@given(taxonomies(), st.data())
@modest
def test_closing_only_adds_and_closes_once(taxonomy, data):
    present, unknown = draw_rows(data, taxonomy)
    known = present & ~unknown
    targets, doubtful = taxonomy.close_targets(present, ~unknown)
    closed, left = dense(targets), np.zeros_like(unknown) if doubtful is None else dense(doubtful)
    expected = known | ((known.astype(int) @ dense(taxonomy.closure)) > 0)
    np.testing.assert_array_equal(closed, expected)
    np.testing.assert_array_equal(left, unknown & ~expected)
    assert targets.dtype == np.uint8
    assert targets.has_canonical_format
    again, doubtful_again = taxonomy.close_targets(targets, doubtful)
    np.testing.assert_array_equal(dense(again), closed)
    assert (doubtful_again is None) == (doubtful is None) == (not left.any())
    assert taxonomy.implied_missing(targets, doubtful).nnz == 0
    # What closing added is what was missing, and what was unknown.
    missing = dense(taxonomy.implied_missing(present, ~unknown))
    np.testing.assert_array_equal(missing, closed & ~present & ~unknown)


@given(taxonomies(), st.data())
@modest
def test_the_violation_rate_is_that_of_counting_pairs(taxonomy, data):
    present, unknown = draw_rows(data, taxonomy)
    applied = broken = 0
    for row, doubt in zip(present, unknown, strict=True):
        for child, parent in zip(*np.nonzero(dense(taxonomy.closure)), strict=True):
            applies = row[child] and not doubt[child] and not doubt[parent]
            applied += applies
            broken += applies and not row[parent]
    found = taxonomy.violation_rate(present, ~unknown)
    assert found == broken / applied if applied else math.isnan(found)
    closed = taxonomy.violation_rate(*taxonomy.close_targets(present, ~unknown))
    assert closed == 0 or math.isnan(closed)


@given(taxonomies(), st.data())
@modest
def test_consistent_scores_are_the_least_that_agree(taxonomy, data):
    shape = (data.draw(st.integers(0, 4)), taxonomy.space.num_labels)
    scores = data.draw(arrays(np.float32, shape, elements=st.integers(0, 8).map(lambda k: k / 8)))
    scores.setflags(write=False)
    made = taxonomy.consistent_scores(scores)
    at_or_below = dense(taxonomy.closure).T | np.eye(shape[1], dtype=bool)
    expected = np.where(at_or_below, scores[:, None, :], -np.inf).max(axis=2)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(taxonomy.consistent_scores(made), made)
    higher = scores + data.draw(arrays(np.float32, shape, elements=st.integers(0, 3)))
    assert (taxonomy.consistent_scores(higher) >= made).all()
    # One threshold for all gives decisions that break nothing.
    assert taxonomy.implied_missing(made >= 0.5).nnz == 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        tensor = taxonomy.consistent_scores(torch.tensor(scores, dtype=dtype))
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.float().numpy(), made)


@given(taxonomies(), st.data())
@modest
def test_the_most_specific_labels_of_a_closed_set_close_back_to_it(taxonomy, data):
    closed, _ = taxonomy.close_targets(draw_rows(data, taxonomy)[0])
    kept = taxonomy.most_specific(closed)
    np.testing.assert_array_equal(dense(taxonomy.close_targets(kept)[0]), dense(closed))
    closure = dense(taxonomy.closure).astype(int)
    assert not (dense(kept).astype(int) @ closure * dense(kept)).any()
    np.testing.assert_array_equal(taxonomy.most_specific(dense(closed)), dense(kept))
    tensor = taxonomy.most_specific(torch.from_numpy(dense(closed)))
    assert tensor.dtype == torch.bool
    np.testing.assert_array_equal(tensor.numpy(), dense(kept))


@given(taxonomies())
@modest
def test_a_taxonomy_is_read_as_it_was_written(tmp_path_factory, taxonomy):
    hinted = Taxonomy(taxonomy.space, aliases=taxonomy.aliases, exclusive_hints=[["safe", "other"], ["n0", "x", "y"]])
    path = tmp_path_factory.mktemp("t") / "taxonomy.json"
    for made in (taxonomy, hinted):
        made.save(path)
        read = Taxonomy.load(path)
        assert read == made
        assert hash(read) == hash(made)
        assert read.exclusive_hints == made.exclusive_hints
        np.testing.assert_array_equal(dense(read.closure), dense(made.closure))
    assert hinted != taxonomy


@given(taxonomies(), st.randoms())
@modest
def test_the_order_and_number_of_pairs_do_not_matter(taxonomy, random):
    pairs = [*taxonomy.implications, *taxonomy.implications]
    random.shuffle(pairs)
    aliases = list(taxonomy.aliases.items())
    random.shuffle(aliases)
    assert Taxonomy(taxonomy.space, aliases=dict(aliases), implications=iter(pairs)) == taxonomy


def test_a_case_by_hand():
    taxonomy = Taxonomy(PETS, implications=[("kitten", "cat"), ("cat", "animal")])
    assert taxonomy.ancestors("kitten") == ("cat", "animal")
    rows = [[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]]
    targets, unknown = taxonomy.close_targets(rows)
    assert unknown is None
    assert targets.toarray().tolist() == [[1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0]]
    # kitten -> cat and kitten -> animal are broken in the first row, cat -> animal is kept in the second.
    assert taxonomy.violation_rate(rows) == 2 / 3
    assert PETS.decode(taxonomy.implied_missing(rows)) == [["cat", "animal"], [], []]
    assert PETS.decode(taxonomy.most_specific(targets)) == [
        ["kitten", "safe"],
        ["cat", "other"],
        ["animal", "tree", "safe"],
    ]
    scores = np.array([[0.5, 0.25, 0.75, 0.125, 0.5, 0.5]])
    assert taxonomy.consistent_scores(scores).tolist() == [[0.5, 0.5, 0.75, 0.125, 0.5, 0.5]]


def test_what_is_unknown_becomes_known_where_a_known_child_says_so():
    taxonomy = Taxonomy(PETS, implications=[("kitten", "cat"), ("cat", "animal")])
    present = np.array([[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]])
    unknown = np.array([[0, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0]], dtype=bool)
    for given_unknown in (~unknown, sp.csr_array(unknown), torch.from_numpy(~unknown)):
        targets, left = taxonomy.close_targets(present, given_unknown)
        assert targets.toarray().tolist() == [[1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0]]
        assert left.toarray().tolist() == [[False] * 3 + [True] + [False] * 2, [True, False, True] + [False] * 3]
    assert math.isnan(taxonomy.violation_rate(present, ~unknown))
    assert taxonomy.implied_missing(present, ~unknown).nnz == 0


def test_labels_of_exclusive_groups_imply_but_are_not_changed():
    pairs = [("kitten", "safe"), ("safe", "tree"), ("other", "animal")]
    taxonomy = Taxonomy(PETS, implications=pairs)
    assert taxonomy.ancestors("kitten") == ("tree", "safe")
    rows = np.array([[1, 0, 0, 0, 0, 1]], dtype=bool)
    targets, _ = taxonomy.close_targets(rows)
    assert targets.toarray().tolist() == [[1, 0, 1, 1, 0, 1]]
    assert taxonomy.violation_rate(targets) == 1 / 3
    assert PETS.decode(taxonomy.implied_missing(targets)) == [["safe"]]
    scores = torch.tensor([[0.75, 0.0, 0.0, 0.0, 0.5, 0.5]], requires_grad=True)
    made = taxonomy.consistent_scores(scores)
    assert made.tolist() == [[0.75, 0.0, 0.5, 0.75, 0.5, 0.5]]
    made.sum().backward()
    assert scores.grad.tolist() == [[2, 1, 0, 0, 1, 2]]
    both = np.array([[1, 0, 0, 0, 1, 0]], dtype=bool)
    assert taxonomy.most_specific(both).tolist() == both.tolist()


def test_aliases_come_first_and_a_label_that_is_one_implies_what_it_stands_for():
    space = LabelSpace([Group("tags", ["kitty", "cat", "animal", "kitten"])])
    taxonomy = Taxonomy(
        space,
        aliases={"kitteh": "kitty", "kitty": "cat", "beast": "animal"},
        implications=[("kitteh", "beast"), ("kitten", "kitty"), ("kitteh", "cat")],
    )
    assert taxonomy.implications == (("cat", "animal"), ("kitten", "cat"))
    assert [taxonomy.resolve(name) for name in ("kitteh", "kitty", "cat", "stone")] == ["cat", "cat", "cat", "stone"]
    assert taxonomy.ancestors("kitty") == ("cat", "animal")
    assert taxonomy.ancestors("kitteh") == ("animal",)
    assert taxonomy.ancestors("kitten") == ("cat", "animal")
    assert taxonomy.ancestors("beast") == ()


def test_names_in_two_unicode_forms_are_one_name():
    space = LabelSpace([Group("tags", ["cafe\u0301", "house"])])
    taxonomy = Taxonomy(space, aliases={"bar": "cafe\u0301"}, implications=[("caf\u00e9", "house")])
    assert taxonomy.resolve("bar") == "caf\u00e9"
    assert taxonomy.ancestors("cafe\u0301") == taxonomy.ancestors("bar") == ("house",)


def test_hints_at_exclusion_are_counted_and_not_enforced():
    hints = [["cat", "tree"], ["kitty", "safe", "tree"], ["stone", "sand"]]
    taxonomy = Taxonomy(PETS, aliases={"kitty": "kitten"}, exclusive_hints=hints)
    assert taxonomy.exclusive_hints == (("cat", "tree"), ("kitten", "safe", "tree"), ("stone", "sand"))
    rows = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]], dtype=bool)
    assert taxonomy.exclusive_violations(rows).toarray().tolist() == [
        [True, True, False],
        [False] * 3,
        [False, True, False],
    ]
    known = np.ones_like(rows)
    known[2, 0] = known[0, 3] = False
    found = taxonomy.exclusive_violations(rows, known)
    assert found.sum(axis=0).tolist() == [0, 1, 0]
    np.testing.assert_array_equal(dense(taxonomy.close_targets(rows)[0]), rows)
    assert Taxonomy(PETS).exclusive_violations(rows).shape == (3, 0)


def test_large_taxonomies_stay_sparse():
    """A chain of 60,000 names with two labels at its ends, and 300 children of one label in a space of 30,000."""
    chain = [f"c{k}" for k in range(60_000)]
    labels = [chain[0], chain[-1], *(f"x{k}" for k in range(30_000))]
    implications = [*itertools.pairwise(chain), *((f"x{k}", "x0") for k in range(1, 301))]
    aliases = dict(
        zip(["start", *(f"a{k}" for k in range(30_000))], [f"a{k}" for k in range(30_000)] + ["c0"], strict=True)
    )
    taxonomy = Taxonomy(LabelSpace([Group("tags", labels)]), aliases=aliases, implications=implications)
    assert taxonomy.resolve("start") == "c0"
    assert taxonomy.ancestors("start") == taxonomy.ancestors("c7") == (chain[-1],)
    assert taxonomy.closure.nnz == 301
    rows = sp.csr_array((np.ones(300, dtype=bool), (np.zeros(300, int), np.arange(3, 303))), shape=(50_000, 30_002))
    closed, _ = taxonomy.close_targets(rows)
    assert closed.nnz == 301
    assert taxonomy.violation_rate(rows) == 1
    assert taxonomy.violation_rate(closed) == 0


def test_scores_are_worked_on_in_blocks(monkeypatch):
    taxonomy = Taxonomy(PETS, implications=[("kitten", "cat"), ("cat", "animal")])
    scores = np.random.default_rng(0).random((50, 6))
    known = np.random.default_rng(1).random((50, 6)) < 0.7
    whole, rate = taxonomy.consistent_scores(scores), taxonomy.violation_rate(scores > 0.5, known)
    monkeypatch.setattr("mlabel.taxonomy._VALUES", 9)
    monkeypatch.setattr("mlabel.taxonomy._ROWS", 7)
    np.testing.assert_array_equal(taxonomy.consistent_scores(scores), whole)
    assert taxonomy.violation_rate(scores > 0.5, known) == rate


def test_a_file_for_another_space_and_one_written_by_hand(tmp_path):
    path = tmp_path / "hand.json"
    path.write_text('{"format": "mlabel.taxonomy/1", "implications": [["kitten", "cat"]]}', encoding="utf-8")
    taxonomy = Taxonomy.load(path, PETS)
    assert taxonomy.ancestors("kitten") == ("cat",)
    taxonomy.save(path)
    small = LabelSpace([Group("tags", ["cat"])])
    assert Taxonomy.load(path, small).ancestors("kitten") == ("cat",)
    assert json.loads(path.read_text(encoding="utf-8"))["labels"]["groups"][0]["labels"] == list(PETS.groups[0].labels)


def test_a_taxonomy_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Taxonomy(PETS).space = PETS
    given_aliases = {"a": "b"}
    taxonomy = Taxonomy(PETS, aliases=given_aliases)
    given_aliases["c"] = "d"
    assert taxonomy.aliases == {"a": "b"}
    assert (
        repr(taxonomy) == "Taxonomy(6 labels, 1 aliases, 0 implications, 0 implied pairs of labels, 0 exclusive hints)"
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"implications": [("b", "a"), ("c", "b"), ("a", "c")]}, ValueError, "cycle: a -> c -> b -> a"),
        ({"implications": [("x", "b"), ("a", "b"), ("b", "a")]}, ValueError, "implications form a cycle: a -> b -> a"),
        ({"implications": [("a", "a")]}, ValueError, "cycle: a -> a"),
        ({"implications": [("a", "b"), ("b", "c")], "aliases": {"c": "a"}}, ValueError, "cycle: a -> b -> a"),
        (
            {"implications": [(f"n{k:02}", f"n{(k + 1) % 30:02}") for k in range(30)]},
            ValueError,
            "n09 -> ... (19 more) -> n29 -> n00",
        ),
        ({"aliases": {"z": "c", "c": "b", "b": "c"}}, ValueError, "aliases form a cycle: b -> c -> b"),
        ({"aliases": {"a": "a"}}, ValueError, "aliases form a cycle: a -> a"),
        ({"aliases": {"caf\u00e9": "a", "cafe\u0301": "b"}}, ValueError, "stands for both 'a' and 'b'"),
        ({"aliases": [("a", "b")]}, TypeError, "must be a mapping of names to names; got list"),
        ({"aliases": {"a": 1}}, TypeError, "must be a text that is not empty; got 1"),
        ({"implications": ["ab"]}, TypeError, "implication 0 must be a pair (child, parent); got 'ab'"),
        ({"implications": [("a", "b"), ("a", "b", "c")]}, TypeError, "implication 1 must be a pair"),
        ({"implications": [("a", "")]}, TypeError, "not empty; got ''"),
        (
            {"implications": [("safe", "x"), ("x", "other")]},
            ValueError,
            "'safe' implies 'other', but both are labels of",
        ),
        ({"exclusive_hints": ["cat"]}, TypeError, "exclusive hint 0 must be a list of names; got 'cat'"),
        ({"exclusive_hints": [["cat", "kitty"]], "aliases": {"kitty": "cat"}}, ValueError, "hint 0 must have two"),
        (
            {
                "exclusive_hints": [["tree", "cat"], ["animal", "tree", "kitten"]],
                "implications": [("kitten", "animal")],
            },
            ValueError,
            "exclusive hint 1 has 'kitten' and 'animal', but 'kitten' implies 'animal'",
        ),
    ],
)
def test_relations_that_cannot_be_are_shown(options, error, words):
    with pytest.raises(error) as caught:
        Taxonomy(PETS, **options)
    assert words in str(caught.value)


def test_messages_say_what_was_wanted(tmp_path):
    taxonomy = Taxonomy(PETS, aliases={"kitty": "cat"}, implications=[("kitten", "cat")])
    with pytest.raises(ValueError, match="has 'kiten'; did you mean 'kitten'"):
        taxonomy.ancestors("kiten")
    for call in (taxonomy.close_targets, taxonomy.violation_rate, taxonomy.most_specific, taxonomy.consistent_scores):
        with pytest.raises(ValueError, match=r"of shape \(N, 6\) was wanted; got \(1, 2\)"):
            call(np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"of shape \(N, 6\) was wanted; got \(6,\)"):
        taxonomy.consistent_scores(torch.zeros(6))
    with pytest.raises(ValueError, match="must be finite"):
        taxonomy.consistent_scores(torch.full((1, 6), torch.nan))
    with pytest.raises(ValueError, match="must be finite"):
        taxonomy.consistent_scores(np.full((1, 6), np.inf))
    with pytest.raises(ValueError, match="targets must be 0 or 1"):
        taxonomy.close_targets(np.full((1, 6), 0.5))
    with pytest.raises(ValueError, match="mask must be of shape"):
        taxonomy.close_targets(np.zeros((2, 6)), np.ones((1, 6), dtype=bool))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a taxonomy: an object was wanted; got list"),
        ('{"format": "mlabel.labels/1"}', "'mlabel.taxonomy/1' was wanted; got 'mlabel.labels/1'"),
        ('{"format": "mlabel.taxonomy/1"}', "names no labels; give the space"),
        ('{"format": "mlabel.taxonomy/1", "labels": []}', "not a taxonomy"),
        ('{"format": "mlabel.taxonomy/1", "labels": 1, "implications": 3}', "not a taxonomy"),
    ],
)
def test_files_that_hold_no_taxonomy_are_named(tmp_path, text, words):
    path = tmp_path / "taxonomy.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Taxonomy.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_relations_of_a_file_are_checked(tmp_path):
    path = tmp_path / "taxonomy.json"
    for relations, words in (
        ({"implications": [["a", "b"], ["b", "a"]]}, "cycle: a -> b -> a"),
        ({"implications": 3}, "not iterable"),
        ({"aliases": [1]}, "mapping"),
        ({"exclusive_hints": [3]}, "exclusive hint 0 must be a list"),
    ):
        path.write_text(json.dumps({"format": "mlabel.taxonomy/1", **relations}), encoding="utf-8")
        with pytest.raises(DataError) as caught:
            Taxonomy.load(path, PETS)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_aliases_alone():
    assert resolve_aliases({"b": "c", "a": "b", "d": "c"}) == {"b": "c", "a": "c", "d": "c"}
    assert resolve_aliases({}) == {}
