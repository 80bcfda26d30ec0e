"""Tests of what each method computes."""
