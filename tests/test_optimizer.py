"""The wrapper: what it logs, what it refuses, and that torch's tools take it for an optimizer."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tracer import TracingOptimizer, TracingSGD, collate_with_ids, open_log, with_ids
from tracer.errors import OutputExistsError, TracingError, TracingWarning

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def backward(model, ids, scale=1.0):
    ids = list(ids)
    loss = F.cross_entropy(model(X[ids]), Y[ids])
    (loss * scale).backward()
    return loss


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def test_what_is_logged(path):
    model = build()
    expected = []
    with TracingSGD(sgd(model, weight_decay=0.2), model, path, task="a.b:task") as optimizer:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for t in range(3):
            optimizer.epoch = t // 2
            optimizer.zero_grad()
            backward(model, [t, t, 5])
            expected.append({n: p.detach().clone() for n, p in model.named_parameters()})
            optimizer.step(batch_ids=[t, t, 5])
            scheduler.step()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    expected.append({n: p.detach().clone() for n, p in model.named_parameters()})
    with open_log(path) as log:
        assert len(log) == 3
        assert [log.batch_ids(t) for t in range(3)] == [[0, 0, 5], [1, 1, 5], [2, 2, 5]]
        # the rate that the step used, before the scheduler moves it
        assert [log.learning_rate(t) for t in range(3)] == [(0.1,), (0.05,), (0.025,)]
        for t, parameters in enumerate(expected):
            found = log.parameters(t)
            assert list(found) == list(parameters)
            assert all(torch.equal(found[n], parameters[n]) for n in parameters)
        steps = list(log.steps())
        assert [step.epoch for step in steps] == [0, 0, 1]
        assert steps[2].groups[0].hyperparameters["weight_decay"] == 0.2
        assert steps[2].groups[0].hyperparameters["momentum"] == 0
        assert steps[2].gradient_norm == pytest.approx(norm, rel=1e-6)
        assert steps[0].micro_batches[0].coefficients.tolist() == [1 / 3] * 3
        assert log.metadata["task"] == "a.b:task"
        assert log.metadata["update_rule"] == "SGD"
        assert log.metadata["optimizer"] == "torch.optim.SGD"
        assert log.metadata["closed"] is True
        with pytest.raises(IndexError, match="holds 3 steps; there is no number 3"):
            log.step(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_frozen_and_missing_gradients(path, dtype):
    model = build().to(dtype)
    model.spare = nn.Linear(2, 2).to(dtype)  # in the optimizer, never used
    model[0].weight.requires_grad_(False)
    with TracingSGD(sgd(model), model, path) as optimizer:
        F.cross_entropy(nn.Sequential(*list(model)[:4])(X.to(dtype)), Y).backward()
        optimizer.step(batch_ids=range(12))
    with open_log(path) as log:
        step = log.step(0)
        assert step.frozen == {"0.weight"}
        assert step.without_gradient == {"0.weight", "spare.weight", "spare.bias"}
        assert log.parameter_layout["3.weight"] == (torch.Size([3, 5]), dtype)
        assert step.micro_batches[0].random_state is None  # the model itself was not called


def test_groups_added_later(path):
    model = build()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with TracingSGD(first, model, path) as optimizer:
        for t in range(2):
            if t == 1:
                optimizer.add_param_group({"params": model[3].parameters(), "lr": 0.5})
            optimizer.zero_grad()
            backward(model, [t])
            optimizer.step(batch_ids=[t])
        with pytest.raises(TracingError, match="does not have"):
            optimizer.add_param_group({"params": nn.Parameter(torch.zeros(1))})
    with open_log(path) as log:
        assert log.learning_rate(0) == (0.1,)
        assert log.learning_rate(1) == (0.1, 0.5)
        assert [g.names for g in log.step(1).groups] == [
            ("0.weight", "0.bias"),
            ("3.weight", "3.bias"),
        ]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, 1], [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
        (np.array([3, 1], dtype=np.int16), [3, 1]),
        ([torch.tensor(3), np.int64(1)], [3, 1]),
        (("dog", "cat"), ["dog", "cat"]),
        (np.array(["ü", "cat"]), ["ü", "cat"]),
        ([-(2**40), 7], [-(2**40), 7]),
    ],
)
def test_ids(path, ids, expected):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for _ in range(2):
            backward(model, [0, 1])
            optimizer.step(batch_ids=ids)
    with open_log(path) as log:
        assert log.batch_ids(1) == expected
        assert log.metadata["id_type"] == type(expected[0]).__name__


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, r"got no batch IDs: write optimizer.step\(batch_ids=ids\)"),
        ([], "empty"),
        (torch.zeros(2, 1, dtype=torch.long), r"one-dimensional.*\(2, 1\)"),
        (torch.tensor(3), "one-dimensional"),
        ([[1, 2]], "one-dimensional"),
        ([1, "a"], "all integers or all strings"),
        ([1.5], "found 1.5 of type float"),
        ([True], "found True of type bool"),
        (torch.tensor([0.5]), "found 0.5 of type float"),
        ("ab", "must be a list"),
        (3, "must be a list"),
        ([2**70], "64 bits"),
    ],
)
def test_wrong_ids_are_errors_before_anything_happens(path, ids, message):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0, 1])
        optimizer.step(batch_ids=[0, 1])
        before = model[0].weight.detach().clone()
        with pytest.raises(TracingError, match=message):
            optimizer.step(batch_ids=ids)
        assert torch.equal(before, model[0].weight)
    with open_log(path) as log:
        assert len(log) == 1


def test_more_id_errors(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0, 1])
        optimizer.observe([0, 1])
        with pytest.raises(TracingError, match="use one way"):
            optimizer.step(batch_ids=[0, 1])
        optimizer.step()
        with pytest.raises(TracingError, match="were int so far and are now str"):
            optimizer.step(batch_ids=["a"])
        with pytest.raises(TracingError, match=r"weights of shape \(3,\) for 2 IDs"):
            optimizer.observe([0, 1], weights=[1, 2, 3])
        optimizer.observe([0, 1])
        optimizer.zero_grad()
        with pytest.raises(TracingError, match="got no batch IDs"):
            optimizer.step()
        with pytest.raises(TracingError, match='record="batches"'):
            optimizer.step(batch_ids=[1], batch=X)
    with pytest.raises(TracingError, match="is closed; keep training steps inside"):
        optimizer.step(batch_ids=[0])
    optimizer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "module"}, '"package.module:name"'),
        ({"reduction": "max"}, '"mean" or "sum"'),
        ({"snapshot_every": 5}, "snapshot_every other than 1 is not available"),
        ({"record": "tensors"}, 'record must be "ids" or "batches", found'),
        ({"resume": True, "overwrite": True}, "overwrite=True begins anew, resume=True goes on"),
        ({"compression": "zip"}, 'compression must be "none" or "delta", found'),
        ({"state_every": 0}, "state_every must be a positive whole number, found 0"),
        ({"sync_every": -1}, "sync_every must be a positive whole number, found -1"),
        ({"steps": 1.5}, "steps must be a positive whole number, found 1.5"),
    ],
)
def test_wrong_arguments(path, options, message):
    model = build()
    with pytest.raises(TracingError, match=message):
        TracingSGD(sgd(model), model, path, **options)
    assert not path.exists()


def test_wrong_objects(path, tmp_path):
    model = build()
    with pytest.raises(TracingError, match=r"found torch.optim.Adam; TracingOptimizer wraps any"):
        TracingSGD(torch.optim.Adam(model.parameters()), model, path)
    with pytest.raises(TracingError, match=r"group 0 .* shape \(5, 4\) that is not in the model"):
        TracingSGD(sgd(model), build(), path)
    with pytest.raises(TracingError, match="expected a torch optimizer to wrap, found str"):
        TracingOptimizer("sgd", model, path)
    with pytest.raises(TracingError, match="model must be an nn.Module"):
        TracingSGD(sgd(model), model.forward, path)
    with pytest.raises(TracingError, match="there is no directory"):
        TracingSGD(sgd(model), model, tmp_path / "none" / "run.h5")


def test_existing_log(path):
    path.write_text("precious")
    model = build()
    with pytest.raises(OutputExistsError, match="exists; choose another path, pass overwrite=True"):
        TracingSGD(sgd(model), model, path)
    assert path.read_text() == "precious"
    with TracingSGD(sgd(model), model, path, overwrite=True) as optimizer:
        backward(model, [0])
        optimizer.step(batch_ids=[0])
    assert len(open_log(path)) == 1


def test_micro_batches_and_weights(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for ids in ([0, 1, 2], [3]):
            backward(model, ids, 0.5)
            optimizer.observe(ids)
        optimizer.step()
        backward(model, [4, 5])
        optimizer.observe([4, 5], weights=torch.tensor([0.25, 0.75]))
        optimizer.step()
    with open_log(path) as log:
        first, second = log.steps()
        assert [b.ids for b in first.micro_batches] == [(0, 1, 2), (3,)]
        assert [b.coefficients.tolist() for b in first.micro_batches] == [[1 / 6] * 3, [0.5]]
        assert second.micro_batches[0].coefficients.tolist() == [0.25, 0.75]
        assert log.batch_ids(0) == [0, 1, 2, 3]


def test_sum_reduction(path):
    model = build()
    with TracingSGD(sgd(model), model, path, reduction="sum") as optimizer:
        backward(model, [0, 1])
        optimizer.step(batch_ids=[0, 1])
    assert open_log(path).step(0).micro_batches[0].coefficients.tolist() == [1.0, 1.0]


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


def test_model_can_be_saved_and_hooks_are_removed(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0])
        optimizer.step(batch_ids=[0])
        buffer = io.BytesIO()
        torch.save(model, buffer)
    buffer.seek(0)
    clone = torch.load(buffer, weights_only=False)
    clone(X).sum().backward()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_buffers(path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    expected = []
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            expected.append({n: b.clone() for n, b in model.named_buffers()})
            optimizer.zero_grad()
            backward(model, [t, t + 1])
            optimizer.step(batch_ids=[t, t + 1])
    expected.append(dict(model.named_buffers()))
    with open_log(path) as log:
        for t, buffers in enumerate(expected):
            assert all(torch.equal(log.buffers(t)[n], b) for n, b in buffers.items())


def test_live_reading_and_flush(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            optimizer.zero_grad()
            backward(model, [t])
            optimizer.step(batch_ids=[t])
            optimizer.flush()
            with open_log(path) as log:
                assert len(log) == t + 1
                assert log.metadata["closed"] is False
                assert torch.equal(log.parameters(t + 1)["0.weight"], model[0].weight)
            with torch.no_grad():
                model[0].weight.mul_(0.5)  # after the flush: the row is put right
    with open_log(path) as log:
        assert len(log) == 3
        assert torch.equal(log.parameters(3)["0.weight"], model[0].weight)
        assert log.metadata["closed"] is True


def interrupted(model, path):
    """Train until Ctrl-C after the second step."""
    with TracingSGD(sgd(model), model, path) as optimizer:
        for t in range(3):
            backward(model, [t])
            optimizer.step(batch_ids=[t])
            if t == 1:
                raise KeyboardInterrupt


def test_exception_in_the_loop_keeps_what_was_done(path):
    model = build()
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, path)
    with open_log(path) as log:
        assert len(log) == 2
        assert log.metadata["closed"] is True


def test_forgotten_close(path):
    model = build()
    optimizer = TracingSGD(sgd(model), model, path)
    backward(model, [0])
    optimizer.step(batch_ids=[0])
    del optimizer
    with open_log(path) as log:
        assert len(log) == 1
        assert log.metadata["closed"] is True


def test_loaders(path):
    def collate(examples):
        return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])

    data = {f"image-{k}": (X[k], Y[k]) for k in range(12)}
    for folder, function in (("plain", None), ("own", collate_with_ids(collate))):
        target = path.with_name(folder + ".h5")
        model = build()
        with TracingSGD(sgd(model), model, target) as optimizer:
            for ids, (x, y) in DataLoader(with_ids(data), batch_size=5, collate_fn=function):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step(batch_ids=ids)
        with open_log(target) as log:
            assert log.batch_ids(0) == [f"image-{k}" for k in range(5)]
            assert log.batch_ids(2) == ["image-10", "image-11"]


def test_with_ids():
    data = list(range(10, 14))
    assert [with_ids(data)[k] for k in range(4)] == list(enumerate(data))
    assert with_ids(data, ids="abcd")[2] == ("c", 12)
    assert len(with_ids(data)) == 4
    with pytest.raises(TracingError, match="3 IDs for 4 examples"):
        with_ids(data, ids=[1, 2, 3])
    with pytest.raises(TracingError, match="needs a dataset with positions"):
        with_ids(iter(data))


def test_clip_factor(path):
    model = build()
    with TracingSGD(sgd(model), model, path) as optimizer:
        backward(model, [0])
        norm = optimizer.clip_grad_norm_(0.01)
        optimizer.step(batch_ids=[0])
        optimizer.zero_grad()
        backward(model, [0])
        optimizer.step(batch_ids=[0])
    with open_log(path) as log:
        assert log.step(0).clip_factor == pytest.approx(0.01 / (float(norm) + 1e-6))
        assert log.step(0).gradient_norm == pytest.approx(0.01, rel=1e-3)
        assert log.step(1).clip_factor == 1


def test_optimizer_state_is_logged_before_and_after(path):
    model = build()
    inner = torch.optim.Adam(model.parameters())
    backward(model, [0])
    inner.step()
    with TracingOptimizer(inner, model, path) as optimizer:
        backward(model, [1])
        optimizer.step(batch_ids=[1])
        assert optimizer.position == (1, None)
    with open_log(path) as log:
        assert log.states() == [0, 1]
        assert log.state(0)["optimizer"]["state"][0]["step"] == 1
        final = log.state(1)["optimizer"]
        for k, parameter in enumerate(model.parameters()):
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(final["state"][k][key], inner.state[parameter][key])
        assert final["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "two dtypes"])
def test_norms_of_groups(tmp_path, mixed):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    if mixed:
        model[0].weight.data = model[0].weight.data.double()
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters()}]
    sgd = torch.optim.SGD(groups, lr=0.1)
    with TracingOptimizer(sgd, model, tmp_path / "run.h5") as optimizer:
        for k, p in enumerate(model.parameters()):
            p.grad = None if k == 3 else torch.full_like(p, k + 1)
        optimizer.step(batch_ids=[1])
    with open_log(tmp_path / "run.h5") as log:
        step = log.step(0)
    norms = [group.gradient_norm for group in step.groups]
    assert norms == pytest.approx([(12 + 3 * 4) ** 0.5, (6 * 9) ** 0.5])
    assert step.gradient_norm == pytest.approx((12 + 12 + 54) ** 0.5)
    assert step.groups[0].norms == pytest.approx([12**0.5, 12**0.5])
    assert step.groups[1].norms == pytest.approx([54**0.5, float("nan")], nan_ok=True)


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
            text = "give the wrapper what torch.compile returned, or call model.compile() before"
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
        pytest.warns(TracingWarning, match="no forward of the model was seen before") as seen,
        TracingSGD(sgd, model, tmp_path / "run.h5") as optimizer,
    ):
        for _ in range(3):
            optimizer.zero_grad()
            model.encode(torch.randn(4, 3)).square().mean().backward()
            optimizer.step(batch_ids=[0, 1, 2, 3])
    assert len(seen) == 1
