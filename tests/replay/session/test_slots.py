"""States in one pass give what each gives alone, whoever asks for which; others are alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from replay import Replay, Task
from replay.evaluate.slots import SLOTS, Slots
from replay.gradients import stacks
from tracer import TracingOptimizer
from tracer.errors import GradientError, NonFiniteError

STEPS, BATCH, TESTS = 21, 4, 5
METHODS = ("tracin", "ideal", "tracin-sgd", "tracincp")


class Net(nn.Module):
    """Two linear layers, and what makes it special between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.between(torch.tanh(self.first(x)), x))

    def between(self, h, x):
        return h


class Kinked(Net):
    """Has kinks, so that many points lie along a step."""

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Alias(Net):
    """Its first weight is used under a name that no table of parameters has."""

    def __init__(self):
        super().__init__()
        self.also = [self.first.weight]

    def between(self, h, x):
        return h + x @ self.also[0].detach().T


class Closure(Net):
    """Likewise, where no table of anything has it."""

    def __init__(self):
        super().__init__()
        self.also = lambda weight=self.first.weight: weight.detach()

    def between(self, h, x):
        return h + 0.3 * x @ self.also().T


class Branch(Net):
    """Does what the data decide."""

    def between(self, h, x):
        return h * 2 if h.mean() > 0 else h


class Asks(Net):
    """Does another thing where its input has no graph, as one under vmap says."""

    def between(self, h, x):
        return h.sin() if h.requires_grad or not torch.is_grad_enabled() else h.cos()


class Dropped(Net):
    """Draws at random while it is trained."""

    def between(self, h, x):
        return nn.functional.dropout(h, 0.5, self.training)


class Hooked(Net):
    """Its gradients are changed on their way."""

    def __init__(self):
        super().__init__()
        self.second.register_full_backward_hook(lambda m, given, made: (given[0] * 0.5,))


class Buffered(Net):
    """Remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def between(self, h, x):
        return self.norm(h)


class Sorted(Net):
    """Moves rows between examples, as the data decide, and back."""

    def forward(self, x):
        order = x.detach()[:, 0].argsort()
        return self.second(torch.tanh(self.first(x))[order])[order.argsort()]


class Tied(Net):
    """Uses a layer twice."""

    def between(self, h, x):
        return torch.tanh(nn.functional.linear(h[:, :3], self.first.weight, self.first.bias))


class Scaled(Net):
    """A parameter that is in no linear layer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def between(self, h, x):
        return h * self.scale


class Column(Net):
    """Has a column that scales what is trained, and is a layer of what is measured."""

    def __init__(self):
        super().__init__()
        self.column = nn.Parameter(torch.rand(4, 1))

    def between(self, h, x):
        if self.training:
            return h * self.column[:, 0]
        return h + nn.functional.linear(h[:, :1], self.column)


class Recurrent(Net):
    """Sees its inputs one after the other."""

    def __init__(self):
        super().__init__()
        self.first = nn.GRU(1, 4, batch_first=True)

    def forward(self, x):
        return self.second(self.first(x[..., None])[0][:, -1])


class Moody(Net):
    """Is another one when somebody says so."""

    factor = 1.0

    def between(self, h, x):
        return h * (self.factor if h.requires_grad or not torch.is_grad_enabled() else 1.0)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(count, seed):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(3, generator=g), torch.tensor(k % 2)) for k in range(count)]


def traced(path, model=Net, kind=torch.optim.SGD, last=None, **settings):
    train = data(STEPS * BATCH - 1, 1)  # the last batch is a short one
    if last is not None:
        train[18 * BATCH] = last, train[0][1]
    task = Task(model=model, loss=loss, train=train, test=data(TESTS, 2))
    net = task.model()
    optimizer = kind(net.parameters(), **{"lr": 0.1, **settings})
    with TracingOptimizer(optimizer, net, path, snapshot_every=1) as wrapped:
        for k in range(STEPS):
            ids = list(range(len(train)))[k * BATCH : (k + 1) * BATCH]
            wrapped.zero_grad()
            task.loss(net, task.collate([train[i] for i in ids])).mean().backward()
            wrapped.step(batch_ids=ids)
    return task


def asked(path, task, methods=METHODS, **how):
    settings = {k: how.pop(k) for k in ("audit", "memory", "dtype") if k in how}
    run = Replay(path, task=task, **settings)
    how = {"methods": methods, "checkpoints": [0, 7], "by": "step", **how}
    return run.influence(range(TESTS), progress=False, **how)


@pytest.fixture
def stacked(monkeypatch):
    """Return the states that were taken with others."""
    found, passed = set(), Slots._passed

    def watched(self, known):
        rows = passed(self, known)
        found.update((self._name, t) for t, row in (rows or {}).items() if row is not None)
        return rows

    monkeypatch.setattr(Slots, "_passed", watched)
    return found


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_states_together_give_what_each_gives_alone(tmp_path, stacked, rule):
    kind = torch.optim.AdamW if rule == "adamw" else torch.optim.SGD
    model = Kinked if rule == "sgd" else Net
    task = traced(tmp_path / "run.h5", model, kind)
    one = asked(tmp_path / "run.h5", task, audit=1, dtype=torch.float64)
    assert not stacked
    found = asked(tmp_path / "run.h5", task, dtype=torch.float64)
    short = {t for name, t in stacked if name == "gradients of a step"}
    assert short == {*range(STEPS - 1)}  # the last step has a shorter batch
    assert len(stacked) == STEPS - 1 + 2 * (STEPS + 1)
    for method, scores in one.scores.items():
        size = 1e-12 * np.abs(scores).max()
        np.testing.assert_allclose(found.scores[method], scores, rtol=0, atol=size)
        if method in one.drops:
            np.testing.assert_allclose(found.drops[method], one.drops[method], 1e-12, 1e-14)


def test_a_parameter_that_is_a_layer_on_one_side_only(tmp_path, stacked):
    task = traced(tmp_path / "run.h5", Column)
    one, found = (
        asked(tmp_path / "run.h5", task, METHODS[:2], audit=k, dtype=torch.float64) for k in (1, 99)
    )
    assert {name for name, _ in stacked} == {"gradients of task.loss", "values of task.loss"}
    for method, scores in one.scores.items():
        np.testing.assert_allclose(found.scores[method], scores, rtol=0, atol=1e-13)


def test_no_bit_depends_on_who_asks(tmp_path):
    """A window, one step, fewer methods, another order and less memory give the same."""
    task = traced(tmp_path / "run.h5", Kinked, lr=1.0)
    whole = asked(tmp_path / "run.h5", task)
    assert whole.quadrature["gradients"].max() > 9  # several rounds of several points
    for window, methods in (("5:18", METHODS[:3]), ("16:17", METHODS[:1]), ("20:21", METHODS[1:2])):
        part = asked(tmp_path / "run.h5", task, methods, steps=window)
        steps = slice(*map(int, window.split(":")))
        for method in methods:
            same = part.by_period[method] == whole.by_period[method][:, :, steps]
            assert same.all(), (window, method)
    alone = asked(tmp_path / "run.h5", task, ("tracincp",))
    assert np.array_equal(alone.scores["tracincp"], whole.scores["tracincp"])
    momentum = traced(tmp_path / "m.h5", momentum=0.9)
    sizes = ("2GiB", 150_000)  # the second one walks back through segments
    found = [asked(tmp_path / "m.h5", momentum, ("tracin",), memory=size) for size in sizes]
    assert np.array_equal(found[0].scores["tracin"], found[1].scores["tracin"])


REFUSED = {
    Alias: "also is a tensor, but neither parameter nor buffer",
    Closure: "in one pass with others, state 0 is not finite, or parts do not add up",
    Branch: "vmap: It looks like you're attempting to use a Tensor in some data-dependent control",
    Asks: "alone, state 0 gives other numbers",
    Dropped: "vmap: called random operation while in randomness error mode",
    Hooked: "the model has backward hooks",
    Buffered: "the model has buffers",
    Sorted: "second.weight is not in one linear layer that sees one row of each example",
    Recurrent: "first.weight_ih_l0 is not in one linear layer that sees one row of each example",
    Tied: "first.weight is not in one linear layer that sees one row of each example",
    Scaled: "scale is used by",
}


@pytest.mark.parametrize("model", REFUSED, ids=lambda m: m.__name__)
def test_what_no_stack_holds_is_taken_alone_and_the_plan_says_why(tmp_path, stacked, model):
    task = traced(tmp_path / "run.h5", model)
    said = Replay(tmp_path / "run.h5", task=task).plan().passes["training gradients"]
    assert said.startswith(f"each state in a pass of its own: {REFUSED[model]}")
    stacked.clear()
    if model in (Closure, Asks):  # what runs and is wrong
        one, found = (asked(tmp_path / "run.h5", task, METHODS[:1], audit=k) for k in (1, 100))
        assert "gradients of a step" not in {name for name, _ in stacked}
        for method, scores in one.scores.items():
            np.testing.assert_array_equal(found.scores[method], scores)


def test_the_plan_says_what_is_taken_together(tmp_path):
    task = traced(tmp_path / "run.h5")
    plan = Replay(tmp_path / "run.h5", task=task).plan()
    together = "16 states in one pass"
    assert plan.passes == {
        "training gradients": f"{together} for {STEPS - 1} of {STEPS} steps",  # a short batch
        **dict.fromkeys(("test gradients", "test values"), together),
    }
    begun = Replay(tmp_path / "run.h5", task=task).estimate([0], methods="tracin", steps="0:18")
    assert set(begun.passes.values()) == {together}
    cost = Replay(tmp_path / "run.h5", task=task, audit=5).estimate([0], methods=("tracin",))
    why = "each state in a pass of its own: every 5th pass is proven"
    assert cost.passes == dict.fromkeys(plan.passes, why)


def test_what_is_wrong_with_a_state_is_said_at_its_turn(tmp_path, stacked):
    task = traced(tmp_path / "run.h5", last=torch.full((3,), torch.inf))
    run = Replay(tmp_path / "run.h5", task=task)
    run.influence(range(TESTS), methods="tracin", steps="0:18", progress=False)
    with pytest.raises(NonFiniteError, match=r"^step 18: task.loss of example 72 is nan"):
        run.influence(range(TESTS), methods="tracin", progress=False)
    assert {t for name, t in stacked if name == "gradients of a step"} == {*range(18)}


def test_what_changes_its_mind_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    task = traced(tmp_path / "run.h5", Moody)
    run = Replay(tmp_path / "run.h5", task=task)
    assert all(one.startswith("16 states in one pass") for one in run.plan().passes.values())
    monkeypatch.setattr(Moody, "factor", 1.5)
    with pytest.raises(GradientError, match="are others in one pass for 16 states") as error:
        run.influence([0], methods="tracin-sgd", progress=False)
    assert "1. Take each state alone: audit=1 (--audit 1)." in str(error.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_slot_has_the_same_bits_whatever_the_others_hold(threads):
    """Where it lies may change them, so each state has a slot of its own."""
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(threads)
    try:
        for dtype, sizes, n in itertools.product(
            (torch.float32, torch.float64), ((3, 4, 2), (5, 7, 3), (64, 32, 10)), (1, 20, 33)
        ):
            draw = torch.Generator().manual_seed(n)
            shapes = [(b, a) for a, b in itertools.pairwise(sizes)] + [(k,) for k in sizes[1:]]
            held = [torch.randn(SLOTS, *shape, generator=draw, dtype=dtype) for shape in shapes]
            x = torch.randn(SLOTS, n, sizes[0], generator=draw, dtype=dtype)
            whole = of_a_stack(held, x)
            for s in (0, 6, 15):
                filled = torch.full((SLOTS,), s)
                found = of_a_stack([w[filled] for w in held], x[filled])
                assert all(map(torch.equal, rows(found, s), rows(whole, s)))
                seen.add(all(map(torch.equal, rows(found, 1), rows(whole, s))))
            spoiled = [w.index_fill(0, torch.tensor([2]), torch.nan) for w in held]
            found = of_a_stack(spoiled, x)
            assert found.right == [s != 2 for s in range(SLOTS)]
            assert all(map(torch.equal, rows(found, 5), rows(whole, 5)))
    finally:
        torch.set_num_threads(before)
    assert True in seen


def of_a_stack(held, x):
    named = {f"p{k}": w.clone().requires_grad_() for k, w in enumerate(held)}

    def losses(own, given):
        first, second, *biases = own.values()
        h = torch.tanh(nn.functional.linear(given, first, biases[0]))
        h = nn.functional.linear(h, second, biases[1])
        return nn.functional.cross_entropy(h, torch.arange(len(h)) % 2, reduction="none")

    return stacks.gradients(named, vmap(losses)(named, x), torch.ones(x.shape[:2], dtype=x.dtype))


def rows(stack, s):
    of_parts = [t[s] for pair in stack.factors.values() for t in pair if t is not None]
    return [stack.losses[s], *of_parts, *(t[s] for t in stack.total.values())]
