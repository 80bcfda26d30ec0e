"""Both ways to multiply sums of outer products, and which one is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from replay.gradients.engine import Engine
from replay.gradients.forms import outer_products, products
from replay.gradients.forms.outer_products import OuterProducts, formed, ghost
from replay.gradients.forms.per_example import PerExample
from replay.gradients.forms.written_once import WrittenOnce, written_once
from replay.vectors.workspace import temporaries
from tests.helpers.layers import complete, losses_of, rows_of, vectors


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (5, 40)])
@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 3), (4, 4), (60, 50)])
@pytest.mark.parametrize(("d", "p"), [(3, 2), (2, 7), (3, 3)])
def test_both_ways_of_outer_products(n, m, left, right, d, p):
    torch.manual_seed(n + m)
    a = OuterProducts(torch.randn(n, left, d).double(), torch.randn(n, left, p).double(), 0, p)
    b = OuterProducts(torch.randn(m, right, d).double(), torch.randn(m, right, p).double(), 0, p)
    g = torch.einsum("ntp,ntd->npd", a.deltas, a.inputs)
    h = torch.einsum("ntp,ntd->npd", b.deltas, b.inputs)
    expected = torch.einsum("npd,mpd->nm", g, h)
    assert torch.allclose(ghost(a, b), expected, rtol=1e-11)
    for room in (1 << 30, 96 * min(d, p) * (n + m)):  # all at once; one of the longer side
        with temporaries(room):
            assert torch.allclose(formed(a, b), expected, rtol=1e-11)


@pytest.mark.parametrize("room", [1 << 30, 64 * 300, 64])
def test_gradients_written_out_once_are_the_same_to_the_bit(room):
    """As many parameters as there is room for; products with single ones need none."""
    torch.manual_seed(0)
    sizes = {"a": (4, 3, 6), "b": (1, 3, 6), "c": (5, 8, 10)}
    forms = {
        name: OuterProducts(torch.randn(5, tokens, d), torch.randn(5, tokens, p), 0, p)
        for name, (tokens, d, p) in sizes.items()
    }
    found = PerExample(torch.zeros(5), forms, {})
    with temporaries(room):
        once = written_once(found)
        for m in (2, 7, 2):
            torch.manual_seed(m)
            rows = {name: torch.randn(m, d * p) for name, (_, d, p) in sizes.items()}
            for name, table in rows.items():
                expected = forms[name].with_vectors(table)
                assert torch.equal(once.forms[name].with_vectors(table), expected)
    kept = {name for name, form in once.forms.items() if isinstance(form, WrittenOnce)}
    assert kept == {1 << 30: {"a", "c"}, 64 * 300: {"a"}, 64: set()}[room]


class Multiplications(TorchFunctionMode):
    """Counts those of matrix products."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("matmul", "__matmul__", "mm", "bmm"):
            self.total += args[0].numel() * args[1].shape[-1]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("n", "m", "rows", "columns", "d", "p", "cheaper"),
    [
        *((5, 7, 1, 1, d, p, "ghost") for d, p in ((8, 8), (2, 90))),
        *((4, 3, rows, rows, 64, 64, name) for rows, name in ((2, "ghost"), (40, "formed"))),
        *((n, 30, 12, 12, 64, 64, name) for n, name in ((1, "ghost"), (30, "formed"))),
        *((6, 6, 1, 9, 40, p, name) for p, name in ((40, "ghost"), (2, "formed"))),
    ],
)
def test_the_way_of_fewer_operations_is_taken(monkeypatch, n, m, rows, columns, d, p, cheaper):
    """Both ways are counted as they run."""
    left = OuterProducts(torch.randn(n, rows, d), torch.randn(n, rows, p), 0, p)
    right = OuterProducts(torch.randn(m, columns, d), torch.randn(m, columns, p), 0, p)
    operations = {}
    for way in (ghost, formed):
        with Multiplications() as counted:
            way(left, right)
        operations[way.__name__] = counted.total
    assert min(operations, key=operations.get) == cheaper, operations
    taken, expected = [], torch.zeros(n, m)
    for name in operations:
        monkeypatch.setattr(
            outer_products, name, lambda *_, name=name: taken.append(name) or expected
        )
    left.inner(right)
    assert taken == [cheaper]


def test_half_precision_is_multiplied_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    model, x = model.to(torch.bfloat16), vectors(6).bfloat16()
    parameters = dict(model.named_parameters())
    engine = Engine()
    found = engine.of_independent(
        parameters, lambda: losses_of(model, x), lambda i: losses_of(model, x[i : i + 1])
    )
    assert not complete(engine)
    tensors = [t for form in found.forms.values() for t in form.tensors]
    assert {t.dtype for t in tensors} == {torch.float32}
    r = rows_of(losses_of(model, x), parameters).double()
    gram = products.inner(found, found, dict.fromkeys(parameters, 1.0))
    assert (gram - r @ r.T).norm() <= 3e-2 * (r @ r.T).norm()
