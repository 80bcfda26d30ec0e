"""Optimizers whose steps are not divided, and what averages weights beside an optimizer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from replay import Replay
from tests.helpers import rules
from tests.helpers.rules import O
from tracer import TracingOptimizer
from tracer.errors import MismatchError, TracingWarning, UnsupportedRuleError

IDS = [[t, t + 1, t + 2] for t in range(5)]


class SAM(O.Optimizer):
    """Foret et al. (2020): the gradient at the worst weights nearby moves those that were there."""

    first = True  # whether it evaluates the first gradient itself

    def __init__(self, params, lr=0.1, rho=0.1):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure() if self.first else None
        (group,) = self.param_groups
        kept = [p.clone() for p in group["params"]]
        size = torch.stack([p.grad.norm() for p in group["params"]]).norm()
        for p in group["params"]:
            p.add_(p.grad, alpha=group["rho"] / float(size))
        with torch.enable_grad():
            closure()
        for p, old in zip(group["params"], kept, strict=True):
            p.copy_(old).sub_(p.grad, alpha=group["lr"])


class Lookahead(O.SGD):
    """Zhang et al. (2019): every second step goes half of the way only."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            slow = state.setdefault("slow", p.detach().clone())
            state["count"] = state.get("count", 0) + 1
            if state["count"] % 2 == 0:
                p.data.copy_(slow.lerp_(p.detach(), 0.5))


class WSAM(SAM):
    """It is given the first gradient, as by a loop with a backward before the step."""

    first = False


class AdamW8bit(O.AdamW):
    """Stands in for those that are not torchao's."""


def train(path, task, make, *, closure=False, after=None):
    """Return what training leaves behind, with or without a trace."""
    model = task.model()
    inner = make(model.parameters())
    traced = path is not None
    optimizer = TracingOptimizer(inner, model, path) if traced else inner
    if after is not None:
        after.begin(model, optimizer)
    for t, ids in enumerate(IDS):

        def evaluate(ids=ids):
            optimizer.zero_grad()
            loss = task.loss(model, task.collate([task.train[i] for i in ids])).mean()
            loss.backward()
            return loss

        known = {"batch_ids": ids} if traced else {}
        if not closure or not getattr(inner, "first", True):
            evaluate()
        optimizer.step(*[evaluate] * closure, **known)
        if after is not None:
            after(t, model, optimizer)
    if traced:
        optimizer.close()
    return copy.deepcopy(model.state_dict())


LBFGS = (lambda p: O.LBFGS(p, lr=0.1, max_iter=3), rules.task, True, "LBFGS .it searches along")
ROWS = [
    LBFGS,
    (SAM, rules.task, True, r"SAM .it takes gradients at other weights"),
    (AdamW8bit, rules.task, False, r"AdamW8bit .it rounds its momentum to a few bits"),
    (lambda p: Lookahead(p, lr=0.1), rules.task, False, r"Lookahead .it puts an average"),
]


@pytest.mark.parametrize(("make", "task", "closure", "why"), ROWS, ids=lambda x: str(x)[:12])
def test_it_is_traced_and_refused_by_name_with_what_still_works(tmp_path, make, task, closure, why):
    task, path = task(), tmp_path / "run.h5"
    left = train(path, task, make, closure=closure)
    right = train(None, task, make, closure=closure)
    assert all(torch.equal(left[name], right[name]) for name in left)
    run = Replay(path, task)
    with pytest.raises(UnsupportedRuleError, match=rf"(?s)made by .*{why}.*  1\. Ask for tracincp"):
        run.influence([0, 1], methods=("tracin",), progress=False)
    assert run.drops([0, 1], progress=False).shape == (5, 2)
    assert run.influence([0], methods=("tracincp",), progress=False).scores["tracincp"].any()


def test_verify_says_that_sam_takes_gradients_elsewhere(tmp_path):
    task = rules.task()
    train(tmp_path / "run.h5", task, WSAM, closure=True)
    with pytest.raises(MismatchError, match=r"(?s)gradient.*made by .*SAM \(it takes gradients at"):
        Replay(tmp_path / "run.h5", task).verify(progress=False)


def sgd(parameters):
    return O.SGD(parameters, lr=0.1, momentum=0.9)


class Averages:
    """An average of the weights beside the run; perhaps put in their place and taken out again."""

    def __init__(self, exchange=None, ends=False):
        self.exchange, self.ends = exchange, ends

    def begin(self, model, optimizer):
        self.model = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.rates = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)

    def __call__(self, t, model, optimizer):
        self.model.update_parameters(model)
        self.rates.step()
        if t != self.exchange:
            return
        if self.ends:
            optimizer.close()
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(self.model.module.state_dict())
        if t < 4:
            model.load_state_dict(own)


@pytest.mark.parametrize(
    "after", [Averages(), Averages(2), Averages(4, ends=True)], ids=["beside", "swapped", "ends"]
)
def test_averages_leave_the_run_alone(tmp_path, after):
    """What is traced are the weights that the optimizer moves."""
    task = rules.task()
    train(tmp_path / "run.h5", task, sgd, after=after)
    run = Replay(tmp_path / "run.h5", task)
    assert str(run.verify(progress=False)) == "steps 0:5 reproduce"
    terms = run.influence([0, 1], methods=("tracin",), progress=False).terms["tracin"]
    assert np.abs(terms["rounding"]).max() <= 1e-13 * np.abs(terms["data"]).max()


def test_averages_that_are_put_in_place_before_the_end(tmp_path):
    with pytest.warns(TracingWarning, match=r"(?s)changed after step 4.*1\. If best or averaged"):
        train(tmp_path / "run.h5", rules.task(), sgd, after=Averages(4))
