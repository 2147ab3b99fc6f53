"""What all tests share: the folder of real data, hypothesis without time limits, one thread a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# A test's speed depends on what else the machine does; deadlines would make tests fail at random.
settings.register_profile("mlabel", deadline=None, derandomize=True)
settings.load_profile("mlabel")
# For tools/mutation.py: one example that fails is enough, and need not be made small.
settings.register_profile(
    "mutation", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


# Test processes side by side share the cores; threads of each would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that MLABEL_DATA names; without it the test is skipped."""
    folder = os.environ.get("MLABEL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set MLABEL_DATA to the folder of real data sets")
    return Path(folder)
