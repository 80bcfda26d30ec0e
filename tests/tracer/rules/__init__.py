"""Tests of the update rules."""
