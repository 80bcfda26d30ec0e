"""Sums of products of per-example gradients: over parameters, each with a scale, in float64.

How the gradients of one parameter are multiplied is known to their forms (see ``form``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from replay.gradients.forms.cuts import LARGE
from replay.gradients.forms.form import Form
from replay.gradients.forms.per_example import PerExample
from replay.vectors.blocks import zeros
from replay.vectors.workspace import room

_COPIED = 1 << 17  # elements of a parameter whose vectors are copied to be together
Weight: TypeAlias = float | Tensor | Callable[[Tensor], Tensor]


def inner(
    left: PerExample, right: PerExample, scale: dict[str, float], role: str | None = None
) -> Tensor:
    """Return ``Σ_p scale_p ⟨g_i, h_j⟩_p`` for every pair, float64 ``(n, m)``.

    Args:
        left: Gradients ``g`` of n examples.
        right: Gradients ``h`` of m examples.
        scale: Factor of each parameter (a learning rate); absent or 0 leaves it out, as
            the step did.
        role: Lets the result be in a workspace, until the next call for that role.
    """
    result = zeros(left.losses, (left.count, right.count), role)
    chosen = {n: f for n, f in scale.items() if f and n in left and n in right}
    for ours, mine in left.parts(chosen):
        for theirs, others in right.parts(chosen):
            block = result[ours, theirs]
            for name in mine:  # in one order in every process: sums are rounded
                if name in others:
                    block.add_(mine[name].inner(others[name], "inner"), alpha=chosen[name])
    return result


def with_vectors(examples: PerExample, vectors: dict[str, Tensor]) -> Tensor:
    """Return ``Σ_p ⟨g_i, v_j⟩_p`` with vectors ``(m, numel)`` by parameter, float64 ``(n, m)``."""
    m = len(next(iter(vectors.values()))) if vectors else 0
    result = examples.losses.new_zeros(examples.count, m, dtype=torch.float64)
    for name, vector in vectors.items():
        if name in examples.forms:
            result += examples.forms[name].with_vectors(vector)
    rest = {name: v for name, v in vectors.items() if name in examples.complete}
    return result + complete_with_vectors(examples, rest) if rest else result


def complete_with_vectors(examples: PerExample, vectors: dict[str, Tensor]) -> Tensor:
    """Return products with vectors ``(m, numel)``, float64 ``(n, m)``, of what is computed anew.

    They are summed over parameters; each block of gradients is passed once.
    """
    m = len(next(iter(vectors.values())))
    result = examples.losses.new_zeros(examples.count, m, dtype=torch.float64)
    for block, gradients in examples.blocks():
        for name, vector in vectors.items():
            result[block] += gradients[name] @ vector.T
    return result


def project(examples: PerExample, directions: list[dict[str, Tensor]]) -> Tensor:
    """Return each example's inner product with each direction, float64 ``(k, n)``.

    Args:
        examples: Gradients of n examples.
        directions: k vectors by parameter; absent parameters are zero.
    """
    result = examples.losses.new_zeros(len(directions), examples.count, dtype=torch.float64)
    for which, some in _together(directions, examples.forms).items():
        found = [
            _projected(term, v.view(-1, *term.shape)) for form, v in some for term in form.terms
        ]
        result[list(which)] += torch.stack(found).sum(0) if len(found) > 1 else found[0]
    if any(name in direction for direction in directions for name in examples.complete):
        for block, gradients in examples.blocks():
            for name, gradient in gradients.items():
                for k, direction in enumerate(directions):
                    if name in direction:
                        result[k, block] += gradient @ direction[name].to(gradient).flatten()
    return result


def _together(
    directions: list[dict[str, Tensor]], forms: Mapping[str, Form]
) -> dict[tuple[int, ...], list[tuple[Form, Tensor]]]:
    """Return each form with its directions, by which of them those are; small ones as one."""
    found: dict[tuple[int, ...], list[tuple[Form, Tensor]]] = {}
    for name, form in forms.items():
        which = tuple([k for k, direction in enumerate(directions) if name in direction])
        vectors = [directions[k][name] for k in which]
        if which and vectors[0].numel() <= _COPIED:
            one = vectors[0] if len(vectors) == 1 else torch.stack(vectors)
            found.setdefault(which, []).append((form, one))
        else:
            for k, vector in zip(which, vectors, strict=True):
                found.setdefault((k,), []).append((form, vector))
    return found


def _projected(form: Form, directions: Tensor) -> Tensor:
    """Project some examples at a time: temporaries are as large as what a form stores."""
    each = sum(tensor.numel() for tensor in form.tensors) // max(1, form.count) * len(directions)
    size = max(1, room(LARGE) // max(1, each))
    if size >= form.count:
        return form.projections(directions)
    cut = (form.select(slice(k, k + size)) for k in range(0, form.count, size))
    return torch.cat([some.projections(directions) for some in cut], 1)


def squared_norms(examples: PerExample, names: set[str]) -> Tensor:
    """Return ``‖g_i‖²`` over the named parameters, float64 ``(n,)``."""
    return weighted_squares(examples, dict.fromkeys(sorted(names & examples.names), 1.0))


def weighted_squares(examples: PerExample, weights: Mapping[str, Weight]) -> Tensor:
    """Return ``Σ_k weights_k g_ik²`` over some parameters, float64 ``(n,)``.

    Args:
        examples: Gradients of n examples.
        weights: By parameter, one number, or one for each element, ``(numel,)``; or what multiplies
            gradients ``(n, numel)`` by a matrix, for ``⟨K g_i, g_i⟩``.
    """
    result = examples.losses.new_zeros(examples.count, dtype=torch.float64)
    for block, forms in examples.parts(weights):
        for name, weight in weights.items():
            if name in forms:
                result[block] += _squares(forms[name], weight)
    return result


def _squares(form: Form, weight: Weight) -> Tensor:
    if callable(weight):
        g = form.dense(slice(0, form.shape[0])).double()
        return (weight(g) * g).sum(1)
    if isinstance(weight, Tensor):
        return form.weighted_squares(weight)
    return form.squared_norms(weight)
