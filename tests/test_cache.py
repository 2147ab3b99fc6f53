"""The cache: what a loader takes from it is what it would have decoded, and a cache of other images is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel._checks import DataError
from mlabel.cli import main
from mlabel.data import ImageCache, ImageDataset, ImageError, ImageTable, Loader, build_cache, read_image
from mlabel.labels import Group, LabelSpace

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SPACE = LabelSpace([Group("tags", ["a", "b"])])


def write_images(folder: Path, count: int, side: int = 40) -> list[Path]:
    """Write JPEG files, large enough to be decoded at half their size."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:02d}.jpg" for number in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        small.resize((side + 6, side)).save(path, quality=95)
    return paths


def make_table(paths: list[Path]) -> ImageTable:
    rng = np.random.default_rng(1)
    return ImageTable(paths=paths, targets=rng.random((len(paths), 2)) < 0.5, space=SPACE)


@pytest.fixture
def table(tmp_path) -> ImageTable:
    (tmp_path / "images").mkdir()
    return make_table(write_images(tmp_path / "images", 11))


def pictures(loader: Loader, epoch: int = 0) -> torch.Tensor:
    with loader:
        return torch.cat([batch.images for batch in loader.epoch(epoch)])


AUGMENTATIONS = ("none", "flip", "random_crop+flip", "shift", "standard", "strong", "flip+rotation")


@pytest.mark.parametrize(
    ("augment", "channels", "num_workers"),
    [(name, channels, 0) for name in AUGMENTATIONS for channels in (1, 3)] + [("none", 3, 2), ("standard", 3, 2)],
)
def test_batches_of_a_cache_are_those_of_the_files(tmp_path, table, augment, channels, num_workers):
    options = {"image_size": (16, 14), "channels": channels, "augment": augment}
    build_cache(table, tmp_path / "cache", num_workers=num_workers, **options)
    options |= {"batch_size": 4, "sampler": "shuffle", "seed": 5, "num_workers": num_workers}
    cached = Loader(table.cached(tmp_path / "cache"), **options)
    plain = Loader(table, **options)
    for left, right in zip(cached.epoch(2), plain.epoch(2), strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.targets, right.targets)
        assert torch.equal(left.index, right.index)
    cached.close()
    plain.close()


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 10), unique=True, min_size=1))
def test_a_selection_of_the_table_has_its_own_images(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("selection")
    table = make_table(write_images(folder, 11))
    build_cache(table, folder / "cache", image_size=8)
    chosen = table.cached(folder / "cache")[rows]
    wanted = torch.stack([torch.from_numpy(read_image(str(table.paths[row]), size=(8, 8))) for row in rows])
    assert torch.equal(chosen.cache.take(np.arange(len(rows))), wanted.permute(0, 3, 1, 2))
    # A table selected first and cached afterwards, in any order, too.
    again = table[rows].cached(folder / "cache")
    assert torch.equal(pictures(Loader(again, batch_size=3, image_size=8)), wanted.permute(0, 3, 1, 2))


def test_every_split_and_selection_keeps_the_cache(tmp_path, table):
    build_cache(table, tmp_path / "cache", image_size=8)
    cached = table.cached(tmp_path / "cache")
    for part in (*cached.split((0.5, 0.5)), cached.limit(4), cached.select_labels(["a"])):
        whole = {str(name): cached.cache.read(row) for row, name in enumerate(cached.ids)}
        for row, name in enumerate(part.ids):
            assert torch.equal(part.cache.read(row), whole[str(name)])
    assert cached.fingerprint == table.fingerprint


def test_a_larger_cache_serves_a_smaller_model(tmp_path, table):
    cache = build_cache(table, tmp_path / "cache", image_size=16)
    images = pictures(Loader(table.cached(tmp_path / "cache"), batch_size=4, image_size=8))
    assert images.shape == (11, 3, 8, 8)
    wanted = torch.nn.functional.interpolate(cache.take([3]), size=(8, 8), mode="bilinear", antialias=True)
    assert torch.equal(images[3:4], wanted)


def test_what_is_taken_may_be_changed_and_the_file_does_not(tmp_path, table):
    cache = build_cache(table, tmp_path / "cache", image_size=8)
    before = (tmp_path / "cache" / "pixels.u8").read_bytes()
    cache.read(0).zero_()
    cache.take([0, 1]).zero_()
    dataset = ImageDataset(table.cached(tmp_path / "cache"), image_size=8, augment=lambda image: image.zero_())
    assert int(dataset[0][1].max()) == 0
    assert (tmp_path / "cache" / "pixels.u8").read_bytes() == before


def test_another_process_is_sent_no_pixels(tmp_path, table):
    cache = build_cache(table, tmp_path / "cache", image_size=64)
    cache.read(0)
    sent = pickle.dumps(cache)
    assert len(sent) < 4_000
    assert torch.equal(copy.deepcopy(cache).read(5), cache.read(5))  # by the same way


def test_a_second_call_decodes_only_what_is_missing_or_changed(tmp_path, table):
    seen: list[int] = []

    def watch(decoded, total, title):
        seen.append(total)
        return decoded

    build_cache(table, tmp_path / "cache", image_size=8, progress=watch)
    build_cache(table, tmp_path / "cache", image_size=8, progress=watch)
    path = Path(str(table.paths[4]))
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path)
    cache = build_cache(table, tmp_path / "cache", image_size=8, progress=watch)
    assert seen == [11, 0, 1]
    assert cache.read(4)[:, 0, 0].tolist() == read_image(path)[0, 0].tolist()


@pytest.mark.parametrize("damage", ["content", "gone"])
def test_a_cache_of_a_changed_file_is_refused(tmp_path, table, damage):
    build_cache(table, tmp_path / "cache", image_size=8)
    path = Path(str(table.paths[4]))
    if damage == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1  # as long as it was
        path.write_bytes(bytes(data))
        os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"1 image files changed since .* or are gone, the first of them .*04\.jpg"):
        table.cached(tmp_path / "cache")
    assert len(table.cached(tmp_path / "cache", check="none").cache) == 11
    others = np.arange(11) != 4
    assert len(table[others].cached(tmp_path / "cache").cache) == 10


def test_a_copied_data_set_is_the_same(tmp_path, table):
    build_cache(table, tmp_path / "cache", image_size=8)
    shutil.copytree(tmp_path / "images", tmp_path / "copy")  # new times, the same bytes
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, ns=(0, 0))
    moved = make_table(sorted((tmp_path / "copy").iterdir()))
    assert len(moved.cached(tmp_path / "cache").cache) == 11


def test_a_bad_image_stops_and_what_was_done_is_kept(tmp_path, table):
    Path(str(table.paths[9])).write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImageError, match=r"sample '09': .*09\.jpg"):
        build_cache(table, tmp_path / "cache", image_size=8)
    with pytest.raises(DataError, match=r"not finished, 1 of 11 images are missing|not finished"):
        ImageCache.open(tmp_path / "cache")
    shutil.copy(str(table.paths[0]), str(table.paths[9]))
    cache = build_cache(table, tmp_path / "cache", image_size=8)
    assert torch.equal(cache.read(9), cache.read(0))


def test_a_skipped_image_is_named_and_stays_bad_in_the_loader(tmp_path, table):
    Path(str(table.paths[9])).write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImageError, match=r"1 of 11 images cannot be read, more than max_bad"):
        build_cache(table, tmp_path / "cache", image_size=8, on_bad="skip")
    build_cache(table, tmp_path / "cache", image_size=8, on_bad="skip", max_bad=0.1)
    lines = (tmp_path / "cache" / "bad.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"09"}
    cached = table.cached(tmp_path / "cache")
    for augment in ("none", "flip"):
        with pytest.raises(ImageError, match="sample '09'") as caught:
            pictures(Loader(cached, batch_size=4, image_size=8, augment=augment))
        assert caught.value.reason == "corrupt"
        loader = Loader(cached, batch_size=4, image_size=8, augment=augment, on_bad="skip", max_bad=0.1)
        assert len(pictures(loader)) == 10
        assert [each.id for each in loader.bad] == ["09"]


@pytest.mark.parametrize("held", ["3", '{"a": 1}', '["00", {}]'])
def test_a_list_of_ids_that_is_none_is_refused(tmp_path, table, held):
    build_cache(table, tmp_path / "cache", image_size=8)
    (tmp_path / "cache" / "ids.json").write_text(held)
    with pytest.raises(DataError, match=r"ids\.json: a list of ids was wanted"):
        table.cached(tmp_path / "cache")


def test_other_images_or_settings_are_refused_with_the_differences(tmp_path, table):
    build_cache(table, tmp_path / "cache", image_size=8)
    with pytest.raises(ValueError, match=r"height 8 \(now 9\)"):
        build_cache(table, tmp_path / "cache", image_size=9)
    with pytest.raises(ValueError, match=r"images 11 \(now 10\), ids_sha256"):
        build_cache(table[:10], tmp_path / "cache", image_size=8)
    more = make_table([*table.paths.tolist(), tmp_path / "new.jpg"])
    with pytest.raises(ValueError, match="lacks 1 images of the table, the first of them 'new'"):
        more.cached(tmp_path / "cache")
    cached = table.cached(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"images of 8 x 8; this model and augmentation need at least 10 x 10"):
        Loader(cached, batch_size=2, image_size=8, augment="random_crop")
    with pytest.raises(ValueError, match=r"images of 3 channels .*wanted are 1"):
        Loader(cached, batch_size=2, image_size=8, channels=1)
    with pytest.raises(ValueError, match="cache"):
        ImageTable(paths=["a"], targets=[[0, 0]], space=SPACE, cache=cached.cache)


def test_a_folder_that_is_no_cache_is_left_alone(tmp_path, table):
    with pytest.raises(FileNotFoundError, match="holds no cache"):
        table.cached(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="is no cache and not empty"):
        build_cache(table, tmp_path / "images", image_size=8)
    assert len(list((tmp_path / "images").iterdir())) == 11


@pytest.mark.parametrize("name", ["pixels.u8", "records.bin"])
def test_a_cut_or_missing_file_is_named(tmp_path, table, name):
    build_cache(table, tmp_path / "cache", image_size=8)
    path = tmp_path / "cache" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"{name}: wanted a file of [\d,]+ bytes; it has"):
        ImageCache.open(tmp_path / "cache")
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: wanted a file of [\d,]+ bytes; it is not there"):
        ImageCache.open(tmp_path / "cache")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "wanted format"),
        ('{"format": "mlabel.cache/2"}', "wanted format 'mlabel.cache/1'; found 'mlabel.cache/2'"),
        ("{", "not JSON"),
        ({"images": "11"}, "images must be a positive integer; got '11'"),
        ({"height": -1}, "height must be a positive integer"),
        ({"background": 3}, "background must be a list"),
    ],
)
def test_a_false_header_is_named(tmp_path, table, header, message):
    build_cache(table, tmp_path / "cache", image_size=8)
    path = tmp_path / "cache" / "cache.json"
    if isinstance(header, dict):
        header = json.dumps(json.loads(path.read_text()) | header)
    path.write_text(header)
    with pytest.raises(DataError, match=message):
        ImageCache.open(tmp_path / "cache")


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, table):
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, held[1]))
    try:
        with pytest.raises(OSError, match=r"no room for 0\.00 GiB"):
            build_cache(table, tmp_path / "cache", image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
        signal.signal(signal.SIGXFSZ, previous)
    assert len(build_cache(table, tmp_path / "cache", image_size=64)) == 11


def test_a_killed_call_is_gone_on_with(tmp_path, table):
    script = """
        import os, sys
        from tests_table import table
        from mlabel.data import build_cache, cache_build

        cache_build._FLUSH = 2
        def stop(decoded, total, title):
            for count, each in enumerate(decoded):
                if count == 7:
                    os.kill(os.getpid(), 9)
                yield each
        build_cache(table, sys.argv[1], image_size=8, progress=stop)
    """
    (tmp_path / "tests_table.py").write_text(
        textwrap.dedent(
            f"""
            from mlabel.data import ImageTable
            from mlabel.labels import Group, LabelSpace
            table = ImageTable(
                paths={table.paths.tolist()!r}, targets=[[0, 0]] * 11, space=LabelSpace([Group("tags", ["a", "b"])])
            )
            """
        )
    )
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cache")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    seen: list[int] = []
    build_cache(
        table, tmp_path / "cache", image_size=8, progress=lambda decoded, total, title: seen.append(total) or decoded
    )
    assert seen == [11 - 6]
    images = pictures(Loader(table.cached(tmp_path / "cache"), batch_size=4, image_size=8))
    assert torch.equal(images, pictures(Loader(table, batch_size=4, image_size=8)))


def test_a_training_from_a_cache_is_the_training_from_the_files(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    paths = write_images(tmp_path / "images", 40)
    lines = [f"{path.name},{'a' if row % 2 else 'b'}" for row, path in enumerate(paths)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,tags", *lines]) + "\n")
    data = ["--reader", "csv", "--data", str(tmp_path / "labels.csv"), "--image-size", "16", "--augment", "flip"]
    data += ["--reader-option", "tags_column=tags", "--reader-option", f"root={tmp_path / 'images'}"]
    assert main(["cache", *data, "--to", str(tmp_path / "cache")]) == 0
    assert "40 images of 16 x 16, 0.00 GiB, 0 of them bad" in capsys.readouterr().out
    train = ["train", *data, "--backbone", "small_cnn", "--epochs", "2", "--batch-size", "8"]
    assert main([*train, "--run", str(tmp_path / "plain")]) == 0
    for path in paths[20:]:  # what was decoded is taken from the cache, whatever happens to the files' times
        os.utime(path, ns=(0, 0))
    assert main([*train, "--run", str(tmp_path / "cached"), "--cache", str(tmp_path / "cache")]) == 0
    histories = [(tmp_path / run / "history.csv").read_text() for run in ("plain", "cached")]
    assert histories[0] == histories[1]
    paths[0].write_bytes(paths[1].read_bytes())
    assert main(["evaluate", "--run", str(tmp_path / "cached")]) == 2
    assert "changed since they were decoded" in capsys.readouterr().err
