"""Precision and recall that forgive a near miss: decisions and targets with all that they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlabel.metrics.counts import confusion_counts
from mlabel.metrics.ratios import ratio
from mlabel.taxonomy import Taxonomy


@dataclass(frozen=True)
class HierarchicalScores:
    """What `hierarchical_scores` found, numbers in [0, 1].

    Attributes:
        precision: Of all labels that the decisions imply, the share that the targets imply, too.
        recall: Of all labels that the targets imply, the share that the decisions imply, too.
        f1: Their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def hierarchical_scores(
    decisions: Any, targets: Any, mask: Any = None, *, taxonomy: Taxonomy, zero_division: float = math.nan
) -> HierarchicalScores:
    """Return precision, recall and F1 of decisions and targets that are closed under the taxonomy's implications.

    With D_i the labels that sample i was given and all they imply, and T_i those it has and all they imply: precision
    is the sum of the sizes of both in common, divided by that of the D_i, recall the same divided by that of the T_i
    (Kiritchenko, Matwin and Famili, 2005). To say `kitten` of a puppy is half right where both
    imply `animal`. Labels of exclusive groups are not implied.

    Args:
        decisions: (N, L) bool or 0/1: NumPy, torch or SciPy sparse.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown). What a known target implies
            becomes known; what is unknown still is left out of both sums, but what was decided there implies others.
        taxonomy: The implications between the L labels.
        zero_division: As in `mlabel.metrics.precision`.

    Raises:
        TypeError: decisions that are neither bool nor integers.
        ValueError: shapes that differ, another number of labels than the taxonomy's, or values other than 0 and 1.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["kitten", "puppy", "animal"])])
        >>> taxonomy = Taxonomy(space, implications=[("kitten", "animal"), ("puppy", "animal")])
        >>> hierarchical_scores([[1, 0, 0]], [[0, 1, 0]], taxonomy=taxonomy)
        HierarchicalScores(precision=0.5, recall=0.5, f1=0.5)
    """
    confusion_counts(decisions, targets, mask)  # says what is wrong with them, if anything is
    implied, unknown = taxonomy.close_targets(targets, mask)
    counts = confusion_counts(taxonomy.close_targets(decisions)[0], implied, unknown)
    return HierarchicalScores(
        *(
            float(ratio(counts, name, average="micro", zero_division=zero_division))
            for name in ("precision", "recall", "f1")
        )
    )
