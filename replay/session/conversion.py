"""The same run in another log: parameters of other steps, each proved by its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from replay.arguments import whole
from replay.progress import Progress
from replay.results.output import check_free, moved_when_whole
from replay.session.bound_run import BoundRun
from replay.states.opening import taken_again
from replay.states.re_executed import ReExecutedStates
from tracer.errors import InputError, MismatchError
from tracer.log.write.conversion import Point, convert_log


def state_dict(run: BoundRun, t: int) -> dict[str, Tensor]:
    """Return the ``state_dict`` of the task's model before step ``t``, in the run's dtypes.

    Raises:
        InputError: The run has no such state.
    """
    if whole("t", t, least=0) > run.states.last:
        raise InputError(f"{run.log.path} has the states 0 to {run.states.last}, found {t}.")
    with run.computing.again():
        state = run.states.at(t)
        known = {**state.parameters, **state.buffers}
        module = run.models.train.module
        run.models.train.load(state.parameters, state.buffers)
        return {
            name: known.get(name, tensor).detach().cpu().clone()
            for name, tensor in module.state_dict().items()
        }


def convert(
    run: BoundRun, path: str | Path, every: int | str, *, overwrite: bool, progress: bool = True
) -> None:
    """Write the same run as another log; every other record is copied as it is.

    Args:
        run: The run; its steps are taken again.
        path: The new log.
        every: ``1`` has the parameters of every step; a number of steps or ``"epoch"`` a full
            state there, and digests between.
        overwrite: Replace a file that is no log.
        progress: Show progress on stderr.

    Raises:
        InputError: The log is being written, or the new one cannot be written there.
        MismatchError: A step that was taken again does not meet its digest.
    """
    log, target = run.log, Path(path)
    number = 0 if every == "epoch" else whole("snapshot_every", every)
    if log.live:
        raise InputError(f"{log.path} is being written; convert it when training has ended.")
    check_free(target, None, overwrite=overwrite, inputs=[log.path])
    with (
        run.computing.again(),
        Progress(progress) as shown,
        moved_when_whole(target, overwrite=overwrite) as partial,
    ):
        states = taken_again(log, run.task, run.models.device, run.budget)
        advance = shown.task("taking steps again", len(log) + 1)
        convert_log(log, partial, number, _points(states, number, advance))


def _points(states: ReExecutedStates, every: int, advance: Callable[[], None]) -> Iterator[Point]:
    log, total = states.log, states.last
    for t in range(total + 1):
        state = states.point(t)
        if states.unproved:
            raise MismatchError(
                f"step {min(states.unproved)} of {log.path}, taken again, does not lead to the "
                f"parameters of the run: nothing was written. {states.proof()}"
            )
        yield Point(t, state["parameters"], _full_state(states, t, state, every))
        advance()


def _full_state(
    states: ReExecutedStates, t: int, state: Mapping[str, Any], every: int
) -> bytes | dict[str, Any] | None:
    """Return what the new log has before step ``t``: the state on file, or a computed one.

    A run does not go on from a computed one, since nobody knows where its random generators were.
    """
    if t in states.stored:
        return states.log.full_states.encoded(t)
    if every != 1 and (_begins(states, t) if every == 0 else t % every == 0):
        known = {"buffers": states.log.buffers(t), "random": None}
        return {**state, **known, "epoch": states.step(t - 1).epoch}
    return None


def _begins(states: ReExecutedStates, t: int) -> bool:
    """Return whether an epoch begins with step ``t``."""
    return 0 < t < states.last and states.step(t).epoch != states.step(t - 1).epoch
