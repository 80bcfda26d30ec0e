r"""Plans that were proven: each pass is read by one, or proven.

The first pass through every shape of graph, every ``audit``-th pass, and the next one after
``audit()`` prove their plan (see ``proof``). So does a pass whose parts do not add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from replay.gradients.forms.form import Form, is_finite
from replay.gradients.proof.follow import Read, chosen, follow
from replay.gradients.proof.forward_pass import Pass, Plan
from replay.gradients.proof.independence import Alone
from replay.gradients.proof.plan import COMPLETE, NO_SUM, Proof, is_rounding, prove_plan
from replay.gradients.proof.steady import is_steady
from tracer.errors import GradientError

ONCE = ", with a forward pass for each backward pass"
_MOST = 256  # graphs whose plans are kept: lengths and depths may differ at every pass


@dataclass
class _Proven:
    """A plan, how it reads parameters, and how many passes were read by it since its proof."""

    plan: Plan
    paths: dict[str, str]
    followed: int = 0
    due: bool = False


class Plans:
    """The plans of one model's passes.

    Args:
        audit: Passes between audits; 1 proves every pass.

    Attributes:
        known: By graph, the ones used last at the end.
        paths: By parameter, how the last pass went: ``"linear"``, ``"bias"``,
            ``"convolution"``, ..., or ``"complete: "`` and the reason.
        steady: Whether the last pass was read by a plan that holds for all passes of its graph,
            whatever data and parameters are.
        due: Whether a proof was asked for, and no pass was taken since.
    """

    def __init__(self, audit: int) -> None:
        self._audit = audit
        self.known: dict[Any, _Proven] = {}
        self.paths: dict[str, str] = {}
        self.steady = self.due = False

    def audit(self) -> None:
        """Prove the next pass through every shape of graph, however few passes ago it was."""
        self.due = True
        for known in self.known.values():
            known.due = True

    def covered(
        self, found: Pass, alone: Alone | None = None
    ) -> tuple[Pass, dict[str, Form], dict[str, Tensor]]:
        """Return gradients of covered parameters; plain gradients of all if none runs alone.

        Args:
            found: The pass. One comes back: it may have been run again.
            alone: Examples run alone, if they do not depend on each other.

        Raises:
            SpentGraph: The graph works for one backward pass only.
            GradientError: An audit found something.
        """
        totals, key, self.due = alone is None, key_of(found), False
        known = self.known.pop(key, None)
        ways = None if known is None else chosen(found, known.plan)
        if known is None or ways is None:  # of other sizes: this pass is proven on its own
            return found, *self._proven(found, None, alone)
        if known.due or known.followed >= self._audit - 1:
            return found, *self._proven(found, known, alone)
        read = follow(found, ways, totals=totals)
        if read is None:
            found = found.anew()
            return found, *self._proven(found, None, alone)
        known.followed += 1
        self.known[key], self.paths, self.steady = known, known.paths, True
        return found, *read

    def _proven(self, found: Pass, known: _Proven | None, alone: Alone | None) -> Read:
        """Return what the proof of a pass gives, and keep its plan; ``known`` is audited."""
        proof = prove_plan(found)
        # where data may say another thing at each pass, a proof says nothing of the next
        lasting = self.steady = proof.certain and is_steady(found, proof.ways)
        if alone is not None:  # which runs the model again
            proof = replace(proof, forms=alone.keep(proof.forms))
            alone.check(found, proof.forms, found.where)
        if known is not None:
            read = self._audited(found, known, proof, totals=alone is None)
            if read is not None:
                return read
        self.paths = {name: path + ONCE * found.once for name, path in proof.paths.items()}
        if lasting:
            self.known[key_of(found)] = _Proven(proof.plan, self.paths)
            if len(self.known) > _MOST:
                del self.known[next(iter(self.known))]
        return proof.forms, proof.total

    def _audited(self, found: Pass, known: _Proven, proof: Proof, *, totals: bool) -> Read | None:
        """Compare a plan with a later proof; return what it reads if nothing can be proven."""
        lost = _differing(known.plan, proof) if known.followed else {}
        if totals:  # every pass before did add up
            lost = {name: why for name, why in lost.items() if why != NO_SUM}
        vague = not all(map(is_finite, proof.total.values()))
        if not vague and not lost:
            return None
        ways = chosen(found, known.plan)
        read = None if ways is None else follow(found, ways, totals=totals, retain=True)
        if vague:
            return read
        if read is None or not is_rounding(found, {name: read[0][name] for name in lost}):
            raise GradientError(_message(*lost.popitem(), found.where, known.followed))
        self.paths = known.paths  # but the next pass is proven
        return read


def key_of(found: Pass) -> Any:
    """Return what passes have in common that one plan may be right for."""
    return found.graph.signature, len(found.losses) == 1


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
