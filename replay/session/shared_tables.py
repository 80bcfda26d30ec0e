"""What processes have put on file, added up in the order in which one process alone adds."""

from __future__ import annotations

from collections.abc import Iterator

from replay.evaluate.test_side import Examples
from replay.results.influence import Influence
from replay.results.part_file import Arrays
from replay.results.parts import Parts
from replay.results.room import Room
from replay.session.bound_run import BoundRun
from replay.session.grid import Grid, TrainingBlocks
from replay.session.question import Question
from replay.session.score_tables import ScoreTables
from replay.session.scoring import finished
from tracer.errors import InputError


def of_chunk(rows: slice) -> str:
    """Return how a chunk of test examples is called."""
    return f"rows {rows.start}-{rows.stop}"


def of_step(t: int, rows: slice) -> str:
    """Return the name of a part: a step, for a chunk."""
    return f"step {t}, {of_chunk(rows)}"


def of_checkpoint(k: int, rows: slice, columns: slice | None = None) -> str:
    """Return the name of a part: scores at a checkpoint, for a chunk.

    Args:
        k: The checkpoint.
        rows: The chunk.
        columns: Of training examples; None is the last part, which the others come before.
    """
    name = f"checkpoint {k}, {of_chunk(rows)}"
    return name if columns is None else f"{name}, columns {columns.start}-{columns.stop}"


def added_up(
    run: BoundRun, question: Question, parts: Parts, grid: Grid, room: Room, *, plain: bool
) -> Influence:
    """Return the result of all parts.

    Args:
        run: The run.
        question: What was asked.
        parts: All of them.
        grid: How the work was divided.
        room: Where its tables are.
        plain: Whether steps are independent, so that one process alone takes them forwards.
    """
    tables, scaled = ScoreTables(question, room), set[int]()
    for rows, _ in grid.chunks:
        for kind, k in _order(run, question, plain=plain):
            if kind == "step":
                found = parts[of_step(k, rows)]
                run.states.adopt(found)
                tables.add_step(rows, k, run.log.batch_ids(k), found)
                scaled |= {k} if found["outside"] else set()
                continue
            for name, columns, _ in pieces(k, rows, grid.blocks):
                found = parts[name]
                _require_columns(parts, name, found, columns)
                for method in question.summing:
                    tables.add_scores(method.name, k, rows, columns, found[method.name])
            run.states.adopt(found)
            if "values" in found:
                tables.add_values(k, rows, found["values"])
    return finished(run, question, tables, len(scaled) if question.walking else None)


def pieces(
    k: int, rows: slice, blocks: TrainingBlocks
) -> Iterator[tuple[str, slice, list[Examples]]]:
    """Yield the parts of a chunk at a checkpoint: name, columns, training examples."""
    columns = list(blocks.columns)
    for some, examples in columns[:-1]:
        yield of_checkpoint(k, rows, some), some, examples
    yield of_checkpoint(k, rows), *columns[-1]


def _require_columns(parts: Parts, name: str, found: Arrays, columns: slice) -> None:
    """Raise InputError if a part has other columns than those that are to be added."""
    if (own := found["columns"].tolist()) != [columns.start, columns.stop]:
        raise InputError(
            f"{parts.path}: {name} has the scores of training examples {own[0]} to {own[1]}, "
            f"expected {columns.start} to {columns.stop}.\n"
            "1. Remove that folder, and give the same command again."
        )


def _order(run: BoundRun, question: Question, *, plain: bool) -> Iterator[tuple[str, int]]:
    """Yield steps and checkpoints: a checkpoint follows the step at which a walk comes past it."""
    rest = list(question.checkpoints if question.summing else ())
    if question.walking:
        stop = question.steps.stop
        for t in question.steps if plain else reversed(question.steps):
            yield "step", t
            for k in (t, t + 1) if t + 1 == stop else (t,):
                if k in rest and (k == t or _same_buffers(run, t)):
                    rest.remove(k)
                    yield "checkpoint", k
    yield from (("checkpoint", k) for k in rest)


def _same_buffers(run: BoundRun, t: int) -> bool:
    now = run.states.transition(t)
    return now.before.same_buffers(now.after)
