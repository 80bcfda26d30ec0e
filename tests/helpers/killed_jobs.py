"""Kill processes of a replaying job at random moments, and see that its result is the same.

    python -m tests.helpers.killed_jobs 50

Each job shares one question among two processes and is killed some times: one of them, both, or
all of it. ``--workers`` and torchrun's ``--max-restarts`` take turns in starting them again. Then
the same is asked again, until it ends. Its file must be that of a job that nobody disturbed, byte
for byte, and no part may be on file twice.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import torch

from replay.results.part_file import records
from tests.helpers.command import TASK, started, trace

BUSY = TASK.replace("time.sleep(0.2)", "time.sleep(0.02)").replace("slow_task", "busy")
TOKENS = (  # a model whose states are not stacked, so that processes hand on what they compute
    BUSY.replace("randn(20, 4", "randn(20, 2, 2")
    .replace("Linear(4, 5), nn.Tanh()", "Linear(2, 5), nn.Tanh(), nn.Flatten()")
    .replace("Linear(5, 3)", "Linear(10, 3)")
)
METHODS = ("--method", "tracin", "--method", "tracincp")


ELASTIC = [
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "3",
    "--monitor-interval",
    "0.1",
]


def asked(out):
    """Return what is asked."""
    named = ("--test", "all", "--task", "work.py:busy", "--out", out)
    return ["influence", "run.h5", *named, *METHODS]


def by_workers(out):
    """Start a job on two processes."""
    return started(["-m", "replay", *asked(out), "--workers", "2"])


def by_torchrun(out):
    """Start it by torchrun, which starts all processes again when one dies."""
    return started(["-m", "torch.distributed.run", *ELASTIC, "-m", "--", "replay", *asked(out)])


def workers(launcher):
    """Return the processes that a launcher has started."""
    try:
        text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def parts(folder, out):
    """Return the names of the parts on file."""
    found = []
    with suppress(FileNotFoundError):  # the job has ended meanwhile
        for path in (folder / f"{out}.parts").glob("*.parts"):
            if ".state" not in path.name:
                found += [r.header["part"] for r in records(path) if "part" in r.header]
    return found


def kill(process, folder, out, rng, *, more):
    """Kill a job, or some of it, when so many more parts are on file; return whether it was."""
    before = len(parts(folder, out))
    while process.poll() is None and len(parts(folder, out)) < before + more:
        time.sleep(0.02)
    victims = workers(process.pid)
    if process.poll() is not None or len(victims) < 2:
        return False
    which = rng.choice(["one", "both", "all"])
    for victim in victims if which != "one" else [rng.choice(victims)]:
        os.kill(victim, signal.SIGKILL)
    if which == "all":
        process.kill()
    return True


def disturbed(folder, out, rng, kills, begin):
    """Run a job, killed so many times; return how many were."""
    done = 0
    while not (folder / out).exists():
        process = begin(out)
        while done < kills and kill(process, folder, out, rng, more=rng.randint(1, 4)):
            done += 1
            assert len(names := parts(folder, out)) == len(set(names)), names
            if process.poll() is not None:
                break
        _, err = process.communicate()
        codes = (0, -signal.SIGKILL, 128 + signal.SIGKILL, *([1] if begin is by_torchrun else []))
        assert process.returncode in codes, err
    return done


def begun(folder, kind):
    """Trace a run of one kind: processes share segments of it, or walk through it together."""
    (folder / "work.py").write_text({"SGD": BUSY, "AdamW": TOKENS}[kind])
    (folder / "run.h5").unlink(missing_ok=True)
    trace(folder / "run.h5", "work.py:busy", getattr(torch.optim, kind))


def main(kills):
    """Disturb jobs until there were so many kills, half of each kind."""
    rng, ways = random.Random(0), cycle([by_workers, by_torchrun])
    for kind in ("SGD", "AdamW"):
        folder, count = Path(tempfile.mkdtemp()), 0
        os.chdir(folder)
        begun(folder, kind)
        by_workers("whole.h5").communicate()
        while count < kills // 2:
            count += disturbed(folder, out := f"{count}.h5", rng, 3, next(ways))
            assert Path(out).read_bytes() == Path("whole.h5").read_bytes(), folder / out
            print(f"{kind}: {count} kills, every result the same", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
