r"""Gradients of every example's own loss, exact for every model.

Two ways, chosen for each parameter. *Hooked*: a plain ``nn.Linear`` whose rows are examples
gives factors (see ``factors``), never a weight gradient. *Complete*: for every other parameter
one backward for each ``ℓ_i`` over the graph of the forward pass that was run, which is right for
any layer, coupling or randomness. A hooked parameter must pass two checks at every pass: its rows
are examples (see ``capture``), and its factors add up to the plain gradient; otherwise it takes
the complete way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from replay.gradients.capture import (
    Call,
    deviation,
    linear_calls,
    random_factors,
    rows_of_examples,
)
from replay.gradients.examples import PerExample, Rows
from replay.gradients.factors import Factors


def of_batch(
    model: nn.Module,
    parameters: dict[str, Tensor],
    forward: Callable[[], Tensor],
    weights: Tensor,
    *,
    budget: int,
) -> PerExample:
    """Return the gradients of ``c_i ℓ_i`` inside one real batch, coupled or not.

    Args:
        model: The model that ``forward`` runs.
        parameters: Those to differentiate, by name.
        forward: Runs the pass once, returns the losses ``(n,)`` with their graph.
        weights: ``c``, ``(n,)``.
        budget: Bytes that stored complete gradients may take; beyond it they are computed
            anew, in blocks, each time they are asked for.
    """
    losses, total, factors, biases = _hooked(model, parameters, forward, weights)
    complete = tuple(name for name in total if name not in factors and name not in biases)
    targets = [parameters[name] for name in complete]
    count = len(losses)
    each = sum(4 * target.numel() * max(1, target.element_size() // 4) for target in targets)
    size = max(1, min(count, budget // max(1, each)))

    def blocks() -> Iterator[tuple[slice, Rows]]:
        for start in range(0, count if complete else 0, size):
            rows = slice(start, min(start + size, count))
            found = [
                _gradient(losses[i] * weights[i].to(losses), targets, retain=True)
                for i in range(rows.start, rows.stop)
            ]
            yield rows, _stack(complete, found)

    if size < count:
        return PerExample(losses.detach(), total, factors, biases, complete, blocks, lazy=True)
    stored = list(blocks())  # the graph can go
    return PerExample(losses.detach(), total, factors, biases, complete, lambda: iter(stored))


def of_independent(
    model: nn.Module,
    parameters: dict[str, Tensor],
    forward: Callable[[], Tensor],
    forward_one: Callable[[int], Tensor],
) -> PerExample:
    """Return the gradients of examples that do not depend on each other (eval mode).

    Everything is stored, so that the model's parameters may change afterwards.

    Args:
        model: The model that the forwards run.
        parameters: Those to differentiate, by name.
        forward: Runs all examples in one pass, returns the losses ``(n,)``.
        forward_one: Runs example i alone, returns ``(1,)``.
    """
    losses, total, factors, biases = _hooked(model, parameters, forward, None)
    complete = tuple(name for name in total if name not in factors and name not in biases)
    targets = [parameters[name] for name in complete]
    rows: list[list[Tensor]] = []
    if complete:
        for i in range(len(losses)):
            with torch.enable_grad():
                loss = forward_one(i).sum()
            rows.append(_gradient(loss, targets, retain=False))
    stored = [(slice(0, len(losses)), _stack(complete, rows))] if complete else []
    return PerExample(losses.detach(), total, factors, biases, complete, lambda: iter(stored))


def _hooked(
    model: nn.Module,
    parameters: dict[str, Tensor],
    forward: Callable[[], Tensor],
    weights: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Factors], Rows]:
    """Run the pass; return losses, plain gradient, and what the hooks proved to cover."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    with torch.enable_grad(), linear_calls(model, names) as calls:
        losses = forward()
    weights = torch.ones_like(losses) if weights is None else weights.to(losses)
    edges = [call.output for call in calls]
    found = torch.autograd.grad(
        losses,
        [*parameters.values(), *edges],  # type: ignore[arg-type]  # torch takes a mixture
        grad_outputs=weights,
        retain_graph=True,
        allow_unused=True,
    )
    split = len(parameters)
    total = {
        name: gradient
        for name, gradient in zip(parameters, found[:split], strict=True)
        if gradient is not None
    }
    if not calls:
        return losses, total, {}, {}
    signs = random_factors(len(losses), losses)
    probes = torch.autograd.grad(
        losses, edges, grad_outputs=weights * signs, retain_graph=True, allow_unused=True
    )
    laid_out = _lay_out(calls, found[split:], probes, signs)
    factors, biases = _add_up(laid_out, total)
    return losses, total, factors, biases


def _lay_out(
    calls: Sequence[Call],
    deltas: Sequence[Tensor | None],
    probes: Sequence[Tensor | None],
    signs: Tensor,
) -> dict[tuple[str, str | None], list[tuple[Tensor, Tensor]] | None]:
    """Return inputs and output gradients of each layer's calls by example; None if not so."""
    found: dict[tuple[str, str | None], list[tuple[Tensor, Tensor]] | None] = {}
    for call, delta, probe in zip(calls, deltas, probes, strict=True):
        key = (call.weight, call.bias)
        found.setdefault(key, [])
        if delta is None or probe is None:
            continue  # this call's output reaches no loss
        rows = rows_of_examples(call, delta, probe, signs, 10 * tolerance_of(delta.dtype))
        known = found[key]
        if rows is None or known is None:
            found[key] = None
        else:
            known.append(rows)
    return found


def _add_up(
    laid_out: dict[tuple[str, str | None], list[tuple[Tensor, Tensor]] | None],
    total: dict[str, Tensor],
) -> tuple[dict[str, Factors], Rows]:
    """Join each parameter's calls and keep what adds up to the plain gradient."""
    weights: dict[str, list[tuple[Tensor, Tensor]]] = {}
    biases: dict[str, list[Tensor]] = {}
    refused: set[str] = set()
    for (weight, bias), rows in laid_out.items():
        if rows is None:
            refused.update({weight, bias} - {None})  # type: ignore[arg-type]
            continue
        weights.setdefault(weight, []).extend(rows)
        if bias is not None:
            biases.setdefault(bias, []).extend(delta.sum(1) for _, delta in rows)
    factors = {
        name: Factors(
            _for_products(torch.cat([inputs for inputs, _ in rows], 1)),
            _for_products(torch.cat([delta for _, delta in rows], 1)),
        )
        for name, rows in weights.items()
        if rows and name in total and name not in refused
    }
    sums = {
        name: _for_products(torch.stack(rows).sum(0))
        for name, rows in biases.items()
        if rows and name in total and name not in refused
    }
    return (
        {name: f for name, f in factors.items() if _equal(f.total(), total[name])},
        {name: rows for name, rows in sums.items() if _equal(rows.sum(0), total[name])},
    )


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative rounding error allowed in a sum of products of this dtype."""
    return {torch.float64: 1e-11, torch.float32: 2e-6}.get(dtype, 1e-2)


def _equal(found: Tensor, expected: Tensor) -> bool:
    size = expected.norm().double()
    if not size.isfinite():
        size = expected.masked_fill(~expected.isfinite(), 0).norm().double()
    allowed = 10 * tolerance_of(expected.dtype) * size
    return bool(deviation(found, expected).norm() <= allowed)


def _for_products(tensor: Tensor) -> Tensor:
    """Half-precision gradients are multiplied in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _gradient(loss: Tensor, targets: list[Tensor], *, retain: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss, targets, retain_graph=retain, allow_unused=True)
    return [
        _for_products((torch.zeros_like(target) if g is None else _dense(g)).flatten())
        for g, target in zip(found, targets, strict=True)
    ]


def _dense(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _stack(names: Sequence[str], gradients: list[list[Tensor]]) -> Rows:
    columns = zip(*gradients, strict=True)
    return {name: torch.stack(rows) for name, rows in zip(names, columns, strict=True)}
