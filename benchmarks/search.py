"""How long a query over a million images takes, and how well search finds faces.

The first index is generated: 1,000,000 images with 64 scores drawn for each, 8,266 labels as frequent as by Zipf's law.
Queries have three terms, and the labels of each are drawn anew; the median over queries is shown, beside a plain way:
the same scores as a SciPy CSR matrix (images by labels) in memory, of which three columns are taken and multiplied.
Run

    python -m benchmarks.search [--quick] [--celeba FOLDER --features FOLDER]

With the folder of CelebA a linear head is fitted on pretrained features (kept in the other) of the training part, and
the validation part is indexed; what random queries find there is measured against the labels: precision among the
first 10 and 50, nDCG at 50 and AP, means over the queries; with scores combined as `mlabel.inference.query` says, and
by the sum of the log-odds and by the least score, which others take.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import logit
from sklearn.metrics import average_precision_score, ndcg_score

from benchmarks import headline
from benchmarks.features import load_features
from benchmarks.transfer import rows_of, scores_of, train_head
from mlabel.data import read_celeba
from mlabel.inference import SearchIndex, build_index
from mlabel.labels import Group, LabelSpace
from mlabel.models.heads import create_head

FULL, QUICK = (1_000_000, 8_266), (20_000, 500)
KEPT = 64
BATCH = 2_000


def make_batches(num_images: int, num_labels: int) -> Iterator[tuple[list[str], sp.csr_array, None]]:
    """Yield names and sparse scores (n, L), at most 64 an image, labels drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    shares = 1.0 / (10 + np.arange(num_labels))
    ends = np.cumsum(shares / shares.sum())
    for start in range(0, num_images, BATCH):
        count = min(BATCH, num_images - start)
        columns = np.minimum(np.searchsorted(ends, rng.random((count, KEPT))), num_labels - 1)
        stored = sp.csr_array((np.ones(columns.size), columns.ravel(), np.arange(0, columns.size + 1, KEPT)))
        stored.resize(count, num_labels)
        stored.sum_duplicates()
        stored.data = rng.uniform(0.01, 1, stored.nnz).astype(np.float32)
        yield [f"{number:07d}.jpg" for number in range(start, start + count)], stored, None


def to_csr(index: SearchIndex) -> sp.csr_array:
    """Return the scores of an index as a matrix (images, labels)."""
    columns = [index.entries(name) for name in index.space.names]
    offsets = np.concatenate([[0], np.cumsum([len(images) for images, _ in columns])])
    images, scores = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return sp.csr_array(sp.csc_array((scores, images, offsets), shape=(len(index), index.space.num_labels)))


def search_plainly(scores: sp.csr_array, columns: np.ndarray) -> np.ndarray:
    """Return the best 20 images for `a AND b NOT c`."""
    three = scores[:, columns].toarray()
    found = three[:, 0] * three[:, 1] * (1 - three[:, 2])
    return np.argsort(-found, kind="stable")[:20]


def compare(quick: bool = False, queries: int = 20) -> dict[str, Any]:
    """Build the index, measure, print and return the figures."""
    num_images, num_labels = QUICK if quick else FULL
    space = LabelSpace([Group("tags", [f"tag {number}" for number in range(num_labels)])])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        index = build_index(Path(folder) / "index", space, make_batches(num_images, num_labels), top=KEPT)
        print(f"{num_images:,} x {num_labels:,}: made in {time.process_time() - begun:.0f} s of CPU, noise included")
        size = sum(path.stat().st_size for path in index.folder.iterdir())
        matrix = to_csr(index)
        rng = np.random.default_rng(1)
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for number in range(queries + 1):
            # The first label among the ten most frequent, so that its list is as long as lists get.
            columns = np.array([rng.integers(10), *rng.choice(num_labels, 2, replace=False)])
            first, second, third = (space.names[column] for column in columns)
            text = f'"{first}" AND "{second}" NOT "{third}"'
            for name, call in (
                ("ours", lambda text=text: index.search(text)),
                ("plain", lambda columns=columns: search_plainly(matrix, columns)),
            ):
                start = time.perf_counter()
                call()
                if number:  # the first one reads the files
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    print(f"{size / 2**20:,.0f} MB on the disk, {matrix.nnz:,} scores")
    print(
        f"three terms: {medians['ours']:.1f} ms (worst {max(times['ours']) * 1000:.1f}), plain {medians['plain']:.1f}"
    )
    headline(f"a search of three terms in {num_images:,} images", medians["plain"] / medians["ours"], "SciPy in memory")
    return {"ours_ms": medians["ours"], "plain_ms": medians["plain"], "worst_ms": max(times["ours"]) * 1000}


# For each kind of query its text, and whether it holds, or how much, of the columns it names.
KINDS: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "A": ('"{}"', lambda a: a),
    "A AND B": ('"{}" AND "{}"', lambda a, b: a & b),
    "A AND NOT B": ('"{}" AND NOT "{}"', lambda a, b: a & ~b),
    "A OR B": ('"{}" OR "{}"', lambda a, b: a | b),
    "A AND B AND NOT C": ('"{}" AND "{}" AND NOT "{}"', lambda a, b, c: a & b & ~c),
}
SUMS: dict[str, Callable[..., np.ndarray]] = {
    "A": lambda a: a,
    "A AND B": lambda a, b: a + b,
    "A AND NOT B": lambda a, b: a - b,
    "A OR B": np.maximum,
    "A AND B AND NOT C": lambda a, b, c: a + b - c,
}
LEASTS: dict[str, Callable[..., np.ndarray]] = {
    "A": lambda a: a,
    "A AND B": np.minimum,
    "A AND NOT B": lambda a, b: np.minimum(a, 1 - b),
    "A OR B": np.maximum,
    "A AND B AND NOT C": lambda a, b, c: np.minimum(np.minimum(a, b), 1 - c),
}


def measure_retrieval(celeba: Path, features: Path, *, queries: int = 100) -> dict[str, dict[str, list[float]]]:
    """Print and return for each kind of query and way the mean precision at 10 and 50, nDCG at 50, and AP."""
    table = read_celeba(celeba)
    parts = table.parts()
    held = torch.from_numpy(load_features(table, features, "celeba"))
    rows = {name: rows_of(table, parts[name]) for name in ("train", "val")}
    held = (held - held[rows["train"]].mean(dim=0)) / held[rows["train"]].std(dim=0)
    torch.manual_seed(0)
    head = create_head("linear", held.shape[1], table.space)
    train_head(head, held[rows["train"]], parts["train"], weighting=None)
    scores = scores_of(head, held[rows["val"]], parts["val"])
    truth = parts["val"].targets.toarray().astype(bool)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ids = parts["val"].ids.tolist()
        index = build_index(Path(folder) / "index", table.space, [(ids, scores, None)])
        for kind, (text, holds) in KINDS.items():
            found[kind] = _measure_kind(index, scores, truth, kind, text, holds, queries)
    return found


def _measure_kind(
    index: SearchIndex,
    scores: np.ndarray,
    truth: np.ndarray,
    kind: str,
    text: str,
    holds: Callable[..., np.ndarray],
    queries: int,
) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    odds = logit(scores.astype(np.float64).clip(1e-7, 1 - 1e-7))
    rows: dict[str, list[list[float]]] = {"product": [], "log-odds": [], "least": []}
    while len(rows["product"]) < queries:
        columns = rng.choice(truth.shape[1], text.count("{}"), replace=False)
        relevant = holds(*truth.T[columns])
        if not 20 <= relevant.sum() <= len(relevant) // 2:
            continue
        hits = index.search(text.format(*(index.space.names[column] for column in columns)), top=len(index))
        ours = np.full(len(relevant), -1.0)  # what is no result stands behind all that is
        ours[[hit.row for hit in hits]] = [hit.score for hit in hits]
        for name, ranking in (
            ("product", ours),
            ("log-odds", SUMS[kind](*odds.T[columns])),
            ("least", LEASTS[kind](*scores.T[columns])),
        ):
            rows[name].append(_quality(relevant, ranking))
    means = {name: np.mean(values, axis=0).tolist() for name, values in rows.items()}
    for name, values in means.items():
        print(f"{kind:18} {name:9}", *(f"{value:.3f}" for value in values), flush=True)
    return means


def _quality(relevant: np.ndarray, ranking: np.ndarray) -> list[float]:
    order = np.argsort(-ranking, kind="stable")
    first = [float(relevant[order[:count]].mean()) for count in (10, 50)]
    ranked = (relevant[None], ranking[None])
    return [*first, float(ndcg_score(*ranked, k=50)), float(average_precision_score(relevant, ranking))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 images and 500 labels")
    parser.add_argument("--celeba", type=Path, metavar="FOLDER", help="measure what is found in this data set instead")
    parser.add_argument("--features", type=Path, metavar="FOLDER", default=Path("features"), help="where they are kept")
    options = parser.parse_args()
    if options.celeba is None:
        compare(options.quick)
    else:
        measure_retrieval(options.celeba, options.features)
