"""What every metric of the table in `metrics_cases` must do: one test a property, all metrics in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import CURVES, PROBABILISTIC, RATIOS, TABLE, Metric, Problem, brief, problems

from mlabel.metrics import _blocks


def same(first: object, second: object, name: str = "") -> None:
    np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-12, err_msg=name)


def those(takes: str | None = None, gives: str | None = None) -> Iterator[tuple[str, Metric]]:
    """The metrics of the table that take and give this; None: whatever, but means of other metrics, tested as such."""
    for name, metric in TABLE.items():
        if takes in (None, metric.takes) and (metric.gives == gives or (gives is None and metric.gives != "macro")):
            yield name, metric


@given(problem=problems(), seed=st.integers(0, 99))
@brief
def test_order_of_samples_and_labels_does_not_matter(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(problem.targets.shape[0]), rng.permutation(problem.targets.shape[1])
    mixed = Problem(*(array[rows][:, columns] for array in problem.scored))
    for name, metric in those():
        before = metric.of(problem)
        same(metric.of(mixed), before[columns] if metric.gives == "labels" else before, name)


@given(problem=problems())
@brief
def test_every_sample_twice_changes_nothing(problem: Problem) -> None:
    twice = Problem(*(np.repeat(array, 2, axis=0) for array in problem.scored))
    for name, metric in those():
        same(metric.of(twice), metric.of(problem), name)


@given(problem=problems())
@brief
def test_only_the_order_of_scores_matters(problem: Problem) -> None:
    for name, metric in those("scores"):
        for moved in (np.exp(problem.scores), 1000 * problem.scores - 7, problem.scores.astype(np.float64) ** 3):
            same(metric(moved, problem.targets, problem.known), metric.of(problem), name)


@given(problem=problems())
@brief
def test_every_form_of_input_gives_the_same(problem: Problem) -> None:
    for name, metric in those():
        expected = metric.of(problem)
        values, targets, known = metric.arguments(problem)
        forms = [
            (torch.tensor(values), torch.tensor(targets).bool(), torch.tensor(known)),
            (np.asfortranarray(values), sp.csc_array(targets), sp.coo_array(~known)),
            (values.tolist(), targets.astype(np.float32), known),
        ]
        if metric.takes == "decisions":
            forms.append((sp.csr_array(values), targets, known))
        elif not name.startswith("log_loss"):  # whose limits are those of the type
            forms.append((torch.tensor(values).bfloat16(), targets, known))  # eighths are exact in it
        if name.startswith("log_loss"):
            forms[2] = (values, *forms[2][1:])
        for form in forms:
            same(metric(*form), expected, name)


@given(problem=problems())
@brief
def test_inputs_stay_as_they_are_whatever_their_form(problem: Problem) -> None:
    # Rows in descending order of columns, and with zeros that are stored.
    rows, columns = (array[:, ::-1].reshape(-1) for array in np.indices(problem.targets.shape))
    starts = np.arange(len(problem.targets) + 1) * problem.targets.shape[1]
    forms = [(problem.targets[rows, columns], columns, starts), (~problem.known[rows, columns], columns, starts)]
    for name, metric in those():
        values = torch.tensor(metric.arguments(problem)[0])
        targets, unknown = (sp.csr_array((d.copy(), i.copy(), p.copy()), problem.targets.shape) for d, i, p in forms)
        before = values.clone()
        same(metric(values, targets, unknown), metric.of(problem), name)
        assert torch.equal(values, before), name
        for matrix, form in zip((targets, unknown), forms, strict=True):
            for held, taken in zip((matrix.data, matrix.indices, matrix.indptr), form, strict=True):
                np.testing.assert_array_equal(held, taken, err_msg=name)


@given(problem=problems())
@brief
def test_what_is_unknown_has_no_say(problem: Problem) -> None:
    for name, metric in those():
        values, targets, known = metric.arguments(problem)
        other = values ^ ~known if metric.takes == "decisions" else np.where(known, values, values.dtype.type(0.9))
        same(metric(other, targets.astype(bool) ^ ~known, known), metric.of(problem), name)


@given(problem=problems())
@brief
def test_a_label_is_as_if_its_unknown_samples_were_deleted(problem: Problem) -> None:
    for name, metric in those(gives="labels"):
        values, targets, known = metric.arguments(problem)
        found = metric.of(problem)
        assert found.shape == targets.shape[1:], name
        for label in range(targets.shape[1]):
            rows, column = known[:, label], slice(label, label + 1)
            same(found[label], metric(values[rows, column], targets[rows, column])[0], name)


@given(problem=problems())
@brief
def test_a_sample_is_as_if_its_unknown_labels_were_deleted(problem: Problem) -> None:
    places = [(slice(i, i + 1), held) for i, held in enumerate(problem.known) if held.any()]
    for name, metric in those(gives="samples"):
        values, targets, _ = metric.arguments(problem)
        each = [metric(values[place], targets[place]) for place in places]
        same(metric.of(problem), np.mean(each) if each else np.nan, name)


@given(problem=problems())
@brief
def test_pooled_is_one_label_of_all_known_entries(problem: Problem) -> None:
    for name, metric in those(gives="pool"):
        values, targets, known = metric.arguments(problem)
        same(metric.of(problem), metric(values[known][:, None], targets[known][:, None]), name)


@given(problem=problems())
@brief
def test_averages_are_those_of_the_labels_that_have_a_value(problem: Problem) -> None:
    support = (problem.targets.astype(bool) & problem.known).sum(axis=0)
    for name, metric in those(gives="labels"):
        values = metric.of(problem)
        held = ~np.isnan(values)
        stem = name.removesuffix("-None")
        same(TABLE[f"{stem}-macro"].of(problem), values[held].mean() if held.any() else np.nan, name)
        if support[held].any():
            mean = np.average(values[held], weights=support[held])
            same(TABLE[f"{stem}-weighted"].of(problem), mean, name)


@given(problem=problems())
@brief
def test_the_average_is_macro_unless_another_is_asked_for(problem: Problem) -> None:
    for name, function in RATIOS.items():
        average = "None" if name == "accuracy" else "macro"
        same(function(*problem.decided), TABLE[f"{name}-{average}"].of(problem), name)
    for name, function in {**CURVES, **PROBABILISTIC}.items():
        same(function(*problem.scored), TABLE[f"{name}-macro"].of(problem), name)


@given(problem=problems(all_known=True))
@brief
def test_one_label_is_the_binary_case(problem: Problem) -> None:
    one = Problem(*(array[:, :1] for array in problem.scored))
    for name, metric in those(gives="labels"):
        alone = metric.of(one)[0]
        same(alone, metric.of(problem)[0], name)
        for average in ("macro", "weighted"):
            same(TABLE[name.removesuffix("None") + average].of(one), alone, name)
        if not np.isnan(alone):  # pooled, a label without positives may have a value
            same(TABLE[name.removesuffix("None") + "micro"].of(one), alone, name)


@given(problem=problems())
@brief
def test_small_blocks_and_threads_give_the_same(problem: Problem) -> None:
    expected = {name: metric.of(problem) for name, metric in those() if metric.takes != "decisions"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "SCRATCH_BYTES", 100)
        patch.setattr(_blocks.torch, "get_num_threads", lambda: 3)
        for name, found in expected.items():
            same(TABLE[name].of(problem), found, name)


@given(problem=problems())
@brief
def test_a_value_is_nan_only_where_nothing_can_be_said(problem: Problem) -> None:
    targets, known = problem.targets.astype(bool), problem.known
    positive, negative = (targets & known).any(axis=0), (~targets & known).any(axis=0)
    needs_both = {"auroc", "log_auc", "log_auc_wide", "balanced_accuracy", "g_mean", "mcc", "kappa"}
    for name, metric in those(gives="labels"):
        stem = name.removesuffix("-None")
        if stem in needs_both:
            defined = positive & negative
        elif stem in {"specificity", "npv"}:
            defined = negative
        else:
            defined = known.any(axis=0) if metric.takes == "probabilities" or stem == "accuracy" else positive
        np.testing.assert_array_equal(~np.isnan(metric.of(problem)), defined, err_msg=name)


COMPLEMENTS = {"precision": "npv", "recall": "specificity", "npv": "precision", "specificity": "recall"}
COMPLEMENTS |= {name: name for name in ("balanced_accuracy", "g_mean", "mcc", "kappa", "accuracy", "brier", "log_loss")}


@given(problem=problems())
@brief
def test_the_complement_changes_the_sides(problem: Problem) -> None:
    # In float64 and within (0, 1), where 1 - score is exact and far from the limits of the log loss.
    scores = problem.scores.astype(np.float64) * 0.5 + 0.25
    for stem, other in COMPLEMENTS.items():
        for average in ("None", "micro", "macro") + (() if stem in ("brier", "log_loss") else ("samples",)):
            metric = TABLE[f"{stem}-{average}"]
            held, targets, known = metric.arguments(problem)
            values, turned = (held, ~held) if metric.takes == "decisions" else (scores, 1 - scores)
            expected = TABLE[f"{other}-{average}"](turned, 1 - targets, known)
            same(metric(values, targets, known), expected, stem)


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (0, 1), (2, 0)])
def test_nothing_to_measure_is_nan_and_no_warning(shape: tuple[int, int]) -> None:
    scores, nothing = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    for name, metric in those():
        found = metric(nothing if metric.takes == "decisions" else scores, nothing, nothing)
        assert np.isnan(found).all(), name


@pytest.mark.fault(18)
def test_scores_that_are_none_are_refused() -> None:
    for _, metric in those():
        if metric.takes != "decisions":
            with pytest.raises(ValueError, match="1 entries are not, the first at row 1, column 0: nan"):
                metric([[0.1, 0.2], [np.nan, 0.3]], [[0, 1], [1, 0]])
            with pytest.raises(ValueError, match=r"targets must be of shape \(1, 2\); got \(1, 1\)"):
                metric([[0.1, 0.2]], [[1]])
        if metric.takes == "probabilities":
            with pytest.raises(ValueError, match=r"in \[0, 1\]; 1 entries are not, the first at row 0, column 1: 1.25"):
                metric([[0.1, 1.25, 1.0, 0.0]], [[1, 0, 1, 0]])
        if metric.gives == "labels":
            with pytest.raises(ValueError, match="unknown average 'mean'"):
                metric.function([[0, 1]], [[1, 0]], average="mean")
