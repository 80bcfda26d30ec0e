r"""TracInCP: the checkpoint heuristic, for every training example.

    tracincp(z, z') = Σ_k η_{t_k} ⟨∇φ(w_{t_k}, z'), ∇ℓ(w_{t_k}, z)⟩,

both sides in eval mode with the buffers of the checkpoint, no visit indicator, no ``1/b``.
With ``record="seeds"``, examples are those of the checkpoint's epoch.
Source: Pruthi et al. (arXiv 2002.08484), section 3.3; Captum's ``TracInCP`` computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        The columns of a block, and the block, float64 ``(m, ...)``.
    """
    for columns, block in placed(train):
        found = gradients(checkpoint, block)
        yield columns, products.inner(test, found, checkpoint.scale).cpu()


def gradients(checkpoint: Checkpoint, train: Examples) -> PerExample:
    """Return the gradients of training examples at a checkpoint, as its epoch drew them."""
    train.batches.begin_epoch(checkpoint.epoch)
    return train.gradients(checkpoint.state, checkpoint.name, names=checkpoint.scale.keys())


METHOD = Method(TRACINCP, score=score)
