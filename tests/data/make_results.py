"""Wrote ``result-version-*.h5`` and their JSON files; kept to show how, never to be run again.

PYTHONPATH=. python tests/data/make_results.py VERSION

Version 0 is what was written before result files had a version.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from replay import Replay, Task
from tracer import TracingSGD

HERE = Path(__file__).parent


def trace(log, name):
    """Trace four steps of SGD with momentum; examples are called by ``name`` of their number."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10, 3, generator=generator), torch.arange(10) % 2
    data = {name(k): (x[k], y[k]) for k in range(10)}
    train, test = (dict(list(data.items())[part]) for part in (slice(6), slice(6, 10)))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    task = Task(lambda: nn.Linear(3, 2), loss, train, test)
    torch.manual_seed(0)
    model = task.model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    with TracingSGD(sgd, model, log) as optimizer:
        for t in range(4):
            ids = [name(k) for k in (t, t + 1)]
            optimizer.zero_grad()
            loss(model, task.collate([train[k] for k in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    return task


def content(found):
    """Return a result as plain values."""
    tables = {
        name: nested(getattr(found, name))
        for name in ("scores", "drops", "terms", "quadrature", "visits")
        if hasattr(found, name)
    }
    lists = {name: getattr(found, name) for name in ("test_ids", "steps") if hasattr(found, name)}
    return {"train_ids": found.train_ids, **lists, **tables, "attributes": dict(found.attributes)}


def nested(values):
    """Return arrays as lists; what is not a number is None."""
    if isinstance(values, dict):
        return {key: nested(value) for key, value in values.items()}
    if values.dtype.kind != "f":
        return values.tolist()
    return np.where(np.isnan(values), None, values).tolist()


def main(version):
    """Write results with integer and with string IDs, and a self-influence."""
    for kind, name in (("integers", int), ("strings", "row {}".format)):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "run.h5"
            run = Replay(log, task=trace(log, name))
            methods = ("tracin", "ideal", "tracincp", "tracin-sgd")
            tests = [name(k) for k in (8, 6)]
            results = {
                f"influence-{kind}": run.influence(tests, methods=methods, progress=False),
                f"self-{kind}": run.self_influence(progress=False),
            }
            for what, found in results.items():
                path = HERE / f"result-version-{version}-{what}.h5"
                found.attributes["log"] = "run.h5"
                found.save(path, overwrite=True)
                path.with_suffix(".json").write_text(json.dumps(content(found), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
