#!/usr/bin/env bash
# When an epoch ends with a short group of micro-batches, trainers disagree on what to divide its gradient by.
# Versions: lightning 2.6.6, accelerate 1.15.0, transformers 5.24.0, torch 2.13.0.
# One would guess: by the micro-batches in the group, so that each step follows a mean.
# What happens: Lightning and Accelerate divide by the number asked for, 4, although only 3 are left: 0.75 of the
#   mean. transformers' Trainer, built upon Accelerate, divides by 3.
# Output seen:
#   lightning 2.6.6, accelerate 1.15.0, transformers 5.24.0, torch 2.13.0
#   step taken where the mean gradient is 2: Lightning 1.5, Accelerate 1.5, Trainer 2.0
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile lightning==2.6.6 accelerate==1.15.0 transformers==5.24.0 torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import sys
from importlib.metadata import version
import lightning
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

names = ("lightning", "accelerate", "transformers", "torch")
versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in names)
data = [{"x": torch.tensor([x])} for x in (1.0, 2.0, 3.0)]  # micro-batches of one example, whose loss is w * x

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        return {"loss": (self.w * x).mean()}
    def training_step(self, batch, index):
        return self(**batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

nets = [Net(), Net(), Net()]
quiet = {"enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches=4, accelerator="cpu", **quiet)
trainer.fit(nets[0], DataLoader(data))
accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
net, optimizer, loader = accelerator.prepare(nets[1], nets[1].configure_optimizers(), DataLoader(data))
for batch in loader:
    with accelerator.accumulate(net):
        accelerator.backward(net(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
arguments = TrainingArguments("out", lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True, **sizes)
Trainer(nets[2], arguments, train_dataset=data, optimizers=(nets[2].configure_optimizers(), None)).train()
seen = [round(-float(net.w), 5) for net in nets]
print(versions)
print("step taken where the mean gradient is 2: Lightning {}, Accelerate {}, Trainer {}".format(*seen))
expected = "lightning 2.6.6, accelerate 1.15.0, transformers 5.24.0, torch 2.13.0"
sys.exit("the finding no longer holds" if versions != expected or seen != [1.5, 1.5, 2.0] else 0)
PY
