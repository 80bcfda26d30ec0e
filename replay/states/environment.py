"""What decides a run's last bits beside its code: how this process differs, and how it can be set.

Sums are taken in another order with another number of threads or another CPU, and differ in their
last places; steps that build on each other let such differences grow.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def differences(metadata: Mapping[str, Any]) -> list[str]:
    """Return how this process differs from the one that trained, in sentences without full stops.

    Args:
        metadata: Of the run's log.
    """
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    found = {
        "num_threads": (threads, "torch used {} threads in the run and uses {} here"),
        "torch": (str(torch.__version__), "the run had torch {}, here it is {}"),
        "cpu_capability": (capability, "the run's CPU had {}, this one has {}"),
        "onednn": (bool(torch.backends.mkldnn.enabled), "oneDNN was {} in the run and is {} here"),
        "python": (platform.python_version(), "the run had Python {}, here it is {}"),
    }
    known = [
        text.format(metadata[name], here)
        for name, (here, text) in found.items()
        if name in metadata and metadata[name] != here
    ]
    precision = _precision()
    if precision not in ("highest", "ieee", "none"):
        known.append(f"products have the precision {precision!r} here; the log has not the run's")
    return known


def remedy(causes: Sequence[str]) -> str:
    """Return a sentence that names ``match_environment``, if it takes away one of the causes."""
    if not any(cause.startswith(("torch used", "oneDNN was")) for cause in causes):
        return ""
    return " Take the run's with match_environment=True (--match-environment)."


def _precision() -> str:
    """Return how products are rounded; torch refuses to tell where both of its settings were set.

    A replay sets the newer one, of GPUs.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        backend: Any = torch.backends.mkldnn
        return str(backend.matmul.fp32_precision)


@contextmanager
def matched(metadata: Mapping[str, Any]) -> Iterator[None]:
    """Compute with the run's number of threads and its oneDNN setting; leave both as found."""
    backend: Any = torch.backends.mkldnn
    threads, onednn = torch.get_num_threads(), backend.enabled
    try:
        torch.set_num_threads(int(metadata["num_threads"]))
        backend.enabled = bool(metadata["onednn"])
        yield
    finally:
        torch.set_num_threads(threads)
        backend.enabled = onednn
