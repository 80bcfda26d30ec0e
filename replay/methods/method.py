"""What a method is: what it needs of the run, and how it credits training examples.

A method walks the steps of the run or sums over its checkpoints. One that walks either *divides*
each step by a gradient along it (an optimizer's memory then carries credit on to later steps), or
credits the occurrences of each step by itself, or differentiates through all later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from replay.evaluate.test_side import Examples
from replay.evaluate.trained_step import TrainedStep
from replay.gradients.forms.per_example import PerExample
from replay.methods.names import Description
from replay.path.bundle import Bundles
from replay.path.step_path import Split, StepPath
from replay.path.unrolling import Unrolling
from replay.states.checkpoints import Checkpoint
from replay.steps.replayed_step import ReplayedStep
from replay.steps.tape import Tape

Divide = Callable[[Sequence[StepPath], Bundles, float | None], list[Split]]
Credit = Callable[[ReplayedStep, TrainedStep, PerExample, frozenset[str] | None], Tensor]
Unroll = Callable[[Tape, Examples], Unrolling]
Score = Callable[[Checkpoint, PerExample, list[Examples]], Iterator[tuple[slice, Tensor]]]


@dataclass(frozen=True)
class Method:
    """One method; exactly one of ``divide``, ``credit``, ``unroll`` and ``score`` is given.

    Attributes:
        about: What it is called and what is said of it.
        divide: Splits steps along their paths, to a tolerance; needs a rule that can be split.
        credit: Credits the occurrences of a step, ``(b, m)``, from the test gradients before it.
        unroll: Goes backwards through a tape's steps for some test examples, by their derivatives.
        score: Scores training examples at one checkpoint.
        refines: It takes gradients between the ends of a step, and says how many.
    """

    about: Description
    divide: Divide | None = None
    credit: Credit | None = None
    unroll: Unroll | None = None
    score: Score | None = None
    refines: bool = False

    @property
    def name(self) -> str:
        """What users call it."""
        return self.about.name

    @property
    def walks(self) -> bool:
        """Whether it goes through every step; else it sums over checkpoints."""
        return self.score is None
