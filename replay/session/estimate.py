"""What a replay will take, from a few timed steps, and what it took."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from replay.evaluate.chunks import BLOCK
from replay.evaluate.slots import SLOTS
from replay.evaluate.test_side import Examples
from replay.processes.launch import at_once
from replay.progress import Progress, duration
from replay.results.agreement import compare_methods
from replay.results.summary import counted_threads
from replay.session.bound_run import BoundRun
from replay.session.crew import Crew
from replay.session.periods import Periods
from replay.session.plan import passes_of
from replay.session.question import Question
from replay.session.scoring import settle
from replay.session.segments import segments
from replay.steps.tape import Tape

_STEPS = 4  # timed beyond the first, which also proves the gradients
_EXAMPLES = 64  # training examples timed at a checkpoint, at least
_TERMS = 12  # tables over steps, of each method


@dataclass(frozen=True)
class Cost:
    """Time and memory.

    Attributes:
        seconds: Duration.
        peak_bytes: The most memory that the processes held, on their devices and beside them.
        table_bytes: What of it are tables of results, which no budget bounds.
        threads: With how many threads; 0 if that is not known.
        passes: How many states of the run are taken in one pass, or why each takes its own; see
            ``Replay.plan``.
        starting: What of the seconds is for starting processes.
    """

    seconds: float
    peak_bytes: int
    table_bytes: int = 0
    threads: int = 0
    passes: dict[str, str] = field(default_factory=dict)
    starting: float = 0.0

    def with_start(self, own: float, workers: int) -> Cost:
        """Return what it is with the start, which takes one process of this machine ``own``.

        A job of several has one more process, which starts the others.
        """
        turns = 1 if workers == 1 else 1 + workers / at_once(workers, 1)
        starting = own * turns
        return replace(self, seconds=self.seconds + starting, starting=starting)

    def __str__(self) -> str:
        tables = f", {self.table_bytes / 1e9:.2f} GB of it tables" if self.table_bytes else ""
        threads = f", {counted_threads(self.threads)}" if self.threads else ""
        memory = f"peak memory {self.peak_bytes / 1e9:.2f} GB{tables}"
        start = f", {duration(self.starting)} of it to start" if self.starting else ""
        return f"{duration(self.seconds)}{start}, {memory}{threads}"


def estimated(run: BoundRun, question: Question, workers: int = 1) -> Cost:
    """Return what answering a question and comparing the methods will take, about.

    Some steps of the window and a few training examples at the first checkpoint are computed:
    steps in the middle if the log has what comes before them, since early ones often refine a
    split more often than late ones.

    Args:
        run: The run.
        question: The question.
        workers: How many processes of this machine divide the work.
    """
    columns, whole = question.train_ids, replace(question, periods=Periods())
    split = tuple(m for m in question.methods if m.walks)
    crew, held, passes = Crew(run, workers), 0, dict[str, str]()
    began = time.perf_counter()
    if workers == 1:  # a job takes what it is told
        settle(run, question)
    seconds = time.perf_counter() - began
    if split:
        walk = replace(whole, methods=split, train_ids=columns[:1], checkpoints=[])
        passes = _passes(run, walk)
        some = any(why.startswith(str(SLOTS)) for why in passes.values())
        more = min((2 * SLOTS if some else _STEPS) + 1, len(question.steps))
        took, held = _walked(run, walk, crew, more)
        seconds += took
    if question.summing:
        sums = replace(whole, methods=question.summing, checkpoints=[0])
        took, shelf = _summed(run, sums, crew, len(question.checkpoints))
        seconds, held = seconds + took, held + shelf
    seconds += _comparing(question)
    cells = question.periods.tables * len(question.methods) * len(columns)
    terms = _TERMS * len(split) * len(question.steps)
    tables = 8 * len(question.test_ids) * (cells + terms)
    threads, peak = run.computing.threads.number, workers * (peak_bytes() + held) + tables
    return Cost(seconds, peak, tables, threads, passes)


def _walked(run: BoundRun, walk: Question, crew: Crew, more: int) -> tuple[float, int]:
    """Return what going through the steps takes, and what is held of them besides."""
    with run.computing(), Progress(enabled=False) as shown:

        def tape(steps: range) -> Tape:
            how = {**walk.tape, "allow_mismatch": True}
            return run.tape(steps, shown, **how)

        plain = tape(walk.steps).plain
        some = _from_the_middle(run, walk.steps, more, plain=plain)
        trials = crew.tried(lambda count: replace(walk, steps=some[:count]), more)
        each, held = trials.each, 0
        if plain:
            each *= crew.share(len(segments(run.states, walk.steps, crew.workers)))
        else:
            chunks = trials.pieces if crew.workers > 1 else len(_chunks(run, walk))
            each, held = _backwards(crew, tape, walk.steps, some, each, chunks)
    seconds = crew.begins(trials) + crew.own(trials.base) + trials.last
    return seconds + len(walk.steps) * (each + trials.adding), held


def _backwards(
    crew: Crew, tape: Callable[[range], Tape], steps: range, some: range, each: float, chunks: int
) -> tuple[float, int]:
    """Return what a step takes of a run that is walked backwards, and what is held of all.

    The training side is taken as often as nobody has it in memory; processes may hand it on.

    Args:
        crew: The processes.
        tape: Makes the training side of some steps.
        steps: All of them.
        some: Those that were tried.
        each: Seconds of one of these, of all processes together.
        chunks: How many groups of test examples there are.
    """
    whole, tried = tape(steps).estimate(), tape(some).estimate()
    taken = _timed(lambda count: list(tape(some[:count]).forwards()), len(some))[1]
    before = 0.0
    if whole.replays:  # without its examples' gradients
        before = _timed(lambda count: list(tape(some[:count]).checks()), len(some))[1]
    handed = crew.hands_on(tape(steps))
    rounds, busy = math.ceil(chunks / crew.workers), min(chunks, crew.workers)
    times = (rounds if handed else chunks) if whole.replays else (1 if handed else busy)
    training = taken + before * whole.replays / len(steps)
    found = taken + before * tried.replays / len(some)
    test = max(0.0, each - found * (chunks if tried.replays else 1)) * crew.share(chunks)
    seconds = test + training * times * crew.share(crew.workers if handed else chunks)
    return seconds, max(0, whole.nbytes - tried.nbytes)


def _from_the_middle(run: BoundRun, steps: range, count: int, *, plain: bool) -> range:
    """Return so many steps about the middle, before which everything is on file."""
    start = steps[(len(steps) - count) // 2]
    if not (plain and run.log.is_dense):
        known = [t for t in run.log.states() if steps.start <= t <= start]
        start = max(known, default=steps.start)
    return range(start, start + count)


def _chunks(run: BoundRun, walk: Question) -> list[Examples]:
    """Return the test examples of a walk backwards, as one process alone takes them."""
    of = run.chunks.of
    return of(walk.test_ids, "test", kept=walk.vectors, between=walk.refines)


def _summed(run: BoundRun, sums: Question, crew: Crew, points: int) -> tuple[float, int]:
    """Return what the scores at some checkpoints take, and what is held of examples' data."""
    columns, took = sums.train_ids, run.chunks.took
    with run.computing():
        block, shelf = run.chunks.block(columns)
        more = min(max(_EXAMPLES + 1, block), len(columns))  # a whole block: its memory is met
        before = took["train"]
        run.chunks.of(columns[:more], "train", most=BLOCK)  # compared with others here
        compared = took["train"] - before
    share = len(columns) / more if run.chunks.asked_of_all["train"] else 1.0
    trials = crew.tried(lambda count: replace(sums, train_ids=columns[:count]), more)
    one = trials.base + len(columns) * trials.each, trials.last + len(columns) * trials.adding
    seconds = points * (one[0] * crew.share(points * trials.pieces) + one[1])
    return seconds + crew.begins(trials) + compared * share, shelf


def _passes(run: BoundRun, walk: Question) -> dict[str, str]:
    """Return how many states of the run are taken in one pass."""
    with run.computing(), Progress(enabled=False) as shown:
        tape = run.tape(walk.steps, shown, **walk.tape)
        chunks = run.chunks.of(walk.test_ids, "test", between=walk.refines)
        return passes_of(tape, chunks, walk.steps)


def _comparing(question: Question) -> float:
    """Return what comparing the methods takes afterwards: a test example's share of it, timed."""
    random, n = np.random.default_rng(0), len(question.train_ids)
    rows = {method.name: random.normal(size=(2, n)) for method in question.methods}
    few = {name: table[:1] for name, table in rows.items()}
    _, each = _timed(lambda size: compare_methods(few if size == 1 else rows, k=10), 2)
    return each * len(question.test_ids)


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
