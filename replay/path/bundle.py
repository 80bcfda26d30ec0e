"""Points of several steps of a small model: gradients and values there, some in one pass.

Of step t, the first point is in slot ``t mod 16`` of a stack, the next three in such slots of a
stack of 48, any others of stacks of 64 (``slots``): so no bit of a step depends on which others are
taken with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from replay.evaluate.slots import SLOTS
from replay.gradients.forms.dense import Dense
from replay.gradients.forms.form import Form
from replay.gradients.forms.per_example import PerExample
from replay.gradients.stacks import unlike
from replay.path.step_path import StepPath

_DEPTHS = (1, 3, 4)  # points of each step in the first pass, the second and all others


@dataclass(frozen=True)
class Found:
    """What is known at one point of one step, for all m test examples.

    Attributes:
        tables: Shares, parts and norms, as in ``Node``.
        values: ``φ``, ``(m,)``.
        gradients: Those of the test examples; None where nobody keeps them.
    """

    tables: tuple[Tensor, Tensor, Tensor]
    values: Tensor
    gradients: PerExample | None


class Bundle:
    """Some steps, of which no two have one slot, with batches of one size.

    Args:
        lines: The steps.
    """

    def __init__(self, lines: Sequence[StepPath]) -> None:
        self._run = lines[0].run
        self._lines = {slot_of(line): line for line in lines}
        self._all = [self._lines.get(slot, lines[0]) for slot in range(SLOTS)]
        self._products = _Products(self._all)

    def meet_ends(self) -> None:
        """Find the nodes at the ends of the steps, as far as they are needed."""
        for u in range(len(self._all[0].ends)):
            gradients = [line.ends[u].forms for line in self._all]
            factors = {name: _factors([one[name] for one in gradients]) for name in gradients[0]}
            shares, parts, norms = self._products.of(factors)
            for slot, line in self._lines.items():
                tables = shares[slot, :, 0], parts[slot, :, 0], norms[slot, 0]
                line.meet_end(u, *tables)

    @cached_property
    def _ends(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameters before and after the steps, ``(16, *shape)`` each."""
        ends = [line.replayed.transition for line in self._all]
        return {
            name: (
                torch.stack([now.before.parameters[name].double() for now in ends]),
                torch.stack([now.after.parameters[name].double() for now in ends]),
            )
            for name in ends[0].before.parameters
        }

    def round(self, wanted: Mapping[int, Sequence[float]]) -> dict[tuple[int, float], Found]:
        """Return what passes for several points give, where it is right.

        Args:
            wanted: By slot, points in ascending order.
        """
        found: dict[tuple[int, float], Found] = {}
        depths = itertools.chain(_DEPTHS, itertools.repeat(_DEPTHS[-1]))
        left = dict(wanted)
        for depth in depths:
            some = {slot: points[:depth] for slot, points in left.items()}
            left = {slot: rest for slot, points in left.items() if (rest := points[depth:])}
            found |= self._passed(some, depth)
            if not left:
                return found
        return found

    def _passed(
        self, wanted: Mapping[int, Sequence[float]], depth: int
    ) -> dict[tuple[int, float], Found]:
        u = torch.zeros(depth, SLOTS, dtype=torch.float64, device="cpu")
        for slot, points in wanted.items():
            u[: len(points), slot] = torch.tensor(points, dtype=torch.float64, device="cpu")
        states = {
            name: torch.lerp(
                ends[0], ends[1], u.view(depth, SLOTS, *[1] * (ends[0].dim() - 1))
            ).flatten(0, 1)
            for name, ends in self._ends.items()
        }
        known = self._run.at_points(states)
        if known is None and len(wanted) == 1:
            return {}
        if known is None:  # one of them may be why
            each = [self._passed({slot: points}, depth) for slot, points in wanted.items()]
            return {key: one for found in each for key, one in found.items()}
        stack, values = known
        tables, fine = self._products.of(stack.factors), values.isfinite().all(1).tolist()
        right: dict[tuple[int, float], Found] = {}
        for slot, points in wanted.items():
            for j, x in enumerate(points):
                s = j * SLOTS + slot
                if stack.right[s] and fine[s]:
                    shares, parts, norms = (table[slot, ..., j, :] for table in tables)
                    kept = stack.at(s) if self._lines[slot].keeps else None
                    right[slot, x] = Found((shares, parts, norms), values[s], kept)
        slot, points = next(iter(wanted.items()))
        if (one := stack.at(slot)) is not None:
            self._run.prove(self._lines[slot].replayed.transition, points[0], one)
        return right


Bundles = Mapping[int, Bundle]  # by the id of a step's line


class _Products:
    """Products of a stack's gradients with those of batches, and with the parts of steps.

    Args:
        lines: One for each slot.
    """

    def __init__(self, lines: Sequence[StepPath]) -> None:
        forms = [line.trained.batches[0].forms for line in lines]
        self._visits = len(lines[0].trained.ids)
        parts, moved = [line.parts for line in lines], [line.replayed.filters for line in lines]
        scales = [line.scale for line in lines]
        self._count = len(parts[0])
        self._scale, self._moved = dict[str, Tensor](), dict[str, Tensor]()
        self._trained: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._parts: dict[str, dict[int, Tensor]] = {}
        for name, form in lines[0].ends[0].forms.items():
            if name in forms[0]:
                self._trained[name] = _factors([one[name] for one in forms])
            zero = form.tensors[0].new_zeros(form.shape)
            number = partial(zero.new_tensor, dtype=torch.float64)
            self._scale[name] = number([s.get(name, 0.0) for s in scales])[:, None, None]
            self._moved[name] = number([name in one for one in moved])[:, None]
            self._parts[name] = {
                k: torch.stack([part.get(name, zero).to(zero).view(form.shape) for part in found])
                for k, found in enumerate(zip(*parts, strict=True))
                if any(name in part for part in found)
            }

    def of(
        self, found: Mapping[str, tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares ``(16, b, J, m)``, parts ``(16, k, J, m)`` and norms ``(16, J, m)``."""
        m = next(iter(found.values()))[0].shape[1]
        size = sum(len(delta) for delta, _ in list(found.values())[:1]) // SLOTS * m
        some = next(iter(self._scale.values()))
        shares = some.new_zeros(SLOTS, self._visits, size)
        parts, norms = some.new_zeros(SLOTS, self._count, size), some.new_zeros(SLOTS, size)
        for name in self._scale:  # in one order in every process: sums are rounded
            delta, inputs = (None if one is None else _turned(one) for one in found[name])
            assert delta is not None
            squares = delta.double().square().sum(2)
            if inputs is not None:
                squares *= inputs.double().square().sum(2)
            norms += squares.mul_(self._moved[name])
            if name in self._trained:  # a frozen one may move all the same
                theirs, other = self._trained[name]
                gram = torch.bmm(theirs, delta.mT)
                if inputs is not None and other is not None:
                    gram *= torch.bmm(other, inputs.mT)
                elif inputs is not None:  # a column that is a layer on one side only: numbers
                    gram *= inputs.mT
                elif other is not None:
                    gram *= other
                shares += gram.double().mul_(self._scale[name])
            for k, part in self._parts[name].items():  # each by itself: others may have more
                along = torch.bmm(delta, part)
                along = along if inputs is None else along.mul_(inputs)
                parts[:, k] += along.sum(2, dtype=torch.float64)
        tables = [table.cpu() for table in (shares, parts, norms.sqrt())]
        shares, parts, norms = (table.view(*table.shape[:-1], -1, m) for table in tables)
        return shares, parts, norms


def _turned(factor: Tensor) -> Tensor:
    """Return ``(16, J m, p)`` of ``(J 16, m, p)``."""
    m, p = factor.shape[1:]
    return factor.reshape(-1, SLOTS, m, p).transpose(0, 1).reshape(SLOTS, -1, p)


def _factors(forms: Sequence[Form]) -> tuple[Tensor, Tensor | None]:
    """Return ``δ``, ``(16, b, p)``, and ``a``, ``(16, b, d)``, of a bias None."""
    if isinstance(forms[0], Dense):
        return torch.stack([form.tensors[0][:, :, 0] for form in forms]), None
    pairs = [form.factors for form in forms]
    return (
        torch.stack([pair[0] for pair in pairs if pair is not None]),
        torch.stack([pair[1] for pair in pairs if pair is not None]),
    )


def slot_of(line: StepPath) -> int:
    """Return the slot of a step."""
    return line.replayed.transition.step.index % SLOTS


def bundled(lines: Sequence[StepPath]) -> Bundles:
    """Take steps together where they fit, and find the nodes at their ends."""
    alike: dict[Hashable, list[StepPath]] = {}
    for line in lines if lines[0].run.together else ():
        if _fits(line):
            found = (one.forms.items() for one in (line.trained.batches[0], *line.ends))
            kinds = (tuple((name, type(form)) for name, form in some) for some in found)
            alike.setdefault((len(line.trained.ids), *kinds), []).append(line)
    bundles: dict[int, Bundle] = {}
    for lines in alike.values():
        one = Bundle(lines)
        one.meet_ends()
        bundles |= {id(line): one for line in lines}
    return bundles


def _fits(line: StepPath) -> bool:
    """Return whether a step's gradients are such as those of a stack."""
    batches = line.trained.batches
    if line.later or len(batches) != 1 or unlike(batches[0]) is not None:
        return False
    return all(unlike(end) is None for end in line.ends)
