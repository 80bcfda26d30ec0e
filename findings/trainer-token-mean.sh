#!/usr/bin/env bash
# transformers' Trainer trains a causal language model on (T-1)/T of the mean loss, T being the labels per row.
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0.
# One would guess: the gradient of a step is that of model(**batch).loss, the mean over predicted tokens.
# What happens: the Trainer divides the sum by all labels, also the first of each row, which nothing predicts.
#   The step is half as long at two tokens a row, 5/6 at six. max_grad_norm=0 switches clipping off here.
# Output seen:
#   transformers 5.24.0, accelerate 1.15.0, torch 2.13.0
#   gradient in the Trainer / gradient of the model's loss: 0.500 at T=2, 0.833 at T=6
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --no-compile transformers==5.24.0 accelerate==1.15.0 torch==2.13.0
HOME="$dir" TMPDIR="$dir" OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'PY'
import contextlib
import sys
from importlib.metadata import version

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

names = ("transformers", "accelerate", "torch")
versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in names)


def make_model():
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, **off))


class Gradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())


def ratio(length):
    rows = torch.randint(1, 11, (4, length), generator=torch.Generator().manual_seed(1))
    model, seen = make_model(), Gradient()
    model(input_ids=rows, labels=rows).loss.backward()
    mean = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    sizes = {"per_device_train_batch_size": 4, "max_steps": 1, "max_grad_norm": 0}
    arguments = TrainingArguments("out", save_strategy="no", disable_tqdm=True, use_cpu=True, **sizes)
    data = [{"input_ids": row, "labels": row.clone()} for row in rows]
    with contextlib.redirect_stdout(sys.stderr):
        Trainer(make_model(), arguments, train_dataset=data, callbacks=[seen]).train()
    return seen.norm / mean


seen = [ratio(2), ratio(6)]
print(versions)
print("gradient in the Trainer / gradient of the model's loss: {:.3f} at T=2, {:.3f} at T=6".format(*seen))
expected = "transformers 5.24.0, accelerate 1.15.0, torch 2.13.0"
if versions != expected or abs(seen[0] - 1 / 2) > 1e-4 or abs(seen[1] - 5 / 6) > 1e-4:
    sys.exit("the finding no longer holds")
PY
