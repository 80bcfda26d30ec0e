"""The run log: its format, its lock, and how its file is opened."""
