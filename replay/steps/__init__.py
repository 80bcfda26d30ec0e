"""The training side of a step: replayed, taken apart, compared with the log."""
