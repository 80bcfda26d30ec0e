"""Tests of the examples: their loaders, what they measure, and that each runs to its page."""
