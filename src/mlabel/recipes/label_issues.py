"""Probable errors in the labels of a run's images: scores out of sample, what contradicts them, table and gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlabel._checks import check_between
from mlabel.data import BadImage, ImageTable, stratified_split
from mlabel.inference import Tagger
from mlabel.recipes.calibration import calibrated, cross_calibrated
from mlabel.recipes.judging import fifths
from mlabel.report import LabelIssues, cross_fit_scores, label_issues, write_gallery
from mlabel.training import BadLog

if TYPE_CHECKING:
    from mlabel.recipes.run import Run

FOLDS = 5
_SHOWN_LABELS = 10  # of which a note names how many issues they have


@dataclass(frozen=True)
class RunIssues:
    """Probable errors in the labels of one part of a run.

    Attributes:
        part: The part.
        issues: What was found; its rows are those of `table`.
        table: The images that were scored.
        scores: Out of sample, (M, L) float32.
        notes: What a reader of them must know, such as how the scores came about.
    """

    part: str
    issues: LabelIssues
    table: ImageTable
    scores: np.ndarray
    notes: tuple[str, ...]


def find_run_issues(
    run: Run,
    part: str | None = None,
    *,
    method: str = "noise_rate",
    rank: str = "self_confidence",
    folds: int = FOLDS,
) -> RunIssues:
    """Return which labels of a part are probably missing or wrong; see `mlabel.report.label_issues`.

    The model was not trained on the validation and test part, so that its scores are out of sample there; calibrated
    as the run's are. Images of the training part are scored by linear heads on the features of the model, each by one
    that did not see it: see `mlabel.report.cross_fit_scores`.

    Args:
        run: Opened, with its best weights.
        part: None: test where it has labels, else val.
        method, rank: See `label_issues`.
        folds: Of the training part.

    Raises:
        ValueError: the part is not there, or has no labels.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, Run, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> found = find_run_issues(Run.open(folder + "/a", device="cpu"))
        >>> found.part, found.scores.shape
        ('test', (11, 14))
    """
    part, notes = run.part_to_evaluate(part)
    if part == "train":
        scores, table = _cross_fitted(run, folds)
        notes = (
            *notes,
            f"scores are of linear heads on the model's features, cross-fitted in {folds} folds; the features "
            "themselves come from training on these images, and repeat some of what was given there",
        )
    else:
        scores, table = _scored(run, part)
        notes = (*notes, "scores are of the model, which was not trained on these images")
    issues = label_issues(scores, table.targets, mask=table.unknown, space=table.space, method=method, rank=rank)
    return RunIssues(part, issues, table, scores, (*notes, *_describe(issues, table)))


def _scored(run: Run, part: str) -> tuple[np.ndarray, ImageTable]:
    """Return the model's probabilities of the images of a part that can be read, calibrated, and those images."""
    scores, table = run.score(part).of_scored(run.parts[part])
    if part == "val":  # which the calibration was fitted on
        return cross_calibrated(run.recipe, run.folder, scores, table, folds=fifths(table)), table
    return calibrated(run.folder, scores, table), table


def _cross_fitted(run: Run, folds: int) -> tuple[np.ndarray, ImageTable]:
    """Return probabilities of the training images that can be read, by heads that did not see them, and those."""
    config, table = run.recipe.train, run.parts["train"]
    bad: list[tuple[str, str]] = []
    batches = Tagger(run.model).score(
        table,
        with_features=True,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        precision=config.precision,
        on_bad=config.on_bad,
        max_bad=config.max_bad,
        bad=bad,
    )
    shown: Any = run.progress(batches, -(-len(table) // config.batch_size), "features")  # type: ignore[arg-type]
    features = np.concatenate([batch.features for batch in shown])
    if bad:
        reasons = dict(bad)
        skipped = np.array([name in reasons for name in table.ids.tolist()])
        left_out = zip(table.ids[skipped].tolist(), table.paths[skipped].tolist(), strict=True)
        log = BadLog(run.folder / "bad.jsonl")
        log.add("train", [BadImage(name, path, f"{path}: {reasons[name]}") for name, path in left_out])
        table = table[np.flatnonzero(~skipped)]
    known = {"mask": table.unknown, "space": table.space}
    return cross_fit_scores(features, table.targets, folds=_deal(table, folds, config.seed), **known), table


def _deal(table: ImageTable, folds: int, seed: int) -> np.ndarray:
    """Return the stratified fold of each image (N,); copies of a picture, and what else belongs together, share one."""
    check_between(folds, 2, len(table), "folds")
    shares = (1 / folds,) * folds
    return stratified_split(table.targets, shares, seed=seed, groups=table.groups, unknown=table.unknown)


def _describe(issues: LabelIssues, table: ImageTable) -> tuple[str, ...]:
    """Return sentences on how many issues there are, and of which labels."""
    missing = int((issues.kinds == "missing").sum())
    found = f"{missing:,} labels are probably missing and {len(issues) - missing:,} wrong, on {len(table):,} images"
    rows = issues.label_table()[:_SHOWN_LABELS]
    most = ", ".join(f"{row['label']} ({row['missing']:,} missing, {row['wrong']:,} wrong)" for row in rows)
    return (found, f"most of them: {most}") if rows else (found,)


def write_issues(run: Run, found: RunIssues, *, limit: int = 24, for_spreadsheet: bool = False) -> tuple[Path, Path]:
    """Write issues into the run's `report` folder; return the CSV file and the page of a gallery.

    Args:
        run: The run.
        found: What `find_run_issues` returned.
        limit: How many pictures of each kind the gallery has.
        for_spreadsheet: See `LabelIssues.to_csv`.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, Run, find_run_issues, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> opened = Run.open(folder + "/a", device="cpu")
        >>> [path.name for path in write_issues(opened, find_run_issues(opened))]
        ['label-issues-test.csv', 'index.html']
    """
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    path = folder / f"label-issues-{found.part}.csv"
    table = found.issues.to_csv(path, found.table.ids, for_spreadsheet=for_spreadsheet)
    images: Sequence[str] = found.table.paths.tolist()
    ids = [Path(str(each)).name for each in found.table.ids]
    page = write_gallery(
        folder / f"label-issues-{found.part}",
        found.issues.gallery(images, ids=ids, limit=limit),
        title=f"Probable label errors, {found.part} part of {Path(run.recipe.data).name}",
        notes=found.notes,
    )
    return table, page
