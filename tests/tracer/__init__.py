"""Tests of the package tracer."""
