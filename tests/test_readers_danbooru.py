"""The Danbooru reader: both layouts against a plain reading in Python, what is left out, and broken lines."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError, Group, LabelSpace
from mlabel.data.readers import _lines, danbooru, read_danbooru

CATEGORY = {"cat": "general", "dog": "general", "ann": "artist", "owl": "character", "hi": "meta", "ox": "copyright"}
CODES = {"general": "0", "artist": "1", "copyright": "3", "character": "4", "meta": "5"}


def post(post_id, tags: str = "", *, layout="2021", **fields) -> dict:
    """A post as the metadata has it: numbers as texts; None takes a field away."""
    made = {"id": str(post_id), "md5": "0" * 32, "rating": "s", "is_banned": False, "source": "ünder ☃", "score": "-3"}
    if layout == "2021":
        made["tag_string"] = tags
        for category in CODES:
            made[f"tag_string_{category}"] = " ".join(t for t in tags.split() if CATEGORY.get(t, "general") == category)
    else:
        made["tags"] = [{"id": "7", "name": t, "category": CODES[CATEGORY.get(t, "general")]} for t in tags.split()]
    return {name: value for name, value in (made | fields).items() if value is not None}


def folder(root: Path, posts, *, images=None, layout="2021", text=None, bucket="512px", suffix="jpg") -> Path:
    name = "posts000000000000.json" if layout == "2021" else "2018000000000000.json"
    (root / "metadata").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in posts) if text is None else text
    (root / "metadata" / name).write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    for number in [int(entry["id"]) for entry in posts if "id" in entry] if images is None else images:
        path = root / bucket / f"{number % 1000:04d}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / bucket).mkdir(exist_ok=True)
    return root


def label_names(table) -> list[set[str]]:
    return [set(names) for names in table.space.decode(table.targets)]


def refused(error, words, call, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(caught.value)


posts_of_tags = st.lists(
    st.tuples(st.lists(st.sampled_from(sorted(CATEGORY)), max_size=6), st.sampled_from(["s", "q", "e", "g", None])),
    min_size=1,
    max_size=12,
)


@given(posts_of_tags, st.sampled_from(["2018", "2021"]), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_both_layouts_give_what_a_plain_reading_gives(tmp_path_factory, samples, layout, min_count, every):
    posts = [post(1000 + k, " ".join(tags), layout=layout, rating=r) for k, (tags, r) in enumerate(samples)]
    root = folder(tmp_path_factory.mktemp("d"), posts, layout=layout)
    kept = [(set(tags), rating) for tags, rating in samples][::every]
    counts = Counter(tag for tags, _ in kept for tag in tags)
    vocabulary = {tag for tag, count in counts.items() if count >= min_count}
    if not vocabulary:
        most = max(counts.values(), default=0)
        refused(DataError, ["min_count", f"is on {most}"], read_danbooru, root, min_count=min_count, sample_every=every)
        return
    table = read_danbooru(root, min_count=min_count, sample_every=every)
    ratings = {rating for _, rating in kept} - {None}
    wanted = [(tags & vocabulary) | ({f"rating:{r}"} if r and len(ratings) > 1 else set()) for tags, r in kept]
    assert label_names(table) == wanted
    assert [group.name for group in table.space.groups if group.name != "rating"] == [
        category for category in CODES if any(CATEGORY[tag] == category for tag in vocabulary)
    ]
    for group in table.space.groups[: None if len(ratings) < 2 else -1]:
        assert list(group.labels) == sorted(group.labels, key=lambda tag: (-counts[tag], tag))
        assert {CATEGORY[tag] for tag in group.labels} == {group.name}
    unrated = sum(rating is None for _, rating in kept) if len(ratings) > 1 else 0
    assert (0 if table.unknown is None else table.unknown.nnz) == unrated * len(ratings)
    assert table.targets.has_canonical_format


def test_paths_and_ids_follow_the_number(tmp_path):
    root = folder(tmp_path, [post(2001, "cat"), post(7, "cat"), post(1_234_567, "cat", id=1_234_567)])
    table = read_danbooru(root, min_count=1)
    assert table.ids.tolist() == ["2001", "7", "1234567"]
    expected = ["0001/2001.jpg", "0007/7.jpg", "0567/1234567.jpg"]
    assert table.paths.tolist() == [str(root / "512px" / path) for path in expected]
    assert all(Path(path).is_file() for path in table.paths.tolist())
    folder(root, [post(7, "cat")], bucket="original", suffix="png")
    original = read_danbooru(root, min_count=1, images="original")
    assert original.paths.tolist() == [str(root / "original" / "0007" / "7.png")]
    refused(FileNotFoundError, "256px", read_danbooru, root, images="256px")


def test_posts_can_be_read_without_their_images(tmp_path):
    root = folder(tmp_path, [post(2001, "cat"), post(7, "cat"), post(8, "cat", md5=None)], images=[])
    table = read_danbooru(root, min_count=1, images=None)
    assert table.paths.tolist() == [str(root / "512px" / path) for path in ("0001/2001.jpg", "0007/7.jpg")]
    refused(DataError, "no post has an image", read_danbooru, root, min_count=1)
    folder(root, [post(8, "cat", md5=None)], images=[])
    refused(DataError, "no post is usable: 1 are banned", read_danbooru, root, min_count=1, images=None)


def test_columns_and_row_bounds_take_four_bytes_each(tmp_path):
    targets = read_danbooru(folder(tmp_path, [post(1, "cat dog"), post(2, "cat")]), min_count=1).targets
    assert (targets.indices.dtype, targets.indptr.dtype) == (np.int32, np.int32)


def test_posts_left_out_are_counted_and_do_not_count(tmp_path):
    posts = [
        post(1, "cat dog"),
        post(2, "cat", md5=None),
        post(3, "cat", is_banned=True),
        post(4, "cat", id=None),
        post(5, "cat"),
        post(6, "cat", is_deleted=True),
    ]
    table = read_danbooru(folder(tmp_path, posts, images=[1, 2, 3, 6, 9]), min_count=1)
    assert table.ids.tolist() == ["1", "6"]
    assert table.counts.tolist() == [2, 1]
    assert table.notes == (
        "3 posts that are banned or lack id or md5 were skipped",
        "1 posts without an image were left out",
        "all posts have the rating 's' or none, so there is no group 'rating'",
    )


def test_an_image_in_the_wrong_bucket_or_of_another_kind_is_none(tmp_path):
    root = folder(tmp_path, [post(1, "cat"), post(2, "cat"), post(3, "cat"), post(4, "cat")], images=[4])
    for path in ("0002/1.jpg", "0002/2.zip", "0003/03.jpg"):
        (root / "512px" / path).parent.mkdir(exist_ok=True)
        (root / "512px" / path).touch()
    assert read_danbooru(root, min_count=1).ids.tolist() == ["4"]


def test_options_cut_the_vocabulary(tmp_path):
    posts = [post(1, "cat dog ann owl", rating="e"), post(2, "cat ann", rating="g"), post(3, "cat dog"), post(4, "hi")]
    root = folder(tmp_path, posts)
    table = read_danbooru(root, min_count=1)
    assert [group.name for group in table.space.groups] == ["general", "artist", "character", "meta", "rating"]
    assert table.space.groups[-1].labels == ("rating:g", "rating:s", "rating:e")
    assert table.space.groups[-1].exclusive
    most = read_danbooru(root, min_count=1, max_labels=2, with_rating=False)
    assert most.space.names == ("cat", "ann")
    assert most.notes == ("3 of 5 tags are too rare or not asked for, and are no labels",)
    people = read_danbooru(root, min_count=1, categories=["character", "artist"], with_rating=False)
    assert people.space.names == ("ann", "owl")
    assert read_danbooru(root, min_count=1, sample_every=3).notes[0] == "of 4 usable posts one in 3 was kept"
    refused(ValueError, "did you mean 'artist'", read_danbooru, root, categories=["artis"])
    refused(ValueError, "sample_every must be 1 or more; got 0", read_danbooru, root, sample_every=0)
    refused(ValueError, "max_labels must be 1 or more; got 0", read_danbooru, root, max_labels=0)
    refused(DataError, ["4 posts or more", "of the 4 that are kept", "is on 3"], read_danbooru, root, min_count=4)


def test_a_category_is_not_taken_from_a_tag_that_contains_another(tmp_path):
    mixed = {"tag_string": "a cat cat_ears ears", "tag_string_general": "cat_ears", "tag_string_artist": "ears cat a"}
    table = read_danbooru(folder(tmp_path, [{"id": 1, "md5": "0", **mixed}]), min_count=1)
    groups = {group.name: group.labels for group in table.space.groups}
    assert groups == {"general": ("cat_ears",), "artist": ("a", "cat", "ears")}


def test_the_tag_file_gives_categories_that_posts_do_not(tmp_path):
    bare = [{"id": k, "md5": "0", "tag_string": "cat  ann new ", "rating": "q"} for k in (1, 2)]
    root = folder(tmp_path, bare)
    assert [group.name for group in read_danbooru(root, min_count=1).space.groups] == ["general"]
    tags = root / "metadata" / "tags000000000000.json"
    tags.write_text('{"name": "cat", "category": "0"}\n{"name": "ann", "category": 1}\n\n')
    # Files of relations begin with the same letters, and are none of tags.
    (root / "metadata" / "tag_implications000000000000.json").write_text("not read")
    table = read_danbooru(root, min_count=1)
    assert {group.name: group.labels for group in table.space.groups} == {"general": ("cat", "new"), "artist": ("ann",)}
    tags.write_text('{"name": "cat", "category": "0"}\n{"name": "ann"}\n')
    refused(DataError, ["tags000000000000.json, line 2"], read_danbooru, root, min_count=1)
    tags.write_text('{"name": "ann", "category": "2"}\n')
    refused(DataError, ["line 1", "category of a tag must be one of"], read_danbooru, root, min_count=1)


def test_variants_of_one_picture_stay_together(tmp_path):
    parents = {1: None, 2: "1", 3: "2", 4: None, 5: "99", 6: 99, 7: "8", 8: "7"}
    root = folder(tmp_path, [post(k, "cat", parent_id=parent) for k, parent in parents.items()])
    assert read_danbooru(root, min_count=1).groups.tolist() == [1, 1, 1, 4, 5, 5, 7, 7]
    assert read_danbooru(folder(tmp_path / "b", [post(1, "cat")]), min_count=1).groups is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "1", "md5"', "delimiter"),
        ("[1, 2]", "a post (a JSON object) was wanted; found [1, 2]"),
        ('{"id": "1", "score": NaN}', "NaN is not JSON"),
        ('{"id": "1", "score": -Infinity}', "-Infinity is not JSON"),
        ('{"id": ' + "[" * 100_000 + "}", "nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", "line 2"),
        ('{"id": "../../2", "md5": "0"}', "id must be a number; found '../../2'"),
        ('{"id": true, "md5": "0"}', "id must be a number; found True"),
        ('{"id": -1, "md5": "0"}', "id must be a number"),
        ('{"id": "٣", "md5": "0"}', "id must be a number"),
        ('{"id": "2", "md5": "0"}', "neither a text 'tag_string' nor a list 'tags'"),
        ('{"id": "2", "md5": "0", "tags": ["cat"]}', "must have a name; found 'cat'"),
        ('{"id": "2", "md5": "0", "tags": [{"name": "x", "category": "7"}]}', "category of a tag must be one of"),
        ('{"id": "2", "md5": "0", "tag_string": "a", "rating": "x"}', "rating must be one of g, s, q, e; found 'x'"),
        ('{"id": "2", "md5": "0", "tag_string": "a", "rating": ["s"]}', "rating must be one of"),
        ('{"id": "2", "md5": "0", "tag_string": "a", "parent_id": "x"}', "parent_id must be a number"),
        ('{"id": "2", "md5": "0", "tag_string": "a\\ud800"}', "surrogates"),
        ('{"id": "1", "md5": "0", "tag_string": "a"}', "post 1 was given before, in"),
        ("\u00e9", "line 2"),
    ],
)
@pytest.mark.fault(20)
def test_a_broken_line_is_named(tmp_path, line, words):
    root = folder(tmp_path, [], text=f"{json.dumps(post(1, 'cat'))}\n{line}\n", images=[1, 2])
    refused(DataError, ["posts000000000000.json, line 2", words], read_danbooru, root, min_count=1)


@pytest.mark.fault(11)
def test_a_repeated_id_names_both_files(tmp_path):
    root = folder(tmp_path, [post(1, "cat"), post(2, "cat")])
    (root / "metadata" / "posts000000000001.json").write_text("\n" + json.dumps(post(2, "cat")) + "\n")
    words = ["posts000000000001.json, line 2: post 2", "posts000000000000.json, line 2"]
    refused(DataError, words, read_danbooru, root, min_count=1)


@pytest.mark.fault(20)
def test_byte_order_mark_line_ends_and_blank_lines_are_read(tmp_path):
    lines = [json.dumps(post(k, "cat é", rating="sq"[k % 2]), ensure_ascii=False) for k in range(4)]
    plain = read_danbooru(folder(tmp_path / "a", [], text="\n".join(lines), images=range(4)), min_count=1)
    odd = b"\xef\xbb\xbf" + "\r\n".join([*lines[:2], "", *lines[2:], "  ", ""]).encode()
    table = read_danbooru(folder(tmp_path / "b", [], text=odd, images=range(4)), min_count=1)
    assert table.fingerprint == plain.fingerprint


@pytest.mark.fault(14)
def test_two_unicode_forms_of_one_tag_are_an_error(tmp_path):
    root = folder(tmp_path, [post(1, "caf\u00e9 cafe\u0301")])
    refused(DataError, [r"'caf\xe9'", r"'cafe\u0301'", "NFC"], read_danbooru, root, min_count=1)


@pytest.mark.fault(14)
def test_odd_tag_names_stay_as_they_are(tmp_path):
    odd = ["&eacute", "=cmd", 'a,"b', "☃" * 3000, "nan", "null", "x\u3000y", "\N{GRINNING FACE}"]
    table = read_danbooru(folder(tmp_path, [post(1, " ".join(odd))]), min_count=1)
    assert set(table.space.names) == set(odd)
    refused(ValueError, "newline", read_danbooru, folder(tmp_path / "b", [post(1, "a\nb")]), min_count=1)


@pytest.mark.fault(20)
def test_a_line_is_bounded_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(_lines, "MAX_LINE_BYTES", 10_000)
    text = json.dumps(post(1, "cat")) + "\n" + '"' + "x" * 50_000_000
    root = folder(tmp_path, [], text=text, images=[1])
    del text
    tracemalloc.start()
    refused(DataError, ["line 2", "longer than 10,000 bytes"], read_danbooru, root, min_count=1)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_no_post_with_an_image_is_an_error_that_counts(tmp_path):
    root = folder(tmp_path, [post(1, "cat"), post(2, "cat", md5=None)], images=[5])
    refused(DataError, ["no post has an image: 1 posts", "1 images on disk", "1 are banned"], read_danbooru, root)
    refused(FileNotFoundError, "metadata/posts*.json", read_danbooru, tmp_path / "512px")


def test_work_in_pieces_gives_the_same(tmp_path, monkeypatch):
    posts = [post(k, " ".join(sorted(CATEGORY)[: k % 7]), rating="sqe"[k % 3]) for k in range(50)]
    root = folder(tmp_path, posts)
    whole = read_danbooru(root, min_count=1)
    monkeypatch.setattr(danbooru, "_CHUNK", 7)
    assert read_danbooru(root, min_count=1).fingerprint == whole.fingerprint
    assert label_names(whole)[6] == {*sorted(CATEGORY)[:6], "rating:s"}


def test_a_vocabulary_gives_labels_and_order(tmp_path):
    posts = [post(1, "cat dog owl", rating="g"), post(2, "dog hi", rating="s"), post(3, "hi caf\u00e9", rating=None)]
    root = folder(tmp_path, posts)
    table = read_danbooru(root, vocabulary=["cafe\u0301", "none", "owl", "dog"])
    assert table.space == LabelSpace([Group("tags", ["café", "none", "owl", "dog"])])
    assert label_names(table) == [{"owl", "dog"}, {"dog"}, {"café"}]
    assert table.unknown is None
    assert table.notes == ("2 tags are not in the vocabulary and were left out (3 uses)",)
    refused(DataError, "none of the tags", read_danbooru, root, vocabulary=["cta"])
    own = LabelSpace([Group("rating", ["rating:s", "rating:g"], exclusive=True), Group("tags", ["dog"])])
    table = read_danbooru(root, vocabulary=own)
    assert label_names(table) == [{"rating:g", "dog"}, {"rating:s", "dog"}, set()]
    assert table.unknown.toarray().tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    own.save(root / "labels.json")
    assert read_danbooru(root, vocabulary=root / "labels.json").fingerprint == table.fingerprint


def test_the_ratings_of_a_tagger_are_those_of_posts_that_know_them(tmp_path):
    names = ["general", "sensitive", "questionable", "explicit", "cat", "sky"]
    rows = [f"{name},{9 if k < 4 else 0}\n" for k, name in enumerate(names)]
    (tmp_path / "selected_tags.csv").write_text("name,category\n" + "".join(rows))
    posts = [post(1, "cat", rating="s"), post(2, "cat", rating="e"), post(3, "cat general", rating="q")]
    old = read_danbooru(folder(tmp_path / "old", posts), vocabulary=tmp_path / "selected_tags.csv")
    assert label_names(old) == [{"cat"}, {"cat", "explicit"}, {"cat", "questionable"}]
    assert old.unknown.toarray()[0].tolist() == [True] * 4 + [False] * 2
    assert old.notes[0] == "the rating s of these posts is 'safe' of old, not 'sensitive', and was taken as unknown"
    new = read_danbooru(
        folder(tmp_path / "new", [*posts, post(4, "cat", rating="g")]), vocabulary=tmp_path / "selected_tags.csv"
    )
    assert label_names(new)[0] == {"cat", "sensitive"}
    assert label_names(new)[3] == {"cat", "general"}


@given(posts_of_tags, st.permutations(sorted(CATEGORY)))
@settings(deadline=None, max_examples=30)
def test_with_all_tags_as_vocabulary_nothing_is_lost(tmp_path_factory, samples, order):
    root = folder(tmp_path_factory.mktemp("d"), [post(7 + k, " ".join(tags)) for k, (tags, _) in enumerate(samples)])
    if not any(tags for tags, _ in samples):
        refused(DataError, "none of the tags", read_danbooru, root, vocabulary=order)
        return
    table = read_danbooru(root, vocabulary=order)
    assert table.space.names == tuple(order)
    assert label_names(table) == [set(tags) for tags, _ in samples]
