"""``python -m replay``: the same program as ``tracin-replay``."""

from replay.cli import main

main()
