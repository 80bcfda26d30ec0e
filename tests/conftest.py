"""One thread, so that runs are the same everywhere, and the place of a log."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"
