"""Fills the tables of a result: the methods that split steps, and the checkpoint heuristic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from replay.evaluate.chunks import placed
from replay.evaluate.state import States
from replay.evaluate.test_side import Examples
from replay.methods import tracincp
from replay.session import run_pass
from replay.session.score_tables import Tables
from replay.steps.tape import Tape


def drops(
    states: States, chunks: list[Examples], advance: Callable[[], None]
) -> NDArray[np.float64]:
    """Return every step's measured drop for all chunks, ``(T, m)``."""
    columns = []
    for chunk in chunks:
        rows = []
        for drop in run_pass.drops(states, chunk):
            rows.append(drop.measured.numpy())
            advance()
        columns.append(np.stack(rows))
    return np.concatenate(columns, 1)


def splits(
    tables: Tables,
    tape: Tape,
    chunks: list[Examples],
    settings: run_pass.Settings,
    advance: Callable[[], None],
    heuristic: Callable[[int], tracincp.Checkpoint],
    blocks: list[Examples],
) -> set[int]:
    """Add every step of a tape, for each chunk of test examples.

    Gradients of test examples at a checkpoint serve TracInCP, too.

    Args:
        tables: What is added to.
        tape: The steps.
        chunks: The test examples.
        settings: How steps are split, and which checkpoints there are.
        advance: Called after each step and chunk.
        heuristic: Gives a checkpoint by number.
        blocks: The training examples of TracInCP.

    Returns:
        The checkpoints that were added.
    """
    done: set[int] = set()
    for rows, chunk in placed(chunks):
        for step in run_pass.steps(tape, chunk, settings):
            tables.add_step(rows, step)
            for k, gradients in step.snapshots.items():
                for columns, scores in tracincp.against(heuristic(k), gradients, blocks):
                    tables.add_scores("tracincp", rows, columns, scores.numpy())
                done.add(k)
            advance()
    return done


def checkpoints(
    tables: Tables,
    numbers: list[int],
    heuristic: Callable[[int], tracincp.Checkpoint],
    chunks: list[Examples],
    blocks: list[Examples],
    advance: Callable[[], None],
) -> None:
    """Add TracInCP's scores at every checkpoint, block by block."""
    for k in numbers:
        if k == numbers[-1]:  # what is seen last is proven
            chunks[0].audit()
        for place, scores in tracincp.tables(heuristic(k), chunks, blocks):
            tables.add_scores("tracincp", *place, scores.numpy())
            advance()
