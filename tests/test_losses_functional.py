"""Loss formulas: finite and exact at any logit, identities, gradients, the plain formula against the fused sum."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from losses_cases import (
    COUNTS,
    ELEMENTWISE,
    OVER_CLASSES,
    PER_SAMPLE,
    batch,
    for_columns,
    function_of,
    name_of,
    option,
    slopes,
)

from mlabel.losses import (
    Loss,
    absolute_error,
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    distribution_balanced,
    focal,
    focal_cross_entropy,
    functional,
    hill,
    multilabel_soft_margin,
    poly1,
    seesaw,
    splc,
    squared_error,
    two_way,
    zlpr,
)
from mlabel.losses.functional import TERMS
from mlabel.losses.fused import FEW
from mlabel.losses.kernels import KERNELS

LOGITS = [0.0, 1e-3, 0.1, 1.0, 2.94, 2.95, 5.0, 17.0, 20.0, 40.0, 88.0, 104.0, 120.0, 1e3, 6e4]
GRID = sorted({sign * x for x in LOGITS for sign in (-1.0, 1.0)})
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# A half's gradient is a half: half a unit in its last place.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float64: 0.0}

every = pytest.mark.parametrize("fn", ELEMENTWISE, ids=name_of)
every_over_classes = pytest.mark.parametrize("fn", OVER_CLASSES, ids=name_of)
every_per_sample = pytest.mark.parametrize("fn", PER_SAMPLE, ids=name_of)
with_terms = pytest.mark.parametrize("fn", [fn for fn in ELEMENTWISE if function_of(fn) in TERMS], ids=name_of)


def in_columns(fn, values):
    """Return the function for as many columns as there are values, all told the same of their label."""
    return for_columns(fn, [1] * len(values))


def fused(fn, logits, targets, mask=None):
    """Return the sum and the gradient of `Loss`."""
    x = logits.clone().requires_grad_()
    value = Loss(fn, reduction="sum")(x, targets, mask)
    (slope,) = torch.autograd.grad(value, x)
    return value.detach(), slope


def test_every_function_is_tested():
    assert {function_of(fn) for fn in ELEMENTWISE} == functional.ELEMENTWISE
    assert {function_of(fn) for fn in PER_SAMPLE} == functional.PER_SAMPLE
    assert {function_of(fn) for fn in OVER_CLASSES} == functional.OVER_CLASSES
    assert set(TERMS) == set(KERNELS)


def corrected(fn, x):
    """Return where `splc` takes a negative for a positive."""
    correcting = function_of(fn) is splc and option(fn, "epoch") != 0
    return x.double().sigmoid() > (option(fn, "tau", 0.6) if correcting else 1.0)


@pytest.mark.fault(36)
@every
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("route", [slopes, fused])
def test_finite_and_of_the_right_sign_at_any_logit(fn, dtype, target, route):
    fn = in_columns(fn, GRID)
    x = torch.tensor(GRID, dtype=torch.float64)[None].to(dtype)
    values, slope = route(fn, x, torch.full(x.shape, target))
    assert torch.isfinite(values).all()
    assert (values >= (-1e-7 if option(fn, "epsilon") == -1.0 else 0.0)).all()  # there two equal numbers are subtracted
    assert torch.isfinite(slope).all()
    if target != 0.5:
        downhill = slope >= 0 if target == 0.0 else slope <= 0
        assert (downhill ^ corrected(fn, x) | (slope == 0) if target == 0.0 else downhill).all()
    assert slope.dtype == dtype
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_slopes_equal_those_of_float64(fn, target, dtype):
    fn = in_columns(fn, GRID)
    x = torch.tensor(GRID, dtype=torch.float64)[None].to(dtype)
    targets = torch.full(x.shape, target)
    exact_values, exact = slopes(fn, x.double(), targets)
    # Float32 values lose 4e-6 at most, near logits of 16.
    for route in (slopes, fused):
        found = route(fn, x, targets)[1].double()
        torch.testing.assert_close(found, exact, rtol=4e-6 + ROUNDING[dtype], atol=4e-6)
    torch.testing.assert_close(slopes(fn, x, targets)[0].double(), exact_values, rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(fused(fn, x, targets)[0].double(), exact_values.sum(), rtol=2e-6, atol=1e-5)


@every
def test_gradcheck_in_float64(fn):
    x, targets = batch(dtype=torch.float64)
    one = torch.zeros_like(targets)
    one[2, 1] = 1
    for t in (one, targets, 0.1 + 0.8 * targets.double()):
        assert torch.autograd.gradcheck(lambda x, t=t: fn(x, t), x.requires_grad_())
        assert torch.autograd.gradcheck(lambda x, t=t: Loss(fn)(x, t), x.requires_grad_())


@every
def test_the_fused_sum_is_that_of_the_plain_formula(fn, monkeypatch):
    monkeypatch.setattr("mlabel.losses.fused.CPU_SCRATCH", 12)  # one to four rows a block
    x, few = batch(rows=9, density=0.05, dtype=torch.float64)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    assert 0 < few.sum() <= few.numel() / FEW
    for targets in (few, few.float(), 0.7 * few, batch(rows=9, density=0.6)[1], sp.csr_array(few.numpy())):
        dense = torch.as_tensor(targets.toarray() if sp.issparse(targets) else targets)
        for mask in (None, known):
            seen = 1 if mask is None else mask
            wanted, slope = slopes(lambda x, t, m=seen: fn(x, t * m) * m, x, dense)
            value, gradient = fused(fn, x, targets, mask)
            torch.testing.assert_close(value, wanted.sum(), rtol=1e-12, atol=0)
            torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-15)


@with_terms
def test_soft_targets_blend_both_terms(fn):
    x, _ = batch(dtype=torch.float64)
    t = torch.rand(x.shape, dtype=torch.float64)
    blend = t * fn(x, torch.ones_like(x)) + (1 - t) * fn(x, torch.zeros_like(x))
    torch.testing.assert_close(fn(x, t), blend)


@every
def test_permuting_labels_permutes_losses(fn):
    x, t = batch()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(fn(x, t)[:, order], for_columns(fn, order)(x[:, order], t[:, order]))


@every
def test_a_second_backward_gives_the_same_gradient(fn):
    for density in (0.05, 0.6):  # few positives, and many
        x, t = batch(rows=30, density=density)
        assert (0 < t.sum() <= t.numel() / FEW) == (density < 0.1)
        x.requires_grad_()
        value = Loss(fn)(x, t)
        first = torch.autograd.grad(value, x, retain_graph=True)[0].clone()
        torch.testing.assert_close(torch.autograd.grad(2 * value, x, retain_graph=True)[0], 2 * first)


@given(gamma=st.floats(0, 6), alpha=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_focal_without_gamma_is_a_weighted_cross_entropy(gamma, alpha, seed):
    x, t = batch(seed=seed)
    bce = binary_cross_entropy(x, t)
    torch.testing.assert_close(focal(x, t, gamma=0.0, alpha=0.5), bce / 2)
    torch.testing.assert_close(focal(x, t, gamma=0.0), bce)
    factor = alpha * t + (1 - alpha) * (1 - t.float())
    torch.testing.assert_close(focal(x, t, gamma=gamma, alpha=alpha), factor * focal(x, t, gamma=gamma))
    assert (focal(x, t, gamma=gamma) <= bce * (1 + 1e-6)).all()


def test_asymmetric_without_gammas_and_clip_is_the_cross_entropy():
    x = torch.tensor(GRID)[None].repeat(2, 1)
    t = torch.stack([torch.zeros(len(GRID)), torch.ones(len(GRID))])
    plain = partial(asymmetric, gamma_neg=0.0, gamma_pos=0.0, clip=0.0)
    for mine, wanted in zip(slopes(plain, x, t), slopes(binary_cross_entropy, x, t), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_asymmetric_with_equal_gammas_is_focal():
    x, t = batch()
    torch.testing.assert_close(asymmetric(x, t, gamma_neg=2.0, gamma_pos=2.0, clip=0.0), focal(x, t, gamma=2.0))


def test_a_negative_below_the_clip_costs_nothing():
    x = torch.tensor([[-2.95, -2.94]])  # p = 0.0497 and 0.0502
    values, slope = slopes(asymmetric, x, torch.zeros(1, 2))
    assert values[0, 0] == 0
    assert slope[0, 0] == 0
    assert asymmetric(x, torch.zeros(1, 2), gamma_neg=0.0)[0, 1] > 0


def test_by_hand():
    # p = 0.8: asymmetric, positive: 0.2 * -log 0.8; negative: m = 0.75, 0.75^4 * -log 0.25
    x = torch.full((1, 2), float(np.log(4.0)))
    wanted = [[0.2 * -np.log(0.8), 0.75**4 * -np.log(0.25)]]
    torch.testing.assert_close(asymmetric(x, torch.tensor([[1, 0]])), torch.tensor(wanted, dtype=torch.float32))
    # focal: 0.25 * 0.2^2 * -log 0.8; 0.75 * 0.8^2 * -log 0.2
    wanted = [[0.25 * 0.04 * -np.log(0.8), 0.75 * 0.64 * -np.log(0.2)]]
    torch.testing.assert_close(focal(x, torch.tensor([[1, 0]]), alpha=0.25), torch.tensor(wanted, dtype=torch.float32))


def test_poly1_without_epsilon_is_the_cross_entropy():
    x = torch.tensor(GRID)[None].repeat(2, 1)
    t = torch.stack([torch.zeros(len(GRID)), torch.ones(len(GRID))])
    torch.testing.assert_close(slopes(partial(poly1, epsilon=0.0), x, t), slopes(binary_cross_entropy, x, t))
    # With epsilon 1 the first polynomial term counts twice: p of a negative.
    extra = poly1(x, t, epsilon=1.0) - binary_cross_entropy(x, t)
    torch.testing.assert_close(extra, (x.sigmoid() - t).abs(), rtol=1e-6, atol=1e-6 * 6e4)


def test_hills_gradient_is_a_hill():
    x = torch.linspace(-8, 8, 65, dtype=torch.float64)[None]
    p = x.sigmoid()
    slope = slopes(hill, x, torch.zeros_like(x))[1]
    torch.testing.assert_close(slope, 3 * p**2 * (1 - p) ** 2)
    torch.testing.assert_close(hill(x, torch.ones_like(x), margin=0.0), focal(x, torch.ones_like(x)))


def test_splc_corrects_from_its_epoch_on():
    x, t = torch.tensor([[-1.0, 0.4, 0.41, 3.0]]), torch.tensor([[1, 0, 0, 0]])  # p = 0.5987 and 0.6011
    before, after = splc(x, t, epoch=1, start_epoch=2), splc(x, t, epoch=2, start_epoch=2)
    torch.testing.assert_close(before[:, 1:], focal(x, t)[:, 1:])
    torch.testing.assert_close(after[:, 2:], focal(x, torch.ones_like(t))[:, 2:])
    torch.testing.assert_close(after[:, :2], before[:, :2])
    torch.testing.assert_close(after[:, :1], focal(x - 1, t)[:, :1])
    assert torch.equal(splc(x, t, start_epoch=2), after)  # without an epoch it corrects
    torch.testing.assert_close(splc(x, t, tau=1.0, margin=0.0), focal(x, t))


def test_errors_of_the_probability_by_hand():
    x = torch.full((1, 3), float(np.log(3.0)))  # p = 0.75
    t = torch.tensor([[1.0, 0.0, 0.5]])
    torch.testing.assert_close(squared_error(x, t), torch.tensor([[0.0625, 0.5625, 0.0625]]))
    torch.testing.assert_close(absolute_error(x, t), torch.tensor([[0.25, 0.75, 0.25]]))
    # A right answer's error keeps its digits, where 1 - p has none in float32.
    assert absolute_error(torch.tensor([[30.0]]), torch.ones(1, 1)).item() == pytest.approx(np.exp(-30.0), rel=1e-5)


def test_distribution_balanced_by_hand():
    x, t = torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[1, 1], [1, 0], [0, 0]])
    plain = partial(distribution_balanced, counts=[500, 5], num_samples=1000, kappa=0.0, lamb=2.0)
    share = np.array([[0.002 / 0.202, 0.2 / 0.202], [1.0, 100.0], [np.inf, np.inf]])
    weight = 0.1 + 1 / (1 + np.exp(-10 * (share - 0.2)))
    wanted = weight * np.log(2) * np.array([[1, 1], [1, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(plain(x, t).numpy(), wanted, rtol=1e-12)
    shifted = distribution_balanced(x, t, counts=[500, 5], num_samples=1000, kappa=1.0, lamb=1.0)
    np.testing.assert_allclose(shifted[2, 1].item(), 1.1 * np.log1p(5 / 995), rtol=1e-12)
    # The prior of a label that is known for some samples only is that of the known.
    known = distribution_balanced(x, t, counts=[500, 5], num_samples=[1000, 10], kappa=1.0, lamb=1.0)
    np.testing.assert_allclose(known[2, 1].item(), 1.1 * np.log(2), rtol=1e-12)


def classes_grid(dtype):
    """Return rows of three logits, with each grid value in each column, and the same with a tie."""
    values = torch.tensor(GRID, dtype=torch.float64)
    rows = [torch.stack(row, dim=1) for row in ((values, 0 * values, -values), (values, values, 0 * values))]
    return torch.cat([*rows, rows[0].roll(1, dims=1), rows[0].flip(1)]).to(dtype)


@pytest.mark.fault(36)
@every_over_classes
@pytest.mark.parametrize("dtype", DTYPES)
def test_over_classes_finite_and_exact_at_any_logit(fn, dtype):
    x = classes_grid(dtype)
    soft = torch.tensor([0.5, 0.25, 0.25]).expand(x.shape)
    for targets in (*(torch.full((len(x),), k) for k in range(3)), soft, torch.zeros(x.shape)):
        values, slope = slopes(fn, x, targets)
        exact_values, exact = slopes(fn, x.double(), targets)
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert slope.dtype == dtype
        assert (values >= 0).all()
        torch.testing.assert_close(values.double(), exact_values, rtol=2e-6, atol=4e-6)
        torch.testing.assert_close(slope.double(), exact, rtol=4e-6 + ROUNDING[dtype], atol=4e-6)
        if targets.ndim == 1 and not option(fn, "smoothing"):
            right = slope.gather(1, targets[:, None])
            assert (right <= 0).all()
            if not option(fn, "gamma"):  # focal: where a class is nearly certain, what is said of the rest may rise
                assert (slope.scatter(1, targets[:, None], 0.0) >= 0).all()


@every_over_classes
def test_over_classes_gradcheck(fn):
    if option(fn, "q"):
        fn = partial(fn, q=0.0)  # the weight that q gives is no part of the gradient
    x, _ = batch(dtype=torch.float64)
    for t in (torch.arange(7) % 3, torch.rand(7, 3, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda x, t=t: fn(x, t), x.requires_grad_())


@every_over_classes
def test_over_classes_are_means_over_the_target(fn):
    x, _ = batch(dtype=torch.float64)
    soft, classes = torch.rand(7, 3, dtype=torch.float64), torch.arange(7) % 3
    if option(fn, "smoothing"):
        fn = partial(fn, smoothing=0.0)
    each = torch.stack([fn(x, torch.full((7,), k)) for k in range(3)], dim=1)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(fn(x, soft, weight=weight), (soft * weight * each).sum(dim=1))
    torch.testing.assert_close(fn(x, classes, weight=weight), weight[classes] * each[torch.arange(7), classes])
    torch.testing.assert_close(fn(x, F.one_hot(classes, 3)), fn(x, classes))
    assert (fn(x, torch.zeros(7, 3)) == 0).all()


@every_over_classes
def test_permuting_classes_changes_nothing(fn):
    x, _ = batch(dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    t = F.one_hot(torch.arange(7) % 3, 3)
    torch.testing.assert_close(for_columns(fn, order)(x[:, order], t[:, order]), fn(x, t))


def test_focal_cross_entropy_and_seesaw_without_their_options_are_the_cross_entropy():
    x = classes_grid(torch.float64)
    for targets in (torch.arange(len(x)) % 3, torch.tensor([0.5, 0.25, 0.25]).expand(x.shape)):
        wanted = slopes(cross_entropy, x, targets)
        torch.testing.assert_close(slopes(partial(focal_cross_entropy, gamma=0.0), x, targets), wanted)
        torch.testing.assert_close(slopes(partial(seesaw, counts=COUNTS, p=0.0, q=0.0), x, targets), wanted)
        torch.testing.assert_close(slopes(partial(seesaw, counts=[5, 5, 5], q=0.0), x, targets), wanted)


def test_focal_cross_entropy_of_two_classes_is_focal():
    x = torch.tensor(GRID, dtype=torch.float64)[None]
    both = torch.stack([torch.zeros_like(x[0]), x[0]], dim=1)
    for gamma in (0.5, 2.0):
        found = focal_cross_entropy(both, torch.ones(len(GRID), dtype=torch.int64), gamma=gamma)
        torch.testing.assert_close(found, focal(x, torch.ones_like(x), gamma=gamma)[0])


def test_seesaw_by_hand():
    x = torch.zeros(2, 2, dtype=torch.float64)
    # Of the frequent class the rare one is spared by 0.01^0.8; the rare one pays in full.
    wanted = np.log([1 + 0.01**0.8, 2.0])
    np.testing.assert_allclose(seesaw(x, torch.tensor([0, 1]), counts=[1000, 10]).numpy(), wanted, rtol=1e-6)
    # Taken for class 1 at odds of 4, a sample of class 0 gives it back 4^2.
    x = torch.tensor([[0.0, np.log(4.0)]], dtype=torch.float64)
    wanted = np.log1p(0.01**0.8 * 16 * 4)
    np.testing.assert_allclose(seesaw(x, torch.tensor([0]), counts=[1000, 10]).item(), wanted, rtol=1e-6)


@pytest.mark.fault(36)
@every_per_sample
@pytest.mark.parametrize("dtype", DTYPES)
def test_per_sample_finite_and_exact_at_any_logit(fn, dtype):
    x = classes_grid(dtype)
    for row in ([1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0.5, 0]):
        targets = torch.tensor(row, dtype=torch.float64).expand(x.shape)
        values, slope = slopes(fn, x, targets)
        exact_values, exact = slopes(fn, x.double(), targets)
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert slope.dtype == dtype
        assert (values >= 0).all()
        assert (slope[targets == 0] >= 0).all()
        assert (slope[targets == 1] <= 0).all()
        torch.testing.assert_close(values.double(), exact_values, rtol=2e-6, atol=4e-6)
        torch.testing.assert_close(slope.double(), exact, rtol=4e-6 + ROUNDING[dtype], atol=4e-6)


@every_per_sample
def test_per_sample_gradcheck(fn):
    x, hard = batch(dtype=torch.float64)
    weights = {"weight": torch.tensor([0.5, 1.0, 2.0]), "pos_weight": torch.tensor([3.0, 1.0, 0.0])}
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    known[0] = False
    for t in (hard, torch.rand(x.shape, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda x, t=t: fn(x, t, mask=known, **weights), x.requires_grad_())
        assert torch.autograd.gradcheck(lambda x, t=t: fn(x, t), x.requires_grad_())


@every_per_sample
def test_per_sample_keeps_small_losses(fn):
    """At a loss of e^-30 float32 still has its digits: nothing near 1 was subtracted."""
    x, t = torch.tensor([[30.0, -30.0, -34.0], [31.0, -33.0, -30.0]]), torch.tensor([[1, 0, 0], [1, 0, 0]])
    t[:, 0] = torch.tensor([1, 0]) if option(fn, "dim") == 0 else 1
    x[1] = -x[1] if option(fn, "dim") == 0 else x[1]
    exact = fn(x.double(), t)
    torch.testing.assert_close(fn(x, t).double(), exact, rtol=1e-5, atol=0)
    assert (exact < 1e-12).any()


def test_two_way_is_the_same_both_ways():
    x, t = batch(rows=9, dtype=torch.float64)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    torch.testing.assert_close(two_way(x, t, mask=known, dim=0), two_way(x.T, t.T, mask=known.T))
    # Only differences count.
    torch.testing.assert_close(two_way(x + 7.0, t), two_way(x, t))
    torch.testing.assert_close(two_way(x + torch.rand(3), t, dim=0), two_way(x + torch.rand(3), t, dim=0))


def test_per_sample_by_hand():
    x, t = torch.log(torch.tensor([[4.0, 2.0, 0.5, 3.0]])), torch.tensor([[1, 1, 0, 0]])
    # ZLPR: log(1 + 0.5 + 3) + log(1 + 1/4 + 1/2)
    torch.testing.assert_close(zlpr(x, t), torch.log(torch.tensor([4.5 * 1.75])))
    # Two-way at temperatures of 1: log(1 + 3.5 (1/4 + 1/2))
    found = two_way(x, t, temperature_pos=1.0, temperature_neg=1.0)
    torch.testing.assert_close(found, torch.log(torch.tensor([1 + 3.5 * 0.75])))
    # Without the third and with the last label counted twice.
    mask, weight = torch.tensor([[True, True, False, True]]), torch.tensor([1.0, 1.0, 1.0, 2.0])
    torch.testing.assert_close(zlpr(x, t, mask=mask, weight=weight), torch.log(torch.tensor([7 * 1.75])))
    # Soft margin: log(1 + 1/4) + log(1 + 1/2) + 2 log(1 + 3), over three known labels.
    wanted = torch.log(torch.tensor([1.25 * 1.5 * 16])) / 3
    torch.testing.assert_close(multilabel_soft_margin(x, t, mask=mask, weight=weight), wanted)


def test_zlpr_of_two_labels_is_two_cross_entropies():
    """With one label of each kind no two of a kind compete."""
    x = torch.tensor(GRID)
    both, t = torch.stack([x, x.flip(0)], dim=1), torch.tensor([1, 0]).expand(len(GRID), 2)
    torch.testing.assert_close(zlpr(both, t), binary_cross_entropy(both, t).sum(dim=1))


@every
def test_float32_under_autocast(fn):
    x, t = batch(dtype=torch.bfloat16)
    wanted, exact = fn(x, t), Loss(fn)(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, value = fn(x, t), Loss(fn)(x, t)
    assert values.dtype == value.dtype == torch.float32
    assert torch.equal(values, wanted)
    assert torch.equal(value, exact)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (partial(focal, gamma=-1.0), "gamma must be a finite number, at least 0; got -1.0"),
        (partial(focal, gamma=float("nan")), "gamma must be"),
        (partial(focal, alpha=1.5), r"alpha must be in \[0, 1\]"),
        (partial(asymmetric, gamma_neg=-1.0), "gamma_neg"),
        (partial(asymmetric, gamma_pos=-1.0), "gamma_pos"),
        (partial(asymmetric, clip=1.0), "clip must be at least 0 and below 1; got 1.0"),
        (partial(poly1, epsilon=-1.5), "epsilon must be a finite number, at least -1; got -1.5"),
        (partial(hill, lamb=0.5), "lamb must be a finite number, at least 1"),
        (partial(hill, gamma=-1.0), "gamma must be"),
        (partial(hill, margin=float("inf")), "the size of margin must be"),
        (partial(splc, tau=0.0), "tau must be above 0 and at most 1; got 0.0"),
        (partial(splc, gamma=-1.0), "gamma must be"),
    ],
)
def test_options_out_of_range_are_refused(fn, message):
    x, t = batch()
    with pytest.raises(ValueError, match=message):
        fn(x, t)
    with pytest.raises(ValueError, match=message):
        Loss(fn)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            partial(distribution_balanced, counts=[1, 2], num_samples=9),
            r"counts must be of shape \(3,\), .* got \(2,\)",
        ),
        (partial(distribution_balanced, counts=[1, 2, -3], num_samples=9), "counts must be finite and at least 0"),
        (partial(distribution_balanced, counts=COUNTS, num_samples=50, lamb=0.0), "lamb must be a finite number above"),
        (partial(distribution_balanced, counts=COUNTS, num_samples=50, beta=-1.0), "beta must be"),
        (partial(focal_cross_entropy, gamma=-1.0), "gamma must be"),
        (partial(focal_cross_entropy, smoothing=2.0), "smoothing must be between"),
        (partial(seesaw, counts=[1, 2]), r"counts must be of shape \(3,\)"),
        (partial(seesaw, counts=COUNTS, p=-1.0), "p must be"),
        (partial(seesaw, counts=COUNTS, floor=2.0), "floor must be between"),
        (partial(two_way, temperature_pos=0.0), "temperature_pos must be"),
        (partial(two_way, temperature_neg=-1.0), "temperature_neg must be"),
        (partial(two_way, dim=2), "dim must be 1, over the labels of each row, or 0"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(fn, message):
    x, t = batch()
    with pytest.raises(ValueError, match=message):
        fn(x, t)


def test_shapes_and_types_are_checked():
    x, t = batch()
    for fn in (*TERMS, squared_error, absolute_error, *functional.PER_SAMPLE):
        with pytest.raises(ValueError, match=r"the shape of the logits, \(7, 3\); got \(7, 2\)"):
            fn(x, t[:, :2])
        with pytest.raises(TypeError, match=r"floating-point torch tensor; got torch\.int64"):
            fn(torch.zeros(7, 3, dtype=torch.int64), t)
        with pytest.raises(TypeError, match="got ndarray"):
            fn(x.numpy(), t)
    with pytest.raises(ValueError, match="classes must be integers"):
        cross_entropy(x, torch.zeros(7))
    with pytest.raises(ValueError, match=r"targets must be classes \(7,\)"):
        cross_entropy(x, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="smoothing must be between"):
        cross_entropy(x, torch.zeros(7, dtype=torch.int64), smoothing=2.0)
