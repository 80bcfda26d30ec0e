#!/usr/bin/env bash
# torch.autograd.grad gives a tensor's gradient before or after its hooks, by what else is asked for in the same call.
# Versions: torch 2.13.0.
# One would guess: a hook on h that scales gradients either shows in the gradient of h or does not, and asking for the
#   gradient of x as well cannot change the answer for h.
# What happens: grad(y, h) is after the hook. grad(y, (h, x)), with x below h, gives h's gradient before the hook, and
#   x's after it. Whoever collects layers' output gradients and weights' gradients in one call gets two kinds.
# Output seen:
#   torch 2.13.0
#   h alone: 30.0; h and x: h 3.0, x 60.0; h and z, which h does not depend on: h 30.0
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
x, z = (torch.ones((), requires_grad=True) for _ in range(2))
h = 2 * x
h.register_hook(lambda gradient: 10 * gradient)
y = 3 * h + z


def gradients(*wanted):
    return [g.item() for g in torch.autograd.grad(y, wanted, retain_graph=True)]


alone, below, beside = gradients(h), gradients(h, x), gradients(h, z)
print(versions)
print(f"h alone: {alone[0]}; h and x: h {below[0]}, x {below[1]}; h and z, which h does not depend on: h {beside[0]}")
if versions != "torch 2.13.0" or (alone[0], *below, beside[0]) != (30.0, 3.0, 60.0, 30.0):
    sys.exit("the finding no longer holds")
PY
