"""The same data in another mode, precision or order of things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from replay.evaluate.binding import BoundModel
from replay.evaluate.copies import models
from replay.evaluate.nested import checksum
from replay.evaluate.train_side import fetched
from replay.losses import Loss
from replay.steps.diagnosis.case import Case, Cause, added

_DROPS = (nn.modules.dropout._DropoutNd,)
_KINDS: dict[str, tuple[type, ...]] = {
    "the model": (nn.Module,),
    "its normalisation": (_NormBase,),
    "its dropout": _DROPS,
}


def eval_mode(case: Case) -> Cause | None:
    """The model, or a kind of its layers, was in eval mode."""
    for what, kinds in _KINDS.items():
        if not any(isinstance(m, kinds) for m in case.bound.module.modules()):
            continue
        if case.fits(case.with_loss(_in_eval_mode(kinds))):
            return Cause(
                f"{what} was in eval mode in the run (in that mode the step reproduces)",
                (
                    "Call model.train() after each evaluation, if that was not meant;",
                    "or let the model's own train() keep those layers in eval mode.",
                ),
                "modes",
            )
    return None


def autocast(case: Case) -> Cause | None:
    """The run computed its loss under autocast."""
    kind = case.device.type
    for dtype in (torch.bfloat16, torch.float16):
        if case.fits(case.with_loss(_cast(kind, dtype))):
            short = str(dtype).removeprefix("torch.")
            return Cause(
                f"the loss was computed under autocast to {short} in the run (so computed, the "
                "step reproduces)",
                (
                    f"Let task.loss do the same: with torch.autocast({kind!r}, ...) inside it;",
                    "or train on what task.loss returns.",
                ),
                "autocast",
            )
    return None


def other_numbers(case: Case) -> Cause | None:
    """The replay computes in another dtype, in which the model draws other random numbers."""
    if case.same_dtype:
        return None
    (built,), log = models(case.task, 1), case.states.log
    own = replace(case, bound=BoundModel(built, log, device=case.device, dtype=None))
    if not case.fits(own.replayed()):
        return None
    return Cause(
        "this replay computes in another dtype than the run, in which torch may draw other random "
        "numbers (computed in the run's dtype, the step reproduces)",
        (
            "Leave out dtype= (--dtype): gradients are then computed in the run's dtype;",
            "or let the model draw in the run's dtype and convert what it drew: "
            "torch.randn(..., dtype=torch.float32).to(x.dtype).",
        ),
        "other-randomness",
    )


def random_data(case: Case) -> Cause | None:
    """The same examples are other data each time that they are fetched."""
    sums = []
    for micro in case.step.micro_batches:
        if micro.payload is not None:
            return None
        sums.append([checksum(fetched(case.task, micro)) for _ in range(2)])
    if all(first == second for first, second in sums):
        return None
    return Cause(
        "task.train or collate draws at random (fetched twice, the batch is other data)",
        (
            "Draw in the data set, not in collate, from torch, numpy.random or random themselves, "
            "which have a seed for each example, or from torch.initial_seed();",
            'or trace with record="batches": the log then holds the batches themselves.',
        )
        if any(micro.seeds for micro in case.step.micro_batches)
        else (
            'Trace with record="batches" and step(batch_ids=ids, batch=batch): the log then holds '
            "the batches themselves;",
            'or, if the data set draws, not collate: with record="seeds" '
            "(docs/how-to/augmentation.md).",
        ),
        "random-augmentation",
    )


def early_noise(case: Case) -> Cause | None:
    """The loss draws random numbers before it calls the model, whose forward the log begins at."""
    drawn: list[bool] = []

    def watching(loss: Loss) -> Loss:
        def watched(model: nn.Module, batch: Any) -> Tensor:
            start = _random(case.device)
            hook = model.register_forward_pre_hook(
                lambda *_: drawn.append(_random(case.device) != start)
            )
            try:
                return loss(model, batch)
            finally:
                hook.remove()

        return watched

    case.with_loss(watching)
    if not drawn or not drawn[0]:
        return None
    return Cause(
        "task.loss draws random numbers before it calls the model, and the log knows the random "
        "state from the model's forward on",
        (
            "Call optimizer.observe(ids) before the loss is computed, then step() without IDs;",
            "or draw the noise inside the model's forward.",
        ),
        "other-randomness",
    )


def penalty(case: Case) -> Cause | None:
    """The penalty was left out, counted for each micro-batch, or evaluated before the losses."""
    task, k = case.task, len(case.step.micro_batches)
    if task.penalty is None:
        return None
    without = case.replayed(replace(task, penalty=None))
    if case.fits(without):
        text, remedy = "the loop added no penalty", "Leave penalty= out of the task"
    elif k > 1 and case.fits(added(without, *([added(case.plain, _negative(without))] * k))):
        text = f"the loop added the penalty in each of {k} micro-batches"
        remedy = "Divide it by their number in the loop"
    elif any(case.fits(added(without, alone)) for alone in _penalty_first(case)):
        text = (
            "the loop evaluated the penalty before the model's forward, which changes what it reads"
        )
        remedy = "Evaluate it after the losses in the loop: a replay evaluates task.penalty last"
    else:
        return None
    return Cause(
        f"{text} (so computed, the step reproduces)",
        (f"{remedy};", "or let task.loss return losses that hold it."),
        "the-penalty",
    )


def _random(device: torch.device) -> list[bytes]:
    """Return torch's random state as it is."""
    states = [torch.get_rng_state()]
    states += [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [state.numpy().tobytes() for state in states]


def _negative(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: -g for name, g in gradient.items()}


def _penalty_first(case: Case) -> Iterator[dict[str, Tensor]]:
    """Yield the penalty's gradient before any forward, also if reading it moves what it reads.

    The log has buffers as the first forward finds them: as that reading left them. In eval mode
    they stay.
    """
    penalty, step = case.task.penalty, replace(case.step, micro_batches=())
    assert penalty is not None

    def at_rest(model: nn.Module) -> Tensor:
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            return penalty(model)
        finally:
            for module in training:
                module.training = True

    yield case.replayed(step=step)
    yield case.replayed(replace(case.task, penalty=at_rest), step)


def _in_eval_mode(kinds: tuple[type, ...]) -> Callable[[Loss], Loss]:
    def change(loss: Loss) -> Loss:
        def changed(model: nn.Module, batch: Any) -> Tensor:
            for module in model.modules():
                if isinstance(module, kinds):
                    module.training = False
            return loss(model, batch)

        return changed

    return change


def _cast(kind: str, dtype: torch.dtype) -> Callable[[Loss], Loss]:
    def change(loss: Loss) -> Loss:
        def changed(model: nn.Module, batch: Any) -> Tensor:
            with torch.autocast(kind, dtype=dtype):
                return loss(model, batch)

        return changed

    return change
