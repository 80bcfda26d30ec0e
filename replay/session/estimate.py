"""What a replay will take, from a few timed steps, and what it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from replay.evaluate.chunks import BLOCK
from replay.methods import tracincp
from replay.progress import Progress, duration
from replay.session.arguments import Window, window
from replay.session.replay import Replay
from replay.steps.tape import Tape
from replay.task import example_ids
from tracer.records import ID

_STEPS = 4  # timed beyond the first, which also proves the gradients
_EXAMPLES = 64  # training examples timed at a checkpoint, at least


@dataclass(frozen=True)
class Cost:
    """Time and memory.

    Attributes:
        seconds: Duration.
        peak_bytes: The most memory that the process held, on its device and beside it.
    """

    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, peak memory {self.peak_bytes / 1e9:.2f} GB"


def estimate(
    run: Replay,
    test_ids: Sequence[ID],
    *,
    methods: Sequence[str],
    checkpoints: int | str | Sequence[int] = 10,
    steps: Window | None = None,
    parameters: str | Sequence[str] | None = None,
    ideal_tolerance: float | None = 1e-3,
    allow_mismatch: bool = False,
) -> Cost:
    """Return what ``run.influence`` with the same arguments will take, about.

    The first steps of the window and a few training examples at the first checkpoint are
    computed. Early steps refine ``ideal`` more often than late ones.
    """
    chosen = window(steps, len(run.log))
    columns = example_ids(run.task.train)
    split = [name for name in methods if name != "tracincp"]
    seconds, held = 0.0, 0

    def few(count: int) -> None:
        run.influence(
            test_ids,
            methods=split,
            steps=slice(chosen.start, chosen.start + count),
            train_ids=columns[:1],
            parameters=parameters,
            ideal_tolerance=ideal_tolerance,
            allow_mismatch=allow_mismatch,
            progress=False,
        )

    def heuristic(count: int) -> None:
        run.influence(
            test_ids,
            methods=("tracincp",),
            checkpoints=[0],
            train_ids=columns[:count],
            parameters=parameters,
            progress=False,
        )

    if split:
        more = min(_STEPS + 1, len(chosen))
        first, each = _timed(few, more)
        ahead = _ahead(run, chosen, more, test_ids, split, parameters is None)
        seconds += first + each * (len(chosen) - 1) + ahead.seconds
        held = ahead.peak_bytes
    if "tracincp" in methods:
        number = len(tracincp.choose(run.log, checkpoints))
        with run._computing():
            block, shelf = run._chunks.block(columns)
            more = min(max(_EXAMPLES + 1, block), len(columns))  # a whole block: its memory is met
            run._chunks.of(columns[:more], "train", most=BLOCK)  # compared with company here
        share = len(columns) / more if run._chunks.asked_of_all["train"] else 1.0
        seconds += run._chunks.took["train"] * share
        first, each = _timed(heuristic, more)
        seconds += number * (first + each * (len(columns) - 1))
        held += shelf
    seconds += run._chunks.took["test"]
    tables = 8 * len(test_ids) * (len(methods) * len(columns) + 12 * len(split) * len(chosen))
    return Cost(seconds, peak_bytes() + held + tables)


def _ahead(
    run: Replay,
    chosen: range,
    few: int,
    test_ids: Sequence[ID],
    split: Sequence[str],
    whole_model: bool,
) -> Cost:
    """Return what recording a window ahead of the walk takes more than recording few steps.

    Steps that remember others are walked backwards; those that memory does not hold are recorded
    without their examples' gradients first, for each chunk of test examples.
    """
    with run._computing(), Progress(enabled=False) as shown:

        def tape(count: int) -> Tape:
            splits = set(split) != {"tracin-sgd"}
            return run._tape(chosen[:count], shown, allow_mismatch=True, splits=splits)

        whole, part = tape(len(chosen)).estimate(), tape(few).estimate()
        each = 0.0
        if whole.replays:
            chunks = run._chunks.for_splits(test_ids, split, plain=tape(1).plain and whole_model)
            each = len(chunks) * _timed(lambda count: tape(count).check(), few)[1]
    return Cost(whole.replays * each, max(0, whole.nbytes - part.nbytes))


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
