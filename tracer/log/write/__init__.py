"""A run log that is written, or gone on with."""
