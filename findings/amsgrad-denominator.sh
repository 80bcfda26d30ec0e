#!/usr/bin/env bash
# With amsgrad=True, the denominator of torch.optim.Adam still falls.
# Versions: torch 2.13.0.
# One would guess: AMSGrad keeps the running maximum, so that the denominator never falls.
# What happens: the maximum is taken before the bias correction, and the correction of the present step divides it.
#   After one large gradient the squared denominator falls to 1/k at step k while the bias correction lasts.
# Output seen:
#   torch 2.13.0
#   squared denominator of steps 1 to 5: 1.000 0.500 0.334 0.250 0.200
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
weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
optimizer = torch.optim.Adam([weight], lr=1.0, betas=(0.9, 0.999), eps=0.0, amsgrad=True)
squared = []
for k in range(1, 6):
    weight.grad = torch.full_like(weight, 1.0 if k == 1 else 0.0)
    before = weight.item()
    optimizer.step()
    momentum = 0.1 * 0.9 ** (k - 1) / (1 - 0.9**k)  # bias-corrected first moment of gradients 1, 0, 0, ...
    squared.append((momentum / (before - weight.item())) ** 2)
print(versions)
print("squared denominator of steps 1 to 5:", " ".join(f"{v:.3f}" for v in squared))
expected = [0.001 / (1 - 0.999**k) for k in range(1, 6)]  # the maximum over this step's bias correction
if versions != "torch 2.13.0" or any(abs(v / e - 1) > 1e-9 for v, e in zip(squared, expected)):
    sys.exit("the finding no longer holds")
PY
