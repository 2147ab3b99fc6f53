"""What a split did to each label: how near to its share every part came, and why a label is not in every part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import as_csr, as_unknown, resolve, to_numpy
from mlabel.data.split import group_codes, known_positives, part_sizes
from mlabel.labels import LabelSpace

if TYPE_CHECKING:
    from mlabel.data.table import ImageTable

REASONS = {
    "absent": "no positives at all",
    "unknown": "unknown in all images of the part",
    "few_positives": "fewer positives than parts",
    "few_groups": "positives in fewer groups than parts",
    "not_found": "enough positives, but no exchange was found that brings one to every part",
    "as_given": "enough positives, but the given parts lack it",
}
"""Why a label is not in every part, by the word that stands for it in `MissingLabel.reason`."""

_SHOWN = 5  # labels that a line of text names
_WORST = 3
_CHUNK = 1 << 22
_SORTS = ("column", "name", "positives", "deviation")


@dataclass(frozen=True)
class MissingLabel:
    """A label that is not in every part.

    Attributes:
        name: The label.
        positives: How many there are in all parts.
        num_groups: In how many groups they stand; None where groups were not given or not looked at.
        parts: The parts that have none.
        reason: A key of `REASONS`.

    Example:
        >>> print(MissingLabel("owl", 1, None, ("val", "test"), "few_positives"))
        owl (1 positives): fewer positives than parts
    """

    name: str
    positives: int
    num_groups: int | None
    parts: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        groups = "" if self.num_groups is None else f" in {self.num_groups:,} groups"
        return f"{self.name} ({self.positives:,} positives{groups}): {REASONS[self.reason]}"


@dataclass(frozen=True, eq=False)
class SplitReport:
    """How a split shares out the labels; `report_split` and `SplitReport.of_parts` make it.

    The expected positives of a label in a part are its positives times the part's share: of the images, as was asked
    for, or, where nothing was asked for, of the images in which the label is known. The deviation is the count over
    the expected one, less 1.

    Attributes:
        parts: Names of the k parts.
        names: Names of the L labels.
        sizes: Images of each part, int64 (k,).
        exact_sizes: As many as there should be, int64 (k,); `sizes` where no fractions were asked for.
        counts: Positives of each label in each part, int64 (L, k).
        expected: float64 (L, k).
        missing: The labels that are not in every part, with the reason, in column order.
    """

    parts: tuple[str, ...]
    names: tuple[str, ...]
    sizes: np.ndarray
    exact_sizes: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    missing: tuple[MissingLabel, ...]

    @classmethod
    def of_parts(cls, parts: Mapping[str, ImageTable], *, fractions: Sequence[float] | None = None) -> SplitReport:
        """Return the report of tables that are the parts of one data set, split by us or officially.

        Args:
            parts: Name to table, as `ImageTable.parts` gives them.
            fractions: What was asked for. None: the parts are as they are.

        Raises:
            ValueError: no part, tables of different label spaces, or other `fractions` than `part_sizes` takes.
        """
        if not parts:
            raise ValueError("a report needs at least one part; got none")
        tables = list(parts.values())
        space = tables[0].space
        other = next((name for name, table in parts.items() if table.space != space), None)
        if other is not None:
            raise ValueError(
                f"the parts must have one label space; that of {other!r} is not that of {next(iter(parts))!r}"
            )
        held = [table.unknown if table.unknown is not None else _nothing(table.targets.shape) for table in tables]
        together = all(table.groups is not None for table in tables)
        return _report(
            sp.csr_array(sp.vstack([table.targets for table in tables], format="csr")),
            np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
            parts=tuple(parts),
            names=space.names,
            fractions=fractions,
            unknown=as_unknown(sp.vstack(held, format="csr"), (sum(map(len, tables)), space.num_labels)),
            groups=np.concatenate([table.groups for table in tables]) if together else None,
        )

    @cached_property
    def positives(self) -> np.ndarray:
        """Positives of each label in all parts, int64 (L,)."""
        return self.counts.sum(axis=1)

    @cached_property
    def deviation(self) -> np.ndarray:
        """How far each count is from the expected one, relative to it, float64 (L, k); NaN where none is expected."""
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = self.counts / self.expected - 1
        return np.where(self.expected > 0, relative, np.nan)

    @property
    def mean_deviation(self) -> float:
        """The mean absolute deviation over parts and labels with positives; NaN where there are none."""
        return _over(np.mean, self.deviation)

    @property
    def max_deviation(self) -> float:
        """The largest absolute deviation; NaN where no label has positives."""
        return _over(np.max, self.deviation)

    def __repr__(self) -> str:
        return (
            f"SplitReport({len(self.parts)} parts, {len(self.names)} labels, mean deviation {self.mean_deviation:.2%}, "
            f"{len(self.missing)} labels not in every part)"
        )

    def text(self) -> str:
        """Return some lines of text: sizes and deviations of the parts, missing labels by reason, the worst labels."""
        return "\n".join([*self._part_lines(), *self._missing_lines(), *self._worst_line()])

    def label_rows(self, sort: str = "column", limit: int | None = None) -> list[dict[str, Any]]:
        """Return one dictionary a label: name, positives, and for each part its count, expected and deviation.

        Args:
            sort: column (their order), name, positives (most first) or deviation (of any part, furthest first).
            limit: How many labels at most; None: all.

        Raises:
            ValueError: an unknown `sort`.
        """
        resolve(sort, dict.fromkeys(_SORTS), "sort")
        return [self._row(column) for column in self._order(sort)[:limit].tolist()]

    def table(self, sort: str = "column", limit: int | None = None) -> str:
        """Return a table of the labels as text, one a line; `sort` and `limit` are those of `label_rows`.

        For each part there is the number of positives and its deviation in percent.
        """
        rows = self.label_rows(sort, limit)
        header = ["label", "positives", *(title for part in self.parts for title in (part, "%"))]
        cells = [
            [row["name"], f"{row['positives']:,}"]
            + [text for part in self.parts for text in (f"{row['counts'][part]:,}", _percent(row["deviation"][part]))]
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in [header, *cells]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists, numbers and texts, for JSON; NaN is None."""
        return {
            "format": "mlabel.split_report/1",
            "parts": list(self.parts),
            "sizes": self.sizes.tolist(),
            "exact_sizes": self.exact_sizes.tolist(),
            "mean_deviation": _plain(self.mean_deviation),
            "max_deviation": _plain(self.max_deviation),
            "names": list(self.names),
            "positives": self.positives.tolist(),
            "counts": self._by_part(self.counts),
            "expected": self._by_part(self.expected),
            "deviation": self._by_part(self.deviation),
            "missing": [vars(label) | {"parts": list(label.parts)} for label in self.missing],
        }

    def _by_part(self, values: np.ndarray) -> dict[str, list[Any]]:
        columns = zip(self.parts, values.T.tolist(), strict=True)
        return {part: [_plain(value) for value in column] for part, column in columns}

    def _row(self, column: int) -> dict[str, Any]:
        values = {"counts": self.counts, "expected": self.expected, "deviation": self.deviation}
        held = {key: dict(zip(self.parts, array[column].tolist(), strict=True)) for key, array in values.items()}
        held["deviation"] = {part: _plain(value) for part, value in held["deviation"].items()}
        return {"name": self.names[column], "positives": int(self.positives[column]), **held}

    def _order(self, sort: str) -> np.ndarray:
        if sort == "name":
            return np.argsort(np.array(self.names, dtype=object), kind="stable")
        furthest = np.nan_to_num(abs(self.deviation), nan=-1.0).max(axis=1, initial=-1.0)
        keys = {"column": np.zeros(len(self.names)), "positives": self.positives, "deviation": furthest}
        return np.argsort(-keys[sort], kind="stable")

    def _part_lines(self) -> Iterator[str]:
        for number, (part, size) in enumerate(zip(self.parts, self.sizes.tolist(), strict=True)):
            exact = int(self.exact_sizes[number])
            wanted = f" ({exact:,} wanted)" if exact != size else ""
            far = self.deviation[:, number : number + 1]
            deviation = f"mean {_over(np.mean, far):.2%}, max {_over(np.max, far):.2%}"
            known = (self.expected[:, number] > 0).any()
            yield f"{part}: {size:,} images{wanted}; {f'deviation of a label {deviation}' if known else 'no labels'}"

    def _missing_lines(self) -> Iterator[str]:
        if not self.missing:
            yield f"every label is in every part ({len(self.names):,} labels)"
            return
        yield f"not in every part: {len(self.missing):,} of {len(self.names):,} labels"
        for reason, meaning in REASONS.items():
            those = [label for label in self.missing if label.reason == reason]
            if those:
                named = [f"{label.name} (none in {', '.join(label.parts)})" for label in those[:_SHOWN]]
                more = ", ..." if len(those) > _SHOWN else ""
                yield f"- {len(those):,} for {meaning}: {', '.join(named)}{more}"

    def _worst_line(self) -> Iterator[str]:
        """Yield the labels furthest from their share, of those that could be nearer: that are in every part."""
        lacking = {label.name for label in self.missing}
        rows = [column for column in self._order("deviation").tolist() if self.names[column] not in lacking][:_WORST]
        named = []
        for column in rows:
            part = int(np.nan_to_num(abs(self.deviation[column]), nan=-1.0).argmax())
            count, expected = self.counts[column, part], self.expected[column, part]
            named.append(f"{self.names[column]} in {self.parts[part]} ({count:,} for {expected:,.1f})")
        if named and self.max_deviation > 0:
            yield f"furthest from their share: {', '.join(named)}"


def report_split(
    targets: Any,
    part: Any,
    *,
    fractions: Sequence[float] | None = None,
    groups: Any = None,
    unknown: Any = None,
    space: LabelSpace | None = None,
) -> SplitReport:
    """Return how the parts share out the labels, and which labels are not in every part, and why.

    A label with k or more positives, in k or more groups where there are groups, has one in each of the k parts, or
    is in `SplitReport.missing`.

    Args:
        targets: Binary (N, L): SciPy sparse, NumPy or torch. Sparse ones are never made dense.
        part: The part of each sample (N,), 0 .. k-1, as `stratified_split` gives it.
        fractions: What was asked for, k positive numbers with sum 1. None: the parts are as they are.
        groups: Ids (N,) of what had to stay together; None: nothing.
        unknown: SciPy sparse bool (N, L), True = unknown, or a dense bool mask, True = known.
        space: Names the labels. None: their names are their columns.

    Raises:
        ValueError: shapes that do not fit, or parts that are not 0 .. k-1.

    Example:
        >>> targets = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 0]])
        >>> report = report_split(targets, [0, 0, 1, 1, 0, 1], fractions=(0.5, 0.5))
        >>> report.counts.tolist(), report.missing[0].reason
        ([[2, 2], [1, 0]], 'few_positives')
        >>> print(report.text())
        0: 3 images; deviation of a label mean 50.00%, max 100.00%
        1: 3 images; deviation of a label mean 50.00%, max 100.00%
        not in every part: 1 of 2 labels
        - 1 for fewer positives than parts: 1 (none in 1)
        furthest from their share: 0 in 0 (2 for 2.0)
    """
    present = as_csr(targets)
    num_samples, num_labels = present.shape
    if space is not None and space.num_labels != num_labels:
        raise ValueError(f"targets have {num_labels} columns, the space {space.num_labels} labels")
    codes = _as_part(part, num_samples, None if fractions is None else len(fractions))
    num_parts = len(fractions) if fractions is not None else int(codes.max(initial=-1)) + 1
    return _report(
        present,
        codes,
        parts=tuple(map(str, range(num_parts))),
        names=tuple(map(str, range(num_labels))) if space is None else space.names,
        fractions=fractions,
        unknown=as_unknown(unknown, present.shape),
        groups=groups,
    )


def _report(
    present: sp.csr_array,
    part: np.ndarray,
    *,
    parts: tuple[str, ...],
    names: tuple[str, ...],
    fractions: Sequence[float] | None,
    unknown: sp.csr_array | None,
    groups: Any,
) -> SplitReport:
    sizes = np.bincount(part, minlength=len(parts))
    known = np.tile(sizes, (len(names), 1))
    if unknown is not None:
        present = known_positives(present, unknown)
        known -= _count(unknown, part, len(parts))
    counts = _count(present, part, len(parts))
    total = counts.sum(axis=1, keepdims=True)
    if fractions is None:
        expected, exact = total * (known / np.maximum(known.sum(axis=1, keepdims=True), 1)), sizes
    else:
        exact = part_sizes(len(part), fractions)
        expected = total * (exact / len(part))
    group_counts = _count_groups(present, counts, groups)
    missing = _find_missing(parts, names, counts, known, group_counts, asked=fractions is not None)
    return SplitReport(parts, names, sizes, exact, counts, expected, missing)


def _as_part(values: Any, num_samples: int, num_parts: int | None) -> np.ndarray:
    part = to_numpy(values)
    if part.shape != (num_samples,):
        raise ValueError(f"part must hold one number a sample, of shape ({num_samples},); got {part.shape}")
    if part.dtype.kind not in "iu" or (num_samples and part.min() < 0):
        raise ValueError(f"part must hold integers 0 .. k-1; got dtype {part.dtype}, such as {part[:1].tolist()}")
    if num_parts is not None and part.max(initial=0) >= num_parts:
        raise ValueError(f"part {part.max()} is beyond the {num_parts} fractions")
    return part.astype(np.int64)


def _count(matrix: sp.csr_array, part: np.ndarray, num_parts: int) -> np.ndarray:
    """Return how many entries each column has in each part, int64 (L, k), in pieces of bounded memory."""
    num_labels = matrix.shape[1]
    counts = np.zeros(num_labels * num_parts, dtype=np.int64)
    rows_at_once = max(1, _CHUNK * len(part) // max(1, matrix.nnz))
    for start in range(0, len(part), rows_at_once):
        bounds = matrix.indptr[start : start + rows_at_once + 1]
        owner = np.repeat(part[start : start + rows_at_once], np.diff(bounds))
        places = matrix.indices[bounds[0] : bounds[-1]] * num_parts + owner
        counts += np.bincount(places, minlength=len(counts))
    return counts.reshape(num_labels, num_parts)


def _count_groups(present: sp.csr_array, counts: np.ndarray, groups: Any) -> dict[int, int]:
    """Return in how many groups the positives of a label stand, for the labels that a part lacks."""
    columns = np.flatnonzero((counts == 0).any(axis=1) & (counts.sum(axis=1) > 0))
    if groups is None or not len(columns):
        return {}
    codes = group_codes(groups, present.shape[0])
    held = sp.csc_array(present[:, columns])
    rows = np.split(held.indices, held.indptr[1:-1])
    return {column: len(np.unique(codes[each])) for column, each in zip(columns.tolist(), rows, strict=True)}


def _find_missing(
    parts: tuple[str, ...],
    names: tuple[str, ...],
    counts: np.ndarray,
    known: np.ndarray,
    group_counts: dict[int, int],
    *,
    asked: bool,
) -> tuple[MissingLabel, ...]:
    found = []
    total, empty = counts.sum(axis=1), counts == 0
    for column in np.flatnonzero(empty.any(axis=1)).tolist():
        positives, num_groups = int(total[column]), group_counts.get(column)
        if not positives:
            reason = "absent"
        elif not known[column, empty[column]].any():
            reason = "unknown"
        elif positives < len(parts):
            reason = "few_positives"
        elif num_groups is not None and num_groups < len(parts):
            reason = "few_groups"
        else:
            reason = "not_found" if asked else "as_given"
        lacking = tuple(part for part, lacks in zip(parts, empty[column].tolist(), strict=True) if lacks)
        found.append(MissingLabel(names[column], positives, num_groups, lacking, reason))
    return tuple(found)


def _nothing(shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array(shape, dtype=bool)


def _over(reduce: Any, deviation: np.ndarray) -> float:
    far = abs(deviation[~np.isnan(deviation)])
    return float(reduce(far)) if len(far) else float("nan")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
