"""A Trainer that is traced: the same bits, every step proved, the scores of a plain loop."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: make test-integrations")

from transformers import TrainerCallback, TrainingArguments, get_scheduler

from replay import Replay
from tests.integrations.trainers import (
    CAUSAL,
    CAUSAL_BF16,
    CAUSAL_FULL,
    CLASSES,
    MASKED,
    PADDED,
    language_model,
    one_each,
    same_bits,
    traced,
    trainer,
    untraced,
)
from tracer import TracingOptimizer, open_log
from tracer.errors import OutputExistsError, TracingError
from tracer.integrations.transformers import trace

SAVES = {"save_strategy": "steps", "save_steps": 2}
ONE_BATCH = {"gradient_accumulation_steps": 1}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, **SAVES, "load_best_model_at_end": True}
LAST = {"load_best_model_at_end": False}
NAMES = {one.name for one in dataclasses.fields(TrainingArguments)}
LENGTHS = {"train_sampling_strategy": "group_by_length"}
WORKERS = {
    "dataloader_num_workers": 2,
    **(LENGTHS if LENGTHS.keys() <= NAMES else {"group_by_length": True}),  # in transformers 5.0
}
CASES = {
    "padded": (CAUSAL, {}, {}),
    "padded, one batch": (CAUSAL, ONE_BATCH, {}),
    "no padding": (CAUSAL_FULL, {}, {}),
    "no padding, one batch": (CAUSAL_FULL, ONE_BATCH, {}),
    "no clipping": (CAUSAL, {"max_grad_norm": 0.0}, {}),
    "bf16": (CAUSAL_BF16, {"bf16": True}, {"items": one_each}),
    "fp16, which is float32 on a CPU": (CAUSAL, {"fp16": True}, {}),
    "classes": (CLASSES, {}, {}),
    "drawn masks": (MASKED, {}, {"record": "batches"}),
    "evaluates, best at the end": (CAUSAL, EVALUATES, {}),
    "workers, by length": (CAUSAL, WORKERS, {}),
    "sparse log": (CAUSAL, SAVES, {"snapshot_every": 3}),
    "sgd": (CAUSAL, {"optim": "sgd"}, {}),
}


# the model divides the sum, a replay weights each loss: they differ in the last bit
@pytest.mark.filterwarnings("ignore:.*not the run's to the last bit:tracer.errors.PrecisionWarning")
@pytest.mark.parametrize(("task", "settings", "how"), CASES.values(), ids=CASES)
def test_the_same_bits_and_every_step_is_proved(tmp_path, task, settings, how):
    plain = untraced(task, tmp_path, **settings)
    found = traced(task, tmp_path, tmp_path / "run.h5", how=how, **settings)
    assert same_bits(plain, found)
    run = Replay(tmp_path / "run.h5", task)
    verified = run.verify()
    assert len(run.log) == plain.state.global_step
    assert verified.steps == range(len(run.log))
    assert {step.epoch for step in run.log.steps()} == {0, 1}
    if task is not MASKED:  # whose test batches would be drawn, too
        result = run.influence([0, 1], methods=("tracin",), progress=False)
        assert result.attributes["steps_scaled_outside"] == 0


def test_scores_are_those_of_a_plain_loop(tmp_path):
    one = traced(CAUSAL, tmp_path, tmp_path / "trainer.h5")
    model, groups = CAUSAL.model(), one.optimizer.param_groups
    names = {id(p): name for name, p in one.model.named_parameters()}
    mine = dict(model.named_parameters())
    left = ("lr", "decoupled_weight_decay")
    settings = {k: v for k, v in one.optimizer.defaults.items() if k not in left}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [mine[names[id(p)]] for p in group["params"]],
                "weight_decay": group["weight_decay"],
            }
            for group in groups
        ],
        **{**settings, "lr": 1e-3},
    )
    with open_log(tmp_path / "trainer.h5") as log:
        parts = [step.micro_batches for step in log.steps()]
    with TracingOptimizer(optimizer, model, tmp_path / "loop.h5") as wrapped:
        schedule = get_scheduler("linear", wrapped, 0, len(parts))
        for parts_of_step in parts:
            together = [CAUSAL.collate([PADDED[i] for i in part.ids]) for part in parts_of_step]
            total = sum(int((b["labels"] != -100).sum()) for b in together)
            for part, batch in zip(parts_of_step, together, strict=True):
                torch.set_rng_state(part.random_state.cpu)  # of the dropout
                counts = (batch["labels"][:, 1:] != -100).sum(1)
                wrapped.observe(part.ids, counts.double() / total)
                (counts.float() @ CAUSAL.loss(model, batch) / total).backward()
            wrapped.clip_grad_norm_(0.5)
            wrapped.step()
            wrapped.zero_grad()
            schedule.step()
    ours, theirs = (
        Replay(tmp_path / name, CAUSAL).influence([0, 3], progress=False)
        for name in ("trainer.h5", "loop.h5")
    )
    for method in ours.scores:
        scale = np.abs(theirs.scores[method]).max()
        assert np.allclose(ours.scores[method], theirs.scores[method], rtol=0, atol=1e-4 * scale)


def test_the_log_ends_with_what_the_last_step_led_to(tmp_path):
    worst = {**EVALUATES, "metric_for_best_model": "loss", "greater_is_better": True}
    one = traced(CAUSAL, tmp_path, tmp_path / "run.h5", **worst)
    last = traced(CAUSAL, tmp_path / "all", tmp_path / "all.h5", **{**worst, **LAST})
    assert one.state.best_global_step < one.state.global_step
    assert not same_bits(one, last)  # the best model was loaded, and is another
    with open_log(tmp_path / "run.h5") as log:
        found = log.parameters(len(log))
        assert all(torch.equal(found[n], p.detach()) for n, p in last.model.named_parameters())


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_models(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)  # dropout as without
    task = dataclasses.replace(CAUSAL_FULL, model=partial(language_model, layers=1))
    settings = {"torch_compile": True, "max_steps": 2}
    plain = untraced(task, tmp_path, **settings)
    assert same_bits(plain, traced(task, tmp_path, tmp_path / "run.h5", **settings))
    assert Replay(tmp_path / "run.h5", task).verify(progress=False).steps == range(2)


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("save", [2, 3])
def test_a_run_goes_on_from_the_trainers_checkpoint(tmp_path, every, save):
    settings = {"save_strategy": "steps", "save_steps": save}
    how = {"snapshot_every": every}
    whole = traced(CAUSAL, tmp_path / "whole", tmp_path / "whole.h5", how=how, **settings)
    log, place = tmp_path / "cut.h5", tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        traced(CAUSAL, place, log, how=how, callbacks=[_Stop()], **settings)
    with pytest.raises(KeyboardInterrupt):  # again, before it saves
        traced(CAUSAL, place, log, how=how, callbacks=[_Stop()], resume=True, **settings)
    found = traced(CAUSAL, place, log, how=how, resume=True, **settings)
    assert same_bits(whole, found)
    with open_log(log) as ours, open_log(tmp_path / "whole.h5") as theirs:
        assert len(ours) == len(theirs)
        for t in range(len(ours)):
            assert ours.batch_ids(t) == theirs.batch_ids(t)
    Replay(log, CAUSAL).verify()


def test_a_checkpoint_of_another_run_or_step(tmp_path):
    def going_on(log):
        traced(CAUSAL, tmp_path, log, resume=True, **SAVES)

    traced(CAUSAL, tmp_path / "other", tmp_path / "other.h5", **{**SAVES, "save_steps": 3})
    traced(CAUSAL, tmp_path / "different", tmp_path / "different.h5", **SAVES, data_seed=9)
    with pytest.raises(KeyboardInterrupt):
        traced(CAUSAL, tmp_path, tmp_path / "run.h5", callbacks=[_Stop()], **SAVES)
    with pytest.raises(TracingError, match=r"is at step 4 and there is no log .*none.h5"):
        going_on(tmp_path / "none.h5")
    kept = (tmp_path / "other.h5").read_bytes()
    with pytest.raises(TracingError, match=r"no full state there; .* the steps 0, 3, 6\.\n1\. "):
        going_on(tmp_path / "other.h5")
    assert (tmp_path / "other.h5").read_bytes() == kept
    with pytest.raises(TracingError, match=r"are not of one run: at step 4 they differ in 'trans"):
        going_on(tmp_path / "different.h5")
    with pytest.raises(OutputExistsError, match=r"run.h5 exists.\n1. .*overwrite=True"):
        traced(CAUSAL, tmp_path, tmp_path / "run.h5")


def test_a_second_training_is_not_traced(tmp_path):
    one = traced(CAUSAL, tmp_path, tmp_path / "run.h5")
    kept = (tmp_path / "run.h5").read_bytes()
    assert not isinstance(one.optimizer.optimizer, TracingOptimizer)
    assert not {"train", "training_step", "get_train_dataloader"} & set(vars(one))
    one.train()
    assert (tmp_path / "run.h5").read_bytes() == kept


def test_a_hugging_face_data_set(tmp_path):
    data = pytest.importorskip("datasets", reason="needs datasets")
    plain = untraced(CAUSAL, tmp_path)
    found = traced(CAUSAL, tmp_path, tmp_path / "run.h5", data=data.Dataset.from_list(PADDED))
    assert same_bits(plain, found)
    Replay(tmp_path / "run.h5", CAUSAL).verify()


def test_text_ids(tmp_path):
    task = dataclasses.replace(CAUSAL, train={f"a{k}": e for k, e in enumerate(PADDED)})
    one = trainer(CAUSAL, tmp_path)
    trace(one, tmp_path / "run.h5", task=task, ids=list(task.train))
    one.train()
    run = Replay(tmp_path / "run.h5", task)
    run.verify()
    assert {i for t in range(len(run.log)) for i in run.log.batch_ids(t)} == set(task.train)
