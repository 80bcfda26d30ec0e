"""TracInCP beside Captum and dattri: the same scores, the time of each.

1,000 training and 100 test examples, 3 checkpoints, float32, every parameter; beside it the job of
Captum's ``TracInCPFast``, the last layer alone, and *plain*, one plain gradient of everything at
each checkpoint. dattri (its projection off) is timed where it is installed. One process, in turns,
medians of three; what takes over ten seconds is timed once.

    python benchmarks/tracincp.py [MLP|LeNet ...] [--threads N]
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from engine import CASES, labelled
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from replay import Replay, Task
from tracer import TracingSGD

N, M, STEPS, RUNS = 1000, 100, 3, 3
LONG = 10.0  # seconds; what takes longer is timed once
POINTS = [0, 1, 2]
Scores = NDArray[np.float64]
Candidate = Callable[[], "Scores | None"]


class Job:
    """One model's run, and every way to score it."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        case = CASES[name]
        self.model = case.model()
        x, y = case.data(N + M)
        self.sides = {"train": TensorDataset(x[:N], y[:N]), "test": TensorDataset(x[N:], y[N:])}
        self.task = Task(case.model, labelled, self.sides["train"], self.sides["test"])
        self.log = folder / f"{name}.h5"
        with redirect_stderr(StringIO()):
            sgd = torch.optim.SGD(self.model.parameters(), lr=0.1)
            with TracingSGD(sgd, self.model, self.log, snapshot_every=1) as optimizer:
                for t in range(STEPS):
                    ids = list(range(64 * t, 64 * t + 64))
                    optimizer.zero_grad()
                    labelled(self.model, (x[ids], y[ids])).mean().backward()
                    optimizer.step(batch_ids=ids)
        self.run = Replay(self.log, self.task)
        self.states = [self.run.log.parameters(k) for k in POINTS]
        self.last = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)][-1]

    def ours_fresh(self) -> Scores:
        """Score with a new replay: opening, building models and proofs included."""
        self.run = Replay(self.log, self.task)
        return self.ours()

    def ours(self, parameters: str | None = None) -> Scores:
        """Score, reading the log included."""
        found = self.run.influence(
            range(M),
            methods=("tracincp",),
            checkpoints=POINTS,
            parameters=parameters,
            progress=False,
        )
        return found.scores["tracincp"]

    def ours_last(self) -> Scores:
        """Score the last layer's weight, as TracInCPFast does."""
        return self.ours(f"{self.last}.weight")

    def plain(self) -> Scores | None:
        """Take plain gradients of all examples at every checkpoint; there are no scores."""
        model = self.model.eval()
        for k in POINTS:
            self._load(model, str(k))
            for data in self.sides.values():
                for batch in DataLoader(data, batch_size=1000):
                    torch.autograd.grad(labelled(model, batch).sum(), list(model.parameters()))
        return None

    def _load(self, model: nn.Module, k: str) -> float:
        model.load_state_dict(self.states[int(k)])
        return 0.1

    def captum(self, kind: Callable[..., Any], **options: Any) -> Scores:
        """Score with one of Captum's classes."""
        found = kind(
            model=self.model.eval(),
            train_dataset=self.sides["train"],
            checkpoints=[str(k) for k in POINTS],
            checkpoints_load_func=self._load,
            batch_size=100,
            **options,
        )
        return found.influence(self.sides["test"].tensors).double().numpy()

    def captum_each(self) -> Scores:
        """Score with TracInCP, a backward pass an example."""
        loss = nn.CrossEntropyLoss(reduction="none")
        return self.captum(TracInCP, loss_fn=loss, sample_wise_grads_per_batch=False)

    def captum_batch(self) -> Scores:
        """Score with TracInCP, gradients of a batch at once."""
        loss = nn.CrossEntropyLoss(reduction="sum")
        return self.captum(TracInCP, loss_fn=loss, sample_wise_grads_per_batch=True)

    def captum_fast(self) -> Scores:
        """Score with TracInCPFast: the last layer."""
        layer = self.model.get_submodule(self.last)
        loss = nn.CrossEntropyLoss(reduction="sum")
        return self.captum(TracInCPFast, final_fc_layer=layer, loss_fn=loss)

    def dattri(self) -> Scores:
        """Score with dattri, projection off."""
        from dattri.algorithm.tracin import TracInAttributor  # type: ignore[import-not-found]
        from dattri.task import AttributionTask  # type: ignore[import-not-found]

        def loss(parameters: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Tensor:
            x, y = pair[0].unsqueeze(0), pair[1].unsqueeze(0)
            logits = torch.func.functional_call(self.model, parameters, (x,))
            return nn.functional.cross_entropy(logits, y)

        task = AttributionTask(loss, self.model, self.states)
        found = TracInAttributor(task, torch.full((len(POINTS),), 0.1), normalized_grad=False)
        found.projector_kwargs = None  # as an argument None means the default projection
        loaders = (DataLoader(self.sides[side], batch_size=100) for side in ("train", "test"))
        return found.attribute(*loaders).T.double().numpy()


def timed(job: Candidate) -> tuple[float, Scores | None]:
    began = time.perf_counter()
    found = job()
    return time.perf_counter() - began, found


def compare(name: str, folder: Path) -> None:
    job = Job(name, folder)
    pairs: list[tuple[Candidate, list[Candidate]]] = [
        (job.ours, [job.plain, job.ours_fresh, job.captum_each, job.captum_batch]),
        (job.ours_last, [job.captum_fast]),
    ]
    if importlib.util.find_spec("dattri"):
        pairs[0][1].append(job.dattri)
    for ours, others in pairs:
        times: dict[str, list[float]] = {}
        expected = ours()
        for _ in range(RUNS):
            for one in (ours, *others):
                if times.get(one.__name__, [0.0])[0] > LONG:
                    continue
                seconds, found = timed(one)
                times.setdefault(one.__name__, []).append(seconds)
                print(f"  {one.__name__} took {seconds:.2f} s", file=sys.stderr, flush=True)
                if found is not None and expected is not None:
                    gap = np.abs(found - expected).max() / np.abs(expected).max()
                    assert gap < 1e-4, (one.__name__, gap)
        base = statistics.median(times[ours.__name__])
        for key, seconds in times.items():
            middle = statistics.median(seconds)
            print(f"{name:6s} {key:14s} {middle:9.3f} s  {middle / base:8.1f} x", flush=True)


def main(names: list[str], threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            compare(name, Path(folder))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    count = int(arguments.pop(arguments.index("--threads") + 1)) if "--threads" in arguments else 1
    main([a for a in arguments if a != "--threads"] or ["MLP", "LeNet"], count)
