#!/usr/bin/env bash
# torch.nn.TransformerEncoder in eval mode gives other outputs at padded places with and without no_grad.
# Versions: torch 2.13.0.
# One would guess: no_grad changes no value, or only its last digits.
# What happens: without gradients a fast path packs the rows and returns zeros at padded places. With gradients
#   these hold ordinary numbers. A loss that averages over all places has a value that is not the value whose
#   gradient one takes, and finite differences disagree with autograd.
# Output seen:
#   torch 2.13.0
#   real places differ by 2e-07; padded places up to 2.38 with gradients, 0.0 without; mean square 1.000 and 0.700
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
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
model = torch.nn.TransformerEncoder(layer, num_layers=2).eval()
x = torch.randn(2, 5, 8)
padded = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])

with_grad = model(x, src_key_padding_mask=padded)
with torch.no_grad():
    without = model(x, src_key_padding_mask=padded)
gap = (with_grad - without).abs()
seen = [float(t) for t in (gap[~padded].max(), with_grad[padded].abs().max(), without[padded].abs().max())]
losses = [float(out.pow(2).mean()) for out in (with_grad, without)]
print(versions)
print("real places differ by {:.0e}; padded places up to {:.2f} with gradients, {} without; ".format(*seen), end="")
print("mean square {:.3f} and {:.3f}".format(*losses))
if versions != "torch 2.13.0" or not (seen[0] < 1e-5 and seen[1] > 0.5 and seen[2] == 0):
    sys.exit("the finding no longer holds")
PY
