"""``python -m replay``: the same program as ``tracin-replay``."""

from replay.command.entry import main

main()
