"""Pages in a real browser: nothing is asked for or complained of; the table of labels is sorted and searched."""

from __future__ import annotations

import numpy as np

from mlabel.labels import Group, LabelSpace
from mlabel.metrics import evaluate
from mlabel.report import write_report


def test_a_page_opens_without_errors_or_requests(visit, tmp_path):
    result = evaluate([[0.9, 0.2], [0.6, 0.7]], [[1, 0], [0, 1]], space=LabelSpace([Group("tags", ["cat", "dog"])]))
    history = [{"epoch": 1, "train_loss": 0.7}]
    opened = visit(
        write_report(tmp_path, title="Cats", comparison={"at 0.5": result}, evaluation=result, history=history)
    )
    assert opened.page.title() == "Cats"
    assert (opened.errors, opened.requests) == ([], [])
    assert np.shape(opened.page.locator("#labels tbody tr").all_inner_texts()) == (2,)


def test_errors_and_requests_of_a_page_are_noticed(visit, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='gone.png'><script>console.error('oh'); throw Error('no')</script>")
    opened = visit(page)
    assert opened.requests == [(tmp_path / "gone.png").as_uri()]
    assert {"error: oh", "exception: no", f"failed: {(tmp_path / 'gone.png').as_uri()}"} <= set(opened.errors)
