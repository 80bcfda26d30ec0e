"""What a power cut, or a kill inside a write, leaves of a file: any page old or new.

The reference is the file as it was earlier: whatever was on the disk then must be readable, and a
writer that goes on must find its tables as if nothing had been written since.
"""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from tests.helpers.training import Run, assert_equal_logs
from tracer import open_log
from tracer.errors import LogWarning, TracingError
from tracer.hdf5 import patches, superblock
from tracer.hdf5 import repair as mending
from tracer.hdf5.patches import DamagedError
from tracer.hdf5.repair import RepairedView, repair
from tracer.log import schema
from tracer.log.parts import batch_ids, full_states
from tracer.log.write import resumption
from tracer.log.write.tables import Tables

PAGE = 4096
TABLES = {schema.WEIGHTS: ("u1", 1), batch_ids.IDS: ("<i8", 16)}


def torn(before, after, source):
    """Return a file of which each page reached the disk, or did not."""
    share = source.choice([0.1, 0.5, 0.9])
    before = before.ljust(len(after), b"\0")
    return b"".join(
        (after if source.random() < share else before)[k : k + PAGE]
        for k in range(0, len(after), PAGE)
    )


def growing(path, before, after, options):
    """Return the bytes of an unclosed file with so many rows, and later on."""
    paged = {"libver": "latest", "fs_strategy": "page", "fs_page_size": PAGE, "rdcc_nbytes": 0}
    with h5py.File(path, "w", **paged) as file:
        for name, (dtype, chunk) in TABLES.items():
            file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(chunk,), **options)
            options = {}
        for k in range(12):  # so that a table's header and its index are not on one page
            file.create_dataset(f"{k}", (0,), "u1", maxshape=(None,), chunks=(1,))
        file.swmr_mode = True
        file.flush()
        for count in (before, after):
            for name in TABLES:
                start = len(file[name])
                file[name].resize(count, axis=0)
                file[name][start:] = values(name, count)[start:]
            file.flush()
            yield path.read_bytes()


def values(name, count):
    return (np.arange(count) % 255 + 1).astype(TABLES[name][0])


@pytest.mark.parametrize(
    ("before", "after", "options", "parts", "cuts"),
    [
        (0, 300, {}, {b"OHDR"}, 6),
        (3, 300, {}, {b"EAIB"}, 6),
        (260, 1500, {}, {b"EAIB", b"EASB"}, 6),
        (33_000, 36_500, {}, {b"EADB", b"EASB"}, 2),  # blocks larger than a page of the disk
        (9_000, 10_500, {"compression": 1}, {b"EADB"}, 4),  # entries with sizes
        (131_500, 137_000, {}, {b"EASB", b""}, 2),  # blocks divided into pages of their own
    ],
)
def test_torn_indexes(tmp_path, before, after, options, parts, cuts):
    source, path = random.Random(after), tmp_path / "torn.h5"
    old, new = growing(tmp_path / "whole.h5", before, after, options)
    mended = set()
    for _ in range(cuts):
        path.write_bytes(torn(old, new, source))
        view = RepairedView(path, schema.TABLES)
        mended.update(
            new[k : k + 4] if new[k : k + 2] in (b"OH", b"EA") else b"" for k in view.patches if k
        )
        with h5py.File(view, "r") as file:
            for name in TABLES:
                np.testing.assert_array_equal(file[name][:before], values(name, before))
        assert repair(path, schema.TABLES) == view.torn
        assert not superblock.is_marked_open(superblock.read(path))
        with h5py.File(path, "r+", libver="latest", rdcc_nbytes=0) as file:
            for name in TABLES:
                file[name].resize(before, axis=0)
            for name in TABLES:
                file[name].resize(after, axis=0)
                file[name][before:] = values(name, after)[before:]
            for name in TABLES:  # had two shared their space, one of them would be wrong
                np.testing.assert_array_equal(file[name][:], values(name, after))
    assert parts <= mended


def address_of_data_block(file, name, first):
    """Return where the data block is whose first entry has a number; four are elsewhere."""
    header = header_of(file, name)
    sought = b"EADB\0" + file[header + 5 : header + 6] + header.to_bytes(8, "little")
    return file.index(sought + (first - 4).to_bytes(4, "little"))


def index_of(file, header):
    """Return where the index of an object is, whose header begins there."""
    return int.from_bytes(file[file.index(b"\x04\x20\x04\x04\x10\x0a", header) + 6 :][:8], "little")


def header_of(file, name):
    """Return where a table's index begins: they were made in the order of the tables."""
    found = [k for k in range(len(file)) if file[k : k + 4] == b"EAHD"]
    return found[list(TABLES).index(name)]


def mended(path, data):
    """Return the file, once repaired, that had these bytes."""
    path.write_bytes(data)
    repair(path, schema.TABLES)
    return h5py.File(path)


def is_stored(file, name, row):
    return file[name].id.get_chunk_info_by_coord((row,)).byte_offset is not None


def test_an_address_across_two_pages(tmp_path):
    """Its first two bytes are on a page that has not changed, the others on one that has."""
    old, new = growing(tmp_path / "whole.h5", 131_500, 131_700, {})
    block = address_of_data_block(new, schema.WEIGHTS, 131_060)
    half = 131_060 + (PAGE - 22) // 8  # 18 bytes and a checksum come before the entries
    data = new[:block] + old[block : block + PAGE] + new[block + PAGE :]
    assert data[block + PAGE - 2 : block + PAGE] == b"\xff\xff"
    with mended(tmp_path / "torn.h5", data) as file:
        stored = [is_stored(file, schema.WEIGHTS, k) for k in (131_499, half - 1, half, half + 1)]
        assert stored == [True, False, False, True]


def test_entries_beyond_the_end(tmp_path):
    """The header, with the length, is as it was before, the index is not."""
    old, new = growing(tmp_path / "whole.h5", 260, 300, {})
    with h5py.File(tmp_path / "whole.h5") as file:
        header = h5py.h5g.get_objinfo(file.id, schema.WEIGHTS.encode()).objno[0]
    data = new[:header] + old[header : header + 268] + new[header + 268 :]
    with mended(tmp_path / "torn.h5", data) as file:
        assert len(file[schema.WEIGHTS]) == 260
    with h5py.File(tmp_path / "torn.h5", "r+", libver="latest") as file:
        file[schema.WEIGHTS].resize(300, axis=0)
        assert [is_stored(file, schema.WEIGHTS, k) for k in (259, 260, 299)] == [True, False, False]


def test_the_last_chunk_is_longer_than_the_file(tmp_path):
    old, new = growing(tmp_path / "whole.h5", 5, 4001, {})
    (tmp_path / "torn.h5").write_bytes(new)
    with h5py.File(RepairedView(tmp_path / "torn.h5", schema.TABLES), "r") as file:
        chunk = file[batch_ids.IDS].id.get_chunk_info_by_coord((4000,))
    end = chunk.byte_offset + chunk.size
    cut = old[:48] + new[48 : chunk.byte_offset + 8]  # the superblock has the size of the file
    with mended(tmp_path / "torn.h5", cut) as file:
        np.testing.assert_array_equal(file[batch_ids.IDS][:], values(batch_ids.IDS, 4001))
        assert (tmp_path / "torn.h5").stat().st_size == file.id.get_filesize() >= end


@pytest.mark.parametrize("size", [0, 1000])
def test_a_size_that_cannot_be(tmp_path, size):
    _, new = growing(tmp_path / "whole.h5", 5, 9000, {"compression": 1})
    block = address_of_data_block(new, schema.WEIGHTS, 8180)  # larger than a page
    width = new[header_of(new, schema.WEIGHTS) + 6]
    at = block + 18 + 2 * width + 8  # of the third entry
    data = new[:at] + size.to_bytes(width - 12, "little") + new[at + width - 12 :]
    with mended(tmp_path / "torn.h5", data) as file:
        stored = [is_stored(file, schema.WEIGHTS, k) for k in (8181, 8182, 8183)]
        assert stored == [True, False, True]


@pytest.mark.parametrize("part", ["header", "version", "block", "entry", "secondary", "size"])
def test_damage_is_left_as_it_is(tmp_path, part):
    """No power cut does that: it would be no help to make the checksum fit it."""
    _, new = growing(tmp_path / "whole.h5", 5, 300, {})
    header, block = header_of(new, schema.WEIGHTS), address_of_data_block(new, schema.WEIGHTS, 4)
    with h5py.File(tmp_path / "whole.h5") as file:
        dataset = h5py.h5g.get_objinfo(file.id, schema.WEIGHTS.encode()).objno[0]
    places = {"header": header + 20, "version": header + 4, "block": block + 6, "entry": block + 20}
    places["secondary"] = new.index(b"EASB\0\0" + header.to_bytes(8, "little")) + 52  # its checksum
    places["size"] = dataset + 4
    data = bytearray(new)
    data[places[part]] ^= 9
    (tmp_path / "torn.h5").write_bytes(data)
    view = RepairedView(tmp_path / "torn.h5", schema.TABLES)
    assert (view.torn, view.damage) == ([], "the index of steps/w is damaged")
    assert view.patches.keys() == {0}
    with pytest.raises(DamagedError, match="^the index of steps/w is damaged$"):
        repair(tmp_path / "torn.h5", schema.TABLES)
    assert (tmp_path / "torn.h5").read_bytes() == data
    with h5py.File(view) as file:
        with pytest.raises((OSError, KeyError)):
            file[schema.WEIGHTS][:]
        np.testing.assert_array_equal(file[batch_ids.IDS][:], values(batch_ids.IDS, 300))


def test_a_file_that_cannot_be_looked_through_is_not_changed(tmp_path, monkeypatch):
    """It stays marked as open, so that its indexes are looked at once that can be done."""
    path = tmp_path / "run.h5"
    data, _ = unclosed(path)
    path.write_bytes(data)

    def failing(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr(mending, "h5py", SimpleNamespace(File=failing))
    said = "not changed .HDF5 cannot open it: Input/output error.*holds 12 whole steps"
    with pytest.warns(LogWarning, match=said), open_log(path):
        pass
    with pytest.raises(TracingError, match="cannot resume .*HDF5 cannot open it: .*from a copy"):
        Run(path, resume=True)
    assert path.read_bytes() == data


def test_a_secondary_block_across_pages(tmp_path, monkeypatch):
    """Those of real logs are that large from millions of chunks on."""
    monkeypatch.setattr(patches, "PAGE", 32)
    _, new = growing(tmp_path / "whole.h5", 5, 300, {})
    block = new.index(b"EASB\0\0" + header_of(new, schema.WEIGHTS).to_bytes(8, "little"))
    data = bytearray(new)
    data[block + 52] ^= 9
    with mended(tmp_path / "torn.h5", data) as file:
        np.testing.assert_array_equal(file[schema.WEIGHTS][:], values(schema.WEIGHTS, 300))
    assert (tmp_path / "torn.h5").read_bytes()[48:] == new[48:]


def unclosed(path):
    """Return the bytes of a killed writer's log, and where a part of the index of its rows is."""
    run = Run(path).train(12)
    run.optimizer.flush()
    data = bytearray(path.read_bytes())
    run.close()
    with h5py.File(path) as file:
        header = h5py.h5g.get_objinfo(file.id, schema.WEIGHTS.encode()).objno[0]
    return data, data.index(b"EADB\0\0" + index_of(data, header).to_bytes(8, "little"))


def test_a_log_with_a_damaged_index(tmp_path):
    path = tmp_path / "run.h5"
    data, block = unclosed(path)
    data[block + 100] ^= 1
    path.write_bytes(data)
    said = "read as if repaired, not changed .the index of steps/w is damaged.*holds 3 whole steps"
    with pytest.warns(LogWarning, match=said), open_log(path) as log:
        log.parameters(3)
    with pytest.raises(TracingError, match="cannot resume .*the index of steps/w is damaged"):
        Run(path, resume=True)
    assert path.read_bytes() == data
    Run(path, overwrite=True).train(1).close()


def test_what_is_said_of_a_torn_index(tmp_path):
    path = tmp_path / "run.h5"
    data, block = unclosed(path)
    data[block : block + 150] = bytes(150)
    path.write_bytes(data)
    said = "superblock was repaired, the torn index of steps/w too, 9 torn steps .* 3 whole steps"
    with pytest.warns(LogWarning, match=said), open_log(path):
        pass


def test_nothing_is_mended_in_an_index_that_is_damaged_elsewhere(tmp_path):
    _, new = growing(tmp_path / "whole.h5", 5, 16_500, {"compression": 1})
    data = bytearray(new)
    data[address_of_data_block(new, schema.WEIGHTS, 8180) + 18 + 512 * 14] ^= 1  # its checksum
    (tmp_path / "torn.h5").write_bytes(data)
    view = RepairedView(tmp_path / "torn.h5", schema.TABLES)
    assert (view.torn, view.damage, len(view.patches)) == ([schema.WEIGHTS], "", 2)
    data[address_of_data_block(new, schema.WEIGHTS, 16_372)] ^= 1
    (tmp_path / "torn.h5").write_bytes(data)
    view = RepairedView(tmp_path / "torn.h5", schema.TABLES)
    assert (view.torn, bool(view.damage), len(view.patches)) == ([], True, 1)


def test_a_whole_index_is_left_alone(tmp_path):
    for path, (count, options) in {
        tmp_path / "a.h5": (140_000, {}),
        tmp_path / "b.h5": (9000, {"compression": 1}),
    }.items():
        for _ in growing(path, 5, count, options):
            if superblock.is_marked_open(superblock.read(path)):
                view = RepairedView(path, schema.TABLES)
                assert (view.patches.keys(), view.torn) == ({0}, [])


@pytest.mark.filterwarnings("ignore:.*was not closed by its writer")
@pytest.mark.parametrize("options", [{}, {"compression": "delta", "rule": "SGD"}])
def test_a_run_goes_on_after_a_power_cut(tmp_path, options):
    """No synced step is lost, and the resumed log is the one of a run that was never cut."""
    source, path, whole = random.Random(0), tmp_path / "run.h5", tmp_path / "whole.h5"
    options = {"sync_every": 50, "state_every": 7, **options}
    run, images = Run(path, **options), []
    for t in range(1, 31):
        run.train(t)
        if t % 5 == 0:
            run.optimizer.flush()
            images.append((t, path.read_bytes()))
    run.close()
    Run(whole, **options).train(30).close()
    for k, (steps, image) in enumerate(images[:-1]):
        data = image
        for _, later in images[k + 1 :]:
            data = torn(data, later, source)
        path.write_bytes(data)
        with open_log(path) as log:
            assert len(log) >= steps
            for t in range(steps):
                log.step(t), log.parameters(t + 1), log.buffers(t)
        again = Run(path, resume=True, **options)
        assert again.optimizer.position[0] >= steps - steps % 7
        again.train(30).close()
        assert_equal_logs(path, whole)


def test_a_state_torn_before_the_last_one(tmp_path):
    """It is not kept either: the run goes on from the state before it."""
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    options = {"sync_every": 50, "state_every": 2}
    run = Run(path, **options).train(12)
    run.optimizer.flush()
    data = path.read_bytes()
    run.close()
    path.write_bytes(data)
    with pytest.warns(LogWarning), open_log(path) as log:
        (state,) = (row for row in log.full_states.rows().values() if row["step"] == 8)
    with h5py.File(path, "r+") as file:
        file[full_states.SNAP_STATE][int(state["offset"]) + 100] ^= 1
    again = Run(path, resume=True, **options)
    assert again.optimizer.position[0] == 6
    again.train(12).close()
    Run(whole, **options).train(12).close()
    assert_equal_logs(path, whole)


def test_what_is_cut_off_is_synced_before_its_space_is_used(tmp_path, monkeypatch):
    run = Run(tmp_path / "run.h5", sync_every=1, state_every=1).train(3)
    run.optimizer.flush()
    done, cut, begin, synced = [], Tables.cut, resumption._cut, os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: done.append("sync") or synced(number))
    monkeypatch.setattr(Tables, "cut", lambda *args: done.append("cut") or cut(*args))
    monkeypatch.setattr(resumption, "_cut", lambda *args: done.append("cut") or begin(*args))
    log = run.optimizer._log
    log.channel.submit(lambda writer: writer.state(3, bytes(8), passing=True))  # a shorter one
    run.optimizer.flush()
    assert done == ["cut", "sync", "sync"]
    run.close()
    done.clear()
    again = Run(tmp_path / "run.h5", sync_every=1, resume=True)
    assert done == ["sync", "cut", "sync"]
    again.close()
