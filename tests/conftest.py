"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples on every run, and no limit on the time of one: machines are shared.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real photo sets; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("SPLATSMITH_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not (path / "photos").is_dir():
        pytest.skip("no photo data beside the repository; set SPLATSMITH_DATA")
    return path
