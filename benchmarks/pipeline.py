"""Images a second from JPEG files of 512 pixels to batches of 224: our loader beside a plain torchvision data set.

Both decode, resize, mirror every second image and end in normalised float32 batches. Run
`python -m benchmarks.pipeline`, or with `--quick` for a tenth of the work.
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

from mlabel.data import ImageTable, Loader, read_image
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

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize((TARGET, TARGET), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[row]).convert("RGB"))


def plain_batches(paths: list[Path], num_workers: int) -> Iterable[torch.Tensor]:
    """Return the peer's loader, its workers kept."""
    return torch.utils.data.DataLoader(
        PlainDataset(paths), batch_size=BATCH, num_workers=num_workers, persistent_workers=num_workers > 0
    )


class OurBatches:
    """Our loader, with the model's normalisation done here so that both end in the same."""

    def __init__(self, paths: list[Path], num_workers: int) -> None:
        space = LabelSpace([Group("tags", ["a"])])
        table = ImageTable(paths=paths, targets=np.zeros((len(paths), 1)), space=space)
        self.loader = Loader(table, batch_size=BATCH, image_size=TARGET, augment="flip", num_workers=num_workers)
        self.scale = 1 / (255 * torch.tensor(STD).reshape(1, 3, 1, 1))
        self.shift = -(torch.tensor(MEAN) / torch.tensor(STD)).reshape(1, 3, 1, 1)

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield batch.images.float().mul_(self.scale).add_(self.shift)


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
    """Return images a second of reading alone: ours, scaled while decoding, and Pillow at full size then resized."""

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


def main(quick: bool = False) -> list[dict[str, Any]]:
    """Measure; print one line a result; return them as dictionaries of name, peer, ours (images/s) and ratio."""
    count, passes = (64, 2) if quick else (512, 3)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), count)
        for num_workers in (0, 1, 2):
            ours = OurBatches(paths, num_workers)
            rates = best_rates({"peer": plain_batches(paths, num_workers), "ours": ours}, count, passes)
            ours.loader.close()
            results.append({"name": f"{num_workers} workers", **rates})
        results.append({"name": "reading alone", **decode_rates(paths, passes)})
    for result in results:
        result["ratio"] = result["ours"] / result["peer"]
        print(f"{result['name']:34s} {result['peer']:8.0f} {result['ours']:8.0f} images/s  x{result['ratio']:.2f}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    main(parser.parse_args().quick)
