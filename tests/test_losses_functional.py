"""Loss formulas: identities, gradients, the plain formula against the fused sum, and library implementations."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mlabel.losses import Loss, asymmetric, binary_cross_entropy, cross_entropy, focal
from mlabel.losses.functional import TERMS
from mlabel.losses.fused import FEW, KERNELS

# Every elementwise function with options that reach each of its branches. A new function enters here once.
ELEMENTWISE = [
    binary_cross_entropy,
    *(partial(focal, gamma=gamma, alpha=alpha) for gamma in (0.0, 0.5, 2.0, 2.7) for alpha in (None, 0.25)),
    partial(focal, gamma=1.0, alpha=[0.1, 0.5, 0.9]),
    *(
        partial(asymmetric, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        for gamma_neg, gamma_pos in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (5.5, 2.0))
        for clip in (0.0, 0.05, 0.001)
    ),
]
LOGITS = [0.0, 1e-3, 0.1, 1.0, 2.94, 2.95, 5.0, 17.0, 20.0, 40.0, 88.0, 104.0, 120.0, 1e3, 6e4]
GRID = sorted({sign * x for x in LOGITS for sign in (-1.0, 1.0)})


def name_of(fn):
    return f"{fn.func.__name__}-{fn.keywords}" if isinstance(fn, partial) else fn.__name__


every = pytest.mark.parametrize("fn", ELEMENTWISE, ids=name_of)


def without_alpha(fn):
    """Return the function without per-label factors, which need three columns."""
    if isinstance(fn, partial) and isinstance(fn.keywords.get("alpha"), list):
        return partial(fn.func, gamma=fn.keywords["gamma"])
    return fn


def slopes(fn, logits, targets):
    """Return the loss of each entry and its derivative by its logit, by autograd."""
    x = logits.clone().requires_grad_()
    values = fn(x, targets)
    (slope,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slope


def fused(fn, logits, targets, mask=None):
    """Return the sum and the gradient of `Loss`."""
    x = logits.clone().requires_grad_()
    value = Loss(fn, reduction="sum")(x, targets, mask)
    (slope,) = torch.autograd.grad(value, x)
    return value.detach(), slope


def batch(rows=7, columns=3, seed=0, density=0.3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    targets = torch.rand(rows, columns, generator=generator) < density
    return logits.to(dtype), targets.to(torch.uint8)


def test_every_function_has_terms_and_a_kernel():
    tested = {fn.func if isinstance(fn, partial) else fn for fn in ELEMENTWISE}
    assert tested == set(TERMS) == set(KERNELS)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("route", [slopes, fused])
def test_finite_and_of_the_right_sign_at_any_logit(fn, dtype, target, route):
    fn = without_alpha(fn)
    x = torch.tensor(GRID, dtype=torch.float64)[None].to(dtype)
    values, slope = route(fn, x, torch.full(x.shape, target))
    assert torch.isfinite(values).all()
    assert (values >= 0).all()
    assert torch.isfinite(slope).all()
    if target != 0.5:
        assert ((slope >= 0) if target == 0.0 else (slope <= 0)).all()
    assert slope.dtype == dtype
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_slopes_equal_those_of_float64(fn, target, dtype):
    fn = without_alpha(fn)
    x = torch.tensor(GRID, dtype=torch.float64)[None].to(dtype)
    targets = torch.full(x.shape, target)
    exact_values, exact = slopes(fn, x.double(), targets)
    # A half's gradient is a half: half a unit in its last place. Float32 values lose 4e-6 at most, near logits of 16.
    tolerance = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}[dtype]
    for route in (slopes, fused):
        torch.testing.assert_close(route(fn, x, targets)[1].double(), exact, rtol=4e-6 + tolerance, atol=4e-6)
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
    monkeypatch.setattr("mlabel.losses.fused.CPU_BLOCK", 6)  # two rows a block
    x, few = batch(rows=9, density=0.05, dtype=torch.float64)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    assert 0 < few.sum() <= few.numel() / FEW
    for targets in (few, few.float(), 0.7 * few, batch(rows=9, density=0.6)[1], sp.csr_array(few.numpy())):
        dense = torch.as_tensor(targets.toarray() if sp.issparse(targets) else targets)
        for mask in (None, known):
            wanted, slope = slopes(lambda x, t, m=mask: fn(x, t) * (1 if m is None else m), x, dense)
            value, gradient = fused(fn, x, targets, mask)
            torch.testing.assert_close(value, wanted.sum(), rtol=1e-12, atol=0)
            torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-15)


@every
def test_soft_targets_blend_both_terms(fn):
    x, _ = batch(dtype=torch.float64)
    t = torch.rand(x.shape, dtype=torch.float64)
    blend = t * fn(x, torch.ones_like(x)) + (1 - t) * fn(x, torch.zeros_like(x))
    torch.testing.assert_close(fn(x, t), blend)


@every
def test_permuting_labels_permutes_losses(fn):
    fn = without_alpha(fn)
    x, t = batch(columns=6)
    order = torch.randperm(6)
    assert torch.equal(fn(x, t)[:, order], fn(x[:, order], t[:, order]))


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


def test_agrees_with_torch_binary_cross_entropy():
    x, t = batch(rows=50, columns=20)
    reference = partial(F.binary_cross_entropy_with_logits, reduction="none")
    for mine, wanted in zip(slopes(binary_cross_entropy, x, t), slopes(reference, x, t.float()), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_agrees_with_torchvision_focal(gamma):
    from torchvision.ops import sigmoid_focal_loss

    x, t = batch(rows=50, columns=20)
    x = x.clamp(-10, 10).double()
    for alpha, theirs in ((0.25, 0.25), (None, -1)):
        reference = partial(sigmoid_focal_loss, gamma=gamma, alpha=theirs, reduction="none")
        mine = slopes(partial(focal, gamma=gamma, alpha=alpha), x, t)
        for value, wanted in zip(mine, slopes(reference, x, t.double()), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("gammas", [(4.0, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_agrees_with_timm_asymmetric(gammas, clip):
    from timm.loss import AsymmetricLossMultiLabel

    x, t = batch(rows=50, columns=20)
    x = x.clamp(-4, 4).double()  # timm computes 1 - p in float32, which loses digits further out
    theirs = AsymmetricLossMultiLabel(gamma_neg=gammas[0], gamma_pos=gammas[1], clip=clip)
    ours = Loss(partial(asymmetric, gamma_neg=gammas[0], gamma_pos=gammas[1], clip=clip), reduction="batchmean")
    x.requires_grad_()
    mine, wanted = ours(x, t), theirs(x, t.double())
    torch.testing.assert_close(mine, wanted.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(mine, x)[0], torch.autograd.grad(wanted, x)[0], rtol=1e-5, atol=1e-6)


def test_right_where_peers_are_not():
    from timm.loss import AsymmetricLossMultiLabel
    from torchvision.ops import sigmoid_focal_loss

    x, one, zero = torch.tensor([[-30.0]]), torch.ones(1, 1), torch.zeros(1, 1)
    # A positive whose probability timm clamps: no gradient there, full gradient here.
    assert abs(slopes(AsymmetricLossMultiLabel(), x, one)[1].item()) < 1e-10
    assert slopes(asymmetric, x, one)[1].item() == pytest.approx(-1.0)
    plain = {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}
    assert slopes(AsymmetricLossMultiLabel(**plain), -4 * x, zero)[1].item() == 0.0
    assert slopes(partial(asymmetric, **plain), -4 * x, zero)[1].item() == 1.0
    # A right answer at a gamma below 1.
    reference = partial(sigmoid_focal_loss, gamma=0.5)
    assert slopes(reference, -x, one)[1].isnan().all()
    assert slopes(partial(focal, gamma=0.5), -x, one)[1].item() == pytest.approx(0.0, abs=1e-5)
    # A small loss: torch subtracts numbers near 9.
    small, exact = torch.tensor([[-9.2416]]), np.log1p(np.exp(-9.2416))
    assert abs(F.binary_cross_entropy_with_logits(small, zero).item() / exact - 1) > 1e-3
    assert binary_cross_entropy(small, zero).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_cross_entropy_agrees_with_torch(smoothing, weight):
    x, _ = batch(rows=50)
    classes = torch.arange(50) % 3
    wanted = F.cross_entropy(x, classes, weight=weight, label_smoothing=smoothing, reduction="none")
    for targets in (classes, classes.int(), F.one_hot(classes, 3).to(torch.uint8)):
        mine = cross_entropy(x, targets, weight=weight, smoothing=smoothing)
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
    soft = torch.rand(50, 3)
    torch.testing.assert_close(cross_entropy(x, soft), F.cross_entropy(x, soft, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_is_finite_at_any_logit(dtype):
    x = torch.tensor([[6e4, -6e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    for classes in ([0, 0], [1, 1], [2, 2]):
        values, slope = slopes(partial(cross_entropy, smoothing=0.1), x, torch.tensor(classes))
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.isfinite(slope).all()
        assert (slope.gather(1, torch.tensor(classes)[:, None]) <= 0.07).all()


def test_cross_entropy_gradcheck():
    x, _ = batch(dtype=torch.float64)
    classes = torch.arange(7) % 3
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, classes, smoothing=0.2), x.requires_grad_())


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
    ],
)
def test_options_out_of_range_are_refused(fn, message):
    x, t = batch()
    with pytest.raises(ValueError, match=message):
        fn(x, t)
    with pytest.raises(ValueError, match=message):
        Loss(fn)


def test_shapes_and_types_are_checked():
    x, t = batch()
    for fn in TERMS:
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
