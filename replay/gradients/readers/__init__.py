"""Readers of operations: from what autograd saved to per-example gradients."""
