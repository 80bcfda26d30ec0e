"""Jobs of several processes, played by this one: the others have nothing to say."""

from __future__ import annotations

from torch.distributed import HashStore

from replay.processes.group import Group
from replay.processes.store import Store


class Solo(Group):
    """A process that leads a job; ``size`` is how many the job was divided for."""

    def __init__(self, size=1):
        self.rank, self.size, self._times = 0, size, 0
        self._store = Store(HashStore())
        for rank in range(1, size):
            for k in range(1, 9):
                self._store.set(f"agreed/{k}/{rank}", "")
        self._store.add("left", size - 1)
