"""Vectors taken together and apart again."""

from __future__ import annotations

import pytest
import torch

from replay.vectors import fused


def shares(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_neighbours_are_seen_and_others_copied():
    row = torch.arange(12.0)
    a, b, c = row[:6].view(2, 3), row[6:7], row[7:]
    whole = fused.joined([a, b, c])
    assert torch.equal(whole, row)
    assert shares(whole, row)
    for tensors in ([a, c], [b, a], [a, b, row[6:]], [a.T, b], [a, torch.arange(6.0, 12.0)]):
        found = fused.joined(tensors)
        assert torch.equal(found, torch.cat([x.reshape(-1) for x in tensors]))
        assert not shares(found, row)
    parts = fused.apart(whole, [a, b, c])
    assert all(map(torch.equal, parts, [a, b, c]))


@pytest.mark.parametrize("most", [1, 7, 100])
def test_groups_are_alike_and_small(monkeypatch, most):
    monkeypatch.setattr(fused, "_MOST", most)
    vectors = {
        "a": torch.randn(2, 3),
        "b": torch.randn(4).double(),
        "c": torch.randn(1),
        "d": torch.randn(()),
        "e": torch.randn(5),
    }
    groups = list(fused.alike(vectors, lambda name: name == "c"))
    assert sorted(name for names, _ in groups for name in names) == list(vectors)
    for names, group in groups:
        assert all(vectors[n] is v for n, v in zip(names, group, strict=True))
        assert len({v.dtype for v in group}) == 1
        assert len(names) == 1 or sum(v.numel() for v in group) <= most
        assert "c" not in names or len(names) == 1
    assert max(len(names) for names, _ in groups) == {1: 1, 7: 2, 100: 3}[most]
    again = fused.together(vectors)
    assert all(torch.equal(again[n], v) for n, v in vectors.items())
    assert list(again) == list(vectors)
