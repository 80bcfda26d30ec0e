"""Tests of per-example gradients."""
