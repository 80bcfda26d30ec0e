"""Ready tasks: their losses against loops, and a run of each that is replayed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from replay import Replay, tasks
from tests.helpers.language import COLUMNS, WORDS, Reader, classes, padded
from tracer import TracingSGD
from tracer.errors import TaskError

DRAW = torch.Generator().manual_seed(0)
POINTS = torch.randn(12, 4, generator=DRAW)
PAIRS = [(x, torch.tensor(k % 3)) for k, x in enumerate(POINTS)]
TARGETS = [(x, x[:3] * 2) for x in POINTS]
NUMBERS = [(x, x[0] * 2) for x in POINTS]


def linear():
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def next_words(model, example):
    words = example["input_ids"]
    logits = model(words[None]).logits[0]
    found = [nn.functional.cross_entropy(logits[t], words[t + 1]) for t in range(len(words) - 1)]
    return sum(found) / len(found)


def right_class(model, example):
    logits = model(padded([{"input_ids": example["input_ids"]}])["input_ids"]).logits[0]
    return nn.functional.cross_entropy(logits, torch.tensor(example["label"]))


def smoothed(loss):
    """Return a loss of which a tenth is the mean over all classes."""

    def smooth(logits, label):
        logs = logits.log_softmax(-1)
        return -0.9 * logs[label] - 0.1 * sum(logs) / len(logs)

    def of_example(model, example):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "cross_entropy", smooth)
            return loss(model, example)

    return of_example


READER = Reader(whole=False)
CASES = {
    "classification": (
        tasks.classification(linear, PAIRS, PAIRS),
        lambda model, pair: nn.functional.cross_entropy(model(pair[0]), pair[1]),
    ),
    "regression": (
        tasks.regression(linear, TARGETS, TARGETS),
        lambda model, pair: (model(pair[0]) - pair[1]).square().mean(),
    ),
    "regression of numbers": (
        tasks.regression(nn.Linear(4, 1), NUMBERS, NUMBERS),
        lambda model, pair: (model(pair[0])[0] - pair[1]).square(),
    ),
    "causal_lm": (
        tasks.causal_lm(READER, WORDS, WORDS, collate=padded, columns=COLUMNS),
        next_words,
    ),
    "causal_lm, bf16": (
        tasks.causal_lm(
            READER, WORDS, WORDS, collate=padded, columns=COLUMNS, autocast=torch.bfloat16
        ),
        None,
    ),
    "causal_lm, smoothed": (
        tasks.causal_lm(READER, WORDS, WORDS, collate=padded, columns=COLUMNS, label_smoothing=0.1),
        smoothed(next_words),
    ),
    "sequence_classification, smoothed": (
        tasks.sequence_classification(
            lambda: Reader(whole=True),
            WORDS,
            WORDS,
            collate=classes,
            columns=COLUMNS,
            label_smoothing=0.1,
        ),
        smoothed(right_class),
    ),
    "sequence_classification": (
        tasks.sequence_classification(
            lambda: Reader(whole=True), WORDS, WORDS, collate=classes, columns=COLUMNS
        ),
        right_class,
    ),
}


@pytest.mark.parametrize(("task", "reference"), CASES.values(), ids=CASES)
def test_a_ready_task(tmp_path, task, reference):
    model = task.model()
    if reference is not None:
        found = task.loss(model.double(), _double(task.collate([task.train[k] for k in range(5)])))
        expected = [reference(model, _double(task.train[k])) for k in range(5)]
        assert torch.allclose(found, torch.stack(expected), rtol=1e-10)
    model = task.model()
    with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, tmp_path / "r.h5") as sgd:
        for ids in ([0, 1, 2], [3, 4, 5]):
            sgd.zero_grad()
            task.loss(model, task.collate([task.train[k] for k in ids])).mean().backward()
            sgd.step(batch_ids=ids)
    run = Replay(tmp_path / "r.h5", task)
    assert run.verify(progress=False)
    assert run.influence([6], methods=("tracin",), progress=False).scores["tracin"].any()


def _double(thing):
    if isinstance(thing, torch.Tensor):
        return thing.double() if thing.is_floating_point() else thing
    if isinstance(thing, dict):
        return {key: _double(value) for key, value in thing.items()}
    return type(thing)(map(_double, thing)) if isinstance(thing, (list, tuple)) else thing


def test_a_model_is_copied():
    task = CASES["causal_lm"][0]
    assert task.model() is not READER
    assert task.model().head.weight is not READER.head.weight


WRONG = {
    "a float class": ([(x, float(y)) for x, y in PAIRS], "classes that are probabilities .* found"),
    "classes as rows": ([(x, nn.functional.one_hot(y, 3)) for x, y in PAIRS], r"found \(4, 3\)"),
    "a mapping": ([{"x": x, "y": y} for x, y in PAIRS], "found a mapping with 'x', 'y'"),
    "three parts": ([(x, y, y) for x, y in PAIRS], "found 3 parts, Tensor, Tensor, Tensor"),
    "no pair": (POINTS, r"found Tensor of shape \(4, 4\)"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_examples_of_another_form(data, message):
    task = tasks.classification(linear, data, data)
    with pytest.raises(TaskError, match=rf"(?s){message}.*\n1\. .*\n2\. "):
        task.loss(task.model(), task.collate([task.train[k] for k in range(4)]))


def test_scores_that_do_not_fit():
    """Cross-entropy of one class is 0, and a view takes targets of another order."""
    one = tasks.classification(nn.Linear(4, 1), PAIRS, PAIRS)
    with pytest.raises(TaskError, match=r"\(12, 1\) are of one class, whose cross-entropy is 0"):
        one.loss(one.model(), one.collate(PAIRS))
    other = [(x, torch.zeros(3, 2)) for x in POINTS]
    pairs = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    turned = tasks.regression(pairs, other, other)
    with pytest.raises(TaskError, match=r"what the model returns, \(12, 2, 3\), found \(12, 3, 2"):
        turned.loss(turned.model(), turned.collate(other))
    named = tasks.classification(nn.Identity(), PAIRS, PAIRS, collate=lambda _: ({"a": 1}, POINTS))
    with pytest.raises(TaskError, match="returns a tensor of scores, found dict"):
        named.loss(named.model(), named.collate(PAIRS))


def test_classes_in_other_integers():
    task, batch = CASES["classification"][0], (POINTS, torch.arange(12) % 3)
    expected = task.loss(model := task.model(), batch)
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(expected, task.loss(model, (batch[0], batch[1].to(kind))))


SCORES = torch.randn(4, 3, generator=DRAW)
LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
PROBLEMS = {
    "several labels": (None, SCORES, LABELS, nn.BCEWithLogitsLoss()),
    "several labels, whole": ("multi_label_classification", SCORES, LABELS.long(), None),
    "a number": (None, SCORES[:, :1], LABELS[:, 0], None),
    "numbers": ("regression", SCORES, LABELS, nn.MSELoss()),
    "a class": ("single_label_classification", SCORES, torch.arange(4) % 3, nn.CrossEntropyLoss()),
}


@pytest.mark.parametrize(("problem", "scores", "labels", "mean"), PROBLEMS.values(), ids=PROBLEMS)
def test_losses_of_a_classifier_of_sequences(problem, scores, labels, mean):
    task = tasks.sequence_classification(nn.Linear(1, 1), WORDS, WORDS, collate=classes)
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(problem_type=problem)
    model.forward = lambda: SimpleNamespace(logits=scores)
    if mean is None:
        squared = nn.MSELoss(), scores[:, 0]
        criterion, found = squared if problem is None else (nn.BCEWithLogitsLoss(), scores)
        expected = criterion(found, labels.float())
    else:
        expected = mean(scores, labels)
    each = task.loss(model, {"labels": labels})
    assert each.shape == (4,)
    assert torch.allclose(each.mean(), expected)
    if mean is None:
        smooth = tasks.sequence_classification(
            model, WORDS, WORDS, collate=classes, label_smoothing=0.1
        )
        with pytest.raises(TaskError, match="label_smoothing= smooths classes, and .* has none"):
            smooth.loss(model, {"labels": labels})


def test_a_batch_without_labels():
    task = tasks.causal_lm(READER, WORDS, WORDS, collate=lambda examples: {"input_ids": 3})
    message = r'a mapping with "labels", found the keys input_ids\.\n1\. Pass collate='
    with pytest.raises(TaskError, match=message):
        task.loss(READER, task.collate(WORDS[:2]))
