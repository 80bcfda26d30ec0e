"""Tests with trainers of other libraries."""
