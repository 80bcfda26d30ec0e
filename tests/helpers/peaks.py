"""How many bytes a job holds at most."""

from __future__ import annotations

from torch.profiler import profile

from replay.vectors import workspace
from replay.vectors.workspace import temporaries


def peak_bytes(job):
    """Return the most that tensors allocated during a job take at once."""
    with profile(profile_memory=True) as found:
        job()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def took(budget, job):
    """Return the most that a job's tensors take under a budget, and its result."""
    workspace._kept.__dict__.clear()  # what other tests left
    found = []
    with temporaries(budget):
        peak = peak_bytes(lambda: found.append(job()))
    return peak, found[0]
