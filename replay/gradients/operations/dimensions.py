r"""Which dimension of an operand holds the examples, if one of the result does.

An operation that is listed keeps the examples apart by its kind, its shapes and what is recorded of
it, whatever the data say; a rule sees nothing else. One that is not listed may do anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """One operation, seen from a dimension of its result, towards one operand.

    Attributes:
        values: What is recorded of the node.
        output: Which of its results.
        slot: Which operand.
        dim: The dimension of the result that holds the examples.
        made: Shape of the result.
        given: Shape of the operand.
        n: The number of examples.
    """

    values: tuple[Any, ...]
    output: int
    slot: int
    dim: int
    made: Shape
    given: Shape
    n: int

    @property
    def same_rank(self) -> bool:
        """Whether result and operand have equally many dimensions."""
        return len(self.made) == len(self.given)

    def dims(self, which: int = 0) -> list[int]:
        """Return recorded dimensions, counted from the operand's first; none is all of them."""
        found, rank = self.values[which], max(1, len(self.given))
        listed = found if isinstance(found, (tuple, list)) else () if found is None else (found,)
        return [signed(d) % rank for d in listed]


Rule = Callable[[Seen], int | None]
_LAST = 1 << 63  # torch keeps negative dimensions as unsigned numbers


def signed(number: int) -> int:
    """Return a number as torch means it."""
    return number - (1 << 64) if number >= _LAST else number


def shared(s: Seen) -> int | None:
    """A lookup: the table is all examples'."""
    return None


def broadcast(s: Seen) -> int | None:
    """Element by element; a dimension that is repeated has another size in the operand."""
    return s.dim - len(s.made) + len(s.given)


def permuted(s: Seen) -> int | None:
    """``permute``."""
    return s.dims()[s.dim]


def transposed(s: Seen) -> int | None:
    """``transpose``."""
    first, second = s.dims(0)[0], s.dims(1)[0]
    return {first: second, second: first}.get(s.dim, s.dim)


def t(s: Seen) -> int | None:
    """``t()`` of a matrix or a vector."""
    return len(s.made) - 1 - s.dim


def reduced(s: Seen) -> int | None:
    """What sums some dimensions up, or takes one entry of them."""
    dims, keep = s.dims(), s.values[1]
    return s.dim if keep else _left(s, dims)


def _left(s: Seen, dims: list[int]) -> int | None:
    left = [d for d in range(len(s.given)) if d not in dims]
    return left[s.dim]


def removes(*dims: int) -> Rule:
    """Losses that sum up dimensions of their own."""
    return lambda s: _left(s, list(dims))


def along(s: Seen) -> int | None:
    """What is done along some dimensions, by order or by indices, leaves the others alone."""
    dims = s.dims()
    return s.dim if dims and s.dim not in dims else None


def leading(last: int) -> Rule:
    """Whatever is done within the last dimensions."""
    return lambda s: s.dim if s.dim < len(s.made) - last and s.same_rank else None


def normalized(s: Seen) -> int | None:
    """LayerNorm."""
    return leading(len(s.values[0]))(s)


def batch(s: Seen) -> int | None:
    """The first dimension holds the batch in every operand that has it."""
    return 0 if s.dim == 0 and s.same_rank else None


def first_operand(s: Seen) -> int | None:
    """Convolutions and GroupNorm: not their weights."""
    return 0 if s.dim == 0 and s.slot == 0 else None


def product(left: int) -> Rule:
    """Rows of the left matrix, columns of the right one, or the batch of both."""

    def rule(s: Seen) -> int | None:
        if s.slot < left:
            return broadcast(s)
        summed = len(s.made) - (1 if s.slot == left else 2)
        return s.dim if s.dim != summed else None

    return rule


def vector(left: int) -> Rule:
    """A matrix times a vector: rows."""
    return lambda s: None if s.slot > left else 0


def linear(s: Seen) -> int | None:
    """``linear`` as one operation: rows."""
    return s.dim if s.slot == 0 and s.dim < len(s.made) - 1 else None


def batch_norm(s: Seen) -> int | None:
    """In training mode what has the same channel is coupled: InstanceNorm's are of one example."""
    if s.slot == 0:
        return s.dim if s.dim == 1 or not s.values[0] else None
    return 0 if s.dim == 1 else None


def pad(s: Seen) -> int | None:
    """Padding of other dimensions."""
    pads, k = s.values[0], 2 * (len(s.made) - 1 - s.dim)
    return s.dim if all(p == 0 for p in pads[k : k + 2]) else None


def unfolded(s: Seen) -> int | None:
    """Windows of another dimension."""
    return s.dim if s.dim not in (*s.dims(), len(s.made) - 1) else None


def unrolled(s: Seen) -> int | None:
    """A layer of an LSTM: results ``(T, b, ·)``, states ``(b, ·)``."""
    if s.slot not in (0, 5, 6) or len(s.made) != (2 if s.output else 3):
        return None
    whole = s.slot != 0 or len(s.given) == 3
    return len(s.given) - 2 if whole and s.dim == len(s.made) - 2 else None


def cudnn_unrolled(s: Seen) -> int | None:
    """The same on CUDA, which may have the batch first."""
    batch = 0 if s.values[0] else 1
    mine = 1 if s.output else batch
    return batch if s.slot == 0 and len(s.given) == 3 and s.dim == mine else None


def indexed(s: Seen) -> int | None:
    """``x[:, k]`` and ``x[arange(n), k]``: dimensions that no index takes, or example i's own."""
    ranks, own = s.values
    used = [k for k, rank in enumerate(ranks) if rank is not None]
    rest = [k for k in range(len(s.given)) if k not in used]
    apart = used[-1] - used[0] >= len(used)  # then the indices' dimensions come first
    start, rank = 0 if apart else used[0], max(ranks[k] for k in used)
    if not start <= s.dim < start + rank:
        return rest[s.dim if s.dim < start else s.dim - rank]
    mine = own is not None and s.dim == start + rank - own and s.given[0] == s.n
    return 0 if mine else None


def windows(s: Seen) -> int | None:
    """``unfold`` and ``fold`` of a batch: one has a dimension that the other has not."""
    return 0 if s.dim == 0 and {len(s.made), len(s.given)} == {3, 4} else None


def first_kept(s: Seen) -> int | None:
    """Dimensions before a last one that only one of the two has, for complex numbers."""
    return s.dim
