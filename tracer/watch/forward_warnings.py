"""Warnings for forward passes that hooks cannot see."""

from __future__ import annotations

COMPILED = (
    "the model runs inside torch.compile, where the wrapper cannot see it: random state and "
    "buffers before its forward are not logged, and a run with dropout does not replay. Give the "
    "wrapper what torch.compile returned, or call model.compile() before the wrapper is made."
)
BY_METHOD = (
    "the wrapper did not see a forward of the model before this step: a method or a part of the "
    "model was called instead. Its buffers are logged as they are after the step, and random state "
    "is not logged. Call model(...) for what the training loss needs."
)
RANDOM = (
    "the compiled model draws random numbers of its own, as dropout does under inductor: a replay "
    "draws others, so this run will not reproduce. Before the first forward, do one of these:\n"
    "  1. set torch._inductor.config.fallback_random = True, with which compiled models draw as "
    "others do;\n"
    '  2. compile with torch.compile(model, options={"fallback_random": True}).'
)


def writing(names: list[str]) -> str:
    """Return what to say of a forward that writes into parameters."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"a forward of the model writes into its parameter {names[0]!r}{more}, as "
        "nn.Embedding(max_norm=...) does: the steps move other weights than it leaves, so this run "
        "will not reproduce. Do one of these:\n"
        "  1. scale in the forward instead of writing: weight * (max_norm / norm).clamp(max=1);\n"
        "  2. replay with allow_mismatch=True (--allow-mismatch), which counts them as rounding."
    )


SAME_MOMENT = (
    "optimizer {key!r} took step {step}, and no gradient was seen to come from the model since the "
    "step before, which another one took. A replay computes this step's gradients at the "
    "parameters before it, which that one had moved already.\n"
    "1. If both step on gradients of one moment, give both the same IDs, or call "
    "optimizer.step(batch_ids=ids) of the wrapper once;\n"
    "2. else call the model that the wrapper was given, so that its forward is seen."
)
OUT_OF_SIGHT = (
    "random numbers were drawn before step {step}, which optimizer {key!r} took, and no forward of "
    "the model was seen: its parts were called instead. What they were drawn from is not in the "
    "log, and a replay of a loss with noise draws other noise.\n"
    '1. Pass record="batches", and put what is drawn into the batch: step(batch_ids=ids, '
    "batch=(x, noise)), which task.loss gets;\n"
    "2. or call the model that the wrapper was given, and draw inside of its forward."
)
UNANNOUNCED = (
    "the gradients of {turns} forward and backward passes went into step {step}, and the IDs of "
    "{announced} micro-batch were announced.\n"
    "1. With accumulation, call optimizer.observe(ids) once for each micro-batch, then step() "
    "without IDs.\n"
    "2. If all were passes of the same examples, add their losses and call backward() once, as "
    "task.loss has to.\n"
    "3. Of a generator and a discriminator, give one wrapper both optimizers by name, and a model "
    "that holds both."
)
