#!/usr/bin/env bash
# In dattri, a projection chosen for one TracIn attributor is used by every attributor made afterwards.
# Versions: dattri 0.3.0, torch 2.13.0.
# One would guess: an attributor without projector_kwargs computes plain gradient products, whatever was made before.
# What happens: it projects to 512 random dimensions, also gradients of 15 numbers. The keyword arguments of
#   each attributor are merged into the module's own table of defaults, so proj_dim=2 stays for the next ones.
# Output seen:
#   dattri 0.3.0, torch 2.13.0
#   defaults off by 0.11; proj_dim=2 by 1.01; defaults again by 1.01
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile dattri==0.3.0 torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in ("dattri", "torch"))
torch.manual_seed(0)
model = torch.nn.Linear(4, 3).eval()
train = TensorDataset(torch.randn(10, 4), torch.randint(0, 3, (10,)))
test = TensorDataset(torch.randn(2, 4), torch.tensor([0, 1]))


def loss(params, data):
    return cross_entropy(torch.func.functional_call(model, params, data[0][None]), data[1][None])


def gradient(x, y):
    grads = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def off(projector_kwargs):
    task = AttributionTask(loss_func=loss, model=model, checkpoints=[model.state_dict()])
    tool = TracInAttributor(task, torch.ones(1), normalized_grad=False, projector_kwargs=projector_kwargs)
    scores = tool.attribute(DataLoader(train, batch_size=5), DataLoader(test, batch_size=2))
    return float((scores - expected).norm() / expected.norm())


rows = [torch.stack([gradient(x, y) for x, y in z]) for z in (train, test)]
expected = rows[0] @ rows[1].T
seen = [off(None), off({"proj_dim": 2}), off(None)]
print(versions)
print("defaults off by {:.2f}; proj_dim=2 by {:.2f}; defaults again by {:.2f}".format(*seen))
if versions != "dattri 0.3.0, torch 2.13.0" or not (0.01 < seen[0] < seen[1] == seen[2]):
    sys.exit("the finding no longer holds")
PY
