"""Version 1 of the log stays readable for ever; nothing in a log is code or of variable length."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.helpers.places import DATA, ROOT
from tests.helpers.training import Run
from tracer import TracingOptimizer, open_log
from tracer.hdf5 import superblock
from tracer.hdf5.lookup3 import lookup3
from tracer.log import schema
from tracer.log.parts import micro_batches


@pytest.mark.parametrize("name", ["version-1-none", "version-1-delta", "version-1-several"])
def test_version_1_reads_as_when_it_was_written(name):
    spec = importlib.util.spec_from_file_location("make", DATA / "make_version_1.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    expected = json.loads((DATA / f"{name}.json").read_text())
    assert make.content(DATA / f"{name}.h5") == expected


KINDS = [torch.bfloat16, torch.float16, torch.float64, torch.float32, torch.complex64]


def trained(path, kind, compression):
    """Trace 70 steps with parameters of one dtype and string IDs; return what they were."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ParameterDict(
        {name: torch.randn(n, generator=generator).to(kind) for name, n in (("a", 3), ("é b", 5))}
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    states, ids = [], []
    with TracingOptimizer(sgd, model, path, compression=compression) as optimizer:
        for t in range(70):
            states.append({name: bits(p) for name, p in model.named_parameters()})
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(kind)
            ids.append([f"row {t}", "ключ", "", "a b\n猫"][: 1 + t % 4])
            optimizer.step(batch_ids=ids[-1])
            if t == 30:  # what no arithmetic gives: any bits come back
                with torch.no_grad():
                    model["a"].view(torch.uint8)[:] = 255
    states.append({name: bits(p) for name, p in model.named_parameters()})
    return states, ids


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8).tolist()


@pytest.mark.parametrize("compression", ["none", "delta"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_dtype_and_string_ids_come_back_bit_for_bit(tmp_path, kind, compression):
    path = tmp_path / "run.h5"
    states, ids = trained(path, kind, compression)
    with open_log(path) as log:
        assert log.metadata["format_version"] == 1
        assert {dtype for _, dtype in log.parameter_layout.values()} == {kind}
        for t in [*range(71), 66, 5, 64, 63]:  # over the second keyframe, and back
            found = log.parameters(t)
            assert {name: bits(p) for name, p in found.items()} == states[t], t
            assert all(p.dtype == kind for p in found.values())
        assert [step.batch_ids for step in log.steps()] == ids
    with h5py.File(path) as file:  # by the documented layout alone
        for t in range(71) if compression == "none" else (0, 64):
            row, found = file["steps/w"][t], {}
            for field in file["layout/parameters"][:]:
                start, count = field["offset"], field["shape"][0]
                assert field["dtype"].decode() == str(kind).removeprefix("torch.")
                found[field["name"].decode()] = row[start : start + count * kind.itemsize].tolist()
            assert found == states[t]
        ends, data = file["ids/ends"][:].tolist(), file["ids/bytes"][:].tobytes()
        texts = [data[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
        assert [texts[k] for k in file["steps/ids"][:]] == [i for step in ids for i in step]


def test_layout_is_the_one_that_is_documented(tmp_path):
    path = tmp_path / "run.h5"
    Run(path).train(1).close()
    text = (ROOT / "docs" / "log-format.md").read_text()
    with h5py.File(path) as file:
        names = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
    assert set(names) == {*schema.TABLES, schema.STATUS, schema.PARAMETERS, schema.BUFFERS}
    for name in names:
        assert f"`/{name}`" in text, name


def messages(file, name):
    """Return the object header of a dataset: its messages' numbers, and the first two bytes."""
    header = h5py.h5g.get_objinfo(file.id, name.encode()).objno[0]
    data = Path(file.filename).read_bytes()[header : header + 4096]
    assert data[:5] == b"OHDR\x02"
    flags = data[5]
    at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    end = at + (1 << (flags & 3)) + int.from_bytes(data[at : at + (1 << (flags & 3))], "little")
    at += 1 << (flags & 3)
    while at + 4 <= end:
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 3], "little")
        at += 4 + 2 * bool(flags & 4)
        yield kind, data[at]
        at += size


def test_every_hdf5_from_1_10_on_reads_it(tmp_path):
    """What libver="latest" writes today makes older libraries stop, or crash."""
    Run(tmp_path / "run.h5").train(1).close()
    most = {3: 3, 8: 4}  # the versions that 1.10 knows: of a type (upper half), of a layout
    with h5py.File(tmp_path / "run.h5") as file:
        for name in (*schema.TABLES, schema.STATUS, schema.PARAMETERS):
            found = dict(messages(file, name))
            assert found[3] >> 4 <= most[3], name
            assert found[8] <= most[8], name


def test_packed_rows_are_the_dtypes():
    assert schema.META_STRUCT.size == schema.META_DTYPE.itemsize
    assert micro_batches.MICRO_STRUCT.size == micro_batches.MICRO_DTYPE.itemsize
    for packed, dtype in (
        (schema.META_STRUCT, schema.META_DTYPE),
        (micro_batches.MICRO_STRUCT, micro_batches.MICRO_DTYPE),
    ):
        kinds = {"q": "<i8", "d": "<f8", "I": "<u4"}
        letters = [c for c in expanded(packed.format) if c in kinds]
        assert [kinds[c] for c in letters] == [dtype[name].str for name in dtype.names]


def expanded(text):
    """Return a struct's format with one letter for each value."""
    found, count = "", ""
    for letter in text:
        if letter.isdigit():
            count += letter
        else:
            found, count = found + letter * int(count or 1), ""
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xDEADBEEF),
        (b"Four score and seven years ago", 0x17770551),  # Jenkins' own test
    ],
)
def test_lookup3(data, expected):
    assert hashes(data, data) == [expected, expected]


def hashes(*blocks):
    return lookup3(np.array([list(block) for block in blocks], np.uint8)).tolist()


def test_the_superblock_of_a_closed_file_has_that_checksum(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file["x"] = [1, 2]
    block = superblock.read(tmp_path / "x.h5")
    assert struct.unpack_from("<I", block, 44)[0] == hashes(block[:44])[0]
    assert superblock.repaired(block, (tmp_path / "x.h5").stat().st_size)[0] == block
    assert superblock.read(DATA / "make_version_1.py") is None
