"""Small float64 runs of every update rule that a replay splits, and a forward-buffer reference.

The reference pushes each example's gradient forwards through the optimizer's recursion, one buffer
an example (``N x P``), with the denominators that torch itself had in the run, and dots the moves
with ``∇φ``. It knows neither the package's filters nor its backward recursion.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from replay import Task
from tests.helpers import reference
from tests.helpers.accounts import Account, Had, had, shrinkage
from tests.helpers.cases import cross_entropy
from tests.helpers.loop import Loop
from tracer import TracingOptimizer, open_log

O = torch.optim  # noqa: E741
TRAIN, TEST = 12, 2


@dataclass(frozen=True)
class Rule:
    """An optimizer and its settings."""

    name: str
    kind: type
    options: dict

    def __str__(self):
        return self.name

    def made(self, parameters):
        """Return the optimizer."""
        return self.kind(parameters, **copy.deepcopy(self.options))

    def of(self, name):
        """Return the rule of a parameter; see ``mixed``."""
        return self


RULES = [
    Rule("sgd", O.SGD, {"lr": 0.1}),
    Rule("sgd-decay-maximize", O.SGD, {"lr": 0.02, "weight_decay": 0.3, "maximize": True}),
    Rule("heavy-ball", O.SGD, {"lr": 0.1, "momentum": 0.9}),
    Rule("dampened", O.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}),
    Rule("nesterov", O.SGD,
         {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    Rule("heavy-ball-maximize", O.SGD,
         {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
    Rule("adam", O.Adam, {"lr": 0.02}),
    Rule("adam-decay", O.Adam, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    Rule("adam-maximize", O.Adam, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    Rule("adamw", O.AdamW, {"lr": 0.02, "weight_decay": 0.2}),
    Rule("adamw-amsgrad", O.AdamW, {"lr": 0.02, "amsgrad": True, "betas": (0.7, 0.6)}),
    Rule("rmsprop", O.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    Rule("rmsprop-momentum", O.RMSprop, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    Rule("rmsprop-centered", O.RMSprop,
         {"lr": 0.01, "momentum": 0.8, "centered": True, "eps": 1e-3}),
    Rule("adagrad", O.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    Rule("nadam", O.NAdam, {"lr": 0.02, "weight_decay": 0.1}),
    Rule("nadam-decoupled", O.NAdam,
         {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    Rule("radam", O.RAdam, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    Rule("radam-decoupled", O.RAdam,
         {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    Rule("adamax", O.Adamax, {"lr": 0.02, "weight_decay": 0.1}),
    Rule("adamax-maximize", O.Adamax, {"lr": 0.02, "betas": (0.8, 0.5), "maximize": True}),
    Rule("adadelta", O.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
    Rule("adadelta-maximize", O.Adadelta, {"lr": 1.0, "rho": 0.5, "maximize": True}),
    Rule("adafactor", O.Adafactor, {"lr": 0.1, "weight_decay": 0.1}),
    Rule("adafactor-clipped", O.Adafactor, {"lr": 0.05, "beta2_decay": -0.6, "maximize": True}),
    Rule("asgd", O.ASGD, {"lr": 0.1, "lambd": 0.2, "weight_decay": 0.1}),
    Rule("asgd-maximize", O.ASGD, {"lr": 0.1, "alpha": 0.5, "t0": 2, "maximize": True}),
    Rule("rprop", O.Rprop, {"lr": 0.01}),
    Rule("rprop-maximize", O.Rprop, {"lr": 0.01, "etas": (0.3, 1.4), "maximize": True}),
]  # fmt: skip
BY_NAME = {rule.name: rule for rule in RULES}


def task(**parts):
    """Return a task with a small smooth model."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(TRAIN + TEST, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (TRAIN + TEST,), generator=generator)
    data = list(zip(x, y, strict=True))

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    return Task(model, cross_entropy, data[:TRAIN], data[TRAIN:], **parts)


def in_dtype(task, dtype):
    """Return a task with its model and data in another dtype."""
    train, test = ([(x.to(dtype), y) for x, y in part] for part in (task.train, task.test))
    model = task.model
    return dataclasses.replace(task, model=lambda: model().to(dtype), train=train, test=test)


@dataclass
class Run:
    """A traced run and what torch had in it.

    Attributes:
        had: By step and parameter, what torch had.
        first: The momentum buffers before the log began, by parameter.
        end: What training left behind: parameters, the optimizer's state, the random state.
    """

    rule: Rule
    task: Task
    path: object
    had: list = field(default_factory=list)
    first: dict = field(default_factory=dict)
    end: tuple = ()

    @cached_property
    def logged(self):
        """Return what the log says of each step, with its gradients, and its last parameters."""
        with open_log(self.path) as log:
            steps = [Logged.of(self.task, log, t) for t in range(len(log))]
            return steps, log.parameters(len(log))

    @cached_property
    def model(self):
        """The task's model; what it holds is of no account."""
        return self.task.model().eval()


@dataclass(frozen=True)
class Logged:
    """A step of a log, the parameters before it, the gradients there of examples and penalty."""

    step: object
    w: dict
    gradients: list
    penalty: dict

    @classmethod
    def of(cls, task, log, t):
        w = log.parameters(t)
        gradients = reference.train_gradients(task, log, t)
        return cls(log.step(t), w, gradients, reference.penalty_gradient(task, w))


def trace(
    path, rule, *, before=0, steps=6, groups=None, parts=None, base=None, state_every=None,
    snapshot_every="auto", **loop,
):  # fmt: skip
    """Trace ``steps`` steps after ``before`` untraced ones.

    Args:
        groups: Makes parameter groups from a model.
        parts: More of the task.
        base: Another task, with 12 training and 2 test examples.
        state_every, snapshot_every: Of the wrapper.
    """
    run, loop = Run(rule, base or task(**(parts or {})), path), Loop(**loop)
    model, inner, generator = _begun(run, loop, before, groups)
    names = {id(p): n for n, p in model.named_parameters()}
    kinds = {n: rule.of(n).kind for n in names.values()}
    run.first = {names[id(p)]: _buffer(kinds[names[id(p)]], s, p) for p, s in inner.state.items()}
    wrapped = getattr(inner, "parts", inner)
    kept = {"state_every": state_every, "snapshot_every": snapshot_every}
    with TracingOptimizer(wrapped, model, path, **kept) as optimizer:
        for t in range(steps):
            before = {p: copy.deepcopy(inner.state.get(p, {})) for p in model.parameters()}
            old = {p: p.detach().clone() for p in before}
            loop.step(t, run, model, optimizer, generator)
            groups = {p: g for g in inner.param_groups for p in g["params"]}
            run.had.append({
                names[id(p)]: had(
                    kinds[names[id(p)]], before[p], inner.state.get(p, {}), g, old[p], p.grad
                )
                for p, g in groups.items() if p.grad is not None
            })  # fmt: skip
    run.end = _left(model, inner)
    return run


def untraced(run, *, before=0, steps=6, groups=None, **loop):
    """Return what the same training leaves behind without a trace; see ``Run.end``."""
    loop = Loop(**loop)
    model, inner, generator = _begun(run, loop, before, groups)
    for t in range(steps):
        loop.step(t, run, model, inner, generator)
    return _left(model, inner)


def _begun(run, loop, before, groups):
    model = run.task.model()
    inner = run.rule.made(groups(model) if groups else model.parameters())
    generator = torch.Generator().manual_seed(3)
    for t in range(-before, 0):
        loop.step(t, run, model, inner, generator)
    return model, inner, generator


def _left(model, inner):
    optimizers = [part.state_dict() for part in getattr(inner, "parts", [inner])]
    return copy.deepcopy((model.state_dict(), optimizers, torch.get_rng_state()))


def _buffer(kind, state, w):
    if hasattr(kind, "first"):
        return copy.deepcopy(kind.first(state, w.detach()))
    found = state.get("exp_avg", state.get("momentum_buffer"))
    return None if found is None else found.clone()


class _Parameter:
    """Every account of one parameter: of each visit, of history and of the regulariser."""

    def __init__(self, rule, before):
        self.rule, self.started = rule, before is not None
        kind = rule.kind
        self.accounts = {"history": Account(kind, before), "regulariser": Account(kind)}

    def forget_decay(self):
        """Count what decay left in the buffer as history."""
        history, decay = self.accounts["history"], self.accounts["regulariser"]
        if decay.buffer is not None:
            old = 0 if history.buffer is None else history.buffer
            history.buffer, decay.buffer = old + decay.buffer, None

    def moves(self, w, gradients, start, factor, numbers, had, penalty):
        """Return each account's move when the step's gradients come in, numbered from ``start``."""
        fresh = self.rule.kind is O.SGD and not self.started
        self.started |= numbers.get("momentum", 0) != 0
        apart, decay = shrinkage(self.rule.kind, numbers, had)
        sign = -1 if numbers.get("maximize") else 1
        zero = torch.zeros_like(w)
        inputs = dict.fromkeys(self.accounts, zero)
        inputs["regulariser"] = sign * factor * penalty + decay * w
        for k, g in enumerate(gradients):
            self.accounts[start + k] = Account(self.rule.kind)
            inputs[start + k] = sign * factor * g
        found = {
            key: account.move(inputs[key], numbers, had, fresh=fresh)
            for key, account in self.accounts.items()
        }
        found["regulariser"] = found["regulariser"] + apart * w
        return found


def moves(run, factor, window=None):
    """Yield each step's moves: by visit so far, of regulariser and history.

    Args:
        run: The run.
        factor: ``κ`` of each step, by parameter.
        window: Steps whose visits count as data; earlier ones are history.
    """
    steps, _ = run.logged
    window = window or range(len(steps))
    parameters, visits = {}, []
    for t, now in enumerate(steps):
        start = len(visits)
        visits += [(t, z) for z in now.step.batch_ids]
        named = {}
        for mine in parameters.values() if t == window.start else ():
            mine.forget_decay()
        for group in now.step.groups:
            for n in set(group.names) - now.step.without_gradient:
                w, rule = now.w[n], run.rule.of(n)
                mine = parameters.setdefault(n, _Parameter(rule, run.first.get(n)))
                numbers, rows = group.hyperparameters, [g[n] for g in now.gradients]
                if n in now.step.frozen:  # with the zero gradient that zero_grad may leave
                    rows = [0 * row for row in rows]
                known = (numbers, run.had[t].get(n, Had()), now.penalty.get(n, 0 * w))
                found = mine.moves(w, rows, start, factor[t][n], *known)
                for key, move in found.items():
                    early = isinstance(key, int) and visits[key][0] not in window
                    into = named.setdefault("history" if early else key, {})
                    into[n] = into.get(n, 0) + move
        if t in window:
            yield t, visits, named


def expected(run, factor, *, nodes, window=None, names=None):
    """Return scores ``(m, N)``, their scale, and per-step terms, straight from the definition.

    ``"earned"`` among the terms is ``(T, m, N)``: the scores by the step of the visit.

    Args:
        run: The run.
        factor: ``κ`` of each step, by parameter.
        nodes: Gauss-Legendre nodes along each step; 0 takes the gradient at its beginning.
        window: See ``moves``.
        names: Parameters whose products count.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes) if nodes else ([-1.0], [2.0])
    along = torch.tensor([*(1 + np.array(points)) / 2, 0.0, 1.0], dtype=torch.float64)
    scale = np.zeros((TEST, TRAIN))
    terms = {k: [] for k in ("data", "regulariser", "history", "slope", "measured")}
    steps, last = run.logged
    ends = [*(now.w for now in steps), last]
    earned = np.zeros((len(steps), TEST, TRAIN))
    for t, visits, named in moves(run, factor, window):
        delta = {n: w - ends[t + 1][n] for n, w in ends[t].items()}
        rows = {k: np.zeros(TEST) for k in terms}
        for j in range(TEST):
            gradients, values = _along(run, ends[t], delta, along, j)
            mean = {
                n: torch.einsum("k,k...->...", torch.tensor(weights) / 2, g[: len(weights)])
                for n, g in gradients.items()
                if names is None or n in names
            }
            norm = sum(float((q**2).sum()) for q in mean.values()) ** 0.5
            for key, move in named.items():
                product = _dot(mean, move)
                if isinstance(key, int):
                    visit, z = visits[key]
                    earned[visit, j, z] += product
                    scale[j, z] += norm * sum(float((v**2).sum()) for v in move.values()) ** 0.5
                    rows["data"][j] += product
                else:
                    rows[key][j] += product
            rows["slope"][j] = _dot(mean, delta)
            rows["measured"][j] = values[-2] - values[-1]
        for k, row in rows.items():
            terms[k].append(row)
    return earned.sum(0), scale, {k: np.stack(v) for k, v in terms.items()} | {"earned": earned}


def _along(run, w, delta, along, j):
    """Return gradients and values of φ at ``w - u Δ`` for each u, of one test example."""
    task, model, batch = run.task, run.model, run.task.collate([run.task.test[j]])

    def value(parameters):
        called = lambda *x: torch.func.functional_call(model, parameters, x)  # noqa: E731
        return (task.measure or task.loss)(called, batch)[0]

    at = {n: w[n] - torch.einsum("k,...->k...", along, delta[n]) for n in w}
    return torch.func.vmap(torch.func.grad_and_value(value))(at)


def _dot(q, move):
    return sum(float((q[n] * move[n]).sum()) for n in q if n in move)


def clip_factors(run, clip):
    """Return ``κ`` of each step from the definition: by the gradient's own norm."""
    found = []
    for now in run.logged[0]:
        rows, extra = now.gradients, now.penalty
        whole = {n: sum(row[n] for row in rows) + extra.get(n, 0) for n in rows[0]}
        norm = sum(float((g**2).sum()) for g in whole.values()) ** 0.5
        kappa = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        found.append(dict.fromkeys(whole, kappa))
    return found
