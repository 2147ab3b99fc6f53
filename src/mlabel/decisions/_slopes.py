"""The fits of slopes and offsets: of any-of labels by logistic regression, of exclusive groups over their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mlabel.decisions._newton import Pull, Sums, logistic_sums, minimise, ridge
from mlabel.metrics._blocks import block_size, blocks, known_positives, map_blocks, rows_of
from mlabel.metrics._ranks import _gather_columns
from mlabel.metrics.ranking import Checked

# Parameters of each method: its slopes, and whether there is an offset.
METHOD_SLOPES = {"temperature": 1, "platt": 1, "beta": 2}
HAS_OFFSET = {"temperature": False, "platt": True, "beta": True}
# A pool's fit begins with that of so many of its entries.
_FIRST_ENTRIES = 2**21


@dataclass(frozen=True)
class Evidence:
    """What is known of each label.

    Attributes:
        positives: (L,) known positives.
        known: (L,) known samples.
    """

    positives: np.ndarray
    known: np.ndarray

    @classmethod
    def of(cls, checked: Checked) -> Evidence:
        """Return what is known of the labels of scores, targets and unknown."""
        scores, targets, unknown = checked
        positives = np.bincount(known_positives(targets, unknown).indices, minlength=scores.shape[1])
        missing = 0 if unknown is None else np.bincount(unknown.indices, minlength=scores.shape[1])
        return cls(positives, np.full(scores.shape[1], scores.shape[0]) - missing)

    @property
    def amount(self) -> np.ndarray:
        """(L,) positives or negatives, whichever are fewer."""
        return np.minimum(self.positives, self.known - self.positives)


@dataclass(frozen=True)
class Block:
    """Some labels as rows: features (w, n) each, what is known of them, and sums of the features of positives."""

    features: list[np.ndarray]
    known: np.ndarray | None
    sums: np.ndarray

    def loss(self, theta: np.ndarray, rows: np.ndarray) -> Sums:
        """Return the log loss of the labels `rows` under `theta`, one line each, with its derivatives."""
        everything = len(rows) == len(self.sums)
        features = self.features if everything else [each[rows] for each in self.features]
        known = self.known if self.known is None or everything else self.known[rows]
        loss, gradient, curvature = logistic_sums(features, theta, known)
        return loss - (theta * self.sums[rows]).sum(axis=1), gradient - self.sums[rows], curvature


class AnyOfData:
    """Logits and targets of any-of labels, given out in blocks of columns as a method's features."""

    def __init__(self, checked: Checked, method: str) -> None:
        self.scores, targets, unknown = checked
        self.positives = sp.csr_array(known_positives(targets, unknown).T)
        self.unknown = None if unknown is None else sp.csr_array(unknown.T)
        self.method = method
        self.num_parameters = METHOD_SLOPES[method] + HAS_OFFSET[method]

    def block(self, start: int, stop: int) -> Block:
        """Return the labels start to stop."""
        x = _gather_columns(self.scores, start, stop).astype(np.float64)
        features = [x]
        if self.method == "beta":
            near = np.log1p(np.exp(-np.abs(x)))
            features = [np.minimum(x, 0) - near, np.maximum(x, 0) + near]  # log p and -log(1 - p)
        known = None
        if self.unknown is not None and self.unknown.indptr[stop] > self.unknown.indptr[start]:
            known = np.ones(x.shape, dtype=bool)
            known[rows_of(self.unknown, start, stop)] = False
        rows, columns = rows_of(self.positives, start, stop)
        sums = [np.bincount(rows, weights=each[rows, columns], minlength=len(x)) for each in features]
        if HAS_OFFSET[self.method]:
            sums.append(np.bincount(rows, minlength=len(x)).astype(np.float64))
        return Block(features, known, np.stack(sums, axis=1))

    def bounds(self, pools: Sequence[slice]) -> list[tuple[int, int]]:
        """Return the (start, stop) of blocks of columns, none of two pools."""
        size = block_size(len(self.scores) * 8 * 8, most=16)
        return [(pool.start + a, pool.start + b) for pool in pools for a, b in blocks(pool.stop - pool.start, size)]

    def part(self, every: int) -> AnyOfData:
        """Return the same of every n-th sample."""
        part = object.__new__(AnyOfData)
        part.scores, part.method, part.num_parameters = self.scores[::every], self.method, self.num_parameters
        part.positives = sp.csr_array(sp.csc_array(self.positives)[:, ::every])
        part.unknown = None if self.unknown is None else sp.csr_array(sp.csc_array(self.unknown)[:, ::every])
        return part


@dataclass(frozen=True)
class Pools:
    """The maps of pools of labels.

    Attributes:
        theta: (G, P) parameters.
        information: (G, P, P) the curvature of the pool's loss there, for one positive or negative of evidence; 0 where
            nothing could be fitted.
        fitted: (G,) bool.
    """

    theta: np.ndarray
    information: np.ndarray
    fitted: np.ndarray


def fit_pools(data: AnyOfData, pools: Sequence[Sequence[slice]], evidence: Evidence) -> Pools:
    """Return the map of each pool, a list of runs of columns; the identity where it has no positive or no negative."""
    identity = _identity(len(pools), data.method)
    amount, samples, fitted = np.zeros(len(pools)), np.zeros(len(pools)), np.zeros(len(pools), dtype=bool)
    pool_of = np.full(data.scores.shape[1], -1)
    for number, runs in enumerate(pools):
        columns = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        pool_of[columns] = number
        amount[number] = max(1, evidence.amount[columns].sum())
        samples[number] = evidence.known[columns].sum()
        fitted[number] = 0 < evidence.positives[columns].sum() < samples[number]
    theta, curvature = identity, np.zeros((*identity.shape, identity.shape[1]))
    chosen = np.flatnonzero(fitted)
    if len(chosen):
        runs = [run for number in chosen.tolist() for run in pools[number]]
        numbers = np.full(len(pools), -1)
        numbers[chosen] = np.arange(len(chosen))
        pull = Pull.weak(identity[chosen], samples[chosen])
        theta[chosen], curvature[chosen] = _fit_chosen(data, runs, numbers[pool_of], pull)
    return Pools(theta, curvature / amount[:, None, None], fitted)


def _fit_chosen(
    data: AnyOfData, runs: Sequence[slice], pool_of: np.ndarray, pull: Pull
) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters (G, P) of pools that can be fitted, and the curvature of their losses there."""
    slopes, start = METHOD_SLOPES[data.method], pull.centre

    def evaluate(part: AnyOfData, theta: np.ndarray, rows: np.ndarray) -> Sums:
        full = start.copy()
        full[rows] = theta
        sums = tuple(np.zeros(shape) for shape in (len(start), start.shape, (*start.shape, start.shape[1])))

        def of_block(first: int, last: int) -> tuple[np.ndarray, Sums]:
            pools = pool_of[first:last]
            block = part.block(first, last)
            return pools, block.loss(full[pools], np.arange(last - first))

        for pools, found in map_blocks(of_block, part.bounds(runs)):
            for total, value in zip(sums, found, strict=True):
                np.add.at(total, pools, value)
        return sums[0][rows], sums[1][rows], sums[2][rows]

    every = -(-data.scores.size // _FIRST_ENTRIES)
    first = start
    if every > 1:
        few = data.part(every)
        first = minimise(lambda theta, rows: evaluate(few, theta, rows), pull, slopes)
    theta = minimise(lambda theta, rows: evaluate(data, theta, rows), pull, slopes, first)
    return theta, evaluate(data, theta, np.arange(len(theta)))[2]


def fit_labels(
    data: AnyOfData, runs: Sequence[slice], pool_of: np.ndarray, pools: Pools, *, evidence: Evidence, shrinkage: float
) -> np.ndarray:
    """Return parameters (L, P): those of each label, drawn to its pool's as if by `shrinkage` samples of evidence.

    Without `shrinkage`, a label that lacks positives or negatives has its pool's.
    """
    result, identity = pools.theta[pool_of], _identity(len(pool_of), data.method)

    def of_block(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        columns = np.arange(start, stop)
        pool = pool_of[start:stop]
        chosen = np.flatnonzero(evidence.amount[columns] > 0 if shrinkage == 0 else pools.fitted[pool])
        if not len(chosen):
            return columns[:0], result[:0]
        pool = pool[chosen]
        weak = ridge(evidence.known[columns[chosen]], data.num_parameters)
        # Alone, a label must not know of the others, not even where only the ridge speaks.
        centre = pools.theta[pool] if shrinkage else identity[columns[chosen]]
        pull = Pull(centre, shrinkage * pools.information[pool] + weak)
        block = data.block(start, stop)

        def loss(theta: np.ndarray, rows: np.ndarray) -> Sums:
            return block.loss(theta, chosen[rows])

        return columns[chosen], minimise(loss, pull, METHOD_SLOPES[data.method], pools.theta[pool])

    for columns, theta in map_blocks(of_block, data.bounds(runs)):
        result[columns] = theta
    return result


def as_slopes(theta: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return low slope, high slope and offset of parameters (S, P)."""
    slopes = METHOD_SLOPES[method]
    offset = theta[:, -1] if HAS_OFFSET[method] else np.zeros(len(theta))
    return theta[:, 0], theta[:, slopes - 1], offset


def _identity(number: int, method: str) -> np.ndarray:
    return np.tile([1.0] * METHOD_SLOPES[method] + [0.0] * HAS_OFFSET[method], (number, 1))


def fit_classes(x: np.ndarray, classes: np.ndarray, method: str, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes (K,) and offsets (K,) for logits (n, K) of an exclusive group.

    `temperature`: one slope. `vector`: one slope and one offset a class (Guo et al., 2017), each class drawn to the
    temperature as if by `shrinkage` images of it.
    """
    num_classes = x.shape[1]
    if not len(x):
        return np.ones(num_classes), np.zeros(num_classes)
    x = x.astype(np.float64)
    samples = np.array([len(x)])
    slope = minimise(lambda theta, _: _temperature_sums(x, classes, theta), Pull.weak(np.ones((1, 1)), samples), 1)
    centre = np.concatenate([np.full((1, num_classes), slope[0, 0]), np.zeros((1, num_classes))], axis=1)
    if method == "temperature":
        return centre[0, :num_classes], centre[0, num_classes:]
    curvature = _vector_sums(x, classes, centre)[2]
    expected = np.maximum(_softmax(slope[0, 0] * x).sum(axis=0), 1e-3)
    # Of the curvature only what a class's own two parameters share, divided by the images that it comes from.
    own = np.tile(np.eye(num_classes), (2, 2)) / np.tile(expected, 2)
    pull = Pull(centre, shrinkage * curvature * own + ridge(samples, 2 * num_classes))
    theta = minimise(lambda theta, _: _vector_sums(x, classes, theta), pull, num_classes)
    return theta[0, :num_classes], theta[0, num_classes:]


def _softmax(z: np.ndarray) -> np.ndarray:
    share = np.exp(z - z.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


def _log_share(z: np.ndarray, classes: np.ndarray) -> float:
    top = z.max(axis=1)
    return float((z[np.arange(len(z)), classes] - top - np.log(np.exp(z - top[:, None]).sum(axis=1))).sum())


def _temperature_sums(x: np.ndarray, classes: np.ndarray, theta: np.ndarray) -> Sums:
    z = theta[0, 0] * x
    share = _softmax(z)
    mean = (share * x).sum(axis=1)
    gradient = mean.sum() - x[np.arange(len(x)), classes].sum()
    curvature = (share * (x - mean[:, None]) ** 2).sum()
    return np.array([-_log_share(z, classes)]), np.array([[gradient]]), np.array([[[curvature]]])


def _vector_sums(x: np.ndarray, classes: np.ndarray, theta: np.ndarray) -> Sums:
    num_classes = x.shape[1]
    z = x * theta[0, :num_classes] + theta[0, num_classes:]
    share = _softmax(z)
    gap = share.copy()
    gap[np.arange(len(x)), classes] -= 1
    gradient = np.concatenate([(gap * x).sum(axis=0), gap.sum(axis=0)])
    both = np.concatenate([share * x, share], axis=1)
    curvature = -both.T @ both
    parts = {(0, 0): share * x * x, (0, 1): share * x, (1, 0): share * x, (1, 1): share}
    for (row, column), values in parts.items():
        place = np.arange(num_classes)
        curvature[row * num_classes + place, column * num_classes + place] += values.sum(axis=0)
    return np.array([-_log_share(z, classes)]), gradient[None], curvature[None]
