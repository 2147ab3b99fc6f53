"""Which labels are taken for which: what was decided wrongly where another label holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown
from mlabel.metrics._blocks import known_positives


def cross_confusion(decisions: Any, targets: Any, mask: Any = None, *, labels: Any = None) -> np.ndarray:
    """Return how often each label was decided wrongly where another one holds, int64 (K, K).

    Entry [a, b] is the number of samples that have label a, and of which b was decided although it is known to be
    absent. In an exclusive group it is the matrix of confusions without its diagonal; the diagonal is always 0.

    Args:
        decisions: (N, L) bool: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        labels: The columns to count, integers (K,); None: all of them. The counts take K x K x 8 bytes.

    Raises:
        ValueError: shapes that differ, or values other than 0 and 1.

    Example:
        >>> targets = [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
        >>> decisions = [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
        >>> cross_confusion(decisions, targets)
        array([[0, 2, 0],
               [1, 0, 0],
               [0, 0, 0]])
    """
    truth = as_csr(targets)
    unknown = as_unknown(mask, truth.shape)
    decided = as_csr(decisions, shape=truth.shape)
    if labels is not None:
        columns = np.asarray(labels, dtype=np.int64)
        truth, decided = truth[:, columns], decided[:, columns]
        unknown = None if unknown is None else unknown[:, columns]
    present = known_positives(truth, unknown).astype(np.int64)
    wrong = known_positives(decided, unknown).astype(np.int64)
    wrong = sp.csr_array(wrong - wrong.multiply(present))
    wrong.eliminate_zeros()
    return (present.T @ wrong).toarray()
