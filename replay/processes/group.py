"""What the processes of a job tell each other: who does what, how far they are, what went wrong.

torchrun starts the processes, watches them and ends all when one dies. Results go by files that
every process sees.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from replay.processes.alone import Alone, Done
from replay.processes.store import Store
from tracer import errors
from tracer.errors import InputError, TracinError

if TYPE_CHECKING:
    from replay.processes.handing import Handing, Work

T = TypeVar("T")
_NAMED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ADVANCED, _WARNED = "advanced", "warned"
_EVERY = 0.1  # seconds between looks at the others


class Group:
    """The processes of a job, of which this is one.

    Attributes:
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._times = 0

    @property
    def leads(self) -> bool:
        """Whether this process begins the job, shows it and writes its result."""
        return self.rank == 0

    @cached_property
    def _store(self) -> Store:
        return Store.of_job(self.rank, self.size)

    def device(self, named: str) -> str:
        """Return which device this process takes: of several GPUs, one of its own."""
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if named == "cuda" else named

    def claims(self, part: str) -> bool:
        """Return whether this process is to do a part of the work: each falls to one."""
        return self._store.add(f"claimed/{part}", 1) == 1

    def speaks(self) -> bool:
        """Return whether this process says what went wrong: all others may find the same."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return True  # the store may have ended with the first process
        try:
            return self.claims("what went wrong")
        except InputError:
            return True

    def shows(self, advance: Callable[[], None]) -> Done:
        """Return what counts one piece of work as done.

        Args:
            advance: Advances the bar of all pieces by one: on the process that leads.
        """
        shown = 0

        def done(pieces: int = 1) -> None:
            nonlocal shown
            advanced = self._store.add(_ADVANCED, pieces)
            while self.leads and shown < advanced:
                advance()
                shown += 1

        return done

    def ended(self, look: Done) -> bool:
        """Say that this process has nothing more to do; on the one that leads, wait for all.

        Args:
            look: Called now and then with no piece of work done.

        Returns:
            Whether this process leads.

        Raises:
            InputError: None of the others gave a sign of life for half an hour.
        """
        self._store.add("left", 1)
        if self.leads:
            self._until_all_left(look)
        return self.leads

    def tell(self, name: str, value: Any) -> None:
        """Tell the others a value that JSON has."""
        self._store.set(f"told/{name}", json.dumps(value))

    def told(self, name: str) -> Any:
        """Return what was told under a name."""
        return json.loads(self._store.get(f"told/{name}"))

    @property
    def counted(self) -> str:
        """How many processes there are, in words."""
        return "1 process" if self.size == 1 else f"{self.size} processes"

    @property
    def neighbours(self) -> range:
        """The numbers of the processes of this host, if what started them says which they are."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", 0))
        return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)))

    def handing(
        self, work: Work[T], length: int, name: str, others: int, room: int, folder: Path
    ) -> Handing[T]:
        """Return a sequence of results that processes of this host hand on to each other."""
        from replay.processes.handing import Handing  # it needs torch, a job's help does not

        return Handing(work, length, self._store, name, others, room, folder)

    def heard(self, name: str) -> Any:
        """Return what was told under a name; None if nothing is told yet."""
        return self.told(name) if self._store.has(f"told/{name}") else None

    def divided(self, name: str, jobs: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        """Yield what jobs give, in their order: each is done by one process, and told to all.

        Args:
            name: Of all of them, the same on every process that has the same jobs.
            jobs: They return what JSON has.

        Raises:
            TracinError: A job failed, on whatever process: as it failed there.
        """
        names = [f"{name}, {k}" for k in range(len(jobs))]
        for one, job in zip(names, jobs, strict=True):
            if self.claims(one):
                self.tell(one, _outcome(job))
        for one in names:
            found = self.told(one)
            if "error" in found:
                raise getattr(errors, found["error"], TracinError)(found["text"])
            yield found["value"]

    def warn(self, text: str) -> None:
        """Tell the process that leads a warning of this one; each text once."""
        number = self._store.add(_WARNED, 1)
        self._store.set(f"{_WARNED}/{number}", text)

    def warnings(self) -> Mapping[str, int]:
        """Return what the others have warned of so far, and how many of them."""
        count = self._store.add(_WARNED, 0) if "_store" in vars(self) else 0  # else never met
        return Counter(self._store.get(f"{_WARNED}/{k + 1}") for k in range(count))

    def _until_all_left(self, look: Done) -> None:
        missed = self._store.missed()
        while self._store.add("left", 0) < self.size:
            time.sleep(_EVERY)
            look(0)
            missed()

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Do something on every process: if it fails on any, the job ends with that error.

        Raises:
            TracinError: As on the process that failed; names its host.
        """
        self._times += 1
        own: TracinError | None = None
        try:
            yield
        except TracinError as error:
            own = error
        said = "" if own is None else f"on {socket.gethostname()}, process {self.rank}: {own}"
        keys = [f"agreed/{self._times}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], said)
        self._store.wait(keys)
        texts = [self._store.get(key) for key in keys]
        if not any(texts):
            return
        if not self.leads:
            _wait_for_the_end()
        if own is not None and int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:
            raise own
        raise InputError(next(text for text in texts if text))


def _outcome(job: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": job()}
    except TracinError as error:
        return {"error": type(error).__name__, "text": str(error)}


def here() -> Group | Alone:
    """Return the job of this process: a group, if torchrun (or what says as much) began it."""
    found = [os.environ.get(name) for name in _NAMED]
    return Alone() if None in found else _group(*found)


@cache
def _group(*_: str | None) -> Group:
    """Return the one group of an environment: a process is one voice of its job."""
    return Group()


def _wait_for_the_end() -> NoReturn:
    """Let the first process say what is wrong; torchrun ends this one."""
    time.sleep(30)
    raise SystemExit(2)
