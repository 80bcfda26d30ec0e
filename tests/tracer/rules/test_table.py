"""Every row of the table, by itself: its split of a step against the step that torch takes.

A row joins each test with those settings that its torch class accepts.
"""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch import nn

from tracer.rules.rule import Now
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
    {"momentum_decay": 0.1, "betas": (0.8, 0.9)},
    {"rho": 0.7, "eps": 1e-3},
    {"lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1},
    {"etas": (0.3, 1.7), "step_sizes": (1e-3, 0.04), "maximize": True},
    {"ns_steps": 3, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1},
    {"ns_coefficients": (3.0, -4.0, 2.0), "nesterov": False, "eps": 1e-3},
    {"beta2_decay": -0.6, "eps": (1e-3, 1e-2), "d": 1.2, "weight_decay": 0.1},
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
        more = more if takes(rule, more) else {}
        self.optimizer = getattr(torch.optim, rule)([self.w], lr=0.03, **options, **more)
        self.measured, self.moments, self.t = Measurement(self.optimizer, model), {}, 0
        self.buffer = None

    @property
    def state(self):
        """Torch's."""
        return self.optimizer.state[self.w]

    def step(self):
        """Let the rule and torch take one more step; return its numbers, ``u`` and its filter."""
        self.t += 1
        self.optimizer.param_groups[0]["lr"] = 0.03 / self.t
        (group,), w = self.optimizer.param_groups, self.w.detach()
        words = {k: v for k, v in group.items() if isinstance(v, str)}
        numbers = self.measured.seen(self.optimizer).groups[0].hyperparameters | words
        self.w.grad, sparse = torch.randn_like(w), None
        if self.rule is RULES["SparseAdam"]:  # of two rows, others at each step
            rows = torch.tensor([self.t % 5, (self.t**2 + 2) % 5])
            sparse = torch.sparse_coo_tensor(rows[None], self.w.grad[rows], w.shape)
            self.w.grad = sparse
        u = self.w.grad.to_dense().clone() * (-1 if numbers.get("maximize") else 1)
        u = u.add(w, alpha=self.rule.coupled_decay(numbers))
        known = self.moments or self.rule.initial(w, numbers)
        held = None if self.buffer is None else lambda: self.buffer
        exact, self.moments = self.rule.step(
            Now(w.clone(), lambda: u, known, numbers, held, sparse)
        )
        _, self.buffer = exact.forward(u.double(), self.buffer)
        self.optimizer.step()
        return numbers, u, exact


def test_each_setting_is_taken_by_a_rule():
    assert all(any(takes(rule, options) for rule in RULES) for options in SETTINGS)


@pytest.mark.parametrize(("rule", "options"), CASES, ids=str)
def test_a_split_step_is_the_step_of_torch(rule, options):
    course = Course(rule, options)
    for _ in range(6):
        before, held = course.w.detach().clone(), course.buffer
        _, u, exact = course.step()
        move, buffer = exact.forward(u, held)
        whole = move + exact.decoupled * before + (0.0 if exact.beyond is None else exact.beyond)
        assert torch.allclose(before - course.w.detach(), whole, rtol=1e-10, atol=1e-15)
        stored = course.state.get(course.rule.buffer)
        assert (stored is None) == (buffer is None)
        assert buffer is None or torch.allclose(stored, buffer, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("rule", "options"), CASES, ids=str)
def test_what_a_rule_says_of_itself_is_so(rule, options):
    course = Course(rule, options)
    course.step()
    numbers, _, exact = course.step()
    has_memory = bool(exact.gain) or bool(course.moments)
    assert course.rule.remembers(lambda name: bool(numbers[name])) == has_memory
    assert course.rule.adapts == bool(course.moments) or rule == "Muon"
    kept = exact.keep if exact.gain else 0.0
    assert momentum_of(rule, course.optimizer.defaults) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize(("rule", "options"), [c for c in CASES if c[0] != "Muon"], ids=str)
def test_counts_and_second_moments_are_bitwise_those_of_torch(rule, options, foreach, dtype):
    course = Course(rule, options, dtype, foreach=foreach)
    for _ in range(8):
        course.step()
        averages = {"ax", "mu"}  # ASGD's, which have no part in steps
        stored = {k: v for k, v in course.state.items() if k != course.rule.buffer}
        assert stored.keys() - averages == course.moments.keys()
        for key, value in course.moments.items():
            assert torch.equal(torch.as_tensor(stored[key]).to(value), value)


@pytest.mark.parametrize(
    "rule", [name for name, rule in RULES.items() if rule.adapts and name != "Muon"]
)
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
