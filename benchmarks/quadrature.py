"""How far the splits of ``ideal`` are off, and how many gradients they take, on the digits run.

The truth is the midpoint rule with 400 nodes, each by one gradient for each test example.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader

from replay import Replay, Task
from tracer import TracingSGD, with_ids

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples are not installed
from examples.digits import task as digits

NODES, TESTS = 400, 20
_BLOCK = 50  # nodes at once


def model(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64), activation(), nn.Linear(64, 32), activation(), nn.Linear(32, 10)
    )


def trace(path: Path, task: Task, rate: float) -> None:
    torch.manual_seed(0)
    module = task.model()
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    sgd = torch.optim.SGD(module.parameters(), lr=rate)
    with TracingSGD(sgd, module, path) as optimizer:
        for ids, batch in loader:
            optimizer.zero_grad()
            task.loss(module, batch).mean().backward()
            optimizer.step(batch_ids=ids)


def truth(run: Replay, test_ids: list[int], rate: float) -> list[Tensor]:
    """Return the split of every step, ``(m, b)`` each, in float64."""
    module = run.task.model().double()

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, parameters, (x[None],)), y[None])

    def gradients(w: dict[str, Tensor], examples: list) -> Tensor:
        """Return gradients at several nodes, ``(nodes, examples, elements)``."""
        x = torch.stack([example[0] for example in examples]).double()
        y = torch.tensor([example[1] for example in examples])
        of_examples = vmap(grad(loss), (None, 0, 0))
        found = vmap(of_examples, (0, None, None))(w, x, y)
        return torch.cat([found[name].flatten(2) for name in w], 2)

    splits, tests = [], [run.task.test[z] for z in test_ids]
    for t in range(len(run.log)):
        ids = run.log.batch_ids(t)
        w, after = ({n: p.double() for n, p in run.log.parameters(k).items()} for k in (t, t + 1))
        own = gradients({n: w[n][None] for n in w}, [run.task.train[z] for z in ids])[0]
        mean = torch.zeros(())
        for block in ((torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES).split(_BLOCK):
            along = {n: w[n] + _at(block, after[n] - w[n]) for n in w}
            mean = mean + gradients(along, tests).sum(0)
        splits.append(rate / len(ids) * (mean / NODES) @ own.T)
    return splits


def _at(u: Tensor, move: Tensor) -> Tensor:
    return u.reshape(-1, *[1] * move.dim()) * move


def main() -> None:
    torch.set_num_threads(1)
    test_ids = list(digits.test)[:TESTS]
    print(f"{'':10s} inside   median      95 %      99 %   within   of these beyond 1e-3")
    for activation, rate in ((nn.ReLU, 0.1), (nn.ReLU, 0.5), (nn.GELU, 0.1), (nn.GELU, 0.5)):
        task = replace(digits, model=lambda activation=activation: model(activation))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.h5"
            trace(path, task, rate)
            run = Replay(path, task=task)
            found = run.influence(test_ids, methods=("ideal",), by="step", progress=False)
            column = {z: k for k, z in enumerate(found.train_ids)}
            errors = []
            for t, exact in enumerate(truth(run, test_ids, rate)):
                ours = found.by_period["ideal"][:, [column[z] for z in run.log.batch_ids(t)], t]
                off = np.linalg.norm(ours - exact.numpy(), axis=1)
                errors.append(off / np.linalg.norm(exact, axis=1))
        error = np.stack(errors)
        half, most, nearly = np.quantile(error, [0.5, 0.95, 0.99])
        within = found.quadrature["split_error"] <= 1e-3
        print(
            f"{activation.__name__} {rate:4}  {found.quadrature['gradients'].mean() - 2:6.2f}  "
            f"{half:8.1e}  {most:8.1e}  {nearly:8.1e}  {100 * within.mean():5.1f} %  "
            f"{100 * (error[within] > 1e-3).mean():5.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
