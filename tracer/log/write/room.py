"""How much an open file can still grow."""

from __future__ import annotations

import os
import resource


def room(descriptor: int) -> int:
    """Return how many bytes the disk and the limit of file sizes leave, as far as they say.

    Args:
        descriptor: Of the file.
    """
    disk = os.fstatvfs(descriptor)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    free = disk.f_bavail * disk.f_frsize
    if limit == resource.RLIM_INFINITY:
        return free
    return min(free, limit - os.fstat(descriptor).st_size)
