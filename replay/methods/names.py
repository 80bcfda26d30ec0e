"""What the methods are called and what they are, in the order of the tables; imports no torch.

Help, pages and figures need no more of a method. How each computes is in the file of its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """What is said of one method.

    Attributes:
        name: What users call it.
        summary: What it is, in one line.
        measured: What it accounts for is each step's measured drop, not a prediction of it.
        first_order: It predicts that drop from gradients at the beginning of the step.
        accounts: Its scores are parts of each step's drop, by the completeness identity.
        default: It is computed if no methods are named.
        claim: What kind of statement its scores are, as results say it.
    """

    name: str
    summary: str
    measured: bool = False
    first_order: bool = False
    accounts: bool = True
    default: bool = True
    claim: str = ""


TRACIN = Description(
    "tracin",
    "the exact first order of every step that happened, whatever the optimizer",
    first_order=True,
    claim="accounts for the path that was taken, to first order",
)
IDEAL = Description(
    "ideal",
    "each step's measured drop, divided among its examples along the step",
    measured=True,
    claim="accounts for the path that was taken, as measured",
)
TRACINCP = Description(
    "tracincp", "the paper's checkpoint heuristic, for every training example", accounts=False
)
PAPER = Description(
    "tracin-sgd",
    "the paper's formula on any run: what one gets by ignoring the optimizer",
    default=False,
)
UNROLLED = Description(
    "unrolled",
    "the exact first derivative of what would have happened without an example",
    accounts=False,
    default=False,
    claim="the first derivative of the counterfactual run; its scores do not add up to a drop",
)
NAMES = {one.name: one for one in (TRACIN, IDEAL, TRACINCP, PAPER, UNROLLED)}
DEFAULT = tuple(name for name, one in NAMES.items() if one.default)


def reference(names: Iterable[str]) -> str:
    """Return the method that others are compared with: one that divides what was measured.

    Where there is none, it is the first.
    """
    known = list(names)
    return next((name for name in known if name in NAMES and NAMES[name].measured), known[0])
