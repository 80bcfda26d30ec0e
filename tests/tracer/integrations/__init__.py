"""Tests of loops of the shape of a trainer's."""
