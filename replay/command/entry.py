"""The entry point: lets Ctrl-C end the program quietly while it still imports.

Torch alone takes seconds, so this and ``replay/__init__.py`` import nothing of it beforehand.
"""

import os
import signal
import sys
from typing import Any

_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit; ``replay.command.program.run`` names the codes."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored
    try:
        if raises:
            signal.signal(signal.SIGINT, _leave)
        from replay.command.program import run

        if raises:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run(arguments)
    except KeyboardInterrupt:
        _say_interrupted()
        code = _INTERRUPTED
    sys.exit(code)


def _leave(*_: Any) -> None:
    """End at once: modules swallow a KeyboardInterrupt while they load, and break later."""
    _say_interrupted()
    os._exit(_INTERRUPTED)


def _say_interrupted() -> None:
    text = "Interrupted; no file was written unless a line above says so."
    print(text, file=sys.stderr, flush=True)
