"""What was traced and how it was computed, and whether every step is proved."""

from __future__ import annotations

import numpy as np

from replay.report.study import Study
from replay.results.influence import Influence
from replay.results.summary import number, said_of_checkpoints, said_of_threads

_SMALL = 1e-3  # of the measured drops: rounding below is that of float32


def facts(influence: Influence) -> dict[str, str]:
    """Return what was computed, in rows."""
    told = influence.attributes
    rows = {
        "run": f"{told.get('log')}, {told.get('run_uuid')}",
        "steps": f"{_window(influence)} of {told.get('update_rule')}",
        "parameters": f"{told.get('parameters')}, looked at: {told.get('parameters_chosen')}",
        "scores": f"{len(influence.test_ids)} test × {len(influence.train_ids)} training examples",
        "methods": ", ".join(influence.scores),
        "claims": told.get("claims"),
        "checkpoints": said_of_checkpoints(told) if told.get("checkpoints") else "",
        "sign": told.get("sign"),
        "unit": told.get("unit"),
        "numbers": f"gradients {told.get('gradient_dtype')}, values {told.get('value_dtype')}, on "
        f"{told.get('device')}{said_of_threads(told)}",
        "versions": f"torch {told.get('torch')}, numpy {told.get('numpy')}, Python "
        f"{told.get('python')}",
    }
    return {name: str(text) for name, text in rows.items() if text}


def proof(influence: Influence) -> tuple[bool, str]:
    """Return whether every step is proved, and in words how far."""
    told = influence.attributes
    if "steps_not_proved" in told and int(told["steps_not_proved"]):
        drift = number(float(told.get("largest_drift", 0)), 2)
        return False, (
            f"{told['steps_not_proved']} steps that were taken again are not the run's to the last "
            f"bit, from step {told.get('first_step_not_proved')} on; the snapshots were missed by "
            f"at most {drift} of the way between two of them."
        )
    again = (
        f", {told['steps_proved']} of them bit for bit by their digest"
        if told.get("steps_proved")
        else ""
    )
    small, rounding = _rounding(influence)
    if not influence.terms:
        return True, f"No method here took the steps apart; {_window(influence)}{again}."
    if told.get("allow_mismatch"):
        return False, (
            "The job was told to go on where a step does not reproduce (--allow-mismatch), and no "
            f"step was refused. What the replay computed differs from the log by up to {rounding} "
            "times the measured drops, which the page counts as rounding."
        )
    if "allow_mismatch" not in told and not small:
        return False, (
            f"What the replay computed differs from the log by up to {rounding} times the "
            "measured drops: more than float arithmetic leaves. Was it run with --allow-mismatch? "
            "The page counts the difference as rounding."
        )
    return True, (
        f"Every step was computed again and compared with the log: {_window(influence)}{again}. "
        f"What float arithmetic left between the two is the term rounding, here up to {rounding} "
        "times the measured drops."
    )


def of_run(study: Study) -> str:
    """Return what the page could not look up, in words; empty if all is there."""
    missing = []
    if study.task is None:
        missing.append(f"Examples are shown by their IDs alone: no task ({study.why_no_task}).")
    elif study.task.show is None:
        missing.append("Examples are shown by their IDs alone: the task has no show=.")
    if study.run is None:
        missing.append("The log is not at hand: learning rates and visits are not shown.")
    return " ".join(missing)


def _rounding(influence: Influence) -> tuple[bool, str]:
    """Return whether rounding is small, and how large it is beside what was measured."""
    sizes = []
    for terms in influence.terms.values():
        scale = float(np.nanmax(np.abs(terms["measured"]).sum(0), initial=0))
        most = float(np.nanmax(np.abs(terms["rounding"]).sum(0), initial=0))
        sizes.append(most / scale if scale else 0.0)
    share = max(sizes, default=0.0)
    return share <= _SMALL, number(share, 2)


def _window(influence: Influence) -> str:
    steps, total = influence.steps, influence.attributes.get("steps")
    if not steps or len(steps) == total:
        return f"{len(steps) or total} steps, the whole run"
    return f"steps {steps[0]} to {steps[-1]} of {total}"
