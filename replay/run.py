"""Replay: a log bound to a task, and what can be asked of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from replay import passes, tracincp
from replay.arguments import (
    DEFAULT,
    METHODS,
    Window,
    check_ids,
    check_methods,
    matching,
    window,
)
from replay.binding import BoundModel, build, untouched_randomness
from replay.influence import Influence
from replay.measured import Models
from replay.memory import Chunks, parse_bytes, placed
from replay.progress import Progress
from replay.provenance import provenance
from replay.scores import Tables
from replay.self_influence import SelfInfluence, Sums
from replay.tape import Tape
from replay.task import Task, described, example_ids, load_task, parse_test_ids
from replay.trajectory import state
from tracer.errors import InputError, LogError, TaskError
from tracer.reader import open_log
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
        memory: Budget for gradients and activations, beyond the copies of the model.
        announce: Told which file a task named by the log is loaded from.

    Raises:
        LogError: The log cannot be read or holds no step.
        TaskError: There is no task, or its model does not fit the log.
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
        announce: Callable[[str], None] | None = None,
    ) -> None:
        if values not in ("float64", "model"):
            raise InputError(f'values must be "float64" or "model", found {values!r}.')
        self._budget = parse_bytes(memory)
        self.log = open_log(log)
        if len(self.log) == 0:
            raise LogError(f"{log} holds no complete step; nothing can be replayed.")
        named = self.log.metadata.get("task")
        if isinstance(task, Task):
            self.task = task
        elif task is not None or named:
            reference = str(task if task is not None else named)
            self.task = load_task(reference, trusted=task is not None, announce=announce)
        else:
            raise TaskError(f"{log} names no task; pass one: task= (--task module:name).")
        self._device, self._values = torch.device(device), values
        with untouched_randomness():
            built = build(self.task)
            in_double = torch.float64 if values == "float64" else dtype
            train, test, value = (
                BoundModel(built, self.log, device=self._device, dtype=kind)
                for kind in (dtype, dtype, in_double)
            )
        self._models = Models(train, test, value, self._device)
        self._chunks = Chunks(self.task, self._models, state(self.log, 0), self._budget)

    def parse_test_ids(self, lines: Iterable[str]) -> list[ID]:
        """Return the test IDs of an ``ids.txt``; see ``replay.task.parse_test_ids``."""
        return parse_test_ids(lines, self.task.test)

    def describe_train(self, identity: ID) -> str | None:
        """Return ``task.show`` of a training example, if it gives text."""
        return described(self.task, self.task.train, identity)

    def describe_test(self, identity: ID) -> str | None:
        """Return ``task.show`` of a test example, if it gives text."""
        return described(self.task, self.task.test, identity)

    def drops(self, test_ids: Sequence[ID], *, progress: bool = True) -> NDArray[np.float64]:
        """Return the measured drops ``φ(w_t; β_t) − φ(w_{t+1}; β_{t+1})``, for any optimizer.

        Args:
            test_ids: m test examples.
            progress: Show progress on stderr.

        Returns:
            float64 ``(T, m)``.
        """
        check_ids(test_ids, self.task.test, "test")
        with untouched_randomness(), Progress(progress) as shown:
            chunks = self._chunks.of(test_ids, "test")
            advance = shown.task("drops", len(chunks) * len(self.log))
            columns = []
            for chunk in chunks:
                rows = []
                for drop in passes.drops(self.log, chunk):
                    rows.append(drop.measured.numpy())
                    advance()
                columns.append(np.stack(rows))
            return np.concatenate(columns, 1)

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
            allow_mismatch: Go on where a step does not reproduce, counting the difference as
                rounding.
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
        columns = example_ids(self.task.train) if train_ids is None else list(train_ids)
        check_ids(test_ids, self.task.test, "test")
        check_ids(columns, self.task.train, "training")
        if ideal_tolerance is not None and not ideal_tolerance > 0:
            raise InputError(f"ideal_tolerance must be positive or None, found {ideal_tolerance}.")
        chosen_steps = window(steps, len(self.log))
        names = matching(parameters, list(self.log.parameter_layout))
        split = tuple(name for name in METHODS if name in methods and name != "tracincp")
        tables = Tables(list(test_ids), columns, chosen_steps, tuple(methods), names is not None)
        found: dict[str, str | int] = {}
        with untouched_randomness(), Progress(progress) as shown:
            if split:
                tape = self._tape(chosen_steps, lenient=allow_mismatch, shown=shown)
                kept = 0 if tape.plain and names is None else len(split)
                chunks = self._chunks.of(test_ids, "test", kept=kept)
                settings = passes.Settings(split, ideal_tolerance, names)
                advance = shown.task(" + ".join(split), len(chunks) * len(chosen_steps))
                for rows, chunk in placed(chunks):
                    for step in passes.steps(tape, chunk, settings):
                        tables.add_step(rows, step)
                        advance()
                found["steps_scaled_outside"] = len(tape.checks.inferred)
            if chosen:
                chunks = self._chunks.of(test_ids, "test")
                blocks = self._chunks.of(columns, "train", most=1024)
                advance = shown.task("tracincp", len(chosen) * len(chunks) * len(blocks))
                for at in (tracincp.checkpoint(self.log, k, names) for k in chosen):
                    for place, scores in tracincp.tables(at, chunks, blocks):
                        tables.add_scores("tracincp", *place, scores.numpy())
                        advance()
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
            steps: A window of steps, as for ``influence``.
            allow_mismatch: Go on where a step does not reproduce.
            progress: Show progress on stderr. Errors are those of ``influence``.
        """
        chosen = example_ids(self.task.train) if train_ids is None else list(train_ids)
        check_ids(chosen, self.task.train, "training")
        looked_at = window(steps, len(self.log))
        sums = Sums(chosen)
        with untouched_randomness(), Progress(progress) as shown:
            tape = self._tape(looked_at, lenient=allow_mismatch, shown=shown)
            advance = shown.task("self-influence", len(looked_at))
            for recorded in tape.forwards():
                sums.add(recorded, self.task, self._models)
                advance()
        choices = {
            "window": f"{looked_at.start}:{looked_at.stop}",
            "steps_scaled_outside": len(tape.checks.inferred),
        }
        facts = provenance(self.log, self._models, **choices)
        return SelfInfluence(chosen, sums.scores, sums.visits, facts)

    def _tape(self, steps: range, *, lenient: bool, shown: Progress) -> Tape:
        return Tape(
            self.log,
            self.task,
            self._models,
            steps,
            budget=self._budget // 4,
            lenient=lenient,
            report=shown.task,
        )
