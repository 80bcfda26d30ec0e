"""Checkpoints: snapshots of the run at which a heuristic sums up products of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replay.arguments import listed, plain
from replay.evaluate.state import State, States
from replay.states.rates import learning_rates
from tracer.errors import InputError, shown
from tracer.log.read.run_log import RunLog
from tracer.records import Step, each


@dataclass(frozen=True)
class Turn:
    """What a step from a checkpoint would move.

    Attributes:
        optimizers: Names of those of several optimizers that take it, and whose loss it is.
        scale: Learning rate of each of its parameters.
    """

    optimizers: tuple[str, ...]
    scale: dict[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot and the learning rates that go with it.

    Attributes:
        index: ``k``: the parameters before step ``k``; ``len(log)`` the final ones.
        state: Parameters and buffers.
        turns: One for each step that moves parameters from there: step ``min(k, T − 1)``; of
            optimizers that take turns one step of each, the next one if there is one.
        epoch: That of the first; None if it was not set.
    """

    index: int
    state: State
    turns: tuple[Turn, ...]
    epoch: int | None = None

    @property
    def scale(self) -> dict[str, float]:
        """Learning rate of each parameter, at the step that moves it."""
        return {name: rate for turn in self.turns for name, rate in turn.scale.items()}

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"checkpoint {self.index}"


def checkpoint_at(states: States, k: int, names: frozenset[str] | None = None) -> Checkpoint:
    """Return checkpoint ``k`` of a run; products are taken over ``names``, by default all."""
    state, turns = states.at(k), list[Turn]()
    for step, numbers in _steps(states, min(k, states.last - 1)):
        own = {n for n, number in step.optimizers.items() if number in numbers}
        chosen = {n for n in own if n not in step.frozen and (names is None or n in names)}
        scale = learning_rates(step, chosen, "a sum over checkpoints (tracincp)")
        turns.append(Turn(step.micro_batches[0].optimizers, scale))
    return Checkpoint(k, state, tuple(turns), states.step(min(k, states.last - 1)).epoch)


def _steps(states: States, t: int) -> Iterator[tuple[Step, set[int]]]:
    """Yield step ``t``, and of each optimizer that did not take it the next step, or the last."""
    left = set(range(len(each(str(states.log.metadata["optimizer"])))))
    for k in (*range(t, states.last), *range(t - 1, -1, -1)):
        step = states.step(k)
        taking = left & step.groups_by_optimizer.keys()
        if taking:
            yield step, taking
        left -= taking
        if not left:
            return


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
