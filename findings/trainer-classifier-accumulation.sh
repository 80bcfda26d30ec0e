#!/usr/bin/env bash
# transformers' Trainer adds the micro-batches' means of a BERT classifier: k accumulation steps, k times the gradient.
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0.
# One would guess: 4 micro-batches of 2 rows give the gradient of one batch of 8, as for a language model.
# What happens: the forward takes **kwargs, so the Trainer thinks that the model divides by num_items_in_batch,
#   and does not divide by k. The classifier ignores it and takes the mean of the micro-batch.
# Output seen:
#   transformers 5.24.0, accelerate 1.15.0, torch 2.13.0
#   gradient with k micro-batches / gradient of one batch of 8: 2.000 at k=2, 4.000 at k=4
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
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

names = ("transformers", "accelerate", "torch")
versions = ", ".join(f"{p} {version(p).split('+')[0]}" for p in names)
draw = torch.Generator().manual_seed(1)
data = [{"input_ids": torch.randint(1, 11, (5,), generator=draw), "labels": k % 3} for k in range(8)]


def make_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(num_labels=3, intermediate_size=8, **sizes, **off))


class Gradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norm = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())


def norm(k):
    seen = Gradient()
    sizes = {"per_device_train_batch_size": 8 // k, "gradient_accumulation_steps": k, "max_steps": 1}
    arguments = TrainingArguments(
        "out", save_strategy="no", disable_tqdm=True, use_cpu=True, max_grad_norm=0, report_to=[], **sizes
    )
    with contextlib.redirect_stdout(sys.stderr):
        Trainer(make_model(), arguments, train_dataset=data, callbacks=[seen]).train()
    return seen.norm


seen = [norm(2) / norm(1), norm(4) / norm(1)]
print(versions)
print("gradient with k micro-batches / gradient of one batch of 8: {:.3f} at k=2, {:.3f} at k=4".format(*seen))
expected = "transformers 5.24.0, accelerate 1.15.0, torch 2.13.0"
if versions != expected or abs(seen[0] - 2) > 1e-3 or abs(seen[1] - 4) > 1e-3:
    sys.exit("the finding no longer holds")
PY
