"""Faults of data: what no other test makes, the fuzzing of images, and the list of which fault is tested where.

A test carries `@pytest.mark.fault(n)` where it covers fault n of the list that the project keeps: damaged and odd
images (1 to 10), ids and duplicates (11, 12), labels and scores (13 to 19), files of annotations (20 to 23), files of
weights (24 to 26), disks, kills and signals (27 to 32), tables (33, 34), numbers (35, 36), several processes (37).
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from mlabel import evaluate
from mlabel._checks import DataError, as_csr
from mlabel.cli import main
from mlabel.data import (
    FORMATS,
    ImageError,
    ImageTable,
    Loader,
    read_celeba,
    read_coco,
    read_csv,
    read_danbooru,
    read_fashion,
    read_hf,
    read_image,
)
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model
from mlabel.training import score_table

SPACE = LabelSpace([Group("tags", ["a", "b"])])


def marked_faults() -> dict[int, list[str]]:
    """Return which tests cover each fault, read from the sources: marks of a test, a class or a whole file."""
    found: dict[int, list[str]] = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # `pytest.mark.fault(3)`, wherever it stands: a decorator, a `pytestmark`, or a case of `parametrize`.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{path.name}, line {node.lineno}: numbers are wanted"
                    found.setdefault(int(argument.value), []).append(f"{path.name}:{node.lineno}")
    return found


def test_every_fault_has_a_test() -> None:
    found = marked_faults()
    wanted = set(range(1, 38))
    assert not wanted - set(found), "faults without a test"
    assert set(found) <= wanted


# ------------------------------------------------------------------------------------------------------- images


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.fault(4)
@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "SGI", "EPS", "PDF", "JPEG2000", "DDS", "MSP", "XBM"])
def test_formats_that_are_not_on_the_list_are_refused_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow writes no JPEG 2000")
    picture = Image.new("1" if kind in ("MSP", "XBM") else "RGB", (32, 32))
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(encoded(picture, kind))
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert caught.value.reason in ("format", "not_an_image")


def big_header(side: int) -> bytes:
    """Return the beginning of a PNG of `side` x `side` one-bit pixels: its header, and no pixel."""
    small = encoded(Image.new("1", (8, 8)), "PNG")
    body = b"IHDR" + side.to_bytes(4, "big") * 2 + small[24:29]
    return small[:12] + body + zlib.crc32(body).to_bytes(4, "big") + small[33:]


@pytest.mark.fault(5)
@pytest.mark.parametrize("side", [9_000, 12_000, 15_000, 100_000])
def test_a_bomb_is_refused_though_its_pixels_are_not_even_there(side: int) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(big_header(side), max_pixels=80_000_000)
    assert caught.value.reason == "too_large"
    assert read_image(big_header(8)).shape == (8, 8, 3), "such a header is a sound one"


@pytest.mark.fault(6)
def test_thin_pictures_go_through_the_loader(tmp_path: Path) -> None:
    shapes = [(1, 1), (1, 3000), (3000, 1), (2, 2)]
    for place, (height, width) in enumerate(shapes):
        Image.new("RGB", (width, height), (place, 0, 0)).save(tmp_path / f"{place}.png")
    paths = [tmp_path / f"{place}.png" for place in range(4)]
    table = ImageTable(paths=paths, targets=np.zeros((4, 2)), space=SPACE)
    for augment in ("none", "strong"):
        (batch,) = Loader(table, batch_size=4, image_size=16, augment=augment).epoch(0)
        assert batch.images.shape == (4, 3, 16, 16)
    (batch,) = Loader(table, batch_size=4, image_size=16)
    assert batch.images.amax(dim=(1, 2, 3)).tolist() == [0, 1, 2, 3]


def small_files() -> dict[str, list[bytes]]:
    """Return small valid files of each format, in several forms."""
    rows, columns = np.mgrid[0:20, 0:30]
    picture = np.stack([rows * 12, columns * 8, rows + columns], axis=2).astype(np.uint8)
    alpha = Image.fromarray(np.dstack([picture, picture[:, :, 0]]))
    palette = Image.fromarray(picture).quantize(8)
    exif = Image.Exif()
    exif[0x112] = 6
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
    return {
        "JPEG": [
            encoded(picture, "JPEG"),
            encoded(picture, "JPEG", progressive=True),
            encoded(picture, "JPEG", exif=exif),
            encoded(Image.fromarray(picture).convert("CMYK"), "JPEG"),
        ],
        "PNG": [
            encoded(picture, "PNG"),
            encoded(alpha, "PNG", exif=exif),
            encoded(palette, "PNG", transparency=0),
            encoded(picture[:, :, 0].astype(np.uint16) * 200, "PNG"),
        ],
        "WEBP": [encoded(alpha, "WEBP"), encoded(picture, "WEBP", lossless=True), encoded(picture, "WEBP", **frames)],
        "GIF": [encoded(picture, "GIF"), encoded(Image.fromarray(picture), "GIF", **frames)],
        "BMP": [encoded(picture, "BMP"), encoded(palette, "BMP")],
        "TIFF": [
            encoded(picture, "TIFF"),
            encoded(picture, "TIFF", compression="tiff_lzw"),
            encoded(alpha, "TIFF", compression="tiff_adobe_deflate"),
        ],
    }


def flip(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Flip some bits; headers are hit more often."""
    for _ in range(int(rng.integers(1, 9))):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
        data[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))


def cut(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Drop the end, or a piece in the middle."""
    start = int(rng.integers(1, len(data)))
    del data[start : start + int(rng.integers(1, 60)) if rng.random() < 0.5 else len(data)]


def overwrite(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Overwrite a run with zeros, ones or noise."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
    run = [bytes(length), b"\xff" * length, rng.bytes(length)][int(rng.integers(3))]
    data[start : start + length] = run[: len(data) - start]


def splice(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Put the beginning of another file, of whatever format, in the place of one's own."""
    other = others[int(rng.integers(len(others)))]
    length = int(rng.integers(4, 80))
    data[:length] = other[:length]


MUTATIONS = (flip, cut, overwrite, splice)


def write_mutants(folder: Path, number: int) -> Iterator[Path]:
    """Write files that are damaged in one or two ways each, all formats and ways in turn; none is sound as it was."""
    rng, files = np.random.default_rng(7), small_files()
    everything = [data for held in files.values() for data in held]
    kinds = itertools.cycle(itertools.product(files, MUTATIONS))
    for place, (kind, mutate) in zip(range(number), kinds, strict=False):
        sound = files[kind][int(rng.integers(len(files[kind])))]
        data = bytearray(sound)
        while data == sound:
            mutate(data, rng, everything)
            if rng.random() < 0.3 and len(data):
                MUTATIONS[int(rng.integers(4))](data, rng, everything)
        path = folder / f"{place}.{kind.lower()}"
        path.write_bytes(data)
        yield path


def fuzz(table: ImageTable, **options: object) -> tuple[int, int]:
    """Return how many images of a table a loader used and skipped, having seen that it accounts for each."""
    with Loader(table, batch_size=64, image_size=16, on_bad="skip", max_bad=1.0, max_pixels=10**6, **options) as loader:
        used = [row for batch in loader.epoch() for row in batch.index.tolist() if _is_sound(batch)]
        skipped = [bad.id for bad in loader.bad]
    assert sorted([*table.ids[used].tolist(), *skipped]) == sorted(table.ids.tolist()), "each once: used or skipped"
    assert all(bad.reason for bad in loader.bad)
    return len(used), len(skipped)


def _is_sound(batch: object) -> bool:
    return batch.images.shape[1:] == (3, 16, 16) and len(batch.images) == len(batch.index)  # type: ignore[attr-defined]


@pytest.mark.fault(1)
@pytest.mark.fault(2)
def test_two_thousand_mutated_images_are_used_or_skipped(tmp_path: Path) -> None:
    assert set(small_files()) == set(FORMATS)
    paths = list(write_mutants(tmp_path, 2000))
    table = ImageTable(paths=paths, targets=np.zeros((2000, 2)), space=SPACE)
    used, skipped = fuzz(table)
    assert used + skipped == 2000
    assert min(used, skipped) > 300, "both ends are reached"
    part = table[:400]
    assert fuzz(part, num_workers=2) == fuzz(part)


# ------------------------------------------------------------------------------------------------------- labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty images with the tags a and b; what a run below is trained on."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    write_tags(folder, ["a", "b", "a b", "b"] * 10)
    return folder


def write_tags(folder: Path, tags: list[str]) -> None:
    lines = [f"{number}.png,{held}" for number, held in enumerate(tags)]
    (folder / "tags.csv").write_text("\n".join(["image,tags", *lines]))


@pytest.mark.fault(13)
@pytest.mark.fault(19)
def test_a_run_is_not_evaluated_on_other_labels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--reader-option", "tags_column=tags", "--reader-option", 'separator=" "']
    model = ["--backbone", "small_cnn", "--image-size", "8", "--epochs", "1"]
    reader = ["--reader", "csv", "--data", str(data / "tags.csv"), *options]
    assert main(["train", *reader, *model, "--run", str(tmp_path / "run")]) == 0
    evaluation = ["evaluate", "--run", str(tmp_path / "run")]
    assert main(evaluation) == 0
    capsys.readouterr()
    write_tags(data, ["b", "c", "b c", "c"] * 10)  # as many labels, with other names
    assert main(evaluation) == 2
    assert "column 0 is 'b' here and 'c' there" in capsys.readouterr().err
    write_tags(data, ["a", "b", "a b", "b"] * 9 + ["b new"] * 4)  # one more
    assert main(evaluation) == 2
    assert "2 labels here and 3 there" in capsys.readouterr().err
    write_tags(data, ["b", "a", "a b", "a"] * 10)  # the same, of which the other one is now the more frequent
    assert main(evaluation) == 2
    assert "column 0 is 'b' here and 'a' there" in capsys.readouterr().err


@pytest.mark.fault(13)
def test_a_new_tag_is_an_error_or_counted_and_moves_no_column(data: Path) -> None:
    options = {"tags_column": "tags", "separator": " "}
    before = read_csv(data / "tags.csv", vocabulary=SPACE, **options)
    write_tags(data, ["A a", "b zebra", "a b zebra", "zebra b"] * 10)
    after = read_csv(data / "tags.csv", vocabulary=SPACE, **options)
    assert after.space == before.space
    assert (after.targets != before.targets).nnz == 0
    assert after.notes == ("2 tags are not in the vocabulary and were left out (40 uses)",)
    with pytest.raises(ValueError, match="sample 1: unknown label 'zebra'"):
        SPACE.encode([["a"], ["b", "zebra"]])


@pytest.mark.fault(19)
def test_a_table_in_another_order_is_not_scored(data: Path) -> None:
    model = create_model("small_cnn", SPACE, image_size=8)
    turned = read_csv(data / "tags.csv", tags_column="tags", separator=" ", vocabulary=["b", "a"])
    with pytest.raises(ValueError, match=r"fingerprints \w{12} and \w{12}\): column 0 is 'a' here and 'b' there"):
        score_table(model, turned)


@pytest.mark.fault(17)
@pytest.mark.parametrize("cell", ["2", "0.5", "nan", "-1", "x", ""])
def test_a_cell_that_is_no_mark_is_named_unless_declared_unknown(cell: str, data: Path) -> None:
    (data / "marks.csv").write_text(f"image,a,b\n0.png,1,0\n1.png,0,{cell}\n2.png,0,1\n")
    with pytest.raises(DataError) as caught:
        read_csv(data / "marks.csv")
    for word in ("marks.csv, line 3", "'b'", repr(cell)):
        assert word in str(caught.value)
    table = read_csv(data / "marks.csv", unknown=cell)
    assert np.argwhere(table.unknown.toarray()).tolist() == [[1, 1]]


@pytest.mark.fault(17)
@pytest.mark.parametrize("targets", [[[0, 1], [1, "x"]], np.array([[0, 1], [1, "x"]], dtype=object)])
def test_text_in_a_target_matrix_is_named(targets: object) -> None:
    with pytest.raises(ValueError, match="targets must be numbers; got 'x' at row 1, column 1"):
        as_csr(targets)


@pytest.mark.fault(18)
def test_scores_may_be_logits_as_only_their_order_is_asked_for() -> None:
    """No function of the library takes probabilities alone; what is beyond [0, 1] is a score like another."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 9, (50, 3)), rng.random((50, 3)) < 0.4
    found = evaluate(logits, targets, thresholds=0.0)
    squashed = evaluate(1 / (1 + np.exp(-logits)), targets, thresholds=0.5)
    for name in ("macro_f1", "map", "macro_auroc", "lrap"):
        assert found[name] == pytest.approx(squashed[name])


# --------------------------------------------------------------------------------------------- annotation files


def danbooru(folder: Path, metadata: dict[str, bytes]) -> Path:
    """Return a Danbooru folder with two images and these files of metadata."""
    for number in (1, 2):
        path = folder / "512px" / f"{number:04d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "metadata").mkdir()
    for name, content in metadata.items():
        (folder / "metadata" / name).write_bytes(content)
    return folder


POST = b'{"id": "1", "md5": "0", "tag_string": "cat", "rating": "s"}\n'
ALIAS = b'{"antecedent_name": "kitty", "consequent_name": "cat", "status": "active"}\n'
TAG = b'{"id": "1", "name": "cat", "category": "0"}\n'
FILES = {"posts0.json": POST, "tag_aliases0.json": ALIAS, "tags0.json": TAG}


@pytest.mark.fault(20)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "2", "md5"', ""),
        (b'{"id": NaN}', "NaN is not JSON"),
        (b'{"id": 1, "x": [-Infinity]}', "-Infinity is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        (b"7", ""),
    ],
)
def test_a_broken_line_is_named_in_every_file_of_json_lines(name: str, line: bytes, words: str, tmp_path: Path) -> None:
    root = danbooru(tmp_path, FILES | {name: FILES[name] + line + b"\n" + FILES[name]})
    with pytest.raises(DataError) as caught:
        read_danbooru(root, min_count=1)
    for word in (f"{name}, line 2", words):
        assert word in str(caught.value)


@pytest.mark.fault(20)
@pytest.mark.parametrize("name", FILES)
def test_marks_of_other_systems_are_passed_over_in_every_file_of_json_lines(name: str, tmp_path: Path) -> None:
    plain = read_danbooru(danbooru(tmp_path / "a", FILES), min_count=1)
    odd = b"\xef\xbb\xbf" + FILES[name].replace(b"\n", b"\r\n") + b"\r\n"
    assert read_danbooru(danbooru(tmp_path / "b", FILES | {name: odd}), min_count=1).fingerprint == plain.fingerprint


@pytest.mark.fault(20)
@pytest.mark.parametrize("name", FILES)
def test_a_line_of_a_hundred_megabytes_does_not_fill_the_memory(name: str, tmp_path: Path) -> None:
    root = danbooru(tmp_path, FILES)
    with open(root / "metadata" / name, "ab") as file:
        file.write(b'{"tag_string": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="line 2: the line is longer than 16,777,216 bytes"):
            read_danbooru(root, min_count=1)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def named_in_csv(root: Path, name: str) -> Callable[[], ImageTable]:
    with open(root / "list.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "cat"], ["a.jpg", 1], [name, 0]])
    return lambda: read_csv(root / "list.csv")


def named_in_coco(root: Path, name: str) -> Callable[[], ImageTable]:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name}]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (root / "coco.json").write_text(json.dumps(content))
    return lambda: read_coco(root / "coco.json")


def named_in_celeba(root: Path, name: str) -> Callable[[], ImageTable]:
    (root / "list_attr_celeba.csv").write_text(f"image_id,Bald,Male\na.jpg,1,-1\n{name},1,1\n")
    return lambda: read_celeba(root)


def named_in_fashion(root: Path, name: str) -> Callable[[], ImageTable]:
    (root / "split").mkdir()
    (root / "split" / "train.txt").write_text(f"img/a.jpg\nimg/{name}\n" if name[0] != "/" else f"img/a.jpg\n{name}\n")
    (root / "split" / "train_attr.txt").write_text("5 0 2 0 2 2\n4 1 1 1 1 1\n")
    return lambda: read_fashion(root)


def named_in_rows(root: Path, name: str) -> Callable[[], ImageTable]:
    rows = [{"image": "a.jpg", "tags": ["x"]}, {"image": name, "tags": ["y"]}]
    return lambda: read_hf(rows, root=root, tags_column="tags")


# Each with the folder, below the data set, that names start from.
NAMERS = {
    named_in_csv: ".",
    named_in_coco: ".",
    named_in_celeba: "img_align_celeba",
    named_in_fashion: "img",
    named_in_rows: ".",
}


@pytest.mark.fault(22)
@pytest.mark.parametrize("namer", NAMERS)
@pytest.mark.parametrize(
    "name",
    ["../../secret.jpg", "x/../../../secret.jpg", "/ABSOLUTE", "link.jpg", "far/secret.jpg", "C:/a.jpg", "..\\a.jpg"],
)
def test_a_name_that_leads_out_is_refused_by_every_reader(
    namer: Callable[[Path, str], Callable[[], ImageTable]], name: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    for root in (tmp_path / "in", tmp_path / "good"):
        images = root / NAMERS[namer]
        images.mkdir(parents=True)
        for plain in ("a.jpg", "b.jpg"):
            (images / plain).touch()
        (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
        (images / "far").symlink_to(tmp_path / "out")
    assert len(namer(tmp_path / "good", "b.jpg")()) == 2, "with a plain name it is read"
    read = namer(tmp_path / "in", name.replace("/ABSOLUTE", str(tmp_path / "secret.jpg")))
    with pytest.raises(DataError, match=r"outside|drive letter|such as img/00000\.jpg"):
        read()
