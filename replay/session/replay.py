"""Replay: a log bound to a task, and what can be asked of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from replay.evaluate.binding import bind
from replay.evaluate.chunks import BLOCK, Chunks, parse_bytes
from replay.evaluate.device import usable_device
from replay.evaluate.isolation import usual_surroundings
from replay.methods import tracincp
from replay.methods.self_influence import Sums
from replay.progress import Progress
from replay.results.influence import Influence
from replay.results.self_influence import SelfInfluence
from replay.session import filling, run_pass
from replay.session.arguments import (
    DEFAULT,
    METHODS,
    Window,
    check_methods,
    check_options,
    check_tolerance,
    known_ids,
    matching,
    window,
)
from replay.session.plan import ParameterPath, paths_of_run
from replay.session.provenance import provenance
from replay.session.score_tables import Tables
from replay.states.logged import LoggedStates
from replay.steps.tape import Tape
from replay.steps.verify import Verification, verified
from replay.task import Task, described, example_ids, parse_test_ids, resolved
from replay.vectors.workspace import temporaries
from tracer.errors import LogError
from tracer.log.read.run_log import open_log
from tracer.records import ID


class Replay:
    """A run log bound to its task.

    Args:
        log: Path of the log.
        task: The task; default: the one that the log names.
        device: Where to compute; default: the CPU.
        dtype: ``torch.float64`` computes everything in float64; default: gradients in the
            run's own dtype.
        values: ``"float64"``, or ``"model"`` to take values of ``φ`` in the model's dtype.
        memory: Budget for gradients and activations, beyond the copies of the model, one pass over
            a training batch and some 15 vectors of the model's size that a step is made of.
        audit: Passes between proofs of the per-example gradients; 1 proves every pass.
        allow_tf32: Let a GPU round products to 10 bits.
        announce: Told which file a task named by the log is loaded from.

    Raises:
        LogError: The log cannot be read or holds no step.
        TaskError: There is no task, or its model does not fit the log.
        InputError: This machine cannot compute there, or another argument cannot be used.
    """

    def __init__(
        self,
        log: str | Path,
        task: Task | str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        values: str = "float64",
        memory: int | str = "2GiB",
        audit: int = 100,
        allow_tf32: bool = False,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        check_options(values, audit)
        self._budget, self._tf32 = parse_bytes(memory), allow_tf32
        self._device = usable_device(device)
        self.log = open_log(log)
        if len(self.log) == 0:
            raise LogError(f"{log} holds no complete step; nothing can be replayed.")
        self.task = resolved(task, self.log.metadata.get("task"), self.log.path, announce)
        with self._computing():
            kinds = (dtype, dtype, torch.float64 if values == "float64" else dtype)
            self._models = bind(self.task, self.log, self._device, kinds, audit=audit)
        self._states = LoggedStates(self.log)
        self._chunks = Chunks(self.task, self._models, self._states, self._budget)

    def parse_test_ids(self, lines: Iterable[str]) -> list[ID]:
        """Return the test IDs of an ``ids.txt``, in its order; see ``replay.task``."""
        return parse_test_ids(lines, self.task.test)

    def describe_train(self, identity: ID) -> str | None:
        """Return ``task.show`` of a training example, if it gives text."""
        return described(self.task, self.task.train, identity)

    def describe_test(self, identity: ID) -> str | None:
        """Return ``task.show`` of a test example, if it gives text."""
        return described(self.task, self.task.test, identity)

    def drops(self, test_ids: Sequence[ID], *, progress: bool = True) -> NDArray[np.float64]:
        """Return ``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``, float64 ``(T, m)``, for any optimizer.

        Args:
            test_ids: m test examples.
            progress: Show progress on stderr.
        """
        test_ids = known_ids(test_ids, self.task.test, "test")
        with self._computing(), Progress(progress) as shown:
            chunks, states = self._chunks.of(test_ids, "test"), self._states
            return filling.drops(states, chunks, shown.task("drops", len(chunks) * len(self.log)))

    def influence(
        self,
        test_ids: Sequence[ID],
        *,
        methods: Sequence[str] = DEFAULT,
        checkpoints: int | str | Sequence[int] = 10,
        train_ids: Sequence[ID] | None = None,
        steps: Window | None = None,
        parameters: str | Sequence[str] | None = None,
        ideal_tolerance: float | None = 1e-3,
        allow_mismatch: bool = False,
        progress: bool = True,
    ) -> Influence:
        """Compute the influence of training examples on test examples.

        Positive scores are proponents: they lowered ``φ``.

        Args:
            test_ids: m test examples: the rows.
            methods: Any of ``"tracin"``, ``"ideal"``, ``"tracincp"`` and ``"tracin-sgd"``, the
                paper's formula whatever the optimizer.
            checkpoints: For ``tracincp``: a number, a list of steps, ``"epochs"``, ``"all"``.
            train_ids: N training examples: the columns; default: all of ``task.train``.
            steps: A window of consecutive steps, ``slice(a, b)`` or ``"a:b"``: their moves and
                visits alone; what the optimizer remembers of earlier visits is history.
            parameters: Patterns of parameter names, like ``"head.*"``: only their part of every
                product; the parts of disjoint patterns add up to the whole.
            ideal_tolerance: Where ``ideal`` stops refining; None never refines.
            allow_mismatch: Go on where a step does not reproduce; what differs is ``rounding``.
            progress: Show progress on stderr.

        Raises:
            InputError: An ID, method, checkpoint, step or pattern is unknown.
            UnsupportedRuleError: A step's update rule cannot be split.
            MismatchError: A replayed step does not reproduce the logged one.
            NonFiniteError: A loss or a gradient is NaN or infinite.
            TaskError: The task's functions or data do not fit the log.
        """
        check_methods(methods)
        chosen = tracincp.choose(self.log, checkpoints) if "tracincp" in methods else []
        columns = example_ids(self.task.train) if train_ids is None else train_ids
        test_ids = known_ids(test_ids, self.task.test, "test")
        columns = known_ids(columns, self.task.train, "training")
        check_tolerance(ideal_tolerance)
        chosen_steps = window(steps, len(self.log))
        names = matching(parameters, list(self.log.parameter_layout))
        split = tuple(name for name in METHODS if name in methods and name != "tracincp")
        tables = Tables(test_ids, columns, chosen_steps, tuple(methods), names is not None)
        found: dict[str, str | int] = {}
        rest = chosen
        with self._computing(), Progress(progress) as shown:
            point = partial(tracincp.checkpoint, self._states, names=names)
            blocks = self._chunks.of(columns, "train", most=BLOCK) if chosen else []
            if split:
                how = {"allow_mismatch": allow_mismatch, "splits": split != ("tracin-sgd",)}
                tape = self._tape(chosen_steps, shown, **how)
                plain = tape.plain and names is None
                chunks = self._chunks.for_splits(test_ids, split, plain=plain)
                settings = run_pass.Settings(split, ideal_tolerance, names, frozenset(chosen))
                advance = shown.task(" + ".join(split), len(chunks) * len(chosen_steps))
                done = filling.splits(tables, tape, chunks, settings, advance, point, blocks)
                found["steps_scaled_outside"] = tape.factors.scaled(chosen_steps)
                rest = [k for k in chosen if k not in done]
            if rest:
                chunks = self._chunks.of(test_ids, "test")
                advance = shown.task("tracincp", len(rest) * len(chunks) * len(blocks))
                filling.checkpoints(tables, rest, point, chunks, blocks, advance)
        choices = {
            "methods": " ".join(methods),
            "window": f"{chosen_steps.start}:{chosen_steps.stop}",
            "checkpoints": " ".join(map(str, chosen)),
            "parameters_chosen": "all" if names is None else " ".join(sorted(names)),
            "ideal_tolerance": "none" if ideal_tolerance is None else ideal_tolerance,
        }
        return tables.influence(provenance(self.log, self._models, **choices, **found))

    def self_influence(
        self,
        *,
        train_ids: Sequence[ID] | None = None,
        steps: Window | None = None,
        allow_mismatch: bool = False,
        progress: bool = True,
    ) -> SelfInfluence:
        """Compute what each training example's visits did to the example itself.

        Args:
            train_ids: N training examples; default: all of ``task.train``.
            steps: As for ``influence``, with the same errors.
            allow_mismatch: Likewise.
            progress: Likewise.
        """
        chosen = example_ids(self.task.train) if train_ids is None else train_ids
        chosen = known_ids(chosen, self.task.train, "training")
        looked_at = window(steps, len(self.log))
        sums = Sums(chosen)
        with self._computing(), Progress(progress) as shown:
            tape = self._tape(looked_at, shown, allow_mismatch=allow_mismatch)
            advance = shown.task("self-influence", len(looked_at))
            for recorded in tape.forwards():
                sums.add(recorded, self.task, self._models)
                advance()
        where, scaled = f"{looked_at.start}:{looked_at.stop}", tape.factors.scaled(looked_at)
        facts = provenance(self.log, self._models, window=where, steps_scaled_outside=scaled)
        return SelfInfluence(chosen, sums.scores, sums.visits, facts)

    def verify(self, *, steps: Window | None = None, progress: bool = True) -> Verification:
        """Replay each step's gradient and compare the step with the log.

        Args:
            steps: As for ``influence``, with the same errors.
            progress: Likewise.
        """
        chosen = window(steps, len(self.log))
        with self._computing(), Progress(progress) as shown:
            return verified(self._tape(chosen, shown, allow_mismatch=False), chosen)

    def plan(self) -> list[ParameterPath]:
        """Return how gradients of each parameter are computed, as proven on the first step."""
        with self._computing():
            known = self._states, self.task, self._models, self._chunks
            return paths_of_run(*known, budget=self._budget)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with usual_surroundings(allow_tf32=self._tf32), temporaries(self._budget):
            yield

    def _tape(self, steps: range, shown: Progress, **how: bool) -> Tape:
        budget, report, states = self._budget // 4, shown.task, self._states
        return Tape(states, self.task, self._models, steps, budget=budget, report=report, **how)
