"""Where a result may not go: refused before the work, with nothing replaced."""

from __future__ import annotations

import errno
import os
import resource
import tempfile

import h5py
import pytest

from replay import Influence
from replay.results.output import check_free
from replay.results.variables import INFLUENCE, SELF_INFLUENCE
from tests.helpers.results import made
from tracer.errors import InputError, OutputExistsError


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(InputError, match=r"x.h5 cannot be written: Permission denied; choose"):
        check_free(tmp_path / "x.h5", INFLUENCE, overwrite=False)


@pytest.mark.parametrize("limit", [0, 100, 1000, 3000, 6000])
def test_a_disk_that_fills_up(tmp_path, limit):
    """HDF5 would end the interpreter; the result stays, and can be saved elsewhere."""
    found, path = made(), tmp_path / "x.h5"
    found.save(path)
    kept = path.read_bytes()
    child = os.fork()
    if child == 0:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
        message = r"x.h5 could not be written: File too large.*\n1. Choose a path.*\n2. Make room"
        with pytest.raises(InputError, match=message):
            found.save(path, overwrite=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        found.save(tmp_path / "y.h5")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (path.read_bytes(), (tmp_path / "y.h5").read_bytes()) == (kept, kept)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.h5", "y.h5"]


def test_what_cannot_be_forced_to_the_disk(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="Disk quota exceeded"):
        made().save(tmp_path / "x.h5")
    assert not list(tmp_path.iterdir())


def test_what_stands_beside_a_result_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "study.h5.partial").symlink_to(tmp_path / "precious")
    made().save(tmp_path / "study.h5")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "study.h5.partial").is_symlink()


@pytest.mark.parametrize("has_links", [True, False])
def test_two_programs_with_one_result(tmp_path, monkeypatch, has_links):
    """The second one says so, and loses nothing."""
    path, link = tmp_path / "study.h5", os.link

    def meanwhile(source, target):
        path.write_text("another's")
        if not has_links:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", meanwhile)
    with pytest.raises(OutputExistsError, match="exists: another program wrote it meanwhile; save"):
        made().save(path)
    assert path.read_text() == "another's"
    assert [file.name for file in tmp_path.iterdir()] == ["study.h5"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made().save(tmp_path / "study.h5")
    assert Influence.load(tmp_path / "study.h5").train_ids == made().train_ids


def hdf5(path):
    """Make somebody's data set."""
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2, 3]


OTHERS = {
    "text": (lambda p: p.write_text("3\n14\n"), "no result that can be read"),
    "HDF5": (hdf5, "no result"),
    "damaged": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "no result that can"),
    "another kind": (lambda p: made().save(p), "influence"),
}


@pytest.mark.parametrize(("make", "holds"), OTHERS.values(), ids=OTHERS)
def test_a_result_replaces_its_own_kind_only(tmp_path, make, holds):
    path = tmp_path / "x.h5"
    make(path)
    message = f"which holds {holds}.*its own kind only, here self-influence. Choose another path"
    for overwrite in (True, False):
        with pytest.raises(InputError, match=message):
            check_free(path, SELF_INFLUENCE, overwrite=overwrite)
