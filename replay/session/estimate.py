"""What a replay will take, from a few timed steps, and what it took."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from replay.evaluate.chunks import BLOCK
from replay.evaluate.slots import SLOTS
from replay.progress import Progress, duration
from replay.results.agreement import compare_methods
from replay.results.summary import counted_threads
from replay.session.bound_run import BoundRun
from replay.session.periods import Periods
from replay.session.plan import passes_of
from replay.session.question import Question
from replay.session.scoring import settle, tried
from replay.steps.tape import Tape

_STEPS = 4  # timed beyond the first, which also proves the gradients
_EXAMPLES = 64  # training examples timed at a checkpoint, at least
_TERMS = 12  # tables over steps, of each method


@dataclass(frozen=True)
class Cost:
    """Time and memory.

    Attributes:
        seconds: Duration.
        peak_bytes: The most memory that the process held, on its device and beside it.
        table_bytes: What of it are tables of results, which no budget bounds.
        threads: With how many threads; 0 if that is not known.
        passes: How many states of the run are taken in one pass, or why each takes its own; see
            ``Replay.plan``.
    """

    seconds: float
    peak_bytes: int
    table_bytes: int = 0
    threads: int = 0
    passes: dict[str, str] = field(default_factory=dict)

    def among(self, workers: int) -> Cost:
        """Return what it will be for some processes of this machine, which share its cores."""
        seconds = self.seconds / at_once(workers)
        return replace(self, seconds=seconds, peak_bytes=self.peak_bytes * workers)

    def __str__(self) -> str:
        tables = f", {self.table_bytes / 1e9:.2f} GB of it tables" if self.table_bytes else ""
        threads = f", {counted_threads(self.threads)}" if self.threads else ""
        memory = f"peak memory {self.peak_bytes / 1e9:.2f} GB{tables}"
        return f"{duration(self.seconds)}, {memory}{threads}"


def at_once(workers: int) -> int:
    """Return how many of some processes run at once here, of the threads of this one."""
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(workers, (known or 1) // torch.get_num_threads()))


def estimated(run: BoundRun, question: Question) -> Cost:
    """Return what answering a question and comparing the methods will take, about.

    The first steps of the window and a few training examples at the first checkpoint are
    computed. Early steps refine a split more often than late ones.
    """
    steps, columns, whole = question.steps, question.train_ids, replace(question, periods=Periods())
    split = tuple(m for m in question.methods if m.walks)
    seconds, held, passes = 0.0, 0, dict[str, str]()
    settle(run, question)

    def few(count: int) -> None:
        tried(run, replace(walk, steps=steps[:count]))

    def heuristic(count: int) -> None:
        tried(run, replace(sums, train_ids=columns[:count]))

    if split:
        walk = replace(whole, methods=split, train_ids=columns[:1], checkpoints=[])
        passes = _passes(run, walk)
        some = any(why.startswith(str(SLOTS)) for why in passes.values())
        more = min((2 * SLOTS if some else _STEPS) + 1, len(steps))
        first, each = _timed(few, more)
        ahead = _ahead(run, walk, more)
        seconds += first + each * (len(steps) - 1) + ahead.seconds
        held = ahead.peak_bytes
    if question.summing:
        sums = replace(whole, methods=question.summing, checkpoints=[0])
        with run.computing():
            block, shelf = run.chunks.block(columns)
            more = min(max(_EXAMPLES + 1, block), len(columns))  # a whole block: its memory is met
            run.chunks.of(columns[:more], "train", most=BLOCK)  # compared with others here
        share = len(columns) / more if run.chunks.asked_of_all["train"] else 1.0
        seconds += run.chunks.took["train"] * share
        first, each = _timed(heuristic, more)
        seconds += len(question.checkpoints) * (first + each * (len(columns) - 1))
        held += shelf
    seconds += run.chunks.took["test"] + _comparing(question)
    cells = question.periods.tables * len(question.methods) * len(columns) + _TERMS * len(
        split
    ) * len(steps)
    tables = 8 * len(question.test_ids) * cells
    threads = run.computing.threads.number
    return Cost(seconds, peak_bytes() + held + tables, tables, threads, passes)


def _passes(run: BoundRun, walk: Question) -> dict[str, str]:
    """Return how many states of the run are taken in one pass."""
    with run.computing(), Progress(enabled=False) as shown:
        tape = run.tape(walk.steps, shown, **walk.tape)
        return passes_of(tape, run.chunks.of(walk.test_ids, "test", between=walk.refines))


def _comparing(question: Question) -> float:
    """Return what comparing the methods takes afterwards: a test example's share of it, timed."""
    random, n = np.random.default_rng(0), len(question.train_ids)
    rows = {method.name: random.normal(size=(2, n)) for method in question.methods}
    few = {name: table[:1] for name, table in rows.items()}
    _, each = _timed(lambda size: compare_methods(few if size == 1 else rows, k=10), 2)
    return each * len(question.test_ids)


def _ahead(run: BoundRun, walk: Question, few: int) -> Cost:
    """Return what recording a window ahead of the walk takes more than recording few steps.

    Steps that remember others are walked backwards; those that memory does not hold are replayed
    without their examples' gradients first, for each chunk of test examples.
    """
    with run.computing(), Progress(enabled=False) as shown:

        def tape(count: int) -> Tape:
            how = {**walk.tape, "allow_mismatch": True}
            return run.tape(walk.steps[:count], shown, **how)

        whole, part = tape(len(walk.steps)).estimate(), tape(few).estimate()
        each, again = 0.0, whole.replays - part.replays * len(walk.steps) / few  # beyond the timed
        if again > 0:
            kept = 0 if tape(1).plain and walk.names is None else walk.vectors
            chunks = run.chunks.of(walk.test_ids, "test", kept=kept, between=walk.refines)
            each = len(chunks) * _timed(lambda count: list(tape(count).checks()), few)[1]
    return Cost(max(0.0, again) * each, max(0, whole.nbytes - part.nbytes))


def _timed(job: Callable[[int], object], more: int) -> tuple[float, float]:
    """Return the times of a job of size 1, after one to warm up, and of each that is added."""
    seconds = []
    for size in (1, 1, more):
        began = time.perf_counter()
        job(size)
        seconds.append(time.perf_counter() - began)
    return seconds[1], max(0.0, seconds[2] - seconds[1]) / max(1, more - 1)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        resident += torch.cuda.max_memory_allocated()
    return int(resident)
