"""What a command will take, with its start."""

from __future__ import annotations

import time
from collections.abc import Callable

from replay.session.estimate import Cost


def from_the_start(estimate: Callable[[], Cost], workers: int) -> Cost:
    """Return an estimate with the start of processes, by what this one's took until now.

    That is processor time, which a first look at files on the disk does not lengthen. It takes as
    much longer as the estimate takes longer than its processor time: other programs work, too.
    """
    own, began = time.process_time(), time.perf_counter()
    cost = estimate()
    took, used = time.perf_counter() - began, time.process_time() - own
    return cost.with_start(own * max(1.0, took / used if used else 1.0), workers)
