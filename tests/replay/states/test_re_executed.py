"""Logs with snapshots here and there: what is computed between them is the run, bit for bit."""

import dataclasses
import sys

import h5py
import numpy as np
import pytest
import torch

from replay import Replay
from replay.states.environment import differences, matched, remedy
from replay.states.opening import taken_again
from tests.helpers.sparse import MODELS, OPTIMIZERS, STEPS, data, loss, tampered, task, trace
from tracer import open_log
from tracer.errors import LogError, MismatchError, PrecisionWarning, UnsupportedRuleError
from tracer.log import metadata

LOOPS = {
    "plain": {},
    "clipped": {"clip": "inside"},
    "clipped-outside": {"clip": "outside"},
    "accumulated": {"parts": 2, "clip": "inside"},
    "odd-batch": {"size": 7},
}
RUNS = [
    *((model, "sgd", "plain") for model in MODELS),
    *(("mlp", rule, "plain") for rule in OPTIMIZERS),
    *(("cnn", "adamw", loop) for loop in LOOPS),
    ("attention", "adamw", "accumulated"),
    ("lstm", "heavy-ball", "odd-batch"),
    ("attention", "muon", "plain"),
]
EVERY = (1, 5, STEPS, "epoch")


@pytest.mark.parametrize(("model", "rule", "loop"), dict.fromkeys(RUNS), ids="-".join)
def test_every_state_is_that_of_the_log_with_all_of_them(tmp_path, model, rule, loop):
    trace(tmp_path / "dense.h5", model, rule, snapshot_every=1, **LOOPS[loop])
    with open_log(tmp_path / "dense.h5") as log:
        expected = [log.parameters(t) for t in range(STEPS + 1)]
    for every in EVERY[1:] if rule == "sgd" else (5,):  # the other places are the same code
        path = tmp_path / f"{every}.h5"
        trace(path, model, rule, snapshot_every=every, **LOOPS[loop])
        run = Replay(path, task=task(model))
        for t in (*range(STEPS + 1), 3, 9, 8, 2):
            found = run.state_dict(t)
            assert all(torch.equal(found[name], w) for name, w in expected[t].items()), (every, t)


@pytest.mark.parametrize("memory", ["2GiB", "40kB"])
@pytest.mark.parametrize("rule", ["sgd", "heavy-ball", "adamw"])
def test_scores_are_those_of_the_log_with_all_states(tmp_path, rule, memory):
    methods = ["tracin", "tracincp"] + (["ideal"] if memory == "2GiB" else [])
    for every in (1, 5, STEPS):
        trace(tmp_path / f"{every}.h5", "cnn", rule, snapshot_every=every, clip="inside", parts=2)
        run = Replay(tmp_path / f"{every}.h5", task=task("cnn"), memory=memory)
        found = run.influence([0, 3], methods=methods, checkpoints=4, progress=False)
        own = run.self_influence(progress=False)
        if every == 1:
            expected, of_itself = found, own
        for method in methods:
            assert np.array_equal(found.scores[method], expected.scores[method]), method
            assert np.array_equal(found.drops.get(method), expected.drops.get(method)), method
        for name, values in of_itself.scores.items():
            assert np.array_equal(own.scores[name], values, equal_nan=True)


@pytest.mark.parametrize("rule", ["nadam", "muon"])
def test_drops_and_checkpoints_of_other_rules(tmp_path, rule):
    found = []
    for every in (1, 5):
        trace(tmp_path / f"{every}.h5", "mlp", rule, snapshot_every=every)
        run = Replay(tmp_path / f"{every}.h5", task=task())
        scores = run.influence([0, 3], methods=["tracincp"], progress=False).scores["tracincp"]
        found.append((run.drops([0, 3], progress=False), scores))
    for left, right in zip(*found, strict=True):
        assert (left == right).all()


def test_a_log_says_where_its_snapshots_are(tmp_path):
    trace(tmp_path / "run.h5", snapshot_every=5)
    with open_log(tmp_path / "run.h5") as log:
        assert (log.is_dense, log.states()) == (False, [0, 5, 10, STEPS])
        assert set(log.parameters(5)) == set(log.parameters(STEPS))
        with pytest.raises(LogError, match=r"no snapshot of the parameters before step 3.*\n.*1\."):
            log.parameters(3)


def _verified(path, of):
    return Replay(path, task=of).verify(progress=False).proof


def test_every_step_is_proved(tmp_path):
    trace(tmp_path / "run.h5", "cnn", "adamw", snapshot_every=5)
    proof = _verified(tmp_path / "run.h5", task("cnn"))
    assert (proof.proved, proof.unproved, proof.drift) == (STEPS, (), 0.0)
    assert "12 steps taken again, each proved bit for bit" in str(proof)


def _first_visit(path, train_id):
    with open_log(path) as log:
        return next(t for t in range(len(log)) if train_id in log.batch_ids(t))


def test_a_changed_pixel_is_found_at_its_step(tmp_path):
    trace(tmp_path / "run.h5", "lstm", "sgd", snapshot_every=8)
    right, (x, y) = task("lstm"), data()
    for changed in (11, 23):
        moved = x.clone()
        moved[changed, 3] += 1e-3
        wrong = dataclasses.replace(right, train=list(zip(moved, y, strict=True)))
        proof = _verified(tmp_path / "run.h5", wrong)
        assert proof.unproved[0] == _first_visit(tmp_path / "run.h5", changed)
        assert 0 < proof.drift < 0.01


def test_a_changed_label_is_found_at_its_step(tmp_path):
    trace(tmp_path / "run.h5", "lstm", "adamw", snapshot_every=8)
    right, (x, y) = task("lstm"), data()
    y[11] = (y[11] + 1) % 3
    wrong = dataclasses.replace(right, train=list(zip(x, y, strict=True)))
    t = _first_visit(tmp_path / "run.h5", 11)
    with pytest.raises(MismatchError, match=f"step {t} of"):
        _verified(tmp_path / "run.h5", wrong)


@pytest.mark.parametrize(
    ("part", "model", "differs"),
    [
        ("parameters_crc", "mlp", False),
        ("steps/ids", "lstm", False),  # the same gradient, added up in another order
        ("steps/ids", "mlp", True),  # dropout falls on others
        ("snap/rng", "mlp", True),
    ],
    ids=["digest", "order", "order-and-dropout", "seed"],
)
def test_what_was_tampered_with_is_found_at_its_step(tmp_path, part, model, differs):
    path = tmp_path / "run.h5"
    trace(path, model, "sgd", snapshot_every=5, size=8)
    tampered(path, part, 6)
    if differs:
        with pytest.raises(MismatchError, match="step 6 of"):
            _verified(path, task(model))
    else:
        assert _verified(path, task(model)).unproved[0] == 6


def test_drift_is_measured_and_said(tmp_path):
    path = tmp_path / "run.h5"
    trace(path, "cnn", "heavy-ball", snapshot_every=1, size=7)
    expected = Replay(path, task("cnn")).influence([0, 3], progress=False)
    trace(tmp_path / "sparse.h5", "cnn", "heavy-ball", snapshot_every=4, size=7)

    def other_order(model, batch):  # the same losses, rounded otherwise
        return loss(model, batch) * (1 + 2e-7)

    run = Replay(tmp_path / "sparse.h5", dataclasses.replace(task("cnn"), loss=other_order))
    with pytest.warns(PrecisionWarning, match=r"12 of 12 steps .* from step 0 on. The snapshots"):
        found = run.influence([0, 3], progress=False)
    facts = found.attributes
    assert (facts["steps_proved"], facts["steps_not_proved"]) == (0, STEPS)
    assert facts["first_step_not_proved"] == 0
    assert 0 < facts["largest_drift"] < 1e-4
    for method, scores in expected.scores.items():
        size = np.abs(scores).max()
        assert np.abs(found.scores[method] - scores).max() < 100 * facts["largest_drift"] * size


def test_a_drift_that_rounding_does_not_explain_is_an_error(tmp_path):
    path = tmp_path / "run.h5"
    trace(path, "mlp", "nadam", snapshot_every=4)
    run = Replay(path, dataclasses.replace(task(), loss=lambda m, b: loss(m, b).square()))
    for job in (run.drops, lambda ids: run.influence(ids, methods="tracincp", progress=False)):
        with pytest.raises(MismatchError, match=r"taken again, they missed .* of the way between"):
            job([0, 3])
    with pytest.warns(PrecisionWarning, match="12 of 12 steps"):
        run.influence([0], methods="tracincp", progress=False, allow_mismatch=True)


def test_an_optimizer_that_nobody_imported_is_named(tmp_path):
    path = tmp_path / "run.h5"
    trace(path, snapshot_every=4)
    with h5py.File(path, "r+") as file:
        file.attrs["optimizer"] = np.bytes_(b"antigravity.SGD")
        metadata.seal(file)
    with pytest.raises(UnsupportedRuleError, match=r"no such optimizer class is imported.*\n.*1\."):
        Replay(path, task())
    assert "antigravity" not in sys.modules


def test_the_environment_is_compared_and_matched(tmp_path):
    trace(tmp_path / "run.h5", snapshot_every=4)
    threads = torch.get_num_threads()
    with open_log(tmp_path / "run.h5") as log:
        known = {**log.metadata, "num_threads": threads + 1, "torch": "9.9"}
    assert differences(known)[:2] == [
        f"torch used {threads + 1} threads in the run and uses {threads} here",
        f"the run had torch 9.9, here it is {torch.__version__}",
    ]
    assert "match_environment=True (--match-environment)" in remedy(differences(known))
    assert not remedy(differences({**known, "num_threads": threads}))
    torch.set_float32_matmul_precision("high")
    try:
        assert differences(known)[-1].startswith("products have the precision 'high' here")
    finally:
        torch.set_float32_matmul_precision("highest")
    with matched(known):
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads
    run = Replay(tmp_path / "run.h5", task(), match_environment=True)
    assert not run.verify(progress=False).proof.unproved


@pytest.fixture
def still(tmp_path, monkeypatch):
    """A run without a rate: any gradient leads to its parameters, and to another momentum."""
    monkeypatch.setitem(OPTIMIZERS, "still", lambda ps: torch.optim.SGD(ps, lr=0.0, momentum=0.9))
    for every, how in ((1, {"state_every": 1}), (STEPS, {})):
        trace(tmp_path / f"{every}.h5", "mlp", "still", snapshot_every=every, **how)
    with open_log(tmp_path / "1.h5") as whole, open_log(tmp_path / f"{STEPS}.h5") as log:
        yield whole, log


def again(log, loss=loss):
    return taken_again(log, dataclasses.replace(task(), loss=loss), torch.device("cpu"), 1 << 20)


def turned(log, t):
    """Return a gradient of which a log has the norms, and which the run did not have."""
    model, (x, y), ids = task().model(), data(), log.batch_ids(t)
    model.load_state_dict(log.parameters(0))
    torch.set_rng_state(log.step(t).micro_batches[0].random_state.cpu)
    loss(model, (x[ids], y[ids])).mean().backward()
    return {name: -p.grad for name, p in model.named_parameters()}


def test_the_recorded_state_is_the_runs_whatever_was_taken_before(still):
    whole, log = still

    def wrong(found, t):
        momentum = whole.state(t)["optimizer"]["state"]
        pairs = zip(found.states.values(), momentum.values(), strict=True)
        return [not torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in pairs]

    for t in (8, 10):
        states = again(log)
        states.transition(0, turned(log, 0))
        states.at(9)  # keeps states on its way
        assert all(wrong(states.optimizer_again(t), t))
        assert not any(wrong(states.recorded(t), t))
        for k in range(t):  # gradients of others are taken no more
            states.transition(k, turned(log, k))
        assert not any(wrong(states.recorded(t), t))
        assert not states.unproved


def test_a_state_that_equal_parameters_do_not_prove_is_none(still):
    states = again(still[1], lambda model, batch: loss(model, batch).square())
    assert states.optimizer_again(4) is not None
    assert states.recorded(4) is None
