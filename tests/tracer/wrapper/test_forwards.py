"""Which forward pass belongs to a step, and which ones no hook can see."""

from __future__ import annotations

import copy
import gc
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.wrapping import X, Y, build, sgd
from tracer import TracingSGD, open_log
from tracer.errors import TracingWarning
from tracer.watch.captures import Capture


def masks(model, state):
    """Return the output that a logged random state gives."""
    torch.set_rng_state(state.cpu)
    return model.train()(X)


def logged_output(path, loop, wrap=lambda model: model):
    """Run a loop for two steps; compare the model's output under the logged random state."""
    model = build()
    given = wrap(model)
    seen = []
    model[3].register_forward_hook(
        lambda _m, _i, out: seen.append(out.detach().clone()) if torch.is_grad_enabled() else None
    )
    with TracingSGD(sgd(model), given, path) as optimizer:
        kept = [loop(t, given, optimizer, seen) for t in range(2)]
    with open_log(path) as log:
        for t, output in enumerate(kept):
            again = build()
            again.load_state_dict(log.parameters(t))
            state = log.step(t).micro_batches[-1].random_state
            torch.set_rng_state(state.cpu)
            assert torch.equal(again(X), output)
        assert list(log.parameters(0)) == [n for n, _ in build().named_parameters()]


def plain(_t, model, optimizer, seen):
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    output = seen[-1]
    optimizer.step(batch_ids=range(12))
    return output


def validating(t, model, optimizer, seen):
    model.eval()
    model(X)
    with torch.no_grad():
        model.train()(X)
    return plain(t, model, optimizer, seen)


def skipping(t, model, optimizer, seen):
    F.cross_entropy(model(X), Y)  # a batch that is thrown away
    return plain(t, model, optimizer, seen)


def skipping_after_backward(t, model, optimizer, seen):
    F.cross_entropy(model(X), Y).backward()
    return plain(t, model, optimizer, seen)


def zeroing_late(_t, model, optimizer, seen):
    loss = F.cross_entropy(model(X), Y)
    output = seen[-1]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(batch_ids=range(12))
    return output


def observing_first(_t, model, optimizer, seen):
    optimizer.zero_grad()
    for _ in range(2):
        optimizer.observe(range(12))
        F.cross_entropy(model(X), Y).backward()
    output = seen[-1]
    optimizer.step()
    return output


def observing_after(_t, model, optimizer, seen):
    optimizer.zero_grad()
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
        optimizer.observe(range(12))
    output = seen[-1]
    optimizer.step()
    return output


def copying(t, model, optimizer, seen):
    clone = copy.deepcopy(model)
    clone(X).sum().backward()  # another model: not this step's forward
    return plain(t, model, optimizer, seen)


@pytest.mark.parametrize(
    "loop",
    [
        plain,
        validating,
        skipping,
        skipping_after_backward,
        zeroing_late,
        observing_first,
        observing_after,
        copying,
    ],
    ids=lambda loop: loop.__name__,
)
def test_random_state_of_the_forward(path, loop):
    torch.manual_seed(7)
    logged_output(path, loop)


def test_forwards_that_no_step_uses_are_forgotten(path):
    """A model in train mode that is only looked at, or whose gradients somebody else uses."""
    model = build()
    gc.collect()
    others = sum(type(one) is Capture for one in gc.get_objects())  # of tests before this one
    with TracingSGD(sgd(model), model, path) as optimizer:
        for k in range(60):
            out = model(X)
            if k > 20:
                out.sum().backward()
        kept = sum(type(one) is Capture for one in gc.get_objects())
        assert kept - others <= 3
        with pytest.warns(TracingWarning, match="the gradients of 39 forward and backward passes"):
            optimizer.step(batch_ids=range(12))


def test_compiled_model(path):
    torch.manual_seed(7)
    model = build()
    compiled = torch.compile(model, backend="eager")
    with TracingSGD(sgd(model), compiled, path) as optimizer:
        output = compiled(X)
        F.cross_entropy(output, Y).backward()
        optimizer.step(batch_ids=range(12))
    with open_log(path) as log:
        again = build()
        again.load_state_dict(log.parameters(0))
        assert torch.equal(masks(again, log.step(0).micro_batches[0].random_state), output)


def test_model_compiled_in_place(path):
    """``model.compile()`` compiles hooks away; what it made is watched instead, until the end."""
    torch._dynamo.reset()
    torch.manual_seed(7)
    model = build()
    model.compile(backend="eager", fullgraph=True)
    compiled = model._compiled_call_impl
    outputs, states = [], []
    with TracingSGD(sgd(model), model, path) as optimizer:
        for _ in range(2):
            optimizer.zero_grad()
            states.append(torch.get_rng_state())
            outputs.append(model(X))
            F.cross_entropy(outputs[-1], Y).backward()
            optimizer.step(batch_ids=range(12))
        copy.deepcopy(model)(X)
        torch.save(model, io.BytesIO())
    assert model._compiled_call_impl is compiled
    with open_log(path) as log:
        for t in range(2):
            state = log.step(t).micro_batches[0].random_state
            assert torch.equal(state.cpu, states[t])
            again = build()
            again.load_state_dict(log.parameters(t))
            assert torch.equal(masks(again, state), outputs[t])


@pytest.mark.parametrize("late", [False, True])
def test_a_model_inside_a_compiled_function_is_said_once(path, late):
    torch._dynamo.reset()
    model = build()
    function = model if late else torch.compile(model, backend="eager", fullgraph=True)
    with TracingSGD(sgd(model), model, path) as optimizer:
        if late:
            model.compile(backend="eager", fullgraph=True)
        for t in range(3):
            optimizer.zero_grad()
            F.cross_entropy(function(X), Y).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step(batch_ids=range(12))
            text = "Give the wrapper what torch.compile returned, or call model.compile() before"
            assert [text in str(one.message) for one in caught] == [True] * (t == 0)
            assert all(one.filename == __file__ for one in caught)
        function.eval()
        function(X)
    assert open_log(path).step(0).micro_batches[0].random_state is None


def test_a_model_that_is_used_by_a_method_is_warned_of(tmp_path):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

        def encode(self, x):
            return self.norm(self.layer(x))

    model = Encoder()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(TracingWarning, match="did not see a forward of the model before") as seen,
        TracingSGD(sgd, model, tmp_path / "run.h5") as optimizer,
    ):
        for _ in range(3):
            optimizer.zero_grad()
            model.encode(torch.randn(4, 3)).square().mean().backward()
            optimizer.step(batch_ids=[0, 1, 2, 3])
    assert len(seen) == 1
