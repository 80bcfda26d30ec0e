"""What a kill leaves between any two writes of a resumption and of a row that is replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings

import h5py
import pytest
import torch

from tests.helpers.places import ROOT
from tests.helpers.training import Run
from tracer import open_log
from tracer.errors import LogWarning
from tracer.log import schema
from tracer.log.parts import batch_ids, full_states, hyperparameters, string_ids
from tracer.log.write.tables import Tables

BACK, STOP = 10, 13  # killed at step 13, resumed at step 10


@pytest.fixture(scope="module")
def weights():
    """The parameters before each step of an uninterrupted run."""
    run, found = Run(), []
    for _ in range(STOP + 3):
        found.append({n: p.detach().clone() for n, p in run.model.named_parameters()})
        run.step()
    return found


def killed(path, **options):
    """Leave a log as a kill does."""
    child = os.fork()
    if child == 0:
        run = Run(path, state_every=5, **options).train(STOP)
        run.optimizer.flush()
        os._exit(0)
    os.waitpid(child, 0)
    path.with_name(path.name + ".lock").unlink()


def readable(path, weights, last=None):
    """Return how many steps a killed log holds; every row must be right, ``last`` the last one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_log(path) as log:
            steps = len(log)
            assert [step.index for step in log.steps()] == list(range(steps))
            assert all(len(step.batch_ids) >= 5 for step in log.steps())
            for t in range(steps + 1):
                found = log.parameters(t)
                right = [weights[t], *([last] if last is not None and t == steps else [])]
                assert any(all(torch.equal(found[n], p) for n, p in r.items()) for r in right), t
            assert len(log.state(BACK)) == 7
    return steps


def same(path, tensors):
    """Return whether the log's last parameters are these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_log(path) as log:
            return all(torch.equal(log.parameters(len(log))[n], p) for n, p in tensors.items())


SCRIPT = """
    import sys, torch
    from pathlib import Path
    torch.set_num_threads(1)
    from tests.helpers.training import Run
    path, mark = map(Path, sys.argv[1:3])
    run = Run(path, state_every=5, resume=True)
    mark.write_bytes(b"resumed")
    run.train(11).optimizer.flush()
    mark.write_bytes(b"flushed")
    with torch.no_grad():
        run.model[0].weight.fill_(7)
    run.optimizer.flush()
    mark.write_bytes(b"amended")
    with torch.no_grad():
        run.model[0].weight.fill_(8)
    run.optimizer.flush()
    mark.write_bytes(b"again")
    run.train(12).optimizer.flush()
"""
LINE = re.compile(
    r'\d+ +(pwrite64|write|ftruncate)\(\d+, (?:"(.*)", \d+)?(?:, )?(\d+)?(?:\) += \d+| <unf)'
)


def trace(path, mark):
    """Run the script; return its writes to both files: (offset, data), a length, or a mark."""
    found = path.with_name("trace")
    watch = ["strace", "-f", "--seccomp-bpf", "-qq", "-xx", "-s", "9999999", "-o", found]
    watch += ["-e", "trace=pwrite64,write,ftruncate", "-P", path, "-P", mark]
    done = subprocess.run(
        [*watch, sys.executable, "-c", textwrap.dedent(SCRIPT), path, mark],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("this test may not trace a process")
    assert done.returncode == 0, done.stderr
    for line in found.read_text().splitlines():
        match = LINE.match(line)
        if match is None:
            assert "write64(" not in line, line
            continue
        name, data, offset = match.groups()
        if name == "ftruncate":
            yield int(offset)
        else:
            raw = bytes.fromhex(data.replace("\\x", ""))
            is_mark = name == "write" and raw.isalpha()
            yield raw.decode() if is_mark else (int(offset or 0), raw)


def apply(content, operation):
    """Do one write."""
    if isinstance(operation, int):
        del content[operation:]
        content.extend(bytes(operation - len(content)))
    else:
        offset, data = operation
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_every_write(tmp_path, weights):
    """A kill after any write of the file leaves every step that was flushed, bit for bit."""
    path, mark, copy = tmp_path / "run.h5", tmp_path / "mark", tmp_path / "copy.h5"
    killed(path)
    content, phase, counts = bytearray(path.read_bytes()), "begun", {}
    filled = [{**weights[11], "0.weight": torch.full((6, 4), float(k))} for k in (7, 8)]
    lasts = {"begun": None, "resumed": None, "flushed": filled[0], "amended": filled[1]}
    for operation in trace(path, mark):
        if isinstance(operation, str):
            phase = operation
            if phase == "again":
                break  # the next step is another run's
            continue
        apply(content, operation)
        counts[phase] = counts.get(phase, 0) + 1
        copy.write_bytes(content)
        right = list(weights)
        if phase == "amended":
            right[11] = filled[0]
        steps = readable(copy, right, lasts[phase])
        least = {"begun": BACK, "resumed": BACK}.get(phase, 11)
        assert least <= steps <= STOP, (phase, steps)
    assert counts["begun"] > 10
    assert min(counts.values()) > 3
    assert same(copy, filled[1])


@pytest.mark.parametrize("compression", ["none", "delta"])
def test_between_calls(tmp_path, monkeypatch, weights, compression):
    """The same between calls of HDF5, where no tool can watch the writes themselves."""
    path, copy, seen = tmp_path / "run.h5", tmp_path / "copy.h5", []
    killed(path, compression=compression)

    for owner, name in (
        (h5py.Dataset, "resize"),
        (h5py.File, "flush"),
        (Tables, "_put"),
        (Tables, "_grow"),
        (Tables, "cut"),
    ):
        real = getattr(owner, name)
        spy = lambda *a, _real=real, **k: (_real(*a, **k), seen.append(path.read_bytes()))[0]  # noqa: E731
        monkeypatch.setattr(owner, name, spy)
    run = Run(path, state_every=5, resume=True, compression=compression).train(11)
    run.optimizer.flush()
    flushed, last = len(seen), {**weights[11], "0.weight": torch.full((6, 4), 7.0)}
    with torch.no_grad():
        run.model[0].weight.fill_(7)
    run.optimizer.flush()
    monkeypatch.undo()
    run.close()
    for contents, least in ((seen[:flushed], BACK), (seen[flushed:], 11)):
        assert len(set(contents)) > 3
        for content in dict.fromkeys(contents):
            copy.write_bytes(content)
            assert least <= readable(copy, weights, last) <= STOP
    assert same(copy, last)
    assert same(path, last)
    with h5py.File(path) as file:
        assert len(file[schema.WEIGHTS]) == 12  # the spare row is gone


def test_a_log_that_is_killed_while_its_last_row_is_replaced_resumes(tmp_path, weights):
    path = tmp_path / "run.h5"
    Run(path, state_every=5).train(STOP).close()
    with h5py.File(path, "r+") as file:
        rows = file[schema.WEIGHTS]
        rows.resize(STOP + 2, axis=0)
        rows[STOP + 1] = rows[STOP]
        rows[STOP] = 1
    assert readable(path, weights) == STOP
    Run(path, state_every=5, resume=True).close()
    with h5py.File(path) as file:
        assert len(file[schema.WEIGHTS]) == STOP + 1
    assert readable(path, weights) == STOP


def test_a_long_closed_log_is_cut_without_a_gap(tmp_path, monkeypatch):
    """HDF5 empties a part of a chunk at once: steps behind it must not be taken for the last."""
    path, copy, seen = tmp_path / "run.h5", tmp_path / "copy.h5", {}
    Run(path, state_every=270, width=2).train(530).close()
    with h5py.File(path, "r+") as file:
        file[full_states.SNAP_STATE][-3] ^= 1  # the last state is torn: back to step 270
    real = h5py.Dataset.resize

    def resize(*arguments, **named):
        real(*arguments, **named)
        seen[path.read_bytes()] = None

    monkeypatch.setattr(h5py.Dataset, "resize", resize)
    Run(path, state_every=270, width=2, resume=True).close()
    monkeypatch.undo()
    for content in seen:
        copy.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_log(copy) as log:
                assert len(list(log.steps())) >= 270


def test_meta_rows_are_written_last(tmp_path, monkeypatch):
    """So that a step is on file once its meta row is."""
    calls, put, flush = [], Tables._put, h5py.File.flush
    monkeypatch.setattr(
        Tables, "_put", lambda self, name, *a: (calls.append(name), put(self, name, *a))[1]
    )
    monkeypatch.setattr(h5py.File, "flush", lambda file: (calls.append("flush"), flush(file))[1])
    run = Run(tmp_path / "run.h5").train(STOP)
    run.optimizer.flush()
    calls.append("end")
    run.close()
    commits = " ".join(calls[: calls.index("end")]).split("flush")
    steps = [commit.split() for commit in commits if schema.META in commit]
    assert steps
    for commit in steps:
        assert commit[-1] == schema.META
        assert {schema.WEIGHTS, batch_ids.IDS, hyperparameters.HYPER} <= set(commit)


def test_strings_behind_the_valid_ones_do_not_matter(tmp_path, weights):
    path = tmp_path / "run.h5"
    killed(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_log(path).close()
    with h5py.File(path, "r+") as file:
        ids, ends = file[batch_ids.IDS][:], file[string_ids.STRING_ENDS]
        first = int(file[schema.META][BACK]["ids"])
        ends[int(ids[:first].max()) + 1 :] = 0
    with pytest.warns(LogWarning, match="torn steps at its end"), open_log(path) as log:
        assert [log.step(t).index for t in range(BACK)] == list(range(BACK))


def test_new_logs_are_paged(tmp_path):
    """Plain SWMR files lose steps in torn pages."""
    Run(tmp_path / "run.h5").train(1).close()
    with h5py.File(tmp_path / "run.h5") as file:
        created = file.id.get_create_plist()
        assert created.get_file_space_strategy()[0] == h5py.h5f.FSPACE_STRATEGY_PAGE
        assert created.get_file_space_page_size() == 4096
