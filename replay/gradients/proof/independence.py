"""Whether what is computed of an example depends on which others are evaluated with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replay.gradients.forms.form import Form
from replay.gradients.proof.agreement import coarsest
from replay.gradients.proof.forward_pass import Pass, gradient
from replay.gradients.proof.plan import row_of
from tracer.errors import GradientError

SMALL = 1e-3  # what is smaller may be what rounding left of a difference of numbers about 1


@dataclass(frozen=True)
class Alone:
    """Examples run alone.

    Attributes:
        forward: Runs example i, returns ``(1,)``.
        agree: Asked, where gradients differ, whether that is rounding.
        keep: Copies what running the model overwrites.
    """

    forward: Callable[[int], Tensor]
    agree: Callable[[], bool]
    keep: Callable[[dict[str, Form]], dict[str, Form]]

    def check(self, found: Pass, forms: dict[str, Form], where: str) -> None:
        """Compare a few examples of a batch, as far as it is used, with each of them alone.

        Raises:
            GradientError: They differ by more than rounding.
        """
        if len(found.losses) == 1:
            return
        most = int(found.losses.detach().argmax())  # whose gradients are not small, probably
        columns = sorted({*some_of(len(found.losses)), most})
        ours = ({name: row_of(form, i) for name, form in forms.items()} for i in columns)
        apart = differ(found, ours, self.forward, columns)
        if apart and not self.agree():
            raise GradientError(
                f"{where}: values of an example depend on which others are evaluated with it in "
                "eval mode (padding, statistics of the batch), which did not show at the first, "
                "middle and last state; evaluate each example alone: memory=1 (--memory 1)."
            )


def some_of(n: int) -> list[int]:
    """Return the few of n examples that are looked at."""
    return sorted({0, n // 2, n - 1})


def differ(
    found: Pass,
    ours: Iterable[dict[str, Tensor]],
    alone: Callable[[int], Tensor],
    columns: Sequence[int],
) -> bool:
    """Return whether losses or gradients in a batch are not those of the examples alone.

    A pass of another size rounds otherwise, and a rounding error can flip a ReLU: gradients, all
    parameters together, may differ by the root of the rounding.

    Args:
        found: The pass with all examples of the batch.
        ours: Flat gradients in it of each example that is looked at, by parameter.
        alone: Runs example i alone, returns ``(1,)``.
        columns: Which examples.
    """
    off, sizes = [], []  # of losses, of gradients
    for i, mine in zip(columns, ours, strict=True):
        loss = alone(i).sum()
        targets = [found.parameters[name] for name in mine]
        rows = gradient(loss, targets, retain=False) if targets else []
        own = dict(zip(mine, rows, strict=True))
        gap = norm(mine[name] - g for name, g in own.items())
        off.append((abs(loss.item() - found.losses[i].item()), gap))
        sizes.append((abs(loss.item()), norm(own.values())))
    allowed = coarsest(found) ** 0.5
    usual = [(sum(x * x for x in one) / len(one)) ** 0.5 for one in zip(*sizes, strict=True)]
    # what is not finite is reported elsewhere
    return any(
        gap > allowed * (max(size, most) + SMALL)
        for gaps, own_sizes in zip(off, sizes, strict=True)
        for gap, size, most in zip(gaps, own_sizes, usual, strict=True)
    )


def norm(gradients: Iterable[Tensor]) -> float:
    """Return the norm of gradients of several parameters, as of one vector."""
    some = (torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients)
    return math.hypot(*map(float, some))
