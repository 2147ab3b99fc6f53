"""What all tests share: the folder of real data, and hypothesis without time limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A test's speed depends on what else the machine does; deadlines would make tests fail at random.
settings.register_profile("mlabel", deadline=None, derandomize=True)
settings.load_profile("mlabel")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that MLABEL_DATA names; without it the test is skipped."""
    folder = os.environ.get("MLABEL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set MLABEL_DATA to the folder of real data sets")
    return Path(folder)
