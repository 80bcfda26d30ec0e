"""A job of one process: what several do together, it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Done = Callable[..., None]


class Alone:
    """A job of this process alone."""

    size, leads = 1, True

    def device(self, named: str) -> str:
        """Return the device that is named."""
        return named

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Do something."""
        yield

    def claims(self, part: str) -> bool:
        """Return True: all is to be done here."""
        return bool(part)

    def speaks(self) -> bool:
        """Return True: nobody else says what went wrong."""
        return True

    def shows(self, advance: Callable[[], None]) -> Done:
        """Return what advances the bar."""
        return advance

    def ended(self, look: Done) -> bool:
        """Return True: nobody is waited for."""
        return callable(look)

    def tell(self, name: str, value: Any) -> None:
        """Tell nobody."""

    def told(self, name: str) -> Any:
        """Return None: nobody tells."""

    def divided(self, name: str, jobs: Sequence[Callable[[], Any]]) -> Iterator[Any]:
        """Yield what jobs give, each done when it is asked for."""
        yield from (job() for job in jobs)

    def warn(self, text: str) -> None:
        """Tell nobody."""

    def warnings(self) -> Mapping[str, int]:
        """Return nothing: there are no others."""
        return {}
