"""Whether a run's steps can be divided among examples, or differentiated."""

from __future__ import annotations

from tracer.errors import UnsupportedRuleError
from tracer.log.read.run_log import RunLog
from tracer.records import each
from tracer.rules.rule import UpdateRule
from tracer.rules.table import RULES, refused
from tracer.rules.unsplit import reason

_OWN = (
    "or say how its steps are split, if they are a factor times a filter of gradients: "
    "Replay(rules=), docs/how-to/optimizers.md."
)
_ANY = "tracincp, tracin-sgd or the measured drops (Replay.drops)"


def require_division(log: RunLog, rule: UpdateRule | None, *, splits: bool, unrolls: bool) -> None:
    """Raise UnsupportedRuleError unless a run's steps can be taken as a question needs them.

    Args:
        log: The run.
        rule: How steps are split, if that is known.
        splits: Whether steps are to be divided among examples.
        unrolls: Whether they are to be differentiated.
    """
    name = str(log.metadata["update_rule"])
    made = f"the steps of {log.path} were made by {name}"
    if unrolls and (rule is None or not rule.smooth):
        smooth = [one for one, known in RULES.items() if known.smooth]
        raise UnsupportedRuleError(
            f"{made}, whose update unrolled cannot differentiate; it can those of "
            f"{', '.join(smooth)}.\n"
            "  1. Take counterfactual runs, which any optimizer will do for: "
            "Replay.leave_one_out, Replay.subsets;\n"
            f"  2. or ask for {_ANY}."
        )
    if splits and rule is None:
        used = "".join(f" with {o}" for one in each(name) for o in refused(one, log.ever_used))
        raise UnsupportedRuleError(
            f"{made}{used}{reason(name)}, whose update cannot be split; those of "
            f"{', '.join(RULES)} can, and some of other packages.\n"
            f"  1. Ask for {_ANY}, which work for every optimizer; verify compares its "
            f"gradients;\n  2. {_OWN}"
        )
