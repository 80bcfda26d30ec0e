"""How the gradients of each parameter are computed: what the engine proved on the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from replay.evaluate.binding import Models
from replay.evaluate.state import Transition
from replay.evaluate.train_side import replay_step
from replay.session.bound_run import BoundRun
from replay.task import Task, example_ids

_TEST = 8  # test examples that are looked at
_PENALTY, _STEP, _FROZEN = "only the penalty moves it", "no gradient in step 0", "not moved"
_UNUSED = "no gradient"
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


def paths_of_run(run: BoundRun) -> list[ParameterPath]:
    """Return every parameter's path at step 0."""
    task, models = run.task, run.models
    now = run.states.transition(0)
    train = _of_training(task, now, models, run.budget)
    run.chunks.of(example_ids(task.test)[:_TEST], "test")[0].gradients(now.before, now.name)
    test = models.test.engine.paths
    return [
        ParameterPath(name, list(w.shape), train.get(name, _FROZEN), test.get(name, _UNUSED))
        for name, w in now.before.parameters.items()
    ]


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
