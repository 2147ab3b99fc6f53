"""Shards: there and back again, the same bytes twice, going on after a stop, loaders, and damage of every kind."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel import DataError, Group, LabelSpace
from mlabel.cli import main
from mlabel.data import (
    ImageError,
    ImageTable,
    Loader,
    examine,
    read_image,
    read_shards,
    survey_images,
    verify_shards,
    write_shards,
)
from mlabel.data.images import MissingImageError, open_image, stat_image
from mlabel.data.shards import member_key

SPACE = LabelSpace([Group("tags", ["cat", "dog", "ünï"]), Group("rating", ["safe", "other"], exclusive=True)])
KINDS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_table(folder: Path, n: int = 12, **changes) -> ImageTable:
    """A table with a bit of everything; the files' suffixes lie about their formats."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    paths = []
    for number in range(n):
        paths.append(folder / f"{number}.jpeg")
        paths[-1].write_bytes(picture(number, list(KINDS)[number % len(KINDS)]))
    targets = np.zeros((n, 5), dtype=np.uint8)
    targets[:, :3] = rng.random((n, 3)) < 0.4
    targets[np.arange(n), 3 + rng.integers(0, 2, n)] = 1
    unknown = np.zeros((n, 5), dtype=bool)
    targets[1], unknown[1] = 0, True  # nothing is known
    targets[2, 3:] = 0  # no rating
    targets[3, 1], unknown[3, 1] = 0, True  # one label is not known
    values = {
        "paths": paths,
        "targets": targets,
        "unknown": sp.csr_array(unknown),
        "space": SPACE,
        "ids": [f"sub/{number}.x y" for number in range(n)],
        "partition": [("train", "val", "test")[number % 3] for number in range(n)],
        "groups": [f"g{number // 2}" for number in range(n)],
    }
    return ImageTable(**(values | changes))


def same(one: ImageTable, other: ImageTable) -> None:
    """Everything but the place of the images is equal, and so are their bytes."""
    assert one.fingerprint == other.fingerprint
    assert one.space == other.space
    assert one.ids.tolist() == other.ids.tolist()
    for name in ("partition", "groups"):
        held = [getattr(table, name) for table in (one, other)]
        assert (held[0] is None) == (held[1] is None)
        assert held[0] is None or (held[0].dtype == held[1].dtype and held[0].tolist() == held[1].tolist())
    for name in ("targets", "unknown"):
        held = [getattr(table, name) for table in (one, other)]
        assert (held[0] is None) == (held[1] is None)
        assert held[0] is None or (held[0] != held[1]).nnz == 0
    for mine, theirs in zip(one.paths.tolist(), other.paths.tolist(), strict=True):
        assert content(mine) == content(theirs)


def content(path: str) -> bytes:
    with open_image(path, path) as file:
        return file.read()


def refused(error, words, call, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    for word in words:
        assert word in str(caught.value)


def attempt(call, *args, **options):
    """Return what a call returns, or else what it says of damaged data; any other error comes through."""
    try:
        return call(*args, **options), ""
    except DataError as error:
        return None, str(error)
    except ValueError as error:
        if "without an index there are no checksums" not in str(error):
            raise
        return None, str(error)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def table(tmp_path) -> ImageTable:
    return make_table(tmp_path / "images")


@pytest.fixture
def written(table, tmp_path) -> Path:
    write_shards(table, tmp_path / "s", shard_bytes=16_000)
    return tmp_path / "s"


# There and back again


@pytest.mark.parametrize("verify", ["none", "size", "sha256"])
@pytest.mark.parametrize("changes", [{}, {"partition": None}, {"groups": list(range(12))}, {"unknown": None}])
def test_reads_what_was_written(tmp_path, changes, verify):
    table = make_table(tmp_path / "images", **changes)
    done = write_shards(table, tmp_path / "s", shard_bytes=16_000)
    assert len(done.names) > 2
    assert done.num_samples == 12
    assert done.num_kept == 0
    assert done.skipped == ()
    assert done.num_bytes == sum(path.stat().st_size for path in (tmp_path / "s").glob("*.tar"))
    again = read_shards(tmp_path / "s", verify=verify)
    same(table, again)
    assert again.notes == ()
    assert verify_shards(tmp_path / "s") == []
    shutil.rmtree(tmp_path / "images")
    same(again, read_shards(tmp_path / "s"))


odd_ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150)


@given(st.sets(odd_ids, min_size=1, max_size=8))
@settings(max_examples=60)
def test_odd_ids_come_back_and_their_keys_are_safe(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "a.png").write_bytes(picture(0))
    ids = sorted(ids)
    targets = np.ones((len(ids), 2))
    space = LabelSpace([Group("tags", ["a", "b"])])
    table = ImageTable(paths=[folder / "a.png"] * len(ids), ids=ids, targets=targets, space=space)
    write_shards(table, folder / "s")
    same(table, read_shards(folder / "s", verify="sha256"))
    with tarfile.open(folder / "s" / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert len(set(names)) == 2 * len(ids)
    for name in names:
        assert name.count(".") == 1
        assert "/" not in name
        assert name.isascii()
        assert not name.startswith("-")
    (folder / "s" / "shard-000000.index.json").unlink()
    (folder / "s" / "shards.json").unlink()
    same(table, read_shards(folder / "s"))


def test_keys_are_ids_where_these_are_safe_and_never_meet():
    assert member_key("im17") == "im17"
    assert member_key("a-b_C") == "a-b_C"
    derived = member_key("a.b")
    assert derived.startswith("a_b-")
    assert len(derived) == 24
    assert member_key(derived) != derived
    assert len({member_key(name) for name in ("a/b", "a.b", "a_b", "a b", derived)}) == 5
    assert len(member_key("x" * 96)) < 96
    assert member_key("x" * 95) == "x" * 95


def test_tarfile_reads_the_layout_of_webdataset(table, written):
    rows, number = [], 0
    for path in sorted(written.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, text in zip(members[::2], members[1::2], strict=True):
                assert image.name.split(".")[0] == text.name.split(".")[0]
                assert image.name.endswith(KINDS[list(KINDS)[number % len(KINDS)]])
                assert (image.mtime, image.uid, image.uname, image.mode) == (0, 0, "", 0o644)
                assert tar.extractfile(image).read() == content(str(table.paths[number]))
                rows.append(json.load(tar.extractfile(text)))
                number += 1
    assert [row["id"] for row in rows] == table.ids.tolist()
    assert [row["labels"] for row in rows] == table.space.decode(table.targets)
    assert [row["part"] for row in rows] == table.partition.tolist()
    assert [row["group"] for row in rows] == table.groups.tolist()
    assert rows[1] | {"part": 0, "group": 0, "id": 0} == {
        "id": 0,
        "labels": [],
        "unknown": [],
        "part": 0,
        "group": 0,
        "unknown_groups": ["tags", "rating"],
    }
    assert rows[3]["unknown"] == ["dog"]
    assert rows[2]["unknown_groups"] == ["rating"]


def test_equal_tables_give_equal_bytes_and_a_seed_shuffles_over_all_tars(table, tmp_path):
    for name, seed in (("a", None), ("b", None), ("c", 1), ("d", 1), ("e", 2)):
        write_shards(table, tmp_path / name, shard_bytes=16_000, seed=seed)
    written = {name: files_of(tmp_path / name) for name in "abcde"}
    assert written["a"] == written["b"]
    assert written["c"] == written["d"]
    orders = [read_shards(tmp_path / name).ids.tolist() for name in "ace"]
    assert orders[0] == table.ids.tolist()
    assert len({tuple(order) for order in orders}) == 3
    order = [table.ids.tolist().index(name) for name in orders[1]]
    same(table[order], read_shards(tmp_path / "c"))


def test_tars_are_as_large_as_asked_for(table, tmp_path):
    for limit in (8_000, 16_000, 1 << 20):
        write_shards(table, tmp_path / str(limit), shard_bytes=limit)
        sizes = [path.stat().st_size for path in sorted((tmp_path / str(limit)).glob("*.tar"))]
        assert max(sizes) <= limit
        firsts = [size - 1024 for size in sizes[1:]]
        assert all(size + following > limit - 8_000 for size, following in zip(sizes, firsts, strict=False))
    assert len(sizes) == 1
    write_shards(table, tmp_path / "one", shard_bytes=1)
    assert len(list((tmp_path / "one").glob("*.tar"))) == 12


def test_shards_of_shards_are_the_same(table, written, tmp_path):
    write_shards(read_shards(written), tmp_path / "again", shard_bytes=16_000)
    assert files_of(written) == files_of(tmp_path / "again")


def test_one_tar_is_read_alone_and_a_folder_may_be_moved(table, written, tmp_path):
    tars = sorted(written.glob("*.tar"))
    first, second = read_shards(tars[0]), read_shards(tars[1])
    same(table[: len(first)], first)
    same(table[len(first) : len(first) + len(second)], second)
    same(table, read_shards(written.rename(tmp_path / "moved")))


def test_labels_json_is_not_needed_and_must_not_be_another(table, written):
    (written / "labels.json").unlink()
    same(table, read_shards(written))
    LabelSpace([Group("tags", ["cat"])]).save(written / "labels.json")
    refused(DataError, ["shard-000000.index.json", "another one"], read_shards, written)
    assert any("another one" in problem for problem in verify_shards(written))
    for text in (
        "{",
        "[]",
        '{"format": "mlabel.labels/1", "groups": [{"name": 1, "labels": ["a"], "exclusive": false}]}',
    ):
        (written / "labels.json").write_text(text)
        refused(DataError, ["labels.json"], read_shards, written)
        assert any("labels.json" in problem for problem in verify_shards(written))


# What reads images reads shards


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_same_batches_as_from_files(table, written, num_workers):
    options = {"batch_size": 5, "image_size": 16, "augment": "standard", "sampler": "shuffle", "seed": 3}
    options["num_workers"] = num_workers
    with Loader(table, **options) as one, Loader(read_shards(written), **options) as other:
        for epoch in range(2):
            pairs = list(zip(one.epoch(epoch), other.epoch(epoch), strict=True))
            assert sum(len(mine.index) for mine, _ in pairs) == 12
            for mine, theirs in pairs:
                assert mine.index.equal(theirs.index)
                assert mine.images.equal(theirs.images)
                assert mine.targets.equal(theirs.targets)
                assert mine.mask.equal(theirs.mask)


def test_survey_duplicates_and_doctor_see_the_same(table, written):
    again = read_shards(written)
    one, other = survey_images(table), survey_images(again)
    assert (one.pixels == other.pixels).all()
    assert (one.heights == other.heights).all()
    assert not other.faults
    assert again.duplicates().tolist() == table.duplicates().tolist()
    parts = [{"train": t} for t in (table, again)]
    assert examine(parts[0], {"train": one}).text() == examine(parts[1], {"train": other}).text()


def test_an_address_is_read_and_its_range_is_checked(written, tmp_path):
    path = str(read_shards(written).paths[0])
    tar, offset, size = path.split("@")[0], *path.split("@")[1].split("+")
    assert read_image(path).shape == (16, 24, 3)
    assert stat_image(path) == (int(size), os.stat(tar).st_mtime_ns)
    assert stat_image(tar)[0] == os.stat(tar).st_size
    refused(ImageError, [f"{tar}@{offset}+99999999", "truncated"], read_image, f"{tar}@{offset}+99999999")
    refused(ImageError, ["truncated"], read_image, f"{tar}@{10**17}+1")
    refused(ImageError, ["allowed"], read_image, f"{tar}@512+{2**31}")
    refused(MissingImageError, ["no.tar@512+4"], read_image, f"{tmp_path}/no.tar@512+4")
    (tmp_path / "folder.tar").mkdir()
    refused(ImageError, ["directory"], read_image, f"{tmp_path}/folder.tar@512+4")
    os.mkfifo(tmp_path / "pipe.tar")
    refused(ImageError, ["pipe"], read_image, f"{tmp_path}/pipe.tar@512+4")
    refused(ImageError, ["begins with"], read_image, f"{tar}@{int(offset) - 512}+512")
    for other in (f"{tar}@{offset}", f"{tar}@-1+5", f"{tar}@1+5x", f"{tar}@1+", f"{tar[:-4]}@1+5", f"{tar}@٣+5"):
        refused(MissingImageError, ["no such file"], read_image, other)


# Stopped, and gone on


class Remaining:
    """What a progress bar is told."""

    total = 0

    def __call__(self, rows, total, title):
        self.total = total
        return rows


def test_goes_on_after_a_stop_and_the_result_is_the_same(table, written, tmp_path):
    whole = files_of(written)
    starts = []
    for stop in range(13):
        folder = tmp_path / f"stop{stop}"

        def interrupted(rows, total, title, stop=stop):
            for number, row in enumerate(rows):
                if number == stop:
                    raise KeyboardInterrupt
                yield row

        if stop < 12:
            with pytest.raises(KeyboardInterrupt):
                write_shards(table, folder, shard_bytes=16_000, progress=interrupted)
            assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
            if list(folder.glob("*.tar")):
                refused(DataError, ["not finished"], read_shards, folder)
                assert any("not finished" in problem for problem in verify_shards(folder))
        remaining = Remaining()
        done = write_shards(table, folder, shard_bytes=16_000, progress=remaining)
        starts.append((done.num_kept, remaining.total))
        assert files_of(folder) == whole
    assert starts[0] == (0, 12)
    assert starts[11][0] > 1
    assert starts[11][1] < 12
    again = write_shards(table, tmp_path / "stop3", shard_bytes=16_000)
    assert again.num_kept == len(again.names)
    assert files_of(tmp_path / "stop3") == whole


@pytest.mark.parametrize("moment", ["tar", "index", "manifest"])
def test_a_crash_between_the_names_is_made_good(table, written, tmp_path, moment):
    """As kill -9 leaves it: temporary files, a tar without its index, all but the manifest."""
    whole = files_of(written)
    folder = tmp_path / "crash"
    write_shards(table, folder, shard_bytes=16_000)
    manifest = json.loads((folder / "shards.json").read_text())
    (folder / "shards.json").write_text(json.dumps(manifest | {"complete": False, "shards": []}))
    if moment != "manifest":
        for path in sorted(folder.glob("shard-*"))[2:]:
            path.unlink()
    if moment == "index":
        (folder / "shard-000001.tar").write_bytes(whole["shard-000001.tar"])
    (folder / ".shard-000001.tar.77.tmp").write_bytes(b"half")
    refused(DataError, ["not finished"], read_shards, folder)
    done = write_shards(table, folder, shard_bytes=16_000)
    assert files_of(folder) == whole
    assert done.num_kept == (len(done.names) if moment == "manifest" else 1)


def test_a_tar_in_the_place_of_another_is_written_again(table, written):
    whole = files_of(written)
    for suffix in (".tar", ".index.json"):
        shutil.copy(written / f"shard-000002{suffix}", written / f"shard-000001{suffix}")
    refused(DataError, ["the id", "shard-000001.tar", "shard-000002.tar"], read_shards, written)
    assert write_shards(table, written, shard_bytes=16_000).num_kept == 1
    assert files_of(written) == whole


def test_a_full_disk_leaves_nothing_half_under_a_final_name(table, tmp_path, monkeypatch):
    real = os.fsync
    stopped = 0
    for last in range(0, 40, 3):  # a tar and its index take four calls
        folder = tmp_path / f"full{last}"
        calls = []

        def full(descriptor, calls=calls, last=last):
            calls.append(descriptor)
            if len(calls) > last:
                raise OSError(28, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                write_shards(table, folder, shard_bytes=16_000)
            except OSError:
                stopped += 1
        assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
        for tar in folder.glob("*.tar"):
            with tarfile.open(tar) as file:
                assert file.getmembers()
        for index in folder.glob("*.index.json"):
            assert len(read_shards(folder / index.name.replace(".index.json", ".tar"), verify="sha256"))
        write_shards(table, folder, shard_bytes=16_000)
        same(table, read_shards(folder, verify="sha256"))
    assert 5 < stopped < 14


def test_another_table_other_settings_and_other_folders_are_refused(table, written, tmp_path):
    before = files_of(written)
    for other in (table[:5], make_table(tmp_path / "images", partition=None), make_table(tmp_path / "i", groups=None)):
        refused(ValueError, ["another table"], write_shards, other, written, shard_bytes=16_000)
    refused(ValueError, ["settings", "16000"], write_shards, table, written)
    refused(ValueError, ["settings"], write_shards, table, written, shard_bytes=16_000, seed=1)
    assert files_of(written) == before
    refused(FileExistsError, ["0.jpeg"], write_shards, table, tmp_path / "images")
    refused(ValueError, ["on_bad"], write_shards, table, tmp_path / "n", on_bad="pass")
    refused(ValueError, ["shard_bytes"], write_shards, table, tmp_path / "n", shard_bytes=0)
    refused(ValueError, ["max_bad"], write_shards, table, tmp_path / "n", max_bad=2)
    refused(ValueError, ["number of images"], write_shards, table[[]], tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_what_is_no_image_stops_or_is_left_out_and_counted(table, tmp_path):
    for row, bad in {4: b"<html>", 5: b"", 11: None}.items():
        path = Path(str(table.paths[row]))
        path.unlink() if bad is None else path.write_bytes(bad)
    options = {"shard_bytes": 16_000}
    refused(ImageError, ["sub/4.x y", "HTML"], write_shards, table, tmp_path / "s", **options)
    refused(
        ImageError, ["1 of 12", "max_bad"], write_shards, table, tmp_path / "s", on_bad="skip", max_bad=0.05, **options
    )
    done = write_shards(table, tmp_path / "s", on_bad="skip", max_bad=0.25, **options)
    assert [name for name, _ in done.skipped] == ["sub/4.x y", "sub/5.x y", "sub/11.x y"]
    assert "HTML" in done.skipped[0][1]
    assert "no such file" in done.skipped[2][1]
    again = read_shards(tmp_path / "s")
    same(table[[0, 1, 2, 3, 6, 7, 8, 9, 10]], again)
    assert again.notes == ("3 images were left out when the shards were written",)
    same(again, read_shards(tmp_path / "s"))
    repeated = write_shards(table, tmp_path / "s", on_bad="skip", max_bad=0.25, **options)
    assert repeated.skipped == done.skipped
    assert repeated.num_kept == len(done.names)
    refused(ImageError, ["sub/4.x y"], write_shards, table, tmp_path / "s", **options)


# Damage


@pytest.mark.fault(23)
@pytest.mark.fault(23)
def test_verify_names_what_is_wrong(table, written):
    def problems() -> list[str]:
        found = verify_shards(written)
        assert found
        refused(DataError, [], read_shards, written, verify="sha256")
        return found

    row = 4
    path = str(read_shards(written).paths[row])
    tar, offset = Path(path.split("@")[0]), int(path.split("@")[1].split("+")[0])
    whole = tar.read_bytes()
    tar.write_bytes(whole[: offset + 9] + bytes([whole[offset + 9] ^ 1]) + whole[offset + 10 :])
    (problem,) = problems()
    assert str(tar) in problem
    assert str(table.ids[row]) in problem
    assert "not those that were written" in problem
    assert len(read_shards(written)) == 12  # a size tells nothing of it
    place = whole.index(b'"labels": [')
    tar.write_bytes(whole[:place] + b"X" + whole[place + 1 :])
    (problem,) = problems()
    assert str(tar) in problem
    assert "headers, labels" in problem
    tar.write_bytes(whole[:-1024])
    refused(DataError, [str(tar), "its index is of a tar of"], read_shards, written)
    assert any("cut" in problem for problem in problems())
    tar.write_bytes(whole)
    index = tar.with_suffix(".index.json")
    text = index.read_text()
    index.write_text(text.replace("[0", "[1", 1) if "[0" in text else text.replace("[1", "[0", 1))
    assert any(str(index) in problem for problem in problems())
    index.write_text(text)
    assert verify_shards(written) == []
    tar.unlink()
    refused(DataError, [tar.name, "is not there"], read_shards, written)
    problems()
    tar.write_bytes(whole)
    shutil.copy(tar, written / "zzz.tar")
    refused(DataError, ["zzz.tar", "does not tell of it"], read_shards, written)
    problems()


@pytest.mark.fault(23)
def test_an_index_that_is_gone_or_of_another_tar(table, written):
    first, second = sorted(written.glob("*.index.json"))[:2]
    texts = first.read_text(), second.read_text()
    first.unlink()
    refused(DataError, ["shard-000000.tar", "index"], read_shards, written)
    assert any("has no index" in problem for problem in verify_shards(written))
    first.write_text(texts[1])
    refused(DataError, ["shard-000000.tar"], read_shards, written)
    # Even where the sizes of the two tars are the same.
    size = first.with_name("shard-000000.tar").stat().st_size
    values = json.loads(texts[1])
    values["tar"]["size"] = max(size, values["tar"]["size"])
    with open(first.with_name("shard-000000.tar"), "ab") as file:
        file.truncate(values["tar"]["size"])
    first.write_text(json.dumps(values))
    refused(DataError, ["shard-000000.tar", "another tar"], read_shards, written)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("entry", "value", "word"),
    [
        ("format", "mlabel.shard/9", "mlabel.shard/1"),
        ("format", None, "format"),
        ("offset", [512] * 3, "overlap"),
        ("offset", [512, 10**9, 4096], "cannot lie at byte 1000000000"),
        ("offset", [512, -512, 4096], "cannot lie"),
        ("offset", [512, 2.5, 4096], "integers"),
        ("offset", [512, "2048", 4096], "integers"),
        ("offset", [512, 10**30, 4096], "integers"),
        ("offset", [512, 2000, 4096], "cannot lie"),
        ("offset", [512], "each of 3"),
        ("size", [10**12, 1, 1], "cannot lie"),
        ("size", [-1, 1, 1], "cannot lie"),
        ("size", 7, "list"),
        ("member", ["a.jpg"] * 3, "twice"),
        ("member", ["a.jpg", 3, "b.jpg"], "texts"),
        ("id", ["a", None, "c"], "texts"),
        ("id", {}, "list"),
        ("labels", [[0], [5], []], "0 to 4"),
        ("labels", [[0], [-1], []], "0 to 4"),
        ("labels", [[0], ["cat"], []], "integers"),
        ("labels", [[0], 3, []], "list for each"),
        ("labels", [[3, 4], [], []], "exclusive"),
        ("unknown_groups", [[], [2], []], "0 to 1"),
        ("part", ["train", "test", "other"], "train, val, test"),
        ("part", ["train"], "each of 3"),
        ("group", [1, 2, "x"], "integers"),
        ("space", {"format": "mlabel.labels/1", "groups": "x"}, "label space"),
        ("space", [], "dict"),
        ("tar", {"size": "x", "sha256": ""}, "size"),
        ("rows", [0], "unpack"),
        ("rows", [5, 2], "rows"),
        ("skipped", [1], "index.json"),
        ("sha256", [1, 2, 3], "texts"),
    ],
)
def test_an_index_that_cannot_be(tmp_path, entry, value, word):
    write_shards(make_table(tmp_path / "images", n=12)[[0, 4, 5]], tmp_path / "s")
    path = tmp_path / "s" / "shard-000000.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    refused(DataError, [str(tmp_path / "s"), word], read_shards, tmp_path / "s", verify="none")
    values = json.loads(path.read_text())
    del values[entry]
    path.write_text(json.dumps(values))
    refused(DataError, [path.name, entry], read_shards, tmp_path / "s", verify="none")


@pytest.mark.fault(11)
def test_one_id_in_two_tars_names_both(table, written):
    _first, second = sorted(written.glob("*.index.json"))[:2]
    values = json.loads(second.read_text())
    values["id"][0] = str(table.ids[0])
    second.write_text(json.dumps(values))
    refused(DataError, ["sub/0.x y", "shard-000000.tar", "shard-000001.tar"], read_shards, written)


# The command


def test_the_command_writes_verifies_and_reads(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number in range(25):
        (images / f"{number}.png").write_bytes(picture(number))
        rows.append(f"{number}.png,{'cat' if number % 2 else 'cat dog'}\n")
    (images / "list.csv").write_text("image,tags\n" + "".join(rows))
    options = ["--reader", "csv", "--data", str(images / "list.csv"), "--to", str(tmp_path / "s"), "--limit", "20"]
    options += ["--reader-option", "tags_column=tags", "--reader-option", 'separator=" "', "--labels", "cat"]
    options += ["--shard-mb", "0.04", "--shuffle", "--seed", "3"]
    assert main(["shard", *options]) == 0
    out = capsys.readouterr().out
    assert "20 images in 2 tars" in out
    assert "--reader shards --data" in out
    assert main(["shard", *options]) == 0
    assert "2 tars were there already" in capsys.readouterr().out
    table = read_shards(tmp_path / "s")
    assert len(table) == 20
    assert table.space.names == ("cat",)
    assert table.ids.tolist() != sorted(table.ids.tolist())
    assert main(["doctor", "--reader", "shards", "--data", str(tmp_path / "s"), "--min-positives", "1"]) in (0, 1)
    capsys.readouterr()
    assert main(["shard", "--verify", str(tmp_path / "s")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "every byte" in captured.err
    tar = tmp_path / "s" / "shard-000001.tar"
    whole = bytearray(tar.read_bytes())
    whole[700] ^= 1
    tar.write_bytes(whole)
    assert main(["shard", "--verify", str(tmp_path / "s")]) == 2
    captured = capsys.readouterr()
    assert str(tar) in captured.out
    assert "problems: 1" in captured.err
    assert main(["shard", "--reader", "csv", "--data", "x"]) == 2
    assert "--to is wanted" in capsys.readouterr().err
    assert main(["shard", "--verify", str(tmp_path / "no")]) == 2
    assert "no such folder" in capsys.readouterr().err


# The tars of others


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **values) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in values.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def foreign(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            add(tar, name, data, mtime=1234567890.25)
    return path


def labels(*names: str, **more) -> bytes:
    return json.dumps({"labels": names, **more}).encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_tars_are_walked(tmp_path, form):
    long = "" if form == tarfile.USTAR_FORMAT else "ä" * 80
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        add(tar, "./", kind=tarfile.DIRTYPE)
        add(tar, f"./x/{long}1.jpg", picture(1, "JPEG"), mtime=1234567890)
        add(tar, f"./x/{long}1.json", labels("dog", "cat"))
        add(tar, "notes.txt", b"hello")
        add(tar, "2.json", labels("dog", id="two"))
        add(tar, "2.png", picture(2))
        add(tar, "lonely.json", b"not even JSON")
    foreign(tmp_path / "b.tar", [("3.seg.png", b"?"), ("3.PNG", picture(3)), ("3.json", labels())])
    table = read_shards(tmp_path)
    assert table.ids.tolist() == [f"x/{long}1", "two", "3"]
    assert table.space.names == ("dog", "cat")
    assert table.space.decode(table.targets) == [["dog", "cat"], ["dog"], []]
    assert [content(path) for path in table.paths] == [picture(1, "JPEG"), picture(2), picture(3)]
    assert table.unknown is None
    assert table.partition is None
    assert table.groups is None
    assert table.notes == (
        "1 members .json were not read",
        "1 members .seg.png were not read",
        "1 members .txt were not read",
    )
    assert any("no index" in problem for problem in verify_shards(tmp_path))
    refused(ValueError, ["checksums"], read_shards, tmp_path, verify="sha256")


def test_our_own_tars_without_an_index_give_the_same_table(table, written):
    for path in (*written.glob("*.index.json"), written / "shards.json"):
        path.unlink()
    same(table, read_shards(written))
    (written / "labels.json").unlink()
    assert sorted(read_shards(written).space.names) == sorted(SPACE.names)


def test_labels_of_others_by_option(tmp_path):
    texts = [json.dumps({"tags": tags, "part": "valid", "group": 7}).encode() for tags in (["a", "b"], ["a"], ["a"])]
    members = [
        (f"{n}.{kind}", data) for n, text in enumerate(texts) for kind, data in (("png", picture(n)), ("json", text))
    ]
    foreign(tmp_path / "a.tar", members)
    refused(DataError, ["no entry 'labels'", "tags", "labels_field"], read_shards, tmp_path)
    table = read_shards(tmp_path, labels_field="tags", min_count=2)
    assert table.space.names == ("a",)
    assert table.partition.tolist() == ["val"] * 3
    assert table.groups.tolist() == [7] * 3
    table = read_shards(tmp_path, labels_field="tags", vocabulary=["b", "c"])
    assert table.space.names == ("b", "c")
    assert table.counts.tolist() == [1, 0]
    assert "left out" in table.notes[0]
    LabelSpace([Group("x", ["b"]), Group("y", ["a", "z"], exclusive=True)]).save(tmp_path / "labels.json")
    table = read_shards(tmp_path, labels_field="tags")
    assert table.space.decode(table.targets) == [["b", "a"], ["a"], ["a"]]


def test_options_for_other_tars_are_refused_with_an_index(written):
    refused(ValueError, ["select_labels"], read_shards, written, min_count=2)
    refused(ValueError, ["select_labels"], read_shards, written, vocabulary=["cat"])
    refused(ValueError, ["verify", "size"], read_shards, written, verify="sizes")


def test_where_there_is_nothing(tmp_path):
    refused(FileNotFoundError, ["no such folder"], read_shards, tmp_path / "no")
    refused(FileNotFoundError, ["no tar"], read_shards, tmp_path)
    refused(FileNotFoundError, ["no tar"], verify_shards, tmp_path)
    foreign(tmp_path / "a.tar", [("a.txt", b"x")])
    refused(DataError, ["no image"], read_shards, tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    refused(DataError, ["a.tar", "cut"], read_shards, tmp_path)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("../b.png", {}, "leads out"),
        ("x/../../b.png", {}, "leads out"),
        ("/etc/b.png", {}, "absolute"),
        ("C:b.png", {}, "drive letter"),
        ("x\\b.png", {}, "backslash"),
        ("b.png", {"kind": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "symbolic link"),
        ("b.png", {"kind": tarfile.LNKTYPE, "linkname": "a.png"}, "hard link"),
        ("b.png", {"kind": tarfile.CHRTYPE}, "character device"),
        ("b.png", {"kind": tarfile.BLKTYPE}, "block device"),
        ("b.png", {"kind": tarfile.FIFOTYPE}, "pipe"),
        ("b.png", {"kind": b"Z"}, "unknown kind"),
        ("b.png", {"kind": tarfile.GNUTYPE_SPARSE}, "sparse"),
        ("a.png", {}, "twice"),
        ("./a.png", {}, "twice"),
        ("a.jpg", {}, "images of one sample"),
        ("b.png", {}, "no 'b.json'"),
        ("b.png", {"pax_headers": {"GNU.sparse.major": "1"}}, "sparse"),
    ],
)
@pytest.mark.fault(22)
@pytest.mark.fault(23)
def test_odd_members_are_refused(tmp_path, name, values, word):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.png", picture(1))
        add(tar, "a.json", labels("cat"))
        add(tar, name, **values)
    refused(DataError, ["x.tar", word], read_shards, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def block(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def record(text: str) -> bytes:
    """A record of an extended header, `length name=value` and a newline; the length counts itself."""
    for length in range(len(text), len(text) + 9):
        line = f"{length} {text}\n".encode()
        if len(line) == length:
            return line
    raise AssertionError


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    return block("header", kind, len(content)) + content + bytes(-len(content) % 512)


@pytest.mark.fault(23)
def test_extended_headers_give_name_and_size(tmp_path):
    image, text = picture(1), labels("cat")
    parts = [extended(record("comment=x") + record("path=ä.png") + record(f"size={len(image)}"))]
    parts += [block("short.png", b"0", 0), image, bytes(-len(image) % 512), extended(record("mtime=1.5"), b"g")]
    parts += [extended("ä.json\0".encode(), b"L"), block("short.json", b"0", len(text)), text, bytes(-len(text) % 512)]
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(parts) + bytes(1024))
    table = read_shards(tmp_path)
    assert table.ids.tolist() == ["ä"]
    assert content(table.paths[0]) == image
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["ä.png", "ä.json"]


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (block("a.png", b"0", 512), "a.png' has 512 bytes, of which the tar holds 0; it was cut"),
        (block("a.png", b"0", 512) + bytes(512), "the tar ends here"),
        (block("a.png", b"0", 0)[:300], "the tar ends here"),
        (block("a.png", b"0", 0).replace(b"a.png", b"b.png"), "byte 0: not the header of a tar member: its checksum"),
        (b"x" * 1024, "is not a number"),
        (extended(bytes(1 << 21)), "extended header of 2,097,152 bytes"),
        (extended(b"9 path=ab"), "damaged extended header"),
        (extended(b"99 path=a\n"), "damaged extended header"),
        (extended(b"0 path=a\n"), "damaged extended header"),
        (extended(b"path=a\n"), "damaged extended header"),
        (extended(record("size=-5")) + block("a.png", b"0", 0), "gives the size '-5'"),
        (extended(record("size=9" + "9" * 30)) + block("a.png", b"0", 0), "gives the size"),
        (extended(record("path=a.png"), b"g"), "for all members gives their path"),
        (extended(b"28 path=\xff" + b"x" * 18 + b"\n"), "not UTF-8"),
        (block("a.png", b"0", 0)[:124] + b"\xff" * 12 + block("a.png", b"0", 0)[136:], "its checksum"),
    ],
)
def test_odd_headers_are_refused(tmp_path, content, word):
    end = b"" if "ends here" in word or "it was cut" in word else bytes(1024)
    (tmp_path / "x.tar").write_bytes(content + end)
    refused(DataError, ["x.tar", word], read_shards, tmp_path)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "an object"),
        (b"\xff", "not JSON"),
        (b'{"labels": "cat"}', "list of names"),
        (b'{"labels": [1]}', "list of names"),
        (b'{"labels": ["a\\nb"]}', "newline"),
        (b'{"labels": ["a"], "unknown": {}, "part": "x"}', "a part is one of"),
        (b'{"labels": ["a"], "unknown": ["a"]}', "both present and unknown"),
        (b'{"labels": ["a"], "group": 1.5}', "a group is"),
        (b'{"labels": ["a"], "id": []}', "an id is"),
        (b'{"labels": ["a"], "id": "\\ud800"}', "surrogate"),
        (b'{"labels": ["a"], "part": "test"}', "others have none"),
    ],
)
def test_odd_json_is_refused(tmp_path, text, word):
    foreign(
        tmp_path / "x.tar", [("b.png", picture(0)), ("b.json", labels("a")), ("a.png", picture(1)), ("a.json", text)]
    )
    refused(DataError, [str(tmp_path), word], read_shards, tmp_path)


@pytest.mark.fault(23)
@given(st.data())
@settings(max_examples=150)
@pytest.mark.fault(23)
def test_whatever_is_flipped_or_cut_ends_in_a_named_error(tmp_path_factory, data):
    folder, whole = fuzzed_folder(tmp_path_factory)
    name = data.draw(st.sampled_from(sorted(whole)))
    damaged = bytearray(whole[name])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        # Headers and short files are where damage tells most.
        damaged[place - place % 512 * data.draw(st.booleans())] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(damaged)))
    try:
        (folder / name).write_bytes(damaged[:cut])
        for verify in ("none", "size", "sha256"):
            table, problem = attempt(read_shards, folder, verify=verify)
            assert table is not None or "own" in problem
            for path in () if table is None else table.paths.tolist():
                pixels, problem = attempt(read_image, path)
                assert pixels is not None or ".tar@" in problem
        problems = verify_shards(folder)
        assert bytes(damaged[:cut]) == whole[name] or problems or name in ("labels.json", "shards.json")
    finally:
        (folder / name).write_bytes(whole[name])


FUZZED: dict[str, tuple[Path, dict[str, bytes]]] = {}


def fuzzed_folder(factory) -> tuple[Path, dict[str, bytes]]:
    if not FUZZED:
        root = factory.mktemp("fuzz")
        write_shards(make_table(root / "i", n=6), root / "own", shard_bytes=12_000)
        FUZZED["own"] = (root / "own", files_of(root / "own"))
    return FUZZED["own"]


@pytest.mark.fault(23)
@given(st.data())
@settings(max_examples=100)
@pytest.mark.fault(23)
def test_whatever_is_done_to_other_tars_ends_in_a_named_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "foreign"
    members = [("ä" * 120 + ".png", picture(1)), ("ä" * 120 + ".json", labels("cat")), ("b.png", picture(2))]
    path = foreign(folder / "x.tar", [*members, ("b.json", labels("dog"))], format=tarfile.PAX_FORMAT)
    damaged = bytearray(path.read_bytes())
    starts = [place for place in range(0, len(damaged), 512) if damaged[place + 257 : place + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.sampled_from(starts))
        damaged[start + data.draw(st.integers(0, 1023))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with checksums that fit, so that what lies behind them is reached
        for start in starts:
            block = damaged[start : start + 512]
            block[148:156] = b" " * 8
            damaged[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(damaged[: data.draw(st.none() | st.integers(0, len(damaged)))])
    table, problem = attempt(read_shards, folder)
    assert table is not None or "foreign" in problem
    for path in () if table is None else table.paths.tolist():
        pixels, problem = attempt(read_image, path)
        assert pixels is not None or "x.tar@" in problem
