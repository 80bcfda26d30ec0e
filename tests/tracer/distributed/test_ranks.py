"""Runs of two ranks: training stays what it is, and one process replays what the ranks did."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from replay import Replay
from replay.counterfactual import stacks
from replay.counterfactual.runs import Runs
from tests.helpers.command import run
from tests.helpers.ranks import SIZE, STORIES, X, Y, batches_of, losses, task
from tracer import open_log

BY_HAND = ("uneven", "counts", "accumulated", "synced", "own-buffers", "coupled")


def replay(folder, name):
    return Replay(folder / f"{name}.h5", task(STORIES[name]))


def own(name):
    """Return the micro-batches of each step: a list of them for each rank."""
    ranks = [list(batches_of(STORIES[name], rank)) for rank in (0, 1)]
    return list(zip(*ranks, strict=True))


def test_training_is_bitwise_what_it_is_untraced(runs):
    assert [found["bitwise"] for found in runs[1]] == [dict.fromkeys(STORIES, True)] * 2


@pytest.mark.parametrize("name", STORIES)
def test_it_replays_on_one_process(runs, name):
    steps = len(own(name))
    found = replay(runs[0], name).verify(progress=False)
    assert found.steps == range(steps)
    assert found.deviation < 1e-12
    if name == "dropping":  # its log has digests
        assert not found.proof.unproved
        assert found.proof.proved == steps


def expected(name, ranks):
    """Return rank, IDs and coefficients of a step's micro-batches, by the definition."""
    story = STORIES[name]
    if name == "coupled":
        joined = [[a, b] for a, b in zip(*ranks, strict=True)]
        return [
            (0, a + b, [1 / (2 * len(joined) * len(ids)) for ids in (a, b) for _ in ids])
            for a, b in joined
        ]
    found = []
    for rank, some in enumerate(ranks):
        for ids in some:
            c = [1 / (2 * len(some) * len(ids))] * len(ids)
            c = [0.5] * len(ids) if story.traced.get("reduction") else c
            c = [(k + 1) / 7 / 2 for k in range(len(ids))] if story.weights else c
            found.append((rank, ids, c))
    return found


@pytest.mark.parametrize("name", STORIES)
def test_the_log_has_the_examples_and_coefficients_of_all_ranks(runs, name):
    with open_log(runs[0] / f"{name}.h5") as log:
        assert log.metadata["ranks"] == 2
        for step, ranks in zip(log.steps(), own(name), strict=True):
            for micro, (rank, ids, c) in zip(
                step.micro_batches, expected(name, ranks), strict=True
            ):
                assert (micro.rank, list(micro.ids)) == (rank, ids)
                np.testing.assert_allclose(micro.coefficients, c, rtol=1e-15)


def test_inspect_shows_how_many_ranks_there_were(runs, capsys):
    assert "cpu, 2 ranks of " in run(capsys, "inspect", runs[0] / "uneven.h5")[1]
    code, out, _ = run(capsys, "inspect", runs[0] / "uneven.h5", "--json")
    assert (code, json.loads(out)["ranks"]) == (0, 2)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_first_step_is_the_mean_over_ranks(runs, name):
    with open_log(runs[0] / f"{name}.h5") as log:
        before, after, buffers = log.parameters(0), log.parameters(1), log.buffers(1)
    model = STORIES[name].model()
    model.load_state_dict({**model.state_dict(), **before})
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    ranks = own(name)[0]
    if name == "coupled":
        ranks = [[a + b for a, b in zip(*ranks, strict=True)]]
    for rank, some in enumerate(ranks):
        for ids in some:
            loss = losses(model, {"x": X[ids], "y": Y[ids]}).mean() / len(some) / len(ranks)
            for total, part in zip(
                gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                total += part
        if rank == 0:
            left = {n: b.clone() for n, b in model.named_buffers()}
    for (n, w), gradient in zip(before.items(), gradients, strict=True):
        torch.testing.assert_close(w - after[n], 0.1 * gradient, rtol=1e-9, atol=1e-12)
    assert buffers.keys() == left.keys()
    for n, buffer in buffers.items():
        torch.testing.assert_close(buffer, left[n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["accumulated", "spectral"])
def test_the_run_taken_again_ends_where_it_ended(runs, name):
    found = replay(runs[0], name).counterfactual([0], remove=[[], [SIZE - 1]], progress=False)
    assert abs(found.change[0]).max() < 1e-12 < abs(found.change[1]).max()


def test_unrolled_is_the_derivative_of_the_run_taken_again(runs):
    run, h, z = replay(runs[0], "accumulated"), 1e-4, 3
    scores = run.influence([0, 1], methods=("unrolled",), train_ids=[z], progress=False)
    more, less = (
        run.counterfactual([0, 1], scale={z: 1 + s * h}, progress=False).values[0] for s in (1, -1)
    )
    np.testing.assert_allclose(scores.scores["unrolled"][:, 0], (less - more) / (2 * h), rtol=1e-6)


def test_runs_taken_together_end_where_each_ends_alone(runs, monkeypatch):
    monkeypatch.setattr(stacks, "_tried", lambda *_: True)  # these are not, but for rounding
    monkeypatch.setattr(Runs, "is_run", lambda *_: True)
    run = replay(runs[0], "own-buffers")
    removed = [[k] for k in range(SIZE)] + [[k, k + 1] for k in range(9)]
    together = run.counterfactual([0], remove=removed, progress=False).values
    alone = run.counterfactual([0], remove=removed[:1], progress=False).values
    np.testing.assert_allclose(together[:1], alone, rtol=1e-12)


def test_every_occurrence_has_its_share_of_a_step(runs):
    """The step is divided into the gradients of all ranks' examples, with nothing left over."""
    found = replay(runs[0], "spectral").influence([0], methods=("tracin",), progress=False)
    parts = found.completeness["tracin"]
    assert abs(parts["rounding"][0]) < 1e-12 < abs(parts["data"][0])


@pytest.mark.parametrize(("name", "count"), [("sampler", 22), ("drop-last", 20)])
def test_a_sampler_s_padding_is_an_example_that_stands_twice(runs, name, count):
    with open_log(runs[0] / f"{name}.h5") as log:
        first = [identity for t in range(3) for identity in log.batch_ids(t)]
    assert len(first) == count
    assert len(set(first)) == min(count, 21)


def test_a_rank_s_random_state_is_written_when_it_changes(runs):
    with open_log(runs[0] / "uneven.h5") as log:  # no dropout
        assert log.tables.length("snap/rng") == 2
        micros = [micro for step in log.steps() for micro in step.micro_batches]
    states = {micro.rank: micro.random_state.cpu for micro in micros}
    assert not torch.equal(*states.values())
    assert all(torch.equal(micro.random_state.cpu, states[micro.rank]) for micro in micros)
