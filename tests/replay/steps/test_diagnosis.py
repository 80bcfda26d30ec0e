"""What is said of mistakes that people make: the cause that explains the step, tried on it."""

# ruff: noqa: D101, RUF012
from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from replay import Replay, Task
from tests.helpers.cases import cross_entropy
from tests.helpers.places import ROOT
from tracer import TracingOptimizer
from tracer.errors import MismatchError

IDS = [[0, 3, 1, 2], [4, 5, 6, 7], [8, 2, 9, 5]]
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0])


def network():
    """BatchNorm and dropout between Linear layers."""
    torch.manual_seed(0)
    layers = (nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))
    return nn.Sequential(*layers)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def data(seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 4, generator=generator)
    y = torch.randint(0, 3, (12,), generator=generator)
    return list(zip(x, y, strict=True))


def task(model=plain, **parts):
    return dataclasses.replace(Task(model, cross_entropy, data(), data(6)), **parts)


class Mistakes:
    """A right training loop; each mistake replaces a part of it."""

    model, parts, micro, rules = staticmethod(plain), {}, 1, ("sgd", "adamw")

    def train(self, model):
        return model.train()

    def batch(self, task, ids):
        return task.collate([task.train[i] for i in ids])

    def objective(self, task, model, batch):
        return task.loss(model, batch).mean() / self.micro

    def clip(self, model):
        pass

    def logged(self, ids):
        return ids

    def zero_grad(self, optimizer):
        optimizer.zero_grad()

    def after(self, t, model):
        pass

    def settle(self, model, optimizer):
        pass

    def parameters(self, model):
        return model.parameters()

    def run(self, path, make):
        """Train three steps; return the task."""
        known = task(self.model, **self.parts)
        model = known.model()
        with TracingOptimizer(make(self.parameters(model)), model, path) as optimizer:
            for t, ids in enumerate(IDS):
                self.zero_grad(optimizer)
                self.train(model)
                size = len(ids) // self.micro
                for k in range(self.micro):
                    part = ids[k * size : (k + 1) * size]
                    self.objective(known, model, self.batch(known, part)).backward()
                    optimizer.observe(self.logged(part))
                self.clip(model)
                optimizer.step()
                self.after(t, model)
            self.settle(model, optimizer)
        return known


class Sum(Mistakes):
    said = r'summed.*each norm in the run is 4 times.*1\. Trace with reduction="sum"'

    def objective(self, task, model, batch):
        return task.loss(model, batch).sum()


class Undivided(Mistakes):
    micro, said = 2, r"2 micro-batches were not divided.*1\. Divide the loss by 2.*weights="

    def objective(self, task, model, batch):
        return task.loss(model, batch).mean()


class Eval(Mistakes):
    model, said = staticmethod(network), r"the model was in eval mode.*1\. Call model\.train\(\)"

    def train(self, model):
        return model.eval()


class EvalNorm(Mistakes):
    model, said = staticmethod(network), r"its normalisation was in eval mode.*train\(\) keep those"

    def train(self, model):
        model.train()[1].eval()


class Cast(Mistakes):
    said = r"under autocast to bfloat16.*1\. Let task\.loss do the same"

    def objective(self, task, model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return task.loss(model, batch).mean()


class OneBased(Mistakes):
    said = r"off by one \(with -1 added.*1\. Log the keys"

    def logged(self, ids):
        return [i + 1 for i in ids]


class NextIds(Mistakes):
    said = r"of another batch \(with those of step 0, step 1 reproduces.*1\. Log the IDs of the"

    def logged(self, ids):
        return IDS[(IDS.index(ids) + 1) % 3]


class LastIds(Mistakes):
    said = r"^step 1 .*of another batch \(with those of step 2, step 1 reproduces"

    def logged(self, ids):
        return IDS[max(IDS.index(ids) - 1, 0)]


class Sorted(Mistakes):
    model, said = staticmethod(network), r"in another order \(sorted.*1\. Give the IDs in the order"

    def batch(self, task, ids):
        return super().batch(task, sorted(ids))


class Subset(Mistakes):
    parts = {"train": torch.utils.data.Subset(data(), [*range(11, -1, -1)])}
    said = r"positions in the whole data set.*1\. Give the task train=subset\.dataset"

    def batch(self, task, ids):
        return task.collate([task.train.dataset[i] for i in ids])


class NoZeroGrad(Mistakes):
    said = r"^step 1 .*gradient of step 0 was still there.*1\. Call optimizer\.zero_grad\(\)"

    def zero_grad(self, optimizer):
        pass


class L2(Mistakes):
    said = r"added 0\.05 times the sum of the parameters' squares.*1\. Give the task the same term"

    def objective(self, task, model, batch):
        squares = sum(p.square().sum() for p in model.parameters() if p.dim() == 2)
        return super().objective(task, model, batch) + 0.05 * squares


class Clamped(Mistakes):
    said = r"elements of the gradient were clamped to 0\.02 .*clip_grad_norm_"

    def clip(self, model):
        nn.utils.clip_grad_value_(model.parameters(), 0.02)


class Apart(Mistakes):
    said = r"each parameter was clipped by itself, to a norm of 0\.05.*clip_grad_norm_"

    def clip(self, model):
        for parameter in model.parameters():
            nn.utils.clip_grad_norm_(parameter, 0.05)


class Detached(Mistakes):
    said = (
        r"2 of 4 parameters differ \(0\.weight, 0\.bias\), and their gradient was zero.*1\. Freeze"
    )

    def clip(self, model):
        for parameter in model[0].parameters():
            parameter.grad.zero_()


class Early(Mistakes):
    """Draws noise before it calls the model."""

    said = r"draws random numbers before it calls the model.*1\. Call optimizer\.observe\(ids\)"
    parts = {"loss": lambda model, batch: F.cross_entropy(
        model(batch[0] + torch.randn_like(batch[0])), batch[1], reduction="none")}  # fmt: skip


class Augmented(Mistakes):
    """Collates with a random flip."""

    said = r'collate draws at random.*1\. Trace with record="batches"'

    @staticmethod
    def collate(items):
        x, y = torch.utils.data.default_collate(items)
        return x + torch.rand(()), y

    parts = {"collate": collate}


class NoPenalty(Mistakes):
    said = r"the loop added no penalty.*1\. Leave penalty= out"
    parts = {"penalty": lambda model: 0.1 * model[0].weight.square().sum()}


class PutBack(Mistakes):
    said = r"^step 2 .*weights from before step 1 were put back before the log was closed.*0:2"

    def after(self, t, model):
        if t == 0:
            self.best = {k: v.clone() for k, v in model.state_dict().items()}

    def settle(self, model, optimizer):
        with torch.no_grad():  # load_state_dict is seen, and the step's own weights are kept
            for name, tensor in model.state_dict().items():
                tensor.copy_(self.best[name])


class Averaged(Mistakes):
    said = r"^step 2 .*last step, and all before it reproduce.*averaged weights"

    def settle(self, model, optimizer):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)


class ClampedWeights(Mistakes):
    said = r"parameters were clamped after the step, to 0\.2 at most.*1\. Clamp inside the model"

    def after(self, t, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.2, 0.2)


class TwoOptimizers(Mistakes):
    said = r"beside the wrapped optimizer moved '2\.\w+'.*1\. Wrap both .*\(\[first, second\], mod"

    def parameters(self, model):
        return model[0].parameters()

    def after(self, t, model):
        torch.optim.SGD(model[2].parameters(), lr=0.1).step()


class ByHand(Mistakes):
    said = r"shrunk by 0\.01 of themselves.*1\. Use the optimizer's weight_decay"

    def after(self, t, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.99)


class Renormed(Mistakes):
    """An embedding whose forward writes into its weight."""

    said = r"forward pass writes into '0\.weight', as Embedding\(max_norm.*parametrization"

    @staticmethod
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(12, 4, max_norm=0.5), nn.Linear(4, 3))

    parts = {"train": [(torch.tensor(k), torch.tensor(k % 3)) for k in range(12)]}


class ClassWeights(Mistakes):
    rules = ("sgd", "heavy-ball")
    said = r"examples were weighted, from 0\.\d+ to .*1\. Say what stood before each loss"

    def objective(self, task, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS)


class Unobserved(Mistakes):
    rules = ("sgd", "heavy-ball")
    said = r"is no sum of these examples' gradients.*1\. Call observe\(ids\) after each micro-batch"

    def batch(self, task, ids):
        x, y = super().batch(task, ids)
        others = super().batch(task, [10, 11])
        return torch.cat([x, others[0]]), torch.cat([y, others[1]])


class Reparametrized(Mistakes):
    """Its forward moves what the penalty reads, and the loop reads it before."""

    said = r"evaluated the penalty before the model's forward.*1\. Evaluate it after the losses"
    parts = {"penalty": lambda model: 0.3 * model[0].weight.square().sum()}

    @staticmethod
    def model():
        model = plain()
        nn.utils.parametrizations.spectral_norm(model[0])
        return model

    def objective(self, task, model, batch):
        return task.penalty(model) + Mistakes.objective(self, task, model, batch)


class Reread(Mistakes):  # the log has what that reading left; two parameters tell no other term
    rules, said, parts = ("sgd",), Reparametrized.said, Reparametrized.parts
    objective = Reparametrized.objective

    @staticmethod
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)))


class Masked(Mistakes):
    rules = ("sgd", "heavy-ball")
    said = r"1 examples of the batch had no part in the run, 2 first"

    def objective(self, task, model, batch):
        return (task.loss(model, batch) * torch.tensor([1.0, 1, 1, 0])).mean()


PAGE = (ROOT / "docs" / "does-not-reproduce.md").read_text()
HEADINGS = [h.strip("# ").lower().replace(" ", "-") for h in re.findall(r"(?m)^#+ .*$", PAGE)]
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "heavy-ball": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
CASES = [
    pytest.param(kind, rule, id=f"{kind.__name__}-{rule}")
    for kind in Mistakes.__subclasses__()
    for rule in kind.rules
]


@pytest.mark.filterwarnings("ignore::tracer.errors.TracingWarning")  # some are seen in training
@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_the_likely_cause_is_named(tmp_path, kind, rule):
    known = kind().run(tmp_path / "run.h5", RULES[rule])
    with pytest.raises(MismatchError, match=f"(?s){kind.said}.*See docs/does-not") as raised:
        Replay(tmp_path / "run.h5", task=known).verify(progress=False)
    finding, cause, *remedies, closing = str(raised.value).split("\n")
    assert cause.startswith("Likely cause: ")
    assert 2 <= len(remedies) <= 3
    (anchor,) = re.findall(r"^See docs/does-not-reproduce\.md#([a-z-]+)\. ", closing)
    assert anchor in HEADINGS
    assert all(len(sentence.split()) <= 45 for sentence in (finding, cause, *remedies, closing))


def test_the_right_loop_reproduces(tmp_path):
    known = Mistakes().run(tmp_path / "run.h5", RULES["adamw"])
    Replay(tmp_path / "run.h5", task=known).verify(progress=False)


@pytest.mark.parametrize("model", [plain, network])
def test_what_nothing_explains_is_no_guess(tmp_path, model):
    """Other labels: no cause that is tried makes the step reproduce."""

    class Labels(Mistakes):
        def batch(self, task, ids):
            x, y = super().batch(task, ids)
            return x, (y + 1) % 3

    Labels.model = staticmethod(model)
    known = Labels().run(tmp_path / "run.h5", RULES["adamw"])
    said = r"(?s)^step 0 .*\.\nCheck, in this order:\n  1\. the task: the same loss, model, data"
    with pytest.raises(MismatchError, match=said):
        Replay(tmp_path / "run.h5", task=known).verify(progress=False)
