"""Tracing by the training libraries' own loops: one module for each."""
