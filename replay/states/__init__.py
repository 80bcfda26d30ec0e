"""The state at step t: parameters, buffers and optimizer."""
