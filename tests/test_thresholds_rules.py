"""Rules that decide by row, and the files in which thresholds and rules lie."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel import DataError
from mlabel.data import read_selected_tags
from mlabel.decisions import MCut, Thresholds, TopK, best_thresholds, cross_fit_thresholds, fit_thresholds
from mlabel.labels import Group, LabelSpace, decide
from mlabel.metrics import ScoreHistogram, evaluate

SPACE = LabelSpace([Group("a", ["p", "q", "r"]), Group("kind", ["x", "y"], exclusive=True), Group("b", ["s", "t"])])
ANY_OF = np.array([0, 1, 2, 5, 6])
SETS = {"global": [ANY_OF], "group": [ANY_OF[:3], ANY_OF[3:]]}


@st.composite
def scored(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 10_000]))
    return (rng.integers(0, levels, (draw(st.integers(1, 5)), 7)) / levels).astype(np.float32)


def top_by_hand(scores: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]


def cut_by_hand(scores: np.ndarray) -> list[int]:
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    held = [float(scores[place]) for place in order]
    gaps = [first - second for first, second in itertools.pairwise(held)]
    return order[: gaps.index(max(gaps)) + 1] if gaps and max(gaps) > 0 else []


@given(scores=scored(), k=st.integers(0, 6), scope=st.sampled_from(["global", "group"]))
@settings(max_examples=60, deadline=None)
def test_the_rules_are_what_they_say(scores: np.ndarray, k: int, scope: str) -> None:
    for rule, by_hand in ((TopK(k, scope), lambda row: top_by_hand(row, k)), (MCut(scope), cut_by_hand)):
        expected = np.zeros(scores.shape, dtype=bool)
        for columns in SETS[scope]:
            for row in range(len(scores)):
                expected[row, columns[by_hand(scores[row, columns])]] = True
        decided = rule.decide(scores, SPACE)
        assert np.array_equal(decided[:, ANY_OF], expected[:, ANY_OF])
        assert np.array_equal(decided[:, 3:5], decide(scores, 0.5, SPACE)[:, 3:5])
        assert np.array_equal(decided, decide(torch.from_numpy(scores), rule, SPACE))
        alone = rule.decide(scores[:, :3])
        assert np.array_equal(alone, decided[:, :3]) or scope == "global"
        one = np.vstack([rule.decide(scores[[row]], SPACE) for row in range(len(scores))])
        assert np.array_equal(one, decided)


def test_each_group_has_its_number() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.9, 0.1, 0.8, 0.9]])
    decided = TopK({"a": 2, "b": 1}, "group").decide(scores, SPACE)
    assert decided.tolist() == [[False, True, True, True, False, False, True]]
    assert not TopK({"a": 0, "b": 0}, "group").decide(scores, SPACE)[:, ANY_OF].any()
    # Without a space there is one group.
    assert TopK(1, "group").decide(scores).sum() == 1


def test_a_label_by_itself_has_no_gap() -> None:
    assert not MCut().decide([[0.9], [0.1]]).any()
    assert not MCut().decide([[0.5, 0.5]]).any()
    widest = np.finfo(np.float64).max
    assert MCut().decide([[widest, -widest]]).tolist() == [[True, False]]


@given(scores=scored(), scope=st.sampled_from(["global", "group"]), masked=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_k_has_a_higher_micro_f1(scores: np.ndarray, scope: str, masked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random(scores.shape) < 0.4).astype(np.uint8)
    known = rng.random(scores.shape) < 0.7 if masked else np.ones(scores.shape, dtype=bool)
    unknown = sp.csr_array(~known) if masked else None
    fitted = fit_thresholds(scores, targets, "top_k", scope=scope, space=SPACE, mask=unknown)
    assert isinstance(fitted.rule, TopK)
    for name, columns in zip(("a", "b"), SETS[scope], strict=False):
        chosen = fitted.rule.k[name] if scope == "group" else fitted.rule.k
        found = []
        for k in range(1, len(columns) + 1):
            decided = np.zeros(scores.shape, dtype=bool)
            for row in range(len(scores)):
                decided[row, columns[top_by_hand(scores[row, columns], k)]] = True
            part = (decided & known)[:, columns], (targets * known)[:, columns]
            found.append(2 * (part[0] & (part[1] > 0)).sum() / max(part[0].sum() + part[1].sum(), 1))
        assert chosen == (int(np.argmax(found)) + 1 if (targets * known)[:, columns].any() else 0)


def test_rules_go_where_thresholds_go(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, held = rng.random((30, 7)), rng.random((30, 7)) < 0.3
    held[:, 3], held[:, 4] = True, False
    for form in ({"objective": "top_k", "k": 2}, {"objective": "mcut", "scope": "group"}, {"objective": "top_k"}):
        fitted = fit_thresholds(scores, held, space=SPACE, **form)
        assert isinstance(fitted.rule, MCut if form["objective"] == "mcut" else TopK)
        assert (fitted.objective, fitted.scope) == (form["objective"], form.get("scope", "global"))
        assert fitted.options == ({"k": fitted.rule.k} if isinstance(fitted.rule, TopK) else {})
        assert fitted.source == ("row",) * 3 + ("exclusive",) * 2 + ("row",) * 2
        assert np.isnan(fitted.values).all()
        expected = fitted.rule.decide(scores, SPACE)
        assert np.array_equal(fitted.decide(scores), expected)
        result = evaluate(scores, held, fitted, space=SPACE)
        assert result.per_label["predicted"].tolist() == expected.sum(axis=0).tolist()
        assert result.metrics == evaluate(scores, held, fitted.rule, space=SPACE).metrics
        fitted.save(tmp_path / "rule.json")
        again = Thresholds.load(tmp_path / "rule.json", SPACE)
        assert (again.rule, again.source, again.options) == (fitted.rule, fitted.source, fitted.options)
        assert (again.objective, again.scope, again.space) == (fitted.objective, fitted.scope, SPACE)
        assert np.array_equal(again.decide(scores), expected)
        with pytest.raises(ValueError, match="decides by row and has no thresholds to write"):
            fitted.to_csv(tmp_path / "rule.csv")
        crossed = cross_fit_thresholds(scores, held, space=SPACE, folds=3, **form)
        judged = evaluate(scores, held, crossed.parts, folds=crossed.folds, space=SPACE)
        assert judged.per_label["predicted"].tolist() == crossed.decide(scores).sum(axis=0).tolist()
    histogram = ScoreHistogram(7)
    histogram.update(scores, held)
    with pytest.raises(ValueError, match=r"MCut\(scope='global'\) decides by row, without any"):
        histogram.evaluate(MCut())


@pytest.mark.parametrize("name", ["t.json", "t.csv"])
def test_a_round_trip_keeps_every_threshold(name: str, tmp_path: Path) -> None:
    values = np.array([0.1, np.inf, 1 / 3, np.nan, np.nan, -7.25, 0.5])
    source = ("label", "group", "global", "exclusive", "exclusive", "label", "default")
    told = Thresholds(values, source, SPACE, "f_beta", "label", {"beta": 2.0, "false_positive_cost": [1.0, 2.0]})
    told.save(tmp_path / name)
    for space in (None, SPACE):
        again = Thresholds.load(tmp_path / name, space)
        assert np.array_equal(again.values, values, equal_nan=True)
        assert (again.source, again.space, again.rule) == (source, SPACE, None)
    if name == "t.json":
        assert (again.objective, again.scope, again.options) == ("f_beta", "label", told.options)
    bare = Thresholds(values[[0, 1]], ("label", "group"))
    bare.save(tmp_path / name)
    again = Thresholds.load(tmp_path / name)
    assert (again.values.tolist(), again.source, again.space) == ([0.1, np.inf], bare.source, None)
    with pytest.raises(ValueError, match="without a label space"):
        Thresholds.load(tmp_path / name, SPACE)


def test_the_csv_is_by_column() -> None:
    assert best_thresholds([0.1, np.nan, 0.3, 0.9, np.nan, 0.5, 0.6], SPACE).source == (
        ("file", "default", "file", "exclusive", "exclusive", "file", "file")
    )
    with pytest.raises(ValueError, match=r"of shape \(7,\); got \(2,\)"):
        best_thresholds([0.1, 0.2], SPACE)


TAGS = """tag_id,name,category,count,best_threshold
9,safe,9,70,
8,"other, not safe",9,30,0.4
5,cat,0,12,0.25
4,dog,0,10,
"""


def test_the_thresholds_of_a_tagger_are_read(tmp_path: Path) -> None:
    path = tmp_path / "selected_tags.csv"
    path.write_text(TAGS)
    tags = read_selected_tags(path)
    fitted = tags.thresholds
    assert fitted is not None
    assert fitted.values[2:].tolist() == [0.25, 0.5]
    assert fitted.source == ("exclusive", "exclusive", "file", "default")
    loaded = Thresholds.load(path, tags.space)
    assert np.array_equal(loaded.values, fitted.values, equal_nan=True)
    assert (loaded.source, loaded.space) == (fitted.source, tags.space)
    with pytest.raises(ValueError, match="does not say which labels exclude each other; pass space="):
        Thresholds.load(path)
    other = LabelSpace([Group("general", ["safe", "cat"])])
    with pytest.raises(ValueError, match="its 4 names are not the 2 of the space; column 1 differs"):
        Thresholds.load(path, other)
    shorter = LabelSpace([Group("r", ["safe", "other, not safe"]), Group("g", ["cat"])])
    with pytest.raises(ValueError, match="its 4 names are not the 3 of the space; column 3 differs"):
        Thresholds.load(path, shorter)
    path.write_text("name,category\ncat,0\n")
    assert read_selected_tags(path).thresholds is None


HEADER = "column,name,group,threshold,source\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a header column,name,group,threshold,source, or with name and best_threshold, was wanted; got ''"),
        ("name,category\ncat,0\n", "got 'name,category'"),
        (HEADER + "0,cat,a\n", "label 1: 5 cells were wanted, as in the header; got 3"),
        (HEADER + "1,cat,a,0.5,label\n", "numbered 0 to 0, in order"),
        (HEADER + "0,cat,a,half,label\n", "a threshold was wanted; found 'half' in '0,cat,a,half,label'"),
        (HEADER + "0,cat,a,,label\n", "column 0 is NaN"),
        (HEADER + "0,cat,a,0.5,nowhere\n", "unknown source"),
        (HEADER + "0,cat,a,0.5,label\n1,dog,b,0.5,label\n2,cow,a,0.5,label\n", "must stand together"),
        (HEADER + "0,cat,a,0.5,label\n1,cat,a,0.5,label\n", "cat"),
        (HEADER + '0,"cat,a,0.5,label\n', "not CSV"),
    ],
)
def test_a_csv_that_is_no_thresholds_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as found:
        Thresholds.load(path)
    assert str(found.value).count(str(path)) == 1
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not CSV in UTF-8"):
        Thresholds.load(path)
    with pytest.raises(FileNotFoundError):
        Thresholds.load(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"name": "top_k"},
        {"name": "top_k", "k": -1, "scope": "global"},
        {"name": "eval", "k": 1},
        {"name": "mcut"},
        3,
    ],
)
def test_a_rule_that_is_none_is_refused(rule: Any, tmp_path: Path) -> None:
    import json

    path = tmp_path / "rule.json"
    Thresholds.of_rule(MCut(), 2).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "rule": rule}))
    with pytest.raises(
        DataError, match=r"rule.json: not thresholds: (not a|the) rule.*(top_k|'k'|name|k must|scope|object)"
    ):
        Thresholds.load(path)


def test_messages() -> None:
    with pytest.raises(ValueError, match="a whole number, 0 or more; got -1"):
        TopK(-1)
    with pytest.raises(ValueError, match=r"0 or more; got 1\.5"):
        TopK({"a": 1.5}, "group")
    with pytest.raises(ValueError, match="0 or more; got True"):
        TopK(True)
    with pytest.raises(ValueError, match="k of each group needs scope 'group'"):
        TopK({"a": 1})
    with pytest.raises(ValueError, match="unknown scope of a rule 'label'"):
        MCut("label")
    with pytest.raises(ValueError, match=r"no number for the any-of group 'b', only for \['a'\]"):
        TopK({"a": 1}, "group").decide(np.zeros((1, 7)), SPACE)
    with pytest.raises(ValueError, match=r"no number for the any-of group None"):
        TopK({"a": 1}, "group").decide(np.zeros((1, 7)))
    with pytest.raises(ValueError, match="scores must be finite"):
        MCut().decide([[np.nan]])
