"""Whether a replay can take steps of an optimizer again: its class is made from its groups."""

from __future__ import annotations

import inspect

from torch.optim import Optimizer

from tracer.errors import TracingError
from tracer.wrapper.snapshot_choice import DENSE, SnapshotChoice

_LATER = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def require_class(choice: SnapshotChoice, optimizer: Optimizer) -> SnapshotChoice:
    """Return where snapshots stand, once it is known whether the steps between can be taken again.

    Args:
        choice: As asked for.
        optimizer: Takes the steps.

    Raises:
        TracingError: They cannot, for certain, and it was asked for.
    """
    why = None if choice.is_dense else _why_not(optimizer)
    if why is None:
        return choice
    if choice.why:  # "auto"
        return SnapshotChoice(DENSE, f" ({why}, so no replay takes its steps again)")
    raise TracingError(
        f"snapshot_every={choice.asked!r} has a replay take steps again, which it cannot: {why}.\n"
        "  1. Pass snapshot_every=1: the log then has the parameters of every step;\n"
        "  2. or define the class at the top of a module, with nothing but hyperparameters of its "
        "groups as arguments, or defaults."
    )


def _why_not(optimizer: Optimizer) -> str | None:
    """Return why no replay can make this optimizer again; None if one may."""
    kind = type(optimizer)
    if "." in kind.__qualname__:
        return f"the optimizer's class {kind.__qualname__} is defined inside another thing"
    _, _, *known = inspect.signature(kind.__init__).parameters.values()  # self, params
    wanted = [one.name for one in known if one.default is one.empty and one.kind not in _LATER]
    for name in wanted:
        if any(name not in group for group in optimizer.param_groups):
            return (
                f"{kind.__qualname__} wants the argument {name!r}, which its parameter groups do "
                "not hold"
            )
    return None
