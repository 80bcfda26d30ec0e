"""Tests of steps and their division among examples."""
