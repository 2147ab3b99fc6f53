"""The page of a run: what its sections count and choose, and the files beside it."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.metrics import precision_recall_curve

from mlabel.data import ImageTable
from mlabel.labels import Group, LabelSpace, decide
from mlabel.metrics import bootstrap, cross_confusion, evaluate
from mlabel.models import create_model
from mlabel.recipes import Recipe, Run, RunEvaluation, write_evaluation
from mlabel.recipes.pages.confusions import _count, confusion
from mlabel.recipes.pages.galleries import Find, _best, _errors
from mlabel.recipes.pages.sections import SECTIONS
from mlabel.recipes.pages.shown import Shown, choose_labels
from mlabel.report import plot_confusions, plot_precision_recall, plot_reliability, plot_shares, precision_recall

SPACE = LabelSpace(
    [Group("tags", ["cat", "dog", "<b>sea"]), Group("kind", ["light", "dark"], exclusive=True), Group("one", ["x"])]
)
# Of six images: what holds, what is not known (True), and the scores.
TARGETS = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
KINDS = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 0]])
UNKNOWN = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
SCORES = np.array(
    [[0.9, 0.8, 0.1], [0.8, 0.7, 0.2], [0.7, 0.9, 0.1], [0.6, 0.4, 0.9], [0.2, 0.9, 0.1], [0.1, 0.2, 0.3]]
)
KIND_SCORES = np.array([[0.75, 0.25], [0.15, 0.85], [0.35, 0.65], [0.05, 0.95], [0.65, 0.35], [0.5, 0.5]])
ONE = np.array([[1], [1], [0], [0], [1], [0]])


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of an untrained model on six images, and what it is said to have scored."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    targets = np.concatenate([TARGETS, KINDS, ONE], axis=1)
    unknown = np.concatenate([UNKNOWN, np.zeros((6, 3), dtype=int)], axis=1)
    unknown[5, 3:5] = 1  # nothing is known of its kind
    table = ImageTable(
        paths=[str(folder / f"{number}.png") for number in range(6)],
        ids=[f"im{number}" for number in range(6)],
        targets=targets,
        unknown=sp.csr_array(unknown.astype(bool)),
        space=SPACE,
    )
    model = create_model("small_cnn", SPACE, image_size=16)
    run = Run(folder, Recipe("csv", str(folder)), {"train": table, "test": table}, model)
    scores = np.concatenate([SCORES, KIND_SCORES, 0.8 * ONE], axis=1).astype(np.float32)
    return run, said(run, scores)


def said(run, scores, rows=None, **changes):
    """Return the evaluation that `run.evaluate` would give for these scores."""
    table = run.parts["test"] if rows is None else run.parts["test"][rows]
    held = scores if rows is None else scores[rows]
    known = {"mask": table.unknown, "space": SPACE}
    prior = np.broadcast_to(table.targets.toarray().mean(axis=0), held.shape)
    columns = {"prior": evaluate(prior, table.targets, **known), "at 0.5": evaluate(held, table.targets, **known)}
    return RunEvaluation(
        part="test",
        columns=columns,
        notes=("low and high: of at 0.5, the 95% interval",),
        scores=scores,
        rows=np.arange(6) if rows is None else rows,
        counts=run.parts["train"].counts,
        label_groups=tuple(group.name for group in SPACE.groups for _ in group.labels),
        **changes,
    )


@pytest.fixture
def shown(made, tmp_path):
    run, result = made
    return Shown(run, result, tmp_path, (0, 1, 3), 4)


# What is counted


@settings(max_examples=40)
@given(st.data())
def test_cross_confusion_is_what_a_loop_counts(data):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 4)))
    decisions, targets, known = (data.draw(hnp.arrays(bool, shape)) for _ in range(3))
    wanted = np.zeros((shape[1], shape[1]), dtype=int)
    for a in range(shape[1]):
        for b in range(shape[1]):
            held = targets[:, a] & known[:, a] & decisions[:, b] & ~targets[:, b] & known[:, b]
            wanted[a, b] = held.sum()
    np.testing.assert_array_equal(cross_confusion(decisions, targets, known), wanted)
    np.testing.assert_array_equal(cross_confusion(decisions, sp.csr_array(targets), sp.csr_array(~known)), wanted)
    some = data.draw(st.lists(st.integers(0, shape[1] - 1), min_size=1, unique=True))
    few = cross_confusion(decisions, targets, known, labels=some)
    np.testing.assert_array_equal(few, wanted[np.ix_(some, some)])
    with pytest.raises(ValueError, match="must be of shape"):
        cross_confusion(decisions[:, 1:], targets)


@settings(max_examples=40)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([0.1, 0.4, 0.4000001, 0.9])), st.integers(0, 9)
)
def test_precision_recall_is_scikit_learns(scores, seed):
    targets = np.random.default_rng(seed).random(len(scores)) < 0.5
    targets[0] = True
    found = precision_recall(scores, targets)
    precision, recall, thresholds = precision_recall_curve(targets, scores)
    np.testing.assert_allclose(found.thresholds[::-1], thresholds)
    np.testing.assert_allclose(found.precision[::-1], precision[:-1])
    np.testing.assert_allclose(found.recall[::-1], recall[:-1])
    assert found.at(2.0) is None
    assert found.at(0.0) == (1.0, found.share)
    for level in (0.4, 0.5):
        decided = scores >= level
        point = found.at(level)
        assert (point is None) == (not decided.any())
        if point is not None:
            assert point == pytest.approx((targets[decided].sum() / targets.sum(), targets[decided].mean()))


def test_a_label_that_never_holds_has_no_recall():
    found = precision_recall([0.9, 0.1], [0, 0])
    assert np.isnan(found.recall).all()
    assert (found.precision.tolist(), found.share) == ([0.0, 0.0], 0.0)
    with pytest.raises(ValueError, match=r"scores and targets of one label \(N,\)"):
        precision_recall([0.5], [1, 0])


def test_decisions_are_those_of_the_last_column(made):
    run, result = made
    table = run.parts["test"]
    np.testing.assert_array_equal(result.decisions(SPACE).toarray(), decide(result.scores, 0.5, SPACE))
    counts = result.best.per_label
    held = Shown(run, result, run.folder, (), 0)
    np.testing.assert_array_equal(held.wrong.sum(axis=0), counts["fp"])
    np.testing.assert_array_equal(held.missed.sum(axis=0), counts["fn"])
    np.testing.assert_array_equal(held.present.sum(axis=0), counts["support"])
    folds, levels = np.arange(6) % 2, np.array([np.full(6, 0.5), np.full(6, 0.75)])
    crossed = dataclasses.replace(result, levels=levels, folds=folds)
    for fold in (0, 1):
        rows = np.flatnonzero(folds == fold)
        wanted = decide(result.scores[rows], levels[fold], SPACE)
        np.testing.assert_array_equal(crossed.decisions(SPACE).toarray()[rows], wanted)
    # Images that were skipped are in no figure.
    scores = result.scores.copy()
    scores[[1, 4]] = np.nan
    left = Shown(run, said(run, scores, rows=np.array([0, 2, 3, 5])), run.folder, (), 0)
    assert left.table.ids.tolist() == ["im0", "im2", "im3", "im5"]
    np.testing.assert_array_equal(left.decisions.toarray(), held.decisions.toarray()[[0, 2, 3, 5]])
    assert len(table) == 6


def test_pairs_are_counted_by_hand(shown):
    section = confusion(shown)
    rows = {(row["true"], row["decided"]): row for row in rows_of(shown.folder / "confusion.csv")}
    # Dog is decided in images 0 and 1, where cat holds and dog does not, of the two such images; of the three images
    # without dog (0, 1, 5) it is decided in two. Sea is decided in image 3, where it is unknown.
    assert set(rows) == {("cat", "dog"), ("dog", "cat"), ("light", "dark"), ("dark", "light")}
    able = [[0, 2, 3], [2, 0, 2], [0, 0, 0]]  # of the three dogs, one of which sea is unknown
    np.testing.assert_array_equal(_count(shown, SPACE.groups[0]).able, able)
    cat = rows["cat", "dog"]
    assert (cat["group"], cat["images"], cat["share"], cat["lift"]) == ("tags", "2", "1", "1.5")
    # Light is decided in one of three dark ones, and wherever else it does not hold: nothing is known of image 5.
    dark = rows["dark", "light"]
    assert (dark["images"], dark["share"], dark["lift"]) == ("1", "0.333333", "1")
    assert [row["images"] for row in section.tables["Labels taken for others"]] == [2, 1, 1, 1]
    assert section.tables["Labels taken for others"][0]["share"] == "100.0%"
    captions = list(section.pictures)
    assert captions[1] == "tags: what was wrongly decided where a label holds, as shares"
    assert captions[2:] == ["kind: what was decided of each class, as shares"]
    assert section.pictures[captions[1]].alt.endswith("the highest is 1.00 for cat and dog")


def test_groups_are_beside_always_saying_the_most_frequent_class(shown):
    (row,) = SECTIONS["groups"](shown).tables["Exclusive groups"]
    assert row == {
        "group": "kind",
        "classes": 2,
        "images": 5,
        "accuracy": 0.6,
        "mean_class_accuracy": pytest.approx((1 / 2 + 2 / 3) / 2),
        "accuracy_of_the_prior": 0.6,
    }


def test_reliability_of_a_group_is_that_of_the_class_decided(shown):
    section = SECTIONS["calibration"](shown)
    held = [row for row in rows_of(shown.folder / "reliability.csv") if row["scores"] == "kind" and row["count"] != "0"]
    # Of the five images whose kind is known: 0.65 right and wrong, 0.75 right, 0.85 wrong, 0.95 right.
    assert [(row["count"], row["share"]) for row in held] == [("2", "0.5"), ("1", "1"), ("1", "0"), ("1", "1")]
    titles = [row["scores"] for row in section.tables[""]]
    assert titles == ["all any-of labels", "kind", "cat", "dog"], "label 3 is of an exclusive group"


def test_labels_of_an_image_are_true_and_decided(shown):
    SECTIONS["data"](shown)
    rows = rows_of(shown.folder / "labels-per-image.csv")
    assert [(row["images"], row["decided"]) for row in rows] == [("1", "1"), ("1", "0"), ("4", "3"), ("0", "2")]
    assert [row["train"] for row in rows_of(shown.folder / "frequency.csv")] == ["3", "3", "0", "2", "3", "3"]
    pairs = {(row["one"], row["other"]): row["together"] for row in rows_of(shown.folder / "co-occurrence.csv")}
    assert (pairs["cat", "dog"], pairs["light", "dark"], len(pairs)) == ("1", "0", 15)


# What is chosen


def test_galleries_show_the_best_and_the_worst(shown):
    assert list(_errors(shown, "wrong"))[:2] == [Find(1, 4), Find(0, 1)], "0.85 of dark, then 0.8 of dog"
    assert list(_errors(shown, "missed")) == [Find(1, 3), Find(4, 4), Find(3, 1)], "0.15, 0.35, 0.4"
    assert next(_best(shown)).row == 2, "three labels and no error"


def test_of_an_image_one_and_of_a_label_few_are_shown(made, tmp_path):
    run, result = made
    scores = result.scores.copy()
    scores[:, 2] = 0.95  # sea is wrong in all images but one, of which it is unknown
    many = Shown(run, said(run, scores), tmp_path, (), 4)
    finds = list(_errors(many, "wrong"))
    assert len({find.row for find in finds}) == len(finds) <= 4
    assert [find.label for find in finds].count(2) == 2


def test_labels_are_chosen_by_name_else_by_frequency_and_precision(made):
    _, result = made
    assert choose_labels(result, SPACE, ["x", "cat"]) == (5, 0)
    assert set(choose_labels(result, SPACE)) == {0, 1, 3, 4, 5}, "all but one without positives"
    with pytest.raises(ValueError, match="unknown label 'cats'; did you mean 'cat'"):
        choose_labels(result, SPACE, ["cats"])
    many = LabelSpace([Group("tags", [f"t{k}" for k in range(20)])])
    targets = np.arange(40)[:, None] < np.arange(11, 31)
    scores = np.where(np.arange(20) == 5, 1 - targets, targets) * 0.5
    held = dataclasses.replace(result, columns={"at 0.5": evaluate(scores, targets, space=many)})
    assert choose_labels(held, many)[:5] == (19, 18, 17, 16, 5)


# The page


def test_the_page_has_every_section_and_the_files_beside_it(made):
    run, result = made
    table = run.parts["test"]
    known = {"mask": table.unknown, "space": SPACE, "resamples": 20}
    result = dataclasses.replace(result, intervals=bootstrap(result.scores, table.targets, **known))
    page = write_evaluation(run, result, sections=SECTIONS, labels=["cat", "light"], tiles=2)
    text = page.read_text(encoding="utf-8")
    for title in ("Groups", "Confusion", "Precision and recall", "Reliability", "Data", "Examples", "Pictures"):
        assert f">{title}</h2>" in text
    assert "Labels by frequency" not in text, "six labels are no deciles"
    assert "the small numbers under a metric: the 95% interval" in text
    assert "where the model looked" in text
    assert "<b>sea" not in text
    names = {path.name for path in page.parent.iterdir()}
    for name in ("best", "confusion-1", "confusion-2", "confusion-labels", "co-occurrence", "correlation", "frequency"):
        assert f"{name}.png" in names
    assert {"labels-per-image.png", "precision-recall.png", "reliability.png", "worst-false-positives.png"} <= names
    assert not any("deciles" in name for name in names)
    labels = {row["label"]: row for row in rows_of(page.parent / "labels.csv")}
    ends = result.intervals.per_label["f1"]
    assert list(labels) == list(SPACE.names)
    assert float(labels["dog"]["f1_low"]) == pytest.approx(ends.low[1], rel=1e-5)
    assert (labels["light"]["threshold"], labels["light"]["group"], labels["<b>sea"]["ap"]) == ("", "kind", "")
    metrics = {row["metric"]: row for row in rows_of(page.parent / "metrics.csv")}
    assert list(metrics["macro_f1"]) == ["metric", "prior", "at 0.5", "at 0.5 low", "at 0.5 high"]
    assert float(metrics["macro_f1"]["at 0.5 high"]) == pytest.approx(result.intervals["macro_f1"].high, rel=1e-5)
    curves = rows_of(page.parent / "precision-recall.csv")
    assert list(dict.fromkeys(row["label"] for row in curves)) == ["cat", "light"]
    assert json.loads((page.parent / "metrics-test.json").read_text())["scored"] == 6
    with pytest.raises(ValueError, match="unknown section 'galery'; did you mean 'galleries'"):
        write_evaluation(run, result, sections=["galery"])


def test_a_label_that_is_never_decided_has_a_threshold_all_the_same(made, tmp_path):
    run, result = made
    table = run.parts["test"]
    levels = np.array([0.5, np.inf, 0.5, np.nan, np.nan, 0.5])
    best = evaluate(result.scores, table.targets, levels, mask=table.unknown, space=SPACE)
    run = dataclasses.replace(run, folder=tmp_path)
    never = dataclasses.replace(result, columns={**result.columns, "calibrated": best}, levels=levels)
    page = write_evaluation(run, never, sections=["curves", "galleries"], tiles=1)
    assert '"∞"' in page.read_text(encoding="utf-8").replace("\\u221e", "∞")
    held = json.loads((page.parent / "metrics-test.json").read_text())
    assert held["columns"]["calibrated"]["per_label"]["threshold"] == [0.5, "inf", 0.5, None, None, 0.5]
    assert [row["threshold"] for row in rows_of(page.parent / "labels.csv")][1] == "inf"


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ValueError, match="there are no labels to draw"):
        plot_precision_recall({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="there are no labels to draw"):
        plot_confusions({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one reliability"):
        plot_reliability({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"shares must be of shape \(1, 1\); got \(2, 2\)"):
        plot_shares(np.zeros((2, 2)), tmp_path / "a.png", names=["a"], titles=("", ""))
    names = ["$a", "<b>"]
    blank = plot_shares(np.full((2, 2), np.nan), tmp_path / "a.png", names=names, titles=("", "")).read_bytes()
    assert blank != plot_shares(np.zeros((2, 2)), tmp_path / "b.png", names=names, titles=("", "")).read_bytes()
