"""Wrote ``version-1*.h5`` and their JSON files; kept to show how, never to be run again.

PYTHONPATH=. python tests/data/make_version_1.py
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
from torch import nn

from tracer import TracingOptimizer, open_log

HERE = Path(__file__).parent


def checksum(tensors):
    """Return a checksum of named tensors."""
    crc = 0
    for name, tensor in tensors.items():
        crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def main(compression):
    """Trace six Adam steps with string IDs, weights, buffers, dropout and recorded batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[3].bias.requires_grad_(False)
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    path = HERE / f"version-1-{compression}.h5"
    options = {"record": "batches", "state_every": 4, "compression": compression}
    with TracingOptimizer(adam, model, path, task="task.py:task", **options) as optimizer:
        for t in range(6):
            optimizer.epoch = t // 3
            optimizer.zero_grad()
            x = torch.randn(4, 3)
            ids = [f"row {k}" for k in range(t, t + 4)]
            model(x).square().mean().backward()
            optimizer.observe(ids, weights=[0.1, 0.2, 0.3, 0.4], batch={"x": x, "kind": "row"})
            optimizer.step()
    path.with_suffix(".json").write_text(json.dumps(content(path), indent=1) + "\n")


def several():
    """Trace five steps of two optimizers: of both, of one, of the other, and so on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    parts = {"first": torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9),
             "second": torch.optim.AdamW(model[1].parameters(), 0.01)}  # fmt: skip
    path = HERE / "version-1-several.h5"
    with TracingOptimizer(parts, model, path, record="batches", state_every=2) as optimizer:
        for t, who in enumerate([optimizer, *map(optimizer.__getitem__, [*parts] * 2)]):
            optimizer.zero_grad()
            x = torch.randn(4, 3)
            model(x).square().mean().backward()
            who.step(batch_ids=range(t, t + 4), batch={"x": x})
    path.with_suffix(".json").write_text(json.dumps(content(path), indent=1) + "\n")


def content(path):
    """Return what a log says, as plain values."""
    with open_log(path) as log:
        return {
            "metadata": {
                k: v for k, v in log.metadata.items() if isinstance(v, (str, int, float, bool))
            },
            "states": log.states(),
            "random": [zlib.crc32(log.state(t)["random"]["cpu"].numpy()) for t in log.states()],
            "parameters": [checksum(log.parameters(t)) for t in range(len(log) + 1)],
            "buffers": [checksum(log.buffers(t)) for t in range(len(log) + 1)],
            "steps": [
                {
                    "ids": step.batch_ids,
                    "epoch": step.epoch,
                    "learning_rate": list(step.learning_rate),
                    "groups": [list(group.names) for group in step.groups],
                    "gradient_norm": step.gradient_norm,
                    "frozen": sorted(step.frozen),
                    **({"optimizers": step.optimizers} if any(step.optimizers.values()) else {}),
                    "coefficients": step.micro_batches[0].coefficients.tolist(),
                    "random": zlib.crc32(step.micro_batches[0].random_state.cpu.numpy()),
                    "batch": checksum({"x": step.micro_batches[0].batch["x"]}),
                }
                for step in log.steps()
            ],
        }


if __name__ == "__main__":
    main("none")
    main("delta")
    several()
