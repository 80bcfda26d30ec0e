r"""The derivative of the final test values by what happened at each step, backwards through all.

    λ_T = ∇φ(w_T),      (λ_t, ā_t) = (∂(w', state', β') / ∂((w, state, β), G))ᵀ λ_{t+1}

``λ`` is of parameters, the optimizer's state and BatchNorm's running statistics together, one of
each for every test example. ``ā_t`` is the cotangent of the step's gradient ``G``: occurrence i,
whose coefficient is scaled by ``s_i``, moves ``φ(w_T)`` by ``⟨ā_t, c_i g_i⟩`` for each unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from replay.evaluate.checked import in_dtype
from replay.evaluate.running_statistics import Statistics
from replay.evaluate.second_derivatives import SecondDerivatives
from replay.evaluate.second_pass import Vectors
from replay.evaluate.second_proof import prove
from replay.evaluate.state import State, Transition
from replay.evaluate.test_side import Examples
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms import products
from replay.steps.jacobian import GRADIENT, W, before, jacobian
from replay.steps.limits import through_clipping
from replay.steps.replayed_step import ReplayedStep
from replay.steps.tape import Tape
from tracer.errors import NonFiniteError


class Unrolling:
    """Goes backwards through steps, for m test examples.

    Args:
        tape: The steps, with the optimizer before each.
        examples: The test examples.
    """

    def __init__(self, tape: Tape, examples: Examples) -> None:
        assert tape.rule is not None
        self._rule, self._steps, self._examples = tape.rule, tape.window, examples
        self._names, self._test = tape.trained(), examples.models.test
        models = tape.models
        self._task, self._value, self._device = tape.task, models.value, models.device
        self._second = SecondDerivatives(tape.task, models.train, self._names, models.device)
        self._parameters: dict[str, Vectors] = {}  # by parameter: of itself, of its state
        self._buffers: Vectors = {}
        self._proved: set[tuple[int, ...]] = set()  # who took steps that were compared

    def state(self) -> dict[str, Any]:
        """Return ``λ`` after the steps so far, as tensors."""
        names = list(self._names)
        return {"names": names, "parameters": self._parameters, "buffers": self._buffers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps whose ``state`` it is."""
        self._names = state["names"]
        self._parameters, self._buffers = state["parameters"], state["buffers"]

    def credits(
        self, replayed: ReplayedStep, trained: TrainedStep, names: frozenset[str] | None
    ) -> Tensor:
        """Return what each occurrence of a step is credited with, ``(b, m)``; go one step back.

        Args:
            replayed: The step, with the optimizer before it; steps come in descending order.
            trained: Its gradients.
            names: Parameters whose products count; None is all.
        """
        now = replayed.transition
        if not self._parameters:
            self._begin(now.after, f"after {now.name}")
        cotangent = self._through_rule(replayed, trained)
        found = self._products(trained, cotangent, names)
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"{now.name}: the derivative of the final test values by this step is not finite: "
                "the run amplifies what is changed here beyond all numbers. Remedies:\n"
                "  1. begin the window later (steps=), where derivatives are smaller;\n"
                "  2. or compute in float64 (dtype=torch.float64, --dtype float64)."
            )
        if now.step.index > self._steps.start:
            self._prove(now)
            parts = self._second.pulled_back(now, cotangent, self._buffers)
            self._second.require_logged(now)
            for name in self._names:
                if name in parts:
                    self._parameters[name][W] += parts.pop(name)
            self._buffers = parts
        return found.cpu()

    def _prove(self, now: Transition) -> None:
        """Compare second derivatives with differences, at the first and the last step of a walk.

        Of several optimizers that take turns, the first step of each is compared.
        """
        took = tuple(now.step.groups_by_optimizer)
        if now.step.index != self._steps.start + 1 and took in self._proved:
            return
        self._proved.add(took)
        if self._value.dtype == torch.float64:  # differences in less say little
            names = self._names
            with in_dtype(self._value.dtype, "task.loss", now.name):
                prove(self._task, self._value, names, now, self._device)

    def _begin(self, final: State, where: str) -> None:
        """Take the gradients of the test values at the end of the window."""
        test, m = self._examples.gradients(final, where), len(self._examples)
        for name in self._names:
            w = self._test.parameters[name]
            if name in test.names:
                q = test.rows(name, slice(0, m)).clone()
            else:
                q = torch.zeros(m, w.numel(), dtype=w.dtype, device=w.device)
            self._parameters[name] = {W: q if q.dtype.itemsize > 2 else q.float()}
        self._buffers = self._of_buffers(final, where)

    def _of_buffers(self, final: State, where: str) -> Vectors:
        bound, m = self._test, len(self._examples)
        bound.load_for_eval(final)
        statistics = Statistics(bound.module)
        if not statistics.before:
            return {}
        leaves = list(statistics.before.values())
        with torch.enable_grad(), statistics.followed():
            losses = self._examples.tracked(bound, list(range(m)), where)
            rows = [
                torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
                for loss in losses
            ]
        return {
            name: torch.stack([torch.zeros_like(leaf) if g is None else g for g in column])
            for name, leaf, column in zip(
                statistics.before, leaves, zip(*rows, strict=True), strict=True
            )
        }

    def _through_rule(self, replayed: ReplayedStep, trained: TrainedStep) -> Vectors:
        """Go back through the update of every parameter; return ``ā`` of its gradient."""
        state, w = replayed.optimizer, replayed.transition.before.parameters
        assert state is not None
        step = replayed.transition.step
        logged = step.numbers
        cotangent, gradients = {}, {}
        for name, factor in replayed.factors.items():
            if name not in self._parameters:
                continue
            after = self._parameters[name]
            like = after[W]
            g = _gradient(trained, name, like)
            numbers = state.as_tensors(name, logged[name])
            rule = self._rule.of(step.optimizers[name])
            now = before(rule, name, numbers, state, w[name].to(like.device), g)
            found = jacobian(rule, now, numbers, factor).transposed(after)
            pulled = found.pop(GRADIENT, None)
            self._parameters[name] = {W: torch.zeros_like(like)} | found
            cotangent[name] = torch.zeros_like(like) if pulled is None else pulled
            gradients[name] = g
        through_clipping(replayed, gradients, cotangent)
        return cotangent

    def _products(
        self, trained: TrainedStep, cotangent: Vectors, names: frozenset[str] | None
    ) -> Tensor:
        """Return ``−⟨ā, c_i g_i⟩`` of every occurrence, float64 ``(b, m)``."""
        chosen = {n: -c for n, c in cotangent.items() if names is None or n in names}
        if not chosen:  # the step moved none of them
            sizes = len(trained.ids), len(self._examples)
            return torch.zeros(*sizes, dtype=torch.float64, device="cpu")
        return torch.cat([products.with_vectors(batch, chosen) for batch in trained.batches])


def _gradient(trained: TrainedStep, name: str, like: Tensor) -> Tensor:
    """Return ``G`` of a parameter, flat: of losses and penalty."""
    parts = [s[name].flatten() for s in (trained.gradient, trained.penalty) if name in s]
    if not parts:
        return torch.zeros_like(like[0])
    return sum((part.to(like) for part in parts[1:]), parts[0].to(like))
