"""Tests of the log's format, of reading and of writing it."""
