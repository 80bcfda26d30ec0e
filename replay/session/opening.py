"""Opens a log and binds it to its task, with every argument checked first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from replay.arguments import flag, one_of, place, whole
from replay.evaluate.binding import bind
from replay.evaluate.chunks import Chunks, parse_bytes
from replay.evaluate.device import usable_device
from replay.loading import resolved
from replay.session.bound_run import BoundRun, Surroundings
from replay.session.memory import Memory
from replay.session.threads import Threads
from replay.states.opening import states_of
from replay.task import Task
from tracer.errors import InputError, LogError, TaskError, shown
from tracer.log.read.run_log import open_log
from tracer.rules.rule import UpdateRule

_MOST = 1024  # threads; what nobody has, torch does not refuse


def bound(
    log: Any,
    task: Any,
    *,
    device: Any,
    dtype: Any,
    values: Any,
    memory: Any,
    audit: Any,
    allow_tf32: Any,
    match_environment: Any,
    threads: Any,
    announce: Any,
    rules: Any = None,
) -> BoundRun:
    """Return a bound run; arguments and errors are those of ``Replay``."""
    one_of("values", values, ("float64", "model"))
    audit, allow_tf32 = whole("audit", audit), flag("allow_tf32", allow_tf32)
    match = flag("match_environment", match_environment)
    number = _number(threads, match=match)
    kind, budget, where = gradient_dtype(dtype), parse_bytes(memory), usable_device(device)
    if not isinstance(task, (Task, str, type(None))):
        raise TaskError(f"task must be a replay.Task or its name, found {shown(task)}.")
    if announce is not None and not callable(announce):
        raise InputError(f"announce must be a function or None, found {shown(announce)}.")
    own = _checked_rules(rules)
    opened = open_log(place("a run log", log))
    if len(opened) == 0:
        raise LogError(f"{log} holds no complete step; nothing can be replayed.")
    chosen = resolved(task, opened.metadata, opened.path, announce)
    kinds = (kind, kind, torch.float64 if values == "float64" else kind)
    environment = opened.metadata if match else None
    number_of = _threads(number, environment)
    how = Surroundings(Memory(budget), where, allow_tf32, environment, number_of)
    with how():
        models = bind(chosen, opened, where, kinds, audit=audit)
        states = states_of(opened, chosen, where, budget // 8)
    chunks = Chunks(chosen, models, states, budget)
    return BoundRun(states, chosen, models, chunks, how, task, own)


def _number(threads: Any, *, match: bool) -> int | None:
    if threads is None:
        return None
    if match:
        raise InputError(
            "match_environment takes the run's number of threads, and threads gives another; leave "
            "one of the two out."
        )
    if whole("threads", threads) > _MOST:
        raise InputError(f"threads must be at most {_MOST}, found {shown(threads)}.")
    return whole("threads", threads)


def _threads(number: int | None, environment: Mapping[str, Any] | None) -> Threads:
    if environment is None:
        return Threads(number)
    return Threads(int(environment["num_threads"]), "as in the run")


def _checked_rules(rules: Any) -> dict[str, UpdateRule]:
    known = {} if rules is None else dict(rules) if isinstance(rules, Mapping) else None
    if known is None or not all(
        isinstance(name, str) and isinstance(rule, UpdateRule) for name, rule in known.items()
    ):
        raise InputError(
            "rules must be a mapping from names of optimizer classes to replay.UpdateRule objects, "
            f"found {shown(rules)}.\n"
            '  1. Pass rules={"Lion": LionRule()}, an object of your subclass and not the class;\n'
            "  2. see docs/how-to/optimizers.md for how to write one."
        )
    return known


def gradient_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype of gradients; None is the run's own.

    Raises:
        InputError: It is none, by object or by name.
    """
    known = {"float64": torch.float64, "float32": torch.float32}
    named = isinstance(dtype, (str, torch.dtype))
    if dtype is None or (named and dtype == "model"):
        return None
    found = known.get(str(dtype).removeprefix("torch.")) if named else None
    if found is None:
        raise InputError(
            f'dtype must be None (the run\'s own), "float64" or "float32", found '
            f"{dtype if isinstance(dtype, torch.dtype) else shown(dtype)}."
        )
    return found
