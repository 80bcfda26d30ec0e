"""What the paper's formula misses when training is not plain SGD: digits, one epoch, each rule.

Each run is scored exactly (``tracin``) and by the formula that ignores the optimizer
(``tracin-sgd``); medians over 20 test examples.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from replay import Replay
from tracer import TracingOptimizer, with_ids

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples are not installed
from examples.digits import task

O = torch.optim  # noqa: E741
RUNS = {
    "SGD": lambda p: O.SGD(p, lr=0.1),
    "SGD, clipped at 0.2": lambda p: O.SGD(p, lr=0.1),
    "heavy ball 0.9": lambda p: O.SGD(p, lr=0.02, momentum=0.9),
    "Nesterov 0.9, decay 5e-4": lambda p: O.SGD(
        p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "AdamW": lambda p: O.AdamW(p, lr=3e-3),
    "RMSprop": lambda p: O.RMSprop(p, lr=1e-3),
    "Adagrad": lambda p: O.Adagrad(p, lr=0.03),
}
METRICS = ("pearson", "spearman", "top_proponents", "slope", "total_ratio")


def trace(name: str, path: Path) -> None:
    torch.manual_seed(0)
    model = task.model()
    loader = DataLoader(with_ids(task.train), batch_size=32, shuffle=True)
    with TracingOptimizer(RUNS[name](model.parameters()), model, path) as optimizer:
        for ids, batch in loader:
            optimizer.zero_grad()
            task.loss(model, batch).mean().backward()
            if "clipped" in name:
                optimizer.clip_grad_norm_(0.2)
            optimizer.step(batch_ids=ids)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'tracin-sgd against tracin':26s}", *(f"{m:>15s}" for m in METRICS))
    with tempfile.TemporaryDirectory() as folder:
        for k, name in enumerate(RUNS):
            path = Path(folder) / f"{k}.h5"
            with redirect_stderr(StringIO()):
                trace(name, path)
            found = Replay(path, task=task).influence(
                list(task.test)[:20], methods=("tracin", "tracin-sgd"), progress=False
            )
            agreement = found.agreement(k=10)
            rows = [agreement.get(("tracin", "tracin-sgd"), metric).median for metric in METRICS]
            print(f"{name:26s}", *(f"{row:15.4g}" for row in rows))


if __name__ == "__main__":
    main()
