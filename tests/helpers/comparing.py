"""Replays of small runs, their comparison with the forward-buffer reference, and of bits."""

from __future__ import annotations

import numpy as np
import torch

from replay import Replay
from tests.helpers.rules import TEST, expected

TEST_IDS = list(range(TEST))


def compare(run, kappa, *, window=None, memory="2GiB", methods=("tracin", "ideal"), rules=None):
    """Replay a run and hold every number against the reference."""
    found = Replay(run.path, task=run.task, memory=memory, rules=rules).influence(
        TEST_IDS, methods=methods, ideal_tolerance=1e-12, steps=window, by="step", progress=False
    )
    for method in methods:
        nodes = 24 if method == "ideal" else 0
        scores, scale, terms = expected(run, kappa, nodes=nodes, window=window)
        # the reference integrates ideal with 24 nodes, the replay with up to 8
        share = 1e-8 if method == "ideal" else 1e-10
        assert (np.abs(found.scores[method] - scores) <= share * np.maximum(scale, 1e-3)).all()
        by_step = np.moveaxis(found.by_period[method], -1, 0)
        steps = slice(None) if window is None else slice(window.start, window.stop)
        limit = share * np.maximum(scale, 1e-3)
        assert (np.abs(by_step - terms["earned"][steps]) <= limit).all()
        assert (found.by_period[method].sum(-1) == found.scores[method]).all()
        ours = found.terms[method]
        size = 1e-3 + np.abs(terms["data"]).max()
        for term in ("data", "regulariser", "history", "measured"):
            assert np.abs(ours[term] - terms[term]).max() <= share * size, (method, term)
        split = ours["data"] + ours["regulariser"] + ours["history"]
        assert np.abs(ours["rounding"]).max() <= 1e-12 * size
        if method == "tracin":
            assert np.abs(split - terms["slope"]).max() <= 1e-12 * size
        whole = split + ours["buffers"] + ours["rounding"] + ours["residual"]
        assert np.abs(whole - ours["measured"]).max() <= 1e-12 * size
        assert np.allclose(found.scores[method].sum(1), ours["data"].sum(0), rtol=1e-10, atol=1e-13)
        if method == "ideal":
            assert np.abs(ours["residual"]).max() <= 1e-10 * (size + scale.max())
            assert np.abs(found.drops["ideal"] - terms["measured"]).max() <= 1e-10 * size
    return found


def replayed(run, **options):
    """Return the influence of a run."""
    memory = options.pop("memory", "2GiB")
    return Replay(run.path, task=run.task, memory=memory).influence(
        list(range(TEST)), progress=False, **{"methods": ("tracin",), **options}
    )


def same(left, right):
    """Assert that two nests of tensors are the same, bit for bit."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            same(a, b)
    else:
        assert left == right
