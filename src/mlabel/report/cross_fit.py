"""Scores of images by heads that were not trained on them, cheaply: linear ones on features that are held fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional as F

from mlabel._checks import as_csr, as_scores, as_unknown, check_positive, to_numpy
from mlabel.data import stratified_split
from mlabel.decisions.cross_fitting import check_folds
from mlabel.labels import LabelSpace
from mlabel.metrics._blocks import known_positives

L2 = 0.03
_MOST_STEPS = 100
_BLOCK_LABELS = 256  # labels that are fitted together


def cross_fit_scores(
    features: Any,
    targets: Any,
    *,
    mask: Any = None,
    space: LabelSpace | None = None,
    folds: Any = 5,
    l2: float = L2,
    seed: int = 0,
) -> np.ndarray:
    """Return probabilities (N, L) float32, each sample's by linear heads that were fitted without it.

    For each fold a logistic regression of every any-of label, and a multinomial one of every exclusive group, is
    fitted on the other folds: the mean loss plus l2 / 2 times the squared weights, on features of mean 0 and variance
    1, minimised to the end by L-BFGS, so that nothing is random but the folds. A head is out of sample; features of
    a backbone that was trained on these very targets are not, and the longer it was, the more of their errors it has
    learned. Features of a backbone that never saw them, such as one with ImageNet weights, have no such fault.

    Args:
        features: (N, D), such as `Tagger.features` gives.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). Unknown entries are not fitted to,
            and get scores as all others.
        space: What the columns mean. None: every column is an any-of label.
        folds: How many, stratified by the labels; or the fold of each sample, integers (N,) from 0.
        l2: The strength of the pull of the weights to 0.
        seed: Of the folds.

    Raises:
        ValueError: shapes that differ, features that are not finite, fewer than two folds, or an empty one.

    Example:
        >>> features = np.array([[-2.0], [-1.0], [1.0], [2.0]] * 5)
        >>> scores = cross_fit_scores(features, features > 0, folds=2)
        >>> bool(((scores > 0.5) == (features > 0)).all())
        True
    """
    check_positive(l2, "l2")
    inputs = as_scores(features, "features").astype(np.float32, copy=False)
    given = as_csr(targets)
    if given.shape[0] != len(inputs):
        raise ValueError(f"features are of {len(inputs)} samples, and targets of {given.shape[0]}")
    if space is not None and space.num_labels != given.shape[1]:
        raise ValueError(f"targets have {given.shape[1]} columns, but the space has {space.num_labels} labels")
    unknown = as_unknown(mask, given.shape)
    given = known_positives(given, unknown)
    of_rows = _deal(folds, given, unknown, seed)
    scores = np.empty(given.shape, dtype=np.float32)
    for fold in np.unique(of_rows):
        seen, held_out = np.flatnonzero(of_rows != fold), np.flatnonzero(of_rows == fold)
        inside, outside = _standardised(inputs[seen], inputs[held_out])
        hidden = None if unknown is None else unknown[seen].tocsc()
        own = given[seen].tocsc()
        for span, exclusive in _blocks(space, given.shape[1]):
            known = np.ones((len(seen), span.stop - span.start), dtype=bool)
            if hidden is not None:
                known &= ~hidden[:, span].toarray()
            wanted = torch.from_numpy(own[:, span].toarray().astype(np.float32))
            head = _fit(inside, wanted, torch.from_numpy(known), exclusive=exclusive, l2=l2)
            logits = outside @ head[:-1] + head[-1]
            scores[held_out, span] = (logits.softmax(dim=1) if exclusive else logits.sigmoid()).numpy()
    return scores


def _deal(folds: Any, targets: sp.csr_array, unknown: sp.csr_array | None, seed: int) -> np.ndarray:
    """Return the fold of each sample (N,)."""
    if np.ndim(to_numpy(folds)) == 0 and 2 <= int(folds) <= targets.shape[0]:
        count = int(folds)
        return stratified_split(targets, (1 / count,) * count, seed=seed, unknown=unknown)
    return check_folds(folds, targets.shape[0], seed)


def _blocks(space: LabelSpace | None, num_labels: int) -> Iterator[tuple[slice, bool]]:
    """Yield columns that are fitted together, and whether they exclude each other."""
    spans = [(slice(0, num_labels), False)]
    if space is not None:
        spans = [(space.slices[group.name], group.exclusive) for group in space.groups]
    for span, exclusive in spans:
        step = span.stop - span.start if exclusive else _BLOCK_LABELS
        for start in range(span.start, span.stop, step):
            yield slice(start, min(start + step, span.stop)), exclusive


def _standardised(inside: np.ndarray, outside: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with the mean and variance of the first taken out; a feature without variance becomes 0."""
    mean, deviation = inside.mean(axis=0), inside.std(axis=0)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6)
    first, second = ((each - mean) * factor for each in (inside, outside))
    return torch.from_numpy(first), torch.from_numpy(second)


def _fit(
    features: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, *, exclusive: bool, l2: float
) -> torch.Tensor:
    """Return weights and, in the last row, biases (D + 1, l) of a linear head; targets and known are (n, l)."""
    counts, numbers = targets.sum(dim=0), known.sum(dim=0)
    shares = (counts + 0.5) / (numbers + 1)
    head = torch.zeros(features.shape[1] + 1, targets.shape[1])
    # From the labels' own shares on, which is also where a label that nobody has stays.
    head[-1] = shares.log() if exclusive else shares.logit()
    head.requires_grad_()
    weight = known.float() / max(len(features), 1)
    rows = known.all(dim=1)

    def measure() -> torch.Tensor:
        logits = features @ head[:-1] + head[-1]
        if exclusive:
            loss = -(targets * logits.log_softmax(dim=1))[rows].sum() / max(len(features), 1)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="sum")
        # A trace of a pull on the biases as well: those of labels that all or none have would run away.
        return loss + l2 / 2 * head[:-1].square().sum() + 1e-6 * (head[-1] - start).square().sum()

    start = head[-1].detach().clone()
    optimizer = torch.optim.LBFGS([head], max_iter=_MOST_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = measure()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(step)
    return head.detach()
