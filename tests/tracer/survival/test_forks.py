"""Processes that are forked while a log is open leave it alone."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import pytest
import torch
from torch.utils.data import DataLoader

from tests.helpers.training import Run, assert_equal_logs, script
from tracer import open_log, with_ids
from tracer.errors import TracingError
from tracer.log.locking import is_being_written


def test_forked_process_leaves_the_log_alone(tmp_path):
    path, expected = tmp_path / "run.h5", tmp_path / "expected.h5"
    Run(expected).train(12).close()
    run = Run(path).train(5)
    run.optimizer.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with pytest.raises(TracingError, match="belongs to process"):
                run.step()
            run.close()
            number = run.optimizer._log.channel._thread._writer._descriptor
            assert str(Path(f"/proc/self/fd/{number}").readlink()) == os.devnull
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_being_written(path)
    run.train(12).close()
    assert_equal_logs(path, expected)


def test_forked_process_that_exits_normally(tmp_path):
    code = """
        import os, sys
        from tests.helpers.training import Run, assert_equal_logs, script
        Run(sys.argv[2]).train(12).close()
        run = Run(sys.argv[1]).train(5)
        child = os.fork()
        if child == 0:
            sys.exit(0)  # runs every exit handler
        os.waitpid(child, 0)
        run.train(12).close()
        assert_equal_logs(sys.argv[1], sys.argv[2])
    """
    done = script(code, tmp_path / "run.h5", tmp_path / "expected.h5")
    assert done.returncode == 0, done.stderr


class Rows(torch.utils.data.Dataset):
    """Examples that are read from an HDF5 file, in the workers."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 24

    def __getitem__(self, k):
        with h5py.File(self.path) as file:
            return torch.from_numpy(file["x"][k])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_data_loader_workers(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = torch.randn(24, 4).numpy()
    run = Run(tmp_path / "run.h5")
    for _ in range(2):
        loader = DataLoader(with_ids(Rows(tmp_path / "data.h5")), batch_size=6, num_workers=2)
        for ids, x in loader:
            run.optimizer.zero_grad()
            run.model(x).square().mean().backward()
            run.optimizer.step(batch_ids=ids)
    run.close()
    with open_log(tmp_path / "run.h5") as log:
        assert len(log) == 8
        assert log.batch_ids(7) == list(range(18, 24))
