r"""TracInCP: the checkpoint heuristic, for every training example.

    tracincp(z, z') = Σ_k η_{t_k} ⟨∇φ(w_{t_k}, z'), ∇ℓ(w_{t_k}, z)⟩,

both sides in eval mode with the buffers of the checkpoint, no visit indicator, no ``1/b``.
Source: Pruthi et al. (arXiv 2002.08484), section 3.3; Captum's ``TracInCP`` computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from replay.evaluate.chunks import placed
from replay.evaluate.state import State, States
from replay.evaluate.test_side import Examples
from replay.gradients.forms import products
from replay.gradients.forms.per_example import PerExample
from tracer.errors import InputError
from tracer.log.read.run_log import RunLog


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot that TracInCP uses.

    Attributes:
        index: ``k``: the parameters before step ``k``; ``len(log)`` the final ones.
        state: Parameters and buffers.
        scale: Learning rate of each parameter at step ``min(k, T − 1)``.
    """

    index: int
    state: State
    scale: dict[str, float]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"checkpoint {self.index}"


def tables(
    checkpoint: Checkpoint, test: list[Examples], train: list[Examples]
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Yield one checkpoint's part of the scores, block by block.

    Args:
        checkpoint: The checkpoint.
        test: Chunks of test examples.
        train: Chunks of training examples.

    Yields:
        Rows and columns of a block, and the block, float64.
    """
    for rows, chunk in placed(test):
        names = checkpoint.scale.keys()
        gradients = chunk.gradients(checkpoint.state, checkpoint.name, names=names)
        for columns, scores in against(checkpoint, gradients, train):
            yield (rows, columns), scores


def against(
    checkpoint: Checkpoint, test: PerExample, train: list[Examples]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the scores of some test examples whose gradients are known, block by block."""
    for columns, block in placed(train):
        found = block.gradients(checkpoint.state, checkpoint.name, names=checkpoint.scale.keys())
        yield columns, products.inner(test, found, checkpoint.scale).cpu()


def checkpoint(states: States, k: int, names: frozenset[str] | None = None) -> Checkpoint:
    """Return checkpoint ``k`` of a run; products are taken over ``names``, by default all."""
    step = states.step(min(k, states.last - 1))
    scale = {
        name: group.hyperparameters["lr"]
        for group in step.groups
        for name in group.names
        if name not in step.frozen and (names is None or name in names)
    }
    return Checkpoint(k, states.at(k), scale)


def choose(log: RunLog, checkpoints: int | str | Sequence[int]) -> list[int]:
    """Return the steps that a choice of checkpoints means.

    Args:
        log: The run, with ``T`` steps.
        checkpoints: A number n (steps ``round(k T / n)``, k = 1..n, each once), a list of
            steps in ``0..T``, ``"epochs"`` (the last state of each epoch) or ``"all"``
            (``0..T−1``).

    Raises:
        InputError: The choice cannot be read, or the run does not have it.
    """
    total = len(log)
    listed = checkpoints.tolist() if hasattr(checkpoints, "tolist") else checkpoints
    if listed == "all":
        return list(range(total))
    if listed == "epochs":
        return _epoch_ends(log)
    numbers = list(listed) if isinstance(listed, Iterable) else [listed]
    if isinstance(listed, str) or not all(isinstance(k, Integral) for k in numbers):
        raise InputError(
            f'checkpoints must be a number, a list of steps, "epochs" or "all", '
            f"found {checkpoints!r}."
        )
    steps = [int(k) for k in numbers]
    if not isinstance(listed, Iterable):
        count = steps[0]
        if count < 1:
            raise InputError(f"checkpoints must be at least 1, found {count}.")
        return sorted({round(k * total / count) for k in range(1, count + 1)})
    bad = [k for k in steps if not 0 <= k <= total]
    if bad or not steps or len(set(steps)) < len(steps):
        found = f"step {bad[0]}" if bad else f"{steps}"
        raise InputError(
            f"checkpoints are different steps from 0 to {total} of this run, found {found}."
        )
    return steps


def _epoch_ends(log: RunLog) -> list[int]:
    epochs = [step.epoch for step in log.steps()]
    if any(epoch is None for epoch in epochs):
        raise InputError(
            f'checkpoints="epochs", but {log.path} has steps without an epoch; set '
            "optimizer.epoch = epoch in the training loop, or give steps or a number."
        )
    following = [*epochs[1:], None]
    return [t + 1 for t, (a, b) in enumerate(zip(epochs, following, strict=True)) if a != b]
