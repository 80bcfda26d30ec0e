"""The micro-batches of the step to come: announced, checked, turned into records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracer.codec.nested import NestedError, encode
from tracer.codec.objects import flattened
from tracer.errors import TracingError, warn
from tracer.joined import Key
from tracer.log.parts import micro_batches
from tracer.log.read.run_log import RunLog
from tracer.records import ID, MicroBatch
from tracer.watch.captures import ALL
from tracer.watch.forwards import ForwardWatch
from tracer.wrapper.batch_ids import plain_ids
from tracer.wrapper.epochs import Draws
from tracer.wrapper.observed import Observed, Pending


class Observations:
    """Collects what the user says of the next step.

    Args:
        forwards: Knows the random state of the forward passes.
        reduction: ``"mean"`` or ``"sum"``.
        record: ``"ids"``, ``"seeds"`` or ``"batches"``.
        draws: Knows the epoch that examples are drawn for.
        ranks: Over how many processes gradients are averaged.

    Attributes:
        recording: Whether batches are recorded.
    """

    def __init__(
        self, forwards: ForwardWatch, reduction: str, record: str, draws: Draws, ranks: int
    ) -> None:
        self._ranks = ranks
        self._forwards, self._reduction, self.recording = forwards, reduction, record == "batches"
        self._draws = draws
        self._pending = Pending(forwards.captures)
        self._given: Observed | None = None  # to the step that is being taken
        self._records: list[MicroBatch] | None = None  # of that step
        self._step = forwards.step  # which they are of
        self._key = ALL  # of the optimizer that takes it
        self._type: type | None = None
        self._alike: dict[tuple[int, int], Tensor] = {}  # coefficients by batches and size
        self._complained = False
        self._bytes = self._steps = 0  # of recorded batches, in how many steps
        self._announced = 0  # bytes of the step that is being taken
        self._last: list[ID] = []  # of the last step

    def resume(self, path: Path, step: int) -> None:
        """Take IDs of the type that a log has, if it is resumed at a step."""
        if step:
            with RunLog(path) as log:
                self._type = str if log.metadata["id_type"] == "str" else int
                count = log.tables.length(micro_batches.MICRO)
                micro = log.tables.rows(micro_batches.MICRO, 0, count, "the steps")
            self._bytes, self._steps = int(micro["batch_bytes"].sum()), step

    @property
    def bytes_per_step(self) -> int | None:
        """What the recorded batches of a step took so far; None if nobody knows yet."""
        if not self.recording:
            return 0
        return self._bytes // self._steps if self._steps else None

    def gradients_zeroed(self, key: Key) -> None:
        """Forget what was announced of gradients that are zeroed now, those of one optimizer."""
        self._pending.gradients_zeroed(key)

    def observe(self, batch_ids: Any, weights: Any, batch: Any) -> None:
        """Announce a micro-batch; raises TracingError if it cannot be one."""
        checked = self._checked(batch_ids, weights, batch)
        if self._records is not None:
            return  # a closure runs again: its first run was the step's
        self._forwards.begin_step()
        self._drop_old()
        checked.random_state, checked.forwards = self._forwards.observed()
        self._pending.add(checked)

    def step_begins(self, batch_ids: Any, batch: Any, key: Key, *, closure: bool) -> None:
        """Take what ``step`` was given; a closure may yet announce micro-batches.

        Raises:
            TracingError: There are no IDs, they are wrong, or were given in both ways.
        """
        self._drop_old()
        self._given, self._records, self._key = None, None, key
        observed = bool(self._pending.in_step(key))
        if batch_ids is not None or not (closure or observed):
            self._given = self._checked(batch_ids, None, batch)
        if self._given is not None or not closure:
            self._require_right()
        if not closure:
            self.announced()

    def announced(self) -> list[MicroBatch]:
        """Return records of the step's micro-batches: its forward passes are over.

        Raises:
            TracingError: There are none, or they are wrong.
        """
        if self._records is None:
            found = self._require_right()
            self._forwards.require_seen()
            self._forwards.require_announced(len(found), self._key)
            self._draws.check(found)
            self._records = [self._record(one, len(found)) for one in found]
            if not self.recording and any(one.random_state is None for one in self._records):
                self._forwards.require_in_sight(self._key)
            self._announced = sum(len(one.payload or b"") for one in found)
        return self._records

    def are_of_last_step(self, batch_ids: Any, key: Key) -> bool:
        """Return whether a step was given no other IDs than the last one, and none announced."""
        alike = batch_ids is None or list(plain_ids(batch_ids)) == self._last
        return alike and bool(self._last) and not self._pending.in_step(key)

    def step_ended(self, *, taken: bool) -> None:
        """Begin anew after a step; ``taken`` unless it was skipped."""
        self._last = [i for one in self._records or () for i in one.ids] if taken else []
        if taken:
            self._steps, self._bytes = self._steps + 1, self._bytes + self._announced
        self._pending.clear()
        self._given = self._records = None

    def _require_right(self) -> list[Observed]:
        """Return what was announced; raises TracingError if it is none, or cannot be of a step."""
        found = self._pending.in_step(self._key)
        if self._given is not None and found:
            raise TracingError(
                "step() got batch_ids and micro-batches were observed: use one way, "
                "step(batch_ids=ids) or observe(ids) before step()."
            )
        found = found or [self._given or self._checked(None, None, None)]
        if len({type(one.ids[0]) for one in found}) > 1:
            raise TracingError("batch IDs must be all integers or all strings; found both.")
        self._check_type(found[0].ids[0])
        return found

    def _drop_old(self) -> None:
        """Forget what was announced for an earlier step: a GradScaler skipped it."""
        if self._step != self._forwards.step:
            self._step = self._forwards.step
            self._pending.clear()

    def _checked(self, batch_ids: Any, weights: Any, batch: Any) -> Observed:
        ids = plain_ids(batch_ids)
        payload = self._payload(batch)
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach().clone()
            if weights.shape != (len(ids),):
                raise TracingError(
                    f"observe() got weights of shape {tuple(weights.shape)} for {len(ids)} IDs; "
                    "give one weight each."
                )
        return Observed(ids, weights, payload, epoch=self._draws.now())

    def _payload(self, batch: Any) -> bytes | None:
        """Return the batch as bytes, copied before anybody changes it."""
        if (batch is not None) != self.recording:
            raise TracingError(
                'record="batches" needs batch=, what task.loss takes, at every step or observe.'
                if batch is None
                else 'batch= is for record="batches"; pass that to the optimizer, or leave it out.'
            )
        if batch is None:
            return None
        try:
            return encode(flattened(batch, "batch"), "batch")
        except NestedError as error:
            self._say_unrecorded(str(error))
            return None

    def _say_unrecorded(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            warn(
                f"a batch is not recorded: {why} A replay takes the examples of such batches from "
                "task.train by their IDs. To record them, do one of these:\n"
                "  1. pass batch= in plain containers, as dict(batch), tuple(batch) or "
                "batch.to_dict() give them, and let task.loss take those;\n"
                "  2. define the class of the batch at the top of a module, with attributes only."
            )

    def _record(self, one: Observed, count: int) -> MicroBatch:
        if one.forwards is None:
            one.random_state, one.forwards = self._forwards.taken()
        return MicroBatch(
            one.ids,
            self._coefficients(one.ids, one.weights, count),
            one.random_state,
            None if one.payload is None else partial(bytes, one.payload),
        )

    def _coefficients(self, ids: tuple[Any, ...], weights: Tensor | None, k: int) -> Tensor:
        if weights is not None:
            return weights / self._ranks
        alike = self._alike.get((k, len(ids)))
        if alike is None:
            value = 1 / (self._ranks * (k * len(ids) if self._reduction == "mean" else 1))
            alike = torch.tensor(value, dtype=torch.float64, device="cpu").expand(len(ids))
            self._alike[k, len(ids)] = alike
        return alike

    def _check_type(self, identity: ID) -> None:
        if self._type is None:
            self._type = type(identity)
        if type(identity) is not self._type:
            raise TracingError(
                f"batch IDs were {self._type.__name__} so far and are now "
                f"{type(identity).__name__}; use one type for the whole run."
            )
