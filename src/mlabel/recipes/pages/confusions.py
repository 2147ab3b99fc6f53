"""The section of a run's page on errors by label: 2 x 2 tables, and which labels are taken for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlabel.labels import Group
from mlabel.metrics import cross_confusion
from mlabel.recipes.pages.shown import DRAWN, GROUPS, Shown, describe_highest
from mlabel.report import Picture, Section, plot_confusions, plot_shares

_COUNTED = 2000  # labels whose confusions are counted
_PAIRS = 20  # of labels, in a table
_PAIRS_IN_CSV = 10_000
_TEXT = (
    "A pair counts the images in which one label holds and another of its group was decided although it does not. "
    "Share: of the images that have the first and not the second. Lift: that share over how often the second is "
    "decided wherever it does not hold; 1 says that the first has nothing to do with it."
)


class Confused(NamedTuple):
    """What is wrongly decided among the labels of a group.

    Attributes:
        columns: The labels that are counted, (K,).
        wrong: (K, K) images with the one and, wrongly decided, the other.
        able: (K, K) images with the one and known to lack the other.
        rate: Of the images that are known to lack a label, those in which it is decided, (K,).
    """

    columns: np.ndarray
    wrong: np.ndarray
    able: np.ndarray
    rate: np.ndarray


def confusion(shown: Shown) -> Section | None:
    """Return the 2 x 2 tables of some labels, and which labels are taken for which."""
    pictures = _label_tables(shown)
    exclusive = shown.space.exclusive_groups
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(shown.space.groups, start=1):
        found = _count(shown, group)
        rows += _pairs(shown, group, found)
        drawn = group in exclusive[:GROUPS] if group.exclusive else found.wrong.any()
        if len(group) > 1 and drawn:
            pictures |= _draw(shown, group, found, shown.folder / f"confusion-{number}.png")
    rows.sort(key=lambda row: -row["images"])
    shown.write_rows("confusion.csv", rows[:_PAIRS_IN_CSV])
    text = [_TEXT]
    if any(len(group) > _COUNTED for group in shown.space.groups):
        text.append(f"Of a group the {_COUNTED:,} labels with the most positives and false positives are counted.")
    if len(exclusive) > GROUPS:
        text.append(f"Drawn are {GROUPS} of {len(exclusive)} exclusive groups.")
    table = [{**row, "share": f"{row['share']:.1%}", "lift": f"{row['lift']:.2f}"} for row in rows[:_PAIRS]]
    return Section("Confusion", text, pictures=pictures, tables={"Labels taken for others": table})


def _label_tables(shown: Shown) -> dict[str, Picture]:
    """Return the picture of the 2 x 2 tables of some labels."""
    held = [shown.result.best.per_label[name] for name in ("tp", "fp", "fn", "tn")]
    counts = {shown.space.names[k]: [int(values[k]) for values in held] for k in shown.labels}
    if not counts:
        return {}
    alt = "; ".join(f"{n}: {c[0]} right, {c[1]} wrongly decided, {c[2]} missed" for n, c in counts.items())
    path = plot_confusions(counts, shown.folder / "confusion-labels.png")
    return {"Decided and true of some labels; the table of labels has those of all": Picture(path, alt)}


def _count(shown: Shown, group: Group) -> Confused:
    span = shown.space.slices[group.name]
    support, fp, tn = (shown.result.best.per_label[name][span] for name in ("support", "fp", "tn"))
    chosen = np.sort(np.argsort(-(support + fp), kind="stable")[:_COUNTED])
    columns = chosen + span.start
    table = shown.table
    wrong = cross_confusion(shown.decisions, table.targets, table.unknown, labels=columns)
    present = shown.present[:, columns].astype(np.int64)
    able = support[chosen][:, None] - (present.T @ present).toarray()
    if table.unknown is not None:
        able -= (present.T @ table.unknown[:, columns].astype(np.int64)).toarray()
    return Confused(columns, wrong, able, fp[chosen] / np.maximum(fp[chosen] + tn[chosen], 1))


def _pairs(shown: Shown, group: Group, found: Confused) -> list[dict[str, Any]]:
    """Return the pairs that occur, the most frequent first."""
    names = shown.space.names
    true, decided = np.nonzero(found.wrong)
    order = np.argsort(-found.wrong[true, decided], kind="stable")[:_PAIRS_IN_CSV]
    pairs = []
    for one, other in zip(true[order].tolist(), decided[order].tolist(), strict=True):
        share = float(found.wrong[one, other] / found.able[one, other])
        labels = {"true": names[found.columns[one]], "decided": names[found.columns[other]]}
        numbers = {"images": int(found.wrong[one, other]), "share": share, "lift": share / float(found.rate[other])}
        pairs.append({"group": group.name, **labels, **numbers})
    return pairs


def _draw(shown: Shown, group: Group, found: Confused, path: Path) -> dict[str, Picture]:
    """Draw the labels of a group that matter most; of an exclusive one with what was right on the diagonal."""
    support, tp = (shown.result.best.per_label[name][found.columns] for name in ("support", "tp"))
    involved = support if group.exclusive else found.wrong.sum(axis=0) + found.wrong.sum(axis=1)
    some = np.sort(np.argsort(-involved, kind="stable")[:DRAWN])
    names = tuple(shown.space.names[column] for column in found.columns[some])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = found.wrong[np.ix_(some, some)] / found.able[np.ix_(some, some)]
        np.fill_diagonal(shares, tp[some] / support[some] if group.exclusive else np.nan)
    away = shares.copy()
    np.fill_diagonal(away, np.nan)
    decided = "decided" if group.exclusive else "wrongly decided"
    plot_shares(shares, path, names=names, titles=("true", decided))
    what = "what was decided of each class" if group.exclusive else "what was wrongly decided where a label holds"
    cut = f"; {len(names)} of {len(group):,} labels" if len(names) < len(group) else ""
    return {f"{group.name}: {what}, as shares{cut}": Picture(path, describe_highest("share confused", away, names))}
