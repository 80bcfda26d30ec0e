"""What a pass found at one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from replay.gradients.forms.per_example import PerExample
from replay.methods.method import Method
from replay.methods.table import METHODS
from replay.path.step_path import Split
from replay.path.test_values import Drop
from tracer.records import ID

TERMS = (  # "elsewhere" only where a part of the parameters was chosen
    *("data", "regulariser", "history", "elsewhere", "buffers", "rounding", "residual"),
    "measured",
)


QUADRATURE = ("split_error", "theta_inside", "gradients")
Row = dict[str, NDArray[Any]]  # of one step: (m,), terms (k, m), credits (b, m)


@dataclass(frozen=True)
class StepResult:
    """What a pass found at one step.

    Attributes:
        index: ``t``.
        ids: IDs of the occurrences, ``(b,)``.
        drop: Values of ``φ``.
        splits: The split of each method that has one.
        credits: By method, what each occurrence is credited with, float64 ``(b, m)``.
        restricted: Whether products were taken over a part of the parameters.
        snapshots: Gradients of the test examples at the states that are asked for
            and this step begins with (or, the last one, leads to).
    """

    index: int
    ids: list[ID]
    drop: Drop
    splits: dict[str, Split]
    credits: dict[str, Tensor]
    restricted: bool
    snapshots: dict[int, PerExample]

    def row(self) -> Row:
        """Return what tables keep of it."""
        walking = [METHODS[name] for name in self.credits]
        accounting = [method for method in walking if method.about.accounts]
        refining = [method.name for method in walking if method.refines]
        found = {
            **{f"credits/{name}": earned for name, earned in self.credits.items()},
            **{f"predicted/{m.name}": self.predicted(m) for m in accounting},
            **{f"terms/{m.name}": torch.stack([*self.terms(m.name).values()]) for m in accounting},
            **{name: getattr(self.splits[m], name) for m in refining for name in QUADRATURE},
            "before": self.drop.before,
            "after": self.drop.after,
        }
        return {name: values.numpy() for name, values in found.items()}

    def predicted(self, method: Method) -> Tensor:
        """Return a method's account of the drop, ``(m,)``."""
        if method.about.measured:
            return self.drop.measured
        split = self.splits.get(method.name)
        return self.credits[method.name].sum(0) if split is None else split.node.slope

    def terms(self, method: str) -> dict[str, Tensor]:
        """Return the terms of the completeness identity, each ``(m,)``."""
        zero = torch.zeros_like(self.drop.before)
        if method in self.splits:
            data, regulariser, history, rounding, *others = self.splits[method].node.parts
        else:
            data, regulariser, history, rounding = self.credits[method].sum(0), zero, zero, zero
            others = [zero] if self.restricted else []
        moved = self.drop.before - self.drop.moved
        explained = torch.stack([data, regulariser, history, rounding, *others]).sum(0)
        return {
            "data": data,
            "regulariser": regulariser,
            "history": history,
            **({"elsewhere": others[0]} if others else {}),
            "buffers": self.drop.moved - self.drop.after,
            "rounding": rounding,
            "residual": moved - explained,
            "measured": self.drop.measured,
        }
