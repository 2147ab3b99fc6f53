"""What ImageNet weights are worth: heads on frozen features, and fine-tuning, on photographs and on garments.

EfficientNet-Lite0 with its pip-installable ImageNet weights is the user's own backbone. On features of all images,
computed once and kept in `--features`, a linear and an MLP head are trained. On features of `--limit` training images
a linear head is trained, put into the model, and the whole model fine-tuned on these images, so that the two figures
of one head and one set of images differ by fine-tuning alone. Run

    python -m benchmarks.transfer --data FOLDER --features FOLDER

where the first folder holds `mirflickr14` and `FashionDataset`; `--heads-only` leaves the fine-tuning out, and
`--quick` takes few images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.features import load_features, pretrained_model
from mlabel import evaluate, fit, fit_thresholds
from mlabel.data import READERS, ImageTable
from mlabel.losses import create
from mlabel.models import create_head
from mlabel.training import TrainConfig, score_table

EPOCHS, BATCH, RATE = 30, 128, 1e-3  # of the heads
FINE_SIDE = 128
FINE = TrainConfig(
    epochs=3,
    batch_size=32,
    optimizer="adamw",
    lr=3e-4,
    layer_decay=0.8,
    head_lr=3e-4,
    weight_decay=0.05,
    weight_decay_on="weights",
    batch_norm="frozen",
    warmup_steps=15,
    augment="flip",
    monitor="loss",
)


@dataclass(frozen=True)
class Problem:
    """A data set, the side of its images, the part that figures are of, and the weightings to try."""

    name: str
    reader: str
    side: int
    part: str
    weightings: tuple[str | None, ...]


PROBLEMS = (
    Problem("mirflickr14", "mirflickr", 160, "test", (None,)),
    Problem("FashionDataset", "fashion", 192, "val", (None, "inverse_frequency")),
)


def rows_of(table: ImageTable, part: ImageTable) -> np.ndarray:
    """Return the rows of `table` that are those of `part`, in its order."""
    place = {each: row for row, each in enumerate(table.ids.tolist())}
    return np.array([place[each] for each in part.ids.tolist()])


def train_head(head: nn.Module, features: torch.Tensor, table: ImageTable, *, weighting: str | None) -> None:
    """Train a head on the features of a table's images, whose labels are all known."""
    loss = create("cross_entropy", space=table.space, targets=table.targets, weighting=weighting)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.01)
    batches = -(-len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    targets = torch.from_numpy(table.targets.toarray())
    head.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(features)).split(BATCH):
            optimizer.zero_grad()
            loss(head(features[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    head.eval()


def scores_of(head: nn.Module, features: torch.Tensor, table: ImageTable) -> np.ndarray:
    """Return the probabilities that a head gives."""
    with torch.no_grad():
        return table.space.probabilities(head(features)).numpy()


def figures(scores: Mapping[str, np.ndarray], parts: Mapping[str, ImageTable], part: str) -> dict[str, float]:
    """Return what is compared: of groups their accuracies, of tags F1 and exact match at 0.5 and fitted thresholds."""
    table = parts[part]
    half = evaluate(scores[part], table.targets, space=table.space, mask=table.unknown)
    if half.groups:
        names = ("mean_class_accuracy", "accuracy")
        return {name: float(np.mean([group[name] for group in half.groups.values()])) for name in names}
    levels = fit_thresholds(scores["val"], parts["val"].targets, space=table.space)
    fitted = evaluate(scores[part], table.targets, levels, space=table.space)
    names = ("exact_match", "macro_f1", "micro_f1")
    found = {f"{name} at {title}": by[name] for title, by in (("0.5", half), ("F1", fitted)) for name in names}
    return {**found, "map": half["map"]}


def frozen(problem: Problem, table: ImageTable, folder: Path, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the figures of each head on the features of all images."""
    parts = {name: part for name, part in table.parts().items() if part.known_counts.any()}
    raw = torch.from_numpy(load_features(table, folder, problem.name, side=problem.side))
    features = {name: raw[rows_of(table, part)] for name, part in parts.items()}
    for name in ("linear", "mlp"):
        for weighting in problem.weightings:
            torch.manual_seed(seed)
            head = create_head(name, raw.shape[1], table.space, dropout=0.3 if name == "mlp" else 0.0)
            train_head(head, features["train"], parts["train"], weighting=weighting)
            scores = {part: scores_of(head, features[part], parts[part]) for part in parts}
            title = f"frozen, {name}" + (f", {weighting}" if weighting else "")
            yield f"{title}, {problem.side} px, {len(parts['train']):,}", figures(scores, parts, problem.part)


def tuned(problem: Problem, table: ImageTable, folder: Path, *, limit: int, seed: int) -> Iterator[tuple[str, dict]]:
    """Yield the figures of a linear head on some images' features, and of the whole model trained on from there."""
    parts = {name: part for name, part in table.parts().items() if part.known_counts.any()}
    parts["train"] = parts["train"].limit(limit)
    stem = f"{problem.name}-{limit}"
    features = {
        name: torch.from_numpy(load_features(part, folder, f"{stem}-{name}", side=FINE_SIDE))
        for name, part in parts.items()
    }
    torch.manual_seed(seed)
    model = pretrained_model(table, side=FINE_SIDE)
    train_head(model.head, features["train"], parts["train"], weighting=None)
    scores = {part: scores_of(model.head, features[part], parts[part]) for part in parts}
    count = f"{FINE_SIDE} px, {len(parts['train']):,}"
    yield f"frozen, linear, {count}", figures(scores, parts, problem.part)
    loss = create("cross_entropy", space=table.space)
    begun = time.perf_counter()
    fit(model, loss, parts["train"], config=FINE, progress="none", device="cpu")
    seconds = time.perf_counter() - begun
    judged = {name: parts[name] for name in dict.fromkeys(("val", problem.part))}
    scores = {name: score_table(model, part, batch_size=64).probabilities for name, part in judged.items()}
    yield f"fine-tuned, {FINE.epochs} epochs, {count} ({seconds:.0f} s)", figures(scores, parts, problem.part)


def main() -> None:
    """Measure; print a table in Markdown for each data set, line by line as the figures come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--features", type=Path, required=True, help="folder of the features, kept for the next run")
    parser.add_argument("--limit", type=int, default=1500, help="training images of the fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="of heads and order")
    parser.add_argument("--heads-only", action="store_true", help="no fine-tuning")
    parser.add_argument("--quick", action="store_true", help="few images")
    options = parser.parse_args()
    for problem in PROBLEMS:
        table = READERS[problem.reader](str(options.data / problem.name))
        if options.quick:
            table = table.limit(200)
        titled = False
        sources = [frozen(problem, table, options.features, options.seed)]
        if not options.heads_only:
            limit = min(options.limit, len(table) // 2)
            sources.append(tuned(problem, table, options.features, limit=limit, seed=options.seed))
        for source in sources:
            for title, found in source:
                if not titled:
                    print(f"\n| {problem.name}, {problem.part} part | " + " | ".join(found) + " |")
                    print("|---" * (1 + len(found)) + "|")
                    titled = True
                print(f"| {title} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
