#!/usr/bin/env bash
# A learning rate given as a tensor makes AdamW shrink float64 weights by a factor rounded to float32.
# Versions: torch 2.13.0.
# One would guess: lr=torch.tensor(0.125) and lr=0.125 are the same number, so the runs agree to float64 rounding.
# What happens: 1 - lr * weight_decay is computed in the dtype of the tensor. The error has one sign and grows
#   with each step. Float32 weights and a float64 tensor show no difference.
# Output seen:
#   torch 2.13.0
#   relative error after 1000 steps: 2.9e-05; with a float64 tensor 0.0; float32 weights 0.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch

versions = "torch " + version("torch").split("+")[0]


def run(dtype, lr):
    weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.01)
    for step in range(1000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return weight.detach().double()


def off(dtype, lr):
    plain = run(dtype, 0.125)
    return float(((run(dtype, lr) - plain) / plain).abs().max())


seen = [
    off(torch.float64, torch.tensor(0.125)),
    off(torch.float64, torch.tensor(0.125, dtype=torch.float64)),
    off(torch.float32, torch.tensor(0.125)),
]
print(versions)
print("relative error after 1000 steps: {:.1e}; with a float64 tensor {}; float32 weights {}".format(*seen))
if versions != "torch 2.13.0" or not (1e-5 < seen[0] < 1e-4 and seen[1] == seen[2] == 0):
    sys.exit("the finding no longer holds")
PY
