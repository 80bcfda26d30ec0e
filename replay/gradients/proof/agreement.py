r"""Whether two gradients agree but for rounding, and whether parts add up to the plain gradient.

Rounding is a share of what is added up, which may cancel: of the parts, or of the terms of each.
The bias of attention keys has a gradient of nothing but rounding, of terms as large as any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch
from torch import Tensor

from replay.gradients.forms.form import Form, for_products
from replay.gradients.proof.forward_pass import Pass
from replay.gradients.proof.layout import deviation, is_half, tolerance_of

_ROUNDED = 0.1  # of half-precision parameters: plain sums round as they go (LayerNorm's by 6 %)
SHARE = 5.0  # times the rounding of one operation, in a whole gradient
Scale = Callable[[], float]


def allowed(parameter: Tensor, deltas: Iterable[Tensor]) -> float:
    """Return the tolerance of the coarsest operation: under autocast not the parameter's."""
    own = _ROUNDED if is_half(parameter.dtype) else tolerance_of(parameter.dtype)
    return max([own, *(tolerance_of(delta.dtype) for delta in deltas)])


def coarsest(found: Pass) -> float:
    """Return the rounding of the coarsest operation of a pass."""
    kinds = {p.dtype for p in found.parameters.values()}
    kinds |= {meta.dtype for node in found.graph.users for meta in node._input_metadata}
    return max(tolerance_of(kind) for kind in kinds if kind.is_floating_point or kind.is_complex)


def agree(found: Tensor, expected: Tensor, tolerance: float, *scales: Scale) -> bool:
    """Return whether two gradients differ by no more than rounding, of theirs or of a scale."""
    found, expected = dense(found), dense(expected)
    size, off = float(expected.norm()), float(deviation(found, expected).norm())
    if not math.isfinite(size):
        size = float(expected.masked_fill(~expected.isfinite(), 0).norm())
    if off <= tolerance * size:
        return True
    for scale in scales:
        least = scale()
        if math.isfinite(least) and off <= tolerance * least:
            return True
    return False


def size_of_parts(norms: Tensor, tolerance: float) -> float:
    """Return how large parts of some norms are, as to the rounding of their sum.

    They are kept in the dtype of the tolerance, the sum on its way at least in float32.
    """
    on_its_way = min(1.0, tolerance_of(torch.float32) / tolerance)
    return float(norms.norm() + on_its_way * norms.sum())


def size_of_terms(form: Form, tolerance: float) -> float:
    """Return the same of all examples' terms."""
    return size_of_parts(torch.cat([term.squared_norms() for term in form.terms]).sqrt(), tolerance)


def adds_up(
    form: Form, summed: Tensor, whole: Tensor, tolerance: float, large: Callable[[], Form]
) -> bool:
    """Return whether parts add up to the whole; ``large`` gives their terms' magnitudes."""
    scales = (lambda one=one: size_of_terms(one(), tolerance) for one in (lambda: form, large))
    return agree(summed, whole, tolerance, *scales)


def repeats(found: Pass, total: dict[str, Tensor], names: list[str]) -> bool:
    """Return whether the plain backward pass gives the same again, after others."""
    again, _ = found.backward(names, (), found.weights, retain=True)
    return all(
        agree(again[name], total[name], tolerance_of(total[name].dtype)) for name in again
    ) and all(name in again for name in names)


def usual_size(form: Form) -> float:
    """Return how large the terms of an example's gradient usually are."""
    return float(torch.stack([term.squared_norms() for term in form.terms]).sum(0).mean().sqrt())


def not_adding_up(
    forms: dict[str, Form],
    total: dict[str, Tensor],
    tolerances: dict[str, float],
    factors: Tensor | None = None,
) -> list[str]:
    """Return the parameters whose parts, times factors, seem not to add up to plain gradients.

    Both are multiplied with one vector from either side, which costs less than the sum of parts:
    what differs anywhere differs there, but for a chance of about the tolerance.
    """
    kinds: dict[torch.dtype, list[tuple[str, Tensor, Tensor]]] = {}
    for name in tolerances:
        form = forms[name]
        whole = for_products(dense(total[name])).reshape(form.shape)
        left, right = directions(form.shape, whole.dtype, whole.device)
        parts = form.sketch(left, right)
        parts = parts if factors is None else parts * factors.to(parts)
        kinds.setdefault(parts.dtype, []).append((name, left @ (whole @ right), parts))
    return [name for some in kinds.values() for name in _off(some, tolerances)]


def _off(some: list[tuple[str, Tensor, Tensor]], tolerances: dict[str, float]) -> list[str]:
    """Return the names of which a number is not the sum of its parts, to a share of their sizes."""
    names, wholes, columns = zip(*some, strict=True)
    parts, whole = torch.stack(columns), torch.stack(wholes)
    shares = parts.new_tensor([tolerances[name] for name in names])
    small = (whole - parts.sum(1)).abs_() <= parts.abs().sum(1).mul_(shares)
    return [name for name, right in zip(names, small.tolist(), strict=True) if not right]


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient that may be sparse as one that can be compared."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


@lru_cache(256)
def directions(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return vectors of random signs, sizes in [1/2, 3/2], from a private generator."""
    generator = torch.Generator("cpu").manual_seed(sum(shape))
    sizes = torch.rand(sum(shape), generator=generator, dtype=torch.float64, device="cpu") + 0.5
    signs = torch.randint(0, 2, (sum(shape),), generator=generator, device="cpu") * 2 - 1
    left, right = torch.split((sizes * signs).to(device, dtype), list(shape))
    return left, right
