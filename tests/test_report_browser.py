"""Pages in a real browser: nothing is asked for or complained of; the table of labels is sorted and searched."""

from __future__ import annotations

import numpy as np
import pytest

from mlabel.labels import Group, LabelSpace
from mlabel.metrics import Interval, evaluate
from mlabel.report import Section, Tile, write_report

HOSTILE = "<script>window.ran=1</script>"


def names_shown(page):
    return page.locator("#labels tbody th").all_inner_texts()


def shape(page):
    return page.evaluate("[document.documentElement.scrollWidth, innerWidth]")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A page of five labels, one of which says it is a script, with a value of each kind."""
    names = ["zebra", "apple", HOSTILE, "Banana", "pear 10"]
    targets = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [1, 0, 0, 0, 0]])
    levels = [0.5, 0.5, 0.5, 0.6, np.inf]  # inf: never decided
    result = evaluate(targets * 0.5 + 0.25, targets, levels, space=LabelSpace([Group("tags", names)]))
    interval = Interval(result.per_label["f1"], np.full(5, 0.25), np.array([1, 0.75, np.nan, 1, 0.5]))
    gallery = {"Best": [Tile(np.zeros((8, 8, 3), np.uint8), ["a.jpg", HOSTILE], np.zeros((8, 8, 3), np.uint8))]}
    return write_report(
        tmp_path_factory.mktemp("few"),
        title="Fruits",
        comparison={"prior": {"macro_f1": 0.5}, "at 0.5": result},
        intervals={"at 0.5": {"macro_f1": Interval(1.0, 0.9, 1.0)}},
        evaluation=result,
        label_intervals={"f1": interval},
        label_groups=["tags", "tags", "odd", "tags", "tags"],
        history=[{"epoch": 1, "train_loss": 0.7}],
        sections=[Section("Pictures", ["Look."], tables={"": [{"name": HOSTILE, "n": 1}]}, galleries=gallery)],
        notes=[HOSTILE],
        config={"lr": 0.1},
    )


def test_a_page_opens_without_errors_or_requests_and_runs_nothing_of_a_label(visit, few):
    opened = visit(few)
    page = opened.page
    assert (opened.errors, opened.requests) == ([], [])
    assert page.title() == "Fruits"
    assert names_shown(page) == ["zebra", "apple", HOSTILE, "Banana", "pear 10"]
    assert page.evaluate("window.ran") is None
    assert page.locator("#labels thead button").all_inner_texts()[:3] == ["label", "group", "support"]
    assert page.locator("#labels tbody tr").nth(2).locator("td").nth(2).inner_text() == "–", "no positives, no AP"
    first = page.locator("#metrics tbody tr").first.inner_text()
    assert first.split() == ["macro_f1", "0.5000", "0.7500", "0.900–1.000"]
    assert not page.locator("#pages").is_visible()


def test_labels_are_sorted_by_mouse_and_keyboard(visit, few):
    page = visit(few).page
    heads = page.locator("#labels thead button")
    titles = heads.all_inner_texts()

    def order(title, key=None):
        head = heads.nth(titles.index(title))
        if key is None:
            head.click()
        else:
            head.focus()
            page.keyboard.press(key)
        return names_shown(page), head.locator("..").get_attribute("aria-sort")

    assert order("label") == ([HOSTILE, "apple", "Banana", "pear 10", "zebra"], "ascending")
    assert order("label", "Enter") == (["zebra", "pear 10", "Banana", "apple", HOSTILE], "descending")
    assert order("support", "Space") == (["zebra", "pear 10", "apple", "Banana", HOSTILE], "descending")
    assert order("support") == ([HOSTILE, "apple", "Banana", "pear 10", "zebra"], "ascending")
    assert page.locator("#labels [aria-sort]").count() == 1
    assert order("threshold")[0] == ["pear 10", "Banana", "zebra", "apple", HOSTILE], "infinite, then in their order"
    # Without a value it is the last either way.
    assert [order("AP")[0][-1], order("AP")[0][-1], order("F1 interval")[0][-1]] == [HOSTILE] * 3


def test_labels_are_searched_and_a_name_shows_its_counts(visit, few):
    page = visit(few).page
    page.get_by_label("Search labels").focus()
    page.keyboard.type("NAN")
    assert names_shown(page) == ["Banana"]
    assert page.locator("#count").inner_text() == "1 of 5 labels"
    page.get_by_label("Search labels").fill("kiwi")
    assert (names_shown(page), page.locator("#count").inner_text()) == ([], "0 of 5 labels")
    page.get_by_label("Search labels").fill("")
    assert (len(names_shown(page)), page.locator("#count").inner_text()) == (5, "5 labels")
    name = page.get_by_role("button", name="pear 10")
    name.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail-name").inner_text() == "pear 10"
    assert [page.locator(f"#detail-{n}").inner_text() for n in ("TP", "FP", "FN", "TN")] == ["0", "0", "2", "1"]
    assert page.locator('[aria-pressed="true"]').all_inner_texts() == ["pear 10"]


def test_a_page_is_used_without_mouse_or_eyes_and_on_a_phone(visit, few):
    page = visit(few, width=390, height=844).page
    width, window = shape(page)
    assert width == window, "tables scroll in boxes of their own"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((each) => each.tagName)")
    assert (levels[0], levels.count("H1")) == ("H1", 1)
    # What can scroll can be scrolled by keyboard, and says what it is.
    boxes = page.locator("main section .scroll")
    assert boxes.count() == page.locator("main section .scroll[tabindex='0'][role='region']").count() > 3
    titles = "[...document.querySelectorAll('[aria-labelledby]')].map((each) => each.getAttribute('aria-labelledby'))"
    named = page.evaluate(f"{titles}.map((id) => document.getElementById(id)?.textContent)")
    assert named
    assert all(named)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(visit, few, scheme):
    page = visit(few, color_scheme=scheme).page
    colours = page.evaluate(
        """() => { const probe = document.body.appendChild(document.createElement("i"));
        return Object.fromEntries(["ink", "soft", "accent", "paper", "band"].map((name) => {
          probe.style.color = `var(--${name})`;
          return [name, getComputedStyle(probe).color.match(/\\d+/g).map(Number)]; })); }"""
    )

    def light(name):
        shares = np.array(colours[name]) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for text in ("ink", "soft", "accent"):
        for ground in ("paper", "band"):
            low, high = sorted([light(text), light(ground)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_thousands_of_labels_are_sorted_and_searched_a_page_at_a_time(visit, tmp_path):
    number = 8266
    rng = np.random.default_rng(0)
    targets = rng.random((40, number)) < 0.1
    scores = np.clip(0.5 * targets + rng.random(targets.shape) * 0.6, 0, 1)
    space = LabelSpace([Group("tags", [f"tag_{k:04d}" for k in range(number)])])
    result = evaluate(scores, targets, space=space)
    path = write_report(tmp_path, title="Many", comparison={"at 0.5": result}, evaluation=result)
    assert path.stat().st_size < 2**21
    opened = visit(path)
    page = opened.page
    assert (opened.errors, len(names_shown(page))) == ([], 100)
    assert page.locator("#place").inner_text() == "1–100"
    acts = [f"document.querySelectorAll('#labels thead button')[{k}].click()" for k in (0, 0, 2, 4)]
    for text in ("t", "tag_82", "65"):
        acts.append(f"search.value = '{text}'; search.dispatchEvent(new Event('input'))")
    for act in acts:  # what keeps it quick: rows are made for one page of labels, whatever is asked
        page.evaluate(act)
        assert 0 < len(names_shown(page)) <= 100, act
    held = [name for name in space.names if "65" in name]
    assert page.locator("#count").inner_text() == f"{len(held)} of 8,266 labels"
    page.get_by_role("button", name="Next").click()
    assert page.locator("#place").inner_text() == f"101–{min(200, len(held))}"
    page.get_by_role("button", name="Previous").click()
    assert page.locator("#place").inner_text() == "1–100"
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Search labels").fill("tag_1")
    assert page.locator("#place").inner_text() == "1–100", "another search begins at its first label"


def test_errors_and_requests_of_a_page_are_noticed(visit, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='gone.png'><script>console.error('oh'); throw Error('no')</script>")
    opened = visit(page)
    assert opened.requests == [(tmp_path / "gone.png").as_uri()]
    assert {"error: oh", "exception: no", f"failed: {(tmp_path / 'gone.png').as_uri()}"} <= set(opened.errors)
