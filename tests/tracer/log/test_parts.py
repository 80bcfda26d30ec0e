"""Each part of the log: what is encoded comes back, ends where it says, and is never read damaged.

A new part joins by its row in ``PARTS``; its fields of a step go into ``STEPS``.
"""

from __future__ import annotations

import dataclasses
import math

import h5py
import numpy as np
import pytest
import torch

from tracer.codec.layout import fields
from tracer.codec.nested import encode
from tracer.errors import LogError
from tracer.log import schema
from tracer.log.parts import full_states, segments, table
from tracer.log.parts.buffers import Buffers
from tracer.log.parts.facts import Facts
from tracer.log.parts.hyperparameters import decode_names, encode_names
from tracer.log.parts.part import Entry
from tracer.log.parts.sink import Sink
from tracer.log.parts.source import Source
from tracer.log.read.tables import LogTables
from tracer.log.write.tables import Tables
from tracer.records import MicroBatch, ParameterGroup, RandomState, Step

MODEL = {"a": torch.zeros(3), "b.weight": torch.zeros(2, 2), "b.bias": torch.zeros(2)}
RANDOM = torch.get_rng_state()
FACTS = Facts(
    tuple(fields(MODEL)),
    tuple(fields({"mean": torch.zeros(3)})),
    ("lr", "betas.0", "gradient_norm"),
    random_bytes=len(RANDOM),
)
# tables without a checksum of their own -> what an error names
NAMED = {"ids/bytes": "steps/ids", "ids/ends": "steps/ids"}


def micro_batch(ids, *, alike, state, payload):
    coefficients = torch.full((len(ids),), 0.25, dtype=torch.float64)
    if not alike:
        coefficients[0] = math.pi
    random = None if state is None else RandomState(RANDOM.roll(state))
    return MicroBatch(ids, coefficients, random, lambda: payload)


def group(names, **numbers):
    norms = tuple(0.5 + k for k in range(len(names)))
    return ParameterGroup(names, {"lr": 0.1, "betas.0": math.nan, **numbers}, 2.0, norms)


def step(t, micro_batches, groups, without=(), frozen=()):
    return Step(t, None, micro_batches, groups, 1.0, 1.0, frozenset(without), frozenset(frozen))


def entries(identity):
    """Return four steps in which everything changes, or stays as it was; IDs are of one type."""
    alone, both = (group(("a", "b.weight")),), (group(("b.weight",)), group(("a",), lr=0.2))
    first = micro_batch((identity(3), identity(1)), alike=True, state=1, payload=b"first")
    second = micro_batch((identity(1),), alike=True, state=1, payload=b"")
    third = micro_batch((identity(7), identity(3)), alike=False, state=None, payload=b"third one")
    steps = [
        step(0, (first,), alone, without=["a"]),
        step(1, (third, first), both, without=["a"]),
        step(2, (second,), both, frozen=["b.bias"]),
        step(3, (third,), alone, without=["a"], frozen=["b.bias"]),
    ]
    rows = [np.full(12, k, np.uint8) for k in (0, 1, 1, 2, 0)]
    return [Entry(one, rows[t], rows[t + 1]) for t, one in enumerate(steps)]


STEPS = {"integer IDs": entries(int), "string IDs": entries("ключ {}".format)}


def create(path):
    """Return the file and tables of an empty log."""
    file = h5py.File(path, "w", libver="latest")
    schema.create(file, FACTS, attributes={"cuda_devices": ""}, filters={})
    return file, Tables(file)


def written(path, kind, steps):
    """Encode one part of some steps; return their meta rows and the tables' lengths after each."""
    file, tables = create(path)
    sink, part, meta, lengths = Sink(tables), kind(FACTS), np.zeros(4, schema.META_DTYPE), []
    for row, entry in zip(meta, steps, strict=True):
        sink.begin()
        for name, number in zip(kind.columns, part.encode(sink, entry), strict=True):
            row[name] = number
        for name, crc in sink.sums.items():
            row[name] = crc
        lengths.append({name: tables[name] for name in kind.tables})
    tables.commit()
    file.close()
    return meta, lengths


def read(path, kind, meta, strings):
    """Return what each step's part is."""
    with h5py.File(path) as file:
        tables, part = LogTables(path, file), kind(FACTS)
        tables.strings = strings
        found = []
        for t, row in enumerate(meta):
            part.require(Source(tables, t, row))
            found.append(plain(part.decode(Source(tables, t, row))))
        return found


def plain(value):
    """Return a record as values that compare, NaN too."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "place"]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if callable(value):
        return value()
    return repr(value)


def expected(kind, entry):
    if kind is Buffers:
        return plain([entry.before, entry.after])
    return plain([getattr(entry.step, name) for name in kind.fields])


every_part = pytest.mark.parametrize("kind", table.PARTS, ids=lambda kind: kind.__name__)
every_type = pytest.mark.parametrize("type_", STEPS)


@every_part
@every_type
def test_what_is_encoded_comes_back(tmp_path, kind, type_):
    meta, _ = written(tmp_path / "run.h5", kind, STEPS[type_])
    found = read(tmp_path / "run.h5", kind, meta, type_ == "string IDs")
    assert found == [expected(kind, entry) for entry in STEPS[type_]]


@every_part
@every_type
def test_end_is_the_length_of_what_was_encoded(tmp_path, kind, type_):
    path = tmp_path / "run.h5"
    meta, lengths = written(path, kind, STEPS[type_])
    with h5py.File(path) as file:
        tables = LogTables(path, file)
        tables.strings = type_ == "string IDs"
        assert lengths[0] != lengths[-1]
        for t, length in enumerate(lengths):
            assert kind(FACTS).end(tables, meta[: t + 1]) == length, t


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in table.PARTS for name in kind.tables],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_flipped_byte_is_an_error(tmp_path, kind, name):
    path = tmp_path / "run.h5"
    meta, lengths = written(path, kind, STEPS["string IDs"])
    t = next(t for t in range(4) if lengths[t][name])  # the first step that has a row
    message = rf"run\.h5: the record of step {t} \({NAMED.get(name, name)}\) does not match"
    with h5py.File(path) as file:
        row = file[name][:1]
    for byte in range(0, min(row.nbytes, 64), 8):
        flip(path, name, byte)
        with pytest.raises(LogError, match=message):
            read(path, kind, meta, strings=True)
        flip(path, name, byte)
    read(path, kind, meta, strings=True)


def flip(path, name, byte):
    with h5py.File(path, "r+") as file:
        row = file[name][:1]
        row.view(np.uint8).reshape(-1)[byte] ^= 1
        file[name][:1] = row


@every_part
def test_restored(tmp_path, kind):
    """A part that goes on behind step 1 encodes the rest as if nothing had been."""
    steps = STEPS["string IDs"]
    meta, lengths = written(tmp_path / "expected.h5", kind, steps)
    cut, _ = written(tmp_path / "run.h5", kind, steps)
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        for name, length in lengths[1].items():
            file[name].resize(length, axis=0)
        tables = Tables(file)
        sink, part = Sink(tables), kind(FACTS)
        part.restore(sink, cut[1], steps[1].step)
        for t in (2, 3):
            sink.begin()
            columns = part.encode(sink, steps[t])
            assert list(columns) == [meta[t][name] for name in kind.columns]
            assert all(sink.sums.get(name, 0) == meta[t][name] for name in kind.checksums)
        tables.commit()
    with h5py.File(tmp_path / "run.h5") as left, h5py.File(tmp_path / "expected.h5") as right:
        for name in kind.tables:
            assert left[name][()].tobytes() == right[name][()].tobytes(), name


def test_full_states(tmp_path):
    path, states = tmp_path / "run.h5", {t: encode({"t": t, "x": [1.5] * t}, "it") for t in (0, 4)}
    file, tables = create(path)
    writer, lengths = full_states.FullStateWriter(tables), {}
    for t, data in states.items():
        assert writer.encode(t, data, passing=False)
        assert not writer.encode(t, data, passing=False)  # it is on file
        lengths[t] = {name: tables[name] for name in full_states.TABLES}
    assert writer.encode(9, states[4] * 2, passing=True)
    assert writer.encode(9, states[0], passing=False)
    assert writer.trim()
    tables.commit()
    file.close()
    with h5py.File(path, "r+") as file:
        found = full_states.FullStates(LogTables(path, file))
        assert [found.decode(t) for t in states] == [{"t": t, "x": [1.5] * t} for t in states]
        assert [found.end(t) for t in states] == [lengths[t] for t in states]
        assert found.end(9) == {name: len(file[name]) for name in full_states.TABLES}
        file["snap/opt"][3] ^= 1
        file.flush()
        with pytest.raises(LogError, match=r"run\.h5 .*snap/opt .*the state before step 0"):
            found.decode(0)


def test_segments(tmp_path):
    path = tmp_path / "run.h5"
    file, tables = create(path)
    for t in (0, 5):
        segments.encode(tables, t, threads=1)
    tables.commit()
    file.close()
    with h5py.File(path, "r+") as file:
        found = LogTables(path, file)
        assert [t for t, _ in segments.decode(found)] == [0, 5]
        row = file["segments"][:1]
        row["step"] = 1
        file["segments"][:1] = row
        with pytest.raises(LogError, match=r"run\.h5 .*segments does not match its checksum"):
            segments.decode(found)


def test_names():
    for names in (["lr"], ["lr", "betas.0", "größte"]):
        assert decode_names(encode_names(names)) == names


def test_every_table_is_a_parts():
    kept = {*full_states.TABLES, *segments.TABLES, schema.META, schema.WEIGHTS}
    assert set(schema.TABLES) == kept | {name for kind in table.PARTS for name in kind.tables}
