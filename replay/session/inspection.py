"""What can be asked of a run whatever the examples: the part of ``Replay`` that looks at it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from replay.arguments import flag
from replay.progress import Progress
from replay.session.bound_run import BoundRun
from replay.session.choices import Window, window
from replay.session.conversion import convert, state_dict
from replay.session.plan import Plan, paths_of_run
from replay.session.verification import compared
from replay.steps.verify import Verification


class Inspection:
    """The run itself: its states, whether it reproduces, how its gradients are computed."""

    _run: BoundRun

    def state_dict(self, t: int) -> dict[str, Tensor]:
        """Return the model's ``state_dict`` before step ``t``, from 0 to T; computed if need be."""
        return state_dict(self._run, t)

    def convert(
        self, path: str | Path, *, snapshot_every: int | str, overwrite: bool = False
    ) -> None:
        """Write the run as another log, with the parameters of other steps; see ``convert``."""
        convert(self._run, path, snapshot_every, overwrite=overwrite)

    def verify(
        self, *, steps: Window | None = None, sample: int | None = None, progress: bool = True
    ) -> Verification:
        """Compare each step with the log; see ``compared``.

        Args:
            steps: As for ``influence``, with the same errors.
            sample: So many of them, drawn at random, the same each time; default: all.
            progress: As for ``influence``.

        Raises:
            MismatchError: Names the first step that does not reproduce.
        """
        with self._run.computing.again(), Progress(flag("progress", progress)) as bars:
            return compared(self._run, window(steps, len(self._run.log)), sample, bars)

    def plan(self) -> Plan:
        """Return how gradients of each parameter are computed, as proven on the first step.

        Its ``passes`` say how many states of the run are taken in one pass, or why each is alone.
        """
        with self._run.computing():
            return paths_of_run(self._run)
