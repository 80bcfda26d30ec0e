"""Every row of the table, by itself: its split of a step against the step that torch takes.

A row joins each test with those settings that its torch class accepts.
"""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch import nn

from tracer.rules.table import RULES, momentum_of
from tracer.watch.measurement import Measurement

SETTINGS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    {"betas": (0.8, 0.9), "eps": 1e-3},
    {"amsgrad": True, "betas": (0.8, 0.6), "weight_decay": 0.1},
    {"decoupled_weight_decay": True, "weight_decay": 0.1},
    {"alpha": 0.7, "eps": 1e-3},
    {"centered": True, "maximize": True},
    {"centered": True, "momentum": 0.9},
    {"lr_decay": 0.1, "weight_decay": 0.1},
    {"initial_accumulator_value": 0.3, "maximize": True},
]


def takes(rule, options):
    return options.keys() <= signature(getattr(torch.optim, rule).__init__).parameters.keys()


CASES = [(rule, options) for rule in RULES for options in SETTINGS if takes(rule, options)]


class Course:
    """A parameter under one optimizer of torch, whose rate falls step by step."""

    def __init__(self, rule, options, dtype=torch.float64, **more):
        torch.manual_seed(0)
        model = nn.Linear(7, 5, bias=False).to(dtype)
        self.rule, self.w = RULES[rule], model.weight
        self.optimizer = getattr(torch.optim, rule)([self.w], lr=0.03, **options, **more)
        self.measured, self.moments, self.t = Measurement(self.optimizer, model), {}, 0

    @property
    def state(self):
        """Torch's."""
        return self.optimizer.state[self.w]

    def step(self):
        """Return the numbers of one more step and ``u``, let the rule and torch take it."""
        self.t += 1
        self.optimizer.param_groups[0]["lr"] = 0.03 / self.t
        numbers, w = self.measured.groups()[0].hyperparameters, self.w.detach()
        self.w.grad = torch.randn_like(w)
        u = -self.w.grad if numbers["maximize"] else self.w.grad.clone()
        u = u.add(w, alpha=self.rule.coupled_decay(numbers))
        known = self.moments or self.rule.initial(w, numbers)
        self.moments = self.rule.observe(known, u, numbers)
        self.optimizer.step()
        return numbers, u


def test_each_setting_is_taken_by_a_rule():
    assert all(any(takes(rule, options) for rule in RULES) for options in SETTINGS)


@pytest.mark.parametrize(("rule", "options"), CASES, ids=str)
def test_a_split_step_is_the_step_of_torch(rule, options):
    course, buffer = Course(rule, options), None
    for _ in range(6):
        before = course.w.detach().clone()
        numbers, u = course.step()
        exact = course.rule.filter(course.moments, numbers, first=buffer is None)
        move, buffer = exact.forward(u, buffer)
        whole = move + exact.decoupled * before
        assert torch.allclose(before - course.w.detach(), whole, rtol=1e-10, atol=1e-15)
        stored = course.state.get(course.rule.buffer)
        assert (stored is None) == (buffer is None)
        assert buffer is None or torch.allclose(stored, buffer, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("rule", "options"), CASES, ids=str)
def test_what_a_rule_says_of_itself_is_so(rule, options):
    course = Course(rule, options)
    numbers, _ = course.step()
    exact = course.rule.filter(course.moments, numbers, first=False)
    has_memory = bool(exact.gain) or bool(course.moments)
    assert course.rule.remembers(lambda name: bool(numbers[name])) == has_memory
    assert course.rule.adapts == bool(course.moments)
    kept = exact.keep if exact.gain else 0.0
    assert momentum_of(rule, course.optimizer.defaults) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=str)
def test_counts_and_second_moments_are_bitwise_those_of_torch(rule, options, foreach, dtype):
    course = Course(rule, options, dtype, foreach=foreach)
    for _ in range(8):
        course.step()
        stored = {k: v for k, v in course.state.items() if k != course.rule.buffer}
        assert stored.keys() == course.moments.keys()
        assert all(torch.equal(value, course.moments[key]) for key, value in stored.items())


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.adapts])
def test_steps_are_counted_whatever_the_default_dtype(rule):
    course = Course(rule, {})
    torch.set_default_dtype(torch.bfloat16)  # in which 256 + 1 is 256
    try:
        for _ in range(258):
            course.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(course.moments["step"]) == float(course.state["step"]) == 258


@pytest.mark.parametrize(
    ("defaults", "momentum"),
    [
        ({"lr": 0.1}, 0.0),
        ({"betas": (0.8, 0.9), "momentum": 0.5}, 0.8),
        ({"betas": [torch.tensor(0.5), 0.9]}, 0.5),
        ({"betas": None, "momentum": 0.5}, 0.5),
        ({"momentum": None}, 0.0),
    ],
    ids=str,
)
def test_the_momentum_of_other_optimizers_is_guessed(defaults, momentum):
    assert momentum_of("their.Own", defaults) == momentum
