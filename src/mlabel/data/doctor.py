"""The doctor: what is wrong or odd with a table's images, labels and parts, before a training pays for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel._checks import check_positive
from mlabel.data.diagnosis import LEVELS, BrokenImplication, Diagnosis, Finding, Pair
from mlabel.data.relations import relate_labels
from mlabel.data.survey import Survey
from mlabel.data.table import ImageTable
from mlabel.taxonomy import Taxonomy

_SHOWN = 5  # examples a finding names, and implications that have a finding of their own
_ODD_RATIO = 8  # sides so far apart are lost when an image is resized to a square
_PAIRS = 40  # labels whose co-occurrence is shown


def examine(
    parts: Mapping[str, ImageTable],
    surveys: Mapping[str, Survey] | None = None,
    *,
    expected_size: tuple[int, int] | None = None,
    min_positives: int = 5,
    distance: int = 4,
    taxonomy: Taxonomy | None = None,
) -> Diagnosis:
    """Return what is wrong or odd with the parts of a data set.

    Args:
        parts: Part name to table, such as `table.parts()` gives; of one label space.
        surveys: Part name to what `survey_images` said of its images; None: images are not looked at.
        expected_size: Height and width that images should have; None: any.
        min_positives: A label with fewer positives in a part is a warning.
        distance: Bits of 64 in which the perceptual hashes of near-duplicates may differ; see `Survey.duplicates`.
        taxonomy: What labels imply, and which seldom hold together; None: nothing is known of that.

    Raises:
        ValueError: no part, parts or a taxonomy of different spaces, or a survey of another length than its part.

    Example:
        >>> from mlabel.labels import Group, LabelSpace
        >>> space = LabelSpace([Group("tags", ["cat", "dog"])])
        >>> table = ImageTable(paths=["a", "b", "c"], targets=[[1, 0], [1, 0], [0, 0]], space=space)
        >>> print(examine({"train": table[:2], "val": table[2:]}, min_positives=1).text())
        images: train 2, val 1
        warning: 1 label has no positive anywhere: dog
        warning: 1 label has positives in one part only: cat
        warning: 1 label has fewer than 1 positive in part val: cat
        note: 1 image of part val has no any-of label, and none unknown: c
        positives of labels: cat 2, dog 0
        labels per image: 0: 1, 1: 2
        found: 0 errors, 3 warnings, 1 note
    """
    check_positive(min_positives, "min_positives")
    if not parts:
        raise ValueError("there is no part to examine")
    first = next(iter(parts.values()))
    for name, table in parts.items():
        first.space.check_same(table.space, f"part {name!r}")
    findings = [finding for name, table in parts.items() for finding in _of_rows(name, table)]
    findings += _of_labels(parts, min_positives)
    implications: list[BrokenImplication] = []
    if taxonomy is not None:
        first.space.check_same(taxonomy.space, "the taxonomy")
        implications, found = _of_taxonomy(parts, taxonomy)
        findings += found
    if surveys is not None:
        _check_lengths(parts, surveys)
        findings += _of_images(parts, surveys, expected_size)
        findings += _of_duplicates(parts, surveys, distance)
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    names, together, correlation = relate_labels(parts.values(), most=_PAIRS)
    labels = first.space.names
    return Diagnosis(
        findings=tuple(findings),
        counts={label: {name: int(t.counts[k]) for name, t in parts.items()} for k, label in enumerate(labels)},
        labels_per_image=_labels_per_image(parts),
        names=names,
        together=together,
        correlation=correlation,
        num_images={name: len(table) for name, table in parts.items()},
        pairs=_pairs(first, names, together, correlation),
        implications=tuple(implications),
        sizes=None if surveys is None else _sizes(surveys),
    )


def _check_lengths(parts: Mapping[str, ImageTable], surveys: Mapping[str, Survey]) -> None:
    for name, table in parts.items():
        if name not in surveys or len(surveys[name].heights) != len(table):
            raise ValueError(f"a survey of the {len(table)} images of part {name!r} is wanted")


def _finding(level: str, kind: str, what: str, names: Any) -> list[Finding]:
    """Return one finding about `names`, or none where there are none; `what` has {n}, {s}, {has} to fill in."""
    held = [str(name) for name in names]
    if not held:
        return []
    one = len(held) == 1
    message = what.format(
        n=f"{len(held):,}", s="" if one else "s", has="has" if one else "have", is_="is" if one else "are"
    )
    return [Finding(level, kind, message, len(held), tuple(held[:_SHOWN]))]


def _of_rows(name: str, table: ImageTable) -> list[Finding]:
    any_of = table.space.any_of
    if not any_of.any() or not len(table):
        return []
    empty = np.diff(sp.csr_array(table.targets[:, any_of]).indptr) == 0
    if table.unknown is not None:
        empty &= np.diff(sp.csr_array(table.unknown[:, any_of]).indptr) == 0
    what = f"{{n}} image{{s}} of part {name} {{has}} no any-of label, and none unknown"
    return _finding("note", "empty rows", what, table.ids[empty])


def _of_labels(parts: Mapping[str, ImageTable], min_positives: int) -> list[Finding]:
    names = np.array(next(iter(parts.values())).space.names, dtype=object)
    labelled = {name: table for name, table in parts.items() if table.known_counts.any()}
    findings = [
        Finding("note", "no labels", f"of part {name} nothing is known", len(table))
        for name, table in parts.items()
        if name not in labelled
    ]
    if not labelled:
        return findings
    counts = np.stack([table.counts for table in labelled.values()])
    known = np.stack([table.known_counts for table in labelled.values()])
    total, whole = counts.sum(axis=0), known.sum(axis=0)
    findings += _finding("warning", "never present", "{n} label{s} {has} no positive anywhere", names[total == 0])
    always = names[(total == whole) & (total > 0)]
    findings += _finding("warning", "always present", "{n} label{s} {has} no negative anywhere", always)
    if len(labelled) > 1:
        lonely = ((counts > 0).sum(axis=0) == 1) & (total > 0)
        findings += _finding("warning", "one part only", "{n} label{s} {has} positives in one part only", names[lonely])
    for name, row in zip(labelled, counts, strict=True):
        rare = names[(row < min_positives) & (total > 0)]
        plural = "" if min_positives == 1 else "s"
        what = f"{{n}} label{{s}} {{has}} fewer than {min_positives} positive{plural} in part {name}"
        findings += _finding("warning", "few positives", what, rare)
    return findings


def _of_taxonomy(parts: Mapping[str, ImageTable], taxonomy: Taxonomy) -> tuple[list[BrokenImplication], list[Finding]]:
    """Return the implications that the targets of all parts break, and the findings on them and on hints."""
    tables = list(parts.values())
    ids = np.concatenate([table.ids for table in tables])
    present = sp.csr_array(sp.vstack([table.targets for table in tables])).astype(np.int64)
    missing = sp.csr_array(sp.vstack([taxonomy.implied_missing(table.targets, table.unknown) for table in tables]))
    pairs = sp.coo_array((present.T @ missing.astype(np.int64)).multiply(taxonomy.closure))
    pairs.eliminate_zeros()
    order = np.lexsort((*pairs.coords[::-1], -pairs.data))
    columns, absent = sp.csc_array(present), sp.csc_array(missing)
    broken = []
    for child, parent, count in zip(*(axis[order].tolist() for axis in (*pairs.coords, pairs.data)), strict=True):
        rows = np.intersect1d(_rows_of(columns, child), _rows_of(absent, parent))[:_SHOWN]
        names = (taxonomy.space.names[child], taxonomy.space.names[parent])
        broken.append(BrokenImplication(*names, count, tuple(str(name) for name in ids[rows])))
    lacking = ids[np.diff(missing.indptr) > 0]
    what = f"{{n}} image{{s}} {{has}} labels that imply others which are absent, {missing.nnz:,} in all"
    findings = _finding("warning", "implied missing", what, lacking)
    for each in broken[:_SHOWN]:
        what = f"{each.child!r} implies {each.parent!r}: missing in {each.count:,} image{'s' * (each.count != 1)}"
        findings.append(Finding("warning", "implied missing", what, each.count, each.examples))
    return broken, findings + _of_hints(tables, ids, taxonomy)


def _of_hints(tables: Sequence[ImageTable], ids: np.ndarray, taxonomy: Taxonomy) -> list[Finding]:
    held = sp.csc_array(sp.vstack([taxonomy.exclusive_violations(t.targets, t.unknown) for t in tables]))
    findings = []
    for column, hint in enumerate(taxonomy.exclusive_hints):
        rows = _rows_of(held, column)
        what = f"of {', '.join(map(repr, hint))}, which exclude each other, two or more hold in {len(rows):,} image"
        examples = tuple(str(name) for name in ids[rows[:_SHOWN]])
        if len(rows):
            text = what + "s" * (len(rows) != 1)
            findings.append(Finding("warning", "exclusive together", text, len(rows), examples))
    return findings


def _rows_of(columns: sp.csc_array, column: int) -> np.ndarray:
    return columns.indices[columns.indptr[column] : columns.indptr[column + 1]]


def _of_images(
    parts: Mapping[str, ImageTable], surveys: Mapping[str, Survey], expected_size: tuple[int, int] | None
) -> list[Finding]:
    findings: list[Finding] = []
    for name, table in parts.items():
        survey = surveys[name]
        for reason in sorted({reason for reason, _ in survey.faults.values()}):
            rows = [row for row, (why, _) in survey.faults.items() if why == reason]
            what = f"{{n}} image{{s}} of part {name} cannot be read ({reason})"
            findings += _finding("error", "unreadable", what, table.ids[rows])
        high, wide = survey.heights, survey.widths
        long = survey.readable & (np.maximum(high, wide) >= _ODD_RATIO * np.maximum(np.minimum(high, wide), 1))
        what = f"{{n}} image{{s}} of part {name} {{is_}} {_ODD_RATIO} or more times as long as wide, or the reverse"
        findings += _finding("warning", "odd shape", what, table.ids[long])
        if expected_size is not None:
            other = survey.readable & ((high != expected_size[0]) | (wide != expected_size[1]))
            what = f"{{n}} image{{s}} of part {name} {{is_}} not {expected_size[0]} x {expected_size[1]}"
            findings += _finding("warning", "other size", what, table.ids[other])
        for note, number in sorted(survey.notes.items()):
            findings.append(Finding("note", "oddity", f"{number:,} of part {name}: {note}", number))
    return findings


def _of_duplicates(parts: Mapping[str, ImageTable], surveys: Mapping[str, Survey], distance: int) -> list[Finding]:
    held = [surveys[name] for name in parts]
    whole = Survey(
        heights=np.concatenate([each.heights for each in held]),
        widths=np.concatenate([each.widths for each in held]),
        pixels=np.concatenate([each.pixels for each in held]),
        looks=np.concatenate([each.looks for each in held]),
        faults={},
        notes=Counter(),
    )
    ids = np.concatenate([table.ids for table in parts.values()])
    part = np.repeat(np.arange(len(parts)), [len(table) for table in parts.values()])
    exact = whole.duplicates()
    same = _leaked(exact, part)
    near = _leaked(whole.duplicates(distance), part) & ~same
    where = f"in an earlier part ({', '.join(parts)})"
    repeated = np.bincount(exact, minlength=len(ids))[exact] > 1
    return [
        *_finding(
            "warning", "same picture across parts", f"{{n}} image{{s}} {{has}} the same picture {where}", ids[same]
        ),
        *_finding(
            "warning", "near-duplicate across parts", f"{{n}} image{{s}} {{has}} a near-duplicate {where}", ids[near]
        ),
        *_finding("note", "same picture", "{n} image{s} {has} the same picture as another", ids[repeated]),
    ]


def _leaked(sets: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return which images (N,) belong to a set that also stands in an earlier part: what was learned is scored."""
    earliest = np.full(len(sets), len(sets))
    np.minimum.at(earliest, sets, part)
    return earliest[sets] < part


def _labels_per_image(parts: Mapping[str, ImageTable]) -> np.ndarray:
    held = []
    for table in parts.values():
        any_of = table.space.any_of
        labelled = np.ones(len(table), dtype=bool) if any_of.any() else np.zeros(len(table), dtype=bool)
        if table.unknown is not None:
            labelled &= np.diff(sp.csr_array(table.unknown[:, any_of]).indptr) < max(1, any_of.sum())
        held.append(np.diff(sp.csr_array(table.targets[:, any_of]).indptr)[labelled])
    return np.bincount(np.concatenate(held))


def _pairs(
    table: ImageTable, names: tuple[str, ...], together: np.ndarray, correlation: np.ndarray
) -> tuple[Pair, ...]:
    """Return the pairs of labels that are not of one exclusive group, of which never two hold."""
    group_of = {label: group.name for group in table.space.exclusive_groups for label in group.labels}
    pairs = [
        Pair(names[i], names[j], int(together[i, j]), float(correlation[i, j]))
        for i, j in combinations(range(len(names)), 2)
        if group_of.get(names[i], i) != group_of.get(names[j], j)
    ]
    return tuple(sorted(pairs, key=lambda pair: -np.nan_to_num(abs(pair.correlation), nan=-1.0)))


def _sizes(surveys: Mapping[str, Survey]) -> dict[tuple[int, int], int]:
    tally: Counter[tuple[int, int]] = Counter()
    for survey in surveys.values():
        held = survey.readable
        tally.update(zip(survey.heights[held].tolist(), survey.widths[held].tolist(), strict=True))
    return dict(tally.most_common())
