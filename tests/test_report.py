"""The report: figures show what they were given, and the page holds all of it, as text, with nothing from outside."""

import base64
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from mlabel.labels import Group, LabelSpace
from mlabel.metrics import Interval, evaluate
from mlabel.report import Section, plot_examples, plot_frequencies, plot_history, write_report
from mlabel.report.plots import BLUE, ORANGE, PURPLE

EPOCHS = [
    {"epoch": 1, "step": 10, "lr": 0.01, "train_loss": 0.9, "val_loss": 0.8, "val_macro_f1": 0.5, "val_map": 0.6},
    {"epoch": 2, "step": 20, "lr": 0.0, "train_loss": 0.5, "val_loss": 0.6, "val_macro_f1": 0.7, "val_map": math.nan},
]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "a & b",
    "</td></table>",
    "$x_$",
    "猫",
]


class Page(HTMLParser):
    """The tables, texts, tags, links and columns of labels of a page, as a browser would find them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.links, self.tables, self.texts, self._cell = [], [], {}, [], None
        self.labels, self._in_labels = None, False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self._in_labels = values.get("id") == "label-data"
        self.links += [values[name] for name in ("src", "href", "action") if name in values]
        if tag == "table":
            self._rows = self.tables.setdefault(values.get("id", len(self.tables)), [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = self._rows[-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._in_labels:
            self.labels, self._in_labels = json.loads(data), False
        if self._cell is not None:
            self._cell[-1] += data


def example(names=("cat", "dog", "bird")):
    rng = np.random.default_rng(0)
    targets = rng.random((20, len(names))) < 0.5
    targets[:, -1] = False  # a label without positives has no recall
    scores = np.clip(0.6 * targets + 0.5 * rng.random(targets.shape), 0, 1)
    return evaluate(scores, targets, space=LabelSpace([Group("tags", names)]))


def has_colour(path, colour):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return bool((np.abs(pixels - 255 * np.array(to_rgb(colour))) <= 2).all(axis=1).any())


def width_of(path):
    with Image.open(path) as picture:
        return picture.width


def draw(path, *, names=("cat", "dog"), **changes):
    given_values = {
        "images": np.full((1, 1, 4, 4), 128, dtype=np.uint8),
        "scores": np.array([[0.9, 0.2]]),
        "targets": np.array([[1, 0]]),
        "decisions": np.array([[True, False]]),
        **changes,
    }
    return plot_examples(given_values.pop("images"), names=names, path=path, **given_values)


# The page


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1, max_size=30),
        min_size=1,
        unique=True,
    )
)
def test_label_names_come_out_as_they_went_in(tmp_path_factory, names):
    space = LabelSpace([Group("tags", dict.fromkeys(Group("n", [name]).labels[0] for name in names))])
    result = example(space.names)
    page = Page(write_report(tmp_path_factory.mktemp("r"), title="t", comparison={"a": result}, evaluation=result))
    assert tuple(page.labels["names"]) == space.names


def test_texts_are_never_read_as_html(tmp_path):
    result = example(HOSTILE)
    everywhere = HOSTILE[0] + HOSTILE[1]
    write_report(
        tmp_path / "plain", title="t", comparison={"a": result}, evaluation=result, notes=["n"], config={"a": 1}
    )
    write_report(
        tmp_path / "hostile",
        title=everywhere,
        comparison={everywhere: {everywhere: 0.5, **result}},
        evaluation=result,
        notes=[everywhere],
        config={everywhere: {everywhere: everywhere}},
        next_command=everywhere,
    )
    plain, hostile = (Page(tmp_path / name / "index.html") for name in ("plain", "hostile"))
    assert "".join(hostile.texts).count(everywhere) == 9  # title twice, column, metric, note, setting (three), command
    assert hostile.tags.count("script") == plain.tags.count("script") == 2  # the labels, and what shows them
    assert set(hostile.tags) - set(plain.tags) == {"pre", "code"}
    assert hostile.labels["names"] == HOSTILE


def test_tables_of_rows_are_shown_under_their_captions(tmp_path):
    rows = [{"tier": "head", "num_labels": 3, "f1": 0.75}, {"tier": HOSTILE[0], "num_labels": 0, "f1": None}]
    section = Section("A <b>section", ["Read it so."], tables={"Labels <b>by frequency": rows, "None": []})
    page = Page(write_report(tmp_path, title="t", comparison={"a": {"b": 1.0}}, sections=[section]))
    assert page.tables["table-1-1"] == [["tier", "num labels", "f1"], ["head", "3", "0.7500"], [HOSTILE[0], "0", "–"]]
    assert {"A <b>section", "Read it so.", "Labels <b>by frequency"} <= set(page.texts)
    assert "table-1-2" not in page.tables


def test_the_tables_hold_the_figures(tmp_path):
    result, prior = example(), {"macro_f1": 0.125, "num_labels_averaged": 3}
    page = Page(write_report(tmp_path, title="t", comparison={"prior": prior, "at 0.5": result}, evaluation=result))
    metrics = {row[0]: row[1:] for row in page.tables["metrics"]}
    assert metrics["metric"] == ["prior", "at 0.5"]
    assert metrics["macro_f1"] == ["0.1250", f"{result['macro_f1']:.4f}"]
    assert metrics["num_labels_averaged"] == ["3", "2"]
    assert metrics["map"] == ["–", f"{result['map']:.4f}"]
    assert set(metrics) - {"metric"} == set(result)
    columns = {column["title"]: column["values"] for column in page.labels["columns"]}
    titles = ["support", "AP", "precision", "recall", "F1", "threshold", "AUROC", "decided", "TP", "FP", "FN", "TN"]
    assert list(columns) == titles
    for title, name in (("support", "support"), ("precision", "precision"), ("AP", "ap"), ("TN", "tn")):
        held = [math.nan if value is None else value for value in columns[title]]
        np.testing.assert_allclose(held, result.per_label[name], atol=1e-6)
    assert columns["recall"][2] is None, "a label without positives has no recall"


def test_intervals_stand_under_their_numbers_and_in_the_table_of_labels(tmp_path):
    result = example()
    ends = {"calibrated": {"macro_f1": Interval(0.5, 0.25, 0.75), "num_labels_averaged": Interval(2, 1, 2)}}
    of_labels = {"f1": Interval(np.zeros(3), np.array([0.1, 0.2, math.nan]), np.array([0.3, 0.4, math.nan]))}
    page = Page(
        write_report(
            tmp_path,
            title="t",
            comparison={"prior": result, "calibrated": result},
            intervals=ends,
            evaluation=result,
            label_intervals=of_labels,
            label_groups=["a", "a", "b"],
        )
    )
    metrics = {row[0]: row[1:] for row in page.tables["metrics"]}
    number = f"{result['macro_f1']:.4f}"
    assert metrics["macro_f1"] == [number, f"{number}0.250–0.750"]
    assert metrics["num_labels_averaged"] == ["2", "2"]
    columns = {column["title"]: column for column in page.labels["columns"]}
    assert columns["F1 interval"]["values"] == [[0.1, 0.3], [0.2, 0.4], None]
    assert columns["group"]["values"] == ["a", "a", "b"]
    assert "AP interval" not in columns


def test_the_page_needs_nothing_from_outside(tmp_path):
    picture = draw(tmp_path / "examples.png")
    sections = [Section("Cats", pictures={"": picture})]
    path = write_report(tmp_path, title="t", comparison={"a": {"b": 1.0}}, history=EPOCHS, sections=sections)
    page = Page(path)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "http" not in "".join(page.texts)
    images = [base64.b64decode(link.split(",", 1)[1]) for link in page.links if link.startswith("data:image")]
    assert images == [(tmp_path / "history.png").read_bytes(), picture.read_bytes()]
    assert "Content-Security-Policy" in path.read_text()


def test_what_was_not_given_is_left_out(tmp_path):
    page = Page(write_report(tmp_path, title="t", comparison={"a": {"b": 1.0}}))
    assert "img" not in page.tags
    assert "script" not in page.tags
    assert "pre" not in page.tags
    assert not (tmp_path / "history.png").exists()
    assert "torch" in [row[0] for row in page.tables[1]]


def test_settings_are_shown_flat(tmp_path):
    config = {"train": {"lr": 0.1, "steps": []}, "head": None, "empty": {}}
    page = Page(write_report(tmp_path, title="t", comparison={"a": {"b": 1.0}}, config=config))
    assert page.tables[1] == [["train.lr", "0.1"], ["train.steps", "[]"], ["head", "None"], ["empty", "{}"]]


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = write_report(tmp_path, title="old", comparison={"a": {"b": 1.0}})
    before = path.read_bytes()

    def write_pictures(picture):
        sections = [Section("x", pictures={"": picture})]
        write_report(tmp_path, title="new", comparison={"a": {"b": 1.0}}, sections=sections)

    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        write_pictures(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(ValueError, match=r"text\.png is neither a PNG nor a JPEG file"):
        write_pictures(tmp_path / "text.png")
    with pytest.raises(ValueError, match="comparison is empty"):
        write_report(tmp_path, title="new", comparison={})
    assert path.read_bytes() == before


# The figures


def test_history_draws_what_there_is(tmp_path):
    both = plot_history(EPOCHS, tmp_path / "both.png")
    losses = plot_history([{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.4}], tmp_path / "losses.png")
    assert has_colour(both, BLUE)
    assert has_colour(both, ORANGE)
    assert has_colour(losses, BLUE)
    assert not has_colour(losses, ORANGE)
    assert width_of(both) == 2 * width_of(losses)


@pytest.mark.parametrize(
    "history",
    [
        EPOCHS[:1],
        [{"step": 5, "train_loss": None, "val_loss": 0.5}, {"step": 9, "train_loss": 0.1}],
        [{"epoch": 1, "step": 5, "train_loss": 1.0}, {"epoch": 1, "step": 9, "train_loss": math.nan}],
        [{"train_loss": 3}],
    ],
    ids=["one epoch", "gaps", "twice in an epoch", "no position"],
)
def test_history_with_one_point_or_gaps_is_still_seen(tmp_path, history):
    assert has_colour(plot_history(history, tmp_path / "h.png"), BLUE)


def test_a_history_without_numbers_is_an_empty_figure_and_no_history_an_error(tmp_path):
    assert not has_colour(plot_history([{"epoch": 1, "train_loss": math.nan}], tmp_path / "h.png"), BLUE)
    with pytest.raises(ValueError, match="history is empty"):
        plot_history([], tmp_path / "h.png")


@pytest.mark.parametrize(
    ("target", "decision", "colours"),
    [(1, True, {BLUE}), (0, True, {ORANGE}), (1, False, {PURPLE}), (0, False, set())],
    ids=["right", "wrong", "missed", "rightly absent"],
)
def test_each_outcome_has_its_colour(tmp_path, target, decision, colours):
    path = draw(tmp_path / "e.png", names=["cat"], scores=[[0.5]], targets=[[target]], decisions=[[decision]])
    assert {colour for colour in (BLUE, ORANGE, PURPLE) if has_colour(path, colour)} == colours


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("decision", [True, False])
def test_unknown_truth_is_neither_right_nor_wrong_nor_missed(tmp_path, target, decision):
    options = {"names": ["cat"], "scores": [[0.5]], "targets": [[target]], "decisions": [[decision]]}
    dense = draw(tmp_path / "a.png", mask=np.array([[False]]), **options)
    sparse = draw(tmp_path / "b.png", mask=sp.csr_array(np.array([[True]])), **options)
    assert not any(has_colour(dense, colour) for colour in (BLUE, ORANGE, PURPLE))
    assert sparse.read_bytes() == dense.read_bytes()


def test_arrays_of_any_kind_give_the_same_figure(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4)
    plain = draw(tmp_path / "a.png", images=image).read_bytes()
    other = draw(
        tmp_path / "b.png",
        images=torch.from_numpy(image),
        scores=torch.tensor([[0.9, 0.2]]),
        targets=sp.csr_array(np.array([[1, 0]])),
        decisions=torch.tensor([[True, False]]),
    )
    assert other.read_bytes() == plain
    assert draw(tmp_path / "c.png", images=[image[0] / 255]).read_bytes() == plain


def test_names_of_any_kind_and_number_can_be_drawn(tmp_path):
    names = [*HOSTILE, "🦋 " * 50, *(f"label {k}" for k in range(20))]
    ones = np.ones((2, len(names)))
    images = [np.zeros((1, 3, 9), dtype=np.float32), np.zeros((3, 20, 5), dtype=np.uint8)]
    path = draw(tmp_path / "e.png", names=names, images=images, scores=ones, targets=ones, decisions=ones > 0)
    few = draw(
        tmp_path / "f.png",
        names=names[:9],
        images=images,
        scores=ones[:, :9],
        targets=ones[:, :9],
        decisions=ones[:, :9] > 0,
    )
    with Image.open(path) as first, Image.open(few) as second:
        assert first.size == second.size  # more than eight lines are cut to eight


def test_frequencies(tmp_path):
    path = plot_frequencies(np.array([3, 100, 0]), tmp_path / "f.png", names=["a", "$b", "c"])
    assert has_colour(path, BLUE)
    assert not has_colour(plot_frequencies([0, 0], tmp_path / "g.png"), BLUE)
    assert has_colour(plot_frequencies(np.arange(5000), tmp_path / "h.png", names=list("ab") * 2500), BLUE)


def test_messages(tmp_path):
    with pytest.raises(ValueError, match="no images to draw"):
        draw(tmp_path / "e.png", images=[])
    with pytest.raises(ValueError, match=r"scores must be of shape \(1, 2\), one row an image.*got \(1, 3\)"):
        draw(tmp_path / "e.png", scores=[[1, 2, 3]])
    with pytest.raises(ValueError, match=r"an image must be of shape \(C, H, W\) with 1 or 3 channels; got \(4, 4\)"):
        draw(tmp_path / "e.png", images=[np.zeros((4, 4))])
    with pytest.raises(ValueError, match=r"counts must be of shape \(L,\) and not below 0"):
        plot_frequencies([-1], tmp_path / "f.png")
    with pytest.raises(ValueError, match=r"names must be one a label \(2\); got 1"):
        plot_frequencies([1, 2], tmp_path / "f.png", names=["a"])


def test_no_global_state_of_matplotlib_is_touched():
    code = "import sys, mlabel.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
