"""Tests of logs that a kill, a full disk or a power cut left."""
