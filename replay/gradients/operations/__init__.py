"""Autograd's operations: where parameters are used, where examples lie."""
