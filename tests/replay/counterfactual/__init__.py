"""Tests of counterfactual runs."""
