"""Every objective: no cut is better than the fitted one, found by trying all, and what must not matter does not."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.decisions import OBJECTIVES, Thresholds, check_objective, cross_fit_thresholds, fit_thresholds
from mlabel.decisions._exact import best_overlap
from mlabel.labels import Group, LabelSpace, decide
from mlabel.metrics import evaluate

SPACE = LabelSpace([Group("a", ["p", "q"]), Group("kind", ["x", "y"], exclusive=True), Group("b", ["r"])])
ANY_OF = np.array([0, 1, 4])
# Objectives of which each label, or pool, is fitted on its own, with options.
ALONE: list[tuple[str, dict[str, Any]]] = [
    ("f1", {}),
    ("f_beta", {"beta": 2.0}),
    ("precision_equals_recall", {}),
    ("precision_floor", {"floor": 0.75}),
    ("precision_floor", {"floor": 1.0}),
    ("recall_floor", {"floor": 0.5}),
    ("recall_floor", {"floor": 1.0}),
    ("cost", {}),
    ("cost", {"false_positive_cost": 3.0, "false_negative_cost": 2.0}),
    ("cost", {"false_positive_cost": 0.0}),
]
TOGETHER: list[tuple[str, dict[str, Any]]] = [
    ("micro_f1", {}),
    ("micro_f_beta", {"beta": 0.5}),
    ("exact_match", {}),
]
Problem = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def names(case: Any) -> str:
    return case if isinstance(case, str) else ",".join(f"{name}={value}" for name, value in case.items())


def forms(case: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    objective, options = case
    scopes = ["global", "group"] if objective in ("top_k", "mcut") else ["label", "group", "global"]
    return [{"objective": objective, "scope": scope, **options} for scope in scopes]


EVERY = [form for case in [*ALONE, *TOGETHER, ("top_k", {}), ("top_k", {"k": 1}), ("mcut", {})] for form in forms(case)]
EVERY += [{"objective": "f1", "shrink": 2.0}, {"objective": "micro_f1", "shrink": 2.0}]
INDEPENDENT = [{"objective": objective, **options} for objective, options in ALONE]


@st.composite
def problems(draw: st.DrawFn, most_rows: int = 8, columns: int | None = None) -> Problem:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, labels = draw(st.integers(1, most_rows)), columns or draw(st.integers(1, 3))
    levels = draw(st.sampled_from([3, 8, 10_000]))  # few levels make ties
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scores = ((rng.integers(0, levels, (rows, labels)) - draw(st.sampled_from([0, 1]))) / levels).astype(dtype)
    targets = (rng.random((rows, labels)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(np.uint8)
    mask = rng.random((rows, labels)) < 0.7 if draw(st.booleans()) else None
    return scores, targets, mask


@st.composite
def spaced(draw: st.DrawFn) -> Problem:
    """Problems of `SPACE`, of which each row has one known label of the exclusive group, or knows neither."""
    scores, targets, mask = draw(problems(columns=5, most_rows=6))
    targets[:, 3] = 1 - targets[:, 2]
    if mask is not None:
        mask[:, 3] = mask[:, 2]
    return scores, targets, mask


def known_of(targets: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return np.ones(targets.shape, dtype=bool) if mask is None else mask


def worth(objective: str, options: dict[str, Any], right: float, decided: float, positives: float) -> float:
    """Return what an objective is worth, higher being better, by its definition."""
    if objective in ("f1", "f_beta", "micro_f1", "micro_f_beta"):
        squared = options.get("beta", 1.0) ** 2
        return (1 + squared) * right / (squared * positives + decided)
    if objective == "precision_equals_recall":
        return -abs(decided - positives)
    if objective == "precision_floor":
        return right if decided == 0 or right / decided >= options["floor"] else -1.0
    if objective == "recall_floor":
        return right / decided if right / positives >= options["floor"] else -1.0
    wrong, missed = decided - right, positives - right
    return -(options.get("false_positive_cost", 1.0) * wrong + options.get("false_negative_cost", 1.0) * missed)


def cuts(scores: np.ndarray) -> list[float]:
    return [*np.unique(scores).tolist(), np.inf]


def best_alone(objective: str, options: dict[str, Any], scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the worth of the best cut of known scores, by trying all."""
    held = [scores >= level for level in cuts(scores)]
    return max(worth_of(objective, options, decided, targets) for decided in held)


def worth_of(objective: str, options: dict[str, Any], decided: np.ndarray, targets: np.ndarray) -> float:
    return worth(objective, options, int((decided & (targets > 0)).sum()), int(decided.sum()), int(targets.sum()))


@pytest.mark.parametrize(("objective", "options"), ALONE, ids=names)
@given(problem=problems())
@settings(max_examples=25, deadline=None)
def test_no_cut_of_a_label_is_better(objective: str, options: dict[str, Any], problem: Problem) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, objective, mask=mask, **options)
    decided, known = fitted.decide(scores), known_of(targets, mask)
    for column in range(scores.shape[1]):
        rows = known[:, column]
        if not targets[rows, column].any():
            assert fitted.source[column] in ("group", "default")
            continue
        assert fitted.source[column] == "label"
        held = scores[rows, column], targets[rows, column]
        found = worth_of(objective, options, decided[rows, column], held[1])
        assert found == pytest.approx(best_alone(objective, options, *held))
        # Of the cuts that are as good, it is the highest.
        as_good = [
            cut
            for cut in cuts(held[0])
            if worth_of(objective, options, held[0] >= cut, held[1]) == pytest.approx(found, abs=1e-12)
        ]
        assert np.array_equal(decided[rows, column], held[0] >= max(as_good))


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize(("objective", "options"), ALONE, ids=names)
@given(problem=spaced())
@settings(max_examples=8, deadline=None)
def test_no_common_cut_is_better(objective: str, options: dict[str, Any], scope: str, problem: Problem) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, objective, mask=mask, space=SPACE, scope=scope, **options)
    known = known_of(targets, mask)
    for columns in [ANY_OF] if scope == "global" else [ANY_OF[:2], ANY_OF[2:]]:
        rows, picked = np.nonzero(known[:, columns])
        held = scores[:, columns][rows, picked], targets[:, columns][rows, picked]
        if held[1].any():
            assert {fitted.source[column] for column in columns} == {scope}
            decided = fitted.decide(scores)[:, columns][rows, picked]
            found = worth_of(objective, options, decided, held[1])
            assert found == pytest.approx(best_alone(objective, options, *held))
    assert np.isnan(fitted.values[2:4]).all()


@given(problem=problems(), scope=st.sampled_from(["label", "group"]))
@settings(max_examples=60, deadline=None)
def test_costs_of_each_label(problem: Problem, scope: str) -> None:
    scores, targets, mask = problem
    labels = scores.shape[1]
    costs = {
        "false_positive_cost": np.arange(1.0, labels + 1),
        "false_negative_cost": torch.arange(labels, 0, -1) * 1.5,
    }
    known = known_of(targets, mask)

    def total(decided: np.ndarray) -> np.ndarray:
        wrong, missed = decided & known & (targets == 0), ~decided & known & (targets == 1)
        return (
            wrong.sum(axis=0) * costs["false_positive_cost"] + missed.sum(axis=0) * costs["false_negative_cost"].numpy()
        )

    fitted = fit_thresholds(scores, targets, "cost", scope=scope, mask=mask, **costs)
    spent = total(fitted.decide(scores))
    if scope == "label":
        for column, source in enumerate(fitted.source):
            options = [total(scores >= cut)[column] for cut in cuts(scores[:, column])]
            assert source != "label" or spent[column] == pytest.approx(min(options))
    elif (targets * known).any():
        assert spent.sum() == pytest.approx(min(total(scores >= cut).sum() for cut in cuts(scores)))


@given(problem=problems(columns=3), scope=st.sampled_from(["group", "global"]))
@settings(max_examples=60, deadline=None)
def test_costs_of_each_label_under_one_threshold(problem: Problem, scope: str) -> None:
    scores, targets, mask = problem
    known, paid = known_of(targets, mask), (np.array([1.0, 5.0, 0.25]), np.array([2.0, 0.5, 4.0]))

    def total(decided: np.ndarray) -> float:
        wrong, missed = decided & known & (targets == 0), ~decided & known & (targets == 1)
        return float((wrong * paid[0] + missed * paid[1]).sum())

    costs = {"false_positive_cost": paid[0], "false_negative_cost": paid[1]}
    fitted = fit_thresholds(scores, targets, "cost", scope=scope, mask=mask, **costs)
    if (targets * known).any():
        assert total(fitted.decide(scores)) == pytest.approx(min(total(scores >= cut) for cut in cuts(scores)))


@pytest.mark.parametrize(
    "form", [*INDEPENDENT, {"objective": "micro_f1"}, {"objective": "f1", "shrink": 2.0}], ids=names
)
def test_labels_in_another_order_have_their_thresholds_in_that_order(form: dict[str, Any]) -> None:
    # More labels than stand in one block; half of them have too few positives for a threshold of their own.
    rng = np.random.default_rng(5)
    targets = rng.random((40, 150)) < np.where(np.arange(150) % 2, 0.2, 0.03)
    scores, mask = rng.integers(0, 50, (40, 150)) / 50 + 0.3 * targets, rng.random((40, 150)) < 0.8
    order = rng.permutation(150)
    fitted = fit_thresholds(scores, targets, mask=mask, min_positives=3, **form)
    turned = fit_thresholds(scores[:, order], targets[:, order], mask=mask[:, order], min_positives=3, **form)
    assert np.array_equal(fitted.values[order], turned.values)
    assert {fitted.source[column] for column in range(150)} == {"label", "group"}
    counts = (targets & mask).sum(axis=0)
    assert all((source == "label") == (count >= 3) for source, count in zip(fitted.source, counts, strict=True))


def rows_right(decided: np.ndarray, targets: np.ndarray, known: np.ndarray) -> int:
    return int(((decided == (targets > 0)) | ~known).all(axis=1).sum())


@pytest.mark.parametrize(("objective", "options"), TOGETHER[:2], ids=names)
@given(problem=problems(most_rows=6))
@settings(max_examples=40, deadline=None)
def test_no_cuts_together_are_better(objective: str, options: dict[str, Any], problem: Problem) -> None:
    scores, targets, mask = problem
    known = known_of(targets, mask)
    fitted = fit_thresholds(scores, targets, objective, mask=mask, **options)
    own = np.array([source == "label" for source in fitted.source])
    if not own.any():
        return

    def of(decided: np.ndarray) -> float:
        held = known & own
        return worth_of(objective, options, decided[held], targets[held])

    tried = [of(scores >= np.array(levels)) for levels in product(*(cuts(column) for column in scores.T))]
    assert of(fitted.decide(scores)) == pytest.approx(max(tried))


@given(problem=spaced())
@settings(max_examples=30, deadline=None)
def test_groups_together(problem: Problem) -> None:
    scores, targets, mask = problem
    known = known_of(targets, mask).copy()
    known[:, 2:4] = False
    fitted = fit_thresholds(scores, targets, "micro_f1", mask=mask, space=SPACE, scope="group")
    pools = [columns for columns in (ANY_OF[:2], ANY_OF[2:]) if (targets * known)[:, columns].any()]
    if not pools:
        assert set(fitted.source) == {"default", "exclusive"}
        return
    held = np.zeros(5, dtype=bool)
    held[np.concatenate(pools)] = True
    tried = []
    for levels in product(*(cuts(scores[:, columns]) for columns in pools)):
        values = np.full(5, np.inf)
        for columns, level in zip(pools, levels, strict=True):
            values[columns] = level
        tried.append(worth_of("f1", {}, (scores >= values)[known & held], targets[known & held]))
    found = fitted.decide(scores)[known & held]
    assert worth_of("f1", {}, found, targets[known & held]) == pytest.approx(max(tried))
    pooled = fit_thresholds(scores, targets, "micro_f1", mask=mask, space=SPACE, scope="global")
    assert np.array_equal(
        pooled.values, fit_thresholds(scores, targets, mask=mask, space=SPACE, scope="global").values, equal_nan=True
    )


@given(problem=spaced(), scope=st.sampled_from(["label", "group", "global"]))
@settings(max_examples=60, deadline=None)
def test_exact_match_is_at_least_a_local_optimum(problem: Problem, scope: str) -> None:
    scores, targets, mask = problem
    known = known_of(targets, mask)
    fitted = fit_thresholds(scores, targets, "exact_match", mask=mask, space=SPACE, scope=scope)
    found = rows_right(fitted.decide(scores), targets, known)
    assert found / len(scores) == pytest.approx(
        evaluate(scores, targets, fitted, mask=mask, space=SPACE)["exact_match"]
    )
    assert found >= rows_right(decide(scores, 0.5, SPACE), targets, known)
    if not (targets * known)[:, ANY_OF].any():
        assert fitted.values[ANY_OF].tolist() == [0.5] * 3
        return
    common = max(rows_right(decide(scores, cut, SPACE), targets, known) for cut in cuts(scores[:, ANY_OF]))
    assert found >= common
    if scope == "global":
        assert found == common
        return
    pools = [ANY_OF[:2], ANY_OF[2:]] if scope == "group" else [[c] for c in ANY_OF if fitted.source[c] == "label"]
    for columns in pools:
        for cut in cuts(scores[:, columns]):
            values = fitted.values.copy()
            values[columns] = cut
            assert rows_right(decide(scores, values, SPACE), targets, known) <= found


def test_where_no_row_can_be_right_none_is() -> None:
    assert best_overlap(np.array([0.5, 0.7]), np.array([0.5, 0.1])) == (np.inf, 0)
    assert best_overlap(np.array([0.2, 0.7]), np.array([0.6, 0.1])) == (0.4, 1)
    # Of both intervals with one row the higher; its threshold lies halfway down to the next end.
    assert best_overlap(np.array([0.0, 0.5]), np.array([0.25, 1.0])) == (0.75, 1)


def test_exact_match_by_hand() -> None:
    # Alone, F1 wants q at 0.2 and so a false one in row 1; rows are right with q above 0.4.
    scores = np.array([[0.9, 0.6], [0.8, 0.3], [0.1, 0.2], [0.7, 0.4]])
    targets = np.array([[1, 1], [1, 0], [0, 1], [1, 0]])
    fitted = fit_thresholds(scores, targets, "exact_match")
    np.testing.assert_allclose(fitted.values, [0.4, 0.5])
    assert evaluate(scores, targets, fitted)["exact_match"] == 0.75
    # The exclusive group is wrong in row 0, which then does not count.
    space = LabelSpace([Group("a", ["p"]), Group("kind", ["x", "y"], exclusive=True)])
    scores = np.array([[0.2, 0.1, 0.9], [0.6, 0.9, 0.1], [0.3, 0.9, 0.1]])
    targets = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0]])
    for scope in ("label", "group", "global"):
        assert fit_thresholds(scores, targets, "exact_match", scope=scope, space=space).values[0] > 0.3


@given(problem=problems(), shrink=st.sampled_from([0.5, 3.0]), case=st.sampled_from(["f1", "precision_floor", "cost"]))
@settings(max_examples=40, deadline=None)
def test_shrunk_labels_are_best_for_both_evidences(problem: Problem, shrink: float, case: str) -> None:
    scores, targets, mask = problem
    known = known_of(targets, mask)
    options = {"floor": 0.6} if case == "precision_floor" else {}
    fitted = fit_thresholds(scores, targets, case, mask=mask, shrink=shrink, **options)
    total = int((targets * known).sum())

    def filled(column: int, cut: float) -> float:
        decided = (scores >= cut) & known
        share = shrink / total
        right = (decided & (targets > 0)).sum(axis=0)
        return worth(
            case,
            options,
            right[column] + share * right.sum(),
            decided[:, column].sum() + share * decided.sum(),
            (targets * known)[:, column].sum() + shrink,
        )

    for column, source in enumerate(fitted.source):
        if source == "label":
            best = max(filled(column, cut) for cut in cuts(scores[known]))
            assert filled(column, fitted.values[column]) == pytest.approx(best)


@given(problem=problems(most_rows=5), shrink=st.sampled_from([0.5, 3.0]))
@settings(max_examples=25, deadline=None)
def test_shrunk_labels_are_best_together(problem: Problem, shrink: float) -> None:
    scores, targets, mask = problem
    known = known_of(targets, mask)
    held = targets * known
    own = held.any(axis=0)
    if not own.any():
        return
    number, share = scores.shape[1], shrink / held.sum()

    def counts(cut: float, column: int) -> np.ndarray:
        decided = (scores >= cut) & known
        right = (decided & (held > 0)).sum(axis=0)
        return np.array([right[column] + share * right.sum(), decided[:, column].sum() + share * decided.sum()])

    def of(levels: Any) -> float:
        right, decided = sum(counts(level, column) for column, level in enumerate(levels) if own[column])
        return 2 * right / (held.sum() + shrink * own.sum() + decided)

    fitted = fit_thresholds(scores, targets, "micro_f1", mask=mask, shrink=shrink)
    best = max(of(levels) for levels in product(cuts(scores[known]), repeat=number))
    assert of(fitted.values) == pytest.approx(best)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_any_of_labels_there_is_nothing_to_fit(objective: str) -> None:
    space = LabelSpace([Group("kind", ["x", "y"], exclusive=True)])
    options = {"floor": 0.5} if objective.endswith("floor") else {}
    for scope in ("group", "global") if objective in ("top_k", "mcut") else ("label", "group", "global"):
        fitted = fit_thresholds([[0.2, 0.8]], [[0, 1]], objective, scope=scope, space=space, **options)
        assert fitted.source == ("exclusive", "exclusive")
        assert fitted.decide([[0.2, 0.8]]).tolist() == [[False, True]]
        scores, held = [[0.2, 0.8], [0.9, 0.1]], [[0, 1], [0, 1]]
        result = cross_fit_thresholds(scores, held, objective, scope=scope, folds=2, space=space, **options)
        expected = 0.5 if objective == "exact_match" else np.nan
        assert list(result.held_out.values()) == pytest.approx([expected] * len(result.held_out), nan_ok=True)


@given(
    problem=spaced(),
    case=st.sampled_from([("f1", {}), ("recall_floor", {"floor": 0.8}), ("cost", {}), ("micro_f1", {})]),
)
@settings(max_examples=40, deadline=None)
def test_no_shrinkage_is_the_label_s_own_and_much_is_the_group_s(problem: Problem, case: tuple) -> None:
    scores, targets, mask = problem
    objective, options = case
    known = {"mask": mask, "space": SPACE, **options}
    own = fit_thresholds(scores, targets, objective, **known)
    none = fit_thresholds(scores, targets, objective, shrink=0.0, **known)
    assert np.array_equal(own.values, none.values, equal_nan=True)
    if objective == "micro_f1":
        return  # thresholds that are chosen together are not the group's
    much = fit_thresholds(scores, targets, objective, shrink=1e9, **known)
    group = fit_thresholds(scores, targets, objective, scope="group", **known)
    known = known_of(targets, mask)
    for columns in (ANY_OF[:2], ANY_OF[2:]):
        held = targets[:, columns][known[:, columns]]
        for column in columns:
            if much.source[column] == "label" and much.values[column] != group.values[column]:
                # Then another threshold is as good for the group, and the label tells them apart.
                best = worth_of(objective, options, group.decide(scores)[:, columns][known[:, columns]], held)
                other = (scores[:, columns] >= much.values[column])[known[:, columns]]
                assert worth_of(objective, options, other, held) == pytest.approx(best, abs=1e-6)


def same(one: Thresholds, other: Thresholds) -> bool:
    return (
        np.array_equal(one.values, other.values, equal_nan=True)
        and one.source == other.source
        and one.rule == other.rule
    )


def test_every_objective_is_here() -> None:
    assert {form["objective"] for form in EVERY} == set(OBJECTIVES)


@pytest.mark.parametrize("form", EVERY, ids=names)
@given(problem=spaced())
@settings(max_examples=6, deadline=None)
def test_what_must_not_matter_does_not(form: dict[str, Any], problem: Problem) -> None:
    scores, targets, mask = problem
    before = scores.copy(), targets.copy()
    fitted = fit_thresholds(scores, targets, mask=mask, space=SPACE, **form)
    # The form of the inputs.
    unknown = None if mask is None else sp.csr_array(~mask)
    tensors = fit_thresholds(torch.from_numpy(scores), sp.csr_array(targets), mask=unknown, space=SPACE, **form)
    assert same(fitted, tensors)
    assert np.array_equal(before[0], scores)
    assert np.array_equal(before[1], targets)
    # The order of the rows; what is unknown; and, where evidence is not counted, how often all of them are there.
    order = np.random.default_rng(0).permutation(len(scores))
    turned = None if mask is None else mask[order]
    assert same(fitted, fit_thresholds(scores[order], targets[order], mask=turned, space=SPACE, **form))
    if mask is not None and form["objective"] not in ("top_k", "mcut"):
        other = np.where(mask, scores, np.float32(0.123)).astype(scores.dtype), np.where(mask, targets, 0)
        other[0][:, 2:4] = scores[:, 2:4]
        assert same(fitted, fit_thresholds(*other, mask=mask, space=SPACE, **form))
    if "shrink" not in form:
        twice = None if mask is None else np.vstack([mask, mask])
        doubled = fit_thresholds(np.vstack([scores] * 2), np.vstack([targets] * 2), mask=twice, space=SPACE, **form)
        assert same(fitted, doubled)


@pytest.mark.parametrize("form", INDEPENDENT, ids=names)
@given(problem=problems())
@settings(max_examples=8, deadline=None)
def test_a_label_alone_is_the_label_among_others(form: dict[str, Any], problem: Problem) -> None:
    scores, targets, mask = problem
    fitted = fit_thresholds(scores, targets, mask=mask, **form)
    for column, source in enumerate(fitted.source):
        if source == "label":
            rows = known_of(targets, mask)[:, column]
            alone = fit_thresholds(scores[rows][:, [column]], targets[rows][:, [column]], **form)
            assert alone.values[0] == fitted.values[column]


@pytest.mark.parametrize("form", [form for form in EVERY if form["objective"] != "mcut"], ids=names)
@given(problem=spaced())
@settings(max_examples=6, deadline=None)
def test_an_increasing_transform_leaves_the_decisions(form: dict[str, Any], problem: Problem) -> None:
    scores, targets, mask = problem
    scores = scores.astype(np.float64)
    # 0.5 stays, since the search for exact matches may begin there.
    moved = 0.5 + np.sinh(2 * (scores - 0.5))
    fitted = fit_thresholds(scores, targets, mask=mask, space=SPACE, **form)
    again = fit_thresholds(moved, targets, mask=mask, space=SPACE, **form)
    assert fitted.source == again.source
    assert fitted.rule == again.rule
    fixed = np.array([source == "default" for source in fitted.source])
    known = known_of(targets, mask)
    assert np.array_equal((fitted.decide(scores) & known)[:, ~fixed], (again.decide(moved) & known)[:, ~fixed])


def test_out_of_reach_is_never_decided() -> None:
    scores, targets = np.array([[0.9], [0.8], [0.1]]), np.array([[0], [1], [0]])
    fitted = fit_thresholds(scores, targets, "precision_floor", floor=0.6)
    assert fitted.values.tolist() == [np.inf]
    assert not fitted.decide([[1e9]]).any()
    assert fit_thresholds(scores, targets, "precision_floor", floor=0.5).values == pytest.approx([0.45])
    assert fit_thresholds(scores, targets, "cost", false_positive_cost=2.0).values.tolist() == [np.inf]
    assert fit_thresholds(scores, targets, "recall_floor", floor=1e-9).values == pytest.approx([0.45])


def test_as_many_as_there_are_positives() -> None:
    rng = np.random.default_rng(0)
    for kind in (np.float32, np.float64):
        scores = rng.normal(size=(500, 3)).astype(kind)
        targets = rng.random((500, 3)) < [0.5, 0.1, 0.01]
        decided = fit_thresholds(scores, targets, "precision_equals_recall").decide(scores)
        assert decided.sum(axis=0).tolist() == targets.sum(axis=0).tolist()
        pooled = fit_thresholds(scores, targets, "precision_equals_recall", scope="global")
        assert pooled.decide(scores).sum() == targets.sum()
    # Scores that differ only in digits after one that is the highest there is.
    near = np.array([[0x3FE0FFFF00020000], [0x3FE0FFFF00010000], [0x3FE0FFFF00000000]]).view(np.float64)
    fitted = fit_thresholds(near, [[1], [1], [0]], "precision_equals_recall", scope="global")
    assert fitted.decide(near).tolist() == [[True], [True], [False]]
    # Of three equal scores two are wanted: three are nearer than none. Of one wanted, none is as near as two.
    tied = np.full((3, 1), -0.0)
    assert fit_thresholds(tied, [[1], [1], [0]], "precision_equals_recall").decide(tied).all()
    for scope in ("label", "global"):
        fitted = fit_thresholds(tied[:2], [[1], [0]], "precision_equals_recall", scope=scope)
        assert fitted.values.tolist() == [np.inf]


def test_rare_labels_share_a_threshold_in_the_search_for_exact_matches() -> None:
    rng = np.random.default_rng(1)
    targets = rng.random((80, 4)) < [0.5, 0.4, 0.02, 0.0]
    targets[0, 2] = True
    scores = rng.random((80, 4)) + targets
    fitted = fit_thresholds(scores, targets, "exact_match", min_positives=10)
    assert fitted.source == ("label", "label", "group", "group")
    assert fitted.values[2] == fitted.values[3]


def test_micro_spends_its_false_positives_where_they_bring_most() -> None:
    rng = np.random.default_rng(2)
    targets = rng.random((2000, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]
    scores = rng.normal(size=(2000, 6)) + targets * [2, 0.5, 2, 0.5, 2, 0.5]
    macro, micro = (fit_thresholds(scores, targets, name) for name in ("f1", "micro_f1"))
    assert evaluate(scores, targets, micro)["micro_f1"] > evaluate(scores, targets, macro)["micro_f1"]
    assert evaluate(scores, targets, micro)["macro_f1"] < evaluate(scores, targets, macro)["macro_f1"]


def test_optimism_is_what_in_sample_exceeds_held_out_by() -> None:
    rng = np.random.default_rng(3)
    targets = np.hstack([rng.random((90, 2)) < 0.3, np.eye(2)[rng.integers(0, 2, 90)] > 0, rng.random((90, 1)) < 0.3])
    scores = rng.random((90, 5))
    for form in EVERY:
        result = cross_fit_thresholds(scores, targets, space=SPACE, folds=3, **form)
        assert same(result.fitted, fit_thresholds(scores, targets, space=SPACE, **form))
        for fold, part in enumerate(result.parts):
            others = result.folds != fold
            assert same(part, fit_thresholds(scores[others], targets[others], space=SPACE, **form))
        for name, value in result.in_sample.items():
            assert result.optimism[name] == pytest.approx(value - result.held_out[name], nan_ok=True)
            assert f"{name} {value:.4f}, held out {result.held_out[name]:.4f}" in result.summary()
        first = next(iter(result.optimism))
        worse = -1 if form["objective"] == "cost" else 1
        if form["objective"] not in ("mcut", "precision_equals_recall", "precision_floor", "recall_floor"):
            assert worse * result.optimism[first] >= -0.05, form
    with pytest.raises(ValueError, match="those of the 90 samples"):
        result.decide(scores[:5])


def test_the_numbers_of_a_cross_fit_are_those_of_evaluate() -> None:
    rng = np.random.default_rng(4)
    targets = np.hstack([rng.random((60, 2)) < 0.3, np.eye(2)[rng.integers(0, 2, 60)] > 0, rng.random((60, 1)) < 0.4])
    scores, mask = rng.random((60, 5)), rng.random((60, 5)) < 0.9
    mask[:, 3] = mask[:, 2]

    def both(objective: str, **options: Any) -> tuple[Any, Any, Any]:
        result = cross_fit_thresholds(scores, targets, objective, space=SPACE, mask=mask, **options)
        parts = evaluate(scores, targets, result.parts, folds=result.folds, mask=mask, space=SPACE)
        assert np.array_equal(result.decide(scores).sum(axis=0)[2:4] > 0, [True, True])
        return result, evaluate(scores, targets, result.fitted, mask=mask, space=SPACE), parts

    result, seen, held = both("exact_match")
    assert (result.in_sample, result.held_out) == (
        {"exact_match": seen["exact_match"]},
        {"exact_match": held["exact_match"]},
    )
    result, seen, held = both("f1")
    for found, expected in ((result.in_sample, seen), (result.held_out, held)):
        assert found == {"macro_f1": pytest.approx(expected.per_label["f1"][ANY_OF].mean())}
    result, seen, held = both("precision_floor", floor=0.5)
    assert list(result.held_out) == ["macro_recall", "macro_precision"]
    assert result.held_out["macro_recall"] == pytest.approx(held.per_label["recall"][ANY_OF].mean())
    given = held.per_label["predicted"][ANY_OF] > 0
    assert result.held_out["macro_precision"] == pytest.approx(held.per_label["precision"][ANY_OF][given].mean())
    result, seen, held = both("recall_floor", floor=0.5, scope="global")
    counts = {name: held.per_label[name][ANY_OF].sum() for name in ("tp", "fp", "fn", "tn")}
    assert list(result.held_out) == ["micro_precision", "micro_recall"]
    assert result.held_out["micro_recall"] == pytest.approx(counts["tp"] / (counts["tp"] + counts["fn"]))
    assert result.held_out["micro_precision"] == pytest.approx(counts["tp"] / (counts["tp"] + counts["fp"]))
    result, seen, held = both("cost", false_positive_cost=[1, 2, 9, 9, 3], false_negative_cost=0.5)
    paid = (held.per_label["fp"][ANY_OF] * [1, 2, 3] + held.per_label["fn"][ANY_OF] * 0.5).sum()
    assert result.held_out == {"cost": pytest.approx(paid / mask[:, ANY_OF].sum())}
    result, seen, held = both("precision_equals_recall", scope="group")
    pools = [ANY_OF[:2], ANY_OF[2:]]
    ends = [sorted(held.per_label[n][c].sum() for n in ("predicted", "support")) for c in pools]
    assert result.held_out == {"macro_balance": pytest.approx(np.mean([low / high for low, high in ends]))}
    result, seen, held = both("micro_f_beta", beta=2.0)
    counts = {name: seen.per_label[name][ANY_OF].sum() for name in ("tp", "support", "predicted")}
    assert result.in_sample == {
        "micro_f_beta": pytest.approx(5 * counts["tp"] / (4 * counts["support"] + counts["predicted"]))
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "f2"}, "unknown objective 'f2'"),
        ({"objective": "precision_floor"}, "needs floor=, the least precision"),
        ({"objective": "recall_floor", "floor": 1.2}, "floor must be between 0 and 1; got 1.2"),
        ({"objective": "recall_floor", "floor": 0.0}, "floor must be a finite number above 0"),
        (
            {"objective": "f1", "floor": 0.5},
            "floor is for objective 'precision_floor' or 'recall_floor'; objective 'f1'",
        ),
        ({"objective": "f1", "k": 3}, "k is for objective 'top_k'"),
        ({"objective": "f1", "beta": 2.0}, "beta is for objective 'f_beta' or 'micro_f_beta'; objective 'f1' has none"),
        ({"objective": "f_beta", "beta": -1.0}, "beta must be a finite number above 0"),
        ({"objective": "exact_match", "shrink": 3.0}, "shrink is for objective one of f1, f_beta"),
        ({"objective": "f1", "shrink": -1.0}, "shrink must be between 0 and"),
        ({"objective": "f1", "shrink": 1.0, "scope": "group"}, "with scope 'group' there is none"),
        ({"objective": "cost", "false_positive_cost": -1.0}, "must be finite and not negative; got -1"),
        ({"objective": "cost", "false_negative_cost": [1.0, 2.0, 3.0]}, r"of shape \(2,\); got \(3,\)"),
        ({"objective": "top_k", "scope": "label"}, "choose scope 'global' or 'group'"),
        ({"objective": "mcut", "scope": "all"}, "unknown scope 'all'"),
        ({"objective": "f1", "min_positives": 0}, "min_positives must be a finite number above 0"),
    ],
)
def test_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(np.zeros((3, 2)), np.zeros((3, 2)), **arguments)


def test_an_objective_is_checked_before_there_are_scores() -> None:
    check_objective("cost", "group", {"false_positive_cost": [1.0, 2.0], "false_negative_cost": 3.0})
    check_objective("top_k", None, {"k": {"a": 1}})
    with pytest.raises(ValueError, match="unknown option of objective 'f_beta' 'bata'; did you mean 'beta'"):
        check_objective("f_beta", "label", {"bata": 1.0})
    with pytest.raises(ValueError, match="needs floor="):
        check_objective("recall_floor", None, {})
    with pytest.raises(ValueError, match="unknown scope 'labels'"):
        check_objective("f1", "labels", {})
    with pytest.raises(ValueError, match=r"of shape \(2,\); got \(3,\)|of shape \(3,\); got \(2,\)"):
        check_objective("cost", None, {"false_positive_cost": [1.0, 2.0], "false_negative_cost": [1.0, 2.0, 3.0]})
