"""Tests of the wrapped optimizer and what it logs."""
