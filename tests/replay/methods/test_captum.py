"""TracInCP equals Captum's on the same checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from replay import Replay
from tests.helpers.cases import Case, convolutional, mlp

captum = pytest.importorskip("captum.influence", reason="captum is in the dev extra")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [mlp, convolutional], ids=["mlp", "conv"])
def test_tracincp_equals_captum(tmp_path, build):
    width = 4 if build is mlp else 16
    case = Case("float32", build, width=width, dtype=torch.float32)
    task = case.trace(tmp_path / "run.h5")
    run = Replay(tmp_path / "run.h5", task=task)
    checkpoints = [1, 3, 6]
    ours = run.influence([0, 1, 2, 3], methods=("tracincp",), checkpoints=checkpoints)

    def load(model, path):
        k = int(path)
        model.load_state_dict(run.log.parameters(k))
        return run.log.learning_rate(min(k, len(run.log) - 1))[0]

    def dataset(side):
        x, y = zip(*side.values(), strict=True)
        return TensorDataset(torch.stack(x), torch.stack(y))

    theirs = captum.TracInCP(
        model=task.model().eval(),
        train_dataset=dataset(task.train),
        checkpoints=[str(k) for k in checkpoints],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=4,
        sample_wise_grads_per_batch=False,
    )
    test = dataset(task.test)
    expected = theirs.influence((test.tensors[0], test.tensors[1])).numpy()
    difference = np.abs(ours.scores["tracincp"] - expected).max()
    assert difference <= 1e-5 * np.abs(expected).max()
