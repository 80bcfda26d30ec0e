#!/usr/bin/env bash
# Captum's TracInCPFast leaves the bias of the final layer out of its scores, and says nothing.
# Versions: captum 0.9.0, torch 2.13.0.
# One would guess: TracInCPFast on a layer gives what TracInCP(layers=[that layer]) gives, only faster.
# What happens: it gives the products of the weight's gradients alone. Signs and ranks change too.
# Output seen:
#   captum 0.9.0, torch 2.13.0
#   TracInCP off by 1e-16, TracInCPFast by 0.75; without the bias by 2e-16
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile captum==0.9.0 torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch
from captum.influence import TracInCP, TracInCPFast
from torch.utils.data import TensorDataset

versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in ("captum", "torch"))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
train = TensorDataset(torch.randn(10, 4).double(), torch.randint(0, 3, (10,)))
test = (torch.randn(2, 4).double(), torch.tensor([0, 1]))
loss = torch.nn.CrossEntropyLoss(reduction="sum")
torch.save(model.state_dict(), "checkpoint.pt")


def load(net, path):
    net.load_state_dict(torch.load(path))
    return 1.0


def products(parameters):
    def gradient(x, y):
        grads = torch.autograd.grad(loss(model(x[None]), y[None]), parameters)
        return torch.cat([g.flatten() for g in grads])

    rows = [torch.stack([gradient(x, y) for x, y in zip(*z)]) for z in (test, train.tensors)]
    return rows[0] @ rows[1].T


shared = {"checkpoints": ["checkpoint.pt"], "checkpoints_load_func": load, "loss_fn": loss}
slow = TracInCP(model, train, layers=["2"], sample_wise_grads_per_batch=True, **shared).influence(test)
fast = TracInCPFast(model, model[2], train, **shared).influence(test)
layer = list(model[2].parameters())
whole, weight = products(layer), products(layer[:1])
seen = [float((a - b).norm() / b.norm()) for a, b in ((slow, whole), (fast, whole), (fast, weight))]
print(versions)
print("TracInCP off by {:.0e}, TracInCPFast by {:.2f}; without the bias by {:.0e}".format(*seen))
if versions != "captum 0.9.0, torch 2.13.0" or not (seen[0] < 1e-12 and seen[1] > 0.1 and seen[2] < 1e-12):
    sys.exit("the finding no longer holds")
PY
