"""The model card of a run: what its bundle says on the Hub, from what the run's files hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlabel._checks import DataError
from mlabel._files import new_folder, read_json
from mlabel.inference import Tagger, write_model_card
from mlabel.inference.bundle import BUNDLE_FILES
from mlabel.recipes.run import Run

# What the card shows of an evaluation, in this order.
_METRICS = (
    "exact_match",
    "micro_f1",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "map",
    "macro_auroc",
    "hamming_loss",
)
_LIMITS = (
    "A score is about images like those it was measured on; on others it may be wrong without looking unsure.",
    "Labels are those of the people who labelled the images, with their errors and habits.",
)


def copy_with_card(run: Run, folder: str | Path) -> Path:
    """Copy a run's bundle into `folder` with a model card, as the Hub has them; return the card.

    Args:
        run: With a bundle. Its metrics come from `report/metrics-PART.json`, the part being what it is evaluated on.
        folder: Where to, in the place of a bundle that is there.

    Raises:
        FileNotFoundError: the run has no bundle, or was not evaluated.
        DataError: the file of the metrics is not what an evaluation writes.
        FileExistsError: `folder` holds something else.

    Example:
        >>> import dataclasses, tempfile
        >>> from mlabel.recipes import DEMO, run, write_scenes
        >>> from mlabel.training import TrainConfig
        >>> folder = tempfile.mkdtemp()
        >>> data, train = write_scenes(folder, num_scenes=60), TrainConfig(epochs=1)
        >>> recipe = dataclasses.replace(DEMO, data=str(data), train=train)
        >>> _ = run(recipe, folder + "/a", say=lambda line: None)
        >>> from mlabel.recipes import Run
        >>> copy_with_card(Run.open(folder + "/a", device="cpu"), folder + "/hub").name
        'README.md'
    """
    source = run.folder / "bundle"
    tagger = Tagger.load(source, device="cpu")
    part, _ = run.part_to_evaluate()
    report = run.folder / "report" / f"metrics-{part}.json"
    if not report.exists():
        raise FileNotFoundError(f"{report} is not there; measure the run by mlabel evaluate --run {run.folder}")
    found = read_json(report)
    try:
        data, metrics = _data(run, found), _columns(found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{report}: not what mlabel evaluate writes ({error!r}); measure the run again") from error
    with new_folder(folder, "config.json", "a bundle") as temporary:
        for name in BUNDLE_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        write_model_card(
            temporary,
            tagger,
            title=f"{run.recipe.backbone} on {Path(run.recipe.data).name}",
            data=data,
            metrics=metrics,
            limits=[*_LIMITS, *_rare(run)],
        )
    return Path(folder) / "README.md"


def _data(run: Run, found: Mapping[str, Any]) -> Sequence[str]:
    sizes = ", ".join(f"{name} {len(table):,}" for name, table in run.parts.items())
    train = run.parts["train"]
    lines = [f"Read by mlabel's {run.recipe.reader} reader; images: {sizes}.", *train.notes]
    lines.append(f"Measured on the {found['part']} part: {found['scored']:,} of {found['expected']:,} images.")
    lines += found["notes"]
    if "intervals" not in found:
        lines.append("No intervals were made; mlabel evaluate --intervals makes them.")
    return lines


def _columns(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    shown = {}
    for title, column in found["columns"].items():
        held = column["metrics"]
        shown[title] = {name: f"{held[name]:.4f}" for name in _METRICS if isinstance(held.get(name), float)}
    last = list(shown)[-1]
    for name, ends in _ends(found).items():
        if name in shown[last]:
            shown[last][name] += f" ({ends[0]:.4f} to {ends[1]:.4f})"
    return shown


def _ends(found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    held = found.get("intervals", {}).get("metrics", {})
    return {name: (each["low"], each["high"]) for name, each in held.items()}


def _rare(run: Run) -> Sequence[str]:
    train = run.parts["train"]
    rare = [name for name, count in zip(train.space.names, train.counts.tolist(), strict=True) if count < 20]
    if not rare:
        return []
    more = f" and {len(rare) - 20:,} more" if len(rare) > 20 else ""
    return [f"Fewer than 20 training images had: {', '.join(rare[:20])}{more}."]
