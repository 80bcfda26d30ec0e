r"""Gradients of every example's own loss, exact for every model, close to the cost of one pass.

Two ways, chosen for each parameter. *Covered*: ``readers`` know all operations that use it, and
the rows of their results are examples (see ``layout``). Then one backward to those results gives
every example's gradient without forming it. *Complete*: one backward for each ``ℓ_i`` over the
graph of the forward pass that was run, which is right for any layer, coupling or randomness.

Nothing is taken on trust: the first pass through every shape of graph, every ``audit``-th pass, and
the next one after ``audit()`` prove their plan (see ``proof``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from replay.gradients.forms.dense import matrices
from replay.gradients.forms.form import Form, is_finite
from replay.gradients.forms.per_example import Blocks, PerExample
from replay.gradients.proof.follow import follow
from replay.gradients.proof.forward_pass import Pass, Plan, gradient, run
from replay.gradients.proof.independence import Alone
from replay.gradients.proof.plan import COMPLETE, Proof, is_rounding, prove_plan
from replay.gradients.proof.steady import is_steady
from tracer.errors import GradientError

_MOST = 256  # graphs whose plans are kept: lengths and depths may differ at every pass


@dataclass
class _Proven:
    """A plan, how it reads parameters, and how many passes were read by it since its proof."""

    plan: Plan
    paths: dict[str, str]
    followed: int = 0
    due: bool = False


class Engine:
    """Computes gradients of one model's examples.

    Args:
        audit: Passes between audits; 1 proves every pass.

    Attributes:
        paths: By parameter, how the last pass went: ``"linear"``, ``"bias"``,
            ``"convolution"``, ..., or ``"complete: "`` and the reason.
        overwritten: Where storages lie that hold other values later, the model's own: gradients
            that share them (of a layer whose input is a parameter) are copied.
    """

    def __init__(self, audit: int = 100) -> None:
        self._audit = audit
        self._plans: dict[Any, _Proven] = {}  # by graph, the ones used last at the end
        self.paths: dict[str, str] = {}
        self.overwritten: frozenset[int] = frozenset()

    def audit(self) -> None:
        """Prove the next pass through every shape of graph, however few passes ago it was."""
        for known in self._plans.values():
            known.due = True

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
            GradientError: An audit found that a plan proven before is no longer right.
        """
        found = run(parameters, forward, weights)
        forms, total = self._covered(found, where)
        forms = self._kept(forms)
        losses = found.losses.detach()
        rest = [name for name in total if name not in forms]
        if not rest:
            return PerExample(losses, forms, total)
        targets = [parameters[name] for name in rest]
        each = sum(target.numel() * max(4, target.element_size()) for target in targets)
        size = max(1, min(len(losses), budget // max(1, each)))

        def blocks() -> Blocks:
            for start in range(0, len(losses), size):
                rows = slice(start, min(start + size, len(losses)))
                own = [found.own(i, rest) for i in range(rows.start, rows.stop)]
                yield rows, {name: torch.stack([one[name] for one in own]) for name in rest}

        if size < len(losses):
            return PerExample(losses, forms, total, tuple(rest), blocks)
        for _, rows in blocks():  # one block; the graph can go
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
        found = run(parameters, forward, None)
        forms, _ = self._covered(found, where, Alone(forward_one, agree))
        forms = self._kept(forms)
        losses = found.losses.detach()
        rest = [name for name in found.parameters if name not in forms]
        if rest:
            targets, rows = [parameters[name] for name in rest], []
            for i in range(len(losses)):
                with torch.enable_grad():
                    loss = forward_one(i).sum()
                rows.append(gradient(loss, targets, retain=False))
            columns = zip(*rows, strict=True)
            stacked = {n: torch.stack(c) for n, c in zip(rest, columns, strict=True)}
            forms.update(_written_out(stacked, parameters))
        return PerExample(losses, forms, {})

    def _kept(self, forms: dict[str, Form]) -> dict[str, Form]:
        return {name: form.kept(self.overwritten) for name, form in forms.items()}

    def _covered(
        self, found: Pass, where: str, alone: Alone | None = None
    ) -> tuple[dict[str, Form], dict[str, Tensor]]:
        """Return gradients of covered parameters; plain gradients of all if none runs alone."""
        totals = alone is None
        key = (found.graph.signature, len(found.losses) == 1)
        known = self._plans.pop(key, None)
        if known is not None and not known.due and known.followed < self._audit - 1:
            read = follow(found, known.plan, totals=totals)
            if read is not None:
                known.followed += 1
                self._plans[key], self.paths = known, known.paths
                return read
            known = None  # of other sizes; this pass is proven on its own
        proof = prove_plan(found)
        # where data may say another thing at each pass, a proof says nothing of the next
        lasting = proof.certain and is_steady(found, proof.plan)
        if alone is not None:  # which runs the model again
            proof = replace(proof, forms=self._kept(proof.forms))
            alone.check(found, proof.forms, where)
        if known and not all(map(is_finite, proof.total.values())):  # there is nothing to prove
            return follow(found, known.plan, totals=totals) or (proof.forms, proof.total)
        lost = {} if known is None or not known.followed else _differing(known.plan, proof)
        if known is not None and lost:
            read = follow(found, known.plan, totals=totals, retain=True)
            if read is None or not is_rounding(found, {n: read[0][n] for n in lost}):
                raise GradientError(_message(*lost.popitem(), where, known.followed))
            self.paths = known.paths  # but the next pass is proven
            return read
        self.paths = proof.paths
        if lasting:
            self._plans[key] = _Proven(proof.plan, proof.paths)
            if len(self._plans) > _MOST:
                del self._plans[next(iter(self._plans))]
        return proof.forms, proof.total


def _differing(plan: Plan, proof: Proof) -> dict[str, str]:
    """Return the parameters that a plan reads and a later proof does not read alike, and why."""
    return {
        name: proof.paths.get(name, "").removeprefix(COMPLETE) or "another layout"
        for name, choices in plan.items()
        if name not in proof.plan or (proof.certain and proof.plan[name] != choices)
    }


def _message(name: str, why: str, where: str, passes: int) -> str:
    return (
        f"{where}: the gradients of {name!r} were proven earlier in the run and are not right any "
        f"more ({why}), within the last {passes} passes: what examples do to each other depends on "
        "data or parameters here. Prove every pass: audit=1 (--audit 1)."
    )


def _written_out(rows: dict[str, Tensor], parameters: dict[str, Tensor]) -> dict[str, Form]:
    return {name: matrices(found, parameters[name].shape) for name, found in rows.items()}
