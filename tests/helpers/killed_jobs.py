"""Kill processes of a replaying job at random moments, and see that its result is the same.

    python -m tests.helpers.killed_jobs 50

Each job shares one question among two processes and is killed some times: one of them, both, or
all of it. Then the same is asked again, until it ends. Its file must be that of a job that nobody
disturbed, byte for byte, and no part may be on file twice.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from replay.results.part_file import records
from tests.helpers.command import TASK, started, trace

BUSY = TASK.replace("time.sleep(0.2)", "time.sleep(0.02)").replace("slow_task", "busy")
METHODS = ("--method", "tracin", "--method", "tracincp")


def job(out):
    """Start a job on two processes."""
    asked = ["influence", "run.h5", "--test", "all", "--task", "work.py:busy", "--out", out]
    return started(["-m", "replay", *asked, *METHODS, "--workers", "2"])


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


def disturbed(folder, out, rng, kills):
    """Run a job, killed so many times; return how many were."""
    done = 0
    while not (folder / out).exists():
        process = job(out)
        while done < kills and kill(process, folder, out, rng, more=rng.randint(1, 4)):
            done += 1
            assert len(names := parts(folder, out)) == len(set(names)), names
            if process.poll() is not None:
                break
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), err
    return done


def main(kills):
    """Disturb jobs until there were so many kills."""
    folder, rng, count = Path(tempfile.mkdtemp()), random.Random(0), 0
    os.chdir(folder)
    (folder / "work.py").write_text(BUSY)
    trace(folder / "run.h5", "work.py:busy")
    job("whole.h5").communicate()
    while count < kills:
        count += disturbed(folder, f"{count}.h5", rng, 3)
        found = next(iter(sorted(folder.glob("[0-9]*.h5"), key=os.path.getmtime, reverse=True)))
        assert found.read_bytes() == (folder / "whole.h5").read_bytes(), found
        print(f"{count} kills, every result the same", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
