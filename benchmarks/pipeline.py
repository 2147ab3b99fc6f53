"""Images a second from JPEG files of 512 pixels to batches of 224: our loader beside a plain torchvision data set.

Ours reads the files, shards of them, or a cache of decoded images. All mirror every second image. A row says whether
both sides end in normalised float32 batches, or in the uint8 batches that our loader gives, as normalising belongs to
the model. Run `python -m benchmarks.pipeline`, or with `--quick` for an eighth of the
work.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks import headline
from mlabel.data import ImageTable, Loader, build_cache, read_image, read_shards, write_shards
from mlabel.data.images import open_image
from mlabel.labels import Group, LabelSpace

SIDE, TARGET, BATCH = 512, 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_images(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEG files about as hard to decode as photographs, and return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        picture = np.zeros((SIDE, SIDE, 3))
        for cells in (4, 16, 64, 256):  # the larger the detail, the stronger, as in photographs
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / cells**0.5
        picture *= 255 / picture.max()
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(picture.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


class PlainDataset(torch.utils.data.Dataset[torch.Tensor]):
    """What people write: open, convert, torchvision v2."""

    def __init__(self, paths: list[Path], *, normalise: bool) -> None:
        self.paths = paths
        steps = [v2.PILToTensor(), v2.Resize((TARGET, TARGET), antialias=True), v2.RandomHorizontalFlip()]
        if normalise:
            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def plain_batches(paths: list[Path], num_workers: int, *, normalise: bool) -> Iterable[torch.Tensor]:
    """Return the peer's loader, its workers kept."""
    dataset = PlainDataset(paths, normalise=normalise)
    return torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=num_workers, persistent_workers=num_workers > 0
    )


def make_tables(paths: list[Path], folder: Path) -> dict[str, ImageTable]:
    """Return the images as files, as shards and as a cache, the last two written into `folder`."""
    space = LabelSpace([Group("tags", ["a"])])
    files = ImageTable(paths=paths, targets=np.zeros((len(paths), 1)), space=space)
    write_shards(files, folder / "shards")
    build_cache(files, folder / "cache", image_size=TARGET)
    return {"files": files, "shards": read_shards(folder / "shards"), "cache": files.cached(folder / "cache")}


class OurBatches:
    """Our loader over a table; with `normalise`, what the model does first is done here, as the peer does it."""

    def __init__(self, table: ImageTable, num_workers: int, *, normalise: bool) -> None:
        self.loader = Loader(table, batch_size=BATCH, image_size=TARGET, augment="flip", num_workers=num_workers)
        self.normalise = normalise
        self.scale = 1 / (255 * torch.tensor(STD).reshape(1, 3, 1, 1))
        self.shift = -(torch.tensor(MEAN) / torch.tensor(STD)).reshape(1, 3, 1, 1)

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield batch.images.float().mul_(self.scale).add_(self.shift) if self.normalise else batch.images


def rate(batches: Iterable[torch.Tensor], count: int) -> float:
    """Return images a second of one pass over `batches`."""
    begun = time.perf_counter()
    seen = sum(len(batch) for batch in batches)
    assert seen == count
    return count / (time.perf_counter() - begun)


def best_rates(sources: dict[str, Iterable[torch.Tensor]], count: int, passes: int) -> dict[str, float]:
    """Return the best rate of each source, their passes in turn, so that a slow moment hits all of them alike."""
    for source in sources.values():
        rate(source, count)  # starts workers, fills the file cache
    rates = [{name: rate(source, count) for name, source in sources.items()} for _ in range(passes)]
    return {name: max(each[name] for each in rates) for name in sources}


def decode_rates(paths: list[Path], passes: int) -> dict[str, float]:
    """Return images a second of decoding alone: ours, scaled while decoding, and Pillow at full size then resized."""

    def full(path: Path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB").resize((TARGET, TARGET), Image.Resampling.BILINEAR))

    ways: dict[str, Callable[[Path], np.ndarray]] = {
        "ours": lambda path: read_image(path, size=(TARGET, TARGET)),
        "peer": full,
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(passes):
        for name, read in ways.items():
            begun = time.perf_counter()
            for path in paths:
                read(path)
            best[name] = max(best[name], len(paths) / (time.perf_counter() - begun))
    return best


def own_memory() -> int:
    """Return the bytes of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def memory_of_a_pass(batches: Iterable[torch.Tensor]) -> int:
    """Return by how many bytes a pass raises this process's own memory at most, once everything is loaded."""
    for _ in batches:
        pass
    before = own_memory()
    return max(own_memory() for _ in batches) - before


def microseconds_a_sample(table: ImageTable, reads: int) -> float:
    """Return the microseconds that reading the bytes of a random image takes, those of its file or of its member."""
    rng = np.random.default_rng(0)
    paths = [str(table.paths[row]) for row in rng.integers(0, len(table), reads)]
    begun = time.perf_counter()
    for path in paths:
        with open_image(path, path) as file:
            file.read()
    return (time.perf_counter() - begun) / reads * 1e6


def measure_sources(
    tables: dict[str, ImageTable], paths: list[Path], num_workers: int, passes: int
) -> list[dict[str, Any]]:
    """Return the rates of the peer and of ours, by what is read and whether it ends normalised."""
    rows = []
    for ending in ("float32", "uint8"):
        normalise = ending == "float32"
        ours = {kind: OurBatches(table, num_workers, normalise=normalise) for kind, table in tables.items()}
        peer = plain_batches(paths, num_workers, normalise=normalise)
        rates = best_rates({"peer": peer, **ours}, len(paths), passes)
        for kind, batches in ours.items():
            batches.loader.close()
            name = f"{kind}, {num_workers} workers, {ending}"
            rows.append({"name": name, "peer": rates["peer"], "ours": rates[kind]})
    return rows


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Measure; print one line a result; return them as dictionaries of name, peer, ours (images/s) and ratio."""
    count, passes = (64, 2) if quick else (512, 3)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        paths = write_images(folder / "images", count)
        tables = make_tables(paths, folder)
        for num_workers in (0, 1, 2):
            results += measure_sources(tables, paths, num_workers, passes)
        alone = decode_rates(paths, passes)
        results.append({"name": "decoding alone", **alone})
        grown = memory_of_a_pass(OurBatches(tables["cache"], 0, normalise=False)) / (BATCH * TARGET**2 * 3)
        reads = {kind: microseconds_a_sample(tables[kind], 20 * count) for kind in ("files", "shards")}
    print(f"{'':34s} {'peer':>8s} {'ours':>8s} images/s")
    for result in results:
        result["ratio"] = result["ours"] / result["peer"]
        print(f"{result['name']:34s} {result['peer']:8.0f} {result['ours']:8.0f}  x{result['ratio']:.2f}")
    for kind in ("files", "cache"):
        name = f"{kind}, 0 workers, uint8"
        found = next(result["ratio"] for result in results if result["name"] == name)
        headline(f"batches of 224 px from {kind}, no workers, uint8", found, "a plain torchvision data set")
    print(f"memory of its own that a pass over the cache took: {grown:.1f} batches")
    print(f"bytes of a random image: {reads['files']:.0f} us from its file, {reads['shards']:.0f} us from a shard")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    main(parser.parse_args().quick)
