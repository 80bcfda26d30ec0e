"""What ranks are told where a run is not traced; a rank that dies, and the run that goes on."""

from __future__ import annotations

import re
from signal import SIGKILL
from unittest.mock import Mock

import pytest
import torch

from tests.helpers.rank_failures import DIES, LONGER, STORY, wrapped
from tests.helpers.ranks import launch
from tracer import open_log
from tracer.errors import TracingError
from tracer.thread.writer_thread import WriterThread
from tracer.wrapper.pending_step import MeasuredStep, PendingStep

SAID = {  # what rank 0 is told, and rank 1 if that is something else
    "other arguments": ("need the same arguments, found reduction=",),
    "wrong arguments": ("rank 1 has no wrapper.*found 'no'", 'record must be "ids"'),
    "a log that exists": ("OutputExistsError: the log .* exists", "rank 0 has no wrapper.*exists"),
    "sharded": (r"sharded by fully_shard \(FSDP2\).*DistributedDataParallel",),
    "hooked": ("hook fp16_compress_hook makes other gradients",),
    "ignoring": ("does not average the gradient of '2.bias'",),
    "joining": (r"ddp.join\(\).*a rank that has joined takes no step",),
    "joining later": (r"tracing stopped.*ddp.join\(\).*with 0 complete steps", ""),
    "not spread": ("2 ranks, and model= is no DistributedDataParallel",),
    "own buffers": ("", "rank 1 writes into its own buffers.*'0.parametrizations.weight.0._u'"),
    "other IDs": ("tracing stopped: batch IDs of step 0 are integers on one rank", ""),
    "coupled": ("draws random numbers.*SyncBatchNorm.*will not reproduce",),
    "coupled batches": ("recorded batches cannot be joined",),
    "alone": ("each of the 2 ranks, and found none on rank 1 within 1 s", ""),
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_traced_is_said_by_name(runs, name):
    for rank, found in enumerate(runs[1]):
        expected = SAID[name][min(rank, len(SAID[name]) - 1)]
        text = found["said"][name].replace("\n", " ")
        assert re.search(expected, text) if expected else not text


def test_a_rank_that_dies_leaves_the_steps_that_all_took(runs):
    folder, (found, _) = runs
    (text,) = found["died"]
    assert f"rank 1 ended before it said which examples it had in step {DIES}" in text
    assert f"closed with {DIES} complete steps" in text
    with open_log(folder / "whole.h5") as whole, open_log(folder / "died.h5") as log:
        assert [step.batch_ids for step in log.steps()] == steps(whole)[:DIES]


def test_what_came_before_a_part_that_is_missing_is_put_on_file():
    def missing(t, own):
        raise TracingError(f"no part of step {t}")

    step = PendingStep(MeasuredStep(3, (), b""), None, (), 1.0, frozenset(), missing)
    writer = Mock()
    with pytest.raises(TracingError, match="no part of step 3"):
        step.write(writer, b"", b"")
    assert [name for name, *_ in writer.method_calls] == ["commit"]


def test_what_is_put_on_file_by_a_job_that_fails_is_counted():
    def fails(writer):
        writer.committed = 3
        raise TracingError("no part of step 3")

    thread = WriterThread(lambda: Mock(committed=0), Mock(size=4))
    thread.submit(fails)
    thread.close()
    assert thread.committed == 3


def steps(log):
    return [step.batch_ids for step in log.steps()]


def test_the_run_goes_on_with_as_many_ranks_as_it_would_have(runs):
    folder, before = runs
    with pytest.raises(TracingError, match="had 2 ranks and now has 1.*not be the same run"):
        wrapped(STORY.model(), folder / "died.h5", resume=True)
    found, codes, errors = launch("tests.helpers.rank_failures", folder)
    assert codes == [0, -SIGKILL], errors
    with open_log(folder / "killed.h5") as log:
        assert len(log) == DIES  # both had taken them
    assert found == [one["whole"] for one in before]
    with open_log(folder / "whole.h5") as whole, open_log(folder / "died.h5") as log:
        assert len(log) == LONGER
        assert steps(log) == steps(whole)
        for mine, its in zip(log.steps(), whole.steps(), strict=True):
            for a, b in zip(mine.micro_batches, its.micro_batches, strict=True):
                assert torch.equal(a.random_state.cpu, b.random_state.cpu)
        for name, w in whole.parameters(LONGER).items():
            assert torch.equal(w, log.parameters(LONGER)[name])
