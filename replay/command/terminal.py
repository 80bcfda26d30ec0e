"""What the program writes to: a terminal of any width, or a pipe that may be closed."""

from __future__ import annotations

import re
from typing import NoReturn

from rich.console import Console
from rich.text import Text

_NARROWEST = 80  # tables that are narrower lose their numbers
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Terminal(Console):
    """Standard output, taken to be 80 columns wide where it is narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.width = max(self.width, _NARROWEST)

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught when it calls this; its own would exit with 1."""
        raise


def literal(text: object) -> Text:
    """Return text of a log, a task or a file's name as it is: no markup, nothing that steers."""
    return Text(_CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text)))
