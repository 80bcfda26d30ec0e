"""The parts of a step that a log holds: one file each, with dtype, encode, decode and end."""
