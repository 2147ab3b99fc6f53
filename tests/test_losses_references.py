"""Every loss against an implementation that is not ours: torch, torchvision, timm, or the paper's formula in float64.

Where a peer is defined the two agree within 1e-6; where it is not, a test shows that ours is right.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_cases import COUNTS, SAMPLES, batch, slopes
from torch import nn

from mlabel.losses import (
    Loss,
    absolute_error,
    asymmetric,
    binary_cross_entropy,
    cross_entropy,
    distribution_balanced,
    focal,
    focal_cross_entropy,
    hill,
    multilabel_soft_margin,
    poly1,
    seesaw,
    splc,
    squared_error,
    two_way,
    zlpr,
)


def compare(mine, theirs, x, t, *, rtol=1e-6, atol=1e-6):
    """Check that values and slopes agree."""
    for value, wanted in zip(slopes(mine, x, t), slopes(theirs, x, t), strict=True):
        torch.testing.assert_close(value.double(), wanted.double(), rtol=rtol, atol=atol)


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


def moderate(seed=0, dtype=torch.float64):
    """Return logits at which peers that compute 1 - p or clamp lose no digit, and targets."""
    x, t = batch(rows=50, columns=3, seed=seed, dtype=dtype)
    return x.clamp(-8, 8), t.to(dtype)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_agrees_with_torch_on_errors_of_the_probability(reduction):
    x, t = moderate()
    for targets in (t, torch.rand(t.shape, dtype=t.dtype)):
        for mine, theirs in ((squared_error, nn.MSELoss), (absolute_error, nn.L1Loss)):
            reference = theirs(reduction=reduction)
            ours = Loss(mine, reduction=reduction)
            compare(ours, lambda x, t, fn=reference: fn(x.sigmoid(), t), x, targets)


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 1.0, 2.0])
def test_agrees_with_timm_poly1(epsilon):
    from timm.loss import PolyBinaryCrossEntropy

    x, t = moderate(dtype=torch.float32)
    compare(partial(poly1, epsilon=epsilon), PolyBinaryCrossEntropy(epsilon=epsilon, reduction="none"), x, t)


@pytest.mark.parametrize(("lamb", "margin", "gamma"), [(1.5, 1.0, 2.0), (2.0, 0.0, 3.0), (1.5, 0.5, 0.5)])
def test_hill_is_the_papers_formula(lamb, margin, gamma):
    def formula(x, t):
        p, q = 1 / (1 + (-x).exp()), 1 / (1 + (margin - x).exp())
        return torch.where(t == 1, -((1 - q) ** gamma) * q.log(), (lamb - p) * p**2)

    compare(partial(hill, lamb=lamb, margin=margin, gamma=gamma), formula, *moderate())


@pytest.mark.parametrize(("tau", "margin", "gamma"), [(0.6, 1.0, 2.0), (0.9, 0.0, 3.0), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_splc_is_the_papers_formula(tau, margin, gamma, epoch):
    def formula(x, t):
        # The order of the authors' code: shift positives, correct targets, then the focal loss.
        x = torch.where(t == 1, x - margin, x)
        p = 1 / (1 + (-x).exp())
        t = torch.where(p > tau, torch.ones_like(t), t) if epoch >= 1 else t
        return -(t * (1 - p) ** gamma * p.log() + (1 - t) * p**gamma * (1 - p).log())

    compare(partial(splc, tau=tau, margin=margin, gamma=gamma, epoch=epoch), formula, *moderate())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize(("lamb", "kappa", "beta"), [(2.0, 0.05, 10.0), (5.0, 1.0, 3.0)])
def test_agrees_with_timm_distribution_balanced(gamma, lamb, kappa, beta):
    from timm.loss import DistributionBalancedLoss

    theirs = DistributionBalancedLoss(
        COUNTS,
        SAMPLES,
        map_beta=beta,
        neg_scale=lamb,
        init_bias=kappa,
        focal_gamma=gamma,
        focal_balance=1.0,
        reduction="none",
    )
    ours = partial(
        distribution_balanced, counts=COUNTS, num_samples=SAMPLES, beta=beta, lamb=lamb, kappa=kappa, gamma=gamma
    )
    x, t = moderate(dtype=torch.float32)
    x = x.clamp(-3, 3)  # theirs rounds lambda times the logit to float32
    assert (t.sum(dim=1) == 0).any()
    for targets in (t, torch.rand(t.shape)):
        compare(ours, theirs, x, targets)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_agrees_with_timm_single_label_asymmetric(gamma):
    from timm.loss import AsymmetricLossSingleLabel

    x, _ = moderate(dtype=torch.float32)
    classes = torch.arange(50) % 3
    theirs = AsymmetricLossSingleLabel(gamma_pos=gamma, gamma_neg=0, eps=0.0)
    compare(lambda x, t: focal_cross_entropy(x, t, gamma=gamma).mean(), theirs, x, classes)


@pytest.mark.parametrize(("p", "q", "floor"), [(0.8, 2.0, 0.01), (0.5, 0.0, 0.01), (0.8, 1.0, 0.3), (0.0, 2.0, 0.0)])
def test_seesaw_is_the_papers_formula(p, q, floor):
    def formula(x, classes):
        losses = []
        share = x.detach().softmax(dim=1)
        for row, i in enumerate(classes.tolist()):
            total = x[row, i].exp()
            for j in range(x.shape[1]):
                if j != i:
                    mitigation = min(1.0, (COUNTS[j] / COUNTS[i]) ** p)
                    compensation = max(1.0, (share[row, j] / max(share[row, i], floor)) ** q)
                    total = total + mitigation * compensation * x[row, j].exp()
            losses.append(-(x[row, i].exp() / total).log())
        return torch.stack(losses)

    x, _ = moderate()
    compare(partial(seesaw, counts=COUNTS, p=p, q=q, floor=floor), formula, x, torch.arange(50) % 3)


@pytest.mark.parametrize("temperatures", [(4.0, 1.0), (1.0, 1.0), (2.0, 3.0)])
def test_agrees_with_timm_two_way(temperatures):
    from timm.loss import TwoWayLoss

    hot, cold = temperatures
    x, t = moderate(dtype=torch.float32)
    assert (t.sum(dim=1) == 0).any()
    compare(Loss(partial(two_way, temperature_pos=hot, temperature_neg=cold)), TwoWayLoss(tp=hot, tn=cold), x, t)
    none = torch.zeros_like(t)
    compare(Loss(two_way), TwoWayLoss(), x, none)


def test_agrees_with_timm_zlpr():
    from timm.loss import ZlprLoss

    x, t = moderate(dtype=torch.float32)
    compare(Loss(zlpr), ZlprLoss(), x, t)


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_agrees_with_torch_soft_margin(weight, reduction):
    theirs = nn.MultiLabelSoftMarginLoss(weight=None if weight is None else torch.tensor(weight), reduction=reduction)
    x, t = moderate()
    for targets in (t, torch.rand(t.shape, dtype=t.dtype)):
        compare(Loss(multilabel_soft_margin, weight=weight, reduction=reduction), theirs, x, targets)


def test_two_way_is_right_where_timms_mask_is_in_reach_of_the_logits():
    """Timm hides what does not count at -10,000, above which no logit of half precision need be."""
    from timm.loss import TwoWayLoss

    x, t = torch.tensor([[-3e4, -2e4, -6e4]]), torch.tensor([[1.0, 0.0, 0.0]])
    options = {"temperature_pos": 1.0, "temperature_neg": 1.0, "dim": 1}
    assert two_way(x, t, **options).item() == two_way(x.double(), t, **options).item() == 1e4
    assert slopes(lambda x, t: two_way(x, t, **options), x, t)[1].tolist() == [[-1.0, 1.0, 0.0]]
    # There the hardest negative is the mask itself, and -20,000 is not pushed down at all.
    assert slopes(TwoWayLoss(tp=1.0, tn=1.0), x, t)[1][0, 1].item() == 0.0


@pytest.mark.parametrize("logit", [120.0, 1e3, 6e4])
def test_every_loss_of_ours_still_learns_where_timms_asymmetric_does_not(logit):
    """With the formula that is the cross-entropy: 1 where a negative is at +x, -1 where a positive is at -x."""
    from timm.loss import AsymmetricLossMultiLabel

    options = {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}
    x, t = torch.tensor([[logit, -logit]]), torch.tensor([[0.0, 1.0]])
    assert (slopes(AsymmetricLossMultiLabel(**options), x, t)[1] == 0).all()
    for fn in (partial(asymmetric, **options), partial(poly1, epsilon=2.0), partial(focal, gamma=2.0)):
        assert slopes(fn, x, t)[1].tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("logit", [17.0, 20.0, 30.0, 100.0])
def test_timms_clamp_bounds_a_loss_that_has_no_bound(logit):
    """Sure and wrong: timm's loss stops at -log 1e-8 = 18.4; the formula's, in float64, goes on, and so does ours."""
    from timm.loss import AsymmetricLossMultiLabel

    options = {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.0}
    x, t = torch.tensor([[logit, -logit]]), torch.tensor([[0.0, 1.0]])
    exact = (1 - np.exp(-logit)) ** np.array([2.0, 1.0]) * np.log1p(np.exp(logit))
    np.testing.assert_allclose(asymmetric(x, t, **options).numpy()[0], exact, rtol=1e-6)
    theirs = AsymmetricLossMultiLabel(**options, reduction="none")(x, t).numpy()[0]
    assert (theirs <= 18.5).all()
    assert (abs(theirs / exact - 1) > 1e-3).any()
