"""What a Trainer cannot be traced with: by name, with its real settings, before the first step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("transformers", reason="needs transformers: make test-integrations")

from transformers import DataCollatorWithFlattening

from replay import tasks
from tests.helpers.places import ROOT
from tests.integrations.trainers import (
    CAUSAL,
    PADDED,
    language_model,
    masked_model,
    padded,
    trainer,
)
from tests.integrations.vocabulary import TOKENIZER, mlm
from tracer.errors import TracingError
from tracer.integrations.transformers import trace


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auto_find_batch_size": True}, "begins anew when memory runs out"),
        ({"neftune_noise_alpha": 5}, "adds noise to embeddings"),
    ],
)
def test_what_cannot_be_traced_is_said_by_name(tmp_path, settings, message):
    with pytest.raises(TracingError, match=message):
        trace(trainer(CAUSAL, tmp_path, **settings), tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


DISTRIBUTED = """
import pathlib, sys
from tests.integrations.trainers import CAUSAL, trainer
from tracer.integrations.transformers import trace

folder = pathlib.Path(sys.argv[1])
trace(trainer(CAUSAL, folder, **{settings}), folder / "run.h5", task=CAUSAL)
"""
GLOO = {"ddp_backend": "gloo"}
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("package", "settings", "message"),
    [
        (
            "torch",
            {"fsdp": True, "fsdp_config": {"version": 2}, **GLOO},
            "the Trainer uses FSDP, which cannot",
        ),
        (
            "deepspeed",
            {"deepspeed": {"zero_optimization": {"stage": 2}}},
            "the Trainer uses DeepSpeed, which cannot be traced",
        ),
    ],
    ids=["fsdp", "deepspeed"],
)
def test_sharded_training(tmp_path, package, settings, message):
    pytest.importorskip(package)
    place = {**os.environ, **ALONE, "MASTER_PORT": "0", "PYTHONPATH": str(ROOT)}
    script = DISTRIBUTED.replace("{settings}", repr(settings))
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=place, capture_output=True, text=True
    )
    assert f"TracingError: {message}" in ran.stderr
    assert not (tmp_path / "run.h5").exists()


def test_labels_that_the_task_does_not_smooth(tmp_path):
    task = tasks.causal_lm(language_model, PADDED, PADDED, collate=padded)
    one = trainer(task, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(TracingError, match=r"1\. Build the task with label_smoothing=0\.1"):
        trace(one, tmp_path / "run.h5", task=task)


def test_packed_sequences(tmp_path):
    one = trainer(CAUSAL, tmp_path)
    one.data_collator = DataCollatorWithFlattening()
    with pytest.raises(TracingError, match=r"packs sequences \(DataCollatorWithFlattening\)"):
        trace(one, tmp_path / "run.h5")
    flat = DataCollatorWithFlattening()
    one.data_collator = lambda examples: flat([{"input_ids": e["input_ids"]} for e in examples])
    trace(one, tmp_path / "run.h5")
    with pytest.raises(TracingError, match=r"packed sequences cannot be traced: a batch of 4 exam"):
        one.train()


def test_masks_that_no_id_says(tmp_path):
    task = tasks.masked_lm(masked_model, PADDED, PADDED, tokenizer=TOKENIZER)
    one = trainer(task, tmp_path, data=PADDED)
    one.data_collator = mlm()
    message = r"DataCollatorForLanguageModeling draws masks .*\n1\. .*record=\"batches\".*\n2\. "
    with pytest.raises(TracingError, match=message):
        trace(one, tmp_path / "run.h5", task=task)
