"""A result may come from anywhere: whatever its bytes, it reads right or is an error."""

from __future__ import annotations

import random

import pytest

from replay import Influence, Replay, SelfInfluence
from tests.helpers.cases import CASES
from tests.helpers.hostile import mutated, read_in_child


@pytest.mark.parametrize("kind", [Influence, SelfInfluence])
def test_mutated_results(tmp_path, kind):
    run = Replay(tmp_path / "run.h5", task=CASES[2].trace(tmp_path / "run.h5"))
    found = run.influence([0, 1], progress=False)
    if kind is SelfInfluence:
        found = run.self_influence(progress=False)
    found.save(tmp_path / "result.h5")
    data, rng = (tmp_path / "result.h5").read_bytes(), random.Random(0)
    for _ in range(40 if kind is Influence else 20):
        path = tmp_path / "broken.h5"
        path.write_bytes(mutated(bytearray(data), rng))
        read, error = read_in_child(lambda path=path: len(kind.load(path).train_ids))
        assert read != "wrong", error
