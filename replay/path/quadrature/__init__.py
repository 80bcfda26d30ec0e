"""Means along a step: rules, from values and products alone, and the choice between them.

The last dimension but the examples' is the points', the first is the test examples': each of them
has its own points and its own rule.
"""
