"""The sections of a run's page; each leaves its figures beside the page as PNG and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel.data import ImageDataset, Relations, relate_labels
from mlabel.labels import LabelSpace
from mlabel.metrics import Reliability, reliability
from mlabel.recipes.pages.confusions import confusion
from mlabel.recipes.pages.galleries import make_galleries
from mlabel.recipes.pages.shown import DRAWN, GROUPS, Shown, describe_highest
from mlabel.report import (
    Picture,
    Section,
    plot_correlation,
    plot_examples,
    plot_frequencies,
    plot_labels_per_image,
    plot_precision_recall,
    plot_reliability,
    plot_shares,
    precision_recall,
)

EXAMPLES = 24  # images in the picture of a run
_CURVE_POINTS = 500  # of a label in the CSV file


def groups(shown: Shown) -> Section | None:
    """Return how each exclusive group fares, and the means over labels by group."""
    found = shown.result.best.groups
    of_prior = next(iter(shown.result.columns.values())).groups
    rows = [
        {
            "group": name,
            "classes": shown.result.label_groups.count(name),
            "images": int(held["num_samples"]),
            "accuracy": held["accuracy"],
            "mean_class_accuracy": held["mean_class_accuracy"],
            "accuracy_of_the_prior": of_prior[name]["accuracy"],
        }
        for name, held in found.items()
    ]
    tables = {"Exclusive groups": rows, "Means over labels": shown.result.by_group()}
    shown.write_rows("groups.csv", rows)
    text = "In an exclusive group the highest score decides. The prior always says the most frequent class."
    return Section("Groups", [text] if rows else [], tables=tables)


def frequency(shown: Shown) -> Section | None:
    """Return how labels fare that are frequent or rare in training."""
    deciles = shown.result.by_frequency("decile")
    shown.write_rows("deciles.csv", deciles)
    text = "Labels in the order of their training images: means over each tenth of them, the most frequent first."
    tables = {"Head, middle and tail": shown.result.by_frequency(), "Tenths": deciles}
    return Section("Labels by frequency", [text], tables=tables)


def data(shown: Shown) -> Section | None:
    """Return how often labels occur and go together."""
    pictures = {**_frequencies(shown), **_labels_per_image(shown), **_relations(shown)}
    return Section("Data", pictures=pictures)


def _frequencies(shown: Shown) -> dict[str, Picture]:
    names, counts = shown.space.names, shown.result.counts
    support = shown.result.best.per_label["support"]
    rows = zip(names, shown.result.label_groups, counts.tolist(), support.tolist(), strict=True)
    keys = ("label", "group", "train", shown.result.part)
    shown.write_rows("frequency.csv", (dict(zip(keys, row, strict=True)) for row in rows))
    path = plot_frequencies(counts, shown.folder / "frequency.png", names=list(names))
    often, rare = names[int(counts.argmax())], names[int(counts.argmin())]
    alt = f"Training images of each label: from {counts.max():,} ({often}) to {counts.min():,} ({rare})"
    return {"Training images of each label": Picture(path, alt)}


def _relations(shown: Shown) -> dict[str, Picture]:
    """Return heat maps of the share of images that have a label and another, and of correlation."""
    found = relate_labels([shown.run.parts["train"]], most=DRAWN)
    if len(found.names) < 2:
        return {}
    if shown.space.exclusive_groups:
        found = _by_column(found, shown.space)
    shown.write_rows("co-occurrence.csv", _pairs_of(found))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = found.together / found.together.diagonal()[:, None]
    correlation = found.correlation.copy()
    for matrix in (shares, correlation):
        np.fill_diagonal(matrix, np.nan)
    number = shown.space.num_labels
    which = f"the {DRAWN} most frequent of {number:,} labels" if number > DRAWN else "all labels"
    names, titles = found.names, ("of the images with", "have also")
    of_shares = plot_shares(shares, shown.folder / "co-occurrence.png", names=names, titles=titles)
    of_correlation = plot_correlation(correlation, shown.folder / "correlation.png", names=names)
    return {
        f"Co-occurrence in training: {which}": Picture(of_shares, describe_highest("have also", shares, names)),
        f"Correlation (phi) in training: {which}": Picture(
            of_correlation, describe_highest("correlation", correlation, names)
        ),
    }


def _labels_per_image(shown: Shown) -> dict[str, Picture]:
    """Return how many labels the images have, and how many were decided; nothing of exclusive groups."""
    any_of = shown.space.any_of
    if not any_of.any():
        return {}
    columns = np.flatnonzero(any_of)
    labelled = np.ones(len(shown.table), dtype=bool)
    if shown.table.unknown is not None:
        labelled &= np.diff(sp.csr_array(shown.table.unknown[:, columns]).indptr) < len(columns)
    true, decided = (
        np.diff(sp.csr_array(held[:, columns]).indptr)[labelled] for held in (shown.present, shown.decisions)
    )
    # One picture of an untrained model, which decides hundreds, must not hide what images have.
    most = int(max(true.max(initial=0), np.quantile(decided, 0.99) if len(decided) else 0))
    amounts, guesses = (np.bincount(np.minimum(each, most), minlength=most + 1) for each in (true, decided))
    rows = zip(range(most + 1), amounts.tolist(), guesses.tolist(), strict=True)
    shown.write_rows("labels-per-image.csv", ({"labels": k, "images": n, "decided": d} for k, n, d in rows))
    path = plot_labels_per_image(amounts, shown.folder / "labels-per-image.png", decided=guesses)
    alt = f"Labels of an image: on average {true.mean():.2f} are true and {decided.mean():.2f} are decided"
    cut = f"; at the end {most} or more" if decided.max(initial=0) > most else ""
    return {f"Labels of an image in the {shown.result.part} part, true and decided{cut}": Picture(path, alt)}


def _by_column(found: Relations, space: LabelSpace) -> Relations:
    """Return relations in the order of the space, in which the labels of a group stand together."""
    order = np.argsort([space.index(name) for name in found.names])
    names = tuple(found.names[k] for k in order)
    return Relations(names, found.together[np.ix_(order, order)], found.correlation[np.ix_(order, order)])


def _pairs_of(found: Relations) -> Iterator[dict[str, Any]]:
    for i, j in combinations(range(len(found.names)), 2):
        held = {"together": int(found.together[i, j]), "correlation": float(found.correlation[i, j])}
        yield {"one": found.names[i], "other": found.names[j], **held}


def calibration(shown: Shown) -> Section | None:
    """Return reliability diagrams: of all any-of labels, of each exclusive group, and of some labels."""
    diagrams = dict(_diagrams(shown))
    rows = (row for title, found in diagrams.items() for row in _bins(title, found))
    shown.write_rows("reliability.csv", rows)
    if not diagrams:
        return None
    path = plot_reliability(diagrams, shown.folder / "reliability.png")
    errors = {title: float(found.calibration_error[0]) for title, found in diagrams.items()}
    alt = "Calibration errors: " + ", ".join(f"{title} {value:.3f}" for title, value in errors.items())
    text = [
        "Each point is a tenth of the range of scores: how often the label holds over the mean score, with its 95 % "
        "interval. On the dashed line scores are right as probabilities; a point below it says too much. Bars are the "
        "share of scores there. Of an exclusive group it is the score of the class that was decided, and how often it "
        "is right."
    ]
    errors_table = [{"scores": title, "calibration_error": value} for title, value in errors.items()]
    return Section("Reliability", text, {"": Picture(path, alt)}, {"": errors_table})


def _diagrams(shown: Shown) -> Iterator[tuple[str, Reliability]]:
    table, scores, space = shown.table, shown.scores, shown.space
    any_of = np.flatnonzero(space.any_of)
    unknown = table.unknown
    if len(any_of):
        some = None if unknown is None else unknown[:, any_of]
        yield "all any-of labels", reliability(scores[:, any_of], table.targets[:, any_of], some, bins=10)
    for group in space.exclusive_groups[:GROUPS]:
        span = space.slices[group.name]
        known = np.diff(sp.csr_array(shown.present[:, span]).indptr) > 0
        if known.any():
            held = scores[known, span]
            right = np.asarray(shown.present[known][:, span].toarray())[np.arange(len(held)), held.argmax(axis=1)]
            yield group.name, reliability(held.max(axis=1)[:, None], right[:, None], bins=10)
    for label in shown.labels if len(any_of) else ():
        if space.any_of[label]:
            mask = None if unknown is None else unknown[:, [label]]
            yield space.names[label], reliability(scores[:, [label]], table.targets[:, [label]], mask, bins=10)


def _bins(title: str, found: Reliability) -> Iterator[dict[str, Any]]:
    for k, count in enumerate(found.counts[0].tolist()):
        ends = {"from": found.edges[0][k], "to": found.edges[0][k + 1]}
        shares = {name: getattr(found, name)[0][k] for name in ("mean_score", "share", "low", "high")}
        yield {"scores": title, **ends, "count": count, **shares}


def curves(shown: Shown) -> Section | None:
    """Return precision over recall of some labels."""
    names, levels = shown.space.names, shown.result.best.per_label["threshold"]
    precisions = shown.result.best.per_label["ap"]
    found = {}
    for label in shown.labels:
        known = np.ones(len(shown.table), dtype=bool)
        if shown.table.unknown is not None:
            known = ~shown.table.unknown[:, [label]].toarray()[:, 0]
        if known.any():
            truth = shown.table.targets[:, [label]].toarray()[:, 0]
            found[names[label]] = precision_recall(shown.scores[known, label], truth[known])
    shown.write_rows("precision-recall.csv", _points(found))
    if not found:
        return None
    thresholds = dict(zip(names, levels.tolist(), strict=True))
    path = plot_precision_recall(found, shown.folder / "precision-recall.png", thresholds=thresholds)
    alt = "Average precision: " + ", ".join(f"{names[k]} {precisions[k]:.3f}" for k in shown.labels)
    text = [
        "The dashed line is the precision of deciding the label always; the diamond is its threshold. The labels are "
        "those asked for, else the most frequent ones and then those of the lowest average precision."
    ]
    return Section("Precision and recall", text, {"": Picture(path, alt)})


def _points(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, curve in found.items():
        size = len(curve.thresholds)
        for k in np.unique(np.linspace(0, size - 1, min(size, _CURVE_POINTS)).round().astype(int)):
            held = {"threshold": curve.thresholds[k], "precision": curve.precision[k], "recall": curve.recall[k]}
            yield {"label": name, **held}


def examples(shown: Shown) -> Section | None:
    """Return some images of the part with what holds and what was decided."""
    rows = np.sort(np.random.default_rng(0).permutation(len(shown.table))[:EXAMPLES])
    model, chosen = shown.run.model, shown.table[rows]
    dataset = ImageDataset(chosen, image_size=model.image_size, channels=model.in_channels)
    path = plot_examples(
        [dataset[row][1].numpy() for row in range(len(rows))],
        names=shown.space.names,
        scores=shown.scores[rows],
        targets=chosen.targets,
        decisions=shown.decisions[rows].toarray(),
        mask=chosen.unknown,
        titles=[Path(str(each)).name for each in chosen.ids],
        path=shown.folder / "examples.png",
    )
    alt = f"{len(rows)} images drawn at random, each with its labels"
    return Section("Examples", ["Drawn at random."], {"": Picture(path, alt)})


# In the order of the page.
SECTIONS: dict[str, Callable[[Shown], Section | None]] = {
    "groups": groups,
    "frequency": frequency,
    "confusion": confusion,
    "curves": curves,
    "calibration": calibration,
    "data": data,
    "examples": examples,
    "galleries": make_galleries,
}
