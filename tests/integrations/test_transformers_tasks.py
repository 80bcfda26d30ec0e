"""Ready tasks in a Trainer: what they compute is what it trained on, and each replays."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: make test-integrations")

from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from replay import Replay, tasks
from tests.integrations.trainers import (
    CAUSAL,
    CAUSAL_FULL,
    CLASSES,
    MASKED,
    PADDED,
    WORDS,
    classes,
    classifier,
    language_model,
    masked_model,
    padded,
    same_bits,
    traced,
    trainer,
    untraced,
)
from tests.integrations.vocabulary import TOKENIZER, mlm
from tracer import open_log
from tracer.errors import PrecisionWarning
from tracer.integrations.transformers import trace

READY = {
    "causal_lm": (
        tasks.causal_lm(language_model, PADDED, PADDED, collate=padded, autocast=torch.bfloat16),
        {"bf16": True},
    ),
    "causal_lm, a tokenizer": (
        tasks.causal_lm(language_model, PADDED, PADDED, tokenizer=TOKENIZER),
        {},
    ),
    "sequence_classification": (
        tasks.sequence_classification(
            classifier, PADDED, PADDED, collate=classes, columns=("input_ids", "label")
        ),
        {},
    ),
    "causal_lm, smoothed": (
        tasks.causal_lm(language_model, PADDED, PADDED, collate=padded, label_smoothing=0.1),
        {"label_smoothing_factor": 0.1},
    ),
    "sequence_classification, a tokenizer": (
        tasks.sequence_classification(classifier(), PADDED, PADDED, tokenizer=TOKENIZER),
        {},
    ),
    "masked_lm, masks of IDs": (
        tasks.masked_lm(masked_model, PADDED, PADDED, collate=mlm(), columns=("input_ids",)),
        {},
    ),
    "masked_lm, a tokenizer": (
        tasks.masked_lm(masked_model, PADDED, PADDED, tokenizer=TOKENIZER),
        {},
    ),
}


@pytest.mark.parametrize(("task", "settings"), READY.values(), ids=READY)
def test_a_ready_task(tmp_path, task, settings):
    traced(task, tmp_path, tmp_path / "run.h5", **settings)
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False)
    assert run.influence([0, 3, 5], methods=("tracin",), progress=False).scores["tracin"].any()


def test_a_model_in_bfloat16(tmp_path):
    """Its key biases have gradients of nothing but rounding, which Adam makes scores of."""
    task = tasks.causal_lm(lambda: language_model().bfloat16(), PADDED, PADDED, collate=padded)
    traced(task, tmp_path, tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False)
    with pytest.warns(PrecisionWarning, match=r"In torch.bfloat16 that is rounding: .*\n  1\. "):
        rounded = run.influence([0, 3], methods=("tracin",), progress=False).scores["tracin"]
    exact = Replay(tmp_path / "run.h5", task, dtype=torch.float64)
    found = exact.influence([0, 3], methods=("tracin",), progress=False).scores["tracin"]
    assert np.abs(rounded).max() > 5 * np.abs(found).max() > 0


LABELS = {
    "numbers": (1, float),
    "several labels": (3, lambda k: [float(k % 2), 1.0, 0.0]),
    "whole numbers of one score": (1, lambda k: k % 2),
}


@pytest.mark.parametrize(("scores", "label"), LABELS.values(), ids=LABELS)
def test_labels_of_other_kinds(tmp_path, scores, label):
    words = [{"input_ids": e["input_ids"], "label": label(k)} for k, e in enumerate(PADDED)]
    build = partial(classifier, labels=scores)
    task = tasks.sequence_classification(build, words, words, tokenizer=TOKENIZER)
    traced(task, tmp_path, tmp_path / "run.h5")
    assert Replay(tmp_path / "run.h5", task).verify(progress=False)


def test_masks_that_are_drawn_anew(tmp_path):
    task = tasks.masked_lm(masked_model, PADDED, PADDED, tokenizer=TOKENIZER)

    def trained(*, log=None):
        one = trainer(task, tmp_path, data=PADDED)
        one.data_collator = mlm()
        if log:
            trace(one, log, task=task, record="batches")
        one.train()
        return one

    assert same_bits(trained(), trained(log=tmp_path / "run.h5"))
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False)
    by_token = tasks.by_token(task)
    several = next(k for k in range(20) if len(by_token.test.of(k)) > 1)
    rows = by_token.test.of(several)
    how = {"methods": ("tracin",), "progress": False}
    whole = run.influence([several], **how).scores["tracin"]
    sums = Replay(tmp_path / "run.h5", by_token).influence(rows, **how).scores["tracin"].sum(0)
    np.testing.assert_allclose(sums, whole[0], rtol=0, atol=1e-5 * np.abs(whole).max())


class _Keeping(Trainer):
    """Keeps what it adds to the objective."""

    def training_step(self, *given, **named):
        loss = super().training_step(*given, **named)
        self.objectives = [*getattr(self, "objectives", []), float(loss)]
        return loss


COUNTED = {  # the sum of the weights of a step
    "padded": (CAUSAL, {}, lambda lengths: sum(n - 1 for n in lengths) / sum(lengths)),
    "no padding": (CAUSAL_FULL, {}, lambda lengths: 5 / 6),
    "masked": (MASKED, {"record": "batches"}, lambda lengths: -(-len(lengths) // 4)),
    "classes": (CLASSES, {}, lambda lengths: -(-len(lengths) // 4)),
}


@pytest.mark.parametrize(("task", "how", "weight"), COUNTED.values(), ids=COUNTED)
def test_what_the_trainer_adds_up_is_the_weighted_sum_of_losses(tmp_path, task, how, weight):
    one = trainer(task, tmp_path)
    one.__class__ = _Keeping
    trace(one, tmp_path / "run.h5", task=task, snapshot_every=1, **how)
    one.train()
    model, found = task.model().train(), []
    with open_log(tmp_path / "run.h5") as log:
        for t, step in enumerate(log.steps()):
            model.load_state_dict(log.parameters(t), strict=False)
            lengths = [len(task.train[i]["input_ids"]) for i in step.batch_ids]
            weights = sum(float(part.coefficients.sum()) for part in step.micro_batches)
            assert weights == pytest.approx(weight(lengths), rel=1e-12)
            for part in step.micro_batches:
                batch = part.batch or task.collate([task.train[i] for i in part.ids])
                torch.set_rng_state(part.random_state.cpu)  # of the dropout
                losses = task.loss(model, batch).detach().double()
                found.append(float(part.coefficients @ losses))
    assert len(found) == len(one.objectives)
    np.testing.assert_allclose(found, one.objectives, rtol=1e-5)


def with_adapters():
    peft = pytest.importorskip("peft", reason="needs peft: make test-integrations")
    torch.manual_seed(2)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, **heads}
    config = LlamaConfig(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=1)
    targets = ["q_proj", "v_proj"]
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.1, target_modules=targets
    )
    return peft.get_peft_model(LlamaForCausalLM(config), lora)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's own call
def test_adapters(tmp_path):
    task = tasks.causal_lm(with_adapters, PADDED, PADDED, collate=padded)
    plain = untraced(task, tmp_path)
    found = traced(task, tmp_path, tmp_path / "run.h5")
    assert same_bits(plain, found)
    run = Replay(tmp_path / "run.h5", task)
    assert run.verify(progress=False)
    moved = {name for step in run.log.steps() for name in step.moved}
    assert len(run.log.parameters(0)) == 29
    assert moved == {n for n, p in with_adapters().named_parameters() if p.requires_grad}
    assert len(moved) == 8
    assert run.influence([0], methods=("tracin",), progress=False).scores["tracin"].any()
