"""Where a result may not go: refused before the work, with nothing replaced."""

from __future__ import annotations

import errno
import tempfile

import pytest
from test_influence import made

from replay.output import check_free, moved_when_whole
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
