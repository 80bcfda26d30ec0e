"""Tests of the door to a run's states."""
