"""Counterfactual runs against the same loop in plain torch, and against closed forms."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from replay import Replay, Task
from replay.counterfactual.change import Change, drawn
from replay.counterfactual.execution import ChangedExecution
from tests.helpers.alternatives import EXAMPLES, TESTS, Loop
from tests.helpers.sparse import MODELS, OPTIMIZERS
from tracer import TracingOptimizer, TracingSGD
from tracer.errors import InputError, MismatchError, PrecisionWarning, UnsupportedRuleError
from tracer.records import MicroBatch, Step

TEST_IDS = list(range(TESTS))
LOOPS = {
    **{f"{model}-adamw": Loop(model, "adamw") for model in MODELS},
    **{rule: Loop(rule=rule) for rule in OPTIMIZERS if rule != "adamw"},
    "clipped": Loop("cnn", "heavy-ball", parts=2, limit=0.5),
    "clipped-outside": Loop("cnn", limit=0.5, inside=False),
    "clipped-by-largest": Loop(rule="heavy-ball", limit=0.2, kind=math.inf),
    "clipped-now-and-then": Loop(rule="heavy-ball", limit=1.0),
    "sum": Loop(reduction="sum", limit=1.0),
}
CHANGES = ({3: 0.0}, {1: 0.0, 7: 0.0, 20: 0.0}, {11: 0.5, 4: 2.0})


@pytest.mark.parametrize(
    ("name", "every"), [*((name, 4) for name in LOOPS), ("cnn-adamw", 1), ("clipped", 1)]
)
def test_it_is_the_loop_without_the_example(tmp_path, name, every):
    loop, path = LOOPS[name], tmp_path / "run.h5"
    run_itself = loop.train(path, snapshot_every=every, along=2)
    run = Replay(path, loop.task())
    found = run.counterfactual(TEST_IDS, scale=CHANGES, along=2, progress=False)
    assert found.steps == [2, 4, 6]
    assert abs(found.baseline_along - run_itself).max() < 1e-14  # attention has a fast path
    assert np.array_equal(found.change, found.values - found.baseline)
    for values, change in zip(found.values_along, CHANGES, strict=True):
        expected = loop.train(scale=change, along=2)
        assert abs(expected - run_itself).max() > 1e-5
        assert abs(values - expected).max() < 1e-11


@pytest.mark.parametrize("parts", [1, 2])
def test_renormalised_it_divides_by_the_examples_left(tmp_path, parts):
    loop = Loop("cnn", parts=parts)
    loop.train(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", loop.task())
    ids = [1, 7, 20, 3, 9]
    found = run.counterfactual(TEST_IDS, remove=[ids], renormalise=True, progress=False)
    expected = loop.train(scale=dict.fromkeys(ids, 0.0), renormalise=True, along=6)
    assert abs(found.values - expected).max() < 1e-12
    assert abs(found.values - loop.train(scale=dict.fromkeys(ids, 0.0), along=6)).max() > 1e-4


def test_what_a_mean_divides_by():
    def weights(*parts, removed=(1,)):
        micros = tuple(
            MicroBatch(ids, torch.tensor(c, dtype=torch.float64), None) for ids, c in parts
        )
        step = Step(0, None, micros, (), 0.0)
        changed, _ = Change.removing(removed, renormalise=True).applied(step)
        return [m.coefficients.tolist() for m in changed.micro_batches]

    assert weights(((1, 2, 3), [1.0] * 3)) == [[0, 1, 1]]  # a sum
    assert weights(((1, 2), [0.25] * 2), ((3, 4), [0.25] * 2)) == [[0, 0.5], [0.25, 0.25]]
    assert weights(((1, 2), [0.2] * 2), ((3, 4, 5), [0.2] * 3)) == [[0, 0.25], [0.25] * 3]
    assert weights(((1, 1), [0.5] * 2)) == [[0, 0]]
    step = Step(0, None, (MicroBatch((1, 2), torch.ones(2), None),), (), 0.0)
    assert Change({5: 0.0, 2: 1.0}).applied(step) == (step, ())


def test_linear_regression_has_a_closed_form(tmp_path):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    data = {f"e{k}": pair for k, pair in enumerate(zip(x, y, strict=True))}

    def squared(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1)

    task = Task(lambda: nn.Linear(3, 1, bias=False).double(), squared, train=data, test=data)
    model, ids = task.model(), list(data)[:8]
    start = model.weight.detach().numpy().copy().T
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    with TracingSGD(sgd, model, tmp_path / "run.h5") as optimizer:
        for _ in range(30):
            optimizer.zero_grad()
            squared(model, (x[:8], y[:8])).mean().backward()
            optimizer.step(batch_ids=ids)
    run = Replay(tmp_path / "run.h5", task)

    def closed(c):  # w_T − w* = (I − 2η X'CX)^T (w_0 − w*)
        X, Y, C = x[:8].numpy(), y[:8].numpy(), np.diag(c)
        best = np.linalg.solve(X.T @ C @ X, X.T @ C @ Y)
        power = np.linalg.matrix_power(np.eye(3) - 0.1 * X.T @ C @ X, 30)
        w = best + power @ (start - best)
        return ((x.numpy() @ w - y.numpy()) ** 2)[:, 0]

    found = run.leave_one_out(list(data), progress=False)
    whole = closed(np.full(8, 1 / 8))
    for row, without in zip(found.change, [*np.eye(8), np.zeros(8)], strict=True):
        assert abs(row - (closed((1 - without) / 8) - whole)).max() < 1e-12
    assert (found.change[8] == 0).all()  # never visited
    assert found.is_leave_one_out
    less = run.counterfactual(["e1"], scale={"e2": 0.25}, progress=False)
    c = np.full(8, 1 / 8)
    c[2] /= 4
    assert abs(less.values[0, 0] - closed(c)[1]) < 1e-12


def test_a_step_without_examples_is_taken(tmp_path):
    task = Loop().task()
    torch.manual_seed(0)
    model, batches = nn.Linear(12, 3).double(), ([0, 1], [2, 3], [4, 5])
    task = dataclasses.replace(task, model=lambda: nn.Linear(12, 3).double())
    made = lambda: torch.optim.SGD(  # noqa: E731
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
    )
    start = [p.detach().clone() for p in model.parameters()]
    for path in (tmp_path / "run.h5", None):
        for p, w in zip(model.parameters(), start, strict=True):
            p.data.copy_(w)
        optimizer = TracingOptimizer(made(), model, path) if path else made()
        for t, ids in enumerate(batches):
            optimizer.zero_grad()
            batch = task.collate([task.train[i] for i in ids])
            (task.loss(model, batch).mean() * (0.0 if t == 1 and not path else 1)).backward()
            optimizer.step(batch_ids=ids) if path else optimizer.step()
        if path:
            optimizer.close()
    expected = task.loss(model, task.collate(list(task.test))).detach().numpy()
    run = Replay(tmp_path / "run.h5", task)
    for how in (False, True):
        found = run.counterfactual(TEST_IDS, remove=[[2, 3]], renormalise=how, progress=False)
        assert np.array_equal(found.values[0], expected)


@pytest.mark.parametrize("every", [1, 4])
def test_nothing_removed_is_the_run_bit_for_bit(tmp_path, every):
    loop = Loop("cnn", "adamw", limit=0.5, parts=2)
    values = loop.train(tmp_path / "run.h5", snapshot_every=every)
    run = Replay(tmp_path / "run.h5", loop.task())
    found = run.counterfactual(TEST_IDS, remove=[[], [3]], along=1, progress=False)
    assert np.array_equal(found.values_along[0], values)
    assert (found.change[0] == 0).all()


def test_it_starts_at_the_first_step_that_visits_what_is_removed(tmp_path, monkeypatch):
    Loop().train(tmp_path / "run.h5")
    run, taken = Replay(tmp_path / "run.h5", Loop().task()), {}
    visits = {i: [t for t in range(6) if i in run.log.batch_ids(t)] for i in range(EXAMPLES)}
    advance = ChangedExecution.advance

    def seen(self, step):
        if self.change is not None:
            taken.setdefault(min(self.change.ids), []).append(step.index)
        advance(self, step)

    monkeypatch.setattr(ChangedExecution, "advance", seen)
    run.leave_one_out([0], progress=False)
    assert taken == {i: list(range(steps[0], 6)) for i, steps in visits.items() if steps}
    assert len({steps[0] for steps in taken.values()}) > 3


def test_how_losses_were_joined_may_show_late(tmp_path):
    data = [(x.float(), y) for x, y in Loop().task().train]
    task = Task(lambda: nn.Linear(12, 3), Loop().task().loss, train=data, test=data)
    model, path = task.model(), tmp_path / "run.h5"
    with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as sgd:
        for parts in (1, 1, 7, 7):  # losses times 1/35 are not a seventh of a mean, to the bit
            sgd.zero_grad()
            for k in range(parts):
                ids = list(range(k, k + 5))
                sgd.observe(ids)
                each = task.loss(model, task.collate([data[i] for i in ids]))
                (each * torch.full((5,), 1 / 5 / parts)).sum().backward()
            sgd.step()
    found = Replay(path, task).counterfactual([0], remove=[[4]], progress=False)
    assert found.change[0, 0] != 0


def _refused(path, task, **how):
    with pytest.raises(MismatchError) as error:
        Replay(path, task).counterfactual([0], remove=[[3]], progress=False, **how)
    return str(error.value)


def test_a_run_that_does_not_come_out_is_refused(tmp_path):
    loop, path = Loop("cnn"), tmp_path / "run.h5"
    loop.train(path)
    other = dataclasses.replace(loop.task(), loss=lambda m, b: loop.task().loss(m, b) * (1 + 1e-9))
    message = _refused(path, other)
    assert "step 0 of" in message
    assert "nothing removed, does not lead to the parameters of the run" in message
    assert "\n1. " in message
    run = Replay(path, other)
    found = run.counterfactual([0], remove=[[], [3]], allow_mismatch=True, progress=False)
    assert found.attributes["first_step_not_proved"] == 0
    assert found.attributes["allow_mismatch"] == 1
    assert found.change[0, 0] == 0
    assert found.change[1, 0] != 0


@pytest.mark.parametrize(("kind", "limit"), [("value", 0.01), ("each", 0.05)])
def test_clipping_apart_is_refused(tmp_path, kind, limit):
    """What it would do to another gradient is not in the log."""
    loop = Loop(limit=limit, kind=kind)
    loop.train(tmp_path / "run.h5")
    run, said = (
        Replay(tmp_path / "run.h5", loop.task()),
        "step 0 clipped .* by themselves, .*\n  1.",
    )
    with pytest.raises(UnsupportedRuleError, match=said):
        run.leave_one_out([0], [3], progress=False)


def test_buffers_that_the_loop_changed_are_refused(tmp_path):
    loop, path = Loop("cnn"), tmp_path / "run.h5"
    task, model = loop.task(), loop.task().model()
    with TracingSGD(torch.optim.SGD(model.parameters(), lr=0.1), model, path) as sgd:
        for t in range(3):
            ids = [t, t + 1, t + 2]
            sgd.zero_grad()
            task.loss(model, task.collate([task.train[i] for i in ids])).mean().backward()
            sgd.step(batch_ids=ids)
            if t == 1:
                model[2].running_mean.zero_()
    assert "step 1 of" in (message := _refused(path, task))
    assert "lead to the buffer '2.running_mean' of the run" in message


def test_a_run_that_diverges_has_no_values(tmp_path):
    loop = Loop()
    loop.train(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", loop.task())
    first = min(t for t in range(6) if 3 in run.log.batch_ids(t))
    with pytest.warns(PrecisionWarning, match="1 counterfactual runs diverged.*number 1"):
        found = run.counterfactual([0], scale=[{3: 0.0}, {3: 1e308}], along=1, progress=False)
    assert np.isnan(found.values_along[1, first + 1 :]).all()
    assert np.isfinite(found.values_along[1, :first]).all()
    assert np.isfinite(found.values_along[0]).all()


def test_subsets_are_drawn_by_a_seed():
    ids = [f"e{k}" for k in range(20)]
    few, many = drawn(ids, 3, 0.3, 7), drawn(ids, 5, 0.3, 7)
    assert many[:3] == few
    assert [len(set(one)) for one in many] == [6] * 5
    assert all(one == sorted(one, key=ids.index) for one in many)
    assert drawn(ids, 3, 0.3, 8) != few


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either remove=.*or scale="),
        ({"remove": [[1]], "scale": {1: 0.0}}, "either remove=.*or scale="),
        ({"remove": []}, r"a list of IDs for each run, \[\[3\], \[4, 5\]\], found \[\]"),
        ({"remove": [3, 4]}, r"a list of IDs for each run, \[\[3\], \[4, 5\]\], found \[3, 4\]"),
        ({"remove": [[99]]}, "the training set has no example 99"),
        ({"remove": [[3, 3]]}, "listed twice"),
        ({"scale": {3: float("nan")}}, "a number for each example, found nan for 3"),
        ({"scale": [3]}, "factors by ID"),
        ({"remove": [[3]], "along": 0}, "along must be a whole number from 1"),
        ({"remove": [[3]], "renormalise": 1}, "renormalise must be True or False"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value) or "none",
)
def test_arguments(tmp_path, given, said):
    Loop(steps=1).train(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", Loop().task())
    with pytest.raises(InputError, match=said):
        run.counterfactual([0], progress=False, **given)
    for wrong in (0, 1, "half", True):
        with pytest.raises(InputError, match="fraction must be between 0 and 1"):
            run.subsets([0], fraction=wrong)
    assert len(run.task.train) == EXAMPLES
