"""Tests of tracer and replay; README.md says how they are ordered."""
