"""Kill training processes at random moments and look at what they leave.

    python -m tests.helpers.kills 200

Each run is forked from this process, which has everything imported, trains as fast as it can, and
says after each ``flush`` which step is on file; then it changes the parameters and flushes again,
so that the last row is replaced. When it is killed, every such step must be there, bit for bit,
also after a resumption that is killed, and the run must resume.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.helpers.training import Run
from tracer import open_log
from tracer.full_state import digest

STEPS, WIDTH = 400, 200
EVERY = 20  # steps between full states
DENSE = {"snapshot_every": 1, "state_every": EVERY}
SPARSE = {"snapshot_every": EVERY}


def reference():
    """Return the parameters before each step, and after the last."""
    run, found = Run(width=WIDTH), []
    for t in range(STEPS + 1):
        found.append({n: p.detach().clone() for n, p in run.model.named_parameters()})
        if t < STEPS:
            run.step()
    return found


def kill_one(path, rng, expected, **options):
    """Train in a child, kill it, check the log; return what was found."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        warnings.simplefilter("ignore")  # of the parameters that are changed between two steps
        run = Run(path, width=WIDTH, **options)
        for _ in range(STEPS):
            run.step()
            if run.t % 3 == 0:
                run.optimizer.flush()
                os.write(write, run.t.to_bytes(4, "little"))
                replace(run)
        os._exit(0)
    os.close(write)
    said = os.read(read, 4)  # the first flush
    time.sleep(rng.random() * 0.5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(read, 4096):
        said = piece[-4:]
    os.close(read)
    flushed = int.from_bytes(said, "little")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        steps = check(path, expected)
    assert steps >= flushed, f"{flushed} steps were flushed, {steps} are readable"
    whole = {
        steps - steps % EVERY,
        (steps - 1) // EVERY * EVERY,
    }  # step 40 may be there without its state
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torn steps are still there, and said again
        kill_resumption(path, rng, **options)
        assert check(path, expected) >= min(whole)
        run = Run(path, width=WIDTH, resume=True, **options)
    assert run.optimizer.position[0] in whole, (run.optimizer.position, steps)
    run.step()
    run.close()
    with open_log(path) as log:
        assert len(log) == run.t
    repaired = any("superblock was repaired" in str(w.message) for w in seen)
    return {"flushed": flushed, "readable": steps, "repaired": repaired}


@torch.no_grad()
def replace(run):
    """Change a parameter, have the last row replaced, and put the parameter back."""
    weight = run.model[0].weight
    was = weight.clone()
    weight.add_(1)
    run.optimizer.flush()
    weight.copy_(was)


def kill_resumption(path, rng, **options):
    """Resume in a child and kill it in the middle, or a little later."""
    child = os.fork()
    if child == 0:
        Run(path, width=WIDTH, resume=True, **options).train(STEPS)
        os._exit(0)
    time.sleep(rng.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def check(path, expected):
    """Return how many steps a killed log holds; each must be right, the last may be replaced."""
    with open_log(path) as log:
        steps = len(log)
        on_file = range(steps + 1) if log.is_dense else log.states()
        for t in range(min(steps, 1), steps + 1):
            assert t == steps or log.digest(t) == digest(expected[t]), t
        for t in on_file:
            found = log.parameters(t)
            if t == steps and not torch.equal(found["0.weight"], expected[t]["0.weight"]):
                found["0.weight"] = found["0.weight"] - 1
                assert torch.allclose(found["0.weight"], expected[t]["0.weight"], atol=1e-6), t
                continue
            assert all(torch.equal(found[n], p) for n, p in expected[t].items()), t
        assert [s.index for s in log.steps()] == list(range(steps))
    return steps


def main(count):
    """Kill so many runs; print the figures."""
    torch.set_num_threads(1)
    rng, expected = random.Random(0), reference()
    beyond, found = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(count):
            how = ({**DENSE, "compression": "none"}, {**DENSE, "compression": "delta"}, SPARSE)
            one = kill_one(Path(folder) / f"{k}.h5", rng, expected, **how[k % 3])
            (Path(folder) / f"{k}.h5").unlink()
            found.append(one)
            beyond += one["readable"] - one["flushed"]
            if k % 20 == 19:
                print(f"{k + 1} of {count} killed", file=sys.stderr)
    print(
        f"{count} runs killed after {min(o['flushed'] for o in found)} to "
        f"{max(o['flushed'] for o in found)} flushed steps: {sum(o['flushed'] for o in found)} "
        f"flushed steps, none lost; {beyond} steps beyond the last flush were readable too; "
        f"{sum(o['repaired'] for o in found)} files needed repair; {count} of {count} resumed"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
