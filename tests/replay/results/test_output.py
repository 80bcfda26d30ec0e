"""Where a result may not go: refused before the work, with nothing replaced."""

from __future__ import annotations

import errno
import fcntl
import tempfile

import pytest

from replay.results.output import check_free, moved_when_whole
from tests.helpers.results import made
from tracer.errors import InputError


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(InputError, match=r"x.h5 cannot be written: Permission denied; choose"):
        check_free(tmp_path / "x.h5", overwrite=False)


def test_a_disk_that_fills_up(tmp_path):
    with (
        pytest.raises(InputError, match=r"x.h5 could not be written: .*No space left"),
        moved_when_whole(tmp_path / "x.h5") as partial,
    ):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_partial_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "study.h5.partial").symlink_to(tmp_path / "precious")
    made().save(tmp_path / "study.h5")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "study.h5").is_symlink()


def test_two_programs_with_one_result(tmp_path):
    """The second one leaves the first one's file alone; what a crash left behind is replaced."""
    partial = tmp_path / "study.h5.partial"
    with partial.open("w") as first:
        first.write("half")
        first.flush()
        fcntl.flock(first, fcntl.LOCK_EX)  # as HDF5 does
        with pytest.raises(InputError, match=r"another program is writing the result .*study.h5"):
            made().save(tmp_path / "study.h5")
        assert partial.read_text() == "half"
    made().save(tmp_path / "study.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["study.h5"]
