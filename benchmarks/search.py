"""How long a query over a million images takes, and how well search finds faces.

The first index is generated: 1,000,000 images with 64 scores drawn for each, 8,266 labels as frequent as by Zipf's law.
Queries have three terms, and the labels of each are drawn anew; the median over queries is shown, beside a plain way:
the same scores as a SciPy CSR matrix (images by labels) in memory, of which three columns are taken and multiplied.
Run

    python -m benchmarks.search [--quick] [--celeba FOLDER]

With the folder of CelebA a head is fitted on pretrained features of the training part, the validation part is indexed,
and what queries find there is measured against the labels: precision among the first 10 and 50, nDCG at 50 and AP, with
scores combined as `mlabel.inference.query` says (product), by the sum of log-odds and by the least.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from mlabel.inference import SearchIndex, build_index
from mlabel.labels import Group, LabelSpace

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
    print(f"x{medians['plain'] / medians['ours']:.1f}")
    return {"ours_ms": medians["ours"], "plain_ms": medians["plain"], "worst_ms": max(times["ours"]) * 1000}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 images and 500 labels")
    options = parser.parse_args()
    compare(options.quick)
