"""Whether a run's steps can be divided among examples, or differentiated."""

from __future__ import annotations

from tracer.errors import UnsupportedRuleError
from tracer.log.read.run_log import RunLog
from tracer.records import each, together
from tracer.rules.rule import UpdateRule
from tracer.rules.table import RULES, refused
from tracer.rules.unsplit import reason

_OWN = (
    "or say how its steps are split, if they are a factor times a filter of gradients: "
    "Replay(rules=), docs/how-to/optimizers.md."
)
_ANY = "tracincp, tracin-sgd or the measured drops (Replay.drops)"


def require_sparse(where: str, name: str, rule: UpdateRule) -> None:
    """Raise UnsupportedRuleError if it is unknown how a rule takes a parameter's sparse gradient.

    Args:
        where: Which step.
        name: The parameter.
        rule: Its rule.
    """
    if not rule.sparse:
        takes = [one for one, known in RULES.items() if known.sparse]
        raise UnsupportedRuleError(
            f"{where}: the gradient of {name!r} is sparse, and what its optimizer does with sparse "
            f"gradients cannot be split; those of {', '.join(takes)} can.\n"
            "  1. Build the model with sparse=False;\n"
            f"  2. ask for {_ANY};\n"
            "  3. or set sparse = True in a rule of your own that moves rows as its optimizer does."
        )


def require_division(log: RunLog, rule: UpdateRule | None, *, splits: bool, unrolls: bool) -> None:
    """Raise UnsupportedRuleError unless a run's steps can be taken as a question needs them.

    Args:
        log: The run.
        rule: How steps are split, if that is known.
        splits: Whether steps are to be divided among examples.
        unrolls: Whether they are to be differentiated.
    """
    name = str(log.metadata["update_rule"])
    if unrolls and (rule is None or not rule.smooth):
        smooth = [one for one, known in RULES.items() if known.smooth]
        raise UnsupportedRuleError(
            f"the steps of {log.path} were made by {name}, whose update unrolled cannot "
            f"differentiate; it can those of {', '.join(smooth)}.\n"
            "  1. Take counterfactual runs, which any optimizer will do for: "
            "Replay.leave_one_out, Replay.subsets;\n"
            f"  2. or ask for {_ANY}."
        )
    if splits and rule is None:
        why = {one: refused(one, log.ever_used)[:1] for one in each(name)}
        names = together(" with ".join([one, *why[one]]) + reason(one) for one in why)
        raise UnsupportedRuleError(
            f"the steps of {log.path} were made by {names}, whose update cannot be split; those of "
            f"{', '.join(RULES)} can, and some of other packages.\n"
            f"  1. Ask for {_ANY}, which work for every optimizer; verify compares its "
            f"gradients;\n  2. {_OWN}"
        )
