"""The entry point: Ctrl-C ends the program quietly, whatever it is doing."""

import sys

from replay.command.importing import INTERRUPTED, leaving, say_interrupted


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit; ``replay.command.program.run`` names the codes."""
    try:
        with leaving():
            from replay.command.program import run

        code = run(arguments)
    except KeyboardInterrupt:
        say_interrupted()
        code = INTERRUPTED
    sys.exit(code)
