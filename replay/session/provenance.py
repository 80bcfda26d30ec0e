"""Where a result comes from: the run, the task, the choices, the versions."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from replay.session.bound_run import BoundRun
from replay.task import Task
from tracer.rules.rule import UpdateRule


def measured_value(task: Task) -> tuple[str, str]:
    """Return what is measured on test examples, and what of the task returns it."""
    if task.measure is not None:
        return "measured test value", "task.measure"
    return "test loss", "task.loss"


def as_in_the_run(rule: UpdateRule | None) -> dict[str, str]:
    """Return what a split took as it was in the run, as an attribute; nothing without a rule."""
    if rule is None:
        return {}
    factors = [rule.frozen] if rule.frozen else []
    return {"as_in_the_run": "; ".join([*factors, "factors of clipping, if any"])}


def provenance(
    run: BoundRun, value: tuple[str, str], **choices: Any
) -> dict[str, str | int | float]:
    """Return the attributes of a result, while it is computed.

    Args:
        run: The run, and how it is replayed.
        value: What the scores are parts of, and what of the task returns it.
        choices: More attributes.
    """
    log, models, (measured, function) = run.log, run.models, value
    metadata = log.metadata
    dtypes = ", ".join(sorted({str(dtype) for _, dtype in log.parameter_layout.values()}))
    return {
        "sign": f"positive = proponent: lowered the {measured}",
        "unit": f"as {function} returns it; a cross-entropy is in nats",
        "log": str(log.path),
        "run_uuid": str(metadata["run_uuid"]),
        "task": str(metadata.get("task") or ""),
        "steps": len(log),
        "update_rule": str(metadata["update_rule"]),
        **choices,
        "parameters": sum(s.numel() for s, _ in log.parameter_layout.values()),
        "gradient_dtype": str(models.test.dtype or dtypes),
        "value_dtype": str(models.value.dtype or dtypes),
        "device": str(models.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
