"""The question of a job on several processes, and where its finished parts are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replay.processes.alone import Alone
from replay.processes.group import Group
from replay.processes.launch import threads_each
from replay.progress import Progress
from replay.results.influence import Influence
from replay.results.part_folder import parts_of
from replay.results.parts import Parts
from replay.results.room import Room
from replay.results.self_influence import SelfInfluence
from replay.session import shared_self
from replay.session.bound_run import BoundRun
from replay.session.choices import Window, window
from replay.session.estimate import Cost, estimated
from replay.session.going_on import THREADS, begin_together
from replay.session.memory import MEMORY
from replay.session.question import Asked, Question
from replay.session.replay import Replay
from replay.session.score_tables import ScoreTables
from replay.session.scoring import answered, settle
from replay.session.self_influence import SelfQuestion
from replay.session.shared_scoring import answered_together
from replay.session.shared_verification import compared_together
from replay.session.threads import with_threads
from replay.steps.verify import Verification
from tracer.records import ID

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

_INFLUENCE, _SELF = "tracin-influence-parts 1", "tracin-self-influence-parts 1"
_VERIFICATION = "tracin-verification-parts 1"
ALONE = "Take one process: leave out --workers."


def influence_together(
    replay: Replay,
    test_ids: Sequence[ID],
    group: Group | Alone,
    target: Path,
    **asked: Unpack[Asked],
) -> Influence | None:
    """Compute influence on the processes of a job; several keep finished parts beside the result.

    Args:
        replay: The run.
        test_ids: m test examples.
        group: The processes.
        target: Where the result will stand.
        **asked: As for ``Replay.influence``, with the same errors.

    Returns:
        The result, on the process that leads; None on others.
    """
    run = replay._run
    with group.agreeing():
        question = Question.of(run.log, run.task, test_ids, **asked)
    if isinstance(group, Alone):
        settle(run, question)
        tables = ScoreTables(question, Room(run.for_tables, target.parent))
        with run.computing(), Progress(enabled=True) as bars:
            return answered(run, question, bars, tables)
    run.chunks.group = group
    begin_together(run, group, target)
    with run.computing(), Progress(group.leads) as bars:
        with group.agreeing():
            parts = Parts(parts_of(target), _question(run, question))
        with parts:
            return answered_together(run, question, group, parts, bars)


def estimated_together(
    replay: Replay, test_ids: Sequence[ID], workers: int, **asked: Unpack[Asked]
) -> Cost:
    """Return what influence takes some processes of this machine, about.

    Args:
        replay: The run.
        test_ids: m test examples.
        workers: How many.
        **asked: As for ``Replay.influence``, with the same errors.
    """
    run = replay._run
    question = Question.of(run.log, run.task, test_ids, **asked)
    with with_threads(torch.get_num_threads() if workers == 1 else threads_each()):
        return estimated(run, question, workers)


def self_influence_together(
    replay: Replay, group: Group | Alone, target: Path, **asked: Any
) -> SelfInfluence | None:
    """Compute self-influence likewise; ``asked`` is as for ``Replay.self_influence``."""
    if isinstance(group, Alone):
        return replay.self_influence(**asked)
    run = replay._run
    with group.agreeing():
        question = SelfQuestion.of(run.log, run.task, train_ids=None, **asked)
    run.chunks.group = group
    begin_together(run, group, target)
    with run.computing(), Progress(group.leads) as bars:
        with group.agreeing():
            facts = {f"choice of {name}": value for name, value in question.facts.items()}
            facts |= {"number of steps": len(run.log), **_surroundings(run)}
            parts = Parts(parts_of(target), {"format": _SELF, **facts})
        with parts:
            return shared_self.self_influence_together(run, question, group, parts, bars)


def verified_together(
    replay: Replay, group: Group | Alone, target: Path, *, steps: Window | None, sample: int | None
) -> Verification | None:
    """Compare steps with the log likewise, as ``Replay.verify`` does.

    Steps that reproduce are kept until all are compared: they are parts of a result ``target``,
    which nobody writes.
    """
    if isinstance(group, Alone):
        return replay.verify(steps=steps, sample=sample)
    run = replay._run
    with group.agreeing():
        asked = window(steps, len(run.log))
    begin_together(run, group, target)
    with run.computing.again(), Progress(group.leads) as bars:
        with group.agreeing():
            facts = {"format": _VERIFICATION, **_surroundings(run)}
            parts = Parts(parts_of(target), facts, instead=ALONE)
        with parts:
            return compared_together(run, asked, sample, group, parts, bars)


def _question(run: BoundRun, question: Question) -> dict[str, Any]:
    """Return what must be the same for a job to go on."""
    choices = {name.replace("_", " "): value for name, value in question.facts.items()}
    return {
        "format": _INFLUENCE,
        "list of test examples": question.test_ids,
        "list of training examples": zlib.crc32(repr(question.train_ids).encode()),
        **{f"choice of {name}": value for name, value in choices.items() if name != "claims"},
        "number of steps": len(run.log),
        **_surroundings(run),
    }


def _surroundings(run: BoundRun) -> dict[str, Any]:
    """Return what bits depend on, whatever is asked."""
    return {
        "run": str(run.log.metadata["run_uuid"]),
        "dtype of gradients": str(run.models.test.dtype),
        "dtype of values": str(run.models.value.dtype),
        "version of torch": str(torch.__version__),
        THREADS: torch.get_num_threads(),
        MEMORY: run.computing.memory.cuts,
        "device": run.models.device.type,
    }
