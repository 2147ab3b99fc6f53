"""Search: the index against scores held in memory, queries against a slow evaluation of their own text, damage."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel import DataError, Tagger
from mlabel.cli import main
from mlabel.inference import SearchIndex, build_index, parse_query, read_predictions
from mlabel.inference.query import MAX_DEPTH, MAX_LENGTH, Both, Either, Term, terms
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model

NAMES = ("cat", "dog", "long hair", 'say "x"')
SPACE = LabelSpace([Group("tags", NAMES)])
FLOOR = 0.05


def make_scores(count: int = 60, seed: int = 0) -> np.ndarray:
    """Return scores (n, 4), some of them equal, some 0 and some 1."""
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, 0.01, 0.05, 0.2, 0.5, 0.7, 0.9, 1.0], (count, 4)).astype(np.float32)


def make_index(folder: Path, scores: Any, *, top: int = 4, floor: float = FLOOR, features: Any = None) -> SearchIndex:
    names = [f"im{number}.jpg" for number in range(scores.shape[0])]
    return build_index(folder, SPACE, [(names, scores, features)], top=top, floor=floor)


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    return make_scores()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, scores: np.ndarray) -> SearchIndex:
    return make_index(tmp_path_factory.mktemp("search") / "index", scores)


# A query is held as nested tuples, from which its text is made; the slow evaluation follows the tuples, NOT and all.
def leaves() -> st.SearchStrategy[Any]:
    comparison = st.none() | st.tuples(st.sampled_from([">", ">=", "<", "<="]), st.sampled_from([0.05, 0.2, 0.5, 0.7]))
    return st.tuples(st.just("term"), st.integers(0, 3), comparison)


def queries() -> st.SearchStrategy[Any]:
    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        weighted = st.tuples(st.just("weigh"), inner, st.sampled_from([1, 2, 3]))
        several = st.tuples(st.sampled_from(["and", "or"]), st.lists(inner | weighted, min_size=2, max_size=3))
        return st.tuples(st.just("not"), inner) | several

    return st.recursive(leaves(), grow, max_leaves=6)


def as_text(query: Any) -> str:
    kind = query[0]
    if kind == "term":
        name = NAMES[query[1]].replace('"', '\\"')
        compare = "" if query[2] is None else f"{query[2][0]}{query[2][1]}"
        return f'"{name}"{compare}'
    if kind == "not":
        return f"NOT ({as_text(query[1])})"
    if kind == "weigh":
        return f"({as_text(query[1])})^{query[2]}"
    return f" {kind.upper()} ".join(f"({as_text(part)})" for part in query[1])


def as_written_out(query: Any) -> Any:
    """Return the query without weights: what is weighed stands there so often."""
    if query[0] == "term":
        return query
    if query[0] == "not":
        return ("not", as_written_out(query[1]))
    parts = []
    for part in query[1]:
        count = part[2] if part[0] == "weigh" else 1
        parts += [as_written_out(part[1] if part[0] == "weigh" else part)] * count
    return (query[0], parts)


def judge(query: Any, scores: dict[int, float], wanted: bool = True) -> tuple[float, bool]:
    """Return the probability of a query for the stored scores of one image, and whether comparisons let it pass."""
    if query[0] == "not":
        return judge(query[1], scores, not wanted)
    if query[0] == "term":
        stored = scores.get(query[1])
        held = min(max(FLOOR if stored is None else stored, 1e-7), 1 - 1e-7)
        if query[2] is None:
            return (held if wanted else 1 - held), True
        sign, bound = query[2]
        below = stored is None  # what was not kept is below the floor, and no bound is
        obeys = {
            ">": not below and stored > np.float32(bound),
            ">=": not below and stored >= np.float32(bound),
            "<": below or stored < np.float32(bound),
            "<=": below or stored <= np.float32(bound),
        }[sign]
        looks_for_much = (sign in (">", ">=")) == wanted
        return (held if looks_for_much else 1 - held), bool(obeys) == wanted
    parts = [judge(part, scores, wanted) for part in query[1]]
    if (query[0] == "and") == wanted:
        return math.prod(value for value, _ in parts), all(passes for _, passes in parts)
    return 1 - math.prod(1 - value for value, passes in parts if passes), any(passes for _, passes in parts)


def wants_something(query: Any, wanted: bool = True) -> set[int]:
    """Return the labels that a query wants."""
    if query[0] == "not":
        return wants_something(query[1], not wanted)
    if query[0] == "term":
        much = True if query[2] is None else query[2][0] in (">", ">=")
        return {query[1]} if much == wanted else set()
    return set().union(*(wants_something(part, wanted) for part in query[1]))


def stored_scores(scores: np.ndarray) -> list[dict[int, float]]:
    return [{label: float(value) for label, value in enumerate(row) if value >= FLOOR} for row in scores]


@settings(max_examples=150, deadline=None)
@given(query=queries())
def test_a_query_finds_what_a_slow_evaluation_finds(index: SearchIndex, scores: np.ndarray, query: Any) -> None:
    plain = as_written_out(query)
    wanted = wants_something(plain)
    expected = {}
    for row, stored in enumerate(stored_scores(scores)):
        probability, passes = judge(plain, stored)
        if passes and (not wanted or wanted & stored.keys()):
            expected[row] = probability
    hits = index.search(as_text(query), top=1000)
    assert {hit.row for hit in hits} == set(expected)
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.row] for hit in hits], rel=1e-5, abs=1e-9)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@settings(max_examples=60, deadline=None)
@given(query=queries(), top=st.integers(1, 8))
def test_the_best_few_are_the_first_of_all(index: SearchIndex, query: Any, top: int) -> None:
    text = as_text(query)
    everything = index.search(text, top=1000)
    assert index.search(text, top=top) == everything[:top]


@settings(max_examples=40, deadline=None)
@given(query=queries())
def test_blocks_of_images_change_nothing(index: SearchIndex, query: Any) -> None:
    from mlabel.inference import index as room

    whole = index.search(as_text(query), top=7)
    size, room._BLOCK = room._BLOCK, 9
    try:
        assert index.search(as_text(query), top=7) == whole
    finally:
        room._BLOCK = size


@settings(max_examples=40, deadline=None)
@given(query=queries())
def test_not_twice_is_nothing_and_de_morgan_holds(index: SearchIndex, query: Any) -> None:
    text = as_text(query)
    assert parse_query(f"NOT (NOT ({text}))") == parse_query(text)
    assert parse_query(f"NOT (cat AND ({text}))") == parse_query(f"NOT cat OR NOT ({text})")


def test_a_query_by_hand(tmp_path: Path) -> None:
    scores = np.array([[0.9, 0.8, 0, 0], [0.7, 0.1, 0, 0], [0.0, 0.0, 0.4, 0]], dtype=np.float32)
    index = make_index(tmp_path / "index", scores)
    both = index.search("cat AND dog")
    assert [(hit.image, hit.score) for hit in both] == [
        ("im0.jpg", pytest.approx(0.72)),
        ("im1.jpg", pytest.approx(0.07)),
    ]
    assert both[1].scores == {"cat": pytest.approx(0.7), "dog": pytest.approx(0.1)}
    assert [hit.image for hit in index.search("cat NOT dog")] == ["im1.jpg", "im0.jpg"]
    either = index.search('cat OR "long hair"')
    assert either[0].score == pytest.approx(1 - 0.1 * (1 - FLOOR))
    assert either[2].score == pytest.approx(1 - (1 - FLOOR) * 0.6)
    assert [hit.image for hit in index.search("NOT cat")] == ["im2.jpg", "im1.jpg", "im0.jpg"]
    assert [hit.image for hit in index.search("cat>0.7 dog")] == ["im0.jpg"]
    assert index.search("cat", min_score=0.71)[-1].image == "im0.jpg"


def test_weights_and_how_tightly_signs_bind() -> None:
    assert parse_query("a b OR c") == Either((Both((Term("a"), Term("b"))), Term("c")))
    assert parse_query("a (b OR NOT c)^.5 d^2") == Both(
        (Term("a"), Either((Term("b"), Term("c", wanted=False)), weight=0.5), Term("d", weight=2.0))
    )
    assert parse_query("NOT a>0.5") == Term("a", wanted=False, compare="<=", bound=0.5)
    assert parse_query("a<=0.5") == Term("a", wanted=False, compare="<=", bound=0.5)
    assert parse_query("NOT (a<0.5 OR b)") == Both((Term("a", True, ">=", 0.5), Term("b", wanted=False)))
    assert [term.name for term in terms(parse_query('x ("y z" OR NOT "NOT")'))] == ["x", "y z", "NOT"]


@settings(max_examples=60, deadline=None)
@given(name=st.text(max_size=12))
def test_any_name_can_be_asked_for_in_quotes(name: str) -> None:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_query(f'"{escaped}"') == Term(name)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='ab "()^<>.5\\ANDORT', max_size=20))
def test_any_text_is_a_query_or_a_clear_error(text: str) -> None:
    try:
        node = parse_query(text)
    except ValueError as error:
        message = str(error)
    else:
        assert list(terms(node))
        return
    assert "character" in message


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", r"a label, NOT or '\(' was wanted at character 1; got the end"),
        ("cat AND", r"a label, NOT or '\(' was wanted at character 8; got the end"),
        ("(cat", r"AND, OR or '\)' was wanted at character 5; got the end"),
        ("cat)", r"AND, OR or the end was wanted at character 4; got '\)'"),
        ("cat>", "a probability, such as 0.7, was wanted at character 5"),
        ("cat>1.5", "a probability, such as 0.7, was wanted at character 5; got '1.5'"),
        ("cat>nan", "a probability"),
        ("cat^0", "a weight above 0, such as \\^2, was wanted at character 5; got '0'"),
        ("cat^", "a weight above 0"),
        ('dog "cat', "the quote at character 5 is not closed"),
        ("a" * (MAX_LENGTH + 1), "10,000 characters"),
        ("(" * (MAX_DEPTH + 2) + "cat" + ")" * (MAX_DEPTH + 2), "nested 100 deep"),
        ("NOT " * (MAX_DEPTH + 2) + "cat", "nested 100 deep"),
    ],
)
def test_what_is_no_query_is_said_with_the_place(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query(query)


def test_wrong_use_is_said(index: SearchIndex) -> None:
    with pytest.raises(ValueError, match="no label 'catt'; did you mean 'cat'"):
        index.search("catt")
    with pytest.raises(ValueError, match=r"cat>0.01: the index keeps scores from 0.05 on"):
        index.search("cat>0.01")
    with pytest.raises(ValueError, match="holds no features"):
        index.like(np.ones(3))
    with pytest.raises(ValueError, match="top must be"):
        index.search("cat", top=0)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_index_keeps_the_highest_scores(tmp_path: Path, top: int) -> None:
    rng = np.random.default_rng(3)
    scores = rng.permuted(np.tile([0.02, 0.3, 0.6, 0.9], (50, 1)), axis=1).astype(np.float32)
    stored = sp.csr_array(np.where(scores > 0.1, scores, 0))
    for name, given_scores in (("dense", scores), ("sparse", stored)):
        index = make_index(tmp_path / name, given_scores, top=top)
        for column, label in enumerate(NAMES):
            least = sorted([0.3, 0.6, 0.9])[-min(top, 3)]
            expected = np.flatnonzero(scores[:, column] >= np.float32(least))
            images, held = index.entries(label)
            assert np.array_equal(images, expected)
            assert np.array_equal(held, scores[expected, column])


def test_batches_and_chunks_of_sorting_change_no_byte(
    tmp_path: Path, scores: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_index(tmp_path / "whole", scores)
    monkeypatch.setattr("mlabel.inference.index_build._CHUNK", 7)
    names = [whole.name(row) for row in range(len(whole))]
    batches = [(names[start : start + 11], scores[start : start + 11], None) for start in range(0, 60, 11)]
    parts = build_index(tmp_path / "parts", SPACE, batches, top=4, floor=FLOOR)
    for path in whole.folder.iterdir():
        assert (parts.folder / path.name).read_bytes() == path.read_bytes()


def test_images_like_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5))
    index = make_index(tmp_path / "index", make_scores(), features=features)
    one = rng.normal(size=5)
    cosines = features @ one / np.linalg.norm(features, axis=1) / np.linalg.norm(one)
    hits = index.like(one * 1000, top=10)
    assert [hit.row for hit in hits] == np.argsort(-cosines)[:10].tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:10].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match=r"finite and \(5,\)"):
        index.like(np.ones(4))


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    names = ["", "é.jpg", "a\tb\n.jpg", "図/1.png"]
    index = build_index(tmp_path / "index", SPACE, [(names, np.zeros((4, 4)), None)])
    assert [index.name(row) for row in range(4)] == names
    assert index.search("cat") == []
    assert [hit.image for hit in index.search("NOT cat")] == names


def test_what_cannot_be_indexed_is_said_and_leaves_nothing(tmp_path: Path, scores: np.ndarray) -> None:
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="scores must be probabilities"):
        make_index(folder, scores * 2)
    with pytest.raises(ValueError, match=r"scores must be \(60, 4\)"):
        make_index(folder, scores[:, :3])
    with pytest.raises(ValueError, match="no images"):
        build_index(folder, SPACE, [])
    features = [None, np.ones((60, 2))]
    with pytest.raises(ValueError, match="features of 2 numbers came after features of 0"):
        build_index(folder, SPACE, [(["x"] * 60, scores, each) for each in features])
    with pytest.raises(ValueError, match="floor must be"):
        make_index(folder, scores, floor=0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not an index"):
        make_index(tmp_path / "mine", scores)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


def _patch(name: str, offset: int, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[offset : offset + len(content)] = content
        (folder / name).write_bytes(bytes(data))

    return apply


def _describe(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        about = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(about | changes))

    return apply


def _link(folder: Path) -> None:
    (folder / "names.bin").rename(folder.parent / "elsewhere")
    (folder / "names.bin").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        _patch("images.bin", 0, b"\xff\xff\xff\xff"),
        _patch("images.bin", 4, b"\0\0\0\0"),
        _patch("scores.bin", 0, np.float32(2).tobytes()),
        _patch("scores.bin", 0, np.float32(np.nan).tobytes()),
        _patch("offsets.bin", 0, b"\x01"),
        _patch("offsets.bin", 8, b"\xff" * 8),
        _patch("offsets.bin", 32, b"\x01" + b"\0" * 7),
        _patch("name_offsets.bin", 8, b"\xff" * 7 + b"\x7f"),
        _patch("names.bin", 0, b"\xff"),
        lambda folder: (folder / "scores.bin").unlink(),
        lambda folder: (folder / "images.bin").write_bytes(b""),
        _describe(num_images=10**15),
        _describe(num_images=-1),
        _describe(num_entries=2**62),
        _describe(num_entries=True),
        _describe(floor=0),
        _describe(floor="x"),
        _describe(space={}),
        _describe(format="mlabel.index/2"),
        _describe(num_features=3),
        lambda folder: (folder / "index.json").write_text("[" * 100_000),
        _link,
    ],
)
def test_a_damaged_index_is_said(tmp_path: Path, scores: np.ndarray, damage: Callable[[Path], None]) -> None:
    make_index(tmp_path / "index", scores)
    damage(tmp_path / "index")
    with pytest.raises(DataError, match=r"\.(bin|json)"):
        SearchIndex(tmp_path / "index").search("cat NOT dog", top=1000)


def test_predictions_become_an_index(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = [
        {"image": f"{n}.jpg", "labels": [], "scores": {"cat": n / 4, **({"dog": 0.5} if n else {})}} for n in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    space, batches = read_predictions(path)
    assert space.names == ("cat", "dog")
    index = build_index(tmp_path / "index", space, batches)
    assert [(hit.image, hit.score) for hit in index.search("cat")] == [
        ("3.jpg", pytest.approx(0.75)),
        ("2.jpg", pytest.approx(0.5)),
        ("1.jpg", pytest.approx(0.25)),
    ]
    assert index.entries("dog")[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", 'line 2: an object with "image" and "scores"'),
        ('{"image": "a", "scores": {"cat": 1.5}}', "line 2: the score of 'cat' must be from 0 to 1; got 1.5"),
        ('{"image": "a", "scores": {"cat": "x"}}', "line 2: the score of 'cat'"),
        ('{"image": "a", "scores": {"cat": NaN}}', "line 2"),
        ("{", "line 2"),
    ],
)
def test_predictions_that_are_none_are_said(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"image": "a", "scores": {"cat": 0.5}}\n' + line)
    with pytest.raises(DataError, match=message):
        for _ in itertools.chain(read_predictions(path)[1]):
            pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight images in a folder, and a bundle that scores them."""
    folder = tmp_path_factory.mktemp("command")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    torch.manual_seed(3)
    Tagger(create_model("small_cnn", SPACE, image_size=16)).save(folder / "bundle")
    return folder / "photos", folder / "bundle"


def test_the_commands_find_what_the_tagger_scores_highest(
    photos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bundle = photos
    monkeypatch.chdir(folder.parent)
    index, page = str(tmp_path / "index"), tmp_path / "page"
    assert main(["index", "photos", "--bundle", str(bundle), "--with-features", "--to", index]) == 0
    assert capsys.readouterr().out.startswith("8 images, 4 labels")
    assert main(["search", "--index", index, "cat NOT dog", "--top", "3", "--page", str(page)]) == 0
    shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    scores = {each.path: each.scores for each in Tagger.load(bundle).predict(sorted(Path("photos").iterdir()))}
    expected = sorted(scores, key=lambda path: -scores[path][0] * (1 - scores[path][1]))
    assert [line[0] for line in shown] == expected[:3]
    assert shown[0][1] == f"{scores[expected[0]][0] * (1 - scores[expected[0]][1]):.4f}"
    assert shown[0][2:] == [f"cat {scores[expected[0]][0]:.2f}", f"dog {scores[expected[0]][1]:.2f}"]
    text = (page / "index.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 3
    assert "3 of 8 images" in text

    like = ["search", "--index", index, "--like", "photos/5.png", "--bundle", str(bundle), "--format", "json"]
    assert main([*like, "--top", "2"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found[0] == {"image": "photos/5.png", "score": pytest.approx(1, abs=1e-5), "scores": {}}
    assert len(found) == 2


def test_a_map_head_gives_features_and_the_same_scores(photos: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    tagger = Tagger(create_model("small_cnn", SPACE, head="csra", image_size=16))
    paths = sorted(photos[0].iterdir())
    plain = np.concatenate([each.scores for each in tagger.score(paths, batch_size=3)])
    both = list(tagger.score(paths, batch_size=3, with_features=True))
    assert np.array_equal(np.concatenate([each.scores for each in both]), plain)
    features = tagger.features(paths)
    assert np.array_equal(np.concatenate([each.features for each in both if each.features is not None]), features)
    assert features.shape[0] == 8
    assert np.std(features, axis=0).max() > 0


def test_predictions_are_indexed_by_the_command(
    photos: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = photos
    lines = str(tmp_path / "lines.jsonl")
    assert main(["predict", "--bundle", str(bundle), str(folder), "--format", "jsonl", "--to", lines]) == 0
    assert main(["index", "--predictions", lines, "--to", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    assert main(["search", "--index", str(tmp_path / "index"), '"long hair"', "--top", "100"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "--to", "x"], "images and --bundle are wanted, or --predictions"),
        (["index", "a", "--predictions", "p", "--to", "x"], "--predictions stands for scores"),
        (["search", "--index", "nowhere", "cat"], "nowhere is not an index"),
        (["search", "--index", "INDEX"], "a query or --like IMAGE is wanted"),
        (["search", "--index", "INDEX", "cat", "--like", "x"], "a query or --like IMAGE is wanted"),
        (["search", "--index", "INDEX", "--like", "x"], "--like wants --bundle"),
        (["search", "--index", "INDEX", "cat", "--page", "PAGE", "--images-in", "PAGE"], "does not lie in"),
    ],
)
def test_wrong_commands_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / "elsewhere.jpg"), "../elsewhere.jpg"]
    build_index(tmp_path / "index", SPACE, [(names, make_scores(2), None)])
    places = {"INDEX": str(tmp_path / "index"), "PAGE": str(tmp_path / "page")}
    assert main([places.get(each, each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
