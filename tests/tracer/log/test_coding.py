"""Coded rows are lossless, whatever the bits; compressed logs read like plain ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.training import Run
from tracer import TracingOptimizer, open_log
from tracer.codec.delta import Coder
from tracer.codec.layout import fields, pack, unpack, views
from tracer.errors import LogError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    every=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    amended=st.booleans(),
)
def test_any_bits_come_back(kinds, momentum, every, seed, amended):
    """Rows of arbitrary bytes: infinities, NaN payloads, negative zeros."""
    rng = np.random.default_rng(seed)
    layout = fields(
        {f"p{k}": torch.zeros(rng.integers(0, 7), dtype=kind) for k, kind in enumerate(kinds)}
    )
    width = max(field.end for field in layout)
    rows = [rng.integers(0, 256, width, dtype=np.uint8) for _ in range(9)]
    for row in rows[1:]:  # some bytes stay
        row[: width // 2] = rows[0][: width // 2]
    writer = Coder(layout, "delta", momentum, every)
    stored = []
    for t, row in enumerate(rows):
        if amended:
            writer.encode(t, rng.integers(0, 256, width, dtype=np.uint8))
        stored.append(writer.encode(t, row))
    reader = Coder(layout, "delta", momentum, every)
    for t in [*range(9), 3, 8, 0, 5, 4, 6, 7]:
        assert (reader.read(t, lambda k: stored[k]) == rows[t]).all()


def in_order(bits, size):
    """Map the bits of floats to integers of the same order, one by one."""
    top = 1 << (8 * size - 1)
    return [~(b - top) if b & top else b for b in map(int, bits)]


def predicted(rows, t, dtype, momentum):
    """Return the bits of the documented prediction; two-byte floats are halves of a float32."""
    last, before = (torch.from_numpy(rows[max(t - k, 0)]) for k in (1, 2))
    size = dtype.itemsize
    if t % 64 != 1:
        kind = torch.bfloat16 if size == 2 else dtype
        wide = torch.float32 if size == 2 else dtype
        a, b = last.view(kind).to(wide), before.view(kind).to(wide)
        moved = a + (a - b) * torch.tensor(momentum, dtype=wide)
        last = moved.view(torch.uint8).reshape(-1, wide.itemsize)[:, -size:].flatten()
    return last.numpy().copy().view(f"<u{size}")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_rows_are_coded_as_documented(dtype, momentum):
    """Recomputed element by element, so that logs of other versions stay readable."""
    generator = torch.Generator().manual_seed(0)
    layout, size = fields({"w": torch.zeros(7, dtype=dtype)}), dtype.itemsize
    walk = torch.randn(67, 7, generator=generator).cumsum(0).to(dtype)
    rows = [row.view(torch.uint8).numpy() for row in walk.clone()]
    coder = Coder(layout, "delta", momentum, 64)
    for t, row in enumerate(rows):
        stored = coder.encode(t, row)
        if t % 64 == 0:
            assert (stored == row).all()
            continue
        guess = predicted(rows, t, dtype, momentum) if momentum else rows[t - 1].view(f"<u{size}")
        pairs = zip(in_order(row.view(f"<u{size}"), size), in_order(guess, size), strict=True)
        half = 1 << (8 * size - 1)
        change = [(a - b + half) % (2 * half) - half for a, b in pairs]
        folded = [2 * d if d >= 0 else -2 * d - 1 for d in change]
        planes = [f >> (8 * byte) & 255 for byte in range(size) for f in folded]
        assert stored.tolist() == planes, t


def test_padding_and_alignment_come_back():
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(2.0).double()}
    layout = fields(tensors)
    assert [field.offset for field in layout] == [0, 8]
    row = pack(tensors)
    again = unpack(row, layout)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    views(torch.from_numpy(row), layout)[1][0] = 5
    assert unpack(row, layout)["b"][0] == 5


@pytest.mark.parametrize("rule", ["Adam", "SGD"])
def test_compressed_log_holds_the_same(tmp_path, rule):
    logs = []
    for compression in ("none", "delta"):
        path = tmp_path / f"{compression}.h5"
        Run(path, rule=rule, compression=compression).train(70).close()
        logs.append(open_log(path))
    assert logs[1].metadata["encoding"] == "delta"
    assert logs[1].metadata["momentum"] == 0.9
    for t in [*range(71), 66, 3, 70, 64, 65]:
        found = [log.parameters(t) for log in logs]
        assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    for log in logs:
        log.close()


def test_smaller_and_readable_by_stock_tools(tmp_path):
    sizes = {}
    for compression in ("none", "delta"):
        path = tmp_path / f"{compression}.h5"
        model = torch.nn.Linear(300, 300)
        torch.manual_seed(0)
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        how = {"compression": compression, "snapshot_every": 1}
        with TracingOptimizer(sgd, model, path, **how) as optimizer:
            for _ in range(40):
                optimizer.zero_grad()
                model(torch.randn(16, 300)).square().mean().backward()
                optimizer.step(batch_ids=list(range(16)))
        with h5py.File(path) as file:
            sizes[compression] = file["steps/w"].id.get_storage_size()
            first = file["steps/w"][0][: model.weight.nbytes].view("<f4")  # a keyframe
        with open_log(path) as log:
            assert (first.reshape(300, 300) == log.parameters(0)["weight"].numpy()).all()
    assert sizes["delta"] < sizes["none"] / 1.5


@pytest.mark.skipif(not importlib.util.find_spec("hdf5plugin"), reason="needs hdf5plugin")
def test_without_the_extra(tmp_path, monkeypatch):
    """Zstd where the extra is installed, deflate where not; reading zstd without it says so."""
    with_zstd, without = tmp_path / "zstd.h5", tmp_path / "deflate.h5"
    Run(with_zstd, compression="delta").train(4).close()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Run(without, compression="delta").train(4).close()
    monkeypatch.undo()
    with h5py.File(without) as file:
        assert file["steps/w"].compression == "gzip"
    code = (
        "import sys; sys.modules['hdf5plugin'] = None\n"
        "from tracer import open_log\n"
        "print(len(open_log(sys.argv[2]).parameters(4)))\n"
        "open_log(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(with_zstd), str(without)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "6"
    assert "zstd.h5 is compressed with zstd; pip install 'tracin-replay[compress]'" in done.stderr


def test_default_is_plain_below_a_million(tmp_path):
    for width, encoding in ((10, "none"), (1000, "delta")):
        path = tmp_path / f"{width}.h5"
        model = torch.nn.Linear(1000, width)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with TracingOptimizer(sgd, model, path) as optimizer:
            model(torch.randn(2, 1000)).sum().backward()
            optimizer.step(batch_ids=[0, 1])
        with open_log(path) as log:
            expected = encoding if importlib.util.find_spec("hdf5plugin") else "none"
            assert log.metadata["encoding"] == expected


def test_damaged_coded_row_names_its_step(tmp_path):
    path = tmp_path / "run.h5"
    Run(path, compression="delta").train(6).close()
    with h5py.File(path, "r+") as file:
        row = file["steps/w"][3]
        row[5] ^= 1
        file["steps/w"][3] = row
    with open_log(path) as log:
        log.parameters(2)
        with pytest.raises(LogError, match="parameters before step 3 .*do not match"):
            log.parameters(3)
