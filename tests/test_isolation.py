"""Images that crash, stall or fool the process that decodes them are findings; the others are read as ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlabel.cli import main
from mlabel.data import isolation
from mlabel.data.facts import Facts
from mlabel.data.isolation import read_isolated
from mlabel.data.survey import survey_images

# Decoders that misbehave, by the name of the image; what a server runs before it serves.
DECODERS = """
import os, time
import mlabel.data.facts as facts
read_image = facts.read_image
def misbehave(path, **options):
    name = os.path.basename(path).removesuffix(".png")
    if name == "crash":
        os.abort()
    if name == "stall":
        time.sleep(600)
    if name == "swell":
        bytearray(1 << 30)
    if name == "write":
        with open(path, "wb") as file:
            file.write(b"gone")
    if name == "lie":
        os.write(3, b'[0, [4, 4], [1, 2], 3, null, "no list"]\\n')
    if name == "flood":
        while True:
            os.write(3, b"9" * 10000)
    if name == "pretend":
        os.write(1, b"[0, [4, 4], [1, 2], 3, null, []]\\n")
    if name == "quit":
        os._exit(0)
    return read_image(path, **options)
facts.read_image = misbehave
"""


class Images:
    """As much of a table as a survey needs."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        for name in names:
            noise = np.random.default_rng(len(name)).integers(0, 256, (6, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{name}.png")
        self.paths = np.array([str(folder / f"{name}.png") for name in names])

    def __len__(self) -> int:
        return len(self.paths)


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_CODE", DECODERS + isolation._CODE)


@pytest.mark.usefixtures("misbehaving")
def test_each_misbehaviour_is_a_fault_of_its_image_alone(tmp_path: Path) -> None:
    names = ["a", "crash", "b", "stall", "crash2", "swell", "write", "lie", "c", "flood", "quit", "pretend", "d"]
    images = Images(tmp_path, names)
    found = {
        Path(path).stem: facts
        for path, facts in zip(images.paths, read_isolated(images.paths, 1, 10**6, seconds=2), strict=True)
    }
    assert list(found) == names
    reasons = {name: facts.fault[0] for name, facts in found.items() if facts.fault}
    assert reasons == {
        **dict.fromkeys(["crash", "write", "lie", "flood", "quit"], "crashed"),
        "stall": "slow",
        "swell": "memory",
    }
    assert "SIGABRT" in found["crash"].fault[1]
    assert str(images.paths[3]) in found["stall"].fault[1]
    # An answer that was meant for this process did not reach it.
    assert found["pretend"].size == (6, 9)
    assert found["pretend"].pixels != (1, 2)
    assert Path(images.paths[names.index("write")]).read_bytes() == b""  # emptied; not a byte was written


def test_an_isolated_survey_says_what_another_does(tmp_path: Path) -> None:
    images = Images(tmp_path, [f"{number}" * 3 for number in range(40)])
    Path(images.paths[7]).write_bytes(b"")
    Path(images.paths[33]).unlink()
    one, other = survey_images(images), survey_images(images, isolate=True, num_workers=2)
    for field in ("heights", "widths", "pixels", "looks"):
        assert np.array_equal(getattr(one, field), getattr(other, field))
    assert one.faults == other.faults
    assert set(one.faults) == {7, 33}
    assert one.notes == other.notes


def test_a_server_that_ends_by_itself_is_an_error_that_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(tmp_path, ["a", "b"])
    monkeypatch.setattr(isolation, "_CODE", "raise SystemExit(7)")
    with pytest.raises(RuntimeError, match=r"ended by itself \(7\) at .*a\.png"):
        survey_images(images, isolate=True)


def running(group: int) -> list[str]:
    """Return the processes of a group that have not ended; one that nobody waited for has."""
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, of_group = process.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(process.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.usefixtures("misbehaving")
def test_leaving_early_leaves_no_process_behind(tmp_path: Path) -> None:
    images = Images(tmp_path, ["a", "stall"])
    servers: list[int] = []
    start = isolation._start

    def noted(*args: object) -> object:
        server = start(*args)  # type: ignore[arg-type]
        servers.append(server.pid)
        return server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_start", noted)
        facts: Iterator[Facts] = read_isolated(images.paths, 1, 10**6)
        next(facts)
        assert len(running(servers[0])) == 2
        facts.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 20
    while running(servers[0]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(servers[0])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1, 2]",
        b'[0, [4], [1, 2], 3, null, []]',
        b'[0, [4, -1], [1, 2], 3, null, []]',
        b'[0, [4, 2147483648], [1, 2], 3, null, []]',
        b'[0, [4, 4], [1, 18446744073709551616], 3, null, []]',
        b'[0, [4, 4], [1, 2], 3.5, null, []]',
        b'[0, [4, 4], [1, 2], true, null, []]',
        b'[0, [4, 4], [1, 2], 3, ["two words", "x"], []]',
        b'[0, [4, 4], [1, 2], 3, null, ["\\u001b[2J"]]',
        b'[0, [4, 4], [1, 2], 3, null, "note"]',
        b'\xff',
        b"[" * 60_000,
    ],
)  # fmt: skip
def test_answers_that_are_no_facts_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        isolation._checked(0, line)


def test_the_row_is_that_of_who_asked() -> None:
    assert isolation._checked(5, b'[0, [4, 4], [1, 2], 3, null, ["odd"]]') == Facts(
        5, (4, 4), (1, 2), 3, None, ("odd",)
    )


@pytest.mark.usefixtures("misbehaving")
def test_the_command_names_what_crashed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"image{number}" for number in range(19)] + ["crash"]
    Images(tmp_path, names)
    (tmp_path / "tags.csv").write_text("\n".join(["image,tags", *(f"{name}.png,a b" for name in names)]))
    asked = ["doctor", "--reader", "csv", "--data", str(tmp_path / "tags.csv"), "--reader-option", "tags_column=tags"]
    assert main([*asked, "--reader-option", 'separator=" "', "--isolate"]) == 1
    assert "error: 1 image of part" in (said := capsys.readouterr().out)
    assert "cannot be read (crashed): crash" in said
    assert main([*asked, "--isolate", "--show-augmented", "crash"]) == 2
