"""Make the pictures of docs/examples.md: each example is run on its stand-in, and what it has written is drawn.

    python tools/gallery.py runs/gallery    # ten minutes on one core; what was run there is not run again
    python tools/gallery.py runs/gallery quickstart search_faces

It needs Chromium and playwright, for some pictures are parts of the pages that an example writes.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import mlabel
from mlabel.report import plot_examples, plot_history

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "_static" / "examples"
WIDTH, HEIGHT = 720, 430
MAX_BYTES = 60_000

# The page that an example writes, the heading from which on it is shown, and how much of it.
PAGES = {
    "mirflickr_cnns": ("mirflickr_cnns/report", "Metrics", 405),
    "fashion_multihead": ("fashion_multihead/report", "Groups", 390),
    "danbooru_resnet50": ("danbooru_resnet50/report", "Training", 310),
    "danbooru_se_resnet": ("danbooru_se_resnet/report", "Labels by frequency", 285),
    "celeba_resnet_vs_densenet": ("celeba/comparison", "resnet50 less densenet121: metrics", 640),
    "search_faces": ("search_faces/found", "Smiling AND NOT Eyeglasses", 270),
}
CURVES = {"your_own_parts": "your_own_parts", "distributed": "distributed/run"}


def run_example(name: str, folder: Path) -> None:
    """Run an example in a folder, unless it was."""
    done = folder / f"{name}.done"
    if not done.exists():
        print(f"running {name}", file=sys.stderr)
        script = ROOT / "examples" / f"{name}.py"
        subprocess.run([sys.executable, str(script)], cwd=folder, check=True, capture_output=True)
        done.touch()


def show_part_of_page(name: str, folder: Path, path: Path) -> None:
    """Write what a page looks like from a heading on."""
    from playwright.sync_api import sync_playwright

    page_folder, heading, height = PAGES[name]
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page(viewport={"width": WIDTH, "height": height}, device_scale_factor=1)
        page.goto((folder / "runs" / page_folder / "index.html").resolve().as_uri())
        title = page.locator("h1, h2, h3").filter(has_text=heading).first
        title.evaluate("element => window.scrollTo(0, element.getBoundingClientRect().top + window.scrollY - 16)")
        page.screenshot(path=path)
        window.close()


def draw_curves(name: str, folder: Path, path: Path) -> None:
    """Draw how a training went."""
    with open(folder / "runs" / CURVES[name] / "history.csv", encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    plot_history(rows, path)


def draw_tagged(name: str, folder: Path, path: Path) -> None:
    """Draw what the bundle of an example says of images."""
    tagger = mlabel.Tagger.load(folder / "runs" / name / "bundle")
    labels = folder / "runs" / name / "scenes" / "labels.csv"
    table = mlabel.data.read_csv(
        labels, tags_column="digits", separator=" ", exclusive=["count"], partition_column="partition"
    )
    shown = table.part("test")[np.arange(6)]
    scores = np.concatenate([scored.scores for scored in tagger.score(shown)])
    images = [np.asarray(Image.open(each).convert("RGB")).transpose(2, 0, 1) for each in shown.paths]
    decisions, targets = tagger.thresholds.decide(scores), shown.targets
    plot_examples(images, names=table.space.names, scores=scores, targets=targets, decisions=decisions, path=path)


def shrink(path: Path) -> None:
    """Make a picture small: as wide as a page's text, with a palette."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDTH, 10 * HEIGHT))
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path.name} has {path.stat().st_size:,} bytes; a picture may have {MAX_BYTES:,}")


def main() -> None:
    """Run the examples asked for, or all, and draw."""
    folder, *names = sys.argv[1:]
    drawn: dict[str, Callable[[str, Path, Path], None]] = {"quickstart": draw_tagged}
    drawn |= dict.fromkeys(CURVES, draw_curves) | dict.fromkeys(PAGES, show_part_of_page)
    PICTURES.mkdir(parents=True, exist_ok=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or drawn:
        run_example(name, Path(folder))
        drawn[name](name, Path(folder), PICTURES / f"{name}.png")
        shrink(PICTURES / f"{name}.png")
        print(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
