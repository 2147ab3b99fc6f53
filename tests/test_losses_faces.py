"""A loss says the same by all its faces: every reduction, every form of targets, parts and denominators."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from losses_cases import ELEMENTWISE, function_of
from torch import nn

from mlabel.labels import Group, LabelSpace
from mlabel.losses import (
    ForeignLoss,
    LogitAdjusted,
    Loss,
    as_loss,
    cross_entropy,
    distribution_balanced,
    focal,
    two_way,
    zlpr,
)
from mlabel.losses.batch import as_matrix

DEFAULTS = sorted({function_of(fn) for fn in ELEMENTWISE} - {distribution_balanced}, key=lambda fn: fn.__name__)


def per_entry(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def batch(columns=4):
    """Return logits and targets whose last column never holds, so that no list names it."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(6, columns, generator=generator) < 0.4).to(torch.uint8)
    targets[:, -1] = 0
    known = torch.rand(6, columns, generator=generator) < 0.7
    return 3 * torch.randn(6, columns, generator=generator), targets, known


@pytest.mark.parametrize("fn", DEFAULTS, ids=lambda fn: fn.__name__)
def test_defaults_are_those_of_the_function_whichever_way_it_is_computed(fn):
    x, t, known = batch()
    wanted = fn(x, t)
    ones = torch.ones(4)
    for options in ({}, {"weight": ones}, {"pos_weight": ones}, {"weight": 1.0, "pos_weight": 1.0}):
        torch.testing.assert_close(Loss(fn, reduction="none", **options)(x, t), wanted)
        torch.testing.assert_close(Loss(fn, reduction="sum", **options)(x, t), wanted.sum())
        torch.testing.assert_close(Loss(fn, **options)(x, t, known), wanted[known].mean())
        torch.testing.assert_close(Loss(fn, reduction="batchmean", **options)(x, t, known), wanted[known].sum() / 6)
    assert fn.__name__ in repr(Loss(fn))


LOSSES = {
    "elementwise": Loss(focal),
    "sum": Loss(focal, reduction="sum"),
    "batchmean": Loss(focal, reduction="batchmean"),
    "two_way": Loss(two_way),
    "two_way of labels": Loss(partial(two_way, dim=0)),
    "zlpr": Loss(zlpr),
    "classes": Loss(cross_entropy),
    "foreign": ForeignLoss(per_entry),
    "foreign classes": ForeignLoss(nn.CrossEntropyLoss(), exclusive=True),
    "adjusted": LogitAdjusted(Loss(focal), [0.5, 0.0, -1.0, 2.0]),
    "adjusted foreign": LogitAdjusted(ForeignLoss(per_entry), [0.5, 0.0, -1.0, 2.0]),
    "groups": as_loss(Loss(focal), LabelSpace([Group("tags", ["a", "b", "c", "d"])])),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [None, "dense", "sparse"])
def test_targets_and_masks_of_any_form_give_the_same_parts(name, masked):
    loss, (x, t, known) = LOSSES[name], batch()
    if "classes" in name:
        t = torch.eye(4, dtype=torch.uint8)[torch.tensor([0, 2, 1, 1, 0, 2])]
        known = known.all(dim=1, keepdim=True).expand(6, 4)
    mask = {None: None, "dense": known, "sparse": sp.csr_array(~known.numpy())}[masked]
    wanted = loss.parts(x, t, mask)
    lists = [np.flatnonzero(row).tolist() for row in t.numpy()]
    csr = sp.csr_array(t.numpy())
    stored = csr.copy()
    stored.data[0] = 0  # a zero that is stored is one all the same
    for targets in (t.numpy(), t.float(), csr, lists, [np.array(row) for row in lists], [tuple(row) for row in lists]):
        parts = loss.parts(x, targets, mask)
        assert list(parts) == list(wanted)
        for part, (value, denominator) in parts.items():
            torch.testing.assert_close(value, wanted[part][0])
            assert int(denominator) == int(wanted[part][1])
            assert denominator.dtype == torch.int64
        sizes = {} if mask is not None or not isinstance(targets, list) or "adjusted" in name else {"num_labels": 4}
        counted = loss.denominators(targets, mask, **({} if name == "groups" else sizes))
        assert {part: (int(each), each.dtype) for part, each in counted.items()} == {
            part: (int(each), torch.int64) for part, (_, each) in wanted.items()
        }
        torch.testing.assert_close(loss(x, targets, mask), loss(x, t, mask))
        turned = x.t().contiguous().t().requires_grad_()  # the same logits, a column after the other in memory
        loss(turned, targets, mask).backward()
        straight = x.clone().requires_grad_()
        loss(straight, t, mask).backward()
        torch.testing.assert_close(turned.grad, straight.grad)
    without = t.clone()
    without[torch.from_numpy(csr.toarray() != stored.toarray())] = 0
    if "classes" not in name:
        for part, (value, denominator) in loss.parts(x, stored, mask).items():
            torch.testing.assert_close(value, loss.parts(x, without, mask)[part][0])
            assert int(denominator) == int(loss.parts(x, without, mask)[part][1])


def test_lists_of_nothing_are_rows_without_labels():
    for rows in ([[], []], [np.zeros(0), np.zeros(0)], [np.zeros(0), []], ((), torch.zeros(0))):
        matrix = as_matrix(rows, 3)
        assert matrix.shape == (2, 3)
        assert matrix.nnz == 0
    assert as_matrix([], 3).shape == (0, 3)
    assert as_matrix([[], []]).shape == (2, 1)
    assert as_matrix([[1], []]).shape == (2, 2)
    assert as_matrix([np.array([1]), np.zeros(0)], 3).toarray().tolist() == [[0, 1, 0], [0, 0, 0]]


def test_a_callable_object_is_shown():
    class Own:
        def __call__(self, logits, targets):
            return per_entry(logits, targets)

        def __repr__(self):
            return "Own!"

    x, t, known = batch()
    loss = Loss(Own())
    torch.testing.assert_close(loss(x, t, known), per_entry(x, t.float())[known].mean())
    assert "Own!" in repr(loss)


def test_training_wants_a_reduced_loss():
    space = LabelSpace([Group("tags", ["a", "b"]), Group("more", ["c", "d"])])
    with pytest.raises(ValueError, match=r"^training needs a reduced loss; its reduction is 'none'$"):
        as_loss(Loss(focal, reduction="none"), space)


def test_what_is_unknown_may_be_any_target_and_what_is_known_may_not():
    x, t, known = batch()
    t = t.float()
    known[:] = True
    known[2, 1] = False
    wanted = Loss(focal)(x, t, known)
    t[2, 1] = 7.0
    for targets in (t, t.numpy(), sp.csr_array(t.numpy())):
        torch.testing.assert_close(Loss(focal)(x, targets, known), wanted)
    t[3, 2] = -2.0
    for targets in (t, t.numpy(), sp.csr_array(t.numpy())):
        with pytest.raises(ValueError, match=r"targets must be in \[0, 1\]; got -2.0 at row 3, column 2"):
            Loss(focal)(x, targets, known)
        with pytest.raises(ValueError, match=r"got 7.0 at row 2, column 1"):
            Loss(focal)(x, targets)


def test_weights_are_float32_and_one_a_label():
    for weight in (np.ones(4), np.ones(4, dtype=np.int64), [1, 1, 1, 1], torch.ones(4, dtype=torch.float64), 1):
        loss = Loss(focal, weight=weight, pos_weight=weight)
        assert loss.weight.dtype == loss.pos_weight.dtype == torch.float32
    with pytest.raises(ValueError, match="weight"):
        Loss(focal, weight=np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"^cross_entropy has no positive term to weigh"):
        Loss(cross_entropy, pos_weight=[1.0, 2.0])


def test_logits_that_are_no_tensor_are_named():
    with pytest.raises(TypeError, match="list"):
        focal([[0.0]], torch.zeros(1, 1))
