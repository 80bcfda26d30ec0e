"""Functions with a backward of their own, as libraries write them, and naive gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F


class FusedCrossEntropy(torch.autograd.Function):
    """Computes its gradient forwards, and scales it in place when backwards."""

    @staticmethod
    def forward(ctx, scores, y):
        slope = scores.softmax(-1) - F.one_hot(y, scores.shape[-1])
        ctx.save_for_backward(slope)
        return F.cross_entropy(scores, y, reduction="none")

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        slope.data.mul_(grad[:, None])
        return slope, None


class Frees(torch.autograd.Function):
    """Lets go what it keeps."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.tanh()
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, grad):
        found = grad * (1 - ctx.kept.square())
        del ctx.kept
        return found


class Forgets(torch.autograd.Function):
    """Gives another gradient the second time, and none of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.tanh()
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, grad):
        found = grad * (1 - ctx.kept.square())
        ctx.kept = torch.ones_like(ctx.kept)
        return found


def own_gradients(forward, parameters, weights):
    """Return the gradient of each ``c_i ℓ_i`` as a row, by passes of its own."""
    rows = []
    for i, weight in enumerate(weights):
        own = torch.autograd.grad(
            forward()[i] * weight, list(parameters.values()), allow_unused=True
        )
        pairs = zip(own, parameters.values(), strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
        )
    return torch.stack(rows)


def written_out(found, parameters):
    """Return all gradients that an engine gave, as rows."""
    blocks = {name: [] for name in parameters}
    for _, forms in found.parts(set(parameters)):
        for name, form in forms.items():
            blocks[name].append(form.dense(slice(0, form.shape[0])))
    n = found.count
    return torch.cat(
        [
            torch.cat(blocks[k]) if blocks[k] else p.new_zeros(n, p.numel())
            for k, p in parameters.items()
        ],
        1,
    )
