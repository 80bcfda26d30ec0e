"""A log may come from anywhere: whatever its bytes, it reads right or is an error.

Each file is read in a forked process with little memory to ask for, so that a crash or a gigabyte
of allocation is seen.
"""

from __future__ import annotations

import pickle
import random
import zlib

import h5py
import numpy as np
import pytest
import torch

from tests.helpers.hostile import digest, mutated, read_in_child
from tests.helpers.training import Run
from tracer import TracingSGD, open_log
from tracer.codec import layout
from tracer.codec.nested import encode
from tracer.errors import LogError
from tracer.hdf5 import filters
from tracer.log import metadata, schema
from tracer.log.parts import batch_ids, full_states, groups, micro_batches, recorded_batches, seals
from tracer.log.read.chunks import Chunks


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Three logs: plain, coded, with recorded batches."""
    folder = tmp_path_factory.mktemp("logs")
    paths = [folder / f"{name}.h5" for name in ("plain", "coded", "batches")]
    Run(paths[0], state_every=3).train(8).close()
    Run(paths[1], compression="delta").train(8).close()
    model = torch.nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, paths[2], record="batches") as optimizer:
        for t in range(4):
            x = torch.randn(3, 3)
            model(x).sum().backward()
            optimizer.step(batch_ids=[t, 1, 2], batch=(x, {"label": torch.arange(3)}))
    return [(path, path.read_bytes(), digest(path)) for path in paths]


@pytest.mark.parametrize("seed", range(2))
def test_mutated_files(originals, tmp_path, seed):
    """Flipped, zeroed, copied and cut bytes: never another result, never a crash."""
    rng = random.Random(seed)
    outcomes = []
    for k in range(24):
        _, data, expected = originals[k % 3]
        path = tmp_path / f"{k}.h5"
        path.write_bytes(mutated(bytearray(data), rng))
        kind, found = read_in_child(lambda path=path: digest(path))
        outcomes.append(kind)
        assert kind != "wrong", found
        if kind == "read":
            assert found == expected
        path.unlink()
    assert "refused" in outcomes


def sealed_meta(file, t, **changes):
    """Change a meta row and give it the right checksum."""
    rows = file[schema.META][t : t + 1]
    for name, value in changes.items():
        rows[name] = value
    file[schema.META][t : t + 1] = seals.sealed(rows, "record_crc")


def sealed_micro(file, t, **changes):
    """Change a micro-batch's row, and the checksum of it in the meta row."""
    rows = file[micro_batches.MICRO][t : t + 1]
    for name, value in changes.items():
        rows[name] = value
    file[micro_batches.MICRO][t : t + 1] = rows
    sealed_meta(file, t, micro_crc=zlib.crc32(rows.tobytes()))


def replace(file, name, **options):
    """Put another dataset in a table's place."""
    del file[name]
    return file.create_dataset(name, **options)


def sealed_layout(file, table):
    """Put another layout of the parameters in its place, with the right checksum."""
    del file[schema.PARAMETERS]
    file[schema.PARAMETERS] = table
    sealed_attribute(file, "layout_parameters_crc", zlib.crc32(table.tobytes()))


def sealed_attribute(file, name, value):
    """Change an attribute, and the checksum of them all; without a value it goes."""
    if value is None:
        del file.attrs[name]
    else:
        file.attrs[name] = value
    metadata.seal(file)


def plain_shape(file):
    """Give a layout whose shapes are numbers."""
    table = file[schema.PARAMETERS][:]
    kinds = [(name, table.dtype[name].base.str) for name in table.dtype.names]
    sealed_layout(file, np.zeros(len(table), kinds))


def some_batches(file):
    """Point at gigabytes of recorded batches of which a little is stored."""
    data = file[recorded_batches.SNAP_BATCHES]
    data.resize(800 << 20, axis=0)
    data[: 1 << 15] = np.random.default_rng(0).integers(0, 1 << 32, 1 << 15)
    sealed_micro(file, 1, batch=0, batch_bytes=3 << 30)


def small_batches(file):
    """Point at gigabytes of recorded batches, each chunk in fewer bytes than could become it."""
    chunk, count, little = 1 << 22, 192, zlib.compress(bytes(1 << 20))
    data = replace(
        file,
        recorded_batches.SNAP_BATCHES,
        shape=(count * chunk,),
        dtype=recorded_batches.WORD,
        chunks=(chunk,),
        maxshape=(None,),
        compression="gzip",
    )
    for k in range(count):
        data.id.write_direct_chunk((k * chunk,), little)
    sealed_micro(file, 1, batch=0, batch_bytes=4 * count * chunk)


def sealed_state(file, data):
    """Put other bytes in a full state's place, with the right checksum."""
    row = file[full_states.STATES][0:1]
    row["bytes"], row["offset"], row["state_crc"] = len(data), 0, zlib.crc32(data)
    file[full_states.SNAP_STATE][: len(data)] = np.frombuffer(data, np.uint8)
    file[full_states.STATES][0:1] = seals.sealed(row)


def recorded(file, data):
    """Put other bytes in the place of a recorded batch, with the right checksum."""
    file[recorded_batches.SNAP_BATCHES].resize(1 << 12, axis=0)
    whole = np.frombuffer(data.ljust(4 << 12, b"\0"), recorded_batches.WORD)
    file[recorded_batches.SNAP_BATCHES][:] = whole
    sealed_micro(file, 1, batch=0, batch_bytes=len(data), batch_crc=zlib.crc32(data))


def shared(count):
    """Return a stored list of tensors that all name the same bytes."""
    node = b'{"tensor": ["uint8", [1000], 0]}'
    header = b'{"list": [%s]}' % b",".join([node] * count)
    start = len(header).to_bytes(8, "little") + header
    return start + bytes(-len(start) % 8 + 1000)


HUGE = 1 << 40
HOSTILE = {
    "count": lambda f: sealed_meta(f, 1, count=HUGE),
    "negative": lambda f: sealed_meta(f, 1, ids=-5),
    "micro": lambda f: sealed_meta(f, 1, micro_count=HUGE),
    "members": lambda f: sealed_meta(f, 1, member_count=HUGE),
    "groups": lambda f: sealed_meta(f, 1, groups=HUGE),
    "mask": lambda f: sealed_meta(f, 1, mask=HUGE),
    "buffers": lambda f: sealed_meta(f, 1, buffers=2**63 - 1),
    "no mask": lambda f: sealed_meta(f, 1, mask=-1),
    "batch": lambda f: sealed_micro(f, 1, batch=0, batch_bytes=HUGE),
    "batch before": lambda f: sealed_micro(f, 1, batch=-9, batch_bytes=40),
    "ids outside": lambda f: sealed_micro(f, 1, ids=-3),
    "ids many": lambda f: sealed_micro(f, 1, count=HUGE),
    "coefficients": lambda f: sealed_micro(f, 1, coef=HUGE),
    "random": lambda f: sealed_micro(f, 1, rng=HUGE),
    "huge table": lambda f: f[groups.GROUPS].resize(HUGE, axis=0),
    "huge rows": lambda f: f[schema.META].resize(HUGE, axis=0),
    "huge states": lambda f: f[full_states.STATES].resize(HUGE, axis=0),
    "huge layout": lambda f: replace(
        f,
        schema.PARAMETERS,
        shape=(1 << 34,),
        dtype=f[schema.PARAMETERS].dtype,
        chunks=(1 << 10,),
    ),
    "batches not stored": some_batches,
    "batches of nothing": small_batches,
    "layout of numbers": plain_shape,
    "huge chunk": lambda f: replace(
        f, batch_ids.IDS, shape=(8,), dtype="<i8", chunks=(1 << 28,), maxshape=(None,)
    ),
    "contiguous": lambda f: replace(f, batch_ids.IDS, shape=(99,), dtype="<i8"),
    "another type": lambda f: replace(
        f, batch_ids.IDS, shape=(99,), dtype="<f4", chunks=(9,), maxshape=(None,)
    ),
    "strings": lambda f: replace(
        f, batch_ids.IDS, shape=(99,), dtype=h5py.string_dtype(), chunks=(9,), maxshape=(None,)
    ),
    "external": lambda f: replace(
        f, batch_ids.IDS, shape=(9,), dtype="<i8", external=[("/etc/passwd", 0, 72)]
    ),
    "external layout": lambda f: replace(
        f,
        schema.PARAMETERS,
        shape=(1,),
        dtype=f[schema.PARAMETERS].dtype,
        external=[("/etc/passwd", 0, 999)],
    ),
    "external link": lambda f: (
        f.pop(batch_ids.IDS),
        f.__setitem__(batch_ids.IDS, h5py.ExternalLink("other.h5", "/x")),
    ),
    "group": lambda f: (f.pop(batch_ids.IDS), f.create_group(batch_ids.IDS)),
    "no status": lambda f: f.pop(schema.STATUS),
    "no attribute": lambda f: sealed_attribute(f, "hyperparameters", None),
    "version": lambda f: sealed_attribute(f, "format_version", "one"),
    "version 0": lambda f: sealed_attribute(f, "format_version", 0),
    "encoding": lambda f: sealed_attribute(f, "encoding", np.bytes_(b"rot13")),
    "devices": lambda f: sealed_attribute(f, "cuda_devices", np.bytes_(b"a b")),
    "keyframes": lambda f: sealed_attribute(f, "keyframe_every", 0),
    "keyframes text": lambda f: sealed_attribute(f, "keyframe_every", np.bytes_(b"64")),
    "momentum text": lambda f: sealed_attribute(f, "momentum", np.bytes_(b"much")),
    "hyperparameters": lambda f: sealed_attribute(f, "hyperparameters", np.bytes_(b"lr")),
    "state not json": lambda f: sealed_state(f, (5).to_bytes(8, "little") + b"{{{{{"),
    "state header": lambda f: sealed_state(f, (2**63).to_bytes(8, "little")),
    "state code": lambda f: sealed_state(f, pickle.dumps(print)),
    "batch of one tensor many times": lambda f: recorded(f, shared(400)),
    "state of one tensor many times": lambda f: sealed_state(f, shared(30)),
    "state list": lambda f: sealed_state(f, encode([1], "it")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(originals, tmp_path, name):
    """Files with right checksums and wrong content."""
    path = tmp_path / "run.h5"
    path.write_bytes(originals[0][1])
    with h5py.File(path, "r+") as file:
        HOSTILE[name](file)
    kind, found = read_in_child(lambda: digest(path))
    if name == "huge table":  # nothing reads beyond what steps point at
        assert (kind, found) == ("read", originals[0][2])
        return
    assert kind == "refused", found
    assert "run.h5" in found
    assert len(found) < 400


def twice_deflated():
    """Return creation properties of two deflate filters."""
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_chunk((9,))
    create.set_deflate(1)
    create.set_deflate(1)
    return create


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (batch_ids.IDS, {"fletcher32": True}, "needs the unknown HDF5 filter 3"),
        (batch_ids.IDS, {"compression": "gzip"}, "has the HDF5 filter 1, which no log has there"),
        (schema.PARAMETERS, {"shuffle": True}, "has the HDF5 filter 2, which no log has there"),
        (recorded_batches.SNAP_BATCHES, {"dcpl": twice_deflated()}, "is compressed more than once"),
    ],
    ids=["unknown", "IDs", "layout", "twice"],
)
def test_filters(originals, tmp_path, name, options, message):
    path = tmp_path / "run.h5"
    path.write_bytes(originals[0][1])
    with h5py.File(path, "r+") as file:
        dtype = file[name].dtype
        chunks = {} if "dcpl" in options else {"chunks": (9,)}
        replace(file, name, shape=(99,), dtype=dtype, maxshape=(None,), **chunks, **options)
    with pytest.raises(LogError, match=f"{name} {message}"):
        open_log(path)


@pytest.mark.parametrize("group", ["steps", "snap", "ids", "layout"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_groups_behind_links(originals, tmp_path, group, kind):
    """No part of a path leads out of the file, or around in it."""
    path = tmp_path / "run.h5"
    for name in ("run.h5", "other.h5"):
        (tmp_path / name).write_bytes(originals[0][1])
    with h5py.File(path, "r+") as file:
        file.move(group, "moved")
        external = h5py.ExternalLink("other.h5", f"/{group}")
        file[group] = external if kind == "external" else h5py.SoftLink("/moved")
    with pytest.raises(LogError, match=f"{group}/.* is missing, or a link leads to it"):
        open_log(path)


def test_chunks_are_not_counted_twice(tmp_path):
    """All chunks of a table lie in the file beside each other, so no index may claim more."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", (300, 5), "<i8", chunks=(100, 2), maxshape=(None, 5))
        data[:100], data[200:] = 1, 1
        stored = 3 * 100 * 2 * 8
        for size, rows in ((stored, [True, False, True]), (stored - 1, [False, False, False])):
            chunks = Chunks(data, size)
            assert [chunks.hold(k, 100) for k in (0, 100, 200)] == rows
        chunks = Chunks(data, 9 * stored)
        assert chunks.hold(50, 50)
        assert not chunks.hold(50, 51)
        assert not chunks.hold(0, 300)


@pytest.mark.parametrize("extra", [True, False], ids=["with zstd", "deflate"])
def test_what_compresses_best_is_read(tmp_path, monkeypatch, extra):
    """Megabytes of zeros in few bytes, also while they are written."""
    if not extra:
        monkeypatch.setattr(filters, "has_zstd", lambda: False)
    model, batch = torch.nn.Linear(1500, 1500), torch.zeros(1500, 1500)
    torch.nn.init.zeros_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"record": "batches", "compression": "delta", "snapshot_every": 1}
    with TracingSGD(sgd, model, tmp_path / "run.h5", **options) as optimizer:
        optimizer.step(batch_ids=[0], batch=batch)
        optimizer.flush()
        with open_log(tmp_path / "run.h5") as log:
            for t in (1, 2):
                assert log.refresh() == t
                assert not log.parameters(t)["weight"].any()
                assert torch.equal(log.step(t - 1).micro_batches[0].batch, batch)
                optimizer.step(batch_ids=[0], batch=batch)
                optimizer.flush()


def layout_of(count, **values):
    """Return a layout of so many tensors of two dimensions, without elements."""
    table = np.zeros(count, layout.layout_dtype(9, 2))
    table["name"] = np.arange(count)
    table["dims"], table["dtype"] = 2, b"float32"
    for name, value in values.items():
        table[name] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (layout_of(90_000, shape=1), "90000 tensors cannot lie in a row of 80000 bytes"),
        (layout_of(90_000, dims=0), "90000 tensors cannot lie in a row of 80000 bytes"),
        (layout_of(90_000, name=b"w"), "two tensors have one name"),
        (layout_of(3, dims=1 << 40), "a tensor has 1099511627776 dimensions"),
    ],
    ids=["many", "many numbers", "names", "dimensions"],
)
def test_layouts_are_refused_before_objects_are_made(monkeypatch, table, message):
    monkeypatch.setattr(layout, "Field", pytest.fail)
    with pytest.raises(ValueError, match=message):
        layout.read_layout(table, 80_000)


def test_tensors_without_elements_take_no_room():
    found = layout.read_layout(layout_of(50, shape=[3, 0]), 1)
    assert {field.nbytes for field in found} == {0}
