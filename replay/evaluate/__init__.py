"""A task's model and data at a state: losses and gradients of both sides."""
