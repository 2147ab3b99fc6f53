"""What the page of a run is made from, and its figures beside the page as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from mlabel._files import write_atomically
from mlabel.data import ImageTable
from mlabel.labels import LabelSpace
from mlabel.recipes.evaluation import RunEvaluation

if TYPE_CHECKING:
    from mlabel.recipes.run import Run

CHOSEN = 8  # labels whose curves are drawn
DRAWN = 30  # labels of a heat map
GROUPS = 12  # exclusive groups that are drawn
_ENOUGH = 10  # positives, without which a curve says little


@dataclass(frozen=True)
class Shown:
    """A run and its evaluation, with what the sections of the page share.

    Attributes:
        run: The run.
        result: Its evaluation on a part.
        folder: Where pictures and tables go.
        labels: Columns of the labels whose curves are drawn.
        tiles: How many pictures a gallery has at most.
    """

    run: Run
    result: RunEvaluation
    folder: Path
    labels: tuple[int, ...]
    tiles: int

    @property
    def space(self) -> LabelSpace:
        """The label space."""
        return self.run.model.space

    @cached_property
    def table(self) -> ImageTable:
        """The images that were scored, M of them."""
        table = self.run.parts[self.result.part]
        return table if self.result.scored == len(table) else table[self.result.rows]

    @cached_property
    def scores(self) -> np.ndarray:
        """Of the images that were scored, (M, L)."""
        whole = self.result.scored == self.result.expected
        return self.result.scores if whole else self.result.scores[self.result.rows]

    @cached_property
    def decisions(self) -> sp.csr_array:
        """What was decided of them in the last column, CSR bool (M, L)."""
        return self.result.decisions(self.space)

    @cached_property
    def present(self) -> sp.csr_array:
        """What is known to hold of them, CSR bool (M, L)."""
        return _without(sp.csr_array(self.table.targets, dtype=bool), self.table.unknown)

    @cached_property
    def wrong(self) -> sp.csr_array:
        """What was decided and is known not to hold, CSR bool (M, L)."""
        return _without(_without(self.decisions, self.table.unknown), self.present)

    @cached_property
    def missed(self) -> sp.csr_array:
        """What holds and was not decided, CSR bool (M, L)."""
        return _without(self.present, self.decisions)

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows of the same keys as a CSV file into the folder; None and NaN are empty."""
        write_rows(self.folder / name, rows)


def choose_labels(result: RunEvaluation, space: LabelSpace, wanted: Sequence[str] | None = None) -> tuple[int, ...]:
    """Return the columns of the labels to draw: those wanted, else the most frequent and those of the lowest AP.

    Raises:
        ValueError: there is no such label.
    """
    if wanted is not None:
        return tuple(space.index(name) for name in wanted)
    support, precision = (result.best.per_label[name] for name in ("support", "ap"))
    least = _ENOUGH if (support >= _ENOUGH).sum() >= CHOSEN else 1
    able = np.flatnonzero(support >= least)
    frequent = able[np.argsort(-support[able], kind="stable")][: CHOSEN // 2]
    hard = able[np.argsort(precision[able], kind="stable")]
    rest = [label for label in hard.tolist() if label not in frequent][: CHOSEN - len(frequent)]
    return (*frequent.tolist(), *rest)


def describe_highest(what: str, values: np.ndarray, names: Sequence[str]) -> str:
    """Return a sentence on the highest entry of a matrix (K, K), for those who do not see it."""
    if np.isnan(values).all():
        return f"Heat map ({what}) without any value"
    row, column = divmod(int(np.nanargmax(values)), len(names))
    highest = f"{values[row, column]:.2f} for {names[row]} and {names[column]}"
    return f"Heat map ({what}) of {len(names)} labels; the highest is {highest}"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as a CSV file; None and NaN are empty. Without rows there is no file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(list(row))
        writer.writerow([_as_field(value) for value in row.values()])
    if text.tell():
        write_atomically(path, text.getvalue())
    else:
        path.unlink(missing_ok=True)


def _as_field(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _without(matrix: sp.csr_array, other: sp.csr_array | None) -> sp.csr_array:
    """Return `matrix` where `other` is False, CSR bool."""
    if other is None:
        return matrix
    left = sp.csr_array(matrix, dtype=np.int8)
    left = sp.csr_array(left - left.multiply(sp.csr_array(other, dtype=np.int8)))
    left.eliminate_zeros()
    left.sort_indices()
    return left.astype(bool)
