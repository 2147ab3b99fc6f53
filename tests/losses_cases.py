"""Every loss with options that reach each of its branches: a new loss enters here once and inherits all tests."""

from __future__ import annotations

from functools import partial

import torch

from mlabel.losses import (
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

# Of three columns.
COUNTS, SAMPLES = (40, 9, 1), 50

ELEMENTWISE = [
    binary_cross_entropy,
    *(partial(focal, gamma=gamma, alpha=alpha) for gamma in (0.0, 0.5, 2.0, 2.7) for alpha in (None, 0.25)),
    partial(focal, gamma=1.0, alpha=[0.1, 0.5, 0.9]),
    *(
        partial(asymmetric, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        for gamma_neg, gamma_pos in ((0.0, 0.0), (0.5, 0.3), (1.0, 0.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0), (5.5, 2.0))
        for clip in (0.0, 0.05, 0.001)
    ),
    *(partial(poly1, epsilon=epsilon) for epsilon in (-1.0, 0.0, 2.0)),
    *(partial(hill, lamb=lamb, gamma=gamma) for lamb in (1.5, 2.0) for gamma in (0.5, 2.0)),
    partial(hill, margin=0.0, gamma=0.0),
    *(partial(splc, tau=tau, epoch=epoch) for tau in (0.6, 1.0) for epoch in (0, 1, None)),
    partial(splc, margin=-0.5, gamma=0.5),
    squared_error,
    absolute_error,
    *(
        partial(distribution_balanced, counts=COUNTS, num_samples=SAMPLES, gamma=gamma, lamb=lamb)
        for gamma, lamb in ((0.0, 2.0), (0.5, 1.0), (2.0, 5.0))
    ),
    partial(distribution_balanced, counts=[0, 50, 3], num_samples=[50, 50, 3], kappa=1.0, alpha=0.0, beta=0.0),
]

PER_SAMPLE = [
    two_way,
    *(
        partial(two_way, temperature_pos=hot, temperature_neg=cold, dim=dim)
        for hot, cold, dim in ((4, 1, 1), (0.5, 3, 0))
    ),
    zlpr,
    multilabel_soft_margin,
]
ANY_OF = ELEMENTWISE + PER_SAMPLE

# Of three classes.
OVER_CLASSES = [
    *(partial(cross_entropy, smoothing=smoothing) for smoothing in (0.0, 0.1)),
    *(
        partial(focal_cross_entropy, gamma=gamma, smoothing=smoothing)
        for gamma in (0.0, 0.5, 2.0)
        for smoothing in (0.0, 0.1)
    ),
    *(
        partial(seesaw, counts=COUNTS, p=p, q=q, floor=floor)
        for p, q, floor in ((0.8, 2.0, 0.01), (0.8, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.01))
    ),
]


def function_of(fn):
    return fn.func if isinstance(fn, partial) else fn


def name_of(fn):
    return f"{fn.func.__name__}-{fn.keywords}" if isinstance(fn, partial) else fn.__name__


def option(fn, name, default=None):
    return fn.keywords.get(name, default) if isinstance(fn, partial) else default


def for_columns(fn, columns):
    """Return the function for these of its three columns: what it is told of each label is taken along."""
    if not isinstance(fn, partial):
        return fn
    taken = {}
    for name, value in fn.keywords.items():
        per_label = isinstance(value, (list, tuple))
        taken[name] = [value[column] for column in columns] if per_label else value
    return partial(fn.func, **taken)


def slopes(fn, logits, targets):
    """Return the loss of each entry or row and the derivative of their sum by the logits, by autograd."""
    x = logits.clone().requires_grad_()
    values = fn(x, targets)
    (slope,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slope


def batch(rows=7, columns=3, seed=0, density=0.3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    targets = torch.rand(rows, columns, generator=generator) < density
    return logits.to(dtype), targets.to(torch.uint8)
