"""The optimizer's own state before a step, for rules that cannot do without it."""

from __future__ import annotations

from replay.evaluate.state import Optimizer, States
from tracer.errors import LogError, UnsupportedRuleError

_DIFFER = "steps taken again did not lead to it, bit for bit"


def recorded_state(states: States, t: int) -> Optimizer:
    """Return the optimizer before step ``t`` as it was in the run: on file, or taken again.

    Raises:
        LogError: It is neither.
    """
    try:
        found, why = states.recorded(t), _DIFFER
    except UnsupportedRuleError as error:  # its class is not imported, say
        found, why = None, str(error).partition("\n")[0]
    if found is not None:
        return found
    log = states.log
    raise LogError(
        f"{log.path} holds no full state before step {t}, and the steps of "
        f"{log.metadata['update_rule']} are split by what its state was.\n"
        f"Without it on file they are taken again, and that failed: {why}.\n"
        "  1. Trace the run with TracingOptimizer(..., snapshot_every=1, state_every=1);\n"
        "  2. import the optimizer's module in the task's file, and replay with the threads and "
        "versions of the run, so that its steps can be taken again;\n"
        "  3. or ask for tracincp, tracin-sgd or the measured drops (Replay.drops)."
    )
