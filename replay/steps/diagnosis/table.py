"""The causes that are tried, likeliest and cheapest first; the first that explains the step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from replay.steps.diagnosis import changes, examples, modes, moves, scale, turns
from replay.steps.diagnosis.case import Case, Cause

Hypothesis = Callable[[Case], Cause | None]

OF_GRADIENTS: tuple[Hypothesis, ...] = (
    modes.other_numbers,
    scale.a_count,
    modes.penalty,
    modes.eval_mode,
    modes.autocast,
    examples.another_order,
    examples.shifted,
    examples.of_another_step,
    examples.of_a_subset,
    examples.of_another_epoch,
    examples.of_two_epochs,
    scale.no_zero_grad,
    changes.decay_in_the_loss,
    changes.value_clipping,
    changes.clipped_apart,
    scale.one_factor,
    modes.random_data,
    modes.early_noise,
    changes.some_parameters,
    scale.weighted,
    turns.one_loss,
    turns.noise_out_of_sight,
)
OF_MOVES: tuple[Hypothesis, ...] = (
    moves.forward_writes,
    moves.put_back,
    moves.cleared,
    moves.clamped,
    moves.decayed,
    moves.of_another,
    moves.only_the_last,
)


def cause_of(case: Case) -> Cause | None:
    """Return the first cause that explains a step; None if none does."""
    tried = OF_MOVES if case.rest else OF_GRADIENTS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is only tried
        return next((found for one in tried if (found := one(case)) is not None), None)
