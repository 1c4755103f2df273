"""The listener of a piece of work: what it is told while the work goes on; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Report = Callable[[int, int, str], None]
"""Progress of the work under way: done, of how many, in words."""


class Listener(Protocol):
    """A listener of work that has parts."""

    def begin(self, what: str) -> None:
        """A part starts."""

    def progress(self, n_done: int, n_total: int, detail: str) -> None:
        """It advanced."""

    def say(self, line: str) -> None:
        """A line worth reading."""
