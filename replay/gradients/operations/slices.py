r"""Results that are a slice of their operand, and operands that are a slice of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replay.gradients.operations.dimensions import Shape, signed

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Slice:
    """Some rows of one dimension of a longer tensor.

    Attributes:
        dim: That dimension.
        start: Its first row; None is not known.
        length: How many rows.
        single: Whether the slice lacks the dimension.
    """

    dim: int
    start: int | None
    length: int
    single: bool = False

    def owner(self, each: int) -> int | None:
        """Return the only one of blocks of ``each`` rows that it touches."""
        if self.start is None or not self.length:
            return None
        first, last = self.start // each, (self.start + self.length - 1) // each
        return first if first == last else None


Cut = Callable[[Values, int, Shape, Shape], Slice]
Join = Callable[[Values, int, Shape, list[Shape | None]], Slice]


def select(values: Values, output: int, made: Shape, given: Shape) -> Slice:
    """``x[k]``."""
    dim = signed(values[0]) % len(given)
    return Slice(dim, signed(values[1]) % given[dim], 1, single=True)


def cut(values: Values, output: int, made: Shape, given: Shape) -> Slice:
    """``x[start:end:step]``."""
    dim = signed(values[0]) % len(given)
    start, size = signed(values[1] or 0), given[dim]
    start = max(0, start + size) if start < 0 else min(start, size)
    return Slice(dim, start if values[2] == 1 else None, made[dim])


def split(values: Values, output: int, made: Shape, given: Shape) -> Slice:
    """``split`` into equal parts, or into parts of given sizes."""
    dim, sizes = signed(values[0]) % len(given), values[1]
    start = output * sizes if isinstance(sizes, int) else sum(sizes[:output])
    return Slice(dim, start, made[dim])


def unbind(values: Values, output: int, made: Shape, given: Shape) -> Slice:
    """``unbind``."""
    return Slice(signed(values[0]) % len(given), output, 1, single=True)


def cat(values: Values, slot: int, made: Shape, given: list[Shape | None]) -> Slice:
    """``cat``; of constants among the operands no size is known."""
    dim = signed(values[0]) % len(made)
    # a vector without entries may be joined to anything
    sizes = [None if s is None else s[dim] if len(s) == len(made) else 0 for s in given]
    before = sum(size or 0 for size in sizes[:slot])
    return Slice(dim, None if None in sizes[:slot] else before, sizes[slot] or 0)


def stack(values: Values, slot: int, made: Shape, given: list[Shape | None]) -> Slice:
    """``stack``."""
    return Slice(signed(values[0]) % len(made), slot, 1, single=True)
