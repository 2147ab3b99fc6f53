"""Which rows come in an epoch, and in which order: each row once, or rows of rare labels more often.

An order follows from (seed, epoch) alone and has the same length in every epoch. Processes that train together share
the batches of one and the same order, so that nothing is padded and nothing comes twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, check_positive, resolve, to_numpy
from mlabel.data.transforms import sample_key
from mlabel.weights import count_labels

if TYPE_CHECKING:
    from mlabel.data.table import ImageTable

REPEAT_THRESHOLD = 0.01
_log = logging.getLogger(__name__)


class Sampler(Protocol):
    """What a loader asks for the rows of an epoch. An object of your own may take the place of a name.

    Example:
        >>> class EveryOther:
        ...     def __len__(self):
        ...         return 2
        ...     def order(self, epoch):
        ...         return np.array([0, 2]) + epoch % 2
        >>> make_sampler(EveryOther(), table=None).order(epoch=1)
        array([1, 3])
    """

    def __len__(self) -> int:
        """Return how many rows an epoch has, the same number in every epoch."""

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of epoch number `epoch` in their order, integers (M,), the same ones whenever it is asked."""


class SequentialSampler:
    """Each row once, in the table's order.

    Args:
        num_rows: Rows of the table.

    Example:
        >>> SequentialSampler(3).order(epoch=5).tolist()
        [0, 1, 2]
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def order(self, epoch: int) -> np.ndarray:
        """Return 0 .. N - 1, int64, whatever the `epoch`."""
        return np.arange(self.num_rows)


class RepeatSampler:
    """Rows in a random order, each about as often in an epoch as its factor says.

    A row of factor r comes floor(r) times, and once more in a share r - floor(r) of the epochs. Which rows come once
    more is drawn anew in each epoch, systematically: along a random order of the rows, so that always the same number
    of them does. An epoch has floor(sum of the factors) rows; the remainder, less than one row an epoch, is taken from
    the chances of all fractions in proportion. Factors of 1 are a plain shuffle.

    Args:
        factors: How often each row is to come, (N,), at least 0; see `repeat_factors`.
        seed: Of the orders.

    Raises:
        ValueError: factors that are not (N,), negative or not finite.

    Example:
        >>> sampler = RepeatSampler([1.0, 2.5, 1.0, 0.5], seed=0)
        >>> len(sampler), sampler.order(epoch=3).tolist(), sampler.order(epoch=4).tolist()
        (5, [1, 2, 0, 1, 1], [3, 1, 0, 1, 2])
    """

    def __init__(self, factors: Any, *, seed: int = 0) -> None:
        factors = np.asarray(to_numpy(factors), dtype=np.float64)
        if factors.ndim != 1 or not (np.isfinite(factors) & (factors >= 0)).all():
            raise ValueError(f"factors must be finite numbers (N,) of at least 0; got {factors!r}")
        self.seed = seed
        self._whole = np.floor(factors).astype(np.int64)
        self._fractions = factors - self._whole
        # A sum of thirds may end a hair below the whole number that it is.
        self._extra = int(np.floor(self._fractions.sum() + 1e-6))

    def __len__(self) -> int:
        return int(self._whole.sum()) + self._extra

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of epoch number `epoch` in their order, int64 (M,)."""
        rows = np.repeat(np.arange(len(self._whole)), self._counts(epoch))
        # Of N rows that come once each this is the permutation of 0 .. N - 1 itself.
        return rows[_generator(self.seed, epoch, "order").permutation(len(rows))]

    def _counts(self, epoch: int) -> np.ndarray:
        """Return how often each row comes in an epoch."""
        if not self._extra:
            return self._whole
        generator = _generator(self.seed, epoch, "repeats")
        line = generator.permutation(len(self._whole))
        ends = self._fractions[line].cumsum()
        ends *= self._extra / ends[-1]
        # One row is taken at every whole number that its piece of the line passes, the line being shifted at random.
        passed = np.minimum(np.floor(ends + generator.random()), self._extra).astype(np.int64)
        passed[-1] = self._extra
        counts = self._whole.copy()
        counts[line] += np.diff(passed, prepend=0)
        return counts


def repeat_factors(
    targets: Any,
    *,
    threshold: float = REPEAT_THRESHOLD,
    unknown: Any = None,
    scheme: str = "repeat_factor",
    instances: Any = None,
) -> np.ndarray:
    """Return how often each row is to come in an epoch, so that rare labels are seen more often.

    A row comes as often as its rarest label wants: r_i = max over its labels l of max(1, sqrt(threshold / q_l)), and
    once where it has no label. The frequency q_l is

    - `repeat_factor`: f_l, the share of the images with the label among those of which it is known;
    - `instance_aware`: sqrt(f_l b_l), where b_l is the share of the label among all instances of all labels.

    Labels of images have no boxes to count. Without `instances` each present label counts as one instance, so that b_l
    is f_l / (sum of all f): what a label is among all labels given. Then q_l = f_l / sqrt(m) with m labels an image,
    which is `repeat_factor` with a threshold sqrt(m) times as high.

    Args:
        targets: (N, L), 0 or 1: SciPy sparse, NumPy or torch. Nothing dense is made of sparse ones.
        threshold: Labels of a frequency below it are rare; in (0, 1].
        unknown: What is not known: SciPy sparse bool (True = unknown), dense bool (True = known), or None. An unknown
            label repeats nothing.
        scheme: "repeat_factor" or "instance_aware".
        instances: For "instance_aware", how many instances of each label there are (L,), such as boxes. None: one in
            each image that has the label.

    Returns:
        Factors (N,), float64, at least 1.

    Raises:
        ValueError: an unknown scheme, a threshold outside (0, 1], or instances that are fewer than the images with
            their label or given for the other scheme.

    Example:
        >>> targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
        >>> repeat_factors(targets, threshold=0.5).round(3).tolist()  # the second label is in a quarter of the images
        [1.0, 1.0, 1.414, 1.0]

    Reference: Gupta, Dollár and Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019;
    threshold 0.001 for its 1,203 categories. Yaman, Mahmud and Liu, "Instance-Aware Repeat Factor Sampling for
    Long-Tailed Object Detection", 2023.
    """
    frequencies = resolve(scheme, _FREQUENCIES, "scheme")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be above 0 and at most 1; got {threshold!r}")
    matrix = as_csr(targets)
    missing = as_unknown(unknown, matrix.shape)
    if missing is not None:
        matrix = sp.csr_array(matrix - matrix.multiply(missing))
        matrix.eliminate_zeros()
    counts, known = count_labels(matrix, missing)
    frequency = frequencies(counts, known, _check_instances(instances, counts, scheme))
    # A label that never occurs is in no row; any number will do for it.
    of_labels = np.sqrt(np.maximum(threshold / np.where(counts > 0, frequency, 1.0), 1.0))
    return _row_maxima(matrix, of_labels)


def _image_frequency(counts: np.ndarray, known: np.ndarray, instances: np.ndarray) -> np.ndarray:
    return counts / np.maximum(known, 1)


def _geometric_frequency(counts: np.ndarray, known: np.ndarray, instances: np.ndarray) -> np.ndarray:
    # By known image, or a label that is rarely known would pass for a rare one.
    rates = instances / np.maximum(known, 1)
    return np.sqrt(_image_frequency(counts, known, instances) * rates / max(rates.sum(), np.finfo(float).tiny))


_FREQUENCIES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "repeat_factor": _image_frequency,
    "instance_aware": _geometric_frequency,
}


def _check_instances(instances: Any, counts: np.ndarray, scheme: str) -> np.ndarray:
    if instances is None:
        return counts
    if scheme != "instance_aware":
        raise ValueError(f"instances are counted by scheme 'instance_aware' only; got scheme {scheme!r}")
    found = np.asarray(to_numpy(instances), dtype=np.float64)
    if found.shape != counts.shape:
        raise ValueError(f"instances must be of shape {counts.shape}, one number a label; got {found.shape}")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= counts)))
    if len(wrong):
        label = int(wrong[0])
        raise ValueError(
            f"a label has at least one instance in each image that has it; label {label} has {found[label]:g} "
            f"instances in {counts[label]} images"
        )
    return found


def _row_maxima(matrix: sp.csr_array, of_columns: np.ndarray) -> np.ndarray:
    """Return the largest value among the columns that a row has, (N,); 1 for a row without any."""
    maxima = np.ones(matrix.shape[0])
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if len(filled):
        maxima[filled] = np.maximum.reduceat(of_columns[matrix.indices], matrix.indptr[filled])
    return maxima


def _sequential(table: ImageTable, seed: int, threshold: float) -> Sampler:
    return SequentialSampler(len(table))


def _shuffle(table: ImageTable, seed: int, threshold: float) -> Sampler:
    return RepeatSampler(np.ones(len(table)), seed=seed)


def _repeat_factor(table: ImageTable, seed: int, threshold: float) -> Sampler:
    return _repeating("repeat_factor", table, seed, threshold)


def _instance_aware(table: ImageTable, seed: int, threshold: float) -> Sampler:
    return _repeating("instance_aware", table, seed, threshold)


def _repeating(scheme: str, table: ImageTable, seed: int, threshold: float) -> Sampler:
    factors = repeat_factors(table.targets, threshold=threshold, unknown=table.unknown, scheme=scheme)
    if len(factors) and factors.max() == 1.0:
        _log.warning("sampler %r repeats nothing: no label is rarer than the threshold %g", scheme, threshold)
    return RepeatSampler(factors, seed=seed)


_SAMPLERS: dict[str, Callable[[ImageTable, int, float], Sampler]] = {
    "sequential": _sequential,
    "shuffle": _shuffle,
    "repeat_factor": _repeat_factor,
    "instance_aware": _instance_aware,
}
SAMPLERS: tuple[str, ...] = tuple(_SAMPLERS)


def make_sampler(
    sampler: str | Sampler, table: ImageTable, *, seed: int = 0, threshold: float = REPEAT_THRESHOLD
) -> Sampler:
    """Return the sampler of a name for a table.

    Args:
        sampler: "sequential": the table's order. "shuffle": each row once, in a random order. "repeat_factor" or
            "instance_aware": a random order in which rows of rare labels come more often; see `repeat_factors`. Or an
            object of your own with the methods of `Sampler`, which comes back as it is.
        table: Whose rows.
        seed: Of the orders.
        threshold: See `repeat_factors`.

    Raises:
        ValueError: an unknown name, or a threshold outside (0, 1].
        TypeError: neither a name nor an object with an order.

    Example:
        >>> from mlabel.data.table import ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat"])])
        >>> table = ImageTable(paths=["a", "b", "c"], targets=[[1], [0], [0]], space=space)
        >>> sorted(make_sampler("shuffle", table, seed=1).order(epoch=0).tolist())
        [0, 1, 2]
    """
    if isinstance(sampler, str):
        make = resolve(sampler, _SAMPLERS, "sampler")
        return make(table, seed, threshold)
    if not (hasattr(sampler, "order") and hasattr(sampler, "__len__")):
        raise TypeError(f"sampler must be a name or an object with order(epoch) and a length; got {sampler!r}")
    return sampler


def checked_order(sampler: Sampler, epoch: int, *, num_rows: int) -> np.ndarray:
    """Return the order of an epoch, integers (M,).

    Raises:
        ValueError: the sampler gave another number of rows than its length, or a row that there is not.
    """
    order = np.asarray(sampler.order(epoch))
    if order.shape != (len(sampler),) or order.dtype.kind not in "iu":
        raise ValueError(
            f"the sampler must give {len(sampler)} rows, integers, in every epoch; in epoch {epoch} it gave "
            f"{order.dtype} {order.shape}"
        )
    if len(order) and not 0 <= order.min() <= order.max() < num_rows:
        found = f"{order.min()}..{order.max()}"
        raise ValueError(f"the sampler must give rows in 0..{num_rows - 1}; in epoch {epoch} they are in {found}")
    return order


def rank_share(order: np.ndarray, *, rank: int, world_size: int, at_least: int = 1) -> np.ndarray:
    """Return the rows of one of `world_size` processes: every w-th of the order, beginning with its own number.

    The shares of all ranks together are the order itself, each place of it in exactly one; their lengths differ by one
    at most, but for those that are empty.

    Args:
        order: Rows of all, integers (M,).
        rank: Which one.
        world_size: How many they are.
        at_least: So many rows has whoever has any; where there are fewer for each, the last ranks have none.

    Raises:
        ValueError: a rank that is not in 0 .. world_size - 1.

    Example:
        >>> [rank_share(np.arange(5), rank=rank, world_size=2).tolist() for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        >>> [rank_share(np.arange(5), rank=rank, world_size=3, at_least=2).tolist() for rank in (0, 1, 2)]
        [[0, 2, 4], [1, 3], []]
    """
    check_rank(rank, world_size)
    sharing = min(world_size, max(1, len(order) // at_least))
    return order[rank::sharing] if rank < sharing else order[:0]


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless `rank` is in 0 .. world_size - 1."""
    check_positive(world_size, "world_size")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1} (world_size {world_size}); got {rank}")


def count_repeats(order: np.ndarray) -> np.ndarray:
    """Return for each place of an order how often its row came before, int64 (M,).

    Args:
        order: The rows of an epoch in their order, integers (M,) of at least 0.

    Example:
        >>> count_repeats(np.array([4, 1, 4, 4, 1])).tolist()
        [0, 0, 1, 2, 1]
    """
    repeats = np.zeros(len(order), dtype=np.int64)
    if not len(order) or np.bincount(order).max() == 1:
        return repeats  # nothing to sort for
    places = np.argsort(order, kind="stable")
    ordered = order[places]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    lengths = np.diff(first, append=len(order))
    repeats[places] = np.arange(len(order)) - np.repeat(first, lengths)
    return repeats


def _generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=sample_key(seed, epoch, purpose)))
