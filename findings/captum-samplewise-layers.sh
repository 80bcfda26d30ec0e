#!/usr/bin/env bash
# Captum's option sample_wise_grads_per_batch=True changes which parameters TracInCP scores, without a warning.
# Versions: captum 0.9.0, torch 2.13.0.
# One would guess: it is about speed; the scores are those of the default to rounding.
# What happens: LayerNorm's parameters are dropped, since only Linear and Conv2d are read.
#   The default counts all parameters.
# Output seen:
#   captum 0.9.0, torch 2.13.0
#   default off by 2e-16; with the option 0.08; from the linear layers alone 2e-16
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
from captum.influence import TracInCP
from torch.nn import CrossEntropyLoss, LayerNorm, Linear, Sequential, Tanh
from torch.utils.data import TensorDataset

versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in ("captum", "torch"))
torch.manual_seed(0)
model = Sequential(Linear(4, 5), Tanh(), LayerNorm(5), Linear(5, 3)).double()
torch.save(model.state_dict(), "w.pt")
train = TensorDataset(torch.randn(10, 4).double(), torch.randint(0, 3, (10,)))
test = (torch.randn(2, 4).double(), torch.tensor([0, 1]))


def products(layers):
    def gradient(x, y):
        loss = CrossEntropyLoss()(model(x[None]), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layers.parameters()))])

    rows = [torch.stack([gradient(x, y) for x, y in zip(*z)]) for z in (test, train.tensors)]
    return rows[0] @ rows[1].T


def load(net, path):
    net.load_state_dict(torch.load(path))
    return 1.0


def off(each, reduction, expected):
    loss = CrossEntropyLoss(reduction=reduction)
    tool = TracInCP(model, train, ["w.pt"], load, loss_fn=loss, sample_wise_grads_per_batch=each)
    return float((tool.influence(test) - expected).norm() / expected.norm())


whole, linear = products(model), products(Sequential(model[0], model[3]))
seen = [off(False, "none", whole), off(True, "sum", whole), off(True, "sum", linear)]
print(versions)
print("default off by {:.0e}; with the option {:.2f}; from the linear layers alone {:.0e}".format(*seen))
if versions != "captum 0.9.0, torch 2.13.0" or not (seen[0] < 1e-12 and seen[1] > 0.01 and seen[2] < 1e-12):
    sys.exit("the finding no longer holds")
PY
