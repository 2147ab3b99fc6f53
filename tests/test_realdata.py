"""The whole way on real photographs, garments, faces and illustrations: a little of each, end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mlabel.cli import main
from mlabel.training import list_checkpoints

pytestmark = pytest.mark.realdata

SETS = {
    "mirflickr": ["mirflickr14", "--loss", "asymmetric"],
    "fashion": ["FashionDataset", "--head", "multi"],
    "celeba": ["celeba", "--head", "mlp", "--in-channels", "1"],
    "danbooru": ["danbooru", "--min-count", "50", "--weighting", "effective_number"],
}


@pytest.mark.parametrize("reader", SETS)
def test_a_run_ends_and_its_bundle_labels_images(
    reader: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, *options = SETS[reader]
    run = tmp_path / "run"
    command = ["train", "--reader", reader, "--data", str(real_data / folder), "--backbone", "resnet18", *options]
    command += ["--limit", "400", "--image-size", "64", "--epochs", "1", "--run", str(run)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    part = "val" if reader in ("fashion", "celeba") else "test"
    assert re.search(rf"^{part} part, ", printed, re.M)
    assert ("validation part" in printed) == (part == "val")
    assert re.search(rf"^macro_f1( +\S+){{{2 if reader == 'fashion' else 3}}}$", printed, re.M)
    figures = json.loads((run / "report" / f"metrics-{part}.json").read_text())
    assert figures["columns"]["at 0.5"]["metrics"]["micro_ap"] > 0
    assert main([*command, "--resume", "auto"]) == 0  # finished: measured again
    assert len(list_checkpoints(run)) == 1
    suffix = "512px/0001" if reader == "danbooru" else {"mirflickr": "images", "fashion": "img"}.get(reader, "")
    images = sorted((real_data / folder / suffix).rglob("*.jpg"))[:5]
    capsys.readouterr()
    assert main(["predict", "--bundle", str(run / "bundle"), *map(str, images), "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in images]
    assert all(0 <= score <= 1 for line in lines for score in line["scores"].values())
    if reader == "fashion":
        assert all(len(line["labels"]) == 6 for line in lines)
        scores = np.array([list(line["scores"].values()) for line in lines])
        np.testing.assert_allclose(scores.sum(axis=1), 6, atol=1e-4)
