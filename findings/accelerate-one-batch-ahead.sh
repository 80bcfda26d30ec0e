#!/usr/bin/env bash
# A loader prepared by Accelerate fetches one batch ahead, so random augmentation and dropout swap their draws.
# Versions: accelerate 1.15.0, torch 2.13.0.
# One would guess: on one process, without workers, a prepared loader gives the same run as the plain one.
# What happens: batch k+1 is drawn before batch k is handed out, to know which batch is the last one. What the data
#   set draws from torch's generator and what the model draws come in another order: same seed, another run.
# Output seen:
#   accelerate 1.15.0, torch 2.13.0
#   plain: data0 model0 data1 model1 data2 model2 data3 model3 | prepared: data0 data1 model0 data2 model1 data3
#   model2 model3 | same draws: False
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile accelerate==1.15.0 torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in ("accelerate", "torch"))


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        order.append(f"data{index}")
        return torch.rand(())


def run(loader):
    order.clear()
    torch.manual_seed(0)
    draws = []
    for index, batch in enumerate(loader):
        order.append(f"model{index}")
        draws.append((batch.item(), torch.rand(()).item()))  # what a dropout would draw
    return draws, " ".join(order)


order = []
plain, plainly = run(DataLoader(Noisy()))
prepared, ahead = run(Accelerator(cpu=True).prepare(DataLoader(Noisy())))
print(versions)
print("plain:", plainly, "| prepared:", ahead, "| same draws:", plain == prepared)
holds = plainly.startswith("data0 model0 data1 model1") and ahead.startswith("data0 data1 model0 data2 model1")
if versions != "accelerate 1.15.0, torch 2.13.0" or plain == prepared or not holds:
    sys.exit("the finding no longer holds")
PY
