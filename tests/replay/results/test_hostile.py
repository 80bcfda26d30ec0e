"""A result may come from anywhere: whatever its bytes, it reads right or is an error."""

from __future__ import annotations

import random

from replay import Influence, Replay
from tests.helpers.cases import CASES
from tests.helpers.hostile import mutated, read_in_child


def test_mutated_results(tmp_path):
    task = CASES[2].trace(tmp_path / "run.h5")
    found = Replay(tmp_path / "run.h5", task=task).influence([0, 1], progress=False)
    found.save(tmp_path / "result.h5")
    data, rng = (tmp_path / "result.h5").read_bytes(), random.Random(0)
    for _ in range(40):
        path = tmp_path / "broken.h5"
        path.write_bytes(mutated(bytearray(data), rng))
        kind, error = read_in_child(lambda path=path: len(Influence.load(path).train_ids))
        assert kind != "wrong", error
