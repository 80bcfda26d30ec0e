"""``Replay``: a run and its task, and what can be asked of the two."""
