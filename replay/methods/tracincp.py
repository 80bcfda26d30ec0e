r"""TracInCP: the checkpoint heuristic, for every training example.

    tracincp(z, z') = Σ_k η_{t_k} ⟨∇φ(w_{t_k}, z'), ∇ℓ(w_{t_k}, z)⟩,

both sides in eval mode with the buffers of the checkpoint, no visit indicator, no ``1/b``.
Where optimizers take turns, a checkpoint stands for a turn of each: ``Σ_o η_o ⟨∇_o φ, ∇_o ℓ_o⟩``
over the optimizers o, with the loss and the parameters of each.
With ``record="seeds"``, examples are those of the checkpoint's epoch.
Source: Pruthi et al. (arXiv 2002.08484), section 3.3; Captum's ``TracInCP`` computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

from replay.evaluate.chunks import placed
from replay.evaluate.test_side import Examples
from replay.gradients.forms import products
from replay.gradients.forms.per_example import PerExample
from replay.methods.method import Method
from replay.methods.names import TRACINCP
from replay.states.checkpoints import Checkpoint


def score(
    checkpoint: Checkpoint, test: PerExample, train: list[Examples]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield one checkpoint's scores of some test examples, block by block.

    Args:
        checkpoint: The checkpoint.
        test: Gradients of m test examples there.
        train: Chunks of training examples.

    Yields:
        The columns of a block, and the block, float64 ``(m, ...)``, which the next one overwrites.
    """
    for columns, block in placed(train):
        parts = (
            products.inner(test, found, scale, f"turn {k}")
            for k, (scale, found) in enumerate(gradients(checkpoint, block))
        )
        yield columns, sum_of(parts).cpu()


def gradients(
    checkpoint: Checkpoint, train: Examples
) -> Iterator[tuple[dict[str, float], PerExample]]:
    """Yield learning rates, and gradients of training examples as the epoch drew them, by turn."""
    train.batches.begin_epoch(checkpoint.epoch)
    for turn in checkpoint.turns:
        own = train.of_step(turn.optimizers)
        yield turn.scale, own.gradients(checkpoint.state, checkpoint.name, names=turn.scale.keys())


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or several turns."""
    return reduce(torch.add, parts)


METHOD = Method(TRACINCP, score=score)
