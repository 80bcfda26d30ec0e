"""Forms that per-example gradients are kept in, and their inner products."""
