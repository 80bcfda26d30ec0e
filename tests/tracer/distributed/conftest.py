"""The runs of two ranks that all tests here look at: made once, in one pair of processes."""

from __future__ import annotations

import pytest

from tests.helpers.ranks import launch


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Return the runs' folder, and what each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    found, codes, errors = launch("tests.helpers.ranks", folder)
    assert codes == [0, 9], errors  # at the end, rank 1 dies
    return folder, found
