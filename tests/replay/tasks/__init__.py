"""Tests of ready tasks, and of what a task takes."""
