"""Rows of tokens: a token's share of its sequence's loss; they add up to the sequence's row."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, tasks
from replay.task import example_ids, shown_example
from tests.helpers.language import COLUMNS, WORDS, Reader, masked, padded, with_mask
from tracer import TracingSGD
from tracer.errors import InputError, TaskError

NAMED = {f"a:{k}": example for k, example in enumerate(WORDS)}


def reader():
    return Reader(whole=False).double()


CAUSAL = tasks.causal_lm(reader, WORDS, WORDS, collate=padded, columns=COLUMNS)
TASKS = {
    "next words": CAUSAL,
    "names": tasks.causal_lm(reader, NAMED, NAMED, collate=with_mask, columns=COLUMNS),
    "masked words": tasks.masked_lm(reader, WORDS, WORDS, collate=masked, columns=COLUMNS),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_tokens_add_up_to_their_sequence(tmp_path, task):
    model, names = task.model(), example_ids(task.train)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with TracingSGD(sgd, model, tmp_path / "run.h5") as optimizer:
        for ids in (names[:3], names[3:6]):
            optimizer.zero_grad()
            task.loss(model, task.collate([task.train[k] for k in ids])).mean().backward()
            optimizer.step(batch_ids=ids)
    by_token = tasks.by_token(task)
    rows = {key: found for key in names[:5] if len(found := by_token.test.of(key)) > 1}
    sequences = Replay(tmp_path / "run.h5", task).influence(list(rows), progress=False)
    each = [token for found in rows.values() for token in found]
    tokens = Replay(tmp_path / "run.h5", by_token).influence(each, progress=False)
    assert tokens.train_ids == sequences.train_ids
    ends = np.cumsum([len(found) for found in rows.values()])[:-1]
    for method, scores in sequences.scores.items():
        sums = np.stack([part.sum(0) for part in np.split(tokens.scores[method], ends)])
        tolerance = (1e-3 if method == "ideal" else 1e-12) * np.abs(scores).max()
        assert tolerance > 0
        np.testing.assert_allclose(sums, scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("task", [CAUSAL, TASKS["names"]], ids=["wide", "narrow"])
def test_a_token_is_measured_as_a_loop_does(task):
    by_token, model, key = tasks.by_token(task), reader(), example_ids(task.test)[2]
    words = WORDS[2]["input_ids"]
    assert by_token.test.of(key) == [f"{key}:{place}" for place in range(1, len(words))]
    some = [f"{key}:3", f"{example_ids(task.test)[0]}:1", f"{key}:1"]
    found = by_token.measure(model, by_token.collate([by_token.test[one] for one in some]))
    for value, ids, place in zip(
        found, (words, WORDS[0]["input_ids"], words), (3, 1, 1), strict=True
    ):
        logits = model(ids[None]).logits[0, place - 1]
        alone = nn.functional.cross_entropy(logits, ids[place]) / (len(ids) - 1)
        torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)


def test_ids_of_tokens():
    task = tasks.by_token(TASKS["names"])
    assert list(task.test)[:3] == ["a:0:1", "a:0:2", "a:1:1"]
    assert len(task.test) == len(list(task.test)) == sum(len(e["input_ids"]) - 1 for e in WORDS)
    assert "a:0:2" in task.test
    assert not {"a:0:0", "a:0:3", "a:0", "a:0:x", "0:1", "a:0:01"} & set(task.test)
    assert not any(one in task.test for one in ("a:0:0", "a:0:3", "a:0", "a:0:x", "0:1", "a:0:01"))
    assert task.train is NAMED


def test_an_unknown_token(tmp_path):
    model = reader()
    with TracingSGD(torch.optim.SGD(model.parameters(), 0.1), model, tmp_path / "r.h5") as sgd:
        CAUSAL.loss(model, CAUSAL.collate(WORDS[:2])).mean().backward()
        sgd.step(batch_ids=[0, 1])
    with pytest.raises(InputError, match="'3:0'"):
        Replay(tmp_path / "r.h5", tasks.by_token(CAUSAL)).influence(["3:0"], progress=False)


def test_what_is_shown_of_a_token():
    tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: " ".join(f"w{int(k)}" for k in ids)
    )
    given = {"collate": masked, "columns": COLUMNS}
    whole = tasks.masked_lm(reader, WORDS, WORDS, tokenizer=tokenizer, **given)
    words = [f"w{int(k)}" for k in WORDS[1]["input_ids"]]
    assert shown_example(whole, whole.test, 1).text == " ".join(words)
    task = tasks.by_token(whole)
    key = task.test.of(1)[0]
    place = int(key.rpartition(":")[2])
    marked = [f"[{word}]" if k == place else word for k, word in enumerate(words)]
    assert shown_example(task, task.test, key).text == " ".join(marked)
    assert shown_example(task, task.train, 1).text == " ".join(words)
    own = tasks.by_token(
        tasks.masked_lm(reader, WORDS, WORDS, show=lambda e: f"class {e['label']}", **given)
    )
    assert shown_example(own, own.test, key).text == f"token {place} of · class 1"


@pytest.mark.parametrize(
    ("task", "found"),
    [
        (tasks.classification(reader, WORDS, WORDS), "loss="),
        (tasks.causal_lm(reader, WORDS, WORDS, measure=lambda model, batch: 0), "measure="),
    ],
)
def test_a_task_without_losses_of_tokens(task, found):
    message = rf"found one with {re.escape(found)}.*\.\n1\. Make it by tasks\.causal_lm\(\.\.\.\)"
    with pytest.raises(TaskError, match=message):
        tasks.by_token(task)
