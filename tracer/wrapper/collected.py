"""A log that is closed when its wrapper is collected, wherever the collector runs.

It may run inside of a call of HDF5, or in a log's writer thread: who waited there for the writer
thread would wait for ever.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from tracer.hdf5.calls import inside_hdf5

CLOSING = "tracer-closing"


def close_when_collected(wrapper: object, close: Callable[[], None]) -> None:
    """Have a log closed when nobody has its wrapper any more, or at the interpreter's end."""
    weakref.finalize(wrapper, _close, close)


def _close(close: Callable[[], None]) -> None:
    if inside_hdf5() or threading.current_thread().daemon:
        threading.Thread(target=close, name=CLOSING).start()
    else:
        close()
