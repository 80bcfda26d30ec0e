"""Files with changed bytes, read in a child of little memory."""

from __future__ import annotations

import os
import pickle
import resource
import warnings
import zlib

from tracer import open_log
from tracer.errors import InputError, LogError

ROOM = 400 << 20  # bytes


def read_in_child(read):
    """Return what ``read`` gives, or its error, from a process with little memory."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        with open("/proc/self/statm") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        warnings.simplefilter("ignore")
        try:
            found = ("read", read())
        except (LogError, InputError) as error:
            found = ("refused", str(error))
        except BaseException as error:
            found = ("wrong", f"{type(error).__name__}: {error}")
        os.write(sink, pickle.dumps(found))
        os._exit(0)
    os.close(sink)
    data = b""
    while piece := os.read(source, 1 << 16):
        data += piece
    os.close(source)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the reader ended with {status}"
    return pickle.loads(data)


def mutated(data, rng):
    """Return bytes with something wrong."""
    used = [k for k in range(0, len(data), 64) if any(data[k : k + 64])]
    for _ in range(rng.choice([1, 1, 3, 20])):
        start = rng.choice(used) + rng.randrange(64)
        kind = rng.randrange(5)
        size = rng.choice([1, 4, 8, 64, 512])
        if kind == 0:
            data[start % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start : start + size] = bytes(len(data[start : start + size]))
        elif kind == 2:
            data[start : start + size] = b"\xff" * len(data[start : start + size])
        elif kind == 3:
            source = rng.choice(used)
            data[start : start + size] = data[source : source + len(data[start : start + size])]
        elif rng.random() < 0.2:
            del data[len(data) // 2 + start // 2 :]
    return bytes(data)


def digest(path):
    """Read everything of a log; return checksums of each step and snapshot."""
    with open_log(path) as log:
        found = [repr(log.step(t)) for t in range(len(log))]
        for t in range(len(log) + 1):
            found += [zlib.crc32(p.numpy().tobytes()) for p in log.parameters(t).values()]
            found += [zlib.crc32(b.numpy().tobytes()) for b in log.buffers(t).values()]
        for step in log.steps():
            for batch in step.micro_batches:
                found.append(repr(batch.batch))
        for t in log.states():
            found.append(repr(log.state(t)["optimizer"]))
        log.segments()
        repr(log.metadata)
        return len(log), zlib.crc32(repr(found).encode())
