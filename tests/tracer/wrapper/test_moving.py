"""Parameters that move, and not by a step of the wrapper: what the log keeps, and what is said."""

from __future__ import annotations

import copy
import io
import re
import warnings

import pytest
import torch

from tests.helpers.wrapping import backward, build, sgd
from tracer import TracingOptimizer, open_log
from tracer.errors import TracingWarning


class _Sam(torch.optim.SGD):
    """Steps in two calls, at parameters that are moved between them."""

    @torch.no_grad()
    def first_step(self):
        self.moved = [(p, 0.05 * p.grad) for p in self.param_groups[0]["params"]]
        for p, by in self.moved:
            p.add_(by)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, by in self.moved:
            p.sub_(by)
        super().step()
        self.zero_grad()

    def step(self, closure):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def step(optimizer, model, t):
    optimizer.zero_grad()
    backward(model, [t])
    optimizer.step(batch_ids=[t])


def around(optimizer, model, t):
    backward(model, [t])
    optimizer.first_step()
    backward(model, [t])
    optimizer.second_step()


def inside(optimizer, model, t):
    optimizer.zero_grad()
    backward(model, [t])
    optimizer.optimizer.step(lambda: backward(model, [t]))


@pytest.mark.parametrize("loop", [around, inside], ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("when", ["observe", "flush", "close"])
def test_steps_around_the_wrapper_are_said_once(path, loop, when):
    model, before = build(), "the model's parameters moved"
    optimizer = TracingOptimizer(_Sam(model.parameters(), lr=0.1), model, path)
    said = {
        "observe": "between two calls of observe()",
        "flush": "since tracing began",
        "close": "since tracing began",
    }
    with pytest.warns(TracingWarning) as caught:
        for t in range(3):
            if when == "observe":
                optimizer.observe([t])
            loop(optimizer, model, t)
            if when == "flush":
                optimizer.flush()
        optimizer.close()
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith(f"{before} {said[when]}, and not by step() of the wrapper: ")
    assert "\n1. To log those steps, call step() of the wrapper, with a closure" in text
    assert caught[0].filename == __file__
    assert len(open_log(path)) == 0


def test_the_remedy_for_methods_of_several_passes(path):
    model = build()
    rows = []
    with TracingOptimizer(_Sam(model.parameters(), lr=0.1), model, path) as optimizer:
        for t in range(3):
            rows.append(model[0].weight.detach().clone())
            backward(model, [t])
            optimizer.step(lambda t=t: backward(model, [t]), batch_ids=[t])
    with open_log(path) as log:
        assert [log.batch_ids(t) for t in range(3)] == [[0], [1], [2]]
        assert all(torch.equal(log.parameters(t)["0.weight"], row) for t, row in enumerate(rows))


def test_steps_around_it_after_others(path):
    model = build()
    optimizer = TracingOptimizer(_Sam(model.parameters(), lr=0.1), model, path)
    backward(model, [0])
    optimizer.step(lambda: backward(model, [0]), batch_ids=[0])
    around(optimizer, model, 1)
    backward(model, [1])
    with pytest.warns(TracingWarning, match="moved since the last step, and not by step"):
        optimizer.flush()
    optimizer.close()


def put_back(model, best):
    model.load_state_dict(best)


def put_back_in_part(model, best):
    with torch.no_grad():
        model[0].weight.copy_(best["0.weight"])


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("way", [put_back, put_back_in_part], ids=lambda way: way.__name__)
def test_weights_that_are_put_back_before_the_end(path, way, flush):
    """The log keeps what the last step led to, if it could be seen before; else it is said."""
    model = build()
    optimizer = TracingOptimizer(sgd(model, momentum=0.9), model, path)
    for t in range(4):
        step(optimizer, model, t)
        if t == 1:
            best = copy.deepcopy(model.state_dict())
    own = model[0].weight.detach().clone()
    if flush:
        optimizer.flush()
    way(model, best)
    kept = flush or way is put_back
    said = "the log keeps what that step led to" if kept else "what that step led to is lost"
    remedy = "1. If best or averaged weights were put back, call optimizer.flush() or close() after"
    with pytest.warns(TracingWarning, match="changed after step 3, the last one") as caught:
        optimizer.close()
    assert len(caught) == 1
    assert said in str(caught[0].message)
    assert remedy in str(caught[0].message)
    with open_log(path) as log:
        last = log.parameters(4)["0.weight"]
        assert torch.equal(last, own if kept else best["0.weight"])


def test_weights_that_are_put_back_before_a_step(path):
    """A step begins where the parameters are then, as a run that goes back to its best does."""
    model, rows = build(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with TracingOptimizer(sgd(model), model, path) as optimizer:
            first = copy.deepcopy(model.state_dict())
            for t in range(3):
                if t == 2:
                    model.load_state_dict(first)
                rows.append(model[0].weight.detach().clone())
                step(optimizer, model, t)
    with open_log(path) as log:
        assert all(torch.equal(log.parameters(t)["0.weight"], row) for t, row in enumerate(rows))


def test_copies_of_the_model_are_not_watched(path):
    model = build()
    optimizer = TracingOptimizer(sgd(model), model, path)
    step(optimizer, model, 0)
    clone, file = copy.deepcopy(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (clone, torch.load(file, weights_only=False)):
        other.load_state_dict(build().state_dict())
    optimizer.close()
    model.load_state_dict(build().state_dict())  # closed: nothing is watched any more
    assert not model._load_state_dict_pre_hooks
    assert re.fullmatch(r"TracingOptimizer\(SGD .*", repr(optimizer), re.DOTALL)
