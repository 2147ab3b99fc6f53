"""The distribution-balanced loss: elementwise, with weights that follow from the other labels of the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlabel.losses._formulas import check_at_least, check_gamma, down_weighted, label_counts, same_shape


def distribution_balanced(
    logits: Tensor,
    targets: Tensor,
    *,
    counts: Any,
    num_samples: Any,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    lamb: float = 2.0,
    kappa: float = 0.05,
    gamma: float = 0.0,
) -> Tensor:
    """Return the distribution-balanced loss of each entry, for labels of which some are far rarer than others.

    With n positives of a label among N samples, and z = x + (kappa / lambda) log(n / (N - n)), it is

        w (t log(1 + e^-z) + (1 - t) / lambda log(1 + e^(lambda z))).

    The logit of a negative is scaled and that of a rare label lowered, so that its many negatives soon push no more
    (negative-tolerant regularisation). The weight is w = alpha + sigmoid(beta (r - mu)): r = (1 / n) / (sum over the
    labels j of the sample of t_j / n_j) is the share of this label in how often the sample would be drawn, were every
    label drawn as often as any other. A sample is so not counted again for each frequent label that comes with a rare
    one. Where a sample has no label, r is infinite.

    gamma above 0 turns right answers down, as `focal` does: positives by sigmoid(-z)^gamma, negatives by
    sigmoid(lambda z)^gamma.

    Args:
        logits: Real numbers (N, L).
        targets: Values in [0, 1], (N, L); 0 where unknown.
        counts: Positives (L,) of the training part, as `mlabel.weights.count_labels` gives them.
        num_samples: Known samples of the training part: one number, or (L,).
        alpha: The smallest weight.
        beta: How steeply weights rise.
        mu: The share r of which the weight is in the middle.
        lamb: The paper's lambda, above 0, by which the logits of negatives are scaled.
        kappa: How much logits are shifted by the label's frequency; 0: not.
        gamma: How much right answers are turned down; at least 0.

    Returns:
        Losses (N, L), float32 (float64 for float64 logits).

    Raises:
        ValueError: counts of another number of labels, or an option out of its range.

    Example:
        >>> x, t = torch.zeros(1, 2), torch.tensor([[1, 1]])
        >>> distribution_balanced(x, t, counts=[500, 5], num_samples=1000)
        tensor([[0.1594, 0.8374]])

    Reference: Wu, Huang, Liu, Wang and Lin, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets", ECCV 2020.
    """
    x, t = same_shape(logits, targets)
    _check_options(alpha, beta, mu, lamb, kappa, gamma)
    count, known = _clean_counts(counts, num_samples, x)
    z = x + (kappa / lamb) * (torch.log(count) - torch.log(known - count))
    positive, negative = down_weighted(z, gamma), down_weighted(-lamb * z, gamma) / lamb
    return _weights(t, count, alpha=alpha, beta=beta, mu=mu) * (t * positive + (1.0 - t) * negative)


def _weights(t: Tensor, count: Tensor, *, alpha: float, beta: float, mu: float) -> Tensor:
    """Return alpha + sigmoid(beta (r - mu)) of each entry (N, L)."""
    rate = count.reciprocal()
    of_sample = (t * rate).sum(dim=1, keepdim=True)
    share = torch.where(of_sample > 0, rate / of_sample, 1e9).clamp_max(1e9)
    return alpha + torch.sigmoid(beta * (share - mu))


def _clean_counts(counts: Any, num_samples: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return counts and known samples (L,): a label that never or always holds is taken to do so but for once."""
    known = torch.as_tensor(num_samples).to(like).expand(like.shape[1]).clamp_min(2.0)
    return torch.minimum(label_counts(counts, like).clamp_min(1.0), known - 1.0), known


def _check_options(alpha: float, beta: float, mu: float, lamb: float, kappa: float, gamma: float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta), ("kappa", kappa)):
        check_at_least(value, 0.0, name)
    check_at_least(abs(mu), 0.0, "the size of mu")
    check_gamma(gamma)
    if not 0.0 < lamb < float("inf"):
        raise ValueError(f"lamb must be a finite number above 0; got {lamb!r}")
