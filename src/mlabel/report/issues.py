"""Labels that are probably missing or wrong, found where out-of-sample scores contradict what was given."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import resolve
from mlabel._files import write_atomically
from mlabel.inference import escape_cell
from mlabel.labels import LabelSpace, threshold_values
from mlabel.metrics._blocks import known_positives
from mlabel.metrics.ranking import check_probabilities
from mlabel.report._confident import Found, any_of_issues, class_issues, join
from mlabel.report.section import Tile

METHODS = ("noise_rate", "confident")
RANKS = ("self_confidence", "margin")
_HEAD = ("id", "label", "kind", "better", "score", "self_confidence", "margin")


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Entries of targets that are probably false, the most probable first.

    Attributes:
        rows: The sample of each issue, int64 (M,).
        columns: The label that is missing or wrong; of an exclusive group the class that was given; int64 (M,).
        kinds: `missing`: the label was absent and probably holds; `wrong`: it was given and probably does not; (M,).
        scores: The probability of the label, float32 (M,).
        self_confidence: The probability of what was given, the lower the worse; float32 (M,).
        margins: Self-confidence less the mean of all samples that were given the same, float32 (M,): how much the entry
            stands out among its like.
        better: Of an exclusive group the column of the class that it probably is, else -1; int64 (M,).
        joints: The confident joint of each any-of label (L, 2, 2): estimated numbers of known samples, by what was
            given (absent, present) and what is true; 0 at exclusive columns.
        class_joints: That of each exclusive group, (K, K).
        space: What the columns mean; None where it was not given.
    """

    rows: np.ndarray
    columns: np.ndarray
    kinds: np.ndarray
    scores: np.ndarray = field(repr=False)
    self_confidence: np.ndarray = field(repr=False)
    margins: np.ndarray = field(repr=False)
    better: np.ndarray = field(repr=False)
    joints: np.ndarray = field(repr=False)
    class_joints: Mapping[str, np.ndarray] = field(repr=False)
    space: LabelSpace | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> LabelIssues:
        """Return some of the issues, by a slice, places or a bool array."""
        held = ("rows", "columns", "kinds", "scores", "self_confidence", "margins", "better")
        return replace(self, **{name: getattr(self, name)[chosen] for name in held})

    def name(self, column: int) -> str:
        """Return the name of the label at `column`; the number where there is no space."""
        return str(column) if self.space is None else self.space.names[column]

    def table(self, ids: Sequence[Any] | np.ndarray | None = None) -> list[dict[str, Any]]:
        """Return the issues as rows of a table: id, label, kind, better, score, self_confidence, margin.

        Args:
            ids: The id of each sample (N,); None: its number.
        """
        return [
            {
                "id": str(row if ids is None else ids[row]),
                "label": self.name(column),
                "kind": str(kind),
                "better": "" if better < 0 else self.name(better),
                "score": score,
                "self_confidence": confidence,
                "margin": margin,
            }
            for row, column, kind, better, score, confidence, margin in zip(
                self.rows.tolist(),
                self.columns.tolist(),
                self.kinds.tolist(),
                self.better.tolist(),
                self.scores.tolist(),
                self.self_confidence.tolist(),
                self.margins.tolist(),
                strict=True,
            )
        ]

    def label_table(self) -> list[dict[str, Any]]:
        """Return for each label with an issue: label, missing, wrong, and the shares estimated false.

        `missing_share` is of the samples without the label those that probably have it, `wrong_share` of those with it
        those that probably have it not, by the joint. The most issues come first.
        """
        size = len(self.joints)
        missing, wrong = (
            np.bincount(self.columns[self.kinds == kind], minlength=size) for kind in ("missing", "wrong")
        )
        shares = self._shares()
        order = np.argsort(-(missing + wrong), kind="stable")
        return [
            {
                "label": self.name(column),
                "missing": int(missing[column]),
                "wrong": int(wrong[column]),
                "missing_share": float(shares[column, 0]),
                "wrong_share": float(shares[column, 1]),
            }
            for column in order.tolist()
            if missing[column] + wrong[column]
        ]

    def _shares(self) -> np.ndarray:
        """Return the shares (L, 2) estimated false of absent and of present; NaN where there is none."""
        given = self.joints.sum(axis=2)
        false = np.stack([self.joints[:, 0, 1], self.joints[:, 1, 0]], axis=1)
        shares = np.full(given.shape, np.nan)
        np.divide(false, given, out=shares, where=given > 0)
        spans = {} if self.space is None else self.space.slices
        for name, joint in self.class_joints.items():
            numbers = joint.sum(axis=1)
            own = shares[spans[name], 1]
            np.divide(numbers - joint.diagonal(), numbers, out=own, where=numbers > 0)
        return shares

    def to_csv(
        self, path: str | Path, ids: Sequence[Any] | np.ndarray | None = None, *, for_spreadsheet: bool = False
    ) -> Path:
        """Write the table as CSV to the file `path`, the worst first, and return the path; see `table`.

        Args:
            path: The file to write.
            ids: The id of each sample (N,); None: its number.
            for_spreadsheet: Write ids and label names so that no spreadsheet takes them for a formula; see
                `mlabel.inference.escape_cell`.
        """
        text, cell = io.StringIO(), escape_cell if for_spreadsheet else str
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEAD)
        for row in self.table(ids):
            cells = (row[name] for name in _HEAD)
            writer.writerow(cell(each) if isinstance(each, str) else f"{each:.6f}" for each in cells)
        write_atomically(path, text.getvalue())
        return Path(path)

    def gallery(
        self,
        images: Sequence[str | Path | np.ndarray] | np.ndarray,
        *,
        ids: Sequence[Any] | np.ndarray | None = None,
        limit: int = 24,
    ) -> dict[str, list[Tile]]:
        """Return captions and pictures for `write_gallery`: the worst `limit` of each kind.

        Args:
            images: The image of each sample (N,): paths or addresses, or pixels.
            ids: What each is called (N,); None: its number.
            limit: Of each kind.
        """
        captions = {
            "missing": "Probably missing: not given, but it seems to be there",
            "wrong": "Probably wrong: given, but it does not seem to be there",
        }
        return {
            caption: [
                Tile(images[row], [str(row if ids is None else ids[row]), self._line(place)])
                for place in np.flatnonzero(self.kinds == kind)[:limit].tolist()
                for row in [int(self.rows[place])]
            ]
            for kind, caption in captions.items()
            if (self.kinds == kind).any()
        }

    def _line(self, place: int) -> str:
        name, score = self.name(int(self.columns[place])), float(self.scores[place])
        if self.better[place] >= 0:
            return f"{name} {score:.2f}, rather {self.name(int(self.better[place]))}"
        return f"{name} {score:.2f}"


def label_issues(
    scores: Any,
    targets: Any,
    *,
    mask: Any = None,
    space: LabelSpace | None = None,
    method: str = "noise_rate",
    rank: str = "self_confidence",
    thresholds: Any = 0.5,
) -> LabelIssues:
    """Return which labels are probably missing or wrong, the most probable first, by confident learning.

    An any-of label is looked at by itself. A sample is confidently one that has it where its score is at least the mean
    score of those that have it, and confidently one that has it not where one minus its score is at least the mean of
    that over the others. Counts of given against confidently believed, scaled to the numbers given, estimate how many
    are false. In an exclusive group of K classes the same is done with K classes, and the one it rather is is named.
    Nothing is said of unknown entries, and none counts.

    The scores must be out of sample: of a model that was not trained on these images, such as those of the validation
    and test part; for training images see `cross_fit_scores`. Scores of images that were trained on repeat what was
    given, and find nothing.

    Args:
        scores: Probabilities (N, L): NumPy or torch.
        targets: (N, L) 0/1: NumPy, torch or SciPy sparse.
        mask: None, dense bool (N, L) (True = known) or sparse bool (True = unknown).
        space: What the columns mean. None: every column is an any-of label without a name.
        method: `noise_rate`: as many of each label as are estimated to be false, those that the scores contradict most;
            `confident`: all that are confidently the other.
        rank: `self_confidence`: what is the least probable first; `margin`: what stands out most among those that were
            given the same. The latter finds more where many labels are missing, the former where they are false at
            random.
        thresholds: A number, an array (L,), or an object with such in `.values`. Only where the decision at it differs
            from what was given is there an issue; 0.5 is that of the paper.

    Raises:
        ValueError: scores that are no probabilities, shapes that differ, an unknown method or rank, or several classes
            given in an exclusive group.

    Example:
        >>> scores = [[0.9], [0.8], [0.1], [0.2], [0.1], [0.95]]
        >>> issues = label_issues(scores, [[1], [1], [1], [0], [0], [0]])
        >>> issues.rows.tolist(), issues.kinds.tolist()
        ([5, 2], ['missing', 'wrong'])

    References:
        Northcutt, Jiang and Chuang (2021), "Confident Learning: Estimating Uncertainty in Dataset Labels"; for several
        labels Thyagarajan, Snorrason, Northcutt and Mueller (2022), "Identifying Incorrect Annotations in Multi-Label
        Classification Data".
    """
    resolve(method, dict.fromkeys(METHODS), "method")
    resolve(rank, dict.fromkeys(RANKS), "rank")
    checked, given, unknown = check_probabilities(scores, targets, mask)
    limits = threshold_values(thresholds, checked.shape[1], space)
    by_columns = known_positives(given, unknown).tocsc(), None if unknown is None else unknown.tocsc()
    joints = np.zeros((checked.shape[1], 2, 2), dtype=np.int64)
    class_joints, parts, by_count = {}, [], method == "noise_rate"
    for name, span, exclusive in _spans(space, checked.shape[1]):
        own, hidden = (None if held is None else held[:, span] for held in by_columns)
        if exclusive:
            classes = _classes(own, hidden, name)
            found, class_joints[name] = class_issues(checked[:, span], classes, by_count=by_count)
            found = found._replace(columns=found.columns + span.start, better=found.better + span.start)
        else:
            found, joints[span] = any_of_issues(
                checked[:, span], own, hidden, limits=limits[span], by_count=by_count, first=span.start
            )
        parts.append(found)
    return _ranked(join(parts), checked, rank, joints=joints, class_joints=class_joints, space=space)


def _spans(space: LabelSpace | None, num_labels: int) -> list[tuple[str, slice, bool]]:
    if space is None:
        return [("labels", slice(0, num_labels), False)]
    return [(group.name, space.slices[group.name], group.exclusive) for group in space.groups]


def _classes(own: Any, hidden: Any, name: str) -> np.ndarray:
    """Return the class (N,) that each sample was given in an exclusive group; -1 where none is known."""
    rows = sp.csr_array(own)
    numbers = np.diff(rows.indptr)
    if (numbers > 1).any():
        row = int(np.flatnonzero(numbers > 1)[0])
        raise ValueError(
            f"group {name!r} is exclusive, but the targets of row {row} give {numbers[row]} of its classes"
        )
    classes = np.full(rows.shape[0], -1, dtype=np.int64)
    classes[numbers == 1] = rows.indices
    if hidden is not None:
        classes[np.unique(sp.coo_array(hidden).coords[0])] = -1
    return classes


def _ranked(found: Found, scores: np.ndarray, rank: str, **rest: Any) -> LabelIssues:
    """Return what was found, of the lowest rank first; equal ones by row and column."""
    held = scores[found.rows, found.columns].astype(np.float32)
    confidence = np.where(found.missing, 1 - held, held)
    margins = (confidence - found.usual).astype(np.float32)
    order = np.lexsort((found.columns, found.rows, margins if rank == "margin" else confidence))
    return LabelIssues(
        rows=found.rows[order],
        columns=found.columns[order],
        kinds=np.where(found.missing, "missing", "wrong")[order],
        scores=held[order],
        self_confidence=confidence[order],
        margins=margins[order],
        better=found.better[order],
        **rest,
    )
