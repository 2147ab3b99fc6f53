"""Thresholds: what they are, how they decide, and the files they lie in.

The rule is always `score >= threshold`. Exclusive groups are decided by their highest score and have no thresholds.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlabel._checks import DataError, resolve
from mlabel._files import read_json, to_json, write_atomically
from mlabel.decisions.rules import MCut, TopK, rule_from_dict
from mlabel.labels import Group, LabelSpace, decide, threshold_values

FORMAT = "mlabel.thresholds/1"
SOURCES = ("label", "group", "global", "default", "exclusive", "row", "file")
DEFAULT = 0.5
_COLUMNS = ["column", "name", "group", "threshold", "source"]


@dataclass(frozen=True, eq=False)
class Thresholds:
    """One threshold a label, with what it was fitted for.

    inf is a threshold, too: what has it is never decided, since no threshold was worth it.

    Attributes:
        values: (L,) float64, read-only; NaN at the columns of exclusive groups, and everywhere with a `rule`.
        source: For each label what its threshold was fitted on: `label`, `group` or `global`; `default` where nothing
            could be fitted (0.5), `exclusive` where there is none, `row` where a `rule` decides, `file` where it was
            read from the file of another tagger.
        space: The columns' meaning; None: every column is an any-of label.
        objective: What they were fitted for.
        scope: What was to have a threshold of its own.
        options: Of the objective, such as `{"beta": 2.0}`.
        rule: What decides any-of labels by row, in the place of thresholds; None: the thresholds do.

    Raises:
        ValueError: values, sources and space of different lengths, or NaN at an any-of column.

    Example:
        >>> Thresholds(np.array([0.2, 0.7]), ("label", "label")).decide([[0.5, 0.5]])
        array([[ True, False]])
    """

    values: np.ndarray
    source: tuple[str, ...]
    space: LabelSpace | None = None
    objective: str = "f1"
    scope: str = "label"
    options: Mapping[str, Any] = field(default_factory=dict)
    rule: TopK | MCut | None = None

    def __post_init__(self) -> None:
        held = threshold_values(0.5 if self.rule else self.values, len(self.source), self.space)
        values = np.full(len(held), np.nan) if self.rule else held
        for source in self.source:
            resolve(source, dict.fromkeys(SOURCES), "source of a threshold")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "source", tuple(self.source))

    @classmethod
    def of_rule(cls, rule: TopK | MCut, num_labels: int, space: LabelSpace | None = None) -> Thresholds:
        """Return a rule that decides by row in the form of thresholds, so that it can be kept where they are.

        Args:
            rule: The rule.
            num_labels: L.
            space: The columns' meaning; None: every column is an any-of label.
        """
        any_of = np.ones(num_labels, dtype=bool) if space is None else space.any_of
        source = tuple("row" if each else "exclusive" for each in any_of)
        told = rule.to_dict()
        options = {"k": told["k"]} if "k" in told else {}
        return cls(np.full(num_labels, np.nan), source, space, told["name"], told["scope"], options, rule)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def names(self) -> tuple[str, ...]:
        """The label names; column numbers where there is no space."""
        return self.space.names if self.space else tuple(str(column) for column in range(len(self)))

    def decide(self, scores: Any) -> np.ndarray:
        """Return decisions (N, L) bool for `scores` (N, L); see `mlabel.labels.decide`."""
        return decide(scores, self, self.space)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON to the file `path`, or, where its name ends in .csv, what `to_csv` writes."""
        if Path(path).suffix.lower() == ".csv":
            self.to_csv(path)
            return
        rows = zip(self.names, self.values.tolist(), self.source, strict=True)
        data = {
            "format": FORMAT,
            "objective": self.objective,
            "scope": self.scope,
            "options": dict(self.options),
            "rule": None if self.rule is None else self.rule.to_dict(),
            "labels": [{"name": n, "threshold": _plain(v), "source": s} for n, v, s in rows],
            "space": None if self.space is None else self.space.to_dict(),
        }
        write_atomically(path, to_json(data))

    def to_csv(self, path: str | Path) -> None:
        """Write `column,name,group,threshold,source` lines to the file `path`, one a label.

        `column` is the label's column in scores, and in targets as CSR; the threshold of an exclusive label is empty.
        What they were fitted for is not in the file; JSON has it.

        Raises:
            ValueError: a rule decides in the place of thresholds.
        """
        if self.rule is not None:
            raise ValueError(f"{self.rule} decides by row and has no thresholds to write as CSV; save it as JSON")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        groups = [""] * len(self)
        if self.space is not None:
            groups = [group.name for group in self.space.groups for _ in group.labels]
        rows = zip(self.names, groups, self.values.tolist(), self.source, strict=True)
        for column, (name, group, value, source) in enumerate(rows):
            writer.writerow([column, name, group, "" if value != value else repr(value), source])
        write_atomically(path, text.getvalue())

    @classmethod
    def load(cls, path: str | Path, space: LabelSpace | None = None) -> Thresholds:
        """Return the thresholds of the file `path`.

        It is the JSON or CSV that was saved; or, known by the name `.csv` and its header, the `selected_tags.csv` of a
        tagger, with `name` and `best_threshold` of each column. Of that file, which does not say which labels exclude
        each other, `space` must be given; `mlabel.data.read_selected_tags(path).thresholds` takes it from the
        categories.

        Args:
            path: The file.
            space: The space that they must be of; None: any.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is none of these.
            ValueError: they are of another space; the first difference is shown.
        """
        loaded = _of_csv(Path(path), space) if Path(path).suffix.lower() == ".csv" else _of_json(path)
        if space is not None:
            if loaded.space is None:
                raise ValueError(f"{path}: these thresholds were saved without a label space, so theirs is not known")
            space.check_same(loaded.space, str(path))
        return loaded


def best_thresholds(values: Any, space: LabelSpace) -> Thresholds:
    """Return thresholds that came with a tagger; where an any-of label has none (NaN), it is 0.5.

    Args:
        values: (L,); what exclusive columns hold is not used.
        space: The columns' meaning.

    Raises:
        ValueError: another number of values than of labels.

    Example:
        >>> best_thresholds([0.35, float("nan")], LabelSpace([Group("general", ["a", "b"])])).values
        array([0.35, 0.5 ])
    """
    values = np.array(values, dtype=np.float64)
    if values.shape != (len(space),):
        raise ValueError(f"thresholds must be of shape ({len(space)},); got {values.shape}")
    missing = np.isnan(values) & space.any_of
    values[missing] = DEFAULT
    source = np.where(missing, "default", np.where(space.any_of, "file", "exclusive"))
    return Thresholds(values, tuple(source.tolist()), space, "file")


def _plain(value: float) -> float | str | None:
    """Return a threshold for JSON, which has neither NaN nor inf."""
    return None if value != value else str(value) if np.isinf(value) else value


def _of_json(path: str | Path) -> Thresholds:
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path}: thresholds of format {FORMAT!r} were wanted")
    try:
        space = None if data["space"] is None else LabelSpace.from_dict(data["space"])
        values = [float("nan") if each["threshold"] is None else float(each["threshold"]) for each in data["labels"]]
        source = tuple(each["source"] for each in data["labels"])
        rule = None if data.get("rule") is None else rule_from_dict(data["rule"])
        options = dict(data.get("options") or {})
        return Thresholds(np.array(values), source, space, data["objective"], data["scope"], options, rule)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not thresholds: {error}") from error


def _of_csv(path: Path, space: LabelSpace | None) -> Thresholds:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            rows = list(csv.reader(file, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not CSV in UTF-8: {error}") from error
    header, rows = (rows[0] if rows else []), [row for row in rows[1:] if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(
                f"{path}, label {number}: {len(header)} cells were wanted, as in the header; got {len(row)}"
            )
    if header == _COLUMNS:
        return _of_rows(path, rows)
    if not {"name", "best_threshold"} <= set(header):
        wanted = f"{','.join(_COLUMNS)}, or with name and best_threshold"
        raise DataError(f"{path}: a header {wanted}, was wanted; got {','.join(header)[:200]!r}")
    if space is None:
        raise ValueError(
            f"{path}: this tag list does not say which labels exclude each other; pass space=, or take "
            "mlabel.data.read_selected_tags(path).thresholds"
        )
    names = tuple(unicodedata.normalize("NFC", row[header.index("name")]) for row in rows)
    if names != space.names:
        pairs = zip(names, space.names, strict=False)
        place = next((at for at, (theirs, mine) in enumerate(pairs) if theirs != mine), min(len(names), len(space)))
        raise ValueError(
            f"{path}: its {len(names)} names are not the {len(space)} of the space; column {place} differs"
        )
    return best_thresholds([_number(path, row[header.index("best_threshold")], row) for row in rows], space)


def _of_rows(path: Path, rows: list[list[str]]) -> Thresholds:
    """Return the thresholds of what `to_csv` wrote; a group's rows stand together."""
    if [row[0] for row in rows] != [str(column) for column in range(len(rows))]:
        raise DataError(f"{path}: the columns must be numbered 0 to {len(rows) - 1}, in order")
    values = np.array([_number(path, row[3], row) for row in rows])
    groups: dict[str, list[list[str]]] = {}
    for row in rows:
        groups.setdefault(row[2], []).append(row)
    try:
        space = None
        if groups and set(groups) != {""}:
            space = LabelSpace(
                [Group(name, [row[1] for row in held], held[0][4] == "exclusive") for name, held in groups.items()]
            )
        loaded = Thresholds(values, tuple(row[4] for row in rows), space, "file")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not thresholds: {error}") from error
    if space is not None and space.names != tuple(unicodedata.normalize("NFC", row[1]) for row in rows):
        raise DataError(f"{path}: the rows of a group must stand together")
    return loaded


def _number(path: Path, text: str, row: list[str]) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise DataError(f"{path}: a threshold was wanted; found {text[:80]!r} in {','.join(row)[:200]!r}") from None
