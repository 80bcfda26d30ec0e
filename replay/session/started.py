"""Processes that were started, and how one of them ended."""

from __future__ import annotations

import signal
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from tracer.errors import InputError

_STOPPED = -signal.SIGTERM  # how a pool ends the others


class Started(SpawnContext):
    """Starts processes for a pool, which keeps to itself how they end."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """Return a process that is not started yet."""
        self._all.append(SpawnProcess(*args, **kwargs))
        return self._all[-1]

    def stop(self) -> None:
        """End all processes now, whatever they do."""
        for one in self._all:
            if one.is_alive():
                one.terminate()

    def ended(self) -> InputError:
        """Return the error for a pool that is broken: why a process of it ended."""
        codes = [one.exitcode for one in self._all]
        found = next((code for code in codes if code not in (None, 0, _STOPPED)), None)
        kept = "finished runs are not taken again if out= (--out) names a file."
        if found is not None and found > 0:
            return InputError(
                f"a worker process ended with exit code {found} before it could work; what Python "
                "said of it stands above.\n"
                '1. Put what starts workers under: if __name__ == "__main__":\n'
                "2. If an import failed, look for a file that is named like a library.\n"
                f"3. Or use one process: workers=1 (--workers 1); {kept}"
            )
        how = "from outside" if found is None else f"by {signal.Signals(-found).name}"
        return InputError(
            f"a worker process was ended {how}.\n"
            "1. SIGKILL is what a system does that is short of memory: take fewer workers, "
            f"workers=1 (--workers 1); {kept}\n"
            "2. SIGSEGV and SIGABRT are crashes of a library: take one process, and see whether "
            "it crashes, too."
        )
