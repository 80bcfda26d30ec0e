"""What a step's record says of its parameters."""

from __future__ import annotations

from tracer.records import ParameterGroup, Step


def test_rates_and_what_moved():
    groups = (
        ParameterGroup(("b", "frozen"), {"lr": 0.2}),
        ParameterGroup(("a", "unused", "c"), {"lr": 0.1}),
    )
    unused, frozen = frozenset({"unused"}), frozenset({"frozen"})
    assert Step(0, None, (), groups, 1.0, without_gradient=unused | frozen).moved == ["b", "a", "c"]
    step = Step(0, None, (), groups, 1.0, without_gradient=unused, frozen=frozen)
    assert step.moved == ["b", "frozen", "a", "c"]
    assert step.trained == ["b", "a", "c"]
    rates = {"b": 0.2, "frozen": 0.2, "a": 0.1, "unused": 0.1, "c": 0.1}
    assert list(step.learning_rates.items()) == list(rates.items())
