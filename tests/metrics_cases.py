"""Problems for the tests of metrics: small, with many ties, absent labels and unknown entries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

quick = settings(deadline=None, max_examples=25)


@dataclass(frozen=True)
class Problem:
    """Scores (N, L), targets uint8 and what is known, none of which may be written to."""

    scores: np.ndarray
    targets: np.ndarray
    known: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.scores, self.targets, self.known):
            array.setflags(write=False)

    @property
    def decisions(self) -> np.ndarray:
        return self.scores >= 0.5

    @property
    def decided(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decisions at 0.5, targets and what is known: the arguments of the metrics of decisions."""
        return self.decisions, self.targets, self.known

    @property
    def scored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, targets and what is known: the arguments of the metrics of scores."""
        return self.scores, self.targets, self.known

    def column(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the known samples of one label."""
        rows = self.known[:, label]
        return self.scores[rows, label], self.targets[rows, label]

    def row(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets of the known labels of one sample."""
        columns = self.known[sample]
        return self.scores[sample, columns], self.targets[sample, columns]


@st.composite
def problems(draw: st.DrawFn, min_labels: int = 1, all_known: bool = False) -> Problem:
    """Scores on a grid of ninths, so that ties are common, in float32 or float64."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(min_labels, 6)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    grid = draw(arrays(np.int64, shape, elements=st.integers(0, 8)))
    targets = draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    known = np.ones(shape, bool) if all_known else draw(arrays(np.bool_, shape))
    return Problem((grid / 8).astype(dtype), targets, known)


def present(problem: Problem) -> np.ndarray:
    """Labels that have both a known positive and a known negative."""
    positive = (problem.targets.astype(bool) & problem.known).any(axis=0)
    negative = (~problem.targets.astype(bool) & problem.known).any(axis=0)
    return positive & negative
