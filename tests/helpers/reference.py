"""Naive float64 reference, straight from the definitions, by another route than the package.

Products ``⟨g_i, v⟩`` are directional derivatives of ``ℓ_i`` (forward-mode differentiation of the
real batch's forward pass), not products of gradients; ``∇φ`` is taken for one example at a time;
``q̄`` is a 24-node Gauss-Legendre average. Nothing here imports ``replay`` beyond the task.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import functional_call

from replay.task import Task
from tracer import RunLog

TERMS = ("data", "regulariser", "history", "buffers", "rounding", "residual", "measured")


def double(batch):
    """Return a batch with float64 in place of float32."""
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return type(batch)(double(part) for part in batch)


class _Model:
    """The task's model as a function of a parameter and a buffer dictionary."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.module = task.model().double()

    def __call__(self, state, function, batch, *, train):
        self.module.train(train)
        module = self.module

        def call(*inputs):
            return functional_call(module, state, inputs)

        call.parameters = lambda: iter(state.values())
        return function(call, batch)


def test_gradient(task: Task, parameters, buffers, identity):
    """Return φ and ∇φ of one test example alone, eval mode."""
    function = task.measure or task.loss
    leaves = {n: p.double().clone().requires_grad_(True) for n, p in parameters.items()}
    state = {**leaves, **_copied(buffers)}
    batch = double(task.collate([task.test[identity]]))
    value = _Model(task)(state, function, batch, train=False)[0]
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    gradients = {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(leaves.items(), found, strict=True)
    }
    return value.item(), gradients


def _loss(task: Task, micro):
    """Return the loss of a step, of those of several optimizers."""
    return task.loss if callable(task.loss) else task.loss[micro.optimizers[0]]


def train_derivatives(task: Task, log: RunLog, t: int, direction):
    """Return ``c_i d/dε ℓ_i(w_t + ε direction)`` for every occurrence i of step t, ``(b,)``."""
    model, found = _Model(task), []
    buffers = _copied(log.buffers(t))
    for micro in log.step(t).micro_batches:
        if micro.random_state is not None:
            torch.set_rng_state(micro.random_state.cpu)
        batch = double(task.collate([task.train[i] for i in micro.ids]))
        with forward_ad.dual_level():
            state = {
                n: forward_ad.make_dual(p.double(), direction[n]) if n in direction else p.double()
                for n, p in log.parameters(t).items()
            }
            losses = model({**state, **buffers}, _loss(task, micro), batch, train=True)
            tangent = forward_ad.unpack_dual(losses).tangent
            tangent = torch.zeros_like(losses) if tangent is None else tangent
            found.append(micro.coefficients * tangent.detach())
        buffers = {n: forward_ad.unpack_dual(b).primal.detach() for n, b in buffers.items()}
    return torch.cat(found)


def train_gradients(task: Task, log: RunLog, t: int):
    """Return ``c_i g_i`` of every occurrence of step t, one backward each; ``Σ`` is the step's."""
    model, rows = _Model(task), []
    buffers = _copied(log.buffers(t))
    for micro in log.step(t).micro_batches:
        leaves = {n: p.double().requires_grad_(True) for n, p in log.parameters(t).items()}
        if micro.random_state is not None:
            torch.set_rng_state(micro.random_state.cpu)
        batch = double(task.collate([task.train[i] for i in micro.ids]))
        losses = model({**leaves, **buffers}, _loss(task, micro), batch, train=True)
        for loss, coefficient in zip(losses, micro.coefficients, strict=True):
            found = torch.autograd.grad(
                coefficient * loss, list(leaves.values()), retain_graph=True, allow_unused=True
            )
            rows.append(
                {
                    n: torch.zeros_like(p) if g is None else g.to_dense()
                    for (n, p), g in zip(leaves.items(), found, strict=True)
                }
            )
        buffers = {n: b.detach() for n, b in buffers.items()}
    return rows


@dataclass
class Reference:
    """Scores by (test row, train ID), drops and terms per step, and the scale of the products."""

    scores: dict = field(default_factory=dict)
    scale: dict = field(default_factory=dict)
    drops: dict = field(default_factory=dict)
    terms: dict = field(default_factory=dict)


def influence(task: Task, log: RunLog, test_ids, *, nodes=24) -> Reference:
    """Return ``tracin`` and ``ideal`` of a plain SGD run."""
    steps, m = len(log), len(test_ids)
    result = Reference()
    points, weights = np.polynomial.legendre.leggauss(nodes)
    rules = {"tracin": [(0.0, 1.0)], "ideal": list(zip((1 + points) / 2, weights / 2, strict=True))}
    for method, rule in rules.items():
        result.scores[method], result.scale[method] = {}, {}
        result.drops[method] = np.zeros((steps, m))
        result.terms[method] = {term: np.zeros((steps, m)) for term in TERMS}
        for t in range(steps):
            for j, identity in enumerate(test_ids):
                _one_step(task, log, t, j, identity, rule, method, result)
    return result


def _one_step(task, log, t, j, identity, rule, method, result):
    step, w, after = log.step(t), log.parameters(t), log.parameters(t + 1)
    moved = {n: w[n].double() - after[n].double() for n in w}
    mean = {n: torch.zeros_like(d) for n, d in moved.items()}
    for u, weight in rule:
        point = {n: w[n].double() - u * moved[n] for n in w}
        for n, g in test_gradient(task, point, log.buffers(t), identity)[1].items():
            mean[n] += weight * g
    active = {
        n: group.hyperparameters
        for group in step.groups
        for n in group.names
        if n not in step.without_gradient and n not in step.frozen
    }
    direction = {n: active[n]["lr"] * mean[n] for n in active}
    shares = train_derivatives(task, log, t, direction)
    gradients = train_gradients(task, log, t)
    size = sum(float((v**2).sum()) for v in direction.values()) ** 0.5
    for z, share, g in zip(step.batch_ids, shares, gradients, strict=True):
        norm = sum(float((v**2).sum()) for v in g.values()) ** 0.5
        scores, scale = result.scores[method], result.scale[method]
        scores[j, z] = scores.get((j, z), 0.0) + share.item()
        scale[j, z] = scale.get((j, z), 0.0) + size * norm
    penalty = penalty_gradient(task, w)
    data = {n: active[n]["lr"] * sum(g[n] for g in gradients) for n in active}
    pull = {
        n: active[n]["lr"] * (active[n]["weight_decay"] * w[n].double() + penalty.get(n, 0))
        for n in active
    }
    value = {
        name: test_gradient(task, parameters, buffers, identity)[0]
        for name, parameters, buffers in (
            ("before", w, log.buffers(t)),
            ("moved", after, log.buffers(t)),
            ("after", after, log.buffers(t + 1)),
        )
    }
    slope = _dot(mean, moved)
    terms = result.terms[method]
    terms["data"][t, j] = _dot(mean, data)
    terms["regulariser"][t, j] = _dot(mean, pull)
    terms["buffers"][t, j] = value["moved"] - value["after"]
    terms["rounding"][t, j] = slope - _dot(mean, data) - _dot(mean, pull)
    terms["residual"][t, j] = value["before"] - value["moved"] - slope
    terms["measured"][t, j] = value["before"] - value["after"]
    result.drops[method][t, j] = slope if method == "tracin" else terms["measured"][t, j]


def tracincp(task: Task, log: RunLog, test_ids, train_ids, checkpoints):
    """Return ``Σ_k η ⟨∇φ(w_k, z'), ∇ℓ(w_k, z)⟩``, both sides in eval mode, ``(m, N)``."""
    scores = np.zeros((len(test_ids), len(train_ids)))
    swapped = Task(task.model, task.loss, task.train, task.train, collate=task.collate)
    for k in checkpoints:
        step = log.step(min(k, len(log) - 1))
        rate = {n: g.hyperparameters["lr"] for g in step.groups for n in g.names}
        rate = {n: lr for n, lr in rate.items() if n not in step.frozen}
        w, buffers = log.parameters(k), log.buffers(k)
        train = [test_gradient(swapped, w, buffers, z)[1] for z in train_ids]
        for j, identity in enumerate(test_ids):
            q = test_gradient(task, w, buffers, identity)[1]
            for k_, g in enumerate(train):
                scores[j, k_] += sum(rate[n] * float((q[n] * g[n]).sum()) for n in rate)
    return scores


def penalty_gradient(task, parameters):
    """Return the gradient of the task's penalty, by parameter."""
    if task.penalty is None:
        return {}
    module = task.model().double()
    module.load_state_dict({n: p.double() for n, p in parameters.items()}, strict=False)
    names = dict(module.named_parameters())
    found = torch.autograd.grad(task.penalty(module), list(names.values()), allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def _dot(left, right):
    return sum((left[n] * right[n]).sum().item() for n in right)


def _copied(buffers):
    return {
        n: b.double().clone() if b.is_floating_point() else b.clone() for n, b in buffers.items()
    }
