"""The whole way on real photographs, garments, faces and illustrations: a little of each, end to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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


@pytest.mark.slow
@pytest.mark.fault(37)
def test_torchrun_trains_and_its_run_goes_on_with_one_process(real_data: Path, tmp_path: Path) -> None:
    command = ["train", "--reader", "mirflickr", "--data", str(real_data / "mirflickr14"), "--backbone", "small_cnn"]
    command += ["--limit", "90", "--image-size", "32", "--batch-size", "16", "--schedule", "constant"]
    command += ["--precision", "fp32", "--batch-norm", "frozen", "--run-dir"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = tmp_path / "two"
    done = subprocess.run(
        [*torchrun, "-m", "mlabel", *command, str(run), "--epochs", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test part, scored 9 of 9 images") == 1  # the first process alone speaks
    assert main([*command, str(run), "--epochs", "2", "--resume", "auto"]) == 0
    assert main([*command, str(tmp_path / "one"), "--epochs", "2"]) == 0
    histories = [(each / "history.csv").read_text().splitlines() for each in (run, tmp_path / "one")]
    assert histories[0][0] == histories[1][0]
    for rows in zip(histories[0][1:], histories[1][1:], strict=True):
        two, one = ([float(cell) for cell in row.split(",") if cell] for row in rows)
        assert two == pytest.approx(one, rel=1e-4)
