"""Checkpoints: snapshots of the run at which a heuristic sums up products of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replay.arguments import listed, plain
from replay.evaluate.state import State, States
from replay.states.rates import learning_rates
from tracer.errors import InputError, UnsupportedRuleError, shown
from tracer.log.read.run_log import RunLog
from tracer.records import Step, each


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot and the learning rates that go with it.

    Attributes:
        index: ``k``: the parameters before step ``k``; ``len(log)`` the final ones.
        state: Parameters and buffers.
        scale: Learning rate of each parameter at step ``min(k, T − 1)``.
        epoch: That of this step; None if it was not set.
    """

    index: int
    state: State
    scale: dict[str, float]
    epoch: int | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"checkpoint {self.index}"


def checkpoint_at(states: States, k: int, names: frozenset[str] | None = None) -> Checkpoint:
    """Return checkpoint ``k`` of a run; products are taken over ``names``, by default all."""
    step = states.step(min(k, states.last - 1))
    _require_all(states, step)
    state = states.at(k)
    chosen = {n for n in state.parameters if n not in step.frozen and (names is None or n in names)}
    scale = learning_rates(step, chosen, "a sum over checkpoints (tracincp)")
    return Checkpoint(k, state, scale, step.epoch)


def _require_all(states: States, step: Step) -> None:
    """Raise UnsupportedRuleError if a step was taken by one of several optimizers alone."""
    count = len(each(str(states.log.metadata["optimizer"])))
    if len(step.groups_by_optimizer) < count:
        raise UnsupportedRuleError(
            f"a sum over checkpoints (tracincp) takes the learning rate of every parameter, and "
            f"step {step.index} of {states.log.path} was taken by one of {count} optimizers.\n"
            '1. Ask for methods=("tracin", "ideal"), which know whose step each one was.'
        )


def chosen_checkpoints(log: RunLog, checkpoints: int | str | Sequence[int]) -> list[int]:
    """Return the steps that a choice of checkpoints means.

    Args:
        log: The run, with ``T`` steps.
        checkpoints: A number n (steps ``round(k T / n)``, k = 1..n, each once), a list of
            steps in ``0..T``, ``"epochs"`` (the last state of each epoch) or ``"all"``
            (``0..T−1``).

    Raises:
        InputError: The choice cannot be read, or the run does not have it.
    """
    total = len(log)
    if isinstance(checkpoints, str) and checkpoints == "all":
        return list(range(total))
    if isinstance(checkpoints, str) and checkpoints == "epochs":
        return epoch_ends(log)
    several = listed(checkpoints)
    if several is None:
        return spaced(plain(checkpoints), total)
    steps = [k for k in several if isinstance(k, int) and not isinstance(k, bool)]
    if len(steps) < len(several):
        raise _unreadable(checkpoints)
    bad = [k for k in steps if not 0 <= k <= total]
    if bad or not steps or len(set(steps)) < len(steps):
        found = f"step {bad[0]}" if bad else shown(checkpoints)
        raise InputError(
            f"checkpoints are different steps from 0 to {total} of this run, found {found}."
        )
    return steps


def spaced(count: Any, total: int) -> list[int]:
    """Return the steps ``round(k T / n)`` of a number n, each once."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise _unreadable(count)
    if count < 1:
        raise InputError(f"checkpoints must be at least 1, found {count}.")
    if count >= total:  # every step from the first one on
        return list(range(round(total / count), total + 1))
    return [round(k * total / count) for k in range(1, count + 1)]


def _unreadable(checkpoints: Any) -> InputError:
    return InputError(
        'checkpoints must be a number, a list of steps, "epochs" or "all", found '
        f"{shown(checkpoints)}."
    )


def epoch_ends(log: RunLog, asked: str = 'checkpoints="epochs"') -> list[int]:
    """Return the last state of each epoch.

    Args:
        log: The run.
        asked: The argument that needs them, for the message.

    Raises:
        InputError: The run has steps without an epoch.
    """
    found = epochs(log, asked)
    following = [*found[1:], None]
    return [t + 1 for t, (a, b) in enumerate(zip(found, following, strict=True)) if a != b]


def epochs(log: RunLog, asked: str) -> list[int]:
    """Return the epoch of each step.

    Args:
        log: The run.
        asked: The argument that needs them, for the message.

    Raises:
        InputError: The run has steps without one.
    """
    found = [step.epoch for step in log.steps()]
    known = [epoch for epoch in found if epoch is not None]
    if len(known) < len(found):
        raise InputError(
            f"{asked} asks for epochs, but {log.path} has steps without one; set "
            "optimizer.epoch = epoch in the training loop, or give another "
            f"{asked.partition('=')[0]}=."
        )
    return known
