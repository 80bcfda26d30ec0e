"""How the gradients of each parameter are computed: what the engine proved on the first step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from replay.evaluate.binding import Models
from replay.evaluate.run_examples import RunExamples
from replay.evaluate.slots import SLOTS
from replay.evaluate.state import Transition
from replay.evaluate.test_side import Examples
from replay.evaluate.train_side import replay_step
from replay.progress import Progress
from replay.session.bound_run import BoundRun
from replay.steps.tape import Tape
from replay.task import Task, example_ids
from tracer.log.read.summary import batch_sizes

_TEST = 8  # test examples that are looked at
_PENALTY, _STEP, _FROZEN = "only the penalty moves it", "no gradient in step 0", "not moved"
_UNUSED = "no gradient"
_SEVERAL, _ONE = f"{SLOTS} states in one pass", "each state in a pass of its own"
_TRAINING = "training gradients"
WITHOUT_GRADIENT = (_PENALTY, _STEP, _FROZEN, _UNUSED)


@dataclass(frozen=True)
class ParameterPath:
    """How one parameter's per-example gradients are computed.

    Attributes:
        name: The parameter.
        shape: Its shape.
        train: Of training examples: kinds of operation, or ``"complete: "`` and the reason, of each
            micro-batch. Why, where they did not move it: ``"only the penalty moves it"``, ``"no
            gradient in step 0"``, ``"not moved"`` (frozen, or in no parameter group).
        test: Of test examples, likewise; ``"no gradient"`` where the measure does not depend on it.
    """

    name: str
    shape: list[int]
    train: str
    test: str


class Plan(list[ParameterPath]):
    """The path of every parameter.

    Attributes:
        passes: Of training gradients, test gradients and test values, how many states of the run
            one pass takes, or why each state takes one of its own. A step whose batch is not like
            that of step 0 takes one of its own in any case; those of another size are counted.
    """

    def __init__(
        self, paths: Iterable[ParameterPath] = (), passes: dict[str, str] | None = None
    ) -> None:
        super().__init__(paths)
        self.passes = passes or {}


def passes_of(tape: Tape, chunks: list[Examples], steps: range) -> dict[str, str]:
    """Return in words how the states of some steps are taken; see ``Plan``."""
    found = {_TRAINING: tape.why, **RunExamples(chunks[0], tape.states).why}
    said = {side: _SEVERAL if why is None else f"{_ONE}: {why}" for side, why in found.items()}
    log = tape.states.log
    alike = (batch_sizes(log, steps) == batch_sizes(log, range(1))).all(1).sum()
    if tape.why is None and alike < len(steps):
        said[_TRAINING] += f" for {alike} of {len(steps)} steps"
    return said


def paths_of_run(run: BoundRun) -> Plan:
    """Return every parameter's path at step 0."""
    task, models = run.task, run.models
    now = run.states.transition(0)
    train = _of_training(task, now, models, run.budget)
    chunks = run.chunks.of(example_ids(task.test)[:_TEST], "test")
    chunks[0].gradients(now.before, now.name)
    test = models.test.engine.paths
    paths = (
        ParameterPath(name, list(w.shape), train.get(name, _FROZEN), test.get(name, _UNUSED))
        for name, w in now.before.parameters.items()
    )
    how = {"allow_mismatch": True, "splits": False}
    tape = run.tape(range(1), Progress(enabled=False), **how)
    return Plan(paths, passes_of(tape, chunks, range(len(run.log))))


def _of_training(task: Task, now: Transition, models: Models, budget: int) -> dict[str, str]:
    """Say how gradients of training examples are computed, or why there are none."""
    step, names = now.step, now.step.trained
    without = dict.fromkeys({*names, *step.without_gradient} - step.frozen, _STEP)
    paths: dict[str, dict[str, None]] = {}
    for micro in step.micro_batches:  # each may use other parameters
        one = replace(step, micro_batches=(micro,))
        trained = replay_step(
            task, one, now.before, models.train, names, device=models.device, budget=budget
        )
        without |= dict.fromkeys(trained.penalty, _PENALTY)
        for name, path in models.train.engine.paths.items():
            paths.setdefault(name, {})[path] = None
    return without | {name: "; ".join(found) for name, found in paths.items()}
