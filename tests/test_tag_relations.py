"""Aliases and implications of a Danbooru folder: read, applied while reading posts, refused where they cannot be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers_danbooru import CATEGORY, folder, label_names, post, refused

from mlabel import DataError
from mlabel.data.readers import read_danbooru
from mlabel.data.readers.tag_relations import read_taxonomy
from mlabel.labels import Group, LabelSpace
from mlabel.taxonomy import Taxonomy


def relate(root: Path, kind: str, pairs, *, part: int = 0, text: str = "") -> Path:
    """Write relations, active unless a pair has a status of its own."""
    lines = [
        dict(zip(("antecedent_name", "consequent_name", "status"), (*pair, "active"), strict=False)) for pair in pairs
    ]
    path = root / "metadata" / f"tag_{kind}{part:012}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines) + text, encoding="utf-8")
    return root


def close(root: Path, pairs) -> Path:
    return relate(root, "implications", pairs)


samples_of_tags = st.lists(st.lists(st.sampled_from([*CATEGORY, "puss", "kitty"]), max_size=6), min_size=1, max_size=10)


@given(samples_of_tags, st.sampled_from(["2018", "2021"]), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_reading_by_aliases_is_reading_posts_without_aliases(tmp_path_factory, samples, layout, min_count):
    aliases = {"puss": "cat", "kitty": "puss", "owl": "bird"}
    root = folder(
        tmp_path_factory.mktemp("d"),
        [post(k, " ".join(tags), layout=layout) for k, tags in enumerate(samples)],
        layout=layout,
    )
    relate(root, "aliases", aliases.items())
    renamed = [[{**aliases, "kitty": "cat"}.get(tag, tag) for tag in tags] for tags in samples]
    counts = Counter(tag for tags in renamed for tag in set(tags))
    if max(counts.values(), default=0) < min_count:
        refused(DataError, "min_count", read_danbooru, root, min_count=min_count)
        return
    table = read_danbooru(root, min_count=min_count)
    assert label_names(table) == [{tag for tag in tags if counts[tag] >= min_count} for tags in renamed]
    groups = {group.name: set(group.labels) for group in table.space.groups}
    assert groups.get("character", set()) == ({"bird"} if counts["bird"] >= min_count else set())
    met = len({tag for tags in samples for tag in tags} & set(aliases))
    assert ("are aliases, and were read" in " ".join(table.notes)) == (met > 0)
    assert (f"{met} tags are aliases, and were read as the tags they stand for" in table.notes) == (met > 0)


def test_only_active_relations_count_and_files_add_up(tmp_path):
    root = folder(tmp_path, [post(1, "puss dog")])
    relate(root, "aliases", [("puss", "cat", "deleted"), ("dog", "wolf")])
    assert set(read_danbooru(root, min_count=1).space.names) == {"puss", "wolf"}
    relate(root, "aliases", [("puss", "lion"), ("lion", "ox")], part=1, text="\n  \n")
    assert set(read_danbooru(root, min_count=1).space.names) == {"ox", "wolf"}
    assert set(read_danbooru(root, min_count=1, aliases=False).space.names) == {"puss", "dog"}


def test_aliases_that_are_asked_for_must_be_there(tmp_path):
    root = folder(tmp_path, [post(1, "cat")])
    refused(
        FileNotFoundError, ["no tag_aliases*.json, which was asked for"], read_danbooru, root, min_count=1, aliases=True
    )
    refused(FileNotFoundError, ["no tag_implications*.json"], read_danbooru, root, min_count=1, close_implications=True)
    relate(root, "aliases", [("cat", "ox")])
    assert read_danbooru(root, min_count=1, aliases=True).space.names == ("ox",)


def test_the_category_of_what_an_alias_stands_for(tmp_path):
    """The post of the tag itself says it, else the file of tags, else the alias in its post."""
    root = folder(tmp_path, [post(1, "owl")])
    relate(root, "aliases", [("owl", "bird")])
    assert [group.name for group in read_danbooru(root, min_count=1).space.groups] == ["character"]
    (root / "metadata" / "tags000000000000.json").write_text('{"name": "bird", "category": "3"}\n')
    assert [group.name for group in read_danbooru(root, min_count=1).space.groups] == ["copyright"]
    folder(root, [post(1, "owl bird", tag_string_general="", tag_string_artist="bird")])
    assert [group.name for group in read_danbooru(root, min_count=1).space.groups] == ["artist"]


def test_a_vocabulary_may_have_names_of_old(tmp_path):
    root = folder(tmp_path, [post(1, "cat dog"), post(2, "puss"), post(3, "ox wolf")])
    relate(root, "aliases", [("puss", "cat"), ("kitty", "cat"), ("ox", "bull"), ("wolf", "dog")])
    names = ["kitty", "puss", "ox", "bull", "dog"]
    table = read_danbooru(root, vocabulary=names)
    assert table.space.names == tuple(names)
    # The first old name of cat has its posts; ox has none, as bull is a label itself.
    assert table.targets.toarray().tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    as_written = read_danbooru(root, vocabulary=names, aliases=False)
    assert as_written.targets.toarray().tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert read_danbooru(root, vocabulary=["kitty"]).targets.toarray().tolist() == [[1], [1], [0]]
    refused(DataError, "none of the tags", read_danbooru, root, vocabulary=["lion"])


def test_posts_are_closed_upward_on_request(tmp_path):
    root = folder(
        tmp_path, [post(1, "kitten dog"), post(2, "puss animal"), post(3, "animal"), post(4, "cat", rating="e")]
    )
    relate(root, "aliases", [("puss", "cat"), ("pet", "animal")])
    close(root, [("kitten", "puss"), ("cat", "beast"), ("beast", "pet"), ("dog", "animal", "retired")])
    plain = read_danbooru(root, min_count=1)
    closed = read_danbooru(root, min_count=1, close_implications=True)
    assert closed.space == plain.space
    assert label_names(closed) == [
        {"kitten", "cat", "animal", "dog", "rating:s"},
        {"cat", "animal", "rating:s"},
        {"animal", "rating:s"},
        {"cat", "animal", "rating:e"},
    ]
    assert "3 labels of posts were added, as others imply them" in closed.notes
    assert read_taxonomy(root, plain.space).violation_rate(closed.targets) == 0
    # What is too rare is no label, whatever implies it; implications lead through it all the same.
    frequent = read_danbooru(root, min_count=2, close_implications=True, with_rating=False)
    assert label_names(frequent) == [set(), {"cat", "animal"}, {"animal"}, {"cat", "animal"}]
    # Without aliases an implication is one of the names as they are written.
    as_written = read_danbooru(root, min_count=1, close_implications=True, aliases=False)
    assert label_names(as_written)[0] == {"kitten", "puss", "dog", "rating:s"}


def test_a_taxonomy_is_read_from_the_folder_or_the_one_above(tmp_path):
    root = close(tmp_path / "danbooru", [("kitten", "cat"), ("cat", "animal")])
    space = LabelSpace([Group("tags", ["kitten", "animal", "tree"])])
    expected = Taxonomy(
        space, implications=[("kitten", "cat"), ("cat", "animal")], exclusive_hints=[["tree", "kitten"]]
    )
    for place in (root, tmp_path, str(root)):
        assert read_taxonomy(place, space, exclusive_hints=[["tree", "kitten"]]) == expected
    refused(
        FileNotFoundError,
        "tag_aliases*.json or metadata/tag_implications*.json",
        read_taxonomy,
        root / "metadata",
        space,
    )
    (root / "metadata" / "tag_implications000000000000.json").unlink()
    relate(root, "aliases", [("wood", "tree")])
    assert read_taxonomy(root, space) == Taxonomy(space, aliases={"wood": "tree"})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"antecedent_name": "a"', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('["a", "b", "active"]', "an object with the texts antecedent_name, consequent_name, status was wanted"),
        ('{"antecedent_name": "a", "consequent_name": "b"}', "was wanted; found '{"),
        ('{"antecedent_name": "a", "consequent_name": "", "status": "active"}', "was wanted; found '{"),
        ('{"antecedent_name": "a", "consequent_name": 3, "status": "deleted"}', "was wanted; found '{"),
    ],
)
@pytest.mark.parametrize("kind", ["aliases", "implications"])
@pytest.mark.fault(20)
def test_a_broken_line_is_named(tmp_path, kind, line, words):
    root = relate(folder(tmp_path, [post(1, "cat")]), kind, [("x", "y")], text=line)
    space = LabelSpace([Group("tags", ["cat"])])
    refused(DataError, [f"tag_{kind}000000000000.json, line 2", words], read_taxonomy, root, space)
    options = {"aliases": kind == "aliases", "close_implications": kind == "implications"}
    refused(DataError, [f"tag_{kind}000000000000.json, line 2"], read_danbooru, root, min_count=1, **options)


def test_relations_that_cannot_be_are_shown_with_their_folder(tmp_path):
    root = folder(tmp_path, [post(1, "cat")])
    close(root, [("b", "a"), ("a", "b")])
    words = [str(root / "metadata"), "cycle: a -> b -> a"]
    refused(DataError, words, read_danbooru, root, min_count=1, close_implications=True)
    refused(DataError, words, read_taxonomy, root, LabelSpace([Group("tags", ["cat"])]))
    relate(root, "aliases", [("b", "a"), ("a", "b")])
    refused(DataError, [*words[:1], "tag_aliases: aliases form a cycle: a -> b -> a"], read_danbooru, root, min_count=1)
    relate(root, "aliases", [("b", "a"), ("b", "a"), ("b", "c")])
    refused(DataError, [*words[:1], "alias 'b' stands for both 'a' and 'c'"], read_danbooru, root, min_count=1)
    assert read_danbooru(root, min_count=1, aliases=False).space.names == ("cat",)
