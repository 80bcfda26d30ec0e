"""Proofs that what was read is right: layouts, plans, independence of examples."""
