"""A corpus of hostile files: whatever a stranger puts into a bundle, an index, predictions or a run is refused or
harmless. A judge in another process, with an audit hook and little memory, says what each made its reader do.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlabel import Tagger
from mlabel.decisions import Calibration, Thresholds
from mlabel.inference import build_index
from mlabel.inference.sources import _MAX_GROUP
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model
from mlabel.taxonomy import Taxonomy

SPACE = LabelSpace([Group("tags", ["cat", "dog"])])
Change = Callable[[Path], None]


class Trap:
    """What a pickle of a stranger would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch ran",)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    """Return a change of a JSON file."""

    def apply(folder: Path) -> None:
        held = json.loads((folder / name).read_text())
        new = change(held)
        (folder / name).write_text(json.dumps(held if new is None else new))

    return apply


def put(name: str, content: bytes) -> Change:
    return lambda folder: void((folder / name).write_bytes(content))


def link(name: str, target: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target if target.startswith("/") else folder.parent / target)

    return apply


def pipe(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def sparse(name: str, size: int) -> Change:
    def apply(folder: Path) -> None:
        with open(folder / name, "ab") as file:
            file.truncate(size)

    return apply


def void(_: Any) -> None:
    """Make an expression of no value of one that has some."""


def torch_zip(name: str) -> Change:
    def apply(folder: Path) -> None:
        torch.save({"a": Trap()}, folder / name)

    return apply


def header(change: Callable[[dict[str, Any]], None]) -> Change:
    """Return a change of the header of the weights."""

    def apply(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        held = json.loads(whole[8 : 8 + length])
        change(held)
        text = json.dumps(held).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    return apply


def first(held: dict[str, Any]) -> dict[str, Any]:
    return held[min(name for name in held if name != "__metadata__")]


def patch(name: str, offset: int, content: bytes) -> Change:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[offset : offset + len(content)] = content
        (folder / name).write_bytes(bytes(data))

    return apply


def several(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def parquet_bomb(folder: Path) -> None:
    """Write a small file that unpacks to more than the reader allows: a list of one number, over and over."""
    import pyarrow as pa
    from pyarrow import parquet

    numbers = np.zeros(_MAX_GROUP // 4 + 2**20, np.float32)
    lists = pa.ListArray.from_arrays(np.array([0, len(numbers)], np.int32), pa.array(numbers))
    names = pa.ListArray.from_arrays(np.array([0, 1], np.int32), pa.array(["cat"]))
    table = pa.table({"image": ["a"], "labels": names, "scored": names, "scores": lists})
    parquet.write_table(table, folder / "part-00000.parquet", compression="zstd")


def parquet_of_numbers(folder: Path) -> None:
    """Write a file in which numbers stand where lists are wanted."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"image": ["a"], "labels": [1], "scored": [2], "scores": [0.5]})
    parquet.write_table(table, folder / "part-00000.parquet")


DEEP = b"[" * 1_000_000
PICKLE = pickle.dumps(Trap())
HTML = "<b onclick=x>.png"

BUNDLES: dict[str, Change] = {
    "weights are a pickle": put("model.safetensors", PICKLE),
    "weights are a zip with a pickle": torch_zip("model.safetensors"),
    "weights are a zip with a path": lambda folder: zipfile.ZipFile(folder / "model.safetensors", "w").writestr(
        "../../evil.py", "print()"
    ),
    "weights have a header of 2^60 bytes": put("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "weights have a header that is nested": put("model.safetensors", struct.pack("<Q", len(DEEP)) + DEEP),
    "weights have a shape of 10^12": header(lambda held: first(held).update(shape=[10**6, 10**6])),
    "weights have a negative shape": header(lambda held: first(held).update(shape=[-1])),
    "weights have an offset behind the end": header(lambda held: first(held).update(data_offsets=[0, 2**50])),
    "weights have an unknown type": header(lambda held: first(held).update(dtype="OBJECT")),
    "weights lead elsewhere": link("model.safetensors", "secrets/model.safetensors"),
    "weights are a device": link("model.safetensors", "/dev/zero"),
    "weights are a pipe": pipe("model.safetensors"),
    "weights are a terabyte of nothing": sparse("model.safetensors", 2**40),
    "config is a pickle": put("config.json", PICKLE),
    "config is nested": put("config.json", DEEP),
    "config is a gigabyte": sparse("config.json", 2**30),
    "config is not an object": put("config.json", b"[1, 2]"),
    "config leads elsewhere": link("config.json", "secrets/config.json"),
    "config is endless": link("config.json", "/dev/zero"),
    "config has no space": edit("config.json", lambda held: void(held.pop("space"))),
    "config has a label twice": edit(
        "config.json", lambda held: void(held["space"]["groups"][0].update(labels=["cat", "cat"]))
    ),
    "config has a label that is a number": edit(
        "config.json", lambda held: void(held["space"]["groups"][0].update(labels=[1, {}]))
    ),
    "config has groups that are none": edit("config.json", lambda held: void(held["space"].update(groups=7))),
    "config names a module": edit("config.json", lambda held: void(held["model"].update(backbone="os.system"))),
    "config names a file": edit("config.json", lambda held: void(held["model"].update(backbone="/etc/passwd"))),
    "config names a repository": edit(
        "config.json", lambda held: void(held["model"].update(backbone="timm/hf-hub:someone/evil"))
    ),
    "config names a folder": edit(
        "config.json", lambda held: void(held["model"].update(backbone="timm/local-dir:/etc"))
    ),
    "config names a huge network": edit(
        "config.json", lambda held: void(held["model"].update(backbone="timm/vit_giant_patch14_dinov2"))
    ),
    "config has an unknown key": edit("config.json", lambda held: void(held["model"].update(__class__="os"))),
    "config has a huge head": edit("config.json", lambda held: void(held["model"].update(head="mlp", hidden=65_536))),
    "config has many layers": edit(
        "config.json", lambda held: void(held["model"].update(head="multi", head_options={"layers": 10**8}))
    ),
    "config has a huge image": edit("config.json", lambda held: void(held["model"].update(image_size=[10**9, 10**9]))),
    "config has many channels": edit("config.json", lambda held: void(held["model"].update(in_channels=10**9))),
    "config has a mean that is no number": edit(
        "config.json", lambda held: void(held["model"].update(mean=[1e400, 0, 0]))
    ),
    "thresholds lead elsewhere": link("thresholds.json", "secrets/thresholds.json"),
    "thresholds are a pipe": pipe("thresholds.json"),
    "thresholds are too many": edit("thresholds.json", lambda held: void(held.update(labels=held["labels"] * 10))),
    "thresholds are nothing": edit("thresholds.json", lambda held: void(held["labels"][0].update(threshold=None))),
    "calibration is a pipe": pipe("calibration.json"),
    "calibration leads elsewhere": link("calibration.json", "secrets/calibration.json"),
    "calibration is of an unknown kind": edit(
        "calibration.json", lambda held: void(held["steps"][0].update(kind="os.system"))
    ),
    "calibration is empty": put("calibration.json", b"{}"),
    "tags are endless": link("selected_tags.csv", "/dev/zero"),
    "tags are one long line": put("selected_tags.csv", b"a" * (1 << 25)),
    "tags are a gigabyte": sparse("selected_tags.csv", 2**30),
    "tags are others": put("selected_tags.csv", b"tag_id,name,category,count\n0,=cmd|'/c calc'!A0,0,1\n1,dog,0,1\n"),
}
INDEXES: dict[str, Change] = {
    "index is a pickle": put("index.json", PICKLE),
    "index leads elsewhere": link("index.json", "secrets/index.json"),
    "index is a pipe": pipe("index.json"),
    "index has 10^15 images": edit("index.json", lambda held: void(held.update(num_images=10**15))),
    "index has 2^62 entries": edit("index.json", lambda held: void(held.update(num_entries=2**62))),
    "index has a billion entries of nothing": several(
        edit("index.json", lambda held: void(held.update(num_entries=2**34))),
        sparse("images.bin", 2**36),
        sparse("scores.bin", 2**36),
        lambda folder: void(np.array([0, 2**33, 2**34], "<i8").tofile(folder / "offsets.bin")),
    ),
    "index has a name of a gigabyte": several(
        sparse("names.bin", 2**30),
        lambda folder: void(np.array([0, 2**30, 2**30], "<i8").tofile(folder / "name_offsets.bin")),
    ),
    "scores lead elsewhere": link("scores.bin", "secrets/scores.bin"),
    "scores are a device": link("scores.bin", "/dev/zero"),
    "images are out of range": patch("images.bin", 0, b"\xff" * 8),
    "offsets are negative": patch("offsets.bin", 8, b"\xff" * 8),
    "features are not numbers": patch("features.bin", 0, struct.pack("<f", float("nan"))),
    "names lead to a secret": lambda folder: rename_images(folder, "../secrets/image.png"),
    "names are absolute": lambda folder: rename_images(folder, "/etc/passwd\0secre"),
    "names are HTML": several(
        lambda folder: void((folder / "images" / "a.png").rename(folder / HTML)),
        lambda folder: rename_images(folder, HTML),
    ),
    "pictures lead to a secret": link("images/a.png", "secrets/image.png"),
}
PREDICTIONS: dict[str, Change] = {
    "predictions are a pickle": put("part-00000.jsonl", PICKLE),
    "predictions are nested": put("part-00000.jsonl", b'{"image": "a", "scores": ' + DEEP),
    "predictions are one long line": put("part-00000.jsonl", b"a" * (1 << 25)),
    "predictions are endless": link("part-00000.jsonl", "/dev/zero"),
    "predictions are a pipe": pipe("part-00000.jsonl"),
    "predictions are not numbers": put("part-00000.jsonl", b'{"image": "a", "scores": {"cat": NaN}}'),
    "predictions have a long name": put(
        "part-00000.jsonl", b'{"image": "' + b"a" * 100_000 + b'", "scores": {"cat": 0.5}}'
    ),
    "predictions are a bomb": several(lambda folder: (folder / "part-00000.jsonl").unlink(), parquet_bomb),
    "predictions are numbers": several(lambda folder: (folder / "part-00000.jsonl").unlink(), parquet_of_numbers),
    "predictions are a broken table": several(
        lambda folder: (folder / "part-00000.jsonl").unlink(),
        put("part-00000.parquet", b"PAR1" + b"\xff" * 99 + b"PAR1"),
    ),
}
FILES: dict[str, tuple[str, bytes]] = {
    "thresholds alone are nested": ("thresholds", DEEP),
    "thresholds alone are a list": ("thresholds", b"[]"),
    "calibration alone has huge numbers": (
        "calibration",
        b'{"format": "mlabel.calibration/1", "num_labels": 1e308, "steps": [], "space": null, "method": "none"}',
    ),
    "labels alone are a pickle": ("labels", PICKLE),
    "labels alone are numbers": ("labels", b'{"format": "mlabel.labels/1", "groups": [1]}'),
    "taxonomy goes in a circle": (
        "taxonomy",
        b'{"format": "mlabel.taxonomy/1", "aliases": {"a": "b", "b": "a"}, "implications": [["cat", "cat"]]}',
    ),
    "taxonomy is a number": ("taxonomy", b"7"),
}
RUNS: dict[str, bytes] = {
    "run is a list": b"[]",
    "run has a recipe that is none": b'{"recipe": 7, "model": {}}',
    "run has a training that is none": b'{"recipe": {"reader": "csv", "data": "x", "train": 7}, "model": {}}',
    "run has an unknown reader": b'{"recipe": {"reader": "os.system", "data": "x", "train": {}}, "model": {}}',
}


def rename_images(folder: Path, name: str) -> None:
    names = [name.encode(), b"images/b.png"]
    (folder / "names.bin").write_bytes(b"".join(names))
    np.cumsum([0, *map(len, names)], dtype="<i8").tofile(folder / "name_offsets.bin")


def make_healthy(folder: Path) -> None:
    """Write one sound thing of each kind into a folder."""
    torch.manual_seed(0)
    levels = Thresholds(np.array([0.4, 0.5]), ("label", "label"), SPACE)
    maps = Calibration(2, space=SPACE).offset_by([0.5, -0.5])
    tagger = Tagger(create_model("small_cnn", SPACE, image_size=16), levels, calibration=maps)
    tagger.save(folder / "bundle")
    names, scores = ["images/a.png", "images/b.png"], np.array([[0.9, 0.2], [0.8, 0.6]])
    build_index(folder / "index", SPACE, [(names, scores, np.eye(2, 3))])
    (folder / "index" / "images").mkdir()
    for name in names:
        Image.new("RGB", (16, 16), "red").save(folder / "index" / name)
    (folder / "predictions").mkdir()
    lines = [json.dumps({"image": name, "labels": [], "scores": {"cat": 0.5}}) for name in names]
    (folder / "predictions" / "part-00000.jsonl").write_text("\n".join(lines))
    for kind, held in {
        "thresholds": levels,
        "calibration": maps,
        "labels": SPACE,
        "taxonomy": Taxonomy(SPACE, implications=[("cat", "dog")]),
    }.items():
        held.save(folder / f"{kind}.json")


def make_secrets(folder: Path, healthy: Path) -> None:
    """Write what nobody may read through a link: files that would be taken if they were read."""
    folder.mkdir()
    for source in ("bundle", "index"):
        for path in (healthy / source).iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    Image.new("RGB", (16, 16), "blue").save(folder / "image.png")


def write_cases(folder: Path, healthy: Path) -> list[dict[str, str]]:
    """Write the corpus, each case in a folder of its own beside the secrets; return name, kind and path of each."""
    cases = []
    for kind, changes in (("bundle", BUNDLES), ("index", INDEXES), ("predictions", PREDICTIONS)):
        for name, change in changes.items():
            path = folder / f"{len(cases):02d}"
            shutil.copytree(healthy / kind, path)
            change(path)
            cases.append({"name": name, "kind": kind, "path": str(path)})
    for name, (kind, content) in FILES.items():
        path = folder / f"{len(cases):02d}" / f"{kind}.json"
        path.parent.mkdir()
        path.write_bytes(content)
        cases.append({"name": name, "kind": kind, "path": str(path)})
    for name, content in RUNS.items():
        path = folder / f"{len(cases):02d}"
        path.mkdir()
        (path / "config.json").write_bytes(content)
        SPACE.save(path / "labels.json")
        cases.append({"name": name, "kind": "run", "path": str(path)})
    return cases


# What may be opened, since what is odd in it does nothing.
HARMLESS = {"names are HTML"}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("strangers")
    healthy = folder / "healthy"
    healthy.mkdir()
    make_healthy(healthy)
    make_secrets(folder / "secrets", healthy)
    (folder / "scratch").mkdir()
    Image.new("RGB", (20, 20), "green").save(folder / "scratch" / "image.png")
    sound = [(kind, kind) for kind in ("bundle", "index", "predictions")]
    sound += [(kind, f"{kind}.json") for kind in ("thresholds", "calibration", "labels", "taxonomy")]
    task = {
        "scratch": str(folder / "scratch"),
        "healthy": [{"name": f"sound {kind}", "kind": kind, "path": str(healthy / path)} for kind, path in sound],
        "cases": write_cases(folder, healthy),
    }
    (folder / "task.json").write_text(json.dumps(task))
    before = snapshot(folder)
    program = [sys.executable, str(Path(__file__).with_name("judge.py")), "task.json", "scratch/verdicts.json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert snapshot(folder) == before
    return {each["name"]: each for each in json.loads((folder / "scratch" / "verdicts.json").read_text())}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file but those in the place where the judged may write."""
    found = {}
    for path in folder.rglob("*"):
        if "scratch" not in path.parts and not path.is_symlink() and path.is_file():
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


ALL = [*BUNDLES, *INDEXES, *PREDICTIONS, *FILES, *RUNS]


def test_the_corpus_is_large_and_what_is_sound_is_opened(verdicts: dict[str, dict[str, Any]]) -> None:
    assert len(ALL) >= 40
    assert set(ALL) <= set(verdicts)
    for name, verdict in verdicts.items():
        if name.startswith("sound"):
            assert (verdict["outcome"], verdict["violations"]) == ("opened", []), verdict


@pytest.mark.parametrize("name", ALL)
def test_a_strangers_file_is_refused_and_does_nothing(name: str, verdicts: dict[str, dict[str, Any]]) -> None:
    verdict = verdicts[name]
    assert verdict["violations"] == []
    assert verdict["outcome"] == ("opened" if name in HARMLESS else "refused"), verdict["error"]


def test_the_judge_sees_what_is_done() -> None:
    code = """
import os, sys, subprocess, pickle
sys.path.insert(0, {folder!r})
from pathlib import Path
from judge import Judge
own = Path({own!r})
hook = Judge(own, own)
sys.addaudithook(hook)
def tried(call):
    before = len(hook.violations)
    try: call()
    except Exception: pass
    return len(hook.violations) > before
class Trap:
    def __reduce__(self): return (os.getcwd, ())
content = pickle.dumps(Trap())
print([tried(lambda: open("/etc/hostname").read()), tried(lambda: open("/tmp/evil", "w").close()),
       tried(lambda: os.system("true")), tried(lambda: subprocess.run(["true"])),
       tried(lambda: pickle.loads(content)), tried(lambda: os.rename("/nowhere/a", "/nowhere/b")),
       tried(lambda: __import__("socket").create_connection(("127.0.0.1", 9), 0.1)), tried(lambda: len("harmless"))])
"""
    folder = str(Path(__file__).parent)
    program = code.format(folder=folder, own=folder)
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[True, True, True, True, True, True, True, False]"
