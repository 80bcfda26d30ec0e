r"""Gradients of every example's own loss, exact for every model, close to the cost of one pass.

Two ways, chosen for each parameter. *Covered*: ``readers`` know all operations that use it, and
the rows of their results are examples (see ``layout``). Then one backward to those results gives
every example's gradient without forming it. *Complete*: one backward for each ``ℓ_i`` over the
graph of the forward pass that was run, which is right for any layer, coupling or randomness.

Nothing is taken on trust: plans are proven (see ``plans``), and where plain gradients are at hand,
the parts are compared with them at every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from replay.gradients.complete import Complete
from replay.gradients.forms.dense import matrices
from replay.gradients.forms.form import Form
from replay.gradients.forms.per_example import PerExample
from replay.gradients.plans import Plans, key_of
from replay.gradients.proof.forward_pass import Pass, SpentGraph, gradient, run
from replay.gradients.proof.independence import Alone


class Engine:
    """Computes gradients of one model's examples.

    Args:
        audit: Passes between audits; 1 proves every pass.

    Attributes:
        overwritten: Where storages lie that hold other values later, the model's own: gradients
            that share them (of a layer whose input is a parameter) are copied.
    """

    def __init__(self, audit: int = 100) -> None:
        self._plans = Plans(audit)
        self._once: set[Any] = set()  # graphs that work for one backward pass only
        self.overwritten: frozenset[int] = frozenset()

    @property
    def paths(self) -> dict[str, str]:
        """By parameter, how the last pass went: ``"linear"``, ..., or ``"complete: "`` and why."""
        return self._plans.paths

    @property
    def steady(self) -> bool:
        """Whether how the last pass was read holds for all passes of the same graph."""
        return self._plans.steady

    @property
    def due(self) -> bool:
        """Whether a proof was asked for, and there was none yet."""
        return self._plans.due

    def audit(self) -> None:
        """Prove the next pass through every shape of graph, however few passes ago it was."""
        self._plans.audit()

    def of_batch(
        self,
        parameters: dict[str, Tensor],
        forward: Callable[[], Tensor],
        weights: Tensor,
        *,
        budget: int,
        where: str = "this pass",
    ) -> PerExample:
        """Return the gradients of ``c_i ℓ_i`` inside one real batch, coupled or not.

        Args:
            parameters: Those to differentiate, by name.
            forward: Runs the pass once, returns the losses ``(n,)`` with their graph.
            weights: ``c``, ``(n,)``.
            budget: Bytes that stored complete gradients may take; beyond it they are computed
                anew, in blocks, each time they are asked for.
            where: For messages.

        Raises:
            GradientError: An audit found that a plan proven before is no longer right, or parts do
                not add up to the plain gradient, even if each has a forward pass of its own.
        """
        found = self._run(parameters, forward, weights, where)
        return self._twice(found, partial(self._of_batch, budget=budget))

    def _of_batch(self, found: Pass, *, budget: int) -> PerExample:
        found, forms, total = self._plans.covered(found)
        forms = self._kept(forms)
        losses, parameters = found.losses.detach(), found.parameters
        rest = [name for name in total if name not in forms]
        if not rest:
            return PerExample(losses, forms, total)
        targets = [parameters[name] for name in rest]
        each = sum(target.numel() * max(4, target.element_size()) for target in targets)
        size = max(1, min(len(losses), budget // max(1, each)))
        complete = Complete(found, rest, total, size)
        if size < len(losses):
            return PerExample(losses, forms, total, tuple(rest), complete.blocks)
        for _, rows in complete.blocks():  # one block; the graph can go
            forms.update(_written_out(rows, parameters))
        return PerExample(losses, forms, total)

    def of_independent(
        self,
        parameters: dict[str, Tensor],
        forward: Callable[[], Tensor],
        forward_one: Callable[[int], Tensor],
        *,
        agree: Callable[[], bool] = lambda: False,
        where: str = "this pass",
    ) -> PerExample:
        """Return the gradients of examples that do not depend on each other (eval mode).

        Everything is stored, so that the model's parameters may change afterwards; there is no
        ``total``.

        Args:
            parameters: Those to differentiate, by name.
            forward: Runs all examples in one pass, returns the losses ``(n,)``.
            forward_one: Runs example i alone, returns ``(1,)``.
            agree: Asked, where gradients of an example alone differ, whether that is rounding.
            where: For messages.

        Raises:
            GradientError: An audit found that a plan proven before is no longer right, or that
                examples do depend on each other.
        """
        found = self._run(parameters, forward, None, where)
        alone = Alone(forward_one, agree, self._kept)
        return self._twice(found, partial(self._of_independent, alone=alone))

    def _of_independent(self, found: Pass, *, alone: Alone) -> PerExample:
        found, forms, _ = self._plans.covered(found, alone)
        forms, parameters = self._kept(forms), found.parameters
        losses = found.losses.detach()
        rest = [name for name in found.parameters if name not in forms]
        if rest:
            targets, rows = [parameters[name] for name in rest], []
            for i in range(len(losses)):
                with torch.enable_grad():
                    loss = alone.forward(i).sum()
                rows.append(gradient(loss, targets, retain=False))
            columns = zip(*rows, strict=True)
            stacked = {n: torch.stack(c) for n, c in zip(rest, columns, strict=True)}
            forms.update(_written_out(stacked, parameters))
        return PerExample(losses, forms, {})

    def _kept(self, forms: dict[str, Form]) -> dict[str, Form]:
        return {name: form.kept(self.overwritten) for name, form in forms.items()}

    def _run(
        self,
        parameters: dict[str, Tensor],
        forward: Callable[[], Tensor],
        weights: Tensor | None,
        where: str,
    ) -> Pass:
        found = run(parameters, forward, weights, where)
        known = self._once and key_of(found) in self._once
        return replace(found, once=True) if known else found

    def _twice(self, found: Pass, job: Callable[[Pass], PerExample]) -> PerExample:
        """Do a job; do it again where a graph works for one backward pass only, with many."""
        try:
            return job(found)
        except SpentGraph:
            self._once.add(key_of(found))
        return job(replace(found.anew(), once=True))


def _written_out(rows: dict[str, Tensor], parameters: dict[str, Tensor]) -> dict[str, Form]:
    return {name: matrices(found, parameters[name].shape) for name, found in rows.items()}
