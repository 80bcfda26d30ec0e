"""What cannot be traced, said by name: trainers of the shape of other libraries' ones."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tracer.errors import TracingError
from tracer.integrations import accelerate_limits, lightning_limits, trainer_limits

SMOOTHING = "label_smoothing"


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


@pytest.mark.parametrize(("factor", "own"), [(0.1, 0.0), (0.0, 0.1), (0.1, 0.1), (0.1, None)])
def test_labels_that_a_trainer_smooths(factor, own):
    """A loss that does not say how it smooths is not doubted."""
    task = SimpleNamespace(loss=SimpleNamespace(**({} if own is None else {SMOOTHING: own})))
    one = SimpleNamespace(args=SimpleNamespace(label_smoothing_factor=factor))
    said = rf"label_smoothing_factor={factor}, and .*{own}:.*\n1\. Build .*label_smoothing={factor}"
    fits = own in (None, factor)
    with nullcontext() if fits else pytest.raises(TracingError, match=said):
        trainer_limits.check_trainer(one, "ids", task)


def accelerator(**found):
    usual = {
        "distributed_type": SimpleNamespace(value="NO"),
        "num_processes": 1,
        "scaler": None,
        "mixed_precision": "bf16",
        "device_placement": True,
    }
    accelerate_limits.check_accelerator(SimpleNamespace(**{**usual, **found}))


ACCELERATE = {
    r"over devices \(DEEPSPEED\), which cannot be traced.\n1. Train in one .*, without DEEPS": {
        "distributed_type": SimpleNamespace(value="DEEPSPEED")
    },
    r"over devices \(FSDP\)": {"distributed_type": SimpleNamespace(value="FSDP")},
    "runs on 2 processes": {"num_processes": 2},
    r"a GradScaler \(mixed_precision='fp16'\)": {"scaler": object()},
    "computes in fp8": {"mixed_precision": "fp8"},
    r"where they are \(device_placement=False\)": {"device_placement": False},
}


@pytest.mark.parametrize(("message", "found"), ACCELERATE.items())
def test_accelerate(message, found):
    accelerator()
    with pytest.raises(TracingError, match=message):
        accelerator(**found)


def test_a_loader_of_accelerate():
    with pytest.raises(TracingError, match=r"from one process \(dispatch_batches=True\)"):
        accelerate_limits.check_loader(named("DataLoaderDispatcher"))
