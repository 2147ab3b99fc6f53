"""What holds of every loss through `Loss`: masks, weights, order, merging, reductions, and targets in any form."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_cases import ELEMENTWISE, OVER_CLASSES, PER_SAMPLE, for_columns, function_of, name_of, option

from mlabel.losses import Loss, asymmetric, distribution_balanced, multilabel_soft_margin, total, two_way, zlpr
from mlabel.losses.functional import TERMS


def of_a_user(logits, targets):
    """A function that goes the way that knows no kernel."""
    return asymmetric(logits, targets, gamma_neg=2.0)


OF_ENTRIES = [*ELEMENTWISE, of_a_user]
ANY_OF = OF_ENTRIES + PER_SAMPLE
every = pytest.mark.parametrize("fn", ANY_OF, ids=name_of)
every_over_classes = pytest.mark.parametrize("fn", OVER_CLASSES, ids=name_of)
REDUCED = ["mean", "batchmean", "sum"]
reduced = pytest.mark.parametrize("reduction", REDUCED)


def batch(rows=8, seed=0, dtype=torch.float64):
    """Return logits, targets and mask of three labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 3, generator=generator, dtype=torch.float64).to(dtype)
    targets = (torch.rand(rows, 3, generator=generator) < 0.3).to(torch.uint8)
    known = torch.rand(rows, 3, generator=generator) < 0.7
    return logits, targets, known


def classes_batch(rows=8, seed=0, dtype=torch.float64):
    """Return logits, one-hot targets and a mask of whole rows of three classes."""
    logits, _, known = batch(rows, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.eye(3, dtype=torch.uint8)[torch.randint(3, (rows,), generator=generator)]
    return logits, targets, known[:, :1].expand(rows, 3).clone()


def couples_rows(fn):
    """Return whether a row's loss depends on other rows of the batch."""
    return function_of(fn) is two_way and option(fn, "dim") != 1


def value_and_gradient(loss, logits, *rest):
    x = logits.clone().requires_grad_()
    value = loss(x, *rest)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def assert_same(found, wanted):
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@every
@reduced
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mask_of_a_label_is_its_deletion(fn, reduction, weighted):
    x, t, known = batch()
    known[:, 1] = False
    weight = torch.tensor([1.0, 2.0, 3.0]) if weighted else None
    loss = Loss(fn, weight=weight, reduction=reduction)
    rest = Loss(for_columns(fn, [0, 2]), weight=None if weight is None else weight[[0, 2]], reduction=reduction)
    value, gradient = value_and_gradient(loss, x, t, known)
    assert_same((value, gradient[:, [0, 2]]), value_and_gradient(rest, *(a[:, [0, 2]] for a in (x, t, known))))
    assert (gradient[:, 1] == 0).all()


@pytest.mark.parametrize("fn", ANY_OF + OVER_CLASSES, ids=name_of)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mask_of_a_row_is_its_deletion(fn, reduction):
    x, t, known = (classes_batch if fn in OVER_CLASSES else batch)()
    known[2:5] = False
    keep = torch.tensor([0, 1, 5, 6, 7])
    loss = Loss(fn, reduction=reduction)
    value, gradient = value_and_gradient(loss, x, t, known)
    assert_same((value, gradient[keep]), value_and_gradient(loss, x[keep], t[keep], known[keep]))
    assert (gradient[2:5] == 0).all()


@pytest.mark.parametrize("fn", ANY_OF + OVER_CLASSES, ids=name_of)
@reduced
def test_what_is_unknown_may_hold_anything(fn, reduction):
    x, t, known = (classes_batch if fn in OVER_CLASSES else batch)(dtype=torch.float32)
    loss = Loss(fn, reduction=reduction)
    wanted = value_and_gradient(loss, x, t, known)
    for logits in (x, x.masked_fill(~known, torch.nan), x.masked_fill(~known, -torch.inf)):
        for targets in (t, t.float().masked_fill(~known, torch.nan), t.long().masked_fill(~known, -1)):
            assert_same(value_and_gradient(loss, logits, targets, known), wanted)


@pytest.mark.parametrize("fn", ANY_OF + OVER_CLASSES, ids=name_of)
@reduced
def test_without_anything_known_the_loss_is_0(fn, reduction):
    x, t, known = batch()
    value, gradient = value_and_gradient(Loss(fn, reduction=reduction), x * torch.nan, t, known & False)
    assert value == 0
    assert (gradient == 0).all()
    x.requires_grad_()
    for mask in (None, known[:0]):  # without a row, too
        value = Loss(fn, reduction=reduction)(x[:0], t[:0], mask)
        assert value == 0
        value.backward()


# Of a label that is repeated a sample has more, which lowers the distribution-balanced weights of its others.
repeatable = [fn for fn in ANY_OF if function_of(fn) is not distribution_balanced]


@pytest.mark.parametrize("fn", repeatable, ids=name_of)
def test_a_weight_of_k_is_a_repetition(fn):
    x, t, known = batch()
    columns = [0, 1, 1, 1, 2, 2]
    weighted = Loss(fn, weight=[1.0, 3.0, 2.0], reduction="sum")
    plain = Loss(for_columns(fn, columns), reduction="sum")
    # Soft margin divides each row by its labels, of which the weights change nothing.
    share = 2 if function_of(fn) is multilabel_soft_margin else 1
    for mask in (None, known) if share == 1 else (None,):
        found = weighted(x, t, mask)
        repeated = plain(x[:, columns], t[:, columns], None if mask is None else mask[:, columns])
        torch.testing.assert_close(found, share * repeated)
    if fn in OF_ENTRIES:
        torch.testing.assert_close(Loss(fn, weight=2.0)(x, t, known), 2 * Loss(fn)(x, t, known))


# Smoothing gives every row a share of every class.
@pytest.mark.parametrize("fn", [fn for fn in OVER_CLASSES if not option(fn, "smoothing")], ids=name_of)
def test_a_class_weight_of_k_is_a_repetition_of_its_rows(fn):
    x, t, known = classes_batch()
    weight = torch.tensor([1, 3, 2])
    rows = torch.arange(8).repeat_interleave(weight[t.argmax(dim=1)])
    weighted = Loss(fn, weight=weight, reduction="sum")
    torch.testing.assert_close(weighted(x, t, known), Loss(fn, reduction="sum")(x[rows], t[rows], known[rows]))


@pytest.mark.parametrize("fn", OF_ENTRIES, ids=name_of)
@reduced
def test_pos_weight_multiplies_the_losses_of_positives(fn, reduction):
    x, t, known = batch()
    pos_weight = torch.tensor([0.5, 2.0, 7.0])
    entries = fn(x, t * known) * torch.where(t == 1, pos_weight, 1.0) * known
    divisor = {"mean": known.sum(), "batchmean": len(x), "sum": 1}[reduction]
    found = Loss(fn, pos_weight=pos_weight, reduction=reduction)(x, t, known)
    torch.testing.assert_close(found, entries.sum() / divisor)


@pytest.mark.parametrize("fn", [zlpr, partial(two_way, dim=1)], ids=name_of)
def test_pos_weight_of_samples_is_a_copy_of_what_holds(fn):
    x, t, known = batch()
    columns = [0, 1, 2, 1]
    mask = known[:, columns]
    mask[:, 3] &= t[:, 1] == 1  # of the copy only what holds is known
    found = Loss(fn, pos_weight=[1.0, 2.0, 1.0], reduction="sum")(x, t, known)
    torch.testing.assert_close(found, Loss(fn, reduction="sum")(x[:, columns], t[:, columns], mask))


@pytest.mark.parametrize("fn", [fn for fn in ELEMENTWISE if function_of(fn) in TERMS], ids=name_of)
def test_pos_weight_of_soft_targets_multiplies_the_positive_term(fn):
    x, t, _ = batch()
    t, pos_weight = 0.7 * t, torch.tensor([0.5, 2.0, 7.0])
    wanted = pos_weight * t * fn(x, torch.ones_like(x)) + (1 - t) * fn(x, torch.zeros_like(x))
    for reduction in ("mean", "none"):
        found = Loss(fn, pos_weight=pos_weight, reduction=reduction)(x, t)
        torch.testing.assert_close(found, wanted.mean() if reduction == "mean" else wanted)


@every
@reduced
def test_order_of_rows_and_labels_changes_nothing(fn, reduction):
    x, t, known = batch()
    rows, columns = torch.randperm(8), torch.tensor([2, 0, 1])
    weight = torch.tensor([1.0, 2.0, 3.0])
    wanted = Loss(fn, weight=weight, reduction=reduction)(x, t, known)
    moved = Loss(for_columns(fn, columns), weight=weight[columns], reduction=reduction)
    torch.testing.assert_close(moved(*(a[rows][:, columns] for a in (x, t, known))), wanted)


@every_over_classes
@reduced
def test_order_of_rows_and_classes_changes_nothing(fn, reduction):
    x, t, known = classes_batch()
    rows, columns = torch.randperm(8), torch.tensor([2, 0, 1])
    weight = torch.tensor([1.0, 2.0, 3.0])
    wanted = Loss(fn, weight=weight, reduction=reduction)(x, t, known)
    moved = Loss(for_columns(fn, columns), weight=weight[columns], reduction=reduction)
    torch.testing.assert_close(moved(*(a[rows][:, columns] for a in (x, t, known))), wanted)


@pytest.mark.parametrize("fn", [fn for fn in ANY_OF if not couples_rows(fn)] + OVER_CLASSES, ids=name_of)
@reduced
def test_parts_of_batches_make_the_whole(fn, reduction):
    x, t, known = (classes_batch if fn in OVER_CLASSES else batch)()
    loss = Loss(fn, reduction=reduction)
    for mask in (None, known):
        for cuts in ([0, 3, 8], [0, 0, 8], [0, 1, 2, 5, 8]):
            pieces = [(x[a:b], t[a:b], None if mask is None else mask[a:b]) for a, b in pairwise(cuts)]
            torch.testing.assert_close(total(*(loss.parts(*piece) for piece in pieces)), loss(x, t, mask))
            assert sum(loss.denominators(*piece[1:])["all"] for piece in pieces) == loss.denominators(t, mask)["all"]


def test_two_way_merges_rows_exactly_and_labels_batch_by_batch():
    x, t, known = batch(rows=12)
    loss = Loss(two_way)
    parts = [loss.parts(*(a[rows] for a in (x, t, known))) for rows in (slice(0, 5), slice(5, 12))]
    whole = loss.parts(x, t, known)
    assert list(whole) == ["samples", "labels"]
    held = ((t == 1) & known).any(dim=1)
    assert whole["samples"][1] == sum(part["samples"][1] for part in parts) == held.sum()
    torch.testing.assert_close(whole["samples"][0], sum(part["samples"][0] for part in parts))
    torch.testing.assert_close(whole["samples"][0], two_way(x, t, mask=known)[held].sum())
    # A label counts once for each batch that knows it to hold, against the rows of that batch.
    labels = [two_way(*(a[rows] for a in (x, t)), mask=known[rows], dim=0) for rows in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(sum(part["labels"][0] for part in parts), torch.cat(labels).sum())
    assert sum(part["labels"][1] for part in parts) == (torch.cat(labels) > 0).sum()
    merged = total(*parts)
    wanted = two_way(x, t, mask=known)[held].mean() + torch.cat(labels)[torch.cat(labels) > 0].mean()
    torch.testing.assert_close(merged, wanted)
    rows_only = Loss(partial(two_way, dim=1))
    torch.testing.assert_close(rows_only(x, t, known), two_way(x, t, mask=known)[held].mean())


@every
@given(seed=st.integers(0, 999))
@settings(max_examples=3, deadline=None)
def test_reductions_are_what_they_say(fn, seed):
    if function_of(fn) is two_way and option(fn, "dim") is None:
        return  # see the test above
    x, t, known = batch(seed=seed)
    weight, pos_weight = torch.rand(3) + 0.5, torch.rand(3) + 0.5
    for mask in (None, known):
        settings_of = {"weight": weight, "pos_weight": pos_weight}
        entries = Loss(fn, reduction="none", **settings_of)(x, t, mask)
        here = torch.ones_like(known) if mask is None else mask
        if fn in OF_ENTRIES:
            counted = here.sum()
            assert (entries[~here] == 0).all()
        elif function_of(fn) is two_way:
            counted = (here & (t == 1)).any(dim=option(fn, "dim")).sum()
        else:
            counted = here.any(dim=1).sum()
        for reduction, divisor in (("mean", max(int(counted), 1)), ("batchmean", len(x)), ("sum", 1)):
            loss = Loss(fn, reduction=reduction, **settings_of)
            torch.testing.assert_close(loss(x, t, mask), entries.sum() / divisor)


@pytest.mark.parametrize("fn", ANY_OF + OVER_CLASSES, ids=name_of)
def test_targets_and_masks_in_any_form(fn):
    x, t, known = (classes_batch if fn in OVER_CLASSES else batch)()
    loss = Loss(fn, weight=[1.0, 2.0, 3.0])
    lists = [row.nonzero()[:, 0].tolist() for row in t]
    forms = [t.bool(), t.float(), t.long(), t.numpy(), sp.csr_array(t.numpy()), sp.csc_matrix(t.numpy())]
    forms += [lists, tuple(map(tuple, lists)), [np.array(row, dtype=np.int32)[::-1] for row in lists]]
    forms += [[torch.tensor(row, dtype=torch.int64) for row in lists], [np.array(row) for row in lists]]
    for masks in ([None], [known, known.numpy(), sp.csr_array(~known.numpy())]):
        wanted = value_and_gradient(loss, x, t, masks[0])
        counted = loss.denominators(t, masks[0])
        for targets in forms:
            for mask in masks:
                assert_same(value_and_gradient(loss, x, targets, mask), wanted)
                assert loss.denominators(targets, mask, num_labels=3) == counted
                assert {part: count for part, (_, count) in loss.parts(x, targets, mask).items()} == counted


@pytest.mark.parametrize("fn", ANY_OF + OVER_CLASSES, ids=name_of)
def test_float32_under_autocast_and_of_halves(fn):
    x, t, known = (classes_batch if fn in OVER_CLASSES else batch)(dtype=torch.bfloat16)
    wanted = value_and_gradient(Loss(fn), x.float(), t, known)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(Loss(fn), x, t, known)
    assert value.dtype == torch.float32
    assert torch.equal(value, wanted[0])
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.float(), wanted[1], rtol=2.0**-8, atol=1e-8)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([[0], [3]], ValueError, r"index lists must hold labels in \[0, 3\); got 3 in row 1"),
        ([[], [0, -1]], ValueError, "got -1 in row 1"),
        ([[0, 2], [1, 0, 1]], ValueError, "row 1 holds 1 more than once. A matrix of zeros and ones is passed as an"),
        ([[0.5], [1]], TypeError, "a list of integers for each row; got float64 among them"),
        ([["cat"], []], TypeError, "a list of integers for each row"),
        ([0, 1], TypeError, "a list of integers for each row"),
        ([[True], [False]], TypeError, "got bool among them"),
        ([np.zeros((1, 2), dtype=int), [1]], TypeError, "a list of integers for each row"),
        ([[0]], ValueError, r"the shape of the logits, \(2, 3\); got \(1, 3\)"),
    ],
)
def test_index_lists_are_checked(targets, error, message):
    for fn in (ANY_OF[0], partial(two_way, dim=1), OVER_CLASSES[0]):
        with pytest.raises(error, match=message):
            Loss(fn)(torch.zeros(2, 3), targets)


def test_index_lists_do_not_say_how_many_labels_there_are():
    loss, lists, mask = Loss(ANY_OF[0]), [[0], [], [1]], torch.ones(3, 5, dtype=torch.bool)
    assert loss.denominators(lists, num_labels=5) == loss.denominators(lists, mask) == {"all": 15}
    with pytest.raises(ValueError, match="give num_labels="):
        loss.denominators(lists)
    assert Loss(ANY_OF[0], reduction="batchmean").denominators(lists) == {"all": 3}
    assert Loss(OVER_CLASSES[0]).denominators(lists) == {"all": 2}
    assert Loss(two_way).denominators(lists) == {"samples": 2, "labels": 2}
