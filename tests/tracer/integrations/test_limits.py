"""What cannot be traced, said by name: trainers of the shape of other libraries' ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tracer.errors import TracingError
from tracer.integrations import lightning_limits


def named(name, **attributes):
    """Return an object of a class of that name."""
    return type(name, (), attributes)()


def lightning(**found):
    usual = {
        "strategy": named("SingleDeviceStrategy"),
        "precision_plugin": named("MixedPrecision", scaler=None),
        "callbacks": [],
        "world_size": 1,
        "gradient_clip_algorithm": None,
    }
    lightning_limits.check_trainer(SimpleNamespace(**{**usual, **found}))


LIGHTNING = {
    r"uses the strategy FSDPStrategy, which cannot be traced.\n1. Train in one process": {
        "strategy": named("FSDPStrategy")
    },
    "uses the strategy DeepSpeedStrategy": {"strategy": named("DeepSpeedStrategy")},
    "uses the strategy ModelParallelStrategy": {"strategy": named("ModelParallelStrategy")},
    "runs on 2 processes": {"world_size": 2},
    r"a GradScaler \(precision='16-mixed'\)": {
        "precision_plugin": named("MixedPrecision", scaler=object())
    },
    "precision by TransformerEnginePrecision": {
        "precision_plugin": named("TransformerEnginePrecision")
    },
    r"to find settings \(BatchSizeFinder\)": {"callbacks": [named("BatchSizeFinder")]},
}


@pytest.mark.parametrize(("message", "found"), LIGHTNING.items())
def test_lightning(message, found):
    lightning()
    with pytest.raises(TracingError, match=message):
        lightning(**found)
