"""The rules of several optimizers, each of which moves parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracer.rules.rule import UpdateRule


class Several(UpdateRule):
    """Stands for a rule where all of them are asked; ``of`` is the one of a parameter.

    Args:
        rules: One for each optimizer: its name, and how it moves parameters.
    """

    def __init__(self, rules: Sequence[tuple[str, UpdateRule]]) -> None:
        self._rules = [rule for _, rule in rules]
        self.adapts = any(rule.adapts for rule in self._rules)
        self.smooth = all(rule.smooth for rule in self._rules)
        self.buffer = next((rule.buffer for rule in self._rules if rule.buffer), None)
        self.recorded = any(rule.recorded for rule in self._rules)
        self.after = tuple({key: None for rule in self._rules for key in rule.after})
        self.largest = tuple({key: None for rule in self._rules for key in rule.largest})
        self.frozen = "; ".join(f"{name}: {rule.frozen}" for name, rule in rules if rule.frozen)

    def remembers(self, used: Callable[[str], bool]) -> bool:
        """Return whether steps of any of them depend on earlier ones."""
        return any(rule.remembers(used) for rule in self._rules)

    def of(self, optimizer: int) -> UpdateRule:
        """Return the rule of one of the optimizers, by its number."""
        return self._rules[optimizer]
