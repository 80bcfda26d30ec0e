"""What a notebook shows of things that hold much: what they are, in a few lines."""

from __future__ import annotations

import re

import pytest
import torch

from replay import Replay, Task
from tests.helpers.cases import cross_entropy, mlp
from tracer import TracingSGD

N = 300


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Return things that hold hundreds of examples, by what their text must say."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    x, y = torch.randn(2 * N, 4), torch.randint(0, 3, (2 * N,))
    data = [(x[k], y[k]) for k in range(2 * N)]
    task = Task(mlp, cross_entropy, dict(enumerate(data[:N])), data[N:])
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with TracingSGD(sgd, model, path) as optimizer:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model, (x[:N], y[:N])).mean().backward()
            optimizer.step(batch_ids=list(range(N)))
    run = Replay(path, task=task)
    found = run.influence(range(N), checkpoints=1000, progress=False)
    step, agreement = run.log.step(0), found.agreement()
    return {
        "Task(model=mlp, loss=cross_entropy, train=dict of length 300, test=list of": task,
        "run.h5: 2 steps of SGD, 6 parameters> with 300 training and 300 test examples>": run,
        "<RunLog ": run.log,
        "Influence of 300 training on 300 test examples over 2 steps\n methods ": found,
        "checkpoints 3 (1000 asked for)\n": found,
        "\n gradients float32": found,
        "SelfInfluence of 300 training examples\n": run.self_influence(progress=False),
        "Agreement: medians over test examples, top 10\n": agreement,
        "pearson, median ": agreement.get(("tracin", "ideal"), "pearson"),
        "<Step 0: 300 examples in 1 micro-batches, gradient norm ": step,
        "<MicroBatch of 300 examples: 0, 1, 2, ...>": step.micro_batches[0],
        "<ParameterGroup of 6 parameters: {'lr': 0.1": step.groups[0],
    }


def test_texts_are_short(shown):
    for said, thing in shown.items():
        for text in (repr(thing), str(thing)):
            assert said in re.sub(" +", " ", text)
            assert len(text) < 700, said
            assert "tensor(" not in text
