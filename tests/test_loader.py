"""The loader: the same batches for any number of workers and any start, nothing lost, nothing replaced, no hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlabel._checks import DataError
from mlabel.data import ImageDataset, ImageError, ImageTable, Loader, read_image
from mlabel.data.transforms import augmentation, sample_key
from mlabel.labels import Group, LabelSpace

# On a machine of one core torch advises against two workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SPACE = LabelSpace([Group("tags", ["a", "b", "c"]), Group("kind", ["x", "y"], exclusive=True)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with 23 small images, of which no two are alike."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(23):
        pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.png")
    return root


def make_table(folder: Path, count: int = 23, *, known: bool = False) -> ImageTable:
    """Return a table of images of the folder, with labels of its own for each row; some unknown unless `known`."""
    rng = np.random.default_rng(1)
    targets = np.zeros((count, 5), dtype=np.uint8)
    targets[:, :3] = rng.random((count, 3)) < 0.4
    targets[np.arange(count), 3 + rng.integers(0, 2, count)] = 1
    unknown = np.zeros((count, 5), dtype=bool)
    unknown[:, :3] = (targets[:, :3] == 0) & (rng.random((count, 3)) < (0 if known else 0.3))
    paths = [folder / f"{number:02d}.png" for number in range(count)]
    return ImageTable(paths=paths, targets=targets, unknown=~unknown, space=SPACE)


def same(left: list, right: list) -> bool:
    """Return whether two lists of batches are equal to the last bit."""

    def equal(a, b) -> bool:
        return (a is None and b is None) or torch.equal(a, b)

    names = ("images", "targets", "mask", "index")
    return len(left) == len(right) and all(
        a.number == b.number and all(equal(getattr(a, name), getattr(b, name)) for name in names)
        for a, b in zip(left, right, strict=True)
    )


def children() -> set[int]:
    """Return the ids of the processes that this one has started and that still live."""
    return {child.pid for child in multiprocessing.active_children()}


# Order and batches.


class NoImages:
    """As much of a table as the order needs."""

    def __init__(self, count: int) -> None:
        self.paths = self.ids = [str(number) for number in range(count)]
        self.cache = None

    def __len__(self) -> int:
        return len(self.paths)


def planned(loader: Loader, epoch: int, start: int = 0) -> list[list[int]]:
    """Return the rows of the batches that the loader would read."""
    loader._begin(epoch, start)
    return [[row for _, row, _ in keys] for keys in loader._plan]


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    min_last=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_each_row_comes_once_in_an_order_of_seed_and_epoch(count, batch_size, min_last, shuffle, epoch):
    min_last = min(min_last, batch_size, count)
    sampler = "shuffle" if shuffle else "sequential"
    options = {"batch_size": batch_size, "image_size": 4, "sampler": sampler, "min_last": min_last}
    loader = Loader(NoImages(count), seed=3, **options)
    batches = planned(loader, epoch)
    assert len(batches) == len(loader)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(count))
    assert shuffle or order == list(range(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert min(min_last, count) <= len(batches[-1]) < batch_size + min_last
    for start in range(len(batches) + 1):
        assert planned(loader, epoch, start) == batches[start:]
    assert planned(Loader(NoImages(count), seed=3, **options), epoch) == batches
    if shuffle and count > 20:
        assert planned(loader, epoch + 1) != batches
        assert planned(Loader(NoImages(count), seed=4, **options), epoch) != batches


@pytest.mark.parametrize(
    ("count", "batch_size", "min_last", "sizes"),
    [
        (9, 4, 1, [4, 4, 1]),
        (9, 4, 2, [4, 5]),
        (8, 4, 2, [4, 4]),
        (10, 4, 3, [4, 6]),
        (3, 100, 2, [3]),
        (1, 4, 1, [1]),
        (4, 4, 4, [4]),
    ],
)
@pytest.mark.fault(34)
def test_a_last_batch_that_is_too_small_joins_the_one_before(count, batch_size, min_last, sizes):
    loader = Loader(NoImages(count), batch_size=batch_size, image_size=4, min_last=min_last)
    assert [len(batch) for batch in planned(loader, 0)] == sizes


def test_batches_hold_images_labels_and_knowledge_of_their_rows(folder):
    table = make_table(folder)
    batches = list(Loader(table, batch_size=6, image_size=(8, 9), sampler="shuffle", seed=2))
    assert [len(batch) for batch in batches] == [6, 6, 6, 5]
    assert [batch.number for batch in batches] == [0, 1, 2, 3]
    for batch in batches:
        rows = batch.index.numpy()
        types = [tensor.dtype for tensor in (batch.images, batch.targets, batch.mask, batch.index)]
        assert types == [torch.uint8, torch.uint8, torch.bool, torch.int64]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.targets.numpy(), table.targets.toarray()[rows])
        np.testing.assert_array_equal(batch.mask.numpy(), ~table.unknown.toarray()[rows])
        for row, image in zip(rows, batch.images, strict=True):
            expected = read_image(str(table.paths[row]), size=(8, 9))
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert next(iter(Loader(make_table(folder, known=True), batch_size=6, image_size=8))).mask is None


def test_a_batch_moves_as_a_whole(folder):
    batch = next(iter(Loader(make_table(folder), batch_size=4, image_size=8)))
    moved = batch.to("meta", non_blocking=True)
    assert {moved.images.device.type, moved.targets.device.type, moved.mask.device.type, moved.index.device.type} == {
        "meta"
    }
    assert moved.number == batch.number
    assert batch.images.device.type == "cpu"


# The same for any number of workers; random states.


def test_workers_start_and_history_change_nothing(folder):
    table = make_table(folder)
    options = {"batch_size": 4, "image_size": 8, "augment": "strong", "sampler": "shuffle", "seed": 5, "min_last": 2}
    expected = {epoch: list(Loader(table, **options).epoch(epoch)) for epoch in range(3)}
    assert not torch.equal(expected[0][0].images, expected[1][0].images)
    before = children()
    for num_workers in (1, 2):
        with Loader(table, num_workers=num_workers, **options) as loader:
            assert same(list(loader), expected[0])
            workers = children() - before
            assert len(workers) == num_workers
            assert same(list(loader.epoch(1, start=3)), expected[1][3:])
            dropped = loader.epoch(0)  # a pass that is begun and not finished
            next(dropped)
            assert same(list(loader.epoch(2)), expected[2])
            with pytest.raises(RuntimeError, match="a later pass was begun"):
                next(dropped)
            assert children() - before == workers  # they stay over epochs, and none is added
        assert children() == before


def test_a_closed_loader_ends_its_passes_and_can_begin_another(folder):
    loader = Loader(make_table(folder), batch_size=4, image_size=8)
    batches = loader.epoch(0)
    next(batches)
    next(batches)
    next(loader.epoch(1, start=5))
    with pytest.raises(RuntimeError, match="a later pass was begun"):
        next(batches)
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader was closed"):
        next(batches)
    assert len(list(loader.epoch(1))) == 6


def test_workers_end_with_the_loader(folder):
    before = children()
    loader = Loader(make_table(folder), batch_size=4, image_size=8, num_workers=1)
    batches = loader.epoch()
    next(batches)
    assert len(children()) == len(before) + 1
    held = loader._stream  # as a traceback may hold it
    loader.close()
    assert children() == before
    next(loader.epoch())
    assert len(children()) == len(before) + 1
    del loader, batches
    gc.collect()
    assert children() == before
    del held


def test_random_states_are_neither_used_nor_changed(folder):
    def states() -> tuple:
        numpy_state = np.random.get_state()[1].tobytes()  # noqa: NPY002  it is the old global state that is looked at
        return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()

    torch.manual_seed(1)
    before = states()
    for num_workers in (0, 1):
        with Loader(
            make_table(folder), batch_size=8, image_size=8, augment="strong", sampler="shuffle", num_workers=num_workers
        ) as loader:
            list(loader)
        assert states() == before


def test_workers_compute_on_one_thread(folder):
    def threads(image: torch.Tensor) -> torch.Tensor:
        return torch.full_like(image, torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Loader(make_table(folder, 4), batch_size=4, image_size=8, augment=threads, num_workers=1) as loader:
            assert next(iter(loader)).images.unique().tolist() == [1]
    finally:
        torch.set_num_threads(before)


def test_a_sample_can_be_shown_again(folder):
    table = make_table(folder)
    options = {"image_size": 8, "augment": "standard", "seed": 9}
    batch = list(Loader(table, batch_size=5, sampler="shuffle", **options).epoch(4))[2]
    dataset = ImageDataset(table, **options)
    assert len(dataset) == 23
    for row, image in zip(batch.index.tolist(), batch.images, strict=True):
        again, shown = dataset[4, row]
        assert again == row
        assert torch.equal(shown, image)
        transform = augmentation("standard", (8, 8))
        pixels = torch.from_numpy(read_image(str(table.paths[row]), size=transform.read_size)).permute(2, 0, 1)
        assert torch.equal(transform(pixels, sample_key(9, 4, str(table.ids[row]))), image)
    assert torch.equal(dataset[3][1], dataset[0, 3][1])


def test_grey_images_have_one_channel(folder):
    loader = Loader(make_table(folder), batch_size=4, image_size=8, channels=1, augment="strong")
    assert next(iter(loader)).images.shape == (4, 1, 8, 8)


# Faults.


def damage(folder: Path, tmp_path: Path, rows: list[int]) -> ImageTable:
    """Return the table with the images of `rows` replaced by faulty files: missing, cut short, HTML in turn."""
    table = make_table(folder)
    paths = table.paths.tolist()
    for place, row in enumerate(rows):
        bad = tmp_path / f"{row:02d}.png"
        if place % 3 == 1:
            bad.write_bytes(Path(paths[row]).read_bytes()[:200])
        elif place % 3 == 2:
            bad.write_text("<html>not found</html>")
        paths[row] = str(bad)
    return ImageTable(paths=paths, targets=table.targets, unknown=table.unknown, space=SPACE)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.fault(3)
def test_a_bad_image_stops_with_its_id_path_and_type(folder, tmp_path, num_workers):
    table = damage(folder, tmp_path, [9])
    before = children()
    loader = Loader(table, batch_size=4, image_size=8, num_workers=num_workers)
    batches = loader.epoch()
    assert [next(batches).number for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match=r"^sample '09': .*09\.png: no such file$") as caught:
        next(batches)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.reason == "missing"
    assert children() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_makes_batches_smaller_and_counts(folder, tmp_path, num_workers):
    rows = [0, 5, 12, 13, 14, 15]  # one whole batch of four among them
    table = damage(folder, tmp_path, rows)
    options = {"batch_size": 4, "image_size": 8, "on_bad": "skip", "max_bad": 0.3, "num_workers": num_workers}
    with Loader(table, **options) as loader:
        for _ in range(2):  # a second epoch adds nothing to the record
            batches = list(loader.epoch(0))
            assert [(batch.number, len(batch)) for batch in batches] == [(0, 3), (1, 3), (2, 4), (4, 4), (5, 3)]
            used = torch.cat([batch.index for batch in batches]).tolist()
            assert used == [row for row in range(23) if row not in rows]
            assert [bad.id for bad in loader.bad] == [f"{row:02d}" for row in rows]
            assert len(used) + len(loader.bad) == len(table)
    for row, bad, reason in zip(rows, loader.bad, ["no such file", "truncated", "not an image"] * 2, strict=True):
        assert bad.path == str(table.paths[row])
        assert reason in bad.reason
    for batch in batches:
        np.testing.assert_array_equal(batch.targets.numpy(), table.targets.toarray()[batch.index.numpy()])
        expected = [read_image(str(table.paths[row]), size=(8, 8)) for row in batch.index]
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


def test_a_row_left_alone_by_bad_ones_is_left_out_and_recorded(folder, tmp_path):
    table = damage(folder, tmp_path, [1, 2, 3])
    options = {"batch_size": 4, "image_size": 8, "min_last": 2, "on_bad": "skip"}
    loader = Loader(table, max_bad=3 / 23, **options)  # the row left alone does not count as bad
    batches = list(loader)
    assert [batch.number for batch in batches] == [1, 2, 3, 4, 5]
    assert [bad.id for bad in loader.bad] == ["01", "02", "03", "00"]
    assert "may not be alone" in loader.bad[-1].reason
    assert sum(map(len, batches)) + len(loader.bad) == 23


def test_too_many_bad_images_stop_the_loader(folder, tmp_path):
    table = damage(folder, tmp_path, [3, 8])
    options = {"batch_size": 4, "image_size": 8, "on_bad": "skip"}
    assert len(list(Loader(table, max_bad=2 / 23, **options))) == 6
    with pytest.raises(ImageError, match=r"2 of 23 images cannot be read, more than max_bad \(5.00%\); the last: "):
        list(Loader(table, max_bad=0.05, **options))
    with pytest.raises(ImageError, match="1 of 23 images"):
        list(Loader(table, **options))


@pytest.mark.fault(7)
def test_oddities_are_counted(tmp_path):
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png", exif=b"Exif\0\0nonsense%d" % number)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    table = ImageTable(paths=paths, targets=np.zeros((3, 1)), space=LabelSpace([Group("tags", ["a"])]))
    loader = Loader(table, batch_size=2, image_size=4)
    list(loader)
    assert loader.notes == {"damaged EXIF data ignored": 3}


@pytest.mark.fault(31)
def test_a_killed_worker_is_an_error_and_the_next_epoch_works(folder):
    before = children()
    with Loader(make_table(folder), batch_size=1, image_size=8, num_workers=2, timeout=60) as loader:
        batches = loader.epoch()
        next(batches)
        begun = time.monotonic()
        victim = min(children() - before)
        with pytest.raises(RuntimeError, match="worker"):  # noqa: PT012  torch may raise as soon as it is dead
            os.kill(victim, signal.SIGKILL)
            list(batches)
        assert time.monotonic() - begun < 30
        assert len(list(loader.epoch(1))) == 23
    assert children() == before


@pytest.mark.fault(31)
def test_a_worker_that_hangs_is_an_error_after_the_timeout(folder):
    def hang(image: torch.Tensor) -> torch.Tensor:
        time.sleep(100)
        return image

    before = children()
    loader = Loader(make_table(folder), batch_size=4, image_size=8, augment=hang, num_workers=1, timeout=0.5)
    with pytest.raises(RuntimeError, match=r"none sent anything for 0\.5 s.*num_workers=0"):
        next(iter(loader))
    assert children() == before


def test_signals_to_the_whole_group_do_not_take_the_workers_away(folder):
    before = children()
    with Loader(make_table(folder), batch_size=2, image_size=8, num_workers=1) as loader:
        batches = loader.epoch()
        next(batches)
        (worker,) = children() - before
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
        assert len(list(batches)) == 11


def test_an_error_of_a_transform_comes_as_it_is(folder):
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise ConnectionError("my own mistake")

    for num_workers in (0, 1):
        with (
            Loader(make_table(folder), batch_size=4, image_size=8, augment=fail, num_workers=num_workers) as loader,
            pytest.raises(ConnectionError, match="my own mistake"),
        ):
            next(iter(loader))


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "the table is empty"),
        (5, {"batch_size": 0}, "batch_size must be"),
        (5, {"min_last": 5}, r"min_last must be between 1 and batch_size \(4\); got 5"),
        (5, {"min_last": 0}, "min_last must be"),
        (1, {"min_last": 2}, r"an epoch has 1 image\(s\), fewer than a batch must have at least \(2\)"),
        (5, {"image_size": 0}, "image_size must be"),
        (5, {"augment": "flp"}, "did you mean 'flip'"),
        (5, {"on_bad": "replace"}, "unknown on_bad 'replace'"),
        (5, {"max_bad": 2.0}, "max_bad must be between"),
        (5, {"channels": 4}, "channels must be 1"),
    ],
)
def test_wrong_options_are_refused(count, options, message):
    with pytest.raises(ValueError, match=message):
        Loader(NoImages(count), **{"batch_size": 4, "image_size": 8} | options)


def test_a_start_beyond_the_epoch_is_refused(folder):
    loader = Loader(make_table(folder), batch_size=4, image_size=8)
    assert list(loader.epoch(0, start=6)) == []
    with pytest.raises(ValueError, match="start must be between 0 and 6; got 7"):
        loader.epoch(0, start=7)
