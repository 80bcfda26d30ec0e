"""One flipped bit in a result: an error that names file and variable, or the same result."""

from __future__ import annotations

import random

import h5py
import numpy as np
import pytest

from replay import Influence, SelfInfluence
from tests.helpers.results import made
from tests.replay.results.test_versions import made_self
from tracer.errors import InputError

MADE = {"influence": made, "self": made_self, "influence of text": lambda: made("row {}".format)}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_variables(tmp_path, make):
    path, rng = tmp_path / "study.h5", random.Random(0)
    make().save(path)
    with h5py.File(path) as file:
        stored = {name: data[()] for name, data in file.items()}
    for name, values in stored.items():
        flipped = values.copy()
        if values.dtype.kind == "O":
            flipped[1] = bytes([flipped[1][0] ^ 1]) + flipped[1][1:]
        else:
            raw = flipped.reshape(-1).view(np.uint8)
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        with h5py.File(path, "r+") as file:
            file[name][...] = flipped
        with pytest.raises(InputError, match=rf"study\.h5 is a .*: {name} does not match its ch"):
            type(make()).load(path)
        with h5py.File(path, "r+") as file:
            file[name][...] = values
    type(make()).load(path)


def test_where_one_id_ends_is_in_the_checksum(tmp_path):
    path = tmp_path / "study.h5"
    made("row {}".format).save(path)
    with h5py.File(path, "r+") as file:
        file["test"][...] = ["row 7r", "ow 3"]
    with pytest.raises(InputError, match="test does not match its checksum"):
        Influence.load(path)


@pytest.mark.parametrize("make", [made, made_self])
def test_attributes(tmp_path, make):
    path = tmp_path / "study.h5"
    make().save(path)
    with h5py.File(path) as file:
        stored = {name: value for name, value in file.attrs.items() if len(str(value))}
    assert len(stored) > 3
    for name, value in stored.items():
        wrong = bytes([value[0] ^ 1]) + value[1:] if isinstance(value, bytes) else value + 1
        with h5py.File(path, "r+") as file:
            file.attrs.modify(name, wrong)
        with pytest.raises(InputError, match=r"study\.h5"):
            type(make()).load(path)
        with h5py.File(path, "r+") as file:
            file.attrs.modify(name, value)
    type(make()).load(path)


@pytest.mark.parametrize("kind", [Influence, SelfInfluence])
def test_what_is_no_result_is_said_in_our_words(tmp_path, kind):
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "folder.h5").mkdir()
    for name, message in {
        "nope.h5": "there is no result .*nope.h5'; check the path",
        "folder.h5": "folder.h5 is a folder; expected a result such as",
        "text.h5": "text.h5 is not an HDF5 file; expected a result such as",
        "empty.h5": "empty.h5 is not an HDF5 file; expected a result such as",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            kind.load(tmp_path / name)
        assert "errno" not in str(error.value)
