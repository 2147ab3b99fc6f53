"""The metadata of a Danbooru-like set: `read_danbooru` beside the plain way, each in a process of its own on one core.

The set is made first: JSON Lines as of 2021 with 30 tags a post, 400,000 different tags of five categories with
Zipf-like counts, a rating missing in some posts, some posts banned and without id. It takes 1.9 GB a million posts in a
temporary folder, which is deleted at the end. The plain way is `json.loads` a line, lists of lists of tags, a
`Counter`, and scikit-learn's `MultiLabelBinarizer` on the tags that are frequent enough. Own memory is the peak less
what the imports had taken before. Posts are counted a CPU second, since other work may run on the core.

Run `python -m benchmarks.metadata`, with `--posts N`, or with `--quick` for 50,000. Images are not looked for unless
`--images` asks for an (empty) file each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import headline

# Of each category: its number in the tag file, different tags at a million posts, tags a post.
CATEGORIES = {
    "general": (0, 60_000, 23),
    "artist": (1, 190_000, 1),
    "copyright": (3, 29_500, 1),
    "character": (4, 120_000, 2),
    "meta": (5, 500, 3),
}
FILES = 10  # the posts are spread over so many files, so that a part of them can be read
PEER, HALF = 2, 5  # files that are read for the peer, and for the slope of memory
DANBOORU = 4_900_000  # images of the real set
MIN_COUNT = 100
SYLLABLES = [c + v for c in "bdfghjklmnprstvwyz" for v in "aeiou"] + ["shi", "chi", "tsu", "kyo", "ryu", "gen"]
# What a post of the real set has besides; nobody reads it, but it has to be read over.
FIELDS = (
    '"created_at": "2015-08-{day:02d} 12:{minute:02d}:04.21587 UTC", "updated_at": "2015-08-{day:02d} 13:00:00 UTC", '
    '"source": "https://i.pximg.net/img-original/img/2015/08/{day:02d}/00/{minute:02d}/31/{pixiv}_p0.png", '
    '"md5": "{md5}", '
    '"file_url": "https://danbooru.donmai.us/data/original/{md5}.png", "file_ext": "png", "file_size": "{size}", '
    '"large_file_url": "https://danbooru.donmai.us/data/sample/sample-{md5}.jpg", '
    '"preview_file_url": "https://danbooru.donmai.us/data/preview/{md5}.jpg", '
    '"image_width": "{width}", "image_height": "{height}", "pixiv_id": "{pixiv}", "uploader_id": "{uploader}", '
    '"score": "{score}", "up_score": "{score}", "down_score": "0", "fav_count": "{score}", "is_note_locked": false, '
    '"is_rating_locked": false, "is_status_locked": false, "is_pending": false, "is_flagged": false, '
    '"is_deleted": false, "is_banned": false, "has_children": false, "has_active_children": false, "bit_flags": "0", '
    '"last_commented_at": "0", "last_noted_at": "0", "last_comment_bumped_at": "0", "tag_count": "30", '
    '"tag_count_general": "23", "tag_count_artist": "1", "tag_count_copyright": "1", "tag_count_character": "2", '
    '"tag_count_meta": "3"'
)


def make_names(rng: np.random.Generator) -> dict[str, list[str]]:
    """Return the names of each category's tags, all different, the most frequent first."""
    total = sum(number for _, number, _ in CATEGORIES.values())
    codes = rng.choice(len(SYLLABLES) ** 4, size=total, replace=False).tolist()
    words = []
    for code in codes:
        parts = [SYLLABLES[code // len(SYLLABLES) ** k % len(SYLLABLES)] for k in range(4)]
        words.append(f"{parts[0]}{parts[1]}_{parts[2]}{parts[3]}")
    bounds = np.cumsum([0, *(number for _, number, _ in CATEGORIES.values())]).tolist()
    names = {name: words[low:high] for name, (low, high) in zip(CATEGORIES, pairwise(bounds), strict=True)}
    names["character"] = [f"{word}_({names['copyright'][k % 997]})" for k, word in enumerate(names["character"])]
    return names


def draw_tags(num_posts: int, num_tags: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """Return `each` different tags of each post, (num_posts, each): every tag is met, and counts fall like 1 / rank."""
    # A tag in front of the ranks keeps the most frequent one from being in every post.
    heights = np.cumsum(1 / (np.arange(num_tags) + 3.0))
    drawn = np.searchsorted(heights, rng.random((num_posts, each)) * heights[-1])
    places = rng.choice(num_posts * each, size=num_tags, replace=False)
    drawn.reshape(-1)[places] = np.arange(num_tags)
    drawn.sort(axis=1)
    while (repeated := np.diff(drawn, axis=1, prepend=-1) == 0).any():
        drawn[repeated] = np.searchsorted(heights, rng.random(int(repeated.sum())) * heights[-1])
        rows = repeated.any(axis=1)
        drawn[rows] = np.sort(drawn[rows], axis=1)
    return drawn


def write_set(root: Path, num_posts: int, *, seed: int = 0) -> None:
    """Write `num_posts` posts over `FILES` files, and the file of tags, into `root/metadata`."""
    rng = np.random.default_rng(seed)
    folder = root / "metadata"
    folder.mkdir(parents=True)
    names = make_names(rng)
    ranks = {}
    for category, (_, number, each) in CATEGORIES.items():
        # Small sets have fewer tags: of half the places at most each is the only one of its tag.
        names[category] = sorted(names[category][: min(number, num_posts * each // 2)])
        alphabetical = rng.permutation(len(names[category]))
        ranks[category] = np.sort(alphabetical[draw_tags(num_posts, len(alphabetical), each, rng)], axis=1)
    write_tags(folder / "tags000000000000.json", names)
    for file, rows in enumerate(np.array_split(np.arange(num_posts), FILES)):
        with open(folder / f"posts{file:012d}.json", "w", encoding="utf-8") as lines:
            write_posts(lines, rows, names, {name: held[rows] for name, held in ranks.items()}, rng)


def write_tags(path: Path, names: dict[str, list[str]]) -> None:
    """Write the file of tags with their categories."""
    number = 0
    with open(path, "w", encoding="utf-8") as lines:
        for category, (code, _, _) in CATEGORIES.items():
            for name in names[category]:
                number += 1
                lines.write(f'{{"id": "{number}", "name": "{name}", "category": "{code}", "post_count": "0"}}\n')


def write_posts(
    lines: Any, ids: np.ndarray, names: dict[str, list[str]], ranks: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    """Write the posts `ids`, of which `ranks` says for each category what tags they have."""
    held = {category: rows.tolist() for category, rows in ranks.items()}
    chance = rng.random((3, len(ids))).tolist()
    digits = rng.bytes(16 * len(ids)).hex()
    numbers = rng.integers(10, 4000, size=(len(ids), 2)).tolist()
    ratings = rng.choice(["s", "q", "e"], p=[0.75, 0.15, 0.1], size=len(ids)).tolist()
    for row, post in enumerate(ids.tolist()):
        tags = {category: [names[category][k] for k in held[category][row]] for category in held}
        every = sorted(tag for some in tags.values() for tag in some)
        width, height = numbers[row]
        fields = FIELDS.format(
            day=post % 28 + 1,
            minute=post % 60,
            score=post % 97,
            pixiv=post + 50_000_000,
            md5=digits[32 * row : 32 * row + 32],
            width=width,
            height=height,
            size=width * height,
            uploader=post % 9973,
        )
        if chance[0][row] < 0.01:  # banned: without id and md5
            head = '{"is_banned": true, "created_at": "2015-08-01 12:00:00 UTC"'
        else:
            head = f'{{"id": "{post + 1}", {fields}'
        rating = f', "rating": "{ratings[row]}"' if chance[1][row] < 0.99 else ""
        parent = f', "parent_id": "{post}"' if chance[2][row] < 0.1 and post else ""
        texts = ", ".join(f'"tag_string_{category}": "{" ".join(some)}"' for category, some in tags.items())
        lines.write(f'{head}{rating}{parent}, "tag_string": "{" ".join(every)}", {texts}}}\n')


def write_images(root: Path, num_posts: int) -> None:
    """Make an empty file for each post: listing them is what finding images costs."""
    for bucket in range(1000):
        (root / "512px" / f"{bucket:04d}").mkdir(parents=True)
    for post in range(1, num_posts + 1):
        os.close(os.open(root / "512px" / f"{post % 1000:04d}" / f"{post}.jpg", os.O_CREAT | os.O_WRONLY))


def peak_megabytes() -> float:
    """Return the most memory this process has held. What `getrusage` says may be that of the process it came from."""
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    except (FileNotFoundError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_ours(root: Path) -> tuple[int, int]:
    """Return tags and positives (without ratings) as `read_danbooru` finds them."""
    from mlabel.data import read_danbooru

    images = "512px" if (root / "512px").exists() else None
    table = read_danbooru(root, min_count=MIN_COUNT, images=images)
    tags = table.space.num_labels - sum(len(group) for group in table.space.exclusive_groups)
    return tags, table.targets[:, :tags].nnz


def read_plainly(root: Path) -> tuple[int, int]:
    """Return tags and positives (without ratings) by `json.loads`, lists of lists, `Counter`, `MultiLabelBinarizer`."""
    from sklearn.preprocessing import MultiLabelBinarizer

    tags = []
    for path in sorted((root / "metadata").glob("posts*.json")):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                post = json.loads(line)
                if "id" in post and "md5" in post:
                    tags.append(post["tag_string"].split())
    counts = Counter(tag for some in tags for tag in some)
    frequent = {tag for tag, count in counts.items() if count >= MIN_COUNT}
    tags = [[tag for tag in some if tag in frequent] for some in tags]
    targets = MultiLabelBinarizer(classes=sorted(frequent), sparse_output=True).fit_transform(tags)
    return targets.shape[1], targets.nnz


WAYS: dict[str, Callable[[Path], tuple[int, int]]] = {"mlabel": read_ours, "plain": read_plainly}


def measure_here(who: str, root: Path) -> dict[str, Any]:
    """Return seconds and memory of one way, measured in this process, which must be a fresh one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import sklearn.preprocessing  # noqa: F401

    import mlabel.data  # noqa: F401

    base = peak_megabytes()
    start, busy = time.perf_counter(), time.process_time()
    tags, positives = WAYS[who](root)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = peak_megabytes()
    return {"seconds": seconds, "busy": busy, "peak": peak, "own": peak - base, "tags": tags, "positives": positives}


def measure(who: str, root: Path, num_posts: int) -> dict[str, Any]:
    """Return one line of the result, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.metadata", "--measure", who, str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout)
    return {"who": who, "posts": num_posts, **measured, "rate": num_posts / measured["busy"]}


def select_files(root: Path, part: Path, files: int) -> Path:
    """Make a set of the first `files` files of posts of another set, by links, and return its folder."""
    (part / "metadata").mkdir(parents=True)
    for path in [*sorted((root / "metadata").glob("posts*.json"))[:files], root / "metadata" / "tags000000000000.json"]:
        (part / "metadata" / path.name).symlink_to(path)
    if (root / "512px").exists():
        (part / "512px").symlink_to(root / "512px")
    return part


def main(num_posts: int, folder: Path, *, images: bool = False) -> list[dict[str, Any]]:
    """Return the lines of the result: ours at a fifth, a half and all of the posts, and the peer at a fifth."""
    root = folder / "all"
    start = time.perf_counter()
    write_set(root, num_posts)
    if images:
        write_images(root, num_posts)
    size = sum(path.stat().st_size for path in (root / "metadata").iterdir())
    print(
        f"{num_posts:,} posts, {size / 2**30:.2f} GB, written in {time.perf_counter() - start:.0f} s", file=sys.stderr
    )
    few = select_files(root, folder / "few", PEER)
    half = select_files(root, folder / "half", HALF)
    rows = [
        measure("mlabel", few, num_posts * PEER // FILES),
        measure("plain", few, num_posts * PEER // FILES),
        measure("mlabel", half, num_posts * HALF // FILES),
        measure("mlabel", root, num_posts),
    ]
    if any(rows[0][key] != rows[1][key] for key in ("tags", "positives")):
        raise RuntimeError(f"the two ways found different tags: {rows[:2]}")
    return rows


def extrapolate(half: dict[str, Any], whole: dict[str, Any], num_posts: int) -> tuple[float, float]:
    """Return CPU seconds and own megabytes for `num_posts` by the line through two measurements."""
    share = (num_posts - half["posts"]) / (whole["posts"] - half["posts"])
    seconds, own = (half[key] + share * (whole[key] - half[key]) for key in ("busy", "own"))
    return seconds, own


def show(rows: list[dict[str, Any]]) -> None:
    """Print the result."""
    titles = f"{'':8}{'posts':>11}{'s':>8}{'CPU s':>8}{'posts/CPU s':>13}"
    print(f"{titles}{'peak MB':>9}{'own MB':>8}{'tags':>8}{'positives':>12}")
    for row in rows:
        print(
            f"{row['who']:8}{row['posts']:11,}{row['seconds']:8.1f}{row['busy']:8.1f}{row['rate']:13,.0f}"
            f"{row['peak']:9.0f}{row['own']:8.0f}{row['tags']:8,}{row['positives']:12,}"
        )
    ours, plain, half, whole = rows
    more, larger = plain["busy"] / ours["busy"], plain["own"] / ours["own"]
    print(f"plain to mlabel at {ours['posts']:,} posts: {more:.1f} times the time, {larger:.1f} times the memory")
    headline(f"metadata of {ours['posts']:,} posts, CPU time", more, "json and MultiLabelBinarizer")
    headline(f"metadata of {ours['posts']:,} posts, memory", larger, "json and MultiLabelBinarizer")
    seconds, own = extrapolate(half, whole, DANBOORU)
    peak = own + whole["peak"] - whole["own"]
    print(f"{DANBOORU:,} posts would take {seconds:.0f} s, {own:,.0f} MB ({peak:,.0f} MB with the imports)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="50,000 posts")
    parser.add_argument(
        "--images", action="store_true", help="make an empty image file for each post, and look for them"
    )
    parser.add_argument("--folder", type=Path, help="where to write; must be empty, and stays (default: temporary)")
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(arguments.measure[0], Path(arguments.measure[1]))))
        sys.exit()
    place = arguments.folder or Path(tempfile.mkdtemp(prefix="mlabel-metadata-"))
    try:
        show(main(50_000 if arguments.quick else arguments.posts, place, images=arguments.images))
    finally:
        if arguments.folder is None:
            shutil.rmtree(place)
