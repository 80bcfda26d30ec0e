"""``TracingOptimizer``: what a training loop talks to."""
