"""Trainings killed, stopped, starved of disk and damaged in every way: what was saved is not lost, and what is read is
what was written.

Each test tries a few times, and many times with `-m slow`; the table at the end of a run says what was tried, what
survived and what was lost.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from training_victim import CONFIG, STEPS, Plan, finish, last_saved, make_model, make_table, notes, start

from mlabel.losses import create
from mlabel.training import fit, list_checkpoints, newest_checkpoint, train
from mlabel.training.checkpoint import problems

Record = Callable[[str, int, int, int], None]
FILES = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "manifest.json")


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """Run a test with a small number, and with a large one where slow tests are asked for."""
    return pytest.mark.parametrize("tries", [few, pytest.param(many, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_table(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody stopped."""
    run_dir = tmp_path_factory.mktemp("runs") / "unbroken"
    assert finish(start(images, run_dir)) == 0
    assert last_saved(run_dir) == STEPS
    return run_dir


@pytest.fixture(scope="module")
def seconds(images: Path, unbroken: Path) -> float:
    """How long a training takes, from the start of its process to the end."""
    begun = time.monotonic()
    finish(start(images, unbroken.parent / "timed"))
    return time.monotonic() - begun


def lost_saves(run_dir: Path) -> int:
    """Return how many steps that were saved are no longer there, having seen that the newest checkpoint is sound."""
    if list_checkpoints(run_dir):
        assert problems(list_checkpoints(run_dir)[0]) is None, "nothing half done has the name of a checkpoint"
    newest = newest_checkpoint(run_dir)
    return max(0, last_saved(run_dir) - (0 if newest is None else int(newest.name.removeprefix("step-"))))


def assert_same_end(run_dir: Path, unbroken: Path) -> None:
    """Check that a training ended bit for bit as the unbroken one, and left nothing half done."""
    ends = [safetensors.torch.load_file(folder / "end.safetensors") for folder in (run_dir, unbroken)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    for name in ("history.csv", "best"):
        assert (run_dir / name).read_text() == (unbroken / name).read_text()
    # Who is killed while old ones are removed, and has nothing left to save, leaves them.
    saved = [{path.name for path in list_checkpoints(folder)} for folder in (run_dir, unbroken)]
    assert saved[0] >= saved[1]
    assert not list(run_dir.glob("checkpoints/.tmp*"))


@pytest.mark.fault(29)
@few_or_many(5, 200)
def test_killed_at_any_time(
    tries: int, images: Path, unbroken: Path, seconds: float, tmp_path: Path, record: Record
) -> None:
    rng = np.random.default_rng(0)
    killed = lost = number = 0
    while killed < tries:
        run_dir, number = tmp_path / str(number), number + 1
        while True:  # one run, killed until it comes to its end
            process = start(images, run_dir)
            process.join(float(rng.uniform(0.1, 1.1)) * seconds)
            process.kill()
            code = finish(process)
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            killed += 1
            lost += lost_saves(run_dir)
        assert_same_end(run_dir, unbroken)
        shutil.rmtree(run_dir)
    record("kill -9 at a random time", killed, killed, lost)
    assert lost == 0


def operations_of_a_save(unbroken: Path) -> dict[str, int]:
    """Return the operations on files from the eighth save to the ninth, with an evaluation among them, by number."""
    lines = [line for line in notes(unbroken) if line != "begun"]
    first, last = lines.index("saved 5"), lines.index("saved 7")
    operations = [line for line in lines[first:last] if not line.startswith("saved")]
    return {" ".join(line.split()[1:]): int(line.split()[0]) for line in reversed(operations)}


@pytest.mark.fault(29)
@few_or_many(7, 100)
def test_killed_before_each_operation_of_a_save(
    tries: int, images: Path, unbroken: Path, tmp_path: Path, record: Record
) -> None:
    operations = operations_of_a_save(unbroken)
    for words in ("mkdir", "manifest.json", "rename checkpoints/step-N", "rename best", "rename history", "rmtree"):
        assert any(words in name for name in operations), f"{words} is among {list(operations)}"
    operations = dict(list(operations.items())[:: -(-len(operations) // tries)])
    lost = 0
    for number, (name, place) in enumerate(operations.items()):
        run_dir = tmp_path / str(number)
        assert finish(start(images, run_dir, Plan(die_before=place))) == -signal.SIGKILL, name
        lost += lost_saves(run_dir)
        assert finish(start(images, run_dir)) == 0, name
        assert_same_end(run_dir, unbroken)
    record("kill -9 before each operation of a save", len(operations), len(operations), lost)
    assert lost == 0


@pytest.mark.fault(29)
def test_killed_before_the_last_checkpoint_is_marked_as_the_best(images: Path, unbroken: Path, tmp_path: Path) -> None:
    *_, last = (line.split() for line in notes(unbroken) if line.endswith("rename best"))
    assert finish(start(images, tmp_path / "run", Plan(die_before=int(last[0])))) == -signal.SIGKILL
    assert (tmp_path / "run" / "best").read_text() != (unbroken / "best").read_text()
    assert finish(start(images, tmp_path / "run")) == 0
    assert_same_end(tmp_path / "run", unbroken)


@pytest.mark.fault(29)
def test_killed_within_each_file_of_a_save(images: Path, unbroken: Path, tmp_path: Path, record: Record) -> None:
    lost = 0
    for name in FILES:
        run_dir = tmp_path / name
        assert finish(start(images, run_dir, Plan(die_within=name))) == -signal.SIGKILL
        assert newest_checkpoint(run_dir) is not None
        lost += lost_saves(run_dir)
        assert finish(start(images, run_dir)) == 0
        assert_same_end(run_dir, unbroken)
    record("kill -9 within each file of a save", len(FILES), len(FILES), lost)
    assert lost == 0


@pytest.mark.fault(30)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@few_or_many(2, 50)
def test_stopped_at_any_time(
    tries: int, number: signal.Signals, code: int, images: Path, unbroken: Path, seconds: float, tmp_path: Path,
    record: Record,
) -> None:  # fmt: skip
    rng = np.random.default_rng(int(number))
    stopped = lost = 0
    while stopped < tries:
        run_dir = tmp_path / str(stopped)
        process = start(images, run_dir)
        while "begun" not in notes(run_dir):
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0.02, 0.9)) * seconds)
        before = last_saved(run_dir)
        if process.is_alive():
            os.kill(process.pid or 0, number)
        ended = finish(process)
        if ended == 0:  # it was at its end already
            shutil.rmtree(run_dir)
            Path(f"{run_dir}.log").unlink()
            continue
        assert ended == code
        stopped += 1
        lost += lost_saves(run_dir)
        newest = newest_checkpoint(run_dir)
        assert newest is not None, "what was done is saved"
        # One step may have been under way and one have come to its end before the signal was looked at.
        assert int(newest.name.removeprefix("step-")) <= before + 2
        assert finish(start(images, run_dir)) == 0
        assert_same_end(run_dir, unbroken)
    record(f"{number.name} at a random time", stopped, stopped, lost)
    assert lost == 0


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", FILES)
@few_or_many(30, 300)
def test_a_flipped_bit_is_noticed(tries: int, name: str, unbroken: Path, tmp_path: Path, record: Record) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(unbroken)[0], checkpoint)
    sound = (checkpoint / name).read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(tries):
        place = int(rng.integers(8 * len(sound)))
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        (checkpoint / name).write_bytes(damaged)
        noticed += problems(checkpoint) is not None
    (checkpoint / name).write_bytes(sound)
    assert problems(checkpoint) is None
    record(f"flipped bit in {name}", tries, noticed, tries - noticed)
    assert noticed == tries


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", FILES)
@few_or_many(10, 100)
def test_a_truncated_file_is_noticed(tries: int, name: str, unbroken: Path, tmp_path: Path, record: Record) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(list_checkpoints(unbroken)[0], checkpoint)
    size = (checkpoint / name).stat().st_size
    noticed = 0
    for length in np.linspace(0, size - 2, tries).astype(int)[::-1]:  # the last byte of a JSON file ends its line
        os.truncate(checkpoint / name, length)
        noticed += problems(checkpoint) is not None
    record(f"truncated {name}", tries, noticed, tries - noticed)
    assert noticed == tries


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", FILES)
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(
    name: str, images: Path, unbroken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    assert (
        finish(start(images, run_dir, Plan(die_before=operations_of_a_save(unbroken)["mkdir checkpoints/.tmp-step-N"])))
        < 0
    )
    newest, before = list_checkpoints(run_dir)[:2]
    damaged = bytearray((newest / name).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (newest / name).write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(run_dir) == before
    assert f"{newest} is passed over" in caplog.text
    assert finish(start(images, run_dir)) == 0
    assert_same_end(run_dir, unbroken)


@pytest.mark.fault(27)
@few_or_many(2, 6)
def test_a_full_disk_ends_training_and_leaves_the_checkpoint_before(
    tries: int, images: Path, unbroken: Path, tmp_path: Path, record: Record
) -> None:
    sizes = sorted(path.stat().st_size for path in list_checkpoints(unbroken)[0].iterdir())
    limits = [sizes[-1] - 1, 0, 64, *(size - 1 for size in sizes[:-1])][:tries]
    lost = 0
    for number, limit in enumerate(limits):
        run_dir = tmp_path / str(number)
        place = operations_of_a_save(unbroken)["mkdir checkpoints/.tmp-step-N"]
        assert finish(start(images, run_dir, Plan(die_before=place))) == -signal.SIGKILL
        assert finish(start(images, run_dir, Plan(size_limit=limit))) == 1, "it ends with an error"
        lost += lost_saves(run_dir)
        assert not list(run_dir.glob("checkpoints/.tmp*"))
        assert finish(start(images, run_dir)) == 0
        assert_same_end(run_dir, unbroken)
    record("full disk (files limited in size)", len(limits), len(limits), lost)
    assert lost == 0


@pytest.mark.fault(27)
@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_folder_that_may_not_be_written_is_an_error(
    place: str, images: Path, unbroken: Path, tmp_path: Path, record: Record
) -> None:
    run_dir = tmp_path / "run"
    before = operations_of_a_save(unbroken)["mkdir checkpoints/.tmp-step-N"]
    assert finish(start(images, run_dir, Plan(die_before=before))) == -signal.SIGKILL
    # Nobody may write there; who is root may always, and so becomes somebody else.
    user = 65534 if os.geteuid() == 0 else None
    modes = {run_dir / place: (run_dir / place).stat().st_mode}
    (run_dir / place).chmod(0o555)
    try:
        assert finish(start(images, run_dir, Plan(user=user))) == 1
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert lost_saves(run_dir) == 0
    assert finish(start(images, run_dir)) == 0
    assert_same_end(run_dir, unbroken)
    record(f"read-only {place or 'run folder'}", 1, 1, 0)


@pytest.mark.fault(32)
def test_a_second_training_in_the_folder_is_refused(
    images: Path, unbroken: Path, tmp_path: Path, record: Record
) -> None:
    run_dir = tmp_path / "run"
    holder = start(images, run_dir, Plan(hold=60.0))
    while "holding" not in notes(run_dir):
        time.sleep(0.01)
    table, model = make_table(images), make_model()
    with pytest.raises(RuntimeError, match="another training is running in"):
        fit(model, create("asymmetric", space=table.space), table, config=CONFIG, run_dir=run_dir, progress="none")
    assert finish(start(images, run_dir)) == 1
    holder.kill()
    finish(holder)
    assert finish(start(images, run_dir)) == 0, "the lock goes with its holder"
    assert_same_end(run_dir, unbroken)
    record("two trainings in one folder", 2, 2, 0)


@pytest.mark.fault(27)
def test_a_folder_that_vanishes_is_an_error(images: Path, unbroken: Path, tmp_path: Path, record: Record) -> None:
    table, model = make_table(images), make_model()
    loss, run_dir = create("asymmetric", space=table.space), tmp_path / "run"

    def train_and_delete() -> None:
        for event in train(model, loss, table, config=CONFIG, run_dir=run_dir, device="cpu"):
            if event.kind == "checkpoint" and event.step == 3:
                shutil.rmtree(run_dir)

    with pytest.raises(OSError, match="No such file") as caught:
        train_and_delete()
    assert caught.value.errno == errno.ENOENT
    record("folder deleted during training", 1, 1, 0)
