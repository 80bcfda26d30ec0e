"""The processes that were started together find each other, in a store that may be older.

torchrun keeps one store through all its restarts: what processes that are dead have written is
still there, what they claimed to do, too. So each start has a part of the store of its own, whose
name the first process tells each of the others, by a word that only that one has written.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

_LOOK = 0.05  # seconds between looks at what others wrote


def met(kept: Any, rank: int, size: int, missed: Callable[[], None]) -> str:
    """Return the name of the part of a store that the processes of this start share.

    Args:
        kept: The store, one of ``torch.distributed``'s.
        rank: The number of this process.
        size: How many there are.
        missed: Called while the first process is waited for; raises when that takes too long.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        threading.Thread(target=_answer, args=(kept, own, size), daemon=True).start()
        return own
    kept.set(f"hello/{rank}", own)
    while not kept.check([f"answer/{own}"]):
        time.sleep(_LOOK)
        missed()
    name = str(kept.get(f"answer/{own}").decode())
    kept.set(f"{name}/met/{rank}", "")
    return name


def _answer(kept: Any, name: str, size: int) -> None:
    """Answer every word, those of dead processes too, until all of this start were met."""
    from torch.distributed import DistError

    left, answered = set(range(1, size)), set[str]()
    try:
        while left := {rank for rank in left if not kept.check([f"{name}/met/{rank}"])}:
            for rank in (rank for rank in left if kept.check([f"hello/{rank}"])):
                word = kept.get(f"hello/{rank}").decode()
                if word not in answered:
                    kept.set(f"answer/{word}", name)
                    answered.add(word)
            time.sleep(_LOOK)
    except DistError:  # said by what needs the store
        return
