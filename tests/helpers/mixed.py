"""Two optimizers of one model, as loops have them, for the forward-buffer reference."""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.rules import O, Rule


class Plain:
    """Two optimizers that a loop steps one after the other."""

    def __init__(self, parts):
        self.parts = parts

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self):
        return {p: state for part in self.parts for p, state in part.state.items()}

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for part in self.parts:
            part.step()


@dataclass(frozen=True)
class Mixed:
    """One rule for weights and another for biases."""

    weights: Rule
    biases: Rule

    def __str__(self):
        return f"{self.weights}+{self.biases}"

    def of(self, name):
        """Return the rule of a parameter."""
        return self.biases if name.endswith("bias") else self.weights

    def made(self, parameters):
        """Return both; each weight has a group of its own."""
        known = list(parameters)
        weights = [{"params": [p]} for p in known if p.dim() > 1]
        biases = [p for p in known if p.dim() < 2]
        return Plain([self.weights.made(weights), self.biases.made(biases)])


MUON = Rule("muon", O.Muon, {"lr": 0.02, "weight_decay": 0.3})
ADAMW = Rule("adamw", O.AdamW, {"lr": 0.02, "weight_decay": 0.2})
ADAM = Rule("adam", O.Adam, {"lr": 0.02, "weight_decay": 0.1, "maximize": True})
PLAIN = Rule("sgd", O.SGD, {"lr": 0.1, "weight_decay": 0.1})
HEAVY = Rule("heavy-ball", O.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2})
RMSPROP = Rule("rmsprop", O.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1})
MUON_ADAMW, SGD_ADAM = Mixed(MUON, ADAMW), Mixed(PLAIN, ADAM)
MIXED = [MUON_ADAMW, SGD_ADAM, Mixed(RMSPROP, HEAVY), Mixed(PLAIN, PLAIN)]
