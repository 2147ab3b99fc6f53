"""Find faces by attributes: train a tagger on CelebA, index its scores, and ask for what should hold and what not.

    python examples/search_faces.py --data celeba "Smiling AND NOT Eyeglasses" "Big_Lips Young^2"

Without `--data` a small stand-in in the same format is written and used. A bundle that is there already is taken by
`--bundle`; `mlabel index` and `mlabel search` do the same from the command line.
"""

from __future__ import annotations

import argparse

import mlabel
from mlabel.data import read_celeba
from mlabel.inference import build_index
from mlabel.recipes import Recipe, run, write_stand_in
from mlabel.report import Tile, write_gallery


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=["Smiling AND NOT Eyeglasses", "(Bald OR Bangs) Male"])
    parser.add_argument("--data", help="CelebA's folder; none: a stand-in")
    parser.add_argument("--bundle", help="of a tagger; none: a small one is trained")
    parser.add_argument("--run", default="runs/search_faces")
    parser.add_argument("--limit", type=int, default=2000, help="train on so many images")
    parser.add_argument("--top", type=int, default=6)
    return parser.parse_args()


def main() -> None:
    """Train, index, search."""
    options = parse_options()
    data = options.data or str(write_stand_in("celeba", f"{options.run}-data"))
    if options.bundle is None:
        train = mlabel.TrainConfig(epochs=3, batch_size=32, lr=2e-3)
        # Calibrated scores: the better they are as probabilities, the better the order of what is found.
        recipe = Recipe("celeba", data, limit=options.limit, image_size=64, calibration="platt", train=train)
        run(recipe, options.run, resume="auto")
    tagger = mlabel.Tagger.load(options.bundle or f"{options.run}/bundle")

    images = read_celeba(data).parts()["val"]
    scored = tagger.score(images, with_features=True)
    batches = ((batch.paths, batch.scores, batch.features) for batch in scored)
    index = build_index(f"{options.run}/index", tagger.space, batches)
    print(f"\n{len(index):,} faces indexed")

    truth = dict(zip(images.ids.tolist(), images.space.decode(images.targets), strict=True))
    paths = dict(zip(images.ids.tolist(), images.paths.tolist(), strict=True))
    tiles = {}
    for query in options.queries:
        hits = index.search(query, top=options.top)
        print(f"\n{query}")
        for hit in hits:
            held = ", ".join(f"{name}: {'yes' if name in truth[hit.image] else 'no'}" for name in hit.scores)
            print(f"  {hit.image}  {hit.score:.3f}  {held}")
        tiles[query] = [Tile(paths[hit.image], [hit.image, f"{hit.score:.3f}"]) for hit in hits]
    page = write_gallery(f"{options.run}/found", title="Faces found", galleries=tiles)
    print(f"\nlook at {page}")


if __name__ == "__main__":
    main()
