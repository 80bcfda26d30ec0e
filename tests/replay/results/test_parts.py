"""Finished parts on file: found by name with little memory, never taken for what they are not."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from replay.results.parts import Parts
from replay.results.places import Places
from tracer.errors import InputError

MOST = 100  # bytes of memory for each part
STEP = {f"{kind}/tracin": np.ones(4) for kind in ("credits", "terms", "predicted")}


@pytest.fixture
def parts(tmp_path):
    with Parts(tmp_path / "parts", {"methods": "tracin"}) as kept:
        yield kept


def again(parts):
    """Return what another process finds, which then ends."""
    with Parts(parts.path, {"methods": "tracin"}) as other:
        return other


def test_places_are_found_like_in_a_dict(tmp_path):
    rng, expected, found = np.random.default_rng(0), {}, Places()
    for k, (a, b) in enumerate(rng.integers(0, 900, (4000, 2)).tolist()):
        kind = (
            "step {}, rows {}-64",
            "checkpoint {}, rows 64-128, columns {}-4096",
            "run {}",
            "grid",
        )
        name, place = kind[a % 4].format(a, b), (tmp_path / f"{k % 3}", k * 1_000_003)
        expected[name] = found[name] = place
    assert {name: found[name] for name in expected} == expected
    others = ["step 901, rows 1-64", "step 4, rows 901-64", "run", "run 1000", "grid 0", ""]
    assert [name for name in others if name in found] == []
    with pytest.raises(KeyError):
        found["run 1000"]


def test_an_index_of_parts_is_small(parts):
    names = [f"step {t}, rows {k}-{k + 64}" for t in range(600) for k in (0, 64)]
    tracemalloc.start()
    try:
        for name in names:
            parts.add(name, STEP)
        added, _ = tracemalloc.get_traced_memory()
        other = again(parts)
        found = tracemalloc.get_traced_memory()[0] - added
    finally:
        tracemalloc.stop()
    assert max(added, found) < MOST * len(names)
    assert all(name in other for name in names)


def test_a_damaged_part_is_named_and_computed_again(parts):
    for t in range(4):
        parts.add(f"step {t}", {"x": np.full(9, float(t))})
    (file,) = parts.path.iterdir()
    data = file.read_bytes()
    at = data.index(np.full(9, 1.0).tobytes())
    file.write_bytes(data[: at + 6] + b"?" + data[at + 7 :])
    other = again(parts)
    np.testing.assert_array_equal(other["step 2"]["x"], np.full(9, 2.0))
    with pytest.raises(InputError, match=r"damaged at byte \d+, where step 1 stood.*\n1. Give the"):
        other["step 1"]
    with Parts(parts.path, {"methods": "tracin"}) as later:
        assert [f"step {t}" in later for t in range(4)] == [True, False, False, False]
        later.add("step 1", {"x": np.ones(9)})
    np.testing.assert_array_equal(again(parts)["step 1"]["x"], np.ones(9))


def test_a_part_that_a_host_does_not_show_is_named(parts):
    with pytest.raises(InputError, match=r"does not show.*: step 3. Every host must see the same"):
        parts["step 3"]
