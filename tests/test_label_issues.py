"""Probable missing and wrong labels: confident learning, beside cleanlab and by hand."""

from __future__ import annotations

import csv
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues as find_class_issues
from cleanlab.multilabel_classification.filter import find_label_issues, find_multilabel_issues_per_class
from cleanlab.multilabel_classification.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mlabel.labels import Group, LabelSpace
from mlabel.report import cross_fit_scores, label_issues, write_gallery
from mlabel.report._confident import _scaled

MIXED = LabelSpace([Group("tags", ["cat", "dog", "car"]), Group("size", ["small", "middle", "large"], exclusive=True)])


def noisy(seed: int, *, samples: int = 300, labels: int = 5, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, L) and targets of which a share was flipped."""
    rng = np.random.default_rng(seed)
    true = rng.random((samples, labels)) < rng.uniform(0.1, 0.6, labels)
    logits = np.where(true, 1.5, -1.5) + rng.normal(0, 1.2, true.shape)
    targets = (true ^ (rng.random(true.shape) < noise)).astype(np.uint8)
    targets[:2] = [[0], [1]]  # each label is given to somebody, and not to somebody, as cleanlab wants it
    return 1 / (1 + np.exp(-logits)), targets


def noisy_classes(seed: int, *, samples: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) and given classes (N,), of which a tenth is false."""
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=samples)
    logits = rng.normal(0, 1, (samples, classes)) + 2.5 * np.eye(classes)[true]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scores, np.where(rng.random(samples) < 0.1, rng.integers(classes, size=samples), true)


def flagged(issues, shape) -> np.ndarray:
    held = np.zeros(shape, dtype=bool)
    held[issues.rows, issues.columns] = True
    return held


def lists(targets: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in targets]


# Properties.


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["noise_rate", "confident"]))
def test_the_order_of_samples_and_labels_does_not_matter(seed, method):
    scores, targets = noisy(seed, samples=80)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(80), rng.permutation(5)
    plain = flagged(label_issues(scores, targets, method=method), targets.shape)
    moved = flagged(label_issues(scores[rows][:, columns], targets[rows][:, columns], method=method), targets.shape)
    assert np.array_equal(plain[rows][:, columns], moved)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_present_and_absent_are_each_others_mirror(seed):
    scores, targets = noisy(seed, samples=80)
    plain, mirrored = label_issues(scores, targets), label_issues(1 - scores, 1 - targets)
    assert np.array_equal(flagged(plain, targets.shape), flagged(mirrored, targets.shape))
    assert (plain.kinds == "missing").sum() == (mirrored.kinds == "wrong").sum()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["noise_rate", "confident"]))
def test_unknown_entries_are_as_if_they_were_not_there(seed, method):
    scores, targets = noisy(seed, labels=1)
    known = np.random.default_rng(seed).random(targets.shape) < 0.7
    masked = label_issues(scores, targets, mask=known, method=method)
    kept = known[:, 0]
    alone = label_issues(scores[kept], targets[kept], method=method)
    assert np.array_equal(masked.rows, np.flatnonzero(kept)[alone.rows])
    assert np.array_equal(masked.joints, alone.joints)


@pytest.mark.parametrize("method", ["noise_rate", "confident"])
def test_every_form_of_input_gives_the_same(method):
    scores, targets = noisy(1)
    known = np.random.default_rng(1).random(targets.shape) < 0.9
    dense = label_issues(scores, targets, mask=known, method=method)
    sparse = label_issues(
        torch.from_numpy(scores), sp.csr_array(targets), mask=sp.csr_array(~known), method=method, thresholds=[0.5] * 5
    )
    assert len(dense)
    for name in ("rows", "columns", "kinds", "scores", "better", "joints"):
        assert np.array_equal(getattr(dense, name), getattr(sparse, name)), name


def test_blocks_of_labels_do_not_show(monkeypatch):
    scores, targets = noisy(2, labels=7)
    whole = label_issues(scores, targets)
    monkeypatch.setattr("mlabel.report._confident._BLOCK_ENTRIES", 2 * len(scores))
    assert np.array_equal(whole.rows, label_issues(scores, targets).rows)
    assert np.array_equal(whole.joints, label_issues(scores, targets).joints)


def test_issues_are_real_contradictions_and_sorted():
    scores, targets = noisy(3)
    issues = label_issues(scores, targets)
    given_as = targets[issues.rows, issues.columns]
    assert np.array_equal(given_as == 0, issues.kinds == "missing")
    assert ((issues.scores > 0.5) == (issues.kinds == "missing")).all()
    assert np.allclose(issues.self_confidence, np.where(given_as == 1, issues.scores, 1 - issues.scores))
    assert (np.diff(issues.self_confidence) >= 0).all()


def test_ranked_by_what_stands_out():
    scores, targets = noisy(3)
    plain, ranked = label_issues(scores, targets), label_issues(scores, targets, rank="margin")
    usual = np.stack([1 - scores.mean(axis=0, where=targets == 0), scores.mean(axis=0, where=targets == 1)])
    own = usual[(ranked.kinds == "wrong").astype(int), ranked.columns]
    assert np.allclose(ranked.margins, ranked.self_confidence - own, atol=1e-6)
    assert (np.diff(ranked.margins) >= 0).all()
    assert sorted(zip(plain.rows, plain.columns, strict=True)) == sorted(zip(ranked.rows, ranked.columns, strict=True))
    assert plain.rows.tolist() != ranked.rows.tolist()


def test_thresholds_say_what_a_decision_is():
    scores, targets = noisy(4)
    levels = np.array([0.2, 0.5, 0.8, 0.5, 0.5])
    issues = label_issues(scores, targets, thresholds=levels)
    level = levels[issues.columns]
    assert np.array_equal(issues.scores > level, issues.kinds == "missing")
    assert {column: len(issues[issues.columns == column]) for column in (0, 2)} != {
        column: int((label_issues(scores, targets).columns == column).sum()) for column in (0, 2)
    }


# cleanlab.


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("method", "theirs"), [("noise_rate", "prune_by_noise_rate"), ("confident", "confident_learning")]
)
def test_the_entries_of_cleanlab(seed, method, theirs):
    scores, targets = noisy(seed, noise=0.02 + 0.05 * seed)
    mine = label_issues(scores, targets, method=method)
    held = find_multilabel_issues_per_class(lists(targets), scores, filter_by=theirs, n_jobs=1)
    assert len(mine) > 5
    assert np.array_equal(flagged(mine, targets.shape), held)
    samples = find_label_issues(lists(targets), scores, filter_by=theirs, n_jobs=1)
    assert np.array_equal(np.unique(mine.rows), np.flatnonzero(samples))


@pytest.mark.parametrize("seed", range(4))
def test_the_joints_of_cleanlab(seed):
    scores, targets = noisy(seed)
    mine = label_issues(scores, targets).joints
    theirs = compute_confident_joint(lists(targets), scores, multi_label=True)
    raw = compute_confident_joint(lists(targets), scores, multi_label=True, calibrate=False)
    exact = raw / raw.sum(axis=2, keepdims=True) * mine.sum(axis=2, keepdims=True)
    halves = np.isclose(exact % 1, 0.5)  # which may be rounded either way
    assert np.array_equal(mine[~halves], theirs[~halves])
    assert np.abs(mine - theirs).max() <= 1


def test_rare_and_frequent_labels_as_cleanlab_has_them():
    """Labels that few have, and scores that are never above a half."""
    rng = np.random.default_rng(0)
    scores, targets = noisy(0, samples=600, labels=8)
    keep = rng.random((600, 4)) < [0.005, 0.01, 0.02, 0.05]
    targets[2:, :4] &= keep[2:]
    scores[:, 4:6] *= 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a label that one sample has
        held = find_multilabel_issues_per_class(lists(targets), scores, n_jobs=1)
    assert np.array_equal(flagged(label_issues(scores, targets), targets.shape), held)


def test_the_worst_sample_of_cleanlab_has_the_worst_entry():
    """Its score of a sample weighs all labels; of one doubtful label the order is that of self-confidence."""
    scores, targets = noisy(5, labels=2)
    scores[:, 1] = targets[:, 1]
    theirs = get_label_quality_scores(lists(targets), scores)
    issues = label_issues(scores, targets)
    assert len(issues) > 5
    assert (np.diff(theirs[issues.rows]) >= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_classes_of_cleanlab(seed):
    """Of several confident classes cleanlab takes the most probable of all, the paper the most probable confident."""
    scores, classes = noisy_classes(seed)
    space = LabelSpace([Group("kind", list("abcd"), exclusive=True)])
    mine = label_issues(scores, np.eye(4, dtype=np.uint8)[classes], space=space)
    theirs = find_class_issues(classes, scores, confident_joint=mine.class_joints["kind"], n_jobs=1)
    assert len(mine) > 10
    assert np.array_equal(np.sort(mine.rows), np.flatnonzero(theirs))
    assert np.array_equal(mine.columns, classes[mine.rows])
    assert np.array_equal(mine.better, scores[mine.rows].argmax(axis=1))
    assert np.abs(mine.class_joints["kind"] - compute_confident_joint(classes, scores)).sum() <= 0.03 * len(classes)
    confident = label_issues(scores, np.eye(4, dtype=np.uint8)[classes], space=space, method="confident")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = find_class_issues(classes, scores, filter_by="confident_learning", n_jobs=1)
    both = set(confident.rows.tolist()) & set(np.flatnonzero(theirs).tolist())
    assert len(both) >= 0.95 * max(len(confident), theirs.sum())


# By hand.


def test_a_joint_by_hand():
    """Means 0.6 of those with the label, 0.8 of one minus the score of those without; 0.6 and 0.2 are the limits."""
    scores = np.array([[0.9], [0.8], [0.1], [0.0], [0.05], [0.55], [0.2], [0.2]])
    targets = np.array([[1], [1], [1], [0], [0], [0], [0], [0]])
    issues = label_issues(scores, targets)
    # Given: two confidently, one confidently not; not given: four confidently not (0.55 and above: 0.6 > 0.55).
    assert issues.joints.tolist() == [[[5, 0], [1, 2]]]
    assert issues.table() == [
        {
            "id": "2",
            "label": "0",
            "kind": "wrong",
            "better": "",
            "score": pytest.approx(0.1),
            "self_confidence": pytest.approx(0.1),
            "margin": pytest.approx(0.1 - 0.6),
        }
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5))
def test_a_joint_adds_up_to_what_was_given(seed, size):
    rng = np.random.default_rng(seed)
    counts, numbers = (
        rng.integers(0, 200, (6, size, size)) * (rng.random((6, size, size)) < 0.5),
        rng.integers(0, 9, (6, size)),
    )
    joint = _scaled(counts, numbers)
    assert np.array_equal(joint.sum(axis=2), numbers)
    assert (joint >= 0).all()
    assert (joint[:, np.arange(size), np.arange(size)] >= np.minimum(numbers, 1)).all()


def test_joints_by_hand():
    """The largest remainders are rounded up; one of each class that was given stays."""
    assert _scaled(np.array([[6, 3], [1, 8]]), np.array([12, 10])).tolist() == [[8, 4], [1, 9]]
    assert _scaled(np.array([[1, 100], [0, 3]]), np.array([3, 5])).tolist() == [[1, 2], [0, 5]]
    assert _scaled(np.array([[0, 50, 70], [0, 1, 0], [0, 0, 1]]), np.array([4, 1, 0])).tolist() == [
        [1, 1, 2],
        [0, 1, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("method", ["noise_rate", "confident"])
def test_a_given_class_among_the_most_probable_is_no_issue(method):
    space = LabelSpace([Group("size", ["small", "large"], exclusive=True)])
    scores = np.array([[0.9, 0.1]] * 4 + [[0.5, 0.5]] * 2 + [[0.1, 0.9]] * 3 + [[0.48, 0.52]])
    classes = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 1])
    issues = label_issues(scores, np.eye(2)[classes], space=space, method=method)
    assert issues.rows.tolist() == [3, 8]
    assert issues.better.tolist() == [0, 1]
    assert issues.columns.tolist() == [1, 0]


def mixed() -> tuple[np.ndarray, sp.csr_array, sp.csr_array]:
    """Return a small case with tags and a size: one size is false, one cat and one car are missing, a size unknown."""
    rng = np.random.default_rng(0)
    tags, sizes = (rng.random((60, 3)) < 0.4).astype(np.uint8), rng.integers(3, size=60)
    scores = np.concatenate([np.where(tags, 0.9, 0.1), 0.05 + 0.85 * np.eye(3)[sizes]], axis=1)
    targets = np.concatenate([tags, np.eye(3, dtype=np.uint8)[sizes]], axis=1)
    cat, car = np.flatnonzero(tags[:, 0])[0], np.flatnonzero(tags[:, 2])[0]
    targets[cat, 0] = targets[car, 2] = 0
    targets[7, 3:] = np.roll(targets[7, 3:], 1)
    targets[8, 3:] = 0
    unknown = sp.lil_array(targets.shape, dtype=bool)
    unknown[8, 3:] = True
    return scores, sp.csr_array(targets), sp.csr_array(unknown)


def test_planted_errors_of_tags_and_classes_are_named():
    scores, targets, unknown = mixed()
    issues = label_issues(scores, targets, mask=unknown, space=MIXED)
    rows = {(row["label"], row["kind"], row["better"]) for row in issues.table()}
    (size,) = [row for row in rows if row[0] in MIXED.groups[1].labels]
    assert rows == {("cat", "missing", ""), ("car", "missing", ""), size}
    assert size[1] == "wrong"
    assert size[2] in MIXED.groups[1].labels
    assert len(issues) == 3
    assert 8 not in issues.rows
    assert issues.class_joints["size"].sum() == 59
    shares = {row["label"]: (row["missing_share"], row["wrong_share"]) for row in issues.label_table()}
    assert set(shares) == {"cat", "car", size[0]}
    assert shares["cat"][0] > 0 == shares["cat"][1]
    assert shares[size[0]][1] > 0


def test_labels_of_one_value_and_no_samples_say_nothing():
    scores, targets = noisy(6)
    assert len(label_issues(scores, np.zeros_like(targets))) == 0
    assert len(label_issues(scores, np.ones_like(targets))) == 0
    assert len(label_issues(scores, targets, mask=np.zeros(targets.shape, dtype=bool))) == 0
    assert len(label_issues(scores[:0], targets[:0])) == 0


# Scores out of sample.


def separable(seed: int = 0, samples: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, 6) and targets (N, 6) of MIXED that follow from them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(samples, 6))
    sizes = np.eye(3, dtype=np.uint8)[features[:, 3:].argmax(axis=1)]
    return features, np.concatenate([(features[:, :3] > 0.3).astype(np.uint8), sizes], axis=1)


def test_cross_fitted_scores_are_those_of_scikit_learn():
    features, targets = separable()
    folds, l2 = np.arange(120) % 2, 0.05
    scores = cross_fit_scores(features, targets, space=MIXED, folds=folds, l2=l2)
    for fold in (0, 1):
        seen, held_out = folds != fold, folds == fold
        scale = StandardScaler().fit(features[seen])
        # The mean loss and l2 / 2 of the squares, as the sum of losses and 1 / (2 C) of them.
        fitted = {"C": 1 / (l2 * seen.sum()), "tol": 1e-8, "max_iter": 10_000}
        inside, outside = scale.transform(features[seen]), scale.transform(features[held_out])
        for column in range(3):
            model = LogisticRegression(**fitted).fit(inside, targets[seen, column])
            assert np.allclose(scores[held_out, column], model.predict_proba(outside)[:, 1], atol=2e-3)
        model = LogisticRegression(**fitted).fit(inside, targets[seen, 3:].argmax(axis=1))
        assert np.allclose(scores[held_out, 3:], model.predict_proba(outside), atol=2e-3)


def test_no_sample_helps_to_score_itself():
    """Another target of one sample changes the scores of the other folds only."""
    features, targets = separable()
    folds = np.arange(120) % 3
    other = targets.copy()
    other[5, 0] ^= 1
    before, after = (cross_fit_scores(features, each, folds=folds) for each in (targets, other))
    changed = (before != after).any(axis=1)
    assert np.array_equal(changed, folds != folds[5])


def test_what_is_unknown_is_not_fitted_to():
    features, targets = separable()
    known = np.random.default_rng(1).random(targets.shape) < 0.7
    known[:, 3:] = known[:, 3:4]
    garbled = np.where(known, targets, 1 - targets).astype(np.uint8)
    garbled[:, 3:] = np.where(known[:, 3:4], targets[:, 3:], 0)
    folds = np.arange(120) % 2
    said = [
        cross_fit_scores(features, each, mask=mask, space=MIXED, folds=folds)
        for each, mask in ((targets * known, known), (garbled, sp.csr_array(~known)))
    ]
    assert np.array_equal(*said)
    assert np.abs(said[0] - cross_fit_scores(features, targets, space=MIXED, folds=folds)).max() > 0.01


def test_folds_are_stratified_and_repeat(monkeypatch):
    features, targets = separable()
    plain = cross_fit_scores(features, targets, folds=4, seed=3)
    assert np.array_equal(plain, cross_fit_scores(torch.from_numpy(features), sp.csr_array(targets), folds=4, seed=3))
    monkeypatch.setattr("mlabel.report.cross_fit._BLOCK_LABELS", 2)
    assert np.allclose(plain, cross_fit_scores(features, targets, folds=4, seed=3), atol=5e-3)


def test_labels_of_all_or_none_keep_their_share():
    features, targets = separable()
    targets[:, 0], targets[:, 1] = 0, 1
    features[:, 5] = 7.0
    scores = cross_fit_scores(features, targets, folds=3)
    assert (scores[:, 0] < 0.02).all()
    assert (scores[:, 1] > 0.98).all()


def test_planted_errors_are_found_by_cross_fitted_scores():
    features, targets = separable(samples=600)
    rng = np.random.default_rng(0)
    planted = np.zeros(targets.shape, dtype=bool)
    planted[:, :3] = rng.random((600, 3)) < 0.03
    scores = cross_fit_scores(features, targets ^ planted, l2=1e-3)
    issues = label_issues(scores, targets ^ planted)
    found = planted[issues.rows, issues.columns]
    assert found.sum() > 0.8 * planted.sum()
    assert found.mean() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.ones((3, 2))}, "features are of 4 samples, and targets of 3"),
        ({"space": MIXED}, "the space has 6 labels"),
        ({"l2": 0.0}, "l2 must be"),
        ({"folds": 1}, "folds must be 2 to"),
        ({"folds": [0, 0, 0, 0]}, "two folds"),
        ({"features": np.full((4, 2), np.nan)}, "features must be finite"),
    ],
)
def test_what_a_cross_fit_refuses(change, message):
    plain = {"features": np.eye(4), "targets": np.eye(4)[:, :2]}
    with pytest.raises(ValueError, match=message):
        cross_fit_scores(**{**plain, **change})


# What is written.


def test_a_table_as_csv(tmp_path):
    scores, targets, unknown = mixed()
    issues = label_issues(scores, targets, mask=unknown, space=MIXED)
    ids = [f"{number:03d}.jpg" for number in range(60)]
    with open(issues.to_csv(tmp_path / "issues.csv", ids), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [ids[row] for row in issues.rows]
    assert [float(row["score"]) for row in rows] == pytest.approx(issues.scores.tolist(), abs=1e-6)
    assert list(rows[0]) == ["id", "label", "kind", "better", "score", "self_confidence", "margin"]


def test_a_table_for_a_spreadsheet(tmp_path):
    scores, targets = noisy(0, labels=1)
    issues = label_issues(scores, targets, space=LabelSpace([Group("tags", ["=cmd"])]))
    ids = [f"-{number}" for number in range(len(scores))]
    plain = issues.to_csv(tmp_path / "plain.csv", ids).read_text().splitlines()
    escaped = issues.to_csv(tmp_path / "escaped.csv", ids, for_spreadsheet=True).read_text().splitlines()
    assert plain[1].startswith(f"-{issues.rows[0]},=cmd,")
    assert escaped[1].startswith(f"'-{issues.rows[0]},'=cmd,")
    assert plain[1].split(",")[2:] == escaped[1].split(",")[2:]


def test_a_gallery_of_the_worst(tmp_path):
    scores, targets, unknown = mixed()
    issues = label_issues(scores, targets, mask=unknown, space=MIXED)
    images = np.zeros((60, 8, 8, 3), dtype=np.uint8)
    shown = issues.gallery(images, limit=1)
    assert [len(tiles) for tiles in shown.values()] == [1, 1]
    assert "rather" in next(iter(reversed(shown.values())))[0].lines[1]
    text = write_gallery(tmp_path, shown, title="issues").read_text(encoding="utf-8")
    assert "Probably missing" in text
    assert "Probably wrong" in text
    assert issues[issues.kinds == "wrong"].gallery(images).keys() != shown.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [[1.5]]}, "probabilities in \\[0, 1\\]"),
        ({"method": "noise"}, "did you mean 'noise_rate'"),
        ({"rank": "margins"}, "did you mean 'margin'"),
        ({"targets": [[1, 0]]}, "must be of shape"),
        ({"thresholds": [0.1, 0.2]}, "thresholds must be"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        label_issues(**{"scores": [[0.5]], "targets": [[1]], **change})


def test_two_classes_at_once_are_refused():
    space = LabelSpace([Group("size", ["small", "large"], exclusive=True)])
    with pytest.raises(ValueError, match="row 1 give 2"):
        label_issues([[0.5, 0.5]] * 2, [[1, 0], [1, 1]], space=space)
